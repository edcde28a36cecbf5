"""tests/wheels.py: what it tries works here, and it tells what is missing."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest
import wheels
from conftest import ROOT
from support.network import NETWORK

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    try:
        return wheels.build(tmp_path_factory.mktemp("built"))
    except wheels.Failure as error:
        if re.search(NETWORK, str(error), re.M):
            pytest.skip("setuptools cannot be downloaded here")
        raise


@slow
def test_this_python_installs_and_uses_the_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    line, good = wheels.row(Path(sys.executable), *built, tmp_path)
    assert good, line
    assert line.endswith(f"| all {len(wheels.CHECKS)} checks passed |")


def test_nothing_is_lacking_and_the_wheel_has_nothing_else(built: tuple[Path, Path]) -> None:
    assert list(wheels.lacking(*built)) == []
    assert built[1].name == f"fairseq_sru-{wheels.VERSIONS['__version__']}-py3-none-any.whl"
    names = {name for name in wheels.contents(built[1]) if not name.startswith("fairseq_sru/kernels/")}
    assert names == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fairseq_sru").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_extras_of_the_readme_bring_their_packages(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        about = archive.read(name).decode()
    extras = {"cuda12": "CUDA12", "cuda13": "CUDA13", "recipes": "RECIPES", "test": "TEST"}
    assert re.findall("^Provides-Extra: (.+)$", about, re.M) == list(extras)
    for extra, names in extras.items():
        found = re.findall(rf"^Requires-Dist: ([^;\s]+);.*extra == .{extra}.$", about, re.M)
        assert found == [requirement.partition(";")[0] for requirement in wheels.VERSIONS[names]]
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"pip install -e '\.\[(\w+)\]'", readme)) <= extras.keys()
