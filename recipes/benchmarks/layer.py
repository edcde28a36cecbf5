"""One SRU layer next to other layers, the recurrence next to other recurrences and to copying memory."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common.figures import write_figure
from comparison.report import table
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from fairseq_sru import SRU, sru_recurrence
from fairseq_sru.layers.linear import Linear
from fairseq_sru.recurrence.autograd import Backend
from fairseq_sru.recurrence.kernels import Kernels
from fairseq_sru.recurrence.reference import Options, Tensors

from .registry import (
    BACKWARD,
    BOTH,
    CONTESTANTS,
    EAGER,
    FORWARD,
    GRAPH,
    LAYERS,
    LONG,
    PLOTTED,
    RECURRENCES,
    STEPS,
    WIDE,
    Case,
    contestant,
)
from .timing import (
    DEVICE,
    DRY,
    ON_GPU,
    REPLAY,
    TITLE,
    Function,
    Spread,
    failed,
    graphed,
    measure,
    short,
)

Call = tuple[Callable[..., Any], list[Tensor]]  # a function or module, and its inputs
Keep = Callable[[str, dict[str, Any]], object]  # takes the report's part and each new entry of it

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS = [(dtype, mode) for dtype in DTYPES for mode in (EAGER, GRAPH)] if ON_GPU or DRY else [("float32", EAGER)]

CONV, LSTM, GRU, OURS, PACKAGE, SCRIPTED, GEMM = "conv k=3", "LSTM", "GRU", "SRU", "sru package", "sru scripted", "GEMM"
RATIOS = {"SRU / GEMM": (OURS, GEMM), "LSTM / SRU": (LSTM, OURS), "sru package / SRU": (PACKAGE, OURS)}
CHUNKED = 256  # steps from which on HGRN has a kernel by chunks


def random(case: Case, *shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPES[case.dtype])


# ---------------------------------------------------------------- layers


def with_input(layer: nn.Module, case: Case) -> Call:
    return layer.to(DEVICE, DTYPES[case.dtype]), [random(case, *case.shape)]


def rnn(kind: Callable[[int, int], nn.RNNBase], case: Case) -> Call | None:
    if case.mode == GRAPH and case.shape == LONG:
        return None  # its graph would have a node for each of the steps
    layer, inputs = with_input(kind(case.size, case.size), case)
    if ON_GPU:
        # torch takes bfloat16 for nothing that cuDNN can, and would copy the weights at each call
        with mock.patch.object(torch.backends.cudnn, "is_acceptable", lambda _: torch.backends.cudnn.is_available()):
            layer.flatten_parameters()  # type: ignore[attr-defined]
    return layer, inputs


@contestant("layer", CONV, "nn.Conv1d over time, kernel width 3, padding 1, on (batch, features, length)")
def convolution(case: Case) -> Call | None:
    if case.length == 1:
        return None
    layer, _ = with_input(nn.Conv1d(case.size, case.size, 3, padding=1), case)
    return layer, [random(case, case.batch, case.size, case.length)]


@contestant("layer", LSTM, "nn.LSTM")
def lstm(case: Case) -> Call | None:
    return rnn(nn.LSTM, case)


@contestant("layer", GRU, "nn.GRU")
def gru(case: Case) -> Call | None:
    return rnn(nn.GRU, case)


@contestant("layer", OURS, "fairseq_sru.SRU, v1 cell, tanh")
def sru(case: Case) -> Call:
    return with_input(SRU(case.size, case.size, num_layers=1), case)


@functools.cache
def published_package() -> Callable[..., nn.Module] | None:
    """SRU of the package ``sru``, whose first import compiles C++ for a minute; None without it."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for ninja
    warnings.filterwarnings("ignore", module=r"sru\.|torch\.")  # v1, tanh, torch.jit are called deprecated
    try:
        import sru
    except Exception as error:  # whatever its build ends in
        failed("the package sru", error)
        return None
    return sru.SRU  # type: ignore[no-any-return]


@contestant("layer", PACKAGE, "sru.SRU(v1=True, use_tanh=True), eager")
def package(case: Case) -> Call | None:
    theirs = published_package()
    return with_input(theirs(case.size, case.size, num_layers=1, v1=True, use_tanh=True), case) if theirs else None


@contestant("layer", SCRIPTED, "sru package through torch.jit.script")
def scripted(case: Case) -> Call | None:
    call = package(case) if case.what == FORWARD and not ON_GPU else None
    return (torch.jit.script(call[0].eval()), call[1]) if call else None  # type: ignore[attr-defined]


@contestant("layer", GEMM, "fairseq_sru.layers.linear.linear with a weight as large as SRU's")
def product(case: Case) -> Call:
    return with_input(Linear(case.size, 3 * case.size, bias=False), case)


# ---------------------------------------------------------------- recurrences


def recurrence_inputs(case: Case) -> list[Tensor]:
    """u, x, bias."""
    length, batch, size = case.shape
    return [random(case, length, batch, 3, size), random(case, *case.shape), torch.zeros(2, size, device=DEVICE)]


