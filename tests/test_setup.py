"""Set-up and packaging: the pins, the patch for fairseq, install_fairseq.py, recipes/setup.sh and tests/run.sh."""

import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from support.network import NETWORK

from fairseq_sru import install_fairseq as install
from fairseq_sru import versions

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fairseq_sru"
INSTALL_FAIRSEQ = PACKAGE / "install_fairseq.py"
PATCH = (PACKAGE / f"fairseq-{versions.FAIRSEQ}.patch").read_text()


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True)


# versions.py and the patch


def test_requirements_are_in_step() -> None:
    assert (ROOT / "requirements.txt").read_text() == run(sys.executable, PACKAGE / "versions.py").stdout


def test_versions_agree_with_patch() -> None:
    added = "\n".join(line for line in PATCH.splitlines() if line.startswith("+"))
    pins = re.findall(r'"([\w-]+==[\d.]+)"', added)
    assert sorted(pins) == sorted((*versions.FAIRSEQ_BUILD, *versions.FAIRSEQ_RUN))
    release, patched = versions.FAIRSEQ_PATCHED.split("+")
    assert release == versions.FAIRSEQ
    assert f'f.read().strip() + "+{patched}"' in added


def test_a_killed_copy_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq copies each checkpoint to checkpoint_last.pt, from which a run goes on."""
    from fairseq.file_io import PathManager

    new, last = tmp_path / "checkpoint_1_20.pt", tmp_path / "checkpoint_last.pt"
    new.write_bytes(b"new" * 1000)
    last.write_bytes(b"whole")

    def killed(source: str, target: str) -> str:
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            PathManager.copy(str(new), str(last), overwrite=True)
    assert last.read_bytes() == b"whole"
    assert PathManager.copy(str(new), str(last), overwrite=True)  # fairseq asserts this, too
    assert last.read_bytes() == new.read_bytes()


def test_installed_fairseq_has_this_patch() -> None:
    """A changed patch under an unchanged version would leave old installations as they are."""
    told = "the patch has changed: give versions.py another FAIRSEQ_PATCHED, and this sum"
    assert hashlib.sha256(PATCH.encode()).hexdigest() == versions.FAIRSEQ_PATCH_SHA256, told
    try:
        version = importlib.metadata.version("fairseq")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fairseq is not installed")
    if version != versions.FAIRSEQ_PATCHED:
        pytest.skip(f"fairseq {version} is not ours")
    for section in PATCH.split("\n--- a/")[1:]:
        name, hunks = section.split("\n", 1)
        if name.startswith(("fairseq/", "fairseq_cli/")):
            installed = Path(str(importlib.metadata.distribution("fairseq").locate_file(name))).read_text()
            for hunk in re.split(r"^@@.*\n", hunks, flags=re.MULTILINE)[1:]:
                lines = [line[1:] for line in hunk.splitlines() if not line.startswith("-")]
                assert "\n".join(lines) in installed, f"{name} was built with another patch: reinstall fairseq"


# install_fairseq.py


def test_an_earlier_patch_is_replaced() -> None:
    assert not install.is_usable({"fairseq": "0.12.2+py311"})
    assert not install.is_usable({"fairseq": "0.12.2+py311.2"})
    assert install.is_usable({"fairseq": "0.12.2"})  # what is installed imports


def install_fairseq(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Its one line, of a call that has to fail."""
    done = run(sys.executable, INSTALL_FAIRSEQ, *arguments, env=env)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_install_fairseq_refuses_another_sdist(tmp_path: Path) -> None:
    sdist = tmp_path / "fairseq-0.12.2.tar.gz"
    sdist.write_bytes(b"")
    line = install_fairseq("--sdist", sdist, "--wheel-dir", tmp_path)
    assert versions.FAIRSEQ_SHA256 in line
    assert "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" in line  # of the empty file


def test_install_fairseq_names_a_missing_sdist(tmp_path: Path) -> None:
    assert "/nowhere.tar.gz" in install_fairseq("--sdist", tmp_path / "nowhere.tar.gz", "--wheel-dir", tmp_path)


