"""The convolution before a layer's unit, by which its gates see the neighbouring tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..recurrence.modes import batched, eager, transformed
from ..recurrence.native_call import call, compiled

NAMES = ("run_convolved", "run_convolved_gradient")


def taps(kernel_size: int, own: int) -> Iterator[tuple[int, slice, slice]]:
    """For each k but the position's own: k, the positions that see another one by it, and those that they see, whatever
    the length, so that a trace is for all."""
    for k in range(kernel_size):
        if ahead := k - own:
            first, last = slice(None, -abs(ahead)), slice(abs(ahead), None)
            yield (k, first, last) if ahead > 0 else (k, last, first)


def _compiled(x: Tensor, weight: Tensor) -> list[Any] | None:
    """What computes it in one pass over memory; None where torch has to."""
    usual = x.is_cpu and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64) and x.numel() > 0
    return compiled("convolution.cpp", x.dtype, NAMES) if usual and eager() else None


class _Convolve(torch.autograd.Function):
    """Compiled; else in place, without padding: a third to a half of the time of the same by autograd on a CPU.
    F.conv1d wants time last, and takes longer than either with its transposes."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, padding_mask: Tensor | None, own: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, padding_mask)
        ctx.own = own
        if (functions := _compiled(x, weight)) is not None:
            y = x.new_empty(x.shape)
            given = (*_in_order(x, weight, padding_mask), y)
            call(functions[0], x.size(1), x.numel(), *given, *x.shape, len(weight), own)
            return y
        return _in_torch(x, weight, padding_mask, own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        x, weight, padding_mask = ctx.saved_tensors
        own = ctx.own
        compiling = torch.compiler.is_compiling()  # which can't read what follows
        once = not (compiling or torch.is_grad_enabled() or batched(grad)) and grad.dtype == x.dtype
        if once and (functions := _compiled(x, weight)) is not None:
            grad_x, each = x.new_empty(x.shape), x.new_empty(x.size(1), *weight.shape)
            given = (*_in_order(x, weight, padding_mask, grad), grad_x, each)
            call(functions[1], x.size(1), 2 * x.numel(), *given, *x.shape, len(weight), own)
            return grad_x, each.sum(0), None, None
        x = _without(padding_mask, x)
        grad_x, grad_weight = grad * weight[own], torch.zeros_like(weight)
        grad_weight[own] = (grad * x).sum((0, 1))
        for k, seeing, seen in taps(len(weight), own):
            grad_x[seen].addcmul_(grad[seeing], weight[k])
            grad_weight[k] = (grad[seeing] * x[seen]).sum((0, 1))
        return _without(padding_mask, grad_x), grad_weight, None, None


def _in_torch(x: Tensor, weight: Tensor, padding_mask: Tensor | None, own: int) -> Tensor:
    x = _without(padding_mask, x)
    y = x * weight[own]
    for k, seeing, seen in taps(len(weight), own):
        y[seeing].addcmul_(x[seen], weight[k])
    return y


def _in_order(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _without(padding_mask: Tensor | None, x: Tensor) -> Tensor:
    return x if padding_mask is None else x.masked_fill(padding_mask.unsqueeze(-1), 0.0)


class Convolution(nn.Module):
    """Depthwise convolution over time: ``y[t, i] = sum_k weight[k, i] x[t + k - kernel_size // 2, i]``.

    SRU's gates read x[t] alone; LSTM's read the output of the step before, too. QRNN's (Bradbury et al. 2017) read a
    window of the input. This one sees both sides, so it is for encoders. It starts as the identity with a little of
    the neighbours.

    Args:
        size: features of x.
        kernel_size: positions that one sees.
        own: which of them is its own; in their middle if None (right of it for an even number).
    """

    def __init__(self, size: int, kernel_size: int, own: int | None = None) -> None:
        super().__init__()
        self.own = kernel_size // 2 if own is None else own
        self.weight = nn.Parameter(torch.empty(kernel_size, size))
        nn.init.uniform_(self.weight, -0.5, 0.5)
        with torch.no_grad():
            self.weight[self.own] += 1.0

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Convolve.

        Args:
            x: ``(length, batch, size)``.
            padding_mask: ``(length, batch)`` bool, True at padding, which counts as 0; None for none.

        Returns:
            ``(length, batch, size)``.
        """
        plain = torch.jit.is_tracing() or transformed()  # neither takes an autograd.Function
        convolve = _in_torch if plain else _Convolve.apply
        return convolve(x, self.weight, padding_mask, self.own)  # type: ignore[no-any-return]


class CausalConvolution(Convolution):
    """As :class:`Convolution`, of a position and those before it: ``y[t, i] = sum_k weight[k, i] x[t + k + 1 -
    kernel_size, i]``. So it is for language models, whose state it adds to: the last ``kernel_size - 1`` inputs.

    Args:
        size: features of x.
        kernel_size: positions that one sees; its own is the last.
    """

    def __init__(self, size: int, kernel_size: int) -> None:
        super().__init__(size, kernel_size, own=kernel_size - 1)

    def forward(  # type: ignore[override]
        self, x: Tensor, padding_mask: Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            x: ``(length, batch, size)``.
            padding_mask: ``(length, batch)`` bool, True at padding, which counts as 0; None for none.
            before: ``(batch, (kernel_size - 1) * size)``, the inputs before x, the latest last; zeros if None.

        Returns:
            ``(length, batch, size)``, and before for what follows the last real position.
        """
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
