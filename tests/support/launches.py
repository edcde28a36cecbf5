"""Times what a call costs before a GPU has anything to do: Python, torch, CuPy, and a driver that does nothing.

    OMP_NUM_THREADS=1 PYTHONPATH=.:recipes:tests python -m support.launches > FILE

Tensors lie on the CPU, and the layer is so narrow that its product is little beside the rest. ``launch`` is what the
recurrence spends in the backend's own launches of kernels. Figures are medians in microseconds of TURNS runs of CALLS
calls, in turns.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from common.machine import processor

from fairseq_sru import SRU
from fairseq_sru.recurrence import recurrence

from .fake_cupy import Gpu, real_module

TURNS, CALLS = 40, 100
SIZE, LENGTH, BATCH = 8, 4, 2
DRIVER = """
int cuModuleLoadData(void **made) { *made = made; return 0; }
int cuModuleGetFunction(void **made) { *made = made; return 0; }
int cuModuleUnload(void) { return 0; }
int cuLaunchKernel(void) { return 0; }
"""


def driver(folder: Path) -> ctypes.CDLL:
    source, made = folder / "driver.c", folder / "driver.so"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", made, source], check=True)
    return ctypes.CDLL(str(made))


def timed(calls: dict[str, Callable[[], Any]], launched: list[float]) -> dict[str, dict[str, float]]:
    """Microseconds of each call, and of its launches."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(TURNS + 1):  # the first warms up
        for name, call in calls.items():
            launched.clear()
            begun = time.perf_counter()
            for _ in range(CALLS):
                call()
            took = time.perf_counter() - begun
            if turn:
                seconds[name].append((took / CALLS, sum(launched) / CALLS))
    return {
        name: {
            what: round(1e6 * statistics.median(times), 1)
            for what, times in zip(("call", "launch"), zip(*every, strict=True), strict=True)
        }
        for name, every in seconds.items()
    }


def main() -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        backend = Gpu().backend(patch, real_module(driver(Path(folder))))
        launch, launched = backend.launch, []

        def noted(*arguments: Any) -> None:
            begun = time.perf_counter()
            launch(*arguments)
            launched.append(time.perf_counter() - begun)

        patch.setattr(backend, "launch", noted)
        patch.setattr(recurrence, "choose", lambda name, device: backend)
        one, four = SRU(SIZE, SIZE, 1), SRU(SIZE, SIZE, 4)
        x = torch.randn(LENGTH, BATCH, SIZE)
        grad = torch.ones(LENGTH, BATCH, SIZE)

        def without_gradients(rnn: SRU) -> Any:
            with torch.no_grad():
                return rnn(x)

        def both(rnn: SRU) -> None:
            rnn(x)[0].backward(grad)

        calls: dict[str, Callable[[], Any]] = {
            "forward without gradients": lambda: without_gradients(one),
            "forward": lambda: one(x),
            "forward and backward": lambda: both(one),
            "forward without gradients, 4 layers": lambda: without_gradients(four),
            "forward and backward, 4 layers": lambda: both(four),
        }
        found = timed(calls, launched)
        from cupy import __version__ as cupy_version  # not before its driver is another
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": processor(), "threads": 1},
        "versions": {"torch": torch.__version__, "cupy": cupy_version},
        "shape": {"length": LENGTH, "batch": BATCH, "size": SIZE},
        "turns": TURNS,
        "calls": CALLS,
        "microseconds": found,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
