"""What the benchmarks share: the clock, tables, what a report says of the machine."""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from common.files import write_text
from common.machine import processor, source
from tqdm import tqdm

from fairseq_sru import backends

Function = Callable[[], object]
C = TypeVar("C")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DRY = os.environ.get("FAIRSEQ_SRU_GPU_DRY") == "1"  # what is measured on a GPU runs on a CPU, to see that it runs
RUN = 0.005  # seconds that a run takes at least
REPLAY = 0.001  # seconds that a replay of small kernels takes at least
MOST = 200  # calls in a graph
WARM_UP = 1.0  # seconds
TRIES = 2
TITLE = "{device}, threads: {threads}, torch {torch}, {date:.10}"  # of what machine() gives


class Spread(NamedTuple):
    """Milliseconds of a call: the median and the quartiles."""

    median: float
    low: float
    high: float


def run(function: Function, calls: int) -> float:
    """Seconds of a call, the mean of several."""
    if ON_GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if ON_GPU:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


class Replay:
    """A CUDA graph of a function; ``calls``: how many calls a replay has."""

    def __init__(self, graph: Any, calls: int, function: Function) -> None:
        self.graph, self.calls = graph, calls
        self.function = function  # keeps the tensors that the graph reads, which by itself it doesn't

    def __call__(self) -> None:
        self.graph.replay()


def measure(functions: dict[str, Function], turns: int) -> dict[str, Spread]:
    """Warm each function up, then run each in rotating order; a run has the calls that take :data:`RUN` seconds."""
    names = list(functions)
    calls = {}
    for name in names:
        run(functions[name], 1)  # warms up
        calls[name] = 1
        # the first calls are slower, and one may wait for another program
        while (taken := calls[name] * min(run(functions[name], calls[name]) for _ in range(2))) < RUN:
            calls[name] = math.ceil(calls[name] * min(RUN / taken + 0.1, 10))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(1000 * run(functions[name], calls[name]) / getattr(functions[name], "calls", 1))
    return {name: Spread(*map(float, np.percentile(taken, [50, 25, 75]))) for name, taken in times.items()}


def graphed(function: Function, seconds: float = 0.0) -> Function:
    """A replay of a CUDA graph of the function; in a dry run the function.

    Args:
        function: is called once in the graph, or
        seconds: as often as replays take so long: the launch of a graph takes longer than a small kernel.
    """
    if not ON_GPU:
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what a capture can't do: compile kernels, take workspaces
            function()
    torch.cuda.current_stream().wait_stream(side)
    replay = captured(function, 1)
    if seconds and (calls := min(MOST, math.ceil(seconds / run(replay, 5)))) > 1:
        return captured(function, calls)
    return replay


def captured(function: Function, calls: int) -> Replay:
    """A CUDA graph of so many calls."""
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                function()
    finally:
        torch.cuda.set_stream(before)  # which torch leaves out where a capture fails at its end
    return Replay(graph, calls, function)


@functools.cache  # once is enough
def going_on_without(what: str, reason: str) -> None:
    tqdm.write(f"going on without {what}: {reason.strip().splitlines()[0]}", file=sys.stderr)


def failed(what: str, error: Exception) -> None:
    """Go on without what ended in an error. One after which the GPU does nothing more, as after an illegal address, is
    raised: the process has to end in the case that made it."""
    if ON_GPU:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise error from None
    going_on_without(what, f"{type(error).__name__}: {error}")


def warm_up() -> None:
    """Keep a GPU busy until its clocks are up."""
    if not ON_GPU:
        return
    x, until = torch.randn(4096, 4096, device=DEVICE), time.perf_counter() + WARM_UP
    while time.perf_counter() < until:
        x @ x
        torch.cuda.synchronize()


def demand_kernels() -> None:
    """End the program where torch sees a GPU and the kernels don't run on it: what runs instead is not what is
    measured."""
    if ON_GPU and (said := backends()["cuda"]) != "ready":
        sys.exit(f"the kernels don't run on this GPU: {said}")


