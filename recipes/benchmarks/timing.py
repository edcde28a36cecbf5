"""Clock, CUDA graphs, tables, and facts of the machine, for all benchmarks."""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common.files import write_text
from common.machine import processor
from torch.utils.benchmark import Timer
from tqdm import tqdm

from fairseq_sru import __version__, backends

Function = Callable[[], object]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DRY = os.environ.get("FAIRSEQ_SRU_GPU_DRY") == "1"  # cases of a GPU run on a CPU, to see that they run
RUN = 0.005  # seconds that a run takes at least
REPLAY = 0.001  # seconds that a replay of small kernels takes at least
MOST = 200  # calls in a graph
WARM_UP = 1.0  # seconds
TITLE = "{device}, threads: {threads}, torch {torch}, {date:.10}"  # of the facts of machine()


class Spread(NamedTuple):
    """Milliseconds of a call: the median and the quartiles."""

    median: float
    low: float
    high: float


def measure(functions: dict[str, Function], turns: int) -> dict[str, Spread]:
    """Time the functions in interleaved runs, in rotating order; a run has as many calls as take 5 ms."""
    names = list(functions)
    timers = {
        name: Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
        for name, function in functions.items()
    }
    for timer in timers.values():
        timer.timeit(1)  # warms up
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds = timers[name].blocked_autorange(min_run_time=RUN).mean
            times[name].append(1000 * seconds / getattr(functions[name], "calls", 1))
    return {name: Spread(*map(float, np.percentile(taken, [50, 25, 75]))) for name, taken in times.items()}


# ---------------------------------------------------------------- CUDA graphs


class Replay:
    """CUDA graph of some calls of a function."""

    def __init__(self, function: Function, calls: int) -> None:
        self.graph, self.calls = torch.cuda.CUDAGraph(), calls
        self.function = function  # keeps the tensors that the graph reads, which by itself it doesn't
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self.graph):
                for _ in range(calls):
                    function()
        finally:
            torch.cuda.set_stream(before)  # torch leaves this out where a capture fails at its end

    def __call__(self) -> None:
        self.graph.replay()


def graphed(function: Function, seconds: float = 0.0) -> Function:
    """CUDA graph of the function; without a GPU the function.

    Args:
        function: is called once in the graph, or
        seconds: as often as replays take so long: the launch of a graph takes longer than a small kernel.
    """
    if not ON_GPU:
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles kernels and takes workspaces, which a capture can't
            function()
    torch.cuda.current_stream().wait_stream(side)
    replay = Replay(function, 1)
    calls = math.ceil(seconds / Timer("f()", globals={"f": replay}).timeit(5).mean) if seconds else 1
    return Replay(function, min(MOST, calls)) if calls > 1 else replay


# ---------------------------------------------------------------- the machine


@functools.cache  # once is enough
def going_on_without(what: str, reason: str) -> None:
    lines = reason.strip().splitlines() or [""]
    tqdm.write(f"going on without {what}: {lines[0]}", file=sys.stderr)


def failed(what: str, error: Exception) -> None:
    """Go on without a contestant, unless the GPU does nothing more, as after an illegal address."""
    if ON_GPU:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise error from None
    going_on_without(what, f"{type(error).__name__}: {error}")


def prepare(threads: int | None) -> None:
    """Set threads and precision. End the program where torch sees a GPU and the kernels don't run on it."""
    if threads:
        torch.set_num_threads(threads)
    if ON_GPU and (status := backends()["cuda"]) != "ready":
        sys.exit(f"the kernels don't run on this GPU: {status}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # by default only cuDNN has it
    if ON_GPU:  # keep it busy until its clocks are up
        x, until = torch.randn(4096, 4096, device=DEVICE), time.perf_counter() + WARM_UP
        while time.perf_counter() < until:
            x @ x
            torch.cuda.synchronize()


def machine(on_gpu: bool = ON_GPU) -> dict[str, Any]:
    """Facts of where and when a report is made."""
    return {
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        **({"cpu": processor(), "cudnn": torch.backends.cudnn.version()} if on_gpu else {}),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fairseq_sru": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def place(report: dict[str, Any], what: str) -> str:
    """Line above a report's table: where and when it was measured."""
    here = report["machine"]
    device = ", ".join(filter(None, (here["device"], here.get("cpu"))))
    return (
        f"{what}. {device}, threads: {here['threads']}, torch {here['torch']}, {here['date'][:10]}; "
        f"medians of {report['turns']} runs.\n\n"
    )


# ---------------------------------------------------------------- reports


def save(path: Path, report: dict[str, Any]) -> None:
    """Write a report, after each case: when the program is stopped, the cases before are there."""
    write_text(path, json.dumps(report, indent=1) + "\n")


def short(value: float | None) -> str:
    """Three digits or some more; a dash for none."""
    return "–" if value is None else f"{value:,.{max(0, 2 - math.floor(math.log10(max(value, 0.01))))}f}"
