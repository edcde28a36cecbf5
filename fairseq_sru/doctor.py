"""What is there for SRU to run on, what will run, and what is missing for more.

    python -m fairseq_sru.doctor [--json]

It shows versions, GPUs, compilers, the cache of compiled kernels and every backend, each of which is tried: forward and
gradients against the definition in float64. The exit status is 0 where the default, ``backend="auto"``, runs compiled
kernels (on the GPU, where torch sees one) and all that runs is right, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from .install_fairseq import installed as fairseqs
from .install_fairseq import patched_version
from .layers.linear import bfloat16_gain, bfloat16_pays
from .recurrence import BACKENDS, backends, nvrtc, sru_recurrence
from .recurrence.build import CACHE_VARIABLE, Unavailable, cache_folder, host_compiler, user_cache
from .recurrence.dispatch import BACKEND_VARIABLE, DEVICES, choose
from .versions import __version__

TOLERANCE = 1e-4  # of float32
VARIABLES = (BACKEND_VARIABLE, CACHE_VARIABLE, nvrtc.NVRTC_VARIABLE, "CXX", "CUDA_VISIBLE_DEVICES")


def packages() -> dict[str, str | None]:
    """Versions of what is installed by name; None for what isn't."""
    found: dict[str, str | None] = {"Python": platform.python_version(), "fairseq_sru": __version__}
    found["torch"] = torch.__version__  # which names its CUDA
    builds = (f"{name} {version}" for name, version in fairseqs().items())
    found["fairseq"] = ", ".join(builds).replace("+py311", " with our patches +py311") or None
    distributions = importlib.metadata.distributions()
    installed = {d.metadata["Name"].lower(): d.version for d in distributions if d.metadata["Name"]}
    for name in ("cupy", "pynvrtc", "cuda-pathfinder", "sacrebleu"):
        names = [n for n in installed if n == name or (name == "cupy" and n.startswith("cupy-cuda"))]
        found[name] = ", ".join(f"{installed[n]}{f' ({n})' * (n != name)}" for n in names) or None
    return found


def models() -> str | None:
    """Why the models can't be imported; None where they can."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # fairseq names packages that it would like
    try:
        importlib.import_module("fairseq_sru.models")
    except ImportError as error:
        return str(error)
    finally:
        logging.disable(before)
    return None


def lacks(fairseq: str) -> str:
    """What a build of fairseq without our patches lacks."""
    from fairseq.data.data_utils import batch_by_size

    whole = batch_by_size(range(3), len, [1, 1, 1], required_batch_size_multiple=8)
    losing = "" if whole else "; without --required-batch-size-multiple 1 it loses up to 7 sentences of a data set"
    return f"{fairseq} lacks our repairs of fairseq's faults (README, Install){losing}"


def driver() -> list[str]:
    """The GPUs and the driver's version as its own tool has them, whatever torch is built for."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    words = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi fails: {error}"]
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines if done.returncode == 0 else [f"nvidia-smi fails: {' '.join(lines) or done.stderr.strip()}"]


