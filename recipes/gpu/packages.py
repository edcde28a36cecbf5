"""Others' kernels, which are measured next to ours where they can be had.

    PYTHONPATH=recipes python -m gpu.packages others SITE
    PYTHONPATH=recipes python -m gpu.packages build

for gpu.sh: download what is missing into a folder SITE, or build CUDA source. The environment stays as it is.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from common.files import write_text
from common.machine import ROOT

VERSIONS = runpy.run_path(str(ROOT / "fairseq_sru" / "versions.py"))  # an import of the package would load torch
SITE, BUILDS = (ROOT / "runs" / "gpu" / name for name in ("site", "extensions"))  # as in gpu.sh

RIVALS = VERSIONS["RIVALS"]
# others' kernels; the first two build CUDA source when they are first imported
OTHERS = ("sru", "accelerated_scan.warp", "fla.ops.hgrn")
READY = BUILDS / "ready.txt"  # those that can be imported


def pip(*words: str | Path) -> None:
    """Without an image's constraints, which are not for what is built here, and not into the user's home."""
    command = [sys.executable, "-m", "pip", "-q", *map(str, words)]
    env = {**os.environ, "PIP_CONSTRAINT": "", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(command, check=True, env=env)


def key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> set[str]:
    """Names of the packages that are there."""
    return {key(one.metadata["Name"]) for one in importlib.metadata.distributions() if one.metadata["Name"]}


def missing(pins: Iterable[str], there: set[str]) -> list[str]:
    """Of packages with their versions, those whose names are not there."""
    return [pin for pin in pins if key(pin.split("==")[0]) not in there]


def others(site: Path) -> None:
    """Download others' kernels, which need torch and Triton beside, into a folder, where they are missing."""
    if lacking := missing(RIVALS, installed()):
        pip("install", "--no-deps", "--no-compile", "--upgrade", "--target", site, *lacking)


def mend_sru() -> None:
    """Put the package ``sru`` into SITE with CUDA source that torch 2.6 and later compile, on torch's stream."""
    spec = importlib.util.find_spec("sru")
    if spec is None or not spec.submodule_search_locations:
        return
    source, target = Path(spec.submodule_search_locations[0]), SITE / "sru"
    if source.resolve() != target.resolve():
        shutil.copytree(source, target, dirs_exist_ok=True)
    kernel = target / "csrc" / "sru_cuda_kernel.cu"
    text = kernel.read_text()
    if "CUDAStream.h" not in text:
        text = text.replace("U.type()", "U.scalar_type()")
        text = text.replace("<<<blocks, threads>>>", "<<<blocks, threads, 0, c10::cuda::getCurrentCUDAStream()>>>")
        kernel.write_text(f"#include <c10/cuda/CUDAStream.h>\n{text}")  # of torch's headers, what needs CUDA's least
    sys.path.insert(0, str(SITE))
    importlib.invalidate_caches()


def unlock() -> None:
    """Remove the locks of gpu.sh's builds that were stopped, for whose end torch would wait."""
    for lock in BUILDS.glob("**/lock"):
        lock.unlink(missing_ok=True)


def build() -> None:
    """Import what builds itself then, so that nobody has to wait for it in the middle of a measurement."""
    unlock()
    mend_sru()
    beside = Path(sys.executable).parent
    os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"  # for ninja
    ready = ""
    write_text(READY, ready)
    for name in OTHERS:
        try:
            importlib.import_module(name)
            ready += f"{name}\n"
            write_text(READY, ready)
            print(f"{name}: ready")
        except Exception as error:  # others' builds end in anything
            print(f"{name}: {type(error).__name__}: {error}")


COMMANDS: dict[str, Callable[..., None]] = {c.__name__: c for c in (others, build)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="gpu.packages", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="where to install them")
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command](*args.folders)
    except subprocess.CalledProcessError as error:  # pip has said why
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
