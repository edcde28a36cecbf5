"""The packages: which file imports which, that there is no circle, and that files fit in the head."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# Each room imports only from itself and from those before it.
PACKAGE = ["versions", "recurrence", "layers", "decoding", "models", "install_fairseq", "doctor", "export", "translate"]
RECIPES = ["common", "corpora", "benchmarks", "comparison", "gpu"]
LONGEST = 350  # lines


def files() -> dict[str, Path]:
    """The modules of the package and of the recipes by their names."""
    found = {}
    for base, prefix in ((ROOT / "fairseq_sru", "fairseq_sru."), (ROOT / "recipes", "")):
        for path in base.rglob("*.py"):
            found[(prefix + ".".join(path.relative_to(base).with_suffix("").parts)).removesuffix(".__init__")] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


FILES = files()


def imported(name: str, everywhere: bool) -> set[str]:
    """Which of FILES a module imports: when it is loaded, or (everywhere) also when its functions run."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else [n for top in tree.body for n in ast.walk(top) if _loads(top)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= names & FILES.keys() or {module}
    return {module for module in found if module in FILES} - {name}


def _loads(node: ast.stmt) -> bool:
    typing_alone = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    return not typing_alone and not isinstance(node, ast.FunctionDef | ast.ClassDef)


def room(name: str) -> int:
    """How high up a module is."""
    if name == "fairseq_sru":
        return len(PACKAGE)
    if name.startswith("fairseq_sru."):
        return PACKAGE.index(name.split(".")[1])
    first = name.split(".")[0]
    return 100 + (RECIPES.index(first) if first in RECIPES else len(RECIPES))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_room_imports_only_from_rooms_beneath_it(name: str) -> None:
    for other in imported(name, everywhere=True):
        if other == "fairseq_sru" and name.startswith("fairseq_sru.models"):
            continue
        assert room(other) <= room(name), f"{name} imports {other}"


def test_there_is_no_circle() -> None:
    # `from . import x` loads the package first, which is why a package is no dependency of its own modules here
    graph = {
        name: {other for other in imported(name, everywhere=False) if not name.startswith(f"{other}.")}
        for name in FILES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_fit_in_the_head(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= LONGEST


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("test_") for name in names), path
