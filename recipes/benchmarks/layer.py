"""One SRU layer against what else one would take; ../speed.py tells how."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from common.figures import write_figure
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from fairseq_sru import SRU
from fairseq_sru.layers.linear import Linear
from fairseq_sru.recurrence.autograd import Backend
from fairseq_sru.recurrence.kernels import Kernels
from fairseq_sru.recurrence.reference import Options, Tensors

from .timing import (
    DEVICE,
    DRY,
    ON_GPU,
    REPLAY,
    TITLE,
    Function,
    Spread,
    failed,
    going_on_without,
    graphed,
    measure,
    short,
    table,
)

Package = Callable[..., nn.Module] | None  # the class SRU of the published package

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EAGER, GRAPH, PLAIN = "eager", "CUDA graph", "without oneDNN"
VARIANTS = [(dtype, mode) for dtype in DTYPES for mode in (EAGER, GRAPH)] if ON_GPU or DRY else [("float32", EAGER)]

CONV, LSTM, GRU, OURS, PACKAGE, SCRIPTED, GEMM = "conv k=3", "LSTM", "GRU", "SRU", "sru package", "sru scripted", "GEMM"
NAMES = {
    CONV: "nn.Conv1d over time, kernel width 3, padding 1, on (batch, features, length)",
    LSTM: "nn.LSTM",
    GRU: "nn.GRU",
    OURS: "fairseq_sru.SRU, v1 cell, tanh",
    PACKAGE: "sru.SRU(v1=True, use_tanh=True), eager",
    SCRIPTED: "sru package through torch.jit.script",
    GEMM: "fairseq_sru.layers.linear.linear with the weight of SRU",
}
SRU_GEMM, LSTM_SRU, PACKAGE_SRU = "SRU / GEMM", "LSTM / SRU", "sru package / SRU"
RATIOS = {SRU_GEMM: (OURS, GEMM), LSTM_SRU: (LSTM, OURS), PACKAGE_SRU: (PACKAGE, OURS)}

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
DRAWN = "speed.svg"
Shape = tuple[int, int, int]  # length, batch, size
WIDE, LONG = (64, 256, 1024), (8192, 1, 512)  # fill a GPU by columns, and by steps
SHAPES: list[Shape] = [(length, 32, size) for length in (32, 128) for size in (256, 512, 1024)] + [(1000, 1, 512)]
SHAPES += [WIDE, LONG] if ON_GPU else []
STEPS: list[Shape] = [(1, batch, 512) for batch in (1, 5, 64, 320)]  # of decoding
PLOTTED: list[Shape] = [(32, 32, 256), (32, 32, 512), (128, 32, 512)]
SCANS: list[Shape] = [WIDE, LONG, (32, 32, 512), (128, 32, 512)] if ON_GPU else [(64, 32, 512), LONG]


class Case(NamedTuple):
    """What the contestants do."""

    what: str
    length: int
    batch: int
    size: int
    dtype: str = "float32"
    mode: str = EAGER

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Case:
        """That of an entry of a report."""
        return cls(*(entry[field] for field in cls._fields))

    def __str__(self) -> str:
        variant = [word for word in (self.dtype, self.mode) if word not in ("float32", EAGER)]
        return " ".join((self.what, f"L{self.length} B{self.batch} d{self.size}", *variant))


# ---------------------------------------------------------------- the contestants


def published_package() -> Package:
    """SRU of the package ``sru``, whose first import compiles C++ for a minute; None if it can't be had."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for ninja
    warnings.filterwarnings("ignore", module=r"sru\.|torch\.")  # v1, tanh, torch.jit are called deprecated
    try:
        import sru

        # where its CUDA source doesn't compile it can be imported all the same, and fails when it is called
        sru.SRU(8, 8, num_layers=1, v1=True, use_tanh=True).to(DEVICE)(torch.randn(2, 2, 8, device=DEVICE))
    except Exception as error:  # whatever its build ends in
        failed("the package sru", error)
        return None
    return sru.SRU  # type: ignore[no-any-return]


def contestants(case: Case, package: Package) -> dict[str, nn.Module]:
    size = case.size
    ours = SRU(size, size, num_layers=1)
    layers: dict[str, nn.Module] = {}
    if case.length > 1:  # a convolution has no single step
        layers[CONV] = nn.Conv1d(size, size, 3, padding=1)
    layers |= {LSTM: nn.LSTM(size, size), GRU: nn.GRU(size, size), OURS: ours}
    if package is not None:
        layers[PACKAGE] = package(size, size, num_layers=1, v1=True, use_tanh=True)
        if case.what == FORWARD and not ON_GPU:
            layers[SCRIPTED] = torch.jit.script(layers[PACKAGE].eval())
    product = layers[GEMM] = Linear(size, 3 * size, bias=False)
    product.weight = ours.layers[0].weight  # type: ignore[assignment]
    made = {name: layer.to(DEVICE, DTYPES[case.dtype]) for name, layer in layers.items()}
    for rnn in (made[LSTM], made[GRU]) if ON_GPU else ():
        flatten(rnn, case.dtype)
    return made