@contestant("recurrence", OURS, "fairseq_sru.sru_recurrence: gates, cell state, tanh, highway")
def recurrence(case: Case) -> Call:
    return sru_recurrence, recurrence_inputs(case)


@contestant("recurrence", "accelerated-scan", "accelerated_scan.warp.scan: only the cell state, from given gates")
def warp(case: Case) -> Call:
    from accelerated_scan.warp import scan  # builds CUDA source when it is first imported

    if case.length & (case.length - 1) or not 32 <= case.length <= 65536:
        raise ValueError("accelerated-scan takes 32 to 65,536 steps, a power of 2")
    new = partial(random, case, case.batch, case.size, case.length)
    return scan, [new().sigmoid(), new()]


@contestant("recurrence", "HGRN", "fla.ops.hgrn: only the cell state, from given gates; by chunks from 256 steps on")
def hgrn(case: Case) -> Call:
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn

    new = partial(random, case, case.batch, case.length, case.size)
    return chunk_hgrn if case.length >= CHUNKED else fused_recurrent_hgrn, [new(), F.logsigmoid(new())]


# ---------------------------------------------------------------- timing them


def caller(call: Call, case: Case) -> Function:
    """Function that makes a contestant's call."""
    run, inputs = call
    leaves = [x.requires_grad_(case.what == BOTH) for x in inputs]
    if isinstance(run, nn.Module):
        run.train(case.what == BOTH)
        leaves += [p for p in run.parameters() if p.requires_grad]

    def output() -> Tensor:
        result = run(*inputs)
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]

    def forward() -> object:
        with torch.no_grad():
            return output()

    gradient = torch.randn_like(output())  # the first call, before a capture: it may compile

    def both() -> object:
        return torch.autograd.grad(output(), leaves, gradient)

    function = both if case.what == BOTH else forward
    if case.mode == GRAPH:
        return graphed(function, REPLAY)
    return function


def callers(group: str, case: Case, names: Collection[str]) -> dict[str, Function]:
    """Functions of those contestants that can run here."""
    functions: dict[str, Function] = {}
    # SRU first: after a capture that fails, others may
    for name in sorted(names, key=lambda name: name != OURS):
        try:
            call = CONTESTANTS[group][name].make(case)
            if call is not None:
                function = caller(call, case)
                function()
                functions[name] = function
        except Exception as error:  # one contestant that fails must not cost the other figures
            if name == OURS and case.mode != GRAPH:
                raise
            failed(name, error)
    return functions


def time_group(group: str, cases: Iterable[Case], names: Collection[str], turns: int, keep: Keep) -> None:
    """Time contestants of a layer or a recurrence, and print a table."""
    part, ratios = ("cases", RATIOS) if group == "layer" else ("other_kernels", {})

    rows = []
    for case in tqdm(cases, disable=None, leave=False):
        functions = callers(group, case, names)
        if not functions:
            continue
        took = measure(functions, turns)
        ms = {name: took[name]._asdict() for name in CONTESTANTS[group] if name in took}
        over = {r: took[a].median / took[b].median for r, (a, b) in ratios.items() if a in took and b in took}
        keep(part, {**case._asdict(), "ms": ms, "ratios": over})
        medians = [took[name].median if name in took else None for name in names]
        rows.append([str(case), *map(short, medians), *(short(over.get(ratio)) for ratio in ratios)])
    print(f"\nOne {group}, milliseconds:\n\n{table(['case', *names, *ratios], rows)}")


def layer_cases(quick: bool) -> list[Case]:
    """Cases of a layer: at each shape forward, with backward too, and forward at single steps."""
    shapes, steps = (LAYERS[:1], STEPS[1:2]) if quick else (LAYERS + ([WIDE, LONG] if ON_GPU else []), STEPS)
    plans = [(what, *s) for s in shapes for what in (FORWARD, BOTH)] + [(FORWARD, *s) for s in steps]
    cases = [Case(*plan, *variant) for variant in VARIANTS for plan in plans]
    # on a GPU graphs last, as one that fails may spoil the others, and last of all what takes long
    return sorted(cases, key=lambda case: (case.shape == LONG, case.mode == GRAPH)) if ON_GPU else cases


def recurrence_cases(quick: bool, *passes: str) -> list[Case]:
    shapes = LAYERS[:1] if quick else RECURRENCES[DEVICE.type]
    return [Case(what, *s, *variant) for s in shapes for variant in VARIANTS for what in passes]


class Products(TorchDispatchMode):
    """Notes operators that multiply matrices: they show which library does it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if re.search(r"mm$|linear|rnn|convolution", name):
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def notes(names: Collection[str], dtype: str) -> dict[str, str]:
    """Contestants' notes, with the operators that multiply their matrices."""
    texts = {}
    for name, function in callers("layer", Case(BOTH, *LAYERS[0], dtype=dtype), names).items():
        with Products() as noted:
            function()
        texts[name] = f"{CONTESTANTS['layer'][name].note} ({', '.join(sorted(noted.names))})"
    return texts


