"""The SRU decoder: all target positions at once in training, one step at a time in decoding."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax, FairseqDropout
from torch import Tensor, nn

from ..linear import Linear, linear
from .attention import Attention, GlobalAttention
from .encoder import project_in
from .recurrent import UNITS, Packing, RecurrentLayer, padding

IncrementalState = dict[str, dict[str, Tensor | None]]


class DecoderLayer(nn.Module):
    """A :class:`RecurrentLayer`, then (with heads) ``x + dropout(attention(layer_norm(x)))``."""

    def __init__(
        self, size: int, source_size: int, heads: int, dropout: float, rnn_dropout: float, unit: str, residual: bool
    ) -> None:
        super().__init__()
        self.rnn = RecurrentLayer(size, dropout, rnn_dropout, unit=unit, residual=residual)
        self.attention_norm = nn.LayerNorm(size) if heads else None
        self.attention = Attention(size, source_size, heads) if heads else None
        self.dropout = FairseqDropout(dropout, module_name=type(self).__name__)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        target_padding: Tensor | Packing | None,
        source: tuple[Tensor, Tensor] | None,
        source_padding: Tensor,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the layer's output ``(tgt_len, batch, size)``, its state and the attention weights."""
        x, state = self.rnn(x, state, target_padding)
        weights = None
        if self.attention is not None and self.attention_norm is not None:
            assert source is not None
            context, weights = self.attention(self.attention_norm(x), *source, source_padding, need_weights)
            x = x + self.dropout(context)
        return x, state, weights


