"""Builds and installs the official fairseq 0.12.2 with fairseq-0.12.2.patch, which Python >= 3.11 needs.

    python -m fairseq_sru.install_fairseq [--sdist FILE] [--wheel-dir DIR]

Does nothing where that is installed already. Standard library only: where torch isn't there yet, run this file by its
path, as recipes/setup.sh does.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

try:
    from . import versions
except ImportError:  # run by its path
    import versions  # type: ignore[import-not-found,no-redef]

PATCH = Path(__file__).with_name(f"fairseq-{versions.FAIRSEQ}.patch")
SDIST = f"fairseq-{versions.FAIRSEQ}.tar.gz"
COMPILER = "Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++"
OFFLINE = (
    "without network, on another machine make the wheel with --wheel-dir DIR, and what it requires with `pip wheel "
    "--wheel-dir DIR DIR/fairseq-*.whl`; then `pip install --upgrade --no-index --find-links DIR fairseq` here"
)
PATIENCE = 30  # seconds for pip to remove what it has unpacked, when it is interrupted


def run(failure: str, *arguments: str | Path, shown: bool = False, env: dict[str, str] | None = None) -> None:
    """Prints a command and runs it with this Python. Where it fails, ends with one line below the last it said."""
    command = [sys.executable, "-m", *map(str, arguments)]
    print("+", shlex.join(command), flush=True)
    output = None if shown else subprocess.PIPE
    env = {**os.environ, **(env or {})}
    env.pop("PIP_CONSTRAINT", None)  # of NVIDIA's containers: it would hold for what builds fairseq, too
    if sys.prefix != sys.base_prefix or Path(sys.prefix, "conda-meta").is_dir():
        env["PIP_USER"] = "0"  # into this environment
    if not shown:
        env["PIP_NO_INPUT"] = "1"  # nobody would see that it asks for a password
    process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        said, _ = process.communicate()
    except KeyboardInterrupt:  # of the terminal, which tells pip, too
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.communicate(timeout=PATIENCE)
        process.kill()
        raise
    if process.returncode:
        print(*(said or "").splitlines()[-20:], sep="\n", file=sys.stderr)
        sys.exit(f"install_fairseq: {failure}")


def installed() -> dict[str, str]:
    """The distributions that bring a module `fairseq`, and their versions. There are some under other names on PyPI."""
    found = {}
    for name in sorted(set(importlib.metadata.packages_distributions().get("fairseq", ()))):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # what pip left when it was stopped
            found[name] = importlib.metadata.version(name)
    return found


def is_complete(distribution: importlib.metadata.Distribution) -> bool:
    """Whether pip finished installing this: it writes INSTALLER after all files and programs."""
    return bool(distribution.read_text("INSTALLER"))


def is_whole() -> bool:
    """Whether fairseq is there, and whole."""
    try:
        return is_complete(importlib.metadata.distribution("fairseq"))
    except importlib.metadata.PackageNotFoundError:
        return False


def halves() -> list[str]:
    """What pip was stopped in, in this environment, as ``NAME==VERSION``: pip takes it for installed."""
    here = (d for d in importlib.metadata.distributions() if str(d.locate_file("")).startswith(sys.prefix))
    return [f"{d.name}=={d.version}" for d in here if d.read_text("METADATA") and not is_complete(d)]


def is_usable(found: dict[str, str]) -> bool:
    """Whether a fairseq that is not ours does as well: of the release, without an earlier patch, and it imports."""
    release, _, patched = found.get("fairseq", "").partition("+")
    if patched.startswith("py311"):
        return False
    command = [sys.executable, "-c", "import fairseq"]
    return release == versions.FAIRSEQ and not subprocess.run(command, capture_output=True).returncode


def check_compiler() -> None:
    named = os.environ.get("CXX", "").strip() or sysconfig.get_config_var("CXX") or "c++"
    try:
        cxx = shlex.split(named)[0]
    except ValueError:  # a quotation mark that is not closed
        cxx = named
    own = f"3.{sys.version_info.minor}"  # the distribution's python3 may be another
    if not shutil.which(cxx):
        sys.exit(f"install_fairseq: no C++ compiler ({cxx}) to build fairseq with; set CXX or install one ({COMPILER})")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        remedy = f"Debian, Ubuntu: apt install python{own}-dev; Fedora: dnf install python{own}-devel"
        sys.exit(f"install_fairseq: no Python.h of this Python to build fairseq with ({remedy})")


def check_sdist(sdist: Path) -> None:
    if not sdist.is_file():
        sys.exit(f"install_fairseq: no file {sdist}; --sdist wants the official {SDIST}")
    with sdist.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != versions.FAIRSEQ_SHA256:
        sys.exit(
            f"install_fairseq: {sdist} is not the official {SDIST}: "
            f"its sha256 is {sha256}, not {versions.FAIRSEQ_SHA256}"
        )


def download(folder: Path) -> Path:
    # By hash, because pip runs the sdist's setup.py to learn its metadata.
    failure = f"downloading {SDIST} failed; name a copy of it with --sdist FILE or, {OFFLINE}"
    with tempfile.TemporaryDirectory() as aside:
        requirement = Path(aside) / "fairseq.txt"
        requirement.write_text(f"fairseq=={versions.FAIRSEQ} --hash=sha256:{versions.FAIRSEQ_SHA256}\n")
        options = ("--no-deps", "--no-binary", "fairseq", "--require-hashes", "--requirement", requirement)
        run(failure, "pip", "download", *options, "--dest", folder)
    return folder / SDIST


def build(sdist: Path, folder: Path) -> Path:
    """The wheel of the patched sdist, built in the folder."""
    with tarfile.open(sdist) as tar:
        # Early releases of Python 3.11 have no filters; the sha256 was checked, so that they do without.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(folder)
    source = folder / f"fairseq-{versions.FAIRSEQ}"
    tools = folder / "tools"
    failure = f"downloading {versions.PATCH_NG} failed; {OFFLINE}"
    run(failure, "pip", "install", "--target", tools, versions.PATCH_NG)
    options = ("--strip", "1", "--directory", source)
    run(f"{PATCH.name} does not apply", "patch_ng", *options, PATCH, env={"PYTHONPATH": str(tools)})
    # Built in isolation: where its setup.py finds torch, it asks for C++ files that the sdist lacks.
    failure = f"building fairseq failed for the reason above; a /tmp without programs or full: set TMPDIR; {OFFLINE}"
    run(failure, "pip", "wheel", "--no-deps", "--wheel-dir", folder / "wheel", source)
    return next((folder / "wheel").glob("fairseq-*.whl"))


def install(wheel: Path, found: dict[str, str]) -> None:
    # fairseq leaves most versions open: ours hold. A torch within the range stays as it is.
    constraints = wheel.with_name("constraints.txt")
    constraints.write_text("\n".join((versions.TORCH, versions.NUMPY, *versions.RECIPES)))
    failure = "installing fairseq failed for the reason above; where /tmp is full: set TMPDIR"
    run(failure, "pip", "install", "--constraint", constraints, wheel, shown=True)
    others = found.keys() - {"fairseq"}
    for other in others:  # it owns files of the same names, which go with it
        run(f"removing {other} failed", "pip", "uninstall", "--yes", other)
    if others or not is_whole():  # pip takes what it finds for installed
        run(failure, "pip", "install", "--ignore-installed", "--no-deps", wheel)


def main() -> None:
    parser = argparse.ArgumentParser(prog="install_fairseq", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="an official sdist that is there already")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="put the wheel there instead of installing it")
    arguments = parser.parse_args()

    found: dict[str, str] = {}
    if not arguments.wheel_dir:
        found = installed()
        description = ", ".join(f"{name} {version}" for name, version in found.items())
        if found == {"fairseq": versions.FAIRSEQ_PATCHED} and is_whole():
            print(f"{description} is installed")
            return
        if is_usable(found):
            print(f"{description} is installed and imports: left as it is")
            return
        if found:
            print(f"{description} does not work here or is another release: replacing it by {versions.FAIRSEQ_PATCHED}")

    if arguments.sdist:
        check_sdist(arguments.sdist)
    if arguments.wheel_dir:
        arguments.wheel_dir.mkdir(parents=True, exist_ok=True)
    check_compiler()
    if importlib.util.find_spec("pip") is None:
        sys.exit(f"install_fairseq: no pip in {sys.prefix}; python -m ensurepip --default-pip brings it")
    with tempfile.TemporaryDirectory(prefix="install_fairseq_") as temporary:
        folder = Path(temporary)
        sdist = Path(shutil.copy(arguments.sdist, folder / SDIST)) if arguments.sdist else download(folder)
        check_sdist(sdist)  # the copy that nobody else can write
        wheel = build(sdist, folder)
        if arguments.wheel_dir:
            print(shutil.copy(wheel, arguments.wheel_dir))
        else:
            install(wheel, found)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"install_fairseq: {error}")
    except KeyboardInterrupt:
        print("install_fairseq: stopped; the same command begins again", file=sys.stderr)
        sys.exit(130)
