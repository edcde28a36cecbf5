"""The SRU decoder: all target positions at once in training, one step at a time in decoding."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax, FairseqDropout
from torch import Tensor, nn

from ..linear import Linear, linear
from .attention import Attention
from .encoder import ResidualSRU, project_in

IncrementalState = dict[str, dict[str, Tensor | None]]


class DecoderLayer(nn.Module):
    """A :class:`ResidualSRU`, then (with attention) ``x + dropout(attention(layer_norm(x)))``."""

    def __init__(self, size: int, source_size: int, heads: int, dropout: float, rnn_dropout: float) -> None:
        super().__init__()
        self.rnn = ResidualSRU(size, dropout, rnn_dropout)
        self.attention_norm = nn.LayerNorm(size) if heads else None
        self.attention = Attention(size, source_size, heads) if heads else None
        self.dropout = FairseqDropout(dropout, module_name=type(self).__name__)

    def forward(
        self,
        x: Tensor,
        c0: Tensor | None,
        target_padding: Tensor | None,
        source: tuple[Tensor, Tensor] | None,
        source_padding: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the layer's output ``(tgt_len, batch, size)``, its cell state and the attention weights."""
        x, c = self.rnn(x, c0, target_padding)
        weights = None
        if self.attention is not None and self.attention_norm is not None:
            assert source is not None and source_padding is not None
            context, weights = self.attention(self.attention_norm(x), *source, source_padding, need_weights)
            x = x + self.dropout(context)
        return x, c, weights


class SRUDecoder(FairseqIncrementalDecoder):
    """Embedding, :class:`DecoderLayer` s, layer norm, a linear map to the output embedding, logits.

    No input feeding, so nothing but the elementwise recurrence runs step by step in training. The incremental state is
    the cell state of each layer and the projected keys and values of the source.

    Args:
        dictionary: the target dictionary.
        embed_tokens: the target embedding, ``(len(dictionary), embed_dim)``.
        hidden_size: channels of each layer.
        out_embed_dim: features before the output layer.
        num_layers: number of layers.
        heads: attention heads in each layer; 0 for no attention, when the layers start from the encoder's last state.
        encoder_output_units: features of the encoder outputs.
        dropout_in: dropout on the embedded tokens.
        dropout_out: dropout on each layer's output, and before the output layer.
        rnn_dropout: variational dropout on each layer's input, one draw a sentence.
        share_input_output_embed: use embed_tokens as output layer.
        adaptive_softmax_cutoff: cutoffs of an adaptive softmax; None for a full softmax.
        max_target_positions: longest target sentence.
    """

    def __init__(
        self,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        hidden_size: int,
        out_embed_dim: int,
        num_layers: int,
        heads: int,
        encoder_output_units: int,
        dropout_in: float,
        dropout_out: float,
        rnn_dropout: float,
        share_input_output_embed: bool,
        adaptive_softmax_cutoff: list[int] | None,
        max_target_positions: int,
    ) -> None:
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_target_positions = max_target_positions
        self.need_attn = True
        self.embed_tokens = embed_tokens
        self.dropout_in = FairseqDropout(dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_size, encoder_output_units, heads, dropout_out, rnn_dropout) for _ in range(num_layers)
        )
        self.initial_state = None if heads else Linear(encoder_output_units, num_layers * hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
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
        encoder_out: dict[str, list[Tensor]] | None = None,
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
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """As :meth:`forward`, without the output layer: features ``(batch, tgt_len, out_embed_dim)``."""
        assert encoder_out is not None
        source_padding = encoder_out["encoder_padding_mask"][0]
        cache = self.get_incremental_state(incremental_state, "cached_state") if incremental_state is not None else None
        target_padding = None
        sources: list[tuple[Tensor, Tensor] | None]
        if cache is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            states = cache["c"].unbind(0)
            sources = [
                None if layer.attention is None else (cache[f"key{i}"], cache[f"value{i}"])
                for i, layer in enumerate(self.layers)
            ]
        else:
            target_padding = prev_output_tokens.eq(self.padding_idx).t()
            states = self._initial_states(encoder_out)
            sources = [
                layer.attention.project(encoder_out["encoder_out"][0])
                if isinstance(layer.attention, Attention)
                else None
                for layer in self.layers
            ]

        x = self.project_in(self.dropout_in(self.embed_tokens(prev_output_tokens.t())))
        new_states, weights = [], None
        for i, layer in enumerate(self.layers):
            need_weights = self.need_attn and not self.training and i + 1 == len(self.layers)
            x, c, weights = layer(x, states[i], target_padding, sources[i], source_padding, need_weights)
            new_states.append(c)
        if incremental_state is not None:
            new_cache = {"c": torch.stack(new_states)}
            for i, source in enumerate(sources):
                if source is not None:
                    new_cache[f"key{i}"], new_cache[f"value{i}"] = source
            self.set_incremental_state(incremental_state, "cached_state", new_cache)
        x = self.dropout_out(self.project_out(self.norm(x)))
        return x.transpose(0, 1), {"attn": [weights]}

    def _initial_states(self, encoder_out: dict[str, list[Tensor]]) -> tuple[Tensor | None, ...]:
        if self.initial_state is None:
            return (None,) * len(self.layers)
        state = encoder_out["encoder_state"][0].to(self.initial_state.weight.dtype)
        return self.initial_state(state).chunk(len(self.layers), dim=-1)

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
            cache = {name: t.index_select(1 if name == "c" else 0, new_order) for name, t in cache.items()}
            self.set_incremental_state(incremental_state, "cached_state", cache)

    def max_positions(self) -> int:
        """Longest target sentence."""
        return self.max_target_positions

    def make_generation_fast_(self, need_attn: bool = False, **_: Any) -> None:
        """fairseq-generate says whether the attention weights are needed."""
        self.need_attn = need_attn