def test_install_fairseq_names_a_missing_compiler(tmp_path: Path) -> None:
    line = install_fairseq("--wheel-dir", tmp_path, env={"CXX": "no-such-compiler"})
    assert "no-such-compiler" in line
    assert "apt install g++;" in line


def test_install_fairseq_names_a_missing_python_h(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sysconfig\nsysconfig.get_path = lambda name: '/nowhere'\n")
    line = install_fairseq("--wheel-dir", tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert "no Python.h of this Python to build fairseq with" in line
    assert f"apt install python3.{sys.version_info.minor}-dev;" in line


def test_install_fairseq_offline_tells_what_to_do(tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = run(sys.executable, INSTALL_FAIRSEQ, "--wheel-dir", tmp_path, env=offline)
    assert done.returncode == 1
    assert "--sdist FILE" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("folder", "files", "expected"),
    [
        ("fairseq-0.12.2", ("METADATA", "RECORD"), "{'fairseq': '0.12.2'} False"),
        ("fairseq-0.12.2", ("METADATA", "RECORD", "INSTALLER"), "{'fairseq': '0.12.2'} True"),
        ("~airseq-0.12.2", ("METADATA", "RECORD", "INSTALLER"), "{} False"),  # of what was being replaced
    ],
)
def test_what_pip_leaves_when_it_is_stopped_is_not_whole(
    folder: str, files: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    about = tmp_path / f"{folder}.dist-info"
    about.mkdir()
    for name in files:
        (about / name).write_text("Metadata-Version: 2.1\nName: fairseq\nVersion: 0.12.2\n")
    (about / "top_level.txt").write_text("fairseq\n")
    code = "from install_fairseq import installed, is_whole; print(installed(), is_whole())"
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'fairseq_sru'}"}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_the_halves_of_an_environment_are_found(tmp_path: Path) -> None:
    for name, files in (("whole", ("METADATA", "INSTALLER")), ("half", ("METADATA",)), ("empty", ())):
        about = tmp_path / f"{name}-1.0.dist-info"
        about.mkdir()
        for file in files:
            (about / file).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    code = f"import sys, install_fairseq; sys.prefix = {str(tmp_path)!r}; print(*install_fairseq.halves())"
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'fairseq_sru'}"}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["half==1.0"]


class Calls:
    """What install_fairseq runs, instead of running it."""

    def __init__(self, patch: pytest.MonkeyPatch, found: dict[str, str], whole: bool = True) -> None:
        self.made: list[tuple[str, ...]] = []
        patch.setattr(install, "installed", lambda: found)
        patch.setattr(install, "is_whole", lambda: whole)
        patch.setattr(install, "run", lambda _, *words, **more: self.made.append(tuple(map(str, words))))


@pytest.mark.parametrize(("fork", "whole"), [(False, True), (False, False), (True, True)])
def test_install_fairseq_replaces_what_owns_its_files(
    fork: bool, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork of another name goes once ours is there, whose files go with it."""
    calls = Calls(monkeypatch, {}, whole)
    wheel = tmp_path / "fairseq-0.12.2-x.whl"
    install.install(wheel, {"fairseq": "0.10.0"} | ({"fairseq-fork": "0.12.2"} if fork else {}))
    removed = [("pip", "uninstall", "--yes", "fairseq-fork")] if fork else []
    added = ("pip", "install", "--constraint", str(tmp_path / "constraints.txt"), str(wheel))
    again = [] if whole and not fork else [("pip", "install", "--ignore-installed", "--no-deps", str(wheel))]
    assert calls.made == [added, *removed, *again]
    assert {versions.TORCH, versions.NUMPY} <= set((tmp_path / "constraints.txt").read_text().splitlines())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"fairseq": versions.FAIRSEQ_PATCHED}, f"fairseq {versions.FAIRSEQ_PATCHED} is installed\n"),
        ({"fairseq": "0.12.2"}, "fairseq 0.12.2 is installed and imports: left as it is\n"),
    ],
)
def test_install_fairseq_leaves_what_works(
    found: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls(monkeypatch, found)
    monkeypatch.setattr(sys, "argv", ["install_fairseq"])
    install.main()
    assert (capsys.readouterr().out, calls.made) == (said, [])


def test_what_is_interrupted_may_tidy_up(tmp_path: Path) -> None:
    """As pip does, whose unpacked wheels would stay in /tmp."""
    begun, tidied = tmp_path / "begun", tmp_path / "tidied"
    lines = ["import pathlib, time", "try:", f"    pathlib.Path({str(begun)!r}).touch()", "    time.sleep(60)"]
    lines += ["finally:", "    time.sleep(1)", f"    pathlib.Path({str(tidied)!r}).touch()"]
    (tmp_path / "slow.py").write_text("\n".join(lines))
    # jobs in the background ignore the signal
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "import install_fairseq; install_fairseq.run('failed', 'slow')"
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{PACKAGE}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not begun.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert begun.exists()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    assert tidied.exists()


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


@pytest.mark.parametrize("module", ["benchmarks.scans", "common.files"])  # the first import of speed.py, and of others
def test_recipes_take_the_package_beside_them(module: str, tmp_path: Path) -> None:
    """As where another checkout's, or a copy, was installed since."""
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
        metadata = archive.read(f"fairseq-{versions.FAIRSEQ_PATCHED}.dist-info/METADATA").decode()
        assert any(name.startswith("fairseq/data/data_utils_fast.") for name in archive.namelist())
    assert [line.split(": ")[1] for line in metadata.splitlines() if "==" in line] == list(versions.FAIRSEQ_RUN)


# recipes/setup.sh, with a Python that only writes down what it is asked to do

STUB = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
--version) echo Python 3.12.0 ;;
"-m venv --clear "*)
    mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && touch "$4/bin/activate"
    echo "command = python $*" >"$4/pyvenv.cfg"
    ;;
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
        for name in ("recipes/setup.sh", "fairseq_sru/versions.py", f"fairseq_sru/fairseq-{versions.FAIRSEQ}.patch"):
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
    assert calls == [f"-m venv --clear {venv}", *install]
    assert len(re.findall(r"^\+ ", done.stderr, re.MULTILINE)) == 4

    done, calls = machine.setup()
    assert done.returncode == 0
    assert done.stderr == ""
    assert calls == []

    with (machine.root / "fairseq_sru" / "versions.py").open("a") as file:
        file.write("# another pin\n")
    _, calls = machine.setup()
    assert calls == install


