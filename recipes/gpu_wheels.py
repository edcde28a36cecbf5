"""Bring along what gpu.sh needs on a machine without network.

    python recipes/gpu_wheels.py [DIR] [--python 3.N] [--cuda N] [--without NAME ...]

downloads wheels for Linux on x86-64 into DIR (wheels), and lists them with their sizes, also in DIR/wheels.json. Copy
the folder into the project on the other machine as ``wheels``, where recipes/gpu.sh finds it. torch, a C++ compiler and
Python.h must be there; fairseq is built there, with what the folder has for it whatever --without says. What is needed
in one version alone is brought along, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common.arguments import folder
from common.files import write_text
from gpu.packages import EXACT, RIVALS, VERSIONS, key, missing, package, pip

from fairseq_sru.install_fairseq import download

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
TESTS = ("hypothesis", "pytest", "pytest-xdist")
OF_FAIRSEQ = ("bitarray", "cffi", "regex")
OF_RIVALS = ("ninja",)  # builds their CUDA source
# of Python alone, without wheels
SOURCES = (VERSIONS["ANTLR"], *(pin for pin in VERSIONS["TEST"] if pin.split("==")[0] in ("pynvrtc", "sru")))


def fetch(folder: Path, python: str, cuda: str, without: set[str]) -> None:
    """Download wheels into a folder."""
    of_build = VERSIONS["FAIRSEQ_BUILD"]
    without -= EXACT | {key(pin.split("==")[0]) for pin in of_build}  # another version may be there
    for_it = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for_it += [word for name in PLATFORMS for word in ("--platform", name)]
    tested = [pin for pin in VERSIONS["TEST"] if pin.split("==")[0] in TESTS]
    wanted = [*VERSIONS["RECIPES"], *VERSIONS[f"CUDA{cuda}"], *of_build, *tested, *OF_FAIRSEQ, *OF_RIVALS]
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        new = Path(aside)
        pip("wheel", "--no-deps", "--wheel-dir", new, *SOURCES)
        there: list[str | Path] = ["--find-links", new, "--find-links", folder]
        pip("download", *for_it, *there, "--dest", new, *missing(wanted, without))
        if rivals := missing(RIVALS, without):
            pip("download", "--no-deps", *for_it, *there, "--dest", new, *rivals)
        download(new)
        found = [path for path in new.iterdir() if path.suffix != ".whl" or package(path) not in without]
        sizes = {path.name: path.stat().st_size for path in sorted(found)}
        for path in found:
            if not (folder / path.name).exists():
                path.replace(folder / path.name)
    write_text(folder / "wheels.json", json.dumps({"python": python, "bytes": sizes}, indent=1) + "\n")
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:8.2f} MiB  in all, in {folder}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "folder", type=folder, nargs="?", default="wheels", metavar="DIR", help="where to put them (%(default)s)"
    )
    parser.add_argument("--python", default="3.12", metavar="3.N", help="of the other machine (%(default)s)")
    parser.add_argument("--cuda", choices=("12", "13"), default="13", help="of the other machine's torch (%(default)s)")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="packages that it has")
    args = parser.parse_args(argv)
    try:
        fetch(args.folder, args.python, args.cuda, {key(name) for name in args.without})
    except subprocess.CalledProcessError as error:  # pip has said why
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
