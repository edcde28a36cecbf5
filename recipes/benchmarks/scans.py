"""Others' kernels for recurrences that are linear in their state, beside ours; ../speed.py tells how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fairseq_sru import sru_recurrence
from fairseq_sru.recurrence.reference import Options, Tensors, reference

from .layer import BOTH, DTYPES, FORWARD, GRAPH, Case, Keep
from .timing import DEVICE, ON_GPU, REPLAY, Function, failed, graphed, measure, short, table

OURS, WARP, HGRN, COMPILED = "SRU", "accelerated-scan", "HGRN", "compiled definition"
NAMES = {
    OURS: "fairseq_sru.sru_recurrence: gates, cell state, tanh, highway",
    WARP: "accelerated_scan.warp.scan: the cell state alone, from given gates, on (batch, features, length)",
    HGRN: "fla.ops.hgrn, chunk_hgrn from 256 steps on, else fused_recurrent_hgrn: the cell state alone, likewise, on "
    "(batch, length, features)",
    COMPILED: "the definition of sru_recurrence by torch.compile, which unrolls its steps: up to 32 of them",
}
UNROLLED = 32
CHUNKED = 256

Run = Callable[..., Tensor]


def ours(case: Case) -> tuple[Run, list[Tensor]]:
    def run(u: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        return sru_recurrence(u, x, bias)[0]

    return run, drawn(case)


def drawn(case: Case) -> list[Tensor]:
    """u, x, bias."""
    new = partial(torch.randn, device=DEVICE, dtype=DTYPES[case.dtype])
    length, batch, size = case.length, case.batch, case.size
    return [new(length, batch, 3, size), new(length, batch, size), torch.zeros(2, size, device=DEVICE)]


def warp(case: Case) -> tuple[Run, list[Tensor]]:
    from accelerated_scan.warp import scan  # builds CUDA source when it is first imported

    if case.length & (case.length - 1) or not 32 <= case.length <= 65536:
        raise ValueError("accelerated-scan takes 32 to 65,536 steps, a power of 2")
    new = partial(torch.randn, case.batch, case.size, case.length, device=DEVICE, dtype=DTYPES[case.dtype])
    return scan, [new().sigmoid(), new()]


def hgrn(case: Case) -> tuple[Run, list[Tensor]]:
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn

    kernel = chunk_hgrn if case.length >= CHUNKED else fused_recurrent_hgrn
    new = partial(torch.randn, case.batch, case.length, case.size, device=DEVICE, dtype=DTYPES[case.dtype])

    def run(x: Tensor, g: Tensor) -> Tensor:
        return kernel(x, g)[0]  # type: ignore[no-any-return]

    return run, [new(), F.logsigmoid(new())]


def compiled(case: Case) -> tuple[Run, list[Tensor]]:
    if case.length > UNROLLED:
        raise ValueError(f"the definition is compiled for {UNROLLED} steps at most, which takes a minute")
    options = Options("tanh", False, 1.0)

    @partial(torch.compile, backend="inductor" if ON_GPU else "eager")
    def run(u: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        return reference(Tensors(u, x, bias), None, options)[0]

    return run, drawn(case)


MAKERS = {OURS: ours, WARP: warp, HGRN: hgrn, COMPILED: compiled}


def caller(name: str, case: Case) -> Function:
    run, inputs = MAKERS[name](case)
    if case.what == FORWARD:

        def function() -> object:
            with torch.no_grad():
                return run(*inputs)
    else:
        leaves = [t.requires_grad_() for t in inputs]
        gradient = torch.randn_like(run(*leaves))

        def function() -> object:
            return torch.autograd.grad(run(*leaves), leaves, gradient)

    function()  # what is compiled at the first call is not part of a capture
    return graphed(function, REPLAY) if case.mode == GRAPH else function


def callers(case: Case) -> dict[str, Function]:
    """Of those that are installed and run here."""
    found = {}
    for name in MAKERS:
        try:
            found[name] = caller(name, case)
        except Exception as error:  # others' builds end in anything
            if name == OURS and case.mode != GRAPH:
                raise
            failed(name, error)
    return found


def all_others(cases: Iterable[Case], turns: int, keep: Keep) -> None:
    def rows() -> Iterator[list[str]]:
        for case in tqdm(cases, disable=None, leave=False):
            functions = callers(case)
            if not functions:
                continue
            took = measure(functions, turns)
            entry: dict[str, Any] = {**case._asdict(), "ms": {name: s._asdict() for name, s in took.items()}}
            keep(entry)
            yield [str(case), *(short(took[name].median if name in took else None) for name in NAMES)]

    table("Recurrences alone, milliseconds:", ["case", *NAMES], rows())


def cases_of(shapes: list[tuple[int, int, int]], variants: list[tuple[str, str]]) -> list[Case]:
    return [Case(what, *s, *variant) for s in shapes for variant in variants for what in (FORWARD, BOTH)]