# ---------------------------------------------------------------- memory traffic of the recurrence, and copying


def traffic(value: int, backend: Backend) -> dict[str, int]:
    """Bytes that each pass moves for an element (step, sequence, channel), as kernels/sru.cu states; c is saved."""
    u, x, h, c = 3 * value, value, value, 4 // (backend.every if isinstance(backend, Kernels) else 1)
    return {FORWARD: u + x + h + c, BACKWARD: 2 * (u + x) + h + c}


def copying(count: int) -> Function:
    """Function that reads and writes half of so many bytes each. On a GPU it is a kernel, which copy_ is not."""
    source = torch.randn(count // 8, device=DEVICE)  # zeros are moved faster
    return partial(torch.neg, source, out=torch.empty_like(source))


def copy_speed(turns: int) -> float:
    """GB/s of a large copy."""
    count = 2**30 if ON_GPU else 2**28
    return count / measure({"copy": copying(count)}, turns)["copy"].median / 1e6


def passes(backend: Backend, case: Case) -> dict[str, Function]:
    """The recurrence's passes, and copies of the bytes that they must move."""
    u, x, bias = recurrence_inputs(case)
    tensors, options, gradient = Tensors(u, x, bias), Options("tanh", False, 1.0), random(case, *case.shape)
    saved = backend.forward(tensors, None, options, True)[2]
    assert saved is not None
    needed = (True, True, True, False, False, False)
    functions: dict[str, Function] = {
        FORWARD: partial(backend.forward, tensors, None, options, True),
        BACKWARD: partial(backend.backward, tensors, None, options, saved, gradient, None, needed),
    }
    for name, count in traffic(x.element_size(), backend).items():
        functions[f"copy {name}"] = copying(count * x.numel())
    return {name: graphed(f, REPLAY) for name, f in functions.items()} if case.mode == GRAPH else functions


def time_passes(backend: Backend, cases: Iterable[Case], turns: int, keep: Keep) -> None:
    """Time the recurrence's passes; ``share`` is that of the speed of copying as many bytes."""

    rows = []
    for case in cases:
        try:
            took = measure(passes(backend, case), turns)
        except RuntimeError as error:
            if case.mode != GRAPH:
                raise
            failed(f"{case}, recurrence", error)
            continue
        for name, count in traffic(DTYPES[case.dtype].itemsize, backend).items():
            this, ms, copy = case._replace(what=name), took[name], took[f"copy {name}"]
            moved, share = count * math.prod(case.shape), copy.median / ms.median
            spreads = {"ms": ms._asdict(), "copy_ms": copy._asdict()}
            keep("recurrence", {**this._asdict(), **spreads, "bytes": moved, "share": share})
            rows.append([str(this), *map(short, (ms.median, copy.median, share, moved / ms.median / 1e6))])
    head = ["pass", "recurrence ms", "copy ms", "share", "GB/s"]
    print(f"\nThe recurrence, {backend.name}, next to copying the bytes that it must move:\n\n{table(head, rows)}")


# ---------------------------------------------------------------- the plot


def plot(times: dict[Case, dict[str, Spread]], title: str) -> Figure:
    """Bars as in the README of the published code: forward, and with backward; a row of panels for each variant."""
    figure = Figure(figsize=(15, 5 * len(VARIANTS)), layout="constrained")
    figure.suptitle(title)
    names = [name for name in CONTESTANTS["layer"] if name != GEMM and any(name in took for took in times.values())]
    panels = [(*variant, what) for variant in VARIANTS for what in (FORWARD, BOTH)]
    for ax, (dtype, mode, what) in zip(figure.subplots(len(VARIANTS), 2, squeeze=False).flat, panels, strict=True):
        groups = {shape: times.get(Case(what, *shape, dtype, mode), {}) for shape in PLOTTED}
        for i, name in enumerate(names):
            medians = [took[name].median if name in took else math.nan for took in groups.values()]
            places = [group + (i - (len(names) - 1) / 2) * 0.9 / len(names) for group in range(len(groups))]
            bars = ax.bar(places, medians, 0.85 / len(names), label=name, color=f"C{i}")
            ax.bar_label(bars, ["" if math.isnan(m) else short(m) for m in medians], fontsize=7.5, padding=2)
        ax.set_xticks(range(len(groups)), [f"l={length}, d={size}" for length, _, size in groups])
        ax.set_title(f"{what}, {dtype}, {mode}" if len(VARIANTS) > 1 else what)
        ax.set_ylabel("ms for 32 sequences")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="upper left")
    return figure


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the plot of a report's cases."""
    times = {Case.of(entry): {name: Spread(**ms) for name, ms in entry["ms"].items()} for entry in report["cases"]}
    write_figure(path, plot(times, f"One layer, {TITLE.format(**report['machine'])}"))
