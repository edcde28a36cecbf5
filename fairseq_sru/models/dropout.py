"""Dropout of the models: fairseq's, with masks that a CPU draws faster."""

from __future__ import annotations

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor

LEVELS = 2**16


class Dropout(FairseqDropout):
    """fairseq's dropout, which ``--retain-dropout`` can keep in decoding.

    On a CPU torch draws one number after the other, which is an eighth of an update of the models here. This takes 16
    bits a number from 64 that are drawn at once, so the probability is rounded to 1 / 65536; what is kept is scaled by
    the rounded one, so that the mean is right.

    Args:
        p: probability that an element becomes 0.
        module_name: by which ``--retain-dropout-modules`` knows it.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """``x`` of any shape, dropped out in training; a new tensor unless ``inplace`` on a GPU."""
        active = self.p > 0 and (self.training or self.apply_during_inference)
        level = round((1 - self.p) * LEVELS)
        if not active or not 0 < level < LEVELS or not x.is_cpu or torch.compiler.is_compiling():
            return super().forward(x, inplace)  # type: ignore[no-any-return]
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) < level - LEVELS // 2
        return x * kept.to(x.dtype).mul_(LEVELS / level)
