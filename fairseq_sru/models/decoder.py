"""The SRU decoder: all target positions at once in training, one step at a time in decoding."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from torch import Tensor, nn

from ..decoding.program import Program
from ..layers.linear import Linear
from . import options
from .attention import Attention, Coverage, GlobalAttention, Source
from .base_decoder import BaseDecoder, Extra, IncrementalState, State, extra, output_layer, output_norm
from .dropout import Dropout
from .embeddings import biased, look_up, project_in
from .recurrent import RecurrentLayer
from .step import plain, write_attention, write_embedding, write_norm
from .units import UNITS


class SRUDecoderLayer(nn.Module):
    """A :class:`RecurrentLayer`, then (with heads) ``x + dropout(attention(layer_norm(x)))``.

    Args:
        size: features of inputs and outputs.
        source_size: features of the encoder outputs.
        heads: attention heads; 0: no attention.
        coverage: the attention knows what the one below has attended to.
        dropout: dropout on the output of each block.
        attention_dropout: dropout on the attention's weights.
        recurrent: options of :class:`RecurrentLayer`.
    """

    def __init__(
        self,
        size: int,
        source_size: int,
        heads: int,
        coverage: bool,
        dropout: float,
        attention_dropout: float,
        **recurrent: Any,
    ) -> None:
        super().__init__()
        self.rnn = RecurrentLayer(size, dropout, **recurrent)
        self.attention_norm = nn.LayerNorm(size) if heads else None
        self.attention = Attention(size, source_size, heads, attention_dropout) if heads else None
        self.coverage = Coverage(heads) if coverage else None
        self.dropout = Dropout(dropout, module_name=type(self).__name__)

    def forward(
        self,
        x: Tensor,
        state: State,
        padding: Any,
        source: Source | None,
        need_weights: bool,
        below: Tensor | None,
        padding_mask: Tensor,
    ) -> tuple[Tensor, State, Tensor | None]:
        """Run the layer.

        Args:
            x: ``(tgt_len, batch, size)``.
            state: what the layer keeps of earlier steps; empty before the first.
            padding: of ``UNITS[unit].padding``.
            source: of :meth:`Attention.project`.
            need_weights: return the attention weights, too.
            below: those of the attention below.
            padding_mask: ``(batch, tgt_len)`` bool, True at padding.

        Returns:
            ``(tgt_len, batch, size)``; the state: the unit's, ``c``, and with coverage its sum ``(batch, src_len)``;
            the attention weights, or where there is no attention those of the one below.
        """
        x, c = self.rnn(x, state.get("c"), padding)
        after, weights = {"c": c}, below
        if self.attention is not None and self.attention_norm is not None:
            assert source is not None
            h = self.attention_norm(x)
            bias = None
            if self.coverage is not None:
                assert below is not None
                bias, after["coverage"] = self.coverage(below, state.get("coverage"), padding_mask)
            context, weights = self.attention(h, source, need_weights, bias)
            x = self.dropout.plus(x, context)
        return x, after, weights


class SRUDecoder(BaseDecoder):
    """Embedding, :class:`SRUDecoderLayer` s, layer norm, a linear map to the output embedding, logits.

    With global attention, :class:`GlobalAttention` takes the place of the linear map; without attention the layers
    start from the encoder's last state. No input feeding, so nothing but the recurrence runs step by step in training.

    Args:
        cfg: options of :class:`SRUConfig`, completed.
        dictionary: the target dictionary.
        embed_tokens: the target embedding, ``(len(dictionary), embed_dim)``.
        source_size: features of the encoder outputs.
        state_size: features of the encoder's last state.
    """

    def __init__(
        self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding, source_size: int, state_size: int
    ) -> None:
        out_embed_dim, dropout = cfg.decoder_out_embed_dim, cfg.decoder_dropout_out
        super().__init__(cfg, dictionary, embed_tokens)
        self.embeds_output = options.tied(cfg)
        self.unit, size, layers = cfg.recurrent_unit, cfg.decoder_hidden_size, cfg.decoder_layers
        where, attended = options.attention(cfg.decoder_attention), options.attended(cfg)
        coverage = options.coverage(cfg, len(attended))
        self.covered = attended[1] if coverage else None  # the layer whose attention the top one's coverage reads
        self.dropout_in = Dropout(cfg.decoder_dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, size)
        self.layers = nn.ModuleList(
            SRUDecoderLayer(
                size,
                source_size,
                heads=cfg.decoder_attention_heads if i in attended else 0,
                coverage=coverage and i == layers - 1,
                dropout=dropout,
                attention_dropout=cfg.attention_dropout,
                rnn_dropout=cfg.rnn_dropout,
                unit=self.unit,
                activation=cfg.sru_activation,
                residual=not cfg.no_residual,
            )
            for i in range(layers)
        )
        self.initial_state = Linear(state_size, layers * size * UNITS[self.unit].states) if where == 0 else None
        self.norm = nn.Identity() if cfg.no_residual else output_norm(size)
        self.global_attention = self.project_out = None
        if where == "global":
            self.global_attention = GlobalAttention(size, source_size, out_embed_dim, cfg.attention_dropout)
        else:
            self.project_out = biased(size, out_embed_dim)
        self.dropout_out = Dropout(dropout, module_name=type(self).__name__)
        self.adaptive_softmax, self.output_projection = output_layer(cfg, dictionary, out_embed_dim, dropout)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """As :meth:`forward`, without the output layer: features ``(batch, tgt_len, out_embed_dim)``."""
        assert encoder_out is not None
        states = self.cached(incremental_state)
        padding = None
        if states[0]:
            prev_output_tokens = prev_output_tokens[:, -1:]
        padding_mask = prev_output_tokens.eq(self.padding_idx)
        if not states[0]:
            padding = UNITS[self.unit].padding(padding_mask.t(), incremental_state is None, True)
            states = self._initial_states(encoder_out, len(prev_output_tokens))
        sources = self.sources(encoder_out, incremental_state)
        source_of: dict[Any, Source] = dict(zip(self.attentions(), sources, strict=True))

        x = self.project_in(self.dropout_in(look_up(self.embed_tokens, prev_output_tokens.t(), self.embeds_output)))
        after: list[State] = []
        weights = None
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            need = self.need_weights if i == len(states) - 1 else i == self.covered
            source = source_of.get(layer.attention)
            x, state, weights = layer(x, state, padding, source, need, weights, padding_mask)
            after.append(state)
        self.cache(incremental_state, after)
        x = self.norm(x)
        if self.global_attention is not None:
            x, weights = self.global_attention(x, source_of[self.global_attention], self.need_weights)
        else:
            assert self.project_out is not None
            x = self.project_out(x)
        return self.dropout_out(x).transpose(0, 1), extra(weights if self.need_weights else None)

    def features_program(self) -> Program | None:
        """See :meth:`BaseDecoder.features_program`."""
        layers: list[Any] = list(self.layers)
        cells = [getattr(layer.rnn, layer.rnn.unit) for layer in layers]
        attending = any(layer.attention is not None for layer in layers)
        if not attending or not all(map(plain, cells)) or not isinstance(self.norm, nn.LayerNorm):
            return None
        assert self.project_out is not None
        made = Program()
        size = self.norm.normalized_shape[0]
        wide, inner = made.slot(max(cell.planes for cell in cells) * size), made.slot(size)
        x = write_embedding(made, self.embed_tokens.weight, self.project_in)
        for i, (layer, cell) in enumerate(zip(layers, cells, strict=True)):
            write_norm(made, x, inner, layer.rnn.norm)
            made.linear(inner, wide, cell.weight)
            made.recur(wide, x, cell.bias, cell.activation)
            if layer.attention is not None:
                write_attention(made, x, inner, wide, layer, i == self.covered)
        write_norm(made, x, inner, self.norm)
        made.linear(inner, made.slot(self.project_out.out_features), self.project_out.weight, self.project_out.bias)
        return made

    def _initial_states(self, encoder_out: dict[str, Any], batch: int) -> list[State]:
        if self.initial_state is None:
            return [{} for _ in self.layers]
        state = encoder_out["encoder_state"][0].to(self.initial_state.weight.dtype)
        state = self.initial_state(state).repeat_interleave(batch // len(state), 0)
        return [{"c": c} for c in state.chunk(len(self.layers), dim=-1)]
