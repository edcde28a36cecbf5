"""Show what SRU can run on here, try every backend, and say what is missing.

    python -m fairseq_sru.doctor [--json]

Each backend is tried forward and backward against the definition in float64. The exit status is 0 where the default,
``backend="auto"``, runs compiled kernels (on the GPU, where torch sees one) and all that runs is right, else 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .install_fairseq import installed, patched_version
from .layers.linear import bfloat16_gain, bfloat16_pays
from .recurrence import backends, nvrtc, sru_recurrence
from .recurrence.build import CACHE_VARIABLE, Unavailable, cache_folder, host_compiler
from .recurrence.dispatch import BACKEND_VARIABLE, DEVICES, choose_name
from .versions import __version__

TOLERANCE = 1e-4  # of float32
PACKAGES = ("cupy", "cupy-cuda12x", "cupy-cuda13x", "pynvrtc", "cuda-pathfinder", "sacrebleu")
VARIABLES = (BACKEND_VARIABLE, CACHE_VARIABLE, nvrtc.NVRTC_VARIABLE, "CXX", "CUDA_VISIBLE_DEVICES")


def models() -> str | None:
    """Return why the models can't be imported, or what their fairseq lacks; None where all is well."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # fairseq names packages that it would like
    try:
        importlib.import_module("fairseq_sru.models")
        from fairseq.data.data_utils import batch_by_size
    except ImportError as error:
        return str(error)
    finally:
        logging.disable(before)
    builds, ours = installed(), patched_version()
    build = ", ".join(f"{name} {version}" for name, version in builds.items())
    if not builds or ours in builds.values():
        return None
    if "+py311" in build:
        return f"{build} is an earlier one than {ours}: python -m fairseq_sru.install_fairseq"
    lacks = f"{build} lacks our repairs of fairseq's faults (README, Install)"
    if not batch_by_size(range(3), len, [1, 1, 1], required_batch_size_multiple=8):
        lacks += "; without --required-batch-size-multiple 1 it loses up to 7 sentences of a data set"
    return lacks


def driver() -> str:
    """Return GPUs and driver as nvidia-smi lists them, whatever torch is built for."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = "; ".join((done.stdout + done.stderr).strip().splitlines())
    return f"nvidia-smi fails: {said}" if done.returncode else said


def gpu_advice(driver: str) -> str | None:
    """Return what keeps torch from a GPU that the driver may have listed."""
    if driver == "no nvidia-smi" or torch.cuda.is_available():
        return None
    if driver.startswith("nvidia-smi fails"):
        return "the GPU's driver doesn't answer nvidia-smi: load it, or install it again"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, and the GPU idle: install torch for CUDA"
    hidden = "unset CUDA_VISIBLE_DEVICES, " if "CUDA_VISIBLE_DEVICES" in os.environ else ""
    return f"torch sees no GPU, though there is one: {hidden}update the driver, or install torch for an older CUDA"


def machine() -> dict[str, str]:
    """Return versions, variables, compilers and GPUs, by name."""
    rows = {"Python": platform.python_version(), "fairseq_sru": __version__, "torch": torch.__version__}
    builds = ", ".join(f"{name} {version}" for name, version in installed().items())
    rows["fairseq"] = builds.replace("+py311", " with our patches +py311") or "not installed"
    versions = {d.name: d.version for d in importlib.metadata.distributions()}
    rows |= {name: versions.get(name, "not installed") for name in PACKAGES}
    rows["platform"] = platform.platform()
    rows |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    asks: dict[str, Callable[[], str]] = {
        "C++ compiler": lambda: host_compiler()[1].partition("\n")[0],
        "NVRTC": lambda: nvrtc.compiler().path,
        "cache": lambda: str(cache_folder()),
    }
    for name, ask in asks.items():
        try:
            rows[name] = ask()
        except Unavailable as error:
            rows[name] = str(error)
    pays = "train with --cpu --amp" if bfloat16_pays() else "--cpu --amp does not pay"
    rows["bfloat16 on the CPU"] = f"products {bfloat16_gain():.2g} times as fast as float32's: {pays}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    rows["GPU"] = "; ".join(str(torch.cuda.get_device_properties(i)) for i in range(count)) or "none that torch sees"
    return {**rows, "driver": driver(), "torch's CUDA": torch.version.cuda or "-"}


def trial(backend: str) -> tuple[bool, str]:
    """Run a backend forward and backward; return True if it is right, and what to say of it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (9, 3, 3, 20), "x": (9, 3, 20), "bias": (2, 20), "c0": (3, 20), "weight_c": (2, 20)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    pad = torch.arange(9)[:, None] >= torch.tensor([9, 5, 0])

    def results(name: str, device: str, dtype: torch.dtype) -> torch.Tensor:
        leaves: dict[str, Any] = {n: t.to(device, dtype).requires_grad_() for n, t in inputs.items()}
        outputs = sru_recurrence(**leaves, bidirectional=True, padding_mask=pad.to(device), backend=name)
        loss = torch.stack([output.square().sum() for output in outputs]).sum()
        computed = (*outputs, *torch.autograd.grad(loss, list(leaves.values())))
        return torch.cat([t.detach().double().cpu().flatten() for t in computed])

    try:
        result = results(backend, DEVICES.get(backend, "cpu"), torch.float32)
        exact = results("reference", "cpu", torch.float64)
    except Exception as failure:  # whatever a driver or a compiler comes up with
        return False, f"ready, but FAILS: {type(failure).__name__}: {failure}"
    error = float(((result - exact).abs() / exact.abs().clamp(min=1)).max())
    right = error <= TOLERANCE  # NaN isn't
    return right, f"ready, and {'right' if right else 'WRONG'}: differs from the definition by {error:.0e}"


