"""What a machine without network needs beside torch, brought along as wheels by ../gpu_wheels.py.

    PYTHONPATH=recipes python -m gpu.packages install|fairseq WHEELS SITE
    PYTHONPATH=recipes python -m gpu.packages others SITE
    PYTHONPATH=recipes python -m gpu.packages build

for gpu.sh: put what is missing into a folder SITE, build fairseq into one, download others' kernels into one, or build
their CUDA source. The environment stays as it is.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from common.files import write_text
from common.machine import ROOT

VERSIONS = runpy.run_path(str(ROOT / "fairseq_sru" / "versions.py"))  # an import of the package would load torch
SITE, FAIRSEQ, BUILDS = (ROOT / "runs" / "gpu" / name for name in ("site", "fairseq", "extensions"))  # as in gpu.sh

RIVALS = VERSIONS["RIVALS"]
# of these, others than those that are brought along don't do
EXACT = {"antlr4-python3-runtime", "cuda-pathfinder", "filelock", "hydra-core", "omegaconf", "pynvrtc"}
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


def package(wheel: Path) -> str:
    return key(re.split(r"-\d", wheel.name)[0])


def installed() -> set[str]:
    names = {key(found.metadata["Name"]) for found in importlib.metadata.distributions() if found.metadata["Name"]}
    return names | {re.sub(r"cuda\d+x", "cuda13x", name) for name in names}  # another CuPy than ours does as well


def lacks(wheel: Path, there: set[str]) -> bool:
    """Whether the environment has no such package, or another version where only this one does."""
    name = package(wheel)
    if name not in there:
        return True
    old = name == "numpy" and importlib.metadata.version(name).startswith("1.")  # CuPy 14 wants 2
    return old or (name in EXACT and importlib.metadata.version(name) != wheel.name.split("-")[1])


def missing(pins: Iterable[str], there: set[str]) -> list[str]:
    """Of packages with their versions, those whose names are not there."""
    return [pin for pin in pins if key(pin.split("==")[0]) not in there]


def wheels(folder: Path) -> list[Path]:
    """One of each package: that of gpu_wheels.py's last run, which leaves those of earlier ones, or else the newest."""
    listed = folder / "wheels.json"
    last = json.loads(listed.read_text(encoding="utf-8"))["bytes"] if listed.is_file() else {}
    found = sorted(folder.glob("*.whl"), key=lambda wheel: (wheel.name in last, wheel.stat().st_mtime, wheel.name))
    return sorted({package(wheel): wheel for wheel in found}.values())


def install(folder: Path, site: Path) -> None:
    """Put what this environment lacks into a folder."""
    there = installed()
    lacking = [wheel for wheel in wheels(folder) if lacks(wheel, there)]
    put = partial(pip, "install", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", site)
    if lacking and importlib.util.find_spec("pip") is None:
        raise SystemExit(f"{sys.executable} has no pip to install {folder} with")
    try:
        if lacking:
            put(*lacking)
    except subprocess.CalledProcessError:  # one is for another Python, say
        for wheel in list(lacking):
            try:
                put(wheel)
            except subprocess.CalledProcessError:
                lacking.remove(wheel)
                print(f"going on without {wheel.name}", file=sys.stderr)
        if lacking:
            put(*lacking)  # each alone removed the programs of those before
    print(f"{len(lacking)} packages from {folder} are in {site}: {', '.join(map(package, lacking)) or 'none lacked'}")


def others(site: Path) -> None:
    """Download others' kernels, which need torch and Triton beside, into a folder, where they are missing."""
    if lacking := missing(RIVALS, installed()):
        pip("install", "--no-deps", "--no-compile", "--upgrade", "--target", site, *lacking)


def fairseq(folder: Path, site: Path) -> None:
    """Build fairseq from its sdist in a folder, and put it into another, where there is none or an older patch's."""
    from fairseq_sru.install_fairseq import patched_version  # which loads torch

    found = importlib.metadata.version("fairseq") if "fairseq" in installed() else None
    if found and ("+py311" not in found or found == patched_version()):
        print(f"fairseq {found} is there")
        return
    for old in site.glob("fairseq-*.dist-info"):  # which pip leaves there, and which may be found first
        shutil.rmtree(old)
    (sdist,) = folder.glob("fairseq-*.tar.gz")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder.absolute().as_uri()}  # pip splits words at spaces
    program = ROOT / "fairseq_sru" / "install_fairseq.py"
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, str(program), "--sdist", str(sdist), "--wheel-dir", made]
        subprocess.run(command, check=True, env={**os.environ, **offline})
        pip("install", "--no-index", "--no-deps", "--upgrade", "--target", site, *Path(made).glob("fairseq-*.whl"))


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


COMMANDS: dict[str, Callable[..., None]] = {c.__name__: c for c in (install, others, fairseq, build)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="gpu.packages", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="of wheels, and where to install them")
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command](*args.folders)
    except subprocess.CalledProcessError as error:  # pip has said why
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