def flatten(rnn: nn.Module, dtype: str) -> None:
    """Put cuDNN's weights into one piece: torch takes bfloat16 for nothing that cuDNN can, and copies at each call."""
    with mock.patch.object(torch.backends.cudnn, "is_acceptable", lambda _: torch.backends.cudnn.is_available()):
        try:
            rnn.flatten_parameters()  # type: ignore[operator]
        except RuntimeError as error:  # of a cuDNN that has no bfloat16
            going_on_without(f"weights in one piece, {dtype}", str(error))


def without_onednn(function: Function) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        function()


def caller(name: str, layer: nn.Module, case: Case) -> Function:
    shape = (case.batch, case.size, case.length) if name == CONV else (case.length, case.batch, case.size)
    x = torch.randn(shape, device=DEVICE, dtype=DTYPES[case.dtype], requires_grad=case.what == BOTH)
    layer.train(case.what == BOTH)

    def output() -> Tensor:
        result = layer(x)
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]

    def forward() -> object:
        with torch.no_grad():
            return output()

    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    gradient = torch.randn_like(output())

    def both() -> object:
        return torch.autograd.grad(output(), leaves, gradient)

    function = both if case.what == BOTH else forward
    if case.mode == GRAPH:
        return graphed(function, REPLAY)
    return partial(without_onednn, function) if case.mode == PLAIN else function


def callers(case: Case, package: Package, rivals: bool = False) -> dict[str, Function]:
    """Of those contestants that can run here; rivals: of SRU and the published package alone."""
    found = {}
    made = contestants(case, package)
    if case.mode == GRAPH:  # SRU first: after a capture that fails, others may
        made = {name: made[name] for name in (OURS, GEMM, *made)}
    for name, layer in made.items():
        if rivals and name not in (OURS, PACKAGE):
            continue
        if case.mode == GRAPH and case[1:4] == LONG and name in (LSTM, GRU):
            continue  # a graph of each of their steps
        try:
            function = caller(name, layer, case)
            function()
            found[name] = function
        except Exception as error:  # one system that fails must not cost the other figures
            if name == OURS and not (case.mode == GRAPH and isinstance(error, RuntimeError)):
                raise
            failed(f"{name}, {case.what}, {case.dtype}, {case.mode}", error)
    return found


class Products(TorchDispatchMode):
    """Notes the operators that multiply matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "convolution":
            name = f"convolution, {torch._C._select_conv_backend(*args).name}"
        if re.search(r"mm$|linear|rnn|convolution,", name):
            self.seen[name] = None
        return func(*args, **(kwargs or {}))


def products(function: Function) -> str:
    """Which library multiplies, by which operators."""
    with Products() as noted:
        function()
    operators = ", ".join(noted.seen)
    libraries = {"mkldnn": "oneDNN", "linear_pointwise": "oneDNN", "cudnn": "cuDNN"}
    plain = "cuBLAS" if ON_GPU else "MKL" if torch.backends.mkl.is_available() else "torch's BLAS"
    return f"{next((libraries[key] for key in libraries if key in operators.lower()), plain)} ({operators})"


# ---------------------------------------------------------------- the recurrence alone, and copying


def traffic(value: int, backend: Backend) -> dict[str, int]:
    """Bytes that each pass moves for an element (step, sequence, channel), as kernels/sru.cu has it; c is kept."""
    u, x, h, c = 3 * value, value, value, 4 // (backend.every if isinstance(backend, Kernels) else 1)
    return {FORWARD: u + x + h + c, BACKWARD: 2 * (u + x) + h + c}


def copying(count: int) -> dict[str, Function]:
    """Functions that move count bytes: read half of them and write as many. The faster one tells what memory can: on a
    GPU copy_ is no kernel, and a graph may take longer to begin it."""
    source = torch.randn(count // 8, device=DEVICE)  # zeros are moved faster
    target = torch.empty_like(source)
    return {"copy": partial(target.copy_, source), "negate": partial(torch.neg, source, out=target)}


def fastest(took: Mapping[str, Spread], what: str = "") -> Spread:
    """Of the functions of :func:`copying`, as :func:`measure` found them; what: their names' ending."""
    return min(took[f"{name}{what}"] for name in ("copy", "negate"))


def passes(backend: Backend, case: Case) -> dict[str, Function]:
    """The recurrence's passes, and copies of the bytes that they must move."""
    new = partial(torch.randn, device=DEVICE, dtype=DTYPES[case.dtype])
    x, gradient = (new(case.length, case.batch, case.size) for _ in range(2))
    bias = torch.zeros(2, case.size, device=DEVICE)
    tensors = Tensors(new(case.length, case.batch, 3, case.size), x, bias)
    options = Options("tanh", False, 1.0)
    saved = backend.forward(tensors, None, options, True)[2]
    assert saved is not None
    needed = (True, True, True, False, False, False)
    functions: dict[str, Function] = {
        FORWARD: partial(backend.forward, tensors, None, options, True),
        BACKWARD: partial(backend.backward, tensors, None, options, saved, gradient, None, needed),
    }
    for name, count in traffic(x.element_size(), backend).items():
        functions |= {f"{how} {name}": moves for how, moves in copying(count * x.numel()).items()}
    return {name: graphed(f, REPLAY) for name, f in functions.items()} if case.mode == GRAPH else functions