@pytest.mark.parametrize(("missing", "steps"), [("bin/activate", 4), ("bin/fairseq-train", 3)])
def test_setup_heals(missing: str, steps: int, tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    _, calls = machine.setup()
    (machine.root / ".venv" / missing).unlink()
    (machine.root / ".venv" / "fairseq_sru.stamp").unlink()  # it is written last
    done, calls_again = machine.setup()
    assert done.returncode == 0
    assert calls_again == calls[-steps:]


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_setup_takes_the_active_environment(variable: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=OLD)
    active = tmp_path / "active"
    machine.write_python(active / "bin" / "python", STUB)
    done, _ = machine.setup(**{variable: str(active)})
    assert done.stdout.splitlines()[:2] == ["ready", f"{active}/bin/python"], done.stderr
    assert not (machine.root / ".venv").exists()


def test_setup_follows_a_link_and_clears_nothing_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    theirs = tmp_path / "theirs"
    machine.write_python(theirs / "bin" / "python", STUB)
    (machine.root / ".venv").symlink_to(theirs)
    done, calls = machine.setup()
    assert done.stdout.splitlines()[:2] == ["ready", f"{theirs}/bin/python"], done.stderr
    assert len(calls) == 3
    assert not any("-m venv" in call for call in calls)

    (theirs / "bin" / "python").unlink()
    (theirs / "kept").touch()
    done, calls = machine.setup()
    assert done.returncode == 1
    assert f"no Python 3.11 to 3.14 in {theirs};" in done.stderr
    assert calls == []
    assert (theirs / "kept").exists()


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("names", [("pyvenv.cfg", "bin/activate"), ("pyvenv.cfg",)])  # the latter as on Windows
def test_setup_clears_no_moved_venv_but_its_own(ours: bool, names: tuple[str, ...], tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    venv = machine.root / ".venv"
    if ours:
        machine.setup()
    else:
        machine.write_python(venv / "bin" / "python", STUB)
        for name in names:
            (venv / name).touch()
    machine.write_python(venv / "bin" / "pip", "#!/where/it/was/bin/python\n")
    (venv / "fairseq_sru.stamp").unlink(missing_ok=True)  # which has the place where it was
    done, calls = machine.setup()
    if ours:
        assert done.returncode == 0
        assert calls[0] == f"-m venv --clear {venv}"
    else:
        assert (done.returncode, calls) == (1, [])
        assert f"{venv} doesn't work here: it was moved or copied, is of another system, " in done.stderr


def test_setup_keeps_what_was_added_to_its_own_venv(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    venv, old = machine.root / ".venv", machine.root / ".venv.old"
    for n in range(2):
        machine.setup()
        (venv / "added").write_text(str(n))
        (venv / "fairseq_sru.stamp").write_text("of where it was")
        machine.write_python(venv / "bin" / "pip", "#!/where/it/was/bin/python\n")
        done, calls = machine.setup()
        assert (old / "added").read_text() == "0"
        if n == 0:
            assert f"{venv} doesn't work here: it was moved or copied" in done.stderr
            assert f"; it is now {old}\n" in done.stderr
            assert done.returncode == 0 and calls[0] == f"-m venv --clear {venv}" and not (venv / "added").exists()
    assert done.returncode == 1 and f"{old} is there" in done.stderr and (venv / "added").read_text() == "1"


def test_setup_clears_nothing_that_is_no_venv(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    (machine.root / ".venv" / "conda-meta").mkdir(parents=True)
    done, calls = machine.setup()
    assert (done.returncode, calls) == (1, [])
    assert done.stderr.endswith(".venv is no venv; activate it if it is an environment, else remove it\n")
    assert (machine.root / ".venv" / "conda-meta").exists()


def test_setup_takes_torch_for_an_old_driver_before_fairseq_brings_the_newest(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB.replace("--version)", '"-c import torch;"*) exit 1 ;;\n--version)'))
    machine.write_python(machine.bin / "nvidia-smi", "#!/bin/sh\necho '| CUDA Version: 12.4 |'\n")
    done, calls = machine.setup()
    assert done.returncode == 0, done.stderr
    assert calls[1] == "-m pip install torch>=2.6,<2.11" and calls[2].endswith("install_fairseq.py")


def test_setup_installs_again_what_pip_was_stopped_in(tmp_path: Path) -> None:
    halves = "ruff==0.1 torch==2.6"
    machine = Machine(
        tmp_path, python3=STUB.replace("--version)", f'"-c import install_fairseq"*) echo {halves} ;;\n--version)')
    )
    done, calls = machine.setup()
    assert done.returncode == 0, done.stderr
    assert calls[-2] == f"-m pip install --force-reinstall --no-deps {halves}"


def test_setup_leaves_the_nvrtc_of_a_torch_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB.replace("--version)", '"-c from importlib"*) echo 13.0.48 ;;\n--version)'))
    shutil.copy(ROOT / "requirements.txt", machine.root)
    done, calls = machine.setup()
    pins = machine.root / ".venv" / "fairseq_sru.requirements"
    assert done.returncode == 0 and f"-m pip install -r {pins}" in calls
    kept = [line for line in versions.REQUIREMENTS if not line.startswith("nvidia-cuda-nvrtc")]
    assert pins.read_text().splitlines()[2:] == kept


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock")
def test_one_set_up_at_a_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB)
    (machine.bin / "flock").symlink_to(str(shutil.which("flock")))
    machine.log.write_text("")
    env = {"PATH": str(machine.bin), "LOG": str(machine.log)}
    command = ["bash", str(machine.root / "recipes" / "setup.sh")]
    helped = subprocess.run([*command, "--help"], env=env, capture_output=True, text=True)
    assert (helped.returncode, helped.stderr) == (2, "setup.sh: takes no arguments; got: --help\n")
    assert not machine.log.read_text()
    with (machine.root / ".setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        assert second.stderr and second.stderr.readline() == "setup.sh: waiting for another set-up\n"
        time.sleep(0.5)
        assert "pip install" not in machine.log.read_text()
    second.communicate()
    assert second.returncode == 0 and "pip install" in machine.log.read_text()


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


def test_setup_names_debians_package_for_venv(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB.replace("--version)", '"-c import ensurepip"*) exit 1 ;;\n--version)'))
    done, calls = machine.setup()
    assert done.returncode == 1
    assert calls == []
    assert "apt install python3-venv" in done.stderr


def test_setup_fails_where_an_install_fails(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3=STUB.replace("esac", "*install_fairseq.py) exit 1 ;;\nesac"))
    done, _ = machine.setup()
    assert done.returncode == 1
    assert "ready" not in done.stdout
    assert not (machine.root / ".venv" / "fairseq_sru.stamp").exists()


# tests/run.sh, likewise


def run_tests(tmp_path: Path, python: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What it said, and what Python had to do once all was set up."""
    machine = Machine(tmp_path, python3=python)
    machine.setup()
    (machine.root / "tests").mkdir()
    script = machine.root / "tests" / "run.sh"
    shutil.copy(ROOT / "tests" / "run.sh", script)
    env = {"PATH": str(machine.bin), "LOG": str(machine.log)}
    machine.log.write_text("")
    done = subprocess.run(["bash", script, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True)
    return done, [call for call in machine.log.read_text().splitlines() if not call.startswith(("-c import", "--ver"))]


NO_CUPY = STUB.replace("esac", f"*CUDA13*' yes') echo {versions.CUDA13[0]} ;;\nesac")
ON_A_GPU = NO_CUPY.replace("' yes'", "")


@pytest.mark.parametrize("offline", [False, True])
def test_the_slow_tier_installs_cupy_where_it_can(offline: bool, tmp_path: Path) -> None:
    install = f"-m pip install {versions.CUDA13[0]}"
    python = NO_CUPY.replace('case "$*" in', f'case "$*" in\n"{install}") exit 1 ;;') if offline else NO_CUPY
    done, calls = run_tests(tmp_path, python, "--all", "-k", "cupy")
    assert done.returncode == 0, done.stderr
    assert calls[0] == install
    assert calls[-1].startswith("-m pytest") and calls[-1].endswith("-ra --hypothesis-profile search -k cupy")
    said = (
        f"run.sh: {versions.CUDA13[0]} can't be installed (is there no network?); "
        "tests of the real CuPy are skipped, or fail on a GPU"
    )
    assert (said in done.stderr.splitlines()) == offline


def test_what_lint_or_types_refuse_is_not_tested(tmp_path: Path) -> None:
    done, calls = run_tests(tmp_path, STUB.replace('case "$*" in', 'case "$*" in\n*mypy) exit 1 ;;'))
    assert done.returncode == 1 and calls[-1] == "-m mypy"


@pytest.mark.parametrize(
    ("python", "arguments", "installs"), [(NO_CUPY, (), False), (STUB, ("--all",), False), (ON_A_GPU, (), True)]
)
def test_cupy_is_for_a_gpu_and_the_slow_tier_that_lack_it(
    python: str, arguments: tuple[str, ...], installs: bool, tmp_path: Path
) -> None:
    done, calls = run_tests(tmp_path, python, *arguments)
    assert done.returncode == 0, done.stderr
    *_, lint, layout, types, count, _ = calls
    assert [lint, layout, types] == ["-m ruff check .", "-m ruff format --check .", "-m mypy"]
    assert count == "-c from common.machine import cores; print(cores())"
    assert any("pip install" in call for call in calls) == installs
    assert ("-m not slow" in calls[-1]) == (not arguments)
