"""The convolution before a layer's unit, by which its gates see the neighbouring tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..recurrence.modes import batched, eager
from ..recurrence.native_call import call, compiled

NAMES = ("run_convolved", "run_convolved_gradient")


def _compiled(x: Tensor, weight: Tensor) -> list[Any] | None:
    """Return the functions that compute it in one pass over memory; None where torch has to."""
    usual = x.is_cpu and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64) and x.numel() > 0
    return compiled("convolution.cpp", x.dtype, NAMES) if usual and eager() else None


class _Convolve(torch.autograd.Function):
    """Compiled: in one pass over memory forward, and in one backward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, functions: list[Any], x: Tensor, weight: Tensor, padding_mask: Tensor | None, own: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, padding_mask)
        ctx.functions, ctx.own = functions, own
        y = x.new_empty(x.shape)
        tensors = (*_in_order(x, weight, padding_mask), y)
        call(functions[0], x.size(1), x.numel(), *tensors, *x.shape, len(weight), own)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None, None]:  # type: ignore[override]
        x, weight, padding_mask = ctx.saved_tensors
        if torch.is_grad_enabled() or batched(grad):
            gradients = torch.func.vjp(lambda x, weight: _in_torch(x, weight, padding_mask, ctx.own), x, weight)[1]
            return None, *gradients(grad), None, None
        grad_x, each = x.new_empty(x.shape), x.new_empty(x.size(1), *weight.shape)
        tensors = (*_in_order(x, weight, padding_mask, grad), grad_x, each)
        call(ctx.functions[1], x.size(1), 2 * x.numel(), *tensors, *x.shape, len(weight), ctx.own)
        return None, grad_x, each.sum(0), None, None


def _in_torch(x: Tensor, weight: Tensor, padding_mask: Tensor | None, own: int) -> Tensor:
    x = _without(padding_mask, x)
    last = len(weight) - 1
    padded = F.pad(x, (0, 0, 0, 0, own, last - own))
    y = padded[last:] * weight[last]
    for k in range(last):  # ends counted from the back, so that a trace is for all lengths
        y = y + padded[k : k - last] * weight[k]
    return y


def _in_order(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _without(padding_mask: Tensor | None, x: Tensor) -> Tensor:
    return x if padding_mask is None else x.masked_fill(padding_mask.unsqueeze(-1), 0.0)


class Convolution(nn.Module):
    """Depthwise convolution over time: ``y[t, i] = sum_k weight[k, i] x[t + k - own, i]``; own: which of the
    kernel_size positions is its own, in their middle if None (right of it for an even number).

    SRU's gates read only x[t]; LSTM's read the output of the step before, too. QRNN's (Bradbury et al. 2017) read a
    window of the input. This one sees both sides, so it is for encoders. It starts as the identity with a little of the
    neighbours.
    """

    def __init__(self, size: int, kernel_size: int, own: int | None = None) -> None:
        super().__init__()
        self.own = kernel_size // 2 if own is None else own
        self.weight = nn.Parameter(torch.empty(kernel_size, size))
        nn.init.uniform_(self.weight, -0.5, 0.5)
        with torch.no_grad():
            self.weight[self.own] += 1.0

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Convolve x ``(length, batch, size)``; padding, where padding_mask ``(length, batch)`` is True, counts as
        0."""
        functions = _compiled(x, self.weight)
        if functions is None:
            return _in_torch(x, self.weight, padding_mask, self.own)
        return _Convolve.apply(functions, x, self.weight, padding_mask, self.own)  # type: ignore[no-any-return]


class CausalConvolution(Convolution):
    """A :class:`Convolution` of a position and those before it: ``y[t, i] = sum_k weight[k, i] x[t + k + 1 -
    kernel_size, i]``. So it is for language models, whose state it adds to: the last ``kernel_size - 1`` inputs."""

    def __init__(self, size: int, kernel_size: int) -> None:
        super().__init__(size, kernel_size, own=kernel_size - 1)

    def forward(  # type: ignore[override]
        self, x: Tensor, padding_mask: Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Convolve as :class:`Convolution` after the inputs ``before``, ``(batch, (kernel_size - 1) * size)``, the
        latest last, zeros if None; return before for what follows the last real position, too."""
        x = _without(padding_mask, x)
        if not len(x):
            return x, x.new_zeros(x.size(1), self.own * x.size(2)) if before is None else before
        if before is None:
            seen, y = x, super().forward(x, None)
        else:
            seen = torch.cat([before.to(x.dtype).unflatten(-1, (self.own, -1)).transpose(0, 1), x])
            y = super().forward(seen, None)[self.own :]
        steps = torch.arange(1, len(x) + 1, device=x.device).unsqueeze(-1).expand(x.shape[:-1])
        real = (steps if padding_mask is None else steps.masked_fill(padding_mask, 0)).amax(0)  # up to the last one
        at = real + torch.arange(-self.own, 0, device=x.device).unsqueeze(-1) + len(seen) - len(x)
        last = seen.gather(0, at.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.size(-1)))
        return y, last.masked_fill(at.unsqueeze(-1) < 0, 0.0).transpose(0, 1).flatten(1)
