"""Builds the official fairseq 0.12.2 with the patches of fairseq_sru/patches, and installs it.

    python -m fairseq_sru.install_fairseq [--sdist FILE] [--wheel-dir DIR]

A fairseq from 0.12.2 on that can be imported stays as it is. Standard library only: where torch isn't there yet, run
this file by its path, as recipes/setup.sh does.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import os
import re
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

PATCHES = Path(__file__).with_name("patches")
SDIST = f"fairseq-{versions.FAIRSEQ}.tar.gz"
OFFLINE = (
    "without network, on another machine make the wheel with --wheel-dir DIR, and what it requires with `pip wheel "
    "--wheel-dir DIR DIR/fairseq-*.whl`; then `pip install --upgrade --no-index --find-links DIR fairseq` here"
)


def series() -> dict[str, str]:
    """Return the patches to apply, by name: those that patches/series lists."""
    names = [line for line in (PATCHES / "series").read_text().splitlines() if line and not line.startswith("#")]
    return {name: (PATCHES / name).read_text() for name in names}


def patched_version() -> str:
    """Return the version of fairseq with this series: ``0.12.2+py311.p``, then a hash of the patches."""
    digest = hashlib.sha256("".join(f"{name}\n{text}" for name, text in series().items()).encode())
    return f"{versions.FAIRSEQ}+py311.p{digest.hexdigest()[:8]}"


def apply(source: Path) -> None:
    """Patch a folder of fairseq's sources. Each patch is made against the original: applied from each file's end, none
    moves the lines of another, so that any can be left out. Exits where one does not apply."""
    hunks: dict[Path, list[tuple[int, str, str]]] = {}
    for name, text in series().items():
        for part in re.split(r"^(?=--- a/)", text, flags=re.M)[1:]:
            head, *bodies = re.split(r"^@@ -(\d+).*@@.*\n", part, flags=re.M)
            path = source / head.split()[1].removeprefix("a/")
            for line, body in zip(bodies[::2], bodies[1::2], strict=True):
                hunks.setdefault(path, []).append((int(line) - 1, name, body))
    for path, of_file in hunks.items():
        lines = path.read_text().splitlines(keepends=True)
        for at, name, body in sorted(of_file, reverse=True):
            old, new = ([x[1:] for x in body.splitlines(True) if x[0] in keep] for keep in (" -", " +"))
            if lines[at : at + len(old)] != old:
                sys.exit(f"install_fairseq: {PATCHES / name} does not apply to line {at + 1} of {path}")
            lines[at : at + len(old)] = new
        path.write_text("".join(lines))
    (source / "fairseq" / "version.txt").write_text(patched_version())


def run(failure: str, *arguments: str | Path) -> None:
    """Print a pip command and run it with this Python. Exit with the failure where it fails."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    print("+", shlex.join(command), flush=True)
    env = {**os.environ}
    env.pop("PIP_CONSTRAINT", None)  # of NVIDIA's containers: it would hold for what builds fairseq, too
    if sys.prefix != sys.base_prefix or Path(sys.prefix, "conda-meta").is_dir():
        env["PIP_USER"] = "0"  # into this environment
    if subprocess.run(command, env=env).returncode:
        sys.exit(f"install_fairseq: {failure}")


def installed() -> dict[str, str]:
    """Return the versions of the distributions that bring a module ``fairseq``. PyPI has some under other names."""
    found = {}
    for name in sorted(set(importlib.metadata.packages_distributions().get("fairseq", ()))):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # what pip left when it was stopped
            found[name] = importlib.metadata.version(name)
    return found


