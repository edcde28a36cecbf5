"""Multi-head attention of decoder states over encoder outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..linear import Linear


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2) from decoder to encoder.

    Keys and values depend on the source alone: :meth:`project` computes them once a sentence, :meth:`forward` reads
    them at every step.

    Args:
        query_size: features of the decoder states, and of the result.
        source_size: features of the encoder outputs.
        heads: number of heads; divides query_size.
    """

    def __init__(self, query_size: int, source_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(query_size, query_size, bias=False)
        self.key_value = Linear(source_size, 2 * query_size, bias=False)
        self.out = Linear(query_size, query_size, bias=False)
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.xavier_uniform_(self.key_value.weight)
        nn.init.xavier_uniform_(self.out.weight)

    def _split(self, x: Tensor) -> Tensor:
        """``(length, batch, features)`` to ``(batch, heads, length, features / heads)``."""
        length, batch, size = x.shape
        return x.view(length, batch, self.heads, size // self.heads).permute(1, 2, 0, 3)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each ``(batch, heads, src_len, head_size)``, of encoder outputs ``(src_len, batch,
        features)``."""
        key, value = self.key_value(source).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: decoder states ``(tgt_len, batch, query_size)``.
            key: from :meth:`project`.
            value: from :meth:`project`.
            padding_mask: ``(batch, src_len)`` bool, True at source padding.
            need_weights: return the weights, too.

        Returns:
            ``(tgt_len, batch, query_size)``, and the weights ``(batch, tgt_len, src_len)`` averaged over heads, or
            None.
        """
        query = self._split(self.query(x))
        visible = ~padding_mask[:, None, None, :]
        weights = None
        if need_weights:
            scores = (query / math.sqrt(query.size(-1))) @ key.transpose(-1, -2)  # in this order for float16's range
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            probabilities = torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1)
            context = probabilities.to(value.dtype) @ value
            weights = probabilities.mean(dim=1)
        else:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out(context.permute(2, 0, 1, 3).flatten(2)), weights
