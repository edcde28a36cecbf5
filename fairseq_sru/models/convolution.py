"""The convolution before an encoder layer's unit, by which its gates see the neighbouring tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def taps(kernel_size: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """For each k but the position's own: k, the positions that see another one by it, and those that they see."""
    left = kernel_size // 2
    for k in range(kernel_size):
        ahead = k - left
        if 0 < abs(ahead) < length:
            yield k, slice(max(0, -ahead), length - max(0, ahead)), slice(max(0, ahead), length + min(0, ahead))


class _Convolve(torch.autograd.Function):
    """In place, without padding: a third to a half of the time of the same by autograd on a CPU. F.conv1d wants time
    last, and takes longer than either with its transposes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        y = x * weight[len(weight) // 2]
        for k, seeing, seen in taps(len(weight), len(x)):
            y[seeing].addcmul_(x[seen], weight[k])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        own = len(weight) // 2
        grad_x, grad_weight = grad * weight[own], torch.zeros_like(weight)
        grad_weight[own] = (grad * x).sum((0, 1))
        for k, seeing, seen in taps(len(weight), len(x)):
            grad_x[seen].addcmul_(grad[seeing], weight[k])
            grad_weight[k] = (grad[seeing] * x[seen]).sum((0, 1))
        return grad_x, grad_weight


class Convolution(nn.Module):
    """Depthwise convolution over time: ``y[t, i] = sum_k weight[k, i] x[t + k - kernel_size // 2, i]``.

    SRU's gates read x[t] alone; LSTM's read the output of the step before, too. QRNN's (Bradbury et al. 2017) read a
    window of the input. This one sees both sides, so it is for encoders. It starts as the identity with a little of
    the neighbours.

    Args:
        size: features of x.
        kernel_size: positions that one sees; its own is in their middle (right of it for an even number).
    """

    def __init__(self, size: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel_size, size))
        nn.init.uniform_(self.weight, -0.5, 0.5)
        with torch.no_grad():
            self.weight[kernel_size // 2] += 1.0

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Convolve.

        Args:
            x: ``(length, batch, size)``.
            padding_mask: ``(length, batch)`` bool, True at padding, which counts as 0; None for none.

        Returns:
            ``(length, batch, size)``.
        """
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        return _Convolve.apply(x, self.weight)  # type: ignore[no-any-return]
