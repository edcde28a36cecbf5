"""The convolution before an encoder layer's unit, by which its gates see the neighbouring tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        kernel_size, length = len(self.weight), len(x)
        left = kernel_size // 2
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        x = F.pad(x, (0, 0, 0, 0, left, kernel_size - 1 - left))
        # F.conv1d wants time last; with its transposes it takes 1.5 to 2 times as long on a CPU
        y = self.weight[0] * x[:length]
        for k in range(1, kernel_size):
            y = torch.addcmul(y, self.weight[k], x[k : k + length])
        return y
