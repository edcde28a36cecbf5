"""Layers of the Transformer with SRU: each block is ``x + dropout(block(layer_norm(x)))``, pre-norm and residual."""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.linear import Linear
from .attention import Source, dot_product_attention
from .base_decoder import AttendingLayer
from .dropout import Dropout
from .embeddings import biased
from .recurrent import State
from .units import SRU


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2) of features that heads divides; dropout: on the
    weights."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout, module_name=type(self).__name__)
        self.heads = heads
        self.query_key_value = Linear(size, 3 * size, bias=False)
        self.out = Linear(size, size, bias=False)
        nn.init.xavier_uniform_(self.query_key_value.weight)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, x: Tensor, visible: Tensor, earlier: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Attend from x ``(length, batch, size)`` to x and the keys and values of earlier steps.

        visible is bool, broadcasts to ``(batch, heads, length, positions)``, and has which positions, the earlier ones
        included, each step sees. Return ``(length, batch, size)``, and keys and values of all positions, ``(batch,
        heads, positions, head_size)``.
        """
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 1, 3, 0, 4)
        if earlier is not None:
            key, value = torch.cat([earlier[0], key], dim=2), torch.cat([earlier[1], value], dim=2)
        context = dot_product_attention(query, key, value, visible, dropout=self.dropout.rate)
        return self.out(context.permute(2, 0, 1, 3).flatten(2)), key, value


class FeedForward(nn.Module):
    """``W_2 relu(W_1 x + b_1) + b_2`` (Vaswani et al. 2017, equation 2), or with the kind ``sru`` ``W sru(x) + b`` (Lei
    et al. 2018, on translation), with the cell of 2018.

    The residual connection around the block is the skip path, so the SRU has no highway term. A bidirectional one has
    half of the ``inner`` features in each direction; rnn_dropout: on its input.
    """

    def __init__(self, size: int, inner: int, kind: str, rnn_dropout: float, bidirectional: bool) -> None:
        super().__init__()
        self.inner: Linear | None = None
        self.sru: SRU | None = None
        if kind == "sru":
            self.sru = SRU(
                size,
                inner // 2 if bidirectional else inner,
                rnn_dropout=rnn_dropout,
                use_tanh=0,
                bidirectional=bidirectional,
                highway=False,
                v1=False,
            )
        else:
            self.inner = biased(size, inner)
        self.out = biased(inner, size)

    def forward(self, x: Tensor, c0: Tensor | None, padding_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs for x ``(length, batch, size)`` and the SRU's last state ``(batch, inner)``, or None. c0:
        that before the first step, zeros if None; padding_mask ``(length, batch)``: True at padding."""
        if self.sru is not None:
            h, c = self.sru(x, c0, padding_mask)
            return self.out(h), c
        assert self.inner is not None
        return self.out(F.relu(self.inner(x))), None


class TransformerSRUEncoderLayer(nn.Module):
    """Self-attention, then :class:`FeedForward`, whose SRU is bidirectional."""

    def __init__(self, cfg: Namespace) -> None:
        super().__init__()
        size, inner = cfg.encoder_embed_dim, cfg.encoder_ffn_embed_dim
        self.self_attention_norm = nn.LayerNorm(size)
        self.self_attention = SelfAttention(size, cfg.encoder_attention_heads, cfg.attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.feed_forward = FeedForward(size, inner, cfg.feed_forward, cfg.rnn_dropout, bidirectional=True)
        self.dropout = Dropout(cfg.dropout, module_name=type(self).__name__)

    def forward(self, x: Tensor, visible: Tensor, padding_mask: Tensor) -> Tensor:
        """``(length, batch, size)`` to the same; visible as in :class:`SelfAttention`, padding_mask as in
        :class:`FeedForward`."""
        x = self.dropout.plus(x, self.self_attention(self.self_attention_norm(x), visible)[0])
        return self.dropout.plus(x, self.feed_forward(self.feed_forward_norm(x), None, padding_mask)[0])


class TransformerSRUDecoderLayer(AttendingLayer):
    """SRU, SSRU or self-attention; attention over the source; :class:`FeedForward`, whose SRU runs forward.

    ``ssru`` is ``f_t = sigmoid(W_f x_t + b)``, ``c_t = f_t c_{t-1} + (1 - f_t) W x_t``, ``relu(c_t)`` (Kim et al.
    2019); ``sru`` is the cell of 2017 without the highway term, in whose place there is the residual connection.
    """

    def __init__(self, cfg: Namespace, source_size: int, coverage: bool) -> None:
        super().__init__()
        size, heads, rnn_dropout = cfg.decoder_embed_dim, cfg.decoder_attention_heads, cfg.rnn_dropout
        self.autoreg_norm = nn.LayerNorm(size)
        self.self_attention: SelfAttention | None = None
        self.sru: SRU | None = None
        if cfg.decoder_autoreg == "self-attention":
            self.self_attention = SelfAttention(size, heads, cfg.attention_dropout)
        elif cfg.decoder_autoreg == "ssru":
            self.sru = SRU(size, size, rnn_dropout=rnn_dropout, use_relu=1, reset_gate=False)
        else:
            self.sru = SRU(size, size, rnn_dropout=rnn_dropout, highway=False)
        self.add_attention(size, source_size, heads, coverage, cfg.attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(size)
        inner = cfg.decoder_ffn_embed_dim
        self.feed_forward = FeedForward(size, inner, cfg.feed_forward, rnn_dropout, bidirectional=False)
        self.dropout = Dropout(cfg.dropout, module_name=type(self).__name__)

    def forward(
        self,
        x: Tensor,
        state: State,
        source: Source | None,
        need_weights: bool,
        below: Tensor | None,
        padding_mask: Tensor,
        visible: Tensor | None,
    ) -> tuple[Tensor, State, Tensor | None]:
        """Run the layer: arguments and results are those of :meth:`AttendingLayer.attend`, and between them the state.

        That is ``c`` ``(batch, size)``, or ``key`` and ``value`` ``(batch, heads, positions, head_size)``; with an SRU
        in the feed-forward block its ``inner_c`` ``(batch, inner)``. visible: of :class:`SelfAttention`.
        """
        after: State = {}
        h = self.autoreg_norm(x)
        if self.sru is not None:
            h, after["c"] = self.sru(h, state.get("c"), padding_mask)
        else:
            assert self.self_attention is not None and visible is not None
            earlier = (state["key"], state["value"]) if state else None
            h, after["key"], after["value"] = self.self_attention(h, visible, earlier)
        x = self.dropout.plus(x, h)
        x, weights = self.attend(x, state, after, source, need_weights, below, padding_mask)
        h, inner = self.feed_forward(self.feed_forward_norm(x), state.get("inner_c"), padding_mask)
        if inner is not None:
            after["inner_c"] = inner
        return self.dropout.plus(x, h), after, weights
