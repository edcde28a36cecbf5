"""Download others' kernels, which are measured next to ours, where they are missing; for gpu.sh.

    PYTHONPATH=recipes python -m gpu.packages SITE

SITE is a folder of their own: the environment stays as it is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from common.machine import ROOT

VERSIONS = runpy.run_path(str(ROOT / "fairseq_sru" / "versions.py"))  # an import of the package would load torch


def missing(pins: tuple[str, ...]) -> list[str]:
    """Those of the packages, with their versions, that are not installed."""
    there = {one.metadata["Name"].lower().replace("_", "-") for one in importlib.metadata.distributions()}
    return [pin for pin in pins if pin.split("==")[0] not in there]


def mend_sru(site: Path) -> None:
    """Put the package ``sru`` into the folder with CUDA source that torch 2.6 and later compile, on torch's stream."""
    spec = importlib.util.find_spec("sru")
    if spec is None or not spec.submodule_search_locations:
        return
    source, target = Path(spec.submodule_search_locations[0]), site / "sru"
    if source.resolve() != target.resolve():
        shutil.copytree(source, target, dirs_exist_ok=True)
    kernel = target / "csrc" / "sru_cuda_kernel.cu"
    text = kernel.read_text()
    if "CUDAStream.h" not in text:
        text = text.replace("U.type()", "U.scalar_type()")
        text = text.replace("<<<blocks, threads>>>", "<<<blocks, threads, 0, c10::cuda::getCurrentCUDAStream()>>>")
        kernel.write_text(f"#include <c10/cuda/CUDAStream.h>\n{text}")  # of torch's headers, what needs CUDA's least


def main(argv: list[str] | None = None) -> None:
    site = Path((argv or sys.argv[1:])[0])
    mend_sru(site)
    if lacking := missing(VERSIONS["RIVALS"]):
        # without an image's constraints, not into the user's home, and without torch and Triton, which are there
        env = {**os.environ, "PIP_CONSTRAINT": "", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        options = ["--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
        done = subprocess.run([sys.executable, "-m", "pip", "-q", "install", *options, *lacking], env=env)
        sys.exit(done.returncode)  # pip has said why


if __name__ == "__main__":
    main()