def examine() -> dict[str, Any]:
    """Return all that the doctor says, as ``--json`` prints it."""
    rows = machine()
    advice = [line for line in (models(), gpu_advice(rows["driver"])) if line]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    states, auto, well = backends(), {}, True
    for name, state in states.items():
        if state == "ready":
            right, states[name] = trial(name)
            if not right:
                well = False
                advice.append(f"{name} can't be trusted here: {BACKEND_VARIABLE} can name another; please report it")
        elif DEVICES.get(name) in devices:
            first, *rest = state.strip().splitlines()  # compilers say much, and most at the end
            advice.append(" ".join([f"{name}: {first}", *rest[-1:]]))
    for device in devices:
        try:
            with warnings.catch_warnings(action="ignore"):  # of what the advice says, too
                auto[device] = choose_name("auto", device)
        except (ValueError, RuntimeError) as error:
            auto[device] = str(error)
    best = auto[devices[-1]]
    if BACKEND_VARIABLE in os.environ and best not in DEVICES:
        advice.append(f"auto: {best}, by {BACKEND_VARIABLE}: unset it")
    return {"machine": rows, "backends": states, "auto": auto, "advice": advice, "well": well and best in DEVICES}


def text(report: dict[str, Any]) -> str:
    """Return a report for people."""
    lines = [f"  {name:<20} {value}" for name, value in report["machine"].items()]
    lines += ["", "Backends:", *(f"  {name:<20} {state}" for name, state in report["backends"].items())]
    auto = ", ".join(f"{backend} ({device})" for device, backend in report["auto"].items())
    folder = shlex.quote(str(Path(__file__).resolve().parent))
    lines += [f"  {'auto':<20} {auto}", "", f"For fairseq: --user-dir {folder}"]
    if report["advice"]:
        lines += ["", "What helps:", *(f"- {line}" for line in report["advice"])]
    return "\n".join([*lines, "All is well." if report["well"] else "Not all is well."])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_sru.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse_args(argv)
    report = examine()
    print(json.dumps(report, indent=1) if args.json else text(report))
    return 0 if report["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
