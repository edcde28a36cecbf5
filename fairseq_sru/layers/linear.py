"""The matrix product of the layers: torch's own, but for float32 on a CPU other than Intel's, where oneDNN's is used
when torch has it.

torch computes float32 products on a CPU with MKL. oneDNN, which every CPU build of torch also carries, takes half of
MKL's time on AMD processors (AVX-512, one thread, products of an SRU layer's size); on Intel's they are equal, and MKL
needs no transposed copy for the gradient of the weight. oneDNN's operator is the one that torch.compile emits; it has
no gradient of its own. A call of it costs 5 microseconds more than one of MKL, which small products don't win back.

A product of few rows, as in decoding, spends much of its time on turning the weight, unless that lies in memory by
columns (:func:`by_columns`): then both are faster, oneDNN for several rows, MKL for one.
"""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..recurrence.modes import batched, transformed
from . import bfloat16

# large tensors in large pages of memory, where Linux has them: training is faster; read at the first tensor
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# cuDNN's attention, which torch prefers on an H100 in 16 bits, is compiled for each shape: text has new ones always
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
_intel = False
with suppress(OSError):  # there is no such file, or it can't be read
    _intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(errors="replace")
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise") and not _intel
SMALL = 2**18  # multiplications


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def by_columns(weight: Tensor) -> Tensor:
    """Return the same weight, laid out in memory as products of few rows read it fastest; itself where that isn't known
    to help.

    Args:
        weight: ``(out_features, in_features)``.
    """
    if not _ONEDNN or not weight.is_cpu or weight.dtype != torch.float32:
        return weight
    return weight.t().contiguous().t()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if x.stride(0) < x.size(1) * max(x.stride(1), 1):  # rows that overlap; oneDNN takes no such weight
            x = x.contiguous()
        # with create_graph=True, products that autograd can differentiate again
        product = (lambda a, b: a @ b.t()) if torch.is_grad_enabled() or batched(grad) else _product
        return (
            product(grad, weight.t()) if ctx.needs_input_grad[0] else None,
            product(grad.t(), x.t()) if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``, as torch.nn.functional.linear; by :mod:`bfloat16` where autocast asks for that on a CPU.

    Args:
        x: ``(..., in_features)``.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features)``.
    """
    autocast = torch.is_autocast_enabled("cpu")
    special = (
        torch.compiler.is_compiling()  # first: the size that follows would make it compile again
        or torch.jit.is_tracing()
        or not x.is_cpu
        or not torch.backends.mkldnn.enabled
        or transformed()
        or torch._C._len_torch_dispatch_stack() > 0  # what looks at operators knows torch's own: FLOPs, checkpoints
        or x.dtype == torch.float64  # which autocast leaves
    )
    if autocast and not special and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        warn_if_slower()
        return bfloat16.linear(x, weight, bias)
    plain = (
        special
        or autocast
        or not _ONEDNN
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() * weight.size(0) <= SMALL
        or (x.numel() == weight.size(1) and weight.stride(0) == 1)
    )
    if plain:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        out = _Linear.apply(x.reshape(-1, x.size(-1)), weight, bias)
        return out.view(*x.shape[:-1], weight.size(0))  # type: ignore[no-any-return]
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear that computes with :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return linear(x, self.weight, self.bias)


@functools.cache
def bfloat16_gain() -> float:
    """Return how many times as fast as in float32 a product of a layer's size is in bfloat16 here, on one thread.
    Measured once a process, in less than a second: the best of some in turns."""
    draw = torch.Generator().manual_seed(0)  # torch's own draws what training drops out, which must not depend on this
    x, weight = (torch.randn(n, 512, generator=draw, device="cpu", dtype=torch.float32) for n in (1024, 1536))
    best = {linear: math.inf, bfloat16.linear: math.inf}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another where other work runs: up to ten times as long
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for _ in range(8):
                for function in best:
                    begin = time.perf_counter()
                    function(x, weight)
                    best[function] = min(best[function], time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return best[linear] / best[bfloat16.linear]


def bfloat16_pays() -> bool:
    """Return True if training is faster with it here; casts take some of what the products gain."""
    return bfloat16_gain() > 1.25


@functools.cache
def warn_if_slower() -> None:
    """Say once if this processor multiplies bfloat16 no faster than float32."""
    if bfloat16_gain() < 1:
        warnings.warn(
            f"products in bfloat16 are {bfloat16_gain():.2f} times as fast as in float32 on this processor: leave "
            "--amp, --bf16 or torch.autocast out",
            stacklevel=3,
        )