# ---------------------------------------------------------------- tables, plot, files


def ratios(took: dict[str, Spread]) -> dict[str, float]:
    return {r: took[a].median / took[b].median for r, (a, b) in RATIOS.items() if a in took and b in took}


def plot(found: dict[Case, dict[str, Spread]], title: str) -> Figure:
    """Bars as in the README of the published code: forward, and with backward; a row of panels for each variant."""
    figure = Figure(figsize=(15, 5 * len(VARIANTS)), layout="constrained")
    figure.suptitle(title)
    panels = [(*variant, what) for variant in VARIANTS for what in (FORWARD, BOTH)]
    for ax, (dtype, mode, what) in zip(figure.subplots(len(VARIANTS), 2, squeeze=False).flat, panels, strict=True):
        groups = {s: found[c] for s in PLOTTED if (c := Case(what, *s, dtype, mode)) in found}
        names = [name for name in NAMES if name != GEMM and any(name in took for took in groups.values())]
        for i, name in enumerate(names):
            medians = [took[name].median if name in took else math.nan for took in groups.values()]
            places = [group + (i - (len(names) - 1) / 2) * 0.9 / len(names) for group in range(len(groups))]
            bars = ax.bar(places, medians, 0.85 / len(names), label=name, color=f"C{list(NAMES).index(name)}")
            ax.bar_label(bars, ["" if math.isnan(m) else short(m) for m in medians], fontsize=7.5, padding=2)
        ax.set_xticks(range(len(groups)), [f"l={length}, d={size}" for length, _, size in groups])
        ax.set_title(f"{what}, {dtype}, {mode}" if len(VARIANTS) > 1 else what)
        ax.set_ylabel("ms for 32 sequences")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="upper left")
    return figure


def measured(report: dict[str, Any]) -> dict[Case, dict[str, Spread]]:
    """The cases of a report."""
    return {Case.of(entry): {name: Spread(**ms) for name, ms in entry["ms"].items()} for entry in report["cases"]}


def draw(report: dict[str, Any], folder: Path) -> Path:
    """Write the plot of a report's cases; the file."""
    write_figure(folder / DRAWN, plot(measured(report), f"One layer, {TITLE.format(**report['machine'])}"))
    return folder / DRAWN


# ---------------------------------------------------------------- the report's parts: each is printed


Keep = Callable[[dict[str, Any]], object]  # takes each entry of the report as soon as it is known


def all_cases(cases: Iterable[Case], package: Package, turns: int, keep: Keep, rivals: bool = False) -> None:
    def rows() -> Iterator[list[str]]:
        for case in tqdm(cases, disable=None, leave=False):
            functions = callers(case, package, rivals)
            if not functions:
                continue
            took = measure(functions, turns)
            ms = {name: spread._asdict() for name, spread in took.items()}
            keep({**case._asdict(), "ms": ms, "ratios": ratios(took)})
            medians = [took[name].median if name in took else None for name in NAMES]
            yield [str(case), *map(short, medians), *(short(ratios(took).get(r)) for r in RATIOS)]

    table("Milliseconds:", ["case", *NAMES, *RATIOS], rows())


def all_notes(package: Package, case: Case) -> dict[str, str]:
    print(f"\nContestants, and which library multiplies their {case.dtype} matrices by which operators:\n")
    notes = {name: f"{NAMES[name]}: {products(function)}" for name, function in callers(case, package).items()}
    print(*(f"- {name}: {note}" for name, note in notes.items()), sep="\n")
    return notes


def all_scans(backend: Backend, cases: Iterable[Case], turns: int, keep: Keep) -> None:
    """share: of the speed of copying as many bytes. What can't be recorded as a graph is measured call by call."""

    def rows() -> Iterator[list[str]]:
        for case in cases:
            try:
                took = measure(passes(backend, case), turns)
            except RuntimeError as error:
                if case.mode != GRAPH:
                    raise
                failed(f"{case}, alone", error)
                case = case._replace(mode=EAGER)
                took = measure(passes(backend, case), turns)
            for name, count in traffic(DTYPES[case.dtype].itemsize, backend).items():
                this, ms, copy = case._replace(what=name), took[name], fastest(took, f" {name}")
                moved, share = count * case.length * case.batch * case.size, copy.median / ms.median
                spreads = {"ms": ms._asdict(), "copy_ms": copy._asdict()}
                keep({**this._asdict(), **spreads, "bytes": moved, "share": share})
                yield [str(this), *map(short, (ms.median, copy.median, share, moved / ms.median / 1e6))]

    title = f"The recurrence alone, {backend.name}, beside copying the bytes that it must move:"
    table(title, ["pass", "recurrence ms", "copy ms", "share", "GB/s"], rows())