def refuse_overwriting(parser: argparse.ArgumentParser, path: Path, resume: bool, *drawn: Path) -> None:
    """End the program where --resume isn't given and a report or a plot is there already."""
    if resume:
        return
    if path.exists():
        parser.error(f"argument --out: {path} is there already: --resume goes on with it; or name another folder")
    for other in drawn:
        if other.exists():
            parser.error(f"argument --out: {other} is there already, without {path.name}: name another folder")


def resumed(path: Path, report: dict[str, Any], *measured: str) -> dict[str, Any]:
    """The report in a file, where there is one; else this new one. A report that is otherwise than this one but for
    what is ``measured`` and the date ends the program: it stays as it is."""
    if not path.is_file():
        return report

    def given(one: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in one.items() if key not in measured}
        return {**rest, "machine": {**one["machine"], "date": ""}}

    try:
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        was, now = given(old), given(report)
    except (ValueError, LookupError, TypeError, AttributeError):
        sys.exit(f"argument --resume: {path} is no report of this script")
    if was != now:
        flat = [{**one, **one["machine"], "machine": None} for one in (was, now)]
        other = sorted(key for key in {*flat[0], *flat[1]} if flat[0].get(key) != flat[1].get(key))
        sys.exit(f"argument --resume: {path} is of another {' and '.join(other)}: name another --out, or remove it")
    return old


def save(path: Path, report: dict[str, Any]) -> None:
    """After each case, so that what is stopped leaves what is measured."""
    write_text(path, json.dumps(report, indent=1) + "\n")


class Attempts(Generic[C]):
    """Cases, of which each is written down before it is tried. What the process has ended in TRIES times is left out:
    on a GPU one bad kernel ends all that follows."""

    def __init__(self, part: str, cases: Sequence[C], report: dict[str, Any], write: Callable[[], object]) -> None:
        self.part, self.cases, self.report, self.write = part, cases, report, write

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[C]:
        self.tries = self.report.setdefault("tries", {})
        for case in self.cases:
            name = f"{self.part}, {case}"
            if self.tries.get(name, 0) >= TRIES:
                going_on_without(name, f"the process ended in it {TRIES} times")
                continue
            self.tries[name] = self.tries.get(name, 0) + 1
            self.write()
            yield case
            del self.tries[name]
        if not self.tries:
            del self.report["tries"]
        self.write()


@contextmanager
def resumable(report: dict[str, Any], write: Callable[[], object]) -> Iterator[None]:
    """End with a line on Ctrl-C, which is the fault of no case that was tried."""
    try:
        yield
    except KeyboardInterrupt:
        report.pop("tries", None)
        write()
        print("\nstopped; --resume goes on", file=sys.stderr)
        sys.exit(130)


def short(value: float | None) -> str:
    """Three digits or some more; a dash for none."""
    return "–" if value is None else f"{value:,.{max(0, 2 - math.floor(math.log10(max(value, 0.01))))}f}"


def table(title: str, headers: list[str], rows: Iterable[list[str]]) -> None:
    """Print a Markdown table, each row as soon as it comes."""
    widths = [45, *(max(7, len(header)) for header in headers[1:])]

    def line(cells: list[str]) -> str:
        return f"| {cells[0]:<{widths[0]}} | " + " | ".join(map(str.rjust, cells[1:], widths[1:])) + " |"

    tqdm.write(f"\n{title}\n\n{line(headers)}\n|{'|'.join('-' * (width + 2) for width in widths)}|")
    for cells in rows:
        tqdm.write(line(cells))


def place(report: dict[str, Any], what: str) -> str:
    """Where and when a report was measured, for the line above its table."""
    here = report["machine"]
    machine = ", ".join(filter(None, (here["device"], here.get("cpu"))))
    return (
        f"{what}. {machine}, threads: {here['threads']}, torch {here['torch']}, {here['date'][:10]}; "
        f"medians of {report['turns']} runs.\n\n"
    )


def machine(on_gpu: bool = ON_GPU, **more: str) -> dict[str, Any]:
    """What a report says of where and when it was made; more goes in before the date."""
    return {
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        **({"cpu": processor()} if on_gpu else {}),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({"cudnn": torch.backends.cudnn.version()} if on_gpu else {}),
        **more,
        "source": source("kernels/*", "fairseq_sru/**/*.py", "fairseq_sru/config/**/*.yaml"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
