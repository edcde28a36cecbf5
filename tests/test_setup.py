"""Set-up and packaging: the pins, the patches of fairseq, install_fairseq.py and recipes/setup.sh."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.network import NETWORK

from fairseq_sru import install_fairseq as install
from fairseq_sru import versions

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fairseq_sru"
INSTALL_FAIRSEQ = PACKAGE / "install_fairseq.py"


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True)


# versions.py and the patches


def test_requirements_are_in_step() -> None:
    assert (ROOT / "requirements.txt").read_text() == run(sys.executable, PACKAGE / "versions.py").stdout


def test_versions_agree_with_the_first_patch() -> None:
    added = [line for line in install.series()["01-build.patch"].splitlines() if line.startswith("+")]
    pins = re.findall(r'"([\w-]+==[\d.]+)"', "\n".join(added))
    assert sorted(pins) == sorted((*versions.FAIRSEQ_BUILD, *versions.FAIRSEQ_RUN))


TWO = (
    "--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,4 @@\n 1\n-2\n+two\n+2a\n+2b\n",
    "--- a/a.py\n+++ b/a.py\n@@ -4,2 +6,1 @@\n 4\n-5\n",
)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [("12", "1 two 2a 2b 3 4 6"), ("21", "1 two 2a 2b 3 4 6"), ("1", "1 two 2a 2b 3 4 5 6"), ("2", "1 2 3 4 6")],
)
def test_any_patch_can_be_left_out(listed: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "PATCHES", tmp_path)
    for name, text in zip("12", TWO, strict=True):
        (tmp_path / name).write_text(f"Description: of {name}\n\n{text}")
    (tmp_path / "series").write_text("# all\n\n" + "\n".join(listed))
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "a.py").write_text("1\n2\n3\n4\n5\n6\n")
    install.apply(tmp_path)
    assert (tmp_path / "a.py").read_text().split() == expected.split()
    assert (tmp_path / "fairseq" / "version.txt").read_text() == (version := install.patched_version())
    with pytest.raises(SystemExit, match=f"{tmp_path}/{max(listed)} does not apply to line"):
        install.apply(tmp_path)
    (tmp_path / listed[0]).write_text("another")
    assert install.patched_version() != version


# install_fairseq.py


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler (no-such-compiler)"),
        ({"PYTHONPATH": "WITHOUT_HEADERS"}, f"apt install python3.{sys.version_info.minor}-dev"),
        ({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nowhere"}, "downloading fairseq-0.12.2.tar.gz failed"),
    ],
)
def test_install_fairseq_says_what_it_lacks(env: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sysconfig\nsysconfig.get_path = lambda name: '/nowhere'\n")
    env = {name: value.replace("WITHOUT_HEADERS", str(tmp_path)) for name, value in env.items()}
    done = run(sys.executable, INSTALL_FAIRSEQ, "--wheel-dir", tmp_path / "wheels", env=env)
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "wheels").exists()


def test_install_fairseq_takes_the_official_sdist_only(tmp_path: Path) -> None:
    sdist = tmp_path / "fairseq-0.12.2.tar.gz"
    done = run(sys.executable, INSTALL_FAIRSEQ, "--sdist", sdist, "--wheel-dir", tmp_path)
    assert done.returncode == 2 and str(sdist) in done.stderr.splitlines()[-1]
    sdist.write_bytes(b"")
    done = run(sys.executable, INSTALL_FAIRSEQ, "--sdist", sdist, "--wheel-dir", tmp_path)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and versions.FAIRSEQ_SHA256 in line
    assert "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" in line  # of the empty file


OURS = install.patched_version()


@pytest.mark.parametrize(
    ("version", "builds"),
    [
        (OURS, False),
        ("0.12.2+py311.52", True),  # of an earlier series
        ("0.12.2", False),
        ("0.12.3.1", False),
        ("1.0.0a0+af12c9c", False),
        ("0.10.2", True),
        ("", True),  # it is missing, or can't be imported
    ],
)
def test_a_fairseq_that_works_is_left(version: str, builds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "imported", lambda: version)
    monkeypatch.setattr(install, "check_compiler", lambda: sys.exit("it builds"))
    monkeypatch.setattr(sys, "argv", ["install_fairseq"])
    with pytest.raises(SystemExit, match="it builds") if builds else contextlib.nullcontext():
        install.main()


@pytest.mark.parametrize("there", [{}, {"fairseq": "0.10.0", "fairseq-fork": "0.12.2"}])
def test_install_fairseq_replaces_what_owns_its_files(
    there: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "installed", lambda: there)
    monkeypatch.setattr(install, "run", lambda _, *words: calls.append(tuple(map(str, words))))
    wheel, constraints = tmp_path / "fairseq-0.12.2-x.whl", tmp_path / "constraints.txt"
    install.install(wheel)
    removed = [("uninstall", "--yes", *there)] if there else []
    assert calls == [*removed, ("install", "--constraint", str(constraints), str(wheel))]
    assert {versions.TORCH, versions.NUMPY} <= set(constraints.read_text().splitlines())


def test_a_folder_above_the_checkout_does_not_hide_the_package(tmp_path: Path) -> None:
    """A checkout is named as the package is: a folder without __init__.py, found before what a finder would find."""
    checkout = tmp_path / "fairseq_sru"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("fairseq_sru", "kernels"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    code = "import setuptools.build_meta as b; b.build_editable('made')"
    (checkout / "made").mkdir()
    done = run(sys.executable, "-c", code, cwd=checkout)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    with zipfile.ZipFile(next((checkout / "made").glob("*.whl"))) as archive:
        archive.extractall(site)
    code = f"import site, importlib.util as u; site.addsitedir({str(site)!r}); print(u.find_spec('fairseq_sru').origin)"
    done = run(sys.executable, "-S", "-c", code, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert done.stdout.strip() == str(checkout / "fairseq_sru" / "__init__.py"), done.stderr


@pytest.mark.parametrize("module", ["benchmarks.layer", "common.files"])  # the first import of speed.py, and of others
def test_recipes_take_the_package_beside_them(module: str, tmp_path: Path) -> None:
    """Another checkout, or a copy, may have been installed since."""
    (tmp_path / "fairseq_sru").mkdir()
    (tmp_path / "fairseq_sru" / "__init__.py").touch()
    code = f"import {module}, importlib.util as u; print(u.find_spec('fairseq_sru').origin)"
    path = os.pathsep.join(map(str, (ROOT / "recipes", tmp_path)))
    done = run(sys.executable, "-c", code, cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.stdout.strip() == str(ROOT / "fairseq_sru" / "__init__.py"), done.stderr


@pytest.mark.slow
def test_install_fairseq_builds(tmp_path: Path) -> None:
    done = run(sys.executable, INSTALL_FAIRSEQ, "--wheel-dir", tmp_path)
    if done.returncode and re.search(NETWORK, done.stderr, re.MULTILINE):
        pytest.skip("the sdist of fairseq, or what builds it, cannot be downloaded here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("fairseq-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"fairseq-{OURS}.dist-info/METADATA").decode()
        assert any(name.startswith("fairseq/data/data_utils_fast.") for name in archive.namelist())
    assert [line.split(": ")[1] for line in metadata.splitlines() if "==" in line] == list(versions.FAIRSEQ_RUN)


# recipes/setup.sh, with a Python that only writes down what it is asked to do

STUB = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
--version) echo Python 3.12.0 ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "VIRTUAL_ENV=$3" >"$3/bin/activate" ;;
"-m pip install "*) cp "$0" "${0%/*}/fairseq-train" ;;
esac
"""
OLD = """#!/bin/sh
exit 1
"""