class SRUDecoder(FairseqIncrementalDecoder):
    """Embedding, :class:`DecoderLayer` s, layer norm, a linear map to the output embedding, logits.

    With global attention, :class:`GlobalAttention` takes the place of the linear map. No input feeding, so nothing but
    the recurrence runs step by step in training. The incremental state is the state of each layer; the keys and values
    of the source stay with the encoder's result.

    Args:
        dictionary: the target dictionary.
        embed_tokens: the target embedding, ``(len(dictionary), embed_dim)``.
        hidden_size: channels of each layer.
        out_embed_dim: features before the output layer.
        num_layers: number of layers.
        attention: ``layer``: multi-head, in each layer; ``global``: once, after the top layer; ``none``: the layers
            start from the encoder's last state instead.
        heads: attention heads in each layer.
        encoder_output_units: features of the encoder outputs.
        encoder_state_units: features of the encoder's last state.
        dropout_in: dropout on the embedded tokens.
        dropout_out: dropout on each layer's output, and before the output layer.
        rnn_dropout: variational dropout on each layer's input, one draw a sentence.
        share_input_output_embed: use embed_tokens as output layer.
        adaptive_softmax_cutoff: cutoffs of an adaptive softmax; None for a full softmax.
        max_target_positions: longest target sentence.
        unit: the recurrent unit, ``sru`` or ``lstm``.
        residual: False for plain layers, without layer norms.
    """

    def __init__(
        self,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        hidden_size: int,
        out_embed_dim: int,
        num_layers: int,
        attention: str,
        heads: int,
        encoder_output_units: int,
        encoder_state_units: int,
        dropout_in: float,
        dropout_out: float,
        rnn_dropout: float,
        share_input_output_embed: bool,
        adaptive_softmax_cutoff: list[int] | None,
        max_target_positions: int,
        unit: str = "sru",
        residual: bool = True,
    ) -> None:
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_target_positions = max_target_positions
        self.need_attn = True
        self.unit = unit
        self.embed_tokens = embed_tokens
        self.dropout_in = FairseqDropout(dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, hidden_size)
        heads = heads if attention == "layer" else 0
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_size, encoder_output_units, heads, dropout_out, rnn_dropout, unit, residual)
            for _ in range(num_layers)
        )
        self.initial_state = None
        if attention == "none":
            self.initial_state = Linear(encoder_state_units, num_layers * hidden_size * UNITS[unit])
        self.norm = nn.LayerNorm(hidden_size) if residual else nn.Identity()
        self.global_attention = self.project_out = None
        if attention == "global":
            self.global_attention = GlobalAttention(hidden_size, encoder_output_units, out_embed_dim)
        else:
            self.project_out = Linear(hidden_size, out_embed_dim)
            nn.init.xavier_uniform_(self.project_out.weight)
            nn.init.zeros_(self.project_out.bias)
        self.dropout_out = FairseqDropout(dropout_out, module_name=type(self).__name__)
        self.adaptive_softmax = None
        self.output_projection = None
        if adaptive_softmax_cutoff is not None:
            self.adaptive_softmax = AdaptiveSoftmax(
                len(dictionary), out_embed_dim, adaptive_softmax_cutoff, dropout=dropout_out
            )
        elif not share_input_output_embed:
            self.output_projection = Linear(out_embed_dim, len(dictionary), bias=False)
            nn.init.normal_(self.output_projection.weight, mean=0.0, std=out_embed_dim**-0.5)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """Decode.

        Args:
            prev_output_tokens: ``(batch, tgt_len)``, the target shifted right. With an incremental state that holds
                earlier steps only the last token is read.
            encoder_out: the encoder's result.
            incremental_state: fairseq's cache; None computes all positions at once.
            src_lengths: not needed; fairseq passes it.
            features_only: leave the output layer out.

        Returns:
            Logits ``(batch, tgt_len, len(dictionary))`` (with an adaptive softmax or features_only: features), and
            ``{"attn": [weights]}`` of the last layer, ``(batch, tgt_len, src_len)``, None in training.
        """
        x, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """As :meth:`forward`, without the output layer: features ``(batch, tgt_len, out_embed_dim)``."""
        assert encoder_out is not None
        source_padding = encoder_out["encoder_padding_mask"][0]
        cache = self.get_incremental_state(incremental_state, "cached_state") if incremental_state is not None else None
        target_padding = None
        if cache is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            states = cache["states"].unbind(0)
        else:
            pads = prev_output_tokens.eq(self.padding_idx).t()
            target_padding = padding(self.unit, pads, outputs_only=incremental_state is None)
            states = self._initial_states(encoder_out, len(prev_output_tokens))
        sources = iter(self._sources(encoder_out, keep=incremental_state is not None))

        x = self.project_in(self.dropout_in(self.embed_tokens(prev_output_tokens.t())))
        new_states, weights = [], None
        need_weights = self.need_attn and not self.training
        for i, layer in enumerate(self.layers):
            source = None if layer.attention is None else next(sources)
            last = i + 1 == len(self.layers)
            x, state, weights = layer(x, states[i], target_padding, source, source_padding, need_weights and last)
            new_states.append(state)
        if incremental_state is not None:
            self.set_incremental_state(incremental_state, "cached_state", {"states": torch.stack(new_states)})
        x = self.norm(x)
        if self.global_attention is not None:
            x, weights = self.global_attention(x, *next(sources), source_padding, need_weights)
        else:
            assert self.project_out is not None
            x = self.project_out(x)
        return self.dropout_out(x).transpose(0, 1), {"attn": [weights]}

    def _initial_states(self, encoder_out: dict[str, Any], batch: int) -> tuple[Tensor | None, ...]:
        if self.initial_state is None:
            return (None,) * len(self.layers)
        state = encoder_out["encoder_state"][0].to(self.initial_state.weight.dtype)
        state = self.initial_state(state).repeat_interleave(batch // len(state), 0)
        return state.chunk(len(self.layers), dim=-1)

    def _sources(self, encoder_out: dict[str, Any], keep: bool) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each attention; kept with the encoder's result, which reorders them with the rest."""
        if "keys" in encoder_out:
            return list(zip(encoder_out["keys"], encoder_out["values"], strict=True))
        attentions = [m for m in self.modules() if isinstance(m, Attention | GlobalAttention)]
        sources = [attention.project(encoder_out["encoder_out"][0]) for attention in attentions]
        if keep:
            encoder_out["keys"], encoder_out["values"] = ([s[i] for s in sources] for i in (0, 1))
        return sources

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """Features ``(batch, tgt_len, out_embed_dim)`` to logits; an adaptive softmax takes the features as they
        are."""
        if self.adaptive_softmax is not None:
            return features
        weight = self.embed_tokens.weight if self.output_projection is None else self.output_projection.weight
        return linear(features, weight)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Reorder the cached states as the beam search reordered its hypotheses."""
        cache = self.get_incremental_state(incremental_state, "cached_state")
        if cache is not None:
            states = cache["states"].index_select(1, new_order)
            self.set_incremental_state(incremental_state, "cached_state", {"states": states})

    def max_positions(self) -> int:
        """Longest target sentence."""
        return self.max_target_positions

    def make_generation_fast_(self, need_attn: bool = False, **_: Any) -> None:
        """fairseq-generate says whether the attention weights are needed."""
        self.need_attn = need_attn
