"""Attention of decoder states over encoder outputs.

Keys, values and mask depend only on the source: ``project`` computes them, once a sentence, and ``forward`` reads them
at every step. In beam search the batch has several rows a sentence, one a hypothesis, next to one another: the rows
then share what is their sentence's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.linear import Linear
from .dropout import Dropout


class Source(NamedTuple):
    """The part of the source that attention reads.

    ``key``: ``(sentences, heads, src_len, head_size)``. ``value``: ``(sentences, heads, src_len, value_size)``.
    ``mask``: ``(sentences, 1, 1, src_len)``, what is added to the scores: 0, and -inf at padding. A source of
    padding only has 0, since a softmax of nothing is NaN.
    """

    key: Tensor
    value: Tensor
    mask: Tensor


class Read(NamedTuple):
    """Sources of a decoder's attentions in the decoding that has an incremental ``state``, with gradients
    ``recorded`` or not."""

    state: dict[str, Any] | None
    recorded: bool
    sources: list[Source]


def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """torch's; in float32 under autocast on a CPU, where torch's kernel for bfloat16 takes several times as long."""
    if query.is_cpu and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return dot_product_attention(query.float(), key.float(), value.float(), mask, scale, dropout)
    mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)


def _source(key: Tensor, value: Tensor, padding_mask: Tensor) -> Source:
    padding_mask = padding_mask & ~padding_mask.all(1, keepdim=True)
    mask = key.new_zeros(padding_mask.shape).masked_fill_(padding_mask, -math.inf)
    return Source(key, value, mask[:, None, None, :])


def attend(
    query: Tensor,
    source: Source,
    scale: float,
    need_weights: bool,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Return ``dropout(softmax(scale query key^T + bias)) value`` for each head, ``(tgt_len, batch, heads *
    value_size)``.

    query is ``(tgt_len, batch, heads * head_size)``, batch a multiple of the source's sentences, bias of
    :class:`Coverage`. With need_weights, return the weights before dropout ``(batch, tgt_len, src_len)``, averaged over
    heads, too; else None.
    """
    # torch's own attention differentiates no mask but by products that take longer than these
    products = need_weights or (bias is not None and bias.requires_grad and query.is_cpu)
    if products and query.is_cpu and torch.is_autocast_enabled("cpu"):
        # in bfloat16 each of the many shapes of these small products needs code of its own (layers/bfloat16.py)
        with torch.autocast("cpu", enabled=False):
            wide = Source(source.key.float(), source.value.float(), source.mask)
            return attend(query.float(), wide, scale, need_weights, bias, dropout)
    key, value, mask = source
    tgt_len, batch, _ = query.shape
    sentences, heads, _, head_size = key.shape
    rows = batch // sentences
    query = query.reshape(tgt_len, sentences, rows, heads, head_size).permute(1, 3, 2, 0, 4).flatten(2, 3)
    if bias is not None:
        mask = mask + bias.unflatten(0, (sentences, rows)).transpose(1, 2).flatten(2, 3)
    weights = None
    if products:
        scores = (scale * query) @ key.transpose(-1, -2)  # in this order for float16's range
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        probabilities = torch.softmax(scores + mask, dim=-1)
        context = F.dropout(probabilities, dropout).to(value.dtype) @ value
        weights = probabilities.mean(dim=1).view(batch, tgt_len, -1) if need_weights else None
    else:
        context = dot_product_attention(query, key, value, mask, scale, dropout)
    context = context.unflatten(2, (rows, tgt_len)).permute(3, 0, 2, 1, 4)
    return context.reshape(tgt_len, batch, -1), weights


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2) of queries and results of query_size
    features, which heads divides; dropout: on the weights."""

    def __init__(self, query_size: int, source_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = Dropout(dropout, module_name=type(self).__name__)
        self.scale = 1 / math.sqrt(query_size // heads)
        self.query = Linear(query_size, query_size, bias=False)
        self.key_value = Linear(source_size, 2 * query_size, bias=False)
        self.out = Linear(query_size, query_size, bias=False)
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.xavier_uniform_(self.key_value.weight)
        nn.init.xavier_uniform_(self.out.weight)

    def project(self, source: Tensor, padding_mask: Tensor) -> Source:
        """Return keys and values of encoder outputs ``(src_len, sentences, source_size)``; padding_mask: ``(sentences,
        src_len)`` bool, True at padding."""
        key, value = self.key_value(source).unflatten(-1, (2, self.heads, -1)).permute(2, 1, 3, 0, 4)
        return _source(key, value, padding_mask)

    def forward(
        self, x: Tensor, source: Source, need_weights: bool, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: decoder states ``(tgt_len, batch, query_size)``, the source of :meth:`project` and the bias of
        :class:`Coverage` to the same size, and the weights as :func:`attend` gives them."""
        context, weights = attend(self.query(x), source, self.scale, need_weights, bias, self.dropout.rate)
        return self.out(context), weights


class Coverage(nn.Module):
    """Bias of an attention's scores for the places that have been attended to before.

    Tu et al. 2016 keep, for each source position, the sum of the attention weights of all steps so far, and let it
    enter the scores of the next step, which makes attention run step by step. Here the sum is of the weights of the
    attention below, which training has for all steps at once, as in CoMER (Zhao and Gao 2022): one cumulative sum. With
    ``past[t] = w[0] + ... + w[t - 1]``, each of the heads adds ``a past + 4 b tanh(past) + 4 c w[t]``; a, b and c are
    learnt and start at 0.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, heads))

    def forward(self, weights: Tensor, past: Tensor | None, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Sum up, in float32 at least.

        ``weights`` of the attention below are ``(batch, tgt_len, src_len)``, ``past`` is their sum over earlier steps,
        ``(batch, src_len)``, zeros if None; steps where padding_mask ``(batch, tgt_len)`` is True count nothing. Return
        what to add to the scores, ``(batch, heads, tgt_len, src_len)``, and the sum with these steps.
        """
        weights = weights.masked_fill(padding_mask[:, :, None], 0.0)
        past = torch.zeros_like(weights[:, 0]) if past is None else past
        sums = torch.cat([past[:, None], weights], dim=1).cumsum(1)
        before = sums[:, :-1]
        bias = sum(
            a[:, None, None] * x[:, None]
            for a, x in zip(self.weight, (before, 4 * before.tanh(), 4 * weights), strict=True)
        )
        return bias, sums[:, -1]


class GlobalAttention(nn.Module):
    """Global attention with the "general" score (Luong et al. 2015, section 3.1): ``tanh(W_c [context; x])``, of
    out_size features; dropout: on the weights."""

    def __init__(self, query_size: int, source_size: int, out_size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout, module_name=type(self).__name__)
        self.key = Linear(source_size, query_size, bias=False)
        self.out = Linear(source_size + query_size, out_size, bias=False)
        nn.init.xavier_uniform_(self.key.weight)
        nn.init.xavier_uniform_(self.out.weight)

    def project(self, source: Tensor, padding_mask: Tensor) -> Source:
        """Return the same as :meth:`Attention.project`; there is one head, and values are the encoder outputs."""
        source = source.transpose(0, 1).unsqueeze(1)
        return _source(self.key(source), source, padding_mask)

    def forward(self, x: Tensor, source: Source, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        """Attend as :meth:`Attention.forward`, but for the result's ``out_size`` features."""
        context, weights = attend(x, source, 1.0, need_weights, None, self.dropout.rate)
        return torch.tanh(self.out(torch.cat([context, x], dim=-1))), weights
