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
from pathlib import Path

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
    of_build = [*VERSIONS["FAIRSEQ_BUILD"], VERSIONS["PATCH_NG"]]
    without -= EXACT | {key(pin.split("==")[0]) for pin in of_build}  # another version may be there
    folder.mkdir(parents=True, exist_ok=True)
    ours = json.loads(made.read_text())["bytes"] if (made := folder / "wheels.json").is_file() else {}
    theirs = {path for path in folder.iterdir() if path.name not in ours}
    for_it = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for_it += [word for name in PLATFORMS for word in ("--platform", name)]
    pip("wheel", "--no-deps", "--wheel-dir", folder, *SOURCES)
    tested = [pin for pin in VERSIONS["TEST"] if pin.split("==")[0] in TESTS]
    wanted = [*VERSIONS["RECIPES"], *VERSIONS[f"CUDA{cuda}"], *of_build, *tested, *OF_FAIRSEQ, *OF_RIVALS]
    pip("download", *for_it, "--find-links", folder, "--dest", folder, *missing(wanted, without))
    if rivals := missing(RIVALS, without):
        pip("download", "--no-deps", *for_it, "--dest", folder, *rivals)
    download(folder)
    for wheel in folder.glob("*.whl"):
        if package(wheel) in without and wheel not in theirs:
            wheel.unlink()
    of_us = sorted(path for path in folder.iterdir() if path.suffix in (".whl", ".gz") and path not in theirs)
    sizes = {path.name: path.stat().st_size for path in of_us}
    write_text(made, json.dumps({"python": python, "bytes": sizes}, indent=1) + "\n")
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{sum(sizes.values()) / 2**20:8.2f} MiB  in all, in {folder}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("wheels"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--python", default="3.12", metavar="3.N", help="of the other machine (%(default)s)")
    parser.add_argument("--cuda", choices=("12", "13"), default="13", help="of the other machine's torch (%(default)s)")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="packages that it has")
    args = parser.parse_args(argv)
    fetch(args.folder, args.python, args.cuda, {key(name) for name in args.without})


if __name__ == "__main__":
    main()