def driver_cuda() -> int | None:
    """The newest CUDA that the driver knows, as 13020 for 13.2; None where its library can't be asked."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value


def gpus() -> dict[str, Any]:
    """The GPUs that torch sees, the versions of CUDA on the way to them, and whether these go together."""
    cuda = torch.version.cuda
    found: dict[str, Any] = {"torch's CUDA": cuda, "driver": driver(), "driver's CUDA": None, "devices": []}
    found |= {"NVRTC": None, "mismatch": None}
    if cuda is None:
        return found
    newest = None
    if torch.cuda.is_available():
        if (version := driver_cuda()) is not None:
            newest = version // 1000
            found["driver's CUDA"] = f"{newest}.{version % 1000 // 10}"
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            found["devices"].append(
                f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
            )
    try:
        made = nvrtc.compiler()
    except Unavailable as error:
        found["NVRTC"] = found["mismatch"] = str(error)
        return found
    major = made.version[0]
    found["NVRTC"] = f"{'.'.join(map(str, made.version))}, {made.path}"
    if newest is not None and newest < major:
        found["mismatch"] = (
            f"the driver knows CUDA {newest} and NVRTC is of {major}: update the driver, or install a "
            f"torch for CUDA {newest} and pip install 'fairseq_sru[cuda{newest}]'"
        )
    elif str(major) != cuda.split(".")[0]:
        found["mismatch"] = (
            f"torch is for CUDA {cuda} and NVRTC of {major}: unset {nvrtc.NVRTC_VARIABLE}, which names it"
        )
    return found


def host() -> tuple[str | None, str | None]:
    """The C++ compiler, or what is wrong and helps."""
    try:
        command, version = host_compiler()
        return f"{shlex.join(command)}: {version.partition(chr(10))[0]}", None
    except Unavailable as error:
        return None, str(error)


def cache() -> dict[str, Any]:
    """The folder of compiled kernels with the size of what is in it; trouble: why it isn't the user's own."""
    try:
        trouble = user_cache()[1] or None
        folder = cache_folder()
    except Unavailable as error:
        return {"folder": None, "files": 0, "bytes": 0, "trouble": str(error)}
    sizes = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process's, which is done with it
            sizes += [path.stat().st_size] if path.is_file() else []
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes), "trouble": trouble}


Trial = dict[str, Any]
"""Of a backend: ``error``, the greatest difference from the definition, or ``failure``, what went wrong."""


def right(tried: Trial) -> bool:
    return tried["error"] is not None and bool(tried["error"] <= TOLERANCE)


def trial(backend: str) -> Trial:
    """Run a backend forward and backward on a small problem that has everything, and compare with the definition."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (9, 3, 3, 20), "x": (9, 3, 20), "bias": (2, 20), "c0": (3, 20), "weight_c": (2, 20)}
    given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    pad = torch.arange(9)[:, None] >= torch.tensor([9, 5, 0])

    def results(name: str, device: str, dtype: torch.dtype) -> torch.Tensor:
        leaves: dict[str, Any] = {n: t.to(device, dtype).requires_grad_() for n, t in given.items()}
        outputs = sru_recurrence(**leaves, bidirectional=True, padding_mask=pad.to(device), backend=name)
        loss = torch.stack([output.square().sum() for output in outputs]).sum()
        computed = (*outputs, *torch.autograd.grad(loss, list(leaves.values())))
        return torch.cat([t.detach().double().cpu().flatten() for t in computed])

    try:
        got = results(backend, DEVICES.get(backend, "cpu"), torch.float32)
        exact = results("reference", "cpu", torch.float64)
        error = float(((got - exact).abs() / exact.abs().clamp(min=1)).max())
    except Exception as failure:  # whatever a driver or a compiler comes up with is what the user must see
        return {"error": None, "failure": f"{type(failure).__name__}: {failure}"}
    if not math.isfinite(error):
        return {"error": None, "failure": "what it computes is not finite"}
    return {"error": error, "failure": None}


def automatic() -> dict[str, dict[str, str | None]]:
    """By device: the backend that ``auto`` takes, or the failure that it ends in."""
    chosen: dict[str, dict[str, str | None]] = {}
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        try:
            backend = choose("auto", device)
            chosen[device] = {"backend": "reference" if backend is None else backend.name, "failure": None}
        except (ValueError, RuntimeError) as error:
            chosen[device] = {"backend": None, "failure": str(error)}
    return chosen


def advice(found: dict[str, Any]) -> list[str]:
    """What to do about what is wrong, a line each."""
    gpu, auto = found["gpu"], found["auto"]
    listed = [line for line in gpu["driver"] if not line.startswith("nvidia-smi fails")]
    lines = [found["cache"]["trouble"]]
    lines.append(found["models"])
    fairseq = found["packages"]["fairseq"]
    if found["models"] is None and fairseq and "+py311" not in fairseq:
        lines.append(lacks(fairseq))
    elif found["models"] is None and fairseq and not fairseq.endswith(patched_version().partition("+")[2]):
        lines.append(f"{fairseq} is an earlier one than {patched_version()}: python -m fairseq_sru.install_fairseq")
    if gpu["driver"] and not listed:
        lines.append("the GPU's driver doesn't answer nvidia-smi: load it, or install it again")
    if listed and gpu["torch's CUDA"] is None:
        lines.append(f"torch {torch.__version__} is built without CUDA, and the GPU idle: install torch for CUDA")
    elif listed and not gpu["devices"]:
        hidden = "unset CUDA_VISIBLE_DEVICES, or " if "CUDA_VISIBLE_DEVICES" in found["environment"] else ""
        lines.append(
            f"torch {torch.__version__} sees no GPU, though there is one: {hidden}update the driver, "
            "or install torch for an older CUDA"
        )
    if gpu["devices"]:
        lines.append(gpu["mismatch"])
    for name, said in found["backends"].items():
        if said != "ready" and DEVICES.get(name) in auto:
            first, *rest = said.strip().splitlines()  # compilers say much, and most at the end
            lines.append(" ".join([f"{name}: {first}", *rest[-1:]]))
        elif name in found["trials"] and not right(found["trials"][name]):
            others = [n for n in BACKENDS if n in found["trials"] and right(found["trials"][n])]
            avoid = f"{BACKEND_VARIABLE}={others[0]} avoids it" if others else "no backend computes right"
            lines.append(f"{name} can't be trusted here: {avoid}; an empty cache folder may mend it; please report it")
    device = main_device(auto)
    if auto[device]["failure"]:
        lines.append(f"{auto[device]['failure']}; unset {BACKEND_VARIABLE}")
    elif found["environment"].get(BACKEND_VARIABLE) and auto[device]["backend"] not in DEVICES:
        lines.append(f"{BACKEND_VARIABLE} asks for a backend that isn't compiled: unset it")
    return list(dict.fromkeys(line for line in lines if line))


