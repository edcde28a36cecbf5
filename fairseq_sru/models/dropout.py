"""Dropout with masks that a CPU draws faster, of fairseq's own models, too."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor

from ..recurrence.native_call import call, compiled

LEVELS = 2**16
BLOCK = 512  # of kernels/dropout.cpp
NAMES = ("run_dropped", "run_dropped_sum", "run_dropped_gradient")


class _Dropped(torch.autograd.Function):
    """``sum + dropout(x)`` for a sum of float32, or ``dropout(x)`` in ``dtype``; the same mask for the same seed."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, sum: Tensor | None, dtype: torch.dtype, seed: int, level: int
    ) -> Tensor:
        ctx.drawn = x.dtype, seed, level
        if sum is None and x.dtype.itemsize < dtype.itemsize:  # the gradient of a gradient
            x = x.to(dtype)
        x = x.contiguous()
        y = x.new_empty(x.shape, dtype=dtype)
        functions = compiled("dropout.cpp", min(x.dtype, dtype, key=lambda d: d.itemsize), NAMES)
        assert functions is not None
        entry = functions[0 if x.dtype == dtype and sum is None else 2 if sum is None else 1]
        tensors = (x, y) if sum is None else (x, sum.contiguous(), y)
        blocks = -(-x.numel() // BLOCK)
        call(entry, blocks, x.numel(), *tensors, x.numel(), seed, level, LEVELS / level)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dtype, seed, level = ctx.drawn
        grad_sum = grad if ctx.needs_input_grad[1] else None
        return _Dropped.apply(grad, None, dtype, seed, level), grad_sum, None, None, None


def fused_dropout(x: Tensor, p: float) -> Tensor | None:
    """Return ``x`` with each element 0 with a probability of ``p`` and the others larger, so that the mean stays; None
    where torch has to do it.

    On a CPU torch draws one number after the other, which is an eighth of an update of the models here. This draws many
    at once, 16 bits each, so the probability is rounded to 1 / 65536; the others are scaled by the rounded one.
    """
    level = _level(x, p)
    return None if level is None else _Dropped.apply(x, None, x.dtype, _seed(), level)  # type: ignore[no-any-return]


class Dropout(FairseqDropout):
    """fairseq's dropout, which ``--retain-dropout`` can keep in decoding, and whose module_name
    ``--retain-dropout-modules`` knows; it takes :func:`fused_dropout` where it can."""

    @property
    def rate(self) -> float:
        """The probability as things are: 0 in evaluation, where ``--retain-dropout`` doesn't keep it."""
        return self.p if self.training or self.apply_during_inference else 0.0

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual + dropout(x)``, in one pass where that is possible."""
        level = _level(x, self.rate)
        if level is None or residual.dtype != torch.float32 or residual.shape != x.shape:
            return residual + self(x)
        return _Dropped.apply(x, residual, torch.float32, _seed(), level)  # type: ignore[no-any-return]


def _level(x: Tensor, p: float) -> int | None:
    """Below which a draw keeps its element; None where torch has to do it."""
    level = round((1 - p) * LEVELS)
    usual = x.is_cpu and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    if not (usual and 0 < level < LEVELS and x.dtype in (torch.float32, torch.bfloat16)):
        return None
    return level if compiled("dropout.cpp", x.dtype, NAMES) else None


def _seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