class Machine:
    """A copy of what setup.sh needs, under a path with a space, and a PATH with nothing but shell tools and python3."""

    def __init__(self, folder: Path, python3: str) -> None:
        self.root = folder / "a tree"
        self.log = folder / "log"
        self.bin = folder / "bin"
        for name in ("recipes/setup.sh", "fairseq_sru/versions.py", "fairseq_sru/patches/series"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for tool in ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "mv", "sh", "timeout", "touch"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.write_python(self.bin / "python3", python3)

    def write_python(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def setup(self, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Sources setup.sh as the user commands do, from another folder. What it said, and what Python had to do."""
        self.log.write_text("")
        script = f'set -euo pipefail; . "{self.root}/recipes/setup.sh"; echo ready; command -v python fairseq-train'
        done = subprocess.run(
            ["bash", "-c", script],
            env={"PATH": str(self.bin), "LOG": str(self.log), **env},
            cwd=self.bin,
            capture_output=True,
            text=True,
        )
        calls = self.log.read_text().splitlines()
        return done, [call for call in calls if call != "--version" and not call.startswith("-c ")]


def test_setup_makes_a_venv_and_is_cheap_to_repeat(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    venv = machine.root / ".venv"
    done, calls = machine.setup()
    assert done.stdout.split("\n")[:3] == ["ready", f"{venv}/bin/python", f"{venv}/bin/fairseq-train"], done.stderr
    install = [f"{machine.root}/fairseq_sru/install_fairseq.py", f"-m pip install -r {machine.root}/requirements.txt"]
    install.append(f"-m pip install --no-deps --no-build-isolation -e {machine.root}")
    assert calls == [f"-m venv {venv}", *install]
    assert len(re.findall(r"^\+ ", done.stderr, re.MULTILINE)) == 4

    done, calls = machine.setup()
    assert done.returncode == 0
    assert done.stderr == ""
    assert calls == []

    with (machine.root / "fairseq_sru" / "versions.py").open("a") as file:
        file.write("# another pin\n")
    _, calls = machine.setup()
    assert calls == install


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_setup_takes_the_active_environment(variable: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=OLD)
    active = tmp_path / "active"
    machine.write_python(active / "bin" / "python", STUB)
    done, _ = machine.setup(**{variable: str(active)})
    assert done.stdout.splitlines()[:2] == ["ready", f"{active}/bin/python"], done.stderr
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize("moved", [False, True])
def test_setup_removes_no_venv_that_does_not_work(moved: bool, tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    venv = machine.root / ".venv"
    machine.write_python(venv / "bin" / "python", STUB if moved else OLD)
    (venv / "bin" / "activate").write_text(f"VIRTUAL_ENV={'/where/it/was' if moved else venv}\n")
    done, calls = machine.setup()
    assert (done.returncode, calls) == (1, [])
    assert done.stderr.startswith(f"setup.sh: {venv} doesn't work; remove it and run this again")


def test_setup_takes_torch_for_an_old_driver_before_fairseq_brings_the_newest(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB.replace("--version)", '"-c import torch;"*) exit 1 ;;\n--version)'))
    machine.write_python(machine.bin / "nvidia-smi", "#!/bin/sh\necho '| CUDA Version: 12.4 |'\n")
    done, calls = machine.setup()
    assert done.returncode == 0, done.stderr
    assert calls[1] == "-m pip install torch>=2.6,<2.11" and calls[2].endswith("install_fairseq.py")


def test_setup_leaves_the_nvrtc_of_a_torch_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB.replace("--version)", '"-c from importlib"*) echo 13.0.48 ;;\n--version)'))
    shutil.copy(ROOT / "requirements.txt", machine.root)
    done, calls = machine.setup()
    pins = machine.root / ".venv" / "fairseq_sru.requirements"
    assert done.returncode == 0 and f"-m pip install -r {pins}" in calls
    kept = [line for line in versions.REQUIREMENTS if not line.startswith("nvidia-cuda-nvrtc")]
    assert pins.read_text().splitlines()[2:] == kept


def test_setup_takes_no_arguments(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    done = run("bash", machine.root / "recipes" / "setup.sh", "--help", env={"PATH": str(machine.bin)})
    assert (done.returncode, done.stderr) == (2, "setup.sh: takes no arguments; got: --help\n")
    assert not machine.log.exists()


def test_setup_refuses_an_old_python(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=OLD)
    done, _ = machine.setup()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "setup.sh: no Python 3.11 to 3.14 on PATH; install one, or activate an environment that has one"
    ]
    active = tmp_path / "active"
    machine.write_python(active / "bin" / "python", OLD)
    done, _ = machine.setup(VIRTUAL_ENV=str(active))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"setup.sh: no Python 3.11 to 3.14 in {active};")


def test_setup_fails_where_an_install_fails(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB.replace("esac", "*install_fairseq.py) exit 1 ;;\nesac"))
    done, _ = machine.setup()
    assert done.returncode == 1
    assert "ready" not in done.stdout
    assert not (machine.root / ".venv" / "fairseq_sru.stamp").exists()