def main_device(auto: dict[str, Any]) -> str:
    return "cuda" if "cuda" in auto else "cpu"


def examine() -> dict[str, Any]:
    """All of it, as ``--json`` prints it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they say what is said here
        said = backends()
        trials = {name: trial(name) for name, what in said.items() if what == "ready"}
        auto = automatic()
        compiler, compiler_trouble = host()
        found: dict[str, Any] = {
            "packages": packages(),
            "models": models(),
            "platform": platform.platform(),
            "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
            "gpu": gpus(),
            "bfloat16": {"gain": round(bfloat16_gain(), 2), "pays": bfloat16_pays()},
            "compiler": compiler,
            "compiler_trouble": compiler_trouble,
            "cache": cache(),
            "backends": said,
            "trials": trials,
            "auto": auto,
            "user_dir": str(Path(__file__).resolve().parent),
        }
    compiled = auto[main_device(auto)]["backend"] in DEVICES
    return {**found, "advice": advice(found), "well": compiled and all(map(right, trials.values()))}


def text(found: dict[str, Any]) -> str:
    """For people."""
    gpu, folder = found["gpu"], found["cache"]
    rows = [(name, version or "not installed") for name, version in found["packages"].items()]
    rows += [("platform", found["platform"]), *found["environment"].items()]
    rows += [("C++ compiler", found["compiler"] or found["compiler_trouble"])]
    pays = "train with --cpu --amp" if found["bfloat16"]["pays"] else "--cpu --amp does not pay"
    rows += [("bfloat16 on the CPU", f"products {found['bfloat16']['gain']} times as fast as float32's: {pays}")]
    rows += [("GPU", "; ".join(gpu["devices"]) or "none that torch sees")]
    rows += [("driver", "; ".join(gpu["driver"]) or "no nvidia-smi")]
    rows += [(name, gpu[name] or "-") for name in ("torch's CUDA", "driver's CUDA", "NVRTC")]
    if gpu["NVRTC"]:
        rows.append(("CUDA versions", gpu["mismatch"] or "match"))
    size = f"{folder['files']} files, {folder['bytes'] / 2**20:.1f} MiB"
    why = f" (of this process alone: {folder['trouble']})" if folder["trouble"] else ""
    rows.append(("cache", f"{folder['folder']}, {size}{why}"))
    lines = [f"  {name:<20} {what}" for name, what in rows]
    lines += ["", "Backends:"]
    for name in BACKENDS:
        said = found["backends"][name]
        if name in found["trials"]:
            tried = found["trials"][name]
            said = f"ready, but FAILS: {tried['failure']}"
            if tried["failure"] is None:
                verdict = "right" if right(tried) else "WRONG"
                said = f"ready, and {verdict}: differs from the definition by {tried['error']:.0e}"
        lines.append(f"  {name:<20} {said}")
    chosen = (f"{a['backend'] or a['failure']} ({device})" for device, a in found["auto"].items())
    lines += [f"  {'auto':<20} {', '.join(chosen)}", ""]
    lines.append(f"For fairseq: --user-dir {shlex.quote(found['user_dir'])}")
    if found["advice"]:
        lines += ["", "What helps:", *(f"- {line}" for line in found["advice"])]
    all_of_it = "All is well." if found["models"] is None else "The layers are well, there are no models."
    lines.append(all_of_it if found["well"] else "Not all is well.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_sru.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse_args(argv)
    found = examine()
    print(json.dumps(found, indent=1) if args.json else text(found))
    return 0 if found["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
