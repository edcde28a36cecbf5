"""Matrix products in bfloat16 on a CPU, as ``torch.autocast("cpu", torch.bfloat16)`` asks for; sums are float32.

oneDNN generates code for each shape of a product that it meets, which takes longer than the product and is kept in
memory. Batches of text have each another number of tokens, so the rows are padded with zeros to a few sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FEW = 256  # rows; with fewer the weight is rounded again in the backward pass


def padded(rows: int) -> int:
    """Return the rows that a product of so many is computed with: a multiple of 16, at most 15 or an eighth more."""
    grain = max(16, 2 ** ((rows - 1).bit_length() - 4))
    return -(-rows // grain) * grain


def _operand(x: Tensor, rows: int) -> Tensor:
    if len(x) == rows:
        return x.to(torch.bfloat16)
    operand = x.new_empty(rows, x.size(1), dtype=torch.bfloat16)
    operand[: len(x)] = x
    operand[len(x) :] = 0
    return operand


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        operand, rounded = _operand(x, padded(len(x))), weight.to(torch.bfloat16)
        # a copy for each step of a loop would fill the memory
        ctx.save_for_backward(operand, weight if len(x) < FEW else rounded)
        return F.linear(operand, rounded, None if bias is None else bias.to(torch.bfloat16))[: len(x)]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        operand, weight = ctx.saved_tensors
        padded_grad = _operand(grad, len(operand))
        return (
            (padded_grad @ weight.to(torch.bfloat16))[: len(grad)] if ctx.needs_input_grad[0] else None,
            padded_grad.t() @ operand if ctx.needs_input_grad[1] else None,
            grad.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias`` in bfloat16, for operands of any dtype.

    Args:
        x: ``(..., in_features)``, on a CPU.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features)``.

    Its gradients can't be differentiated again, which torch says where it is tried.
    """
    out = _Linear.apply(x.reshape(-1, x.size(-1)), weight, bias)
    return out.view(*x.shape[:-1], weight.size(0))  # type: ignore[no-any-return]
