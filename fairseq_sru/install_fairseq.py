"""Build the official fairseq 0.12.2 with the patches of fairseq_sru/patches, and install it.

    python -m fairseq_sru.install_fairseq [--sdist FILE] [--wheel-dir DIR]

A fairseq from 0.12.2 on that can be imported stays as it is. Standard library only: where torch isn't there yet, run
this file by its path, as recipes/setup.sh does.
"""

import argparse
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


def series() -> dict[str, str]:
    """Return the patches to apply, by name: those that patches/series lists."""
    names = [line for line in (PATCHES / "series").read_text().splitlines() if line and not line.startswith("#")]
    return {name: (PATCHES / name).read_text() for name in names}


def patched_version() -> str:
    """Return the version of fairseq with this series: ``0.12.2+py311.p``, then a hash of the patches."""
    digest = hashlib.sha256("".join(f"{name}\n{text}" for name, text in series().items()).encode())
    return f"{versions.FAIRSEQ}+py311.p{digest.hexdigest()[:8]}"


def apply(source: Path) -> None:
    """Patch a folder of fairseq's sources. Exit where a patch does not apply.

    Each is made against the original. Applied from each file's end, none moves the lines of another.
    """
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
    # that of NVIDIA's containers would hold for what builds fairseq, too
    env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    if subprocess.run(command, env=env).returncode:
        sys.exit(f"install_fairseq: {failure} failed for the reason above; docs/troubleshooting.md may help")


def installed() -> dict[str, str]:
    """Return the versions of the distributions that bring a module ``fairseq``. PyPI has some under other names."""
    names = importlib.metadata.packages_distributions().get("fairseq", [])
    return {name: importlib.metadata.version(name) for name in sorted(set(names))}


def imported() -> str:
    """Return the version of the fairseq that this Python imports; empty where it imports none."""
    command = [sys.executable, "-P", "-c", "import fairseq; print(fairseq.__version__)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def check_compiler() -> None:
    cxx = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
    if not shutil.which(cxx):
        sys.exit(f"install_fairseq: no C++ compiler ({cxx}); set CXX or install one (Debian, Ubuntu: apt install g++)")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        package = f"python3.{sys.version_info.minor}-dev"  # the distribution's python3 may be another
        sys.exit(f"install_fairseq: no Python.h of this Python (Debian, Ubuntu: apt install {package})")


def build(sdist: Path | None, folder: Path) -> Path:
    """Return the wheel of the patched sdist, downloaded if there is none, built in the folder."""
    if sdist is None:
        # By hash, because pip runs the sdist's setup.py to learn its metadata.
        requirement = folder / "fairseq.txt"
        requirement.write_text(f"fairseq=={versions.FAIRSEQ} --hash=sha256:{versions.FAIRSEQ_SHA256}\n")
        options = ("--no-deps", "--no-binary", "fairseq", "--require-hashes", "--requirement", requirement)
        run(f"downloading {SDIST}", "download", *options, "--dest", folder)
        sdist = folder / SDIST
    sha256 = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if sha256 != versions.FAIRSEQ_SHA256:
        official = versions.FAIRSEQ_SHA256
        sys.exit(f"install_fairseq: {sdist} is not the official {SDIST}: its sha256 is {sha256}, not {official}")
    with tarfile.open(sdist) as tar:
        # Early releases of Python 3.11 have no filters; the sha256 was checked, so that they do without.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(folder)
    source = folder / f"fairseq-{versions.FAIRSEQ}"
    apply(source)
    # Built in isolation: where its setup.py finds torch, it asks for C++ files that the sdist lacks.
    run("building fairseq", "wheel", "--no-deps", "--wheel-dir", folder / "wheel", source)
    return next((folder / "wheel").glob("fairseq-*.whl"))


def install(wheel: Path) -> None:
    """Install the wheel in place of what else brings a module ``fairseq``."""
    if others := installed():
        run("removing an earlier fairseq", "uninstall", "--yes", *others)
    # fairseq leaves most versions open: ours hold. A torch within the range stays as it is.
    constraints = wheel.with_name("constraints.txt")
    constraints.write_text("\n".join((versions.TORCH, versions.NUMPY, *versions.RECIPES)))
    run("installing fairseq", "install", "--constraint", constraints, wheel)


def main() -> None:
    parser = argparse.ArgumentParser(prog="install_fairseq", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="an official sdist that is there already")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="put the wheel there instead of installing it")
    arguments = parser.parse_args()
    if arguments.sdist and not arguments.sdist.is_file():
        parser.error(f"argument --sdist: no file {arguments.sdist}; it wants the official {SDIST}")

    if not arguments.wheel_dir:
        version = imported()
        if version == patched_version():
            print(f"fairseq {version} is installed")
            return
        release = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
        if release >= [int(number) for number in versions.FAIRSEQ.split(".")] and "+py311" not in version:
            print(
                f"fairseq {version} is left as it is; for one with our patches, pip uninstall {' '.join(installed())}"
            )
            return
    check_compiler()
    with tempfile.TemporaryDirectory(prefix="install_fairseq_") as temporary:
        wheel = build(arguments.sdist, Path(temporary))
        if arguments.wheel_dir:
            arguments.wheel_dir.mkdir(parents=True, exist_ok=True)
            print(shutil.copy(wheel, arguments.wheel_dir))
        else:
            install(wheel)


if __name__ == "__main__":
    main()