def imported() -> str:
    """Return the version of the fairseq that this Python imports; empty where it imports none."""
    command = [sys.executable, "-P", "-c", "import fairseq; print(fairseq.__version__)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def is_complete(distribution: importlib.metadata.Distribution) -> bool:
    """Return whether pip finished installing: it writes INSTALLER after all files and programs."""
    return bool(distribution.read_text("INSTALLER"))


def halves() -> list[str]:
    """Return what pip was stopped in, in this environment, as ``NAME==VERSION``: pip takes it for installed."""
    here = (d for d in importlib.metadata.distributions() if str(d.locate_file("")).startswith(sys.prefix))
    return [f"{d.name}=={d.version}" for d in here if d.read_text("METADATA") and not is_complete(d)]


def check_compiler() -> None:
    cxx = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    if not shutil.which(cxx):
        remedy = "Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++"
        sys.exit(f"install_fairseq: no C++ compiler ({cxx}) to build fairseq with; set CXX or install one ({remedy})")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        own = f"3.{sys.version_info.minor}"  # the distribution's python3 may be another
        remedy = f"Debian, Ubuntu: apt install python{own}-dev; Fedora: dnf install python{own}-devel"
        sys.exit(f"install_fairseq: no Python.h of this Python to build fairseq with ({remedy})")


def check_sdist(sdist: Path) -> None:
    if not sdist.is_file():
        sys.exit(f"install_fairseq: no file {sdist}; --sdist wants the official {SDIST}")
    sha256 = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if sha256 != versions.FAIRSEQ_SHA256:
        official = versions.FAIRSEQ_SHA256
        sys.exit(f"install_fairseq: {sdist} is not the official {SDIST}: its sha256 is {sha256}, not {official}")


def download(folder: Path) -> Path:
    # By hash, because pip runs the sdist's setup.py to learn its metadata.
    requirement = folder / "fairseq.txt"
    requirement.write_text(f"fairseq=={versions.FAIRSEQ} --hash=sha256:{versions.FAIRSEQ_SHA256}\n")
    options = ("--no-deps", "--no-binary", "fairseq", "--require-hashes", "--requirement", requirement)
    failure = f"downloading {SDIST} failed; name a copy of it with --sdist FILE or, {OFFLINE}"
    run(failure, "download", *options, "--dest", folder)
    return folder / SDIST


def build(sdist: Path, folder: Path) -> Path:
    """Return the wheel of the patched sdist, built in the folder."""
    with tarfile.open(sdist) as tar:
        # Early releases of Python 3.11 have no filters; the sha256 was checked, so that they do without.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(folder)
    source = folder / f"fairseq-{versions.FAIRSEQ}"
    apply(source)
    # Built in isolation: where its setup.py finds torch, it asks for C++ files that the sdist lacks.
    failure = f"building fairseq failed for the reason above; a /tmp without programs or full: set TMPDIR; {OFFLINE}"
    run(failure, "wheel", "--no-deps", "--wheel-dir", folder / "wheel", source)
    return next((folder / "wheel").glob("fairseq-*.whl"))


def install(wheel: Path, found: dict[str, str]) -> None:
    # fairseq leaves most versions open: ours hold. A torch within the range stays as it is.
    constraints = wheel.with_name("constraints.txt")
    constraints.write_text("\n".join((versions.TORCH, versions.NUMPY, *versions.RECIPES)))
    failure = "installing fairseq failed for the reason above; where /tmp is full: set TMPDIR"
    run(failure, "install", "--constraint", constraints, wheel)
    others = found.keys() - {"fairseq"}
    for other in others:  # it owns files of the same names, which go with it
        run(f"removing {other} failed", "uninstall", "--yes", other)
    if others or not is_complete(importlib.metadata.distribution("fairseq")):  # pip takes what it finds for installed
        run(failure, "install", "--ignore-installed", "--no-deps", wheel)


def main() -> None:
    parser = argparse.ArgumentParser(prog="install_fairseq", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="an official sdist that is there already")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="put the wheel there instead of installing it")
    arguments = parser.parse_args()

    found: dict[str, str] = {}
    if not arguments.wheel_dir:
        found, version, ours = installed(), imported(), patched_version()
        description = ", ".join(f"{name} {of}" for name, of in found.items()) or f"fairseq {version}"
        if version == ours and not any(half.startswith("fairseq==") for half in halves()):
            print(f"{description} is installed")
            return
        release = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
        if release >= [int(number) for number in versions.FAIRSEQ.split(".")] and "+py311" not in version:
            mends = "fairseq_sru/patches mends what is wrong in fairseq; to have it, pip uninstall"
            print(f"{description} is left as it is; {mends} {' '.join(found)}, and run this again")
            return
        if found:
            print(f"{description} does not work here or is an earlier one: replacing it by {ours}")

    if arguments.wheel_dir:
        arguments.wheel_dir.mkdir(parents=True, exist_ok=True)
    check_compiler()
    with tempfile.TemporaryDirectory(prefix="install_fairseq_") as temporary:
        folder = Path(temporary)
        sdist = arguments.sdist or download(folder)
        check_sdist(sdist)
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
