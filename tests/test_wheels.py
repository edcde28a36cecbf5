"""tests/wheels.py: what it tries works here, and it tells what is missing."""

from __future__ import annotations

import re
import sys
import tarfile
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


def without(archive: Path, end: str, folder: Path) -> Path:
    """A copy of a wheel or sdist that lacks the files whose names end so."""
    made = folder / archive.name
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(made, "w") as less:
            for name in whole.namelist():
                if not name.endswith(end):
                    less.writestr(name, whole.read(name))
    else:
        with tarfile.open(archive) as whole, tarfile.open(made, "w:gz") as less:
            for item in whole:
                if not item.name.endswith(end):
                    less.addfile(item, whole.extractfile(item))
    return made


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


@pytest.mark.parametrize(
    "end", ["licenses/LICENSE", "fairseq_sru/py.typed", "sru/sru_tiny.yaml", "kernels/sru.cu", "patches/series"]
)
def test_a_file_that_the_wheel_lacks_is_told(end: str, built: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, wheel = built
    (told,) = wheels.lacking(sdist, without(wheel, end, tmp_path))
    assert told.endswith(f"{end} of the wheel")


@pytest.mark.parametrize("end", ["/lohelp-en-de/train.de", "support/variants.py", "kernels/host.h", "docs/maths.md"])
def test_a_file_that_the_sdist_lacks_is_told(end: str, built: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, wheel = built
    (told,) = wheels.lacking(without(sdist, end, tmp_path), wheel)
    assert told.endswith(f"{end} of the sdist")


@slow
def test_a_wheel_that_does_not_work_fails(built: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, wheel = built
    (tmp_path / "broken").mkdir()
    line, good = wheels.row(
        Path(sys.executable), sdist, without(wheel, "kernels/sru.cu", tmp_path / "broken"), tmp_path
    )
    assert not good
    assert "runs layers" in line and "builds" in line
