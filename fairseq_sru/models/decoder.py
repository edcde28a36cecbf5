"""The SRU decoder: all target positions at once in training, one step at a time in decoding."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from torch import Tensor, nn

from ..decoding.program import Program
from ..layers.linear import Linear
from . import options
from .attention import GlobalAttention, Source
from .base_decoder import AttendingLayer, BaseDecoder, Extra, IncrementalState, extra, output_layer, output_norm
from .dropout import Dropout
from .embeddings import biased, look_up, project_in
from .recurrent import RecurrentLayer, State
from .step import plain, write_attention, write_embedding, write_norm
from .units import UNITS


class SRUDecoderLayer(AttendingLayer):
    """A :class:`RecurrentLayer`, then (with heads) attention over encoder outputs of source_size features, with
    coverage of the attention below or without."""

    def __init__(self, cfg: Namespace, source_size: int, heads: int, coverage: bool) -> None:
        super().__init__()
        size, dropout = cfg.decoder_hidden_size, cfg.decoder_dropout_out
        self.rnn = RecurrentLayer(cfg, size, dropout, residual=not cfg.no_residual)
        self.add_attention(size, source_size, heads, coverage, cfg.attention_dropout)
        self.dropout = Dropout(dropout, module_name=type(self).__name__)

    def forward(
        self,
        x: Tensor,
        state: State,
        source: Source | None,
        need_weights: bool,
        below: Tensor | None,
        padding_mask: Tensor,
        padding: Any,
    ) -> tuple[Tensor, State, Tensor | None]:
        """Run the layer: arguments and results are those of :meth:`AttendingLayer.attend`, and between them the state;
        padding: of ``UNITS[unit].padding``."""
        x, after = self.rnn(x, state, padding)
        x, weights = self.attend(x, state, after, source, need_weights, below, padding_mask)
        return x, after, weights


class SRUDecoder(BaseDecoder):
    """Embedding, :class:`SRUDecoderLayer` s, layer norm, a linear map to the output embedding, logits.

    With global attention, :class:`GlobalAttention` takes the place of the linear map; without attention the layers
    start from the encoder's last state, of state_size features. No input feeding, so nothing but the recurrence runs
    step by step in training.
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
        self.covered = attended[1] if coverage else None
        self.dropout_in = Dropout(cfg.decoder_dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, size)
        self.layers = nn.ModuleList(
            SRUDecoderLayer(
                cfg,
                source_size,
                heads=cfg.decoder_attention_heads if i in attended else 0,
                coverage=coverage and i == layers - 1,
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
        """Decode without the output layer: features ``(batch, tgt_len, out_embed_dim)``."""
        assert encoder_out is not None
        states = self.cached(incremental_state)
        started = bool(states[0])
        tokens = (prev_output_tokens[:, -1:] if started else prev_output_tokens).t()
        padding_mask = tokens.eq(self.padding_idx)
        padding = None
        if not started:
            padding = UNITS[self.unit].padding(padding_mask, incremental_state is None, True)
            states = self._initial_states(encoder_out, tokens.size(1))
        sources = self.sources(encoder_out, incremental_state)
        x = self.project_in(self.dropout_in(look_up(self.embed_tokens, tokens, self.embeds_output)))
        x, weights = self.run_layers(x, states, sources, padding_mask, padding, incremental_state)
        x = self.norm(x)
        if self.global_attention is not None:
            x, weights = self.global_attention(x, sources[-1], self.need_weights)
        else:
            assert self.project_out is not None
            x = self.project_out(x)
        return self.dropout_out(x).transpose(0, 1), extra(weights)

    def features_program(self) -> Program | None:
        """See :meth:`BaseDecoder.features_program`."""
        layers: list[Any] = list(self.layers)
        cells = [getattr(layer.rnn, layer.rnn.unit) for layer in layers]
        attending = any(layer.attention is not None for layer in layers)
        if not attending or not all(map(plain, cells)) or not isinstance(self.norm, nn.LayerNorm):
            return None
        assert self.project_out is not None
        program = Program()
        size = self.norm.normalized_shape[0]
        wide, inner = program.slot(max(cell.planes for cell in cells) * size), program.slot(size)
        x = write_embedding(program, self.embed_tokens.weight, self.project_in)
        for i, (layer, cell) in enumerate(zip(layers, cells, strict=True)):
            write_norm(program, x, inner, layer.rnn.norm)
            program.linear(inner, wide, cell.weight)
            program.recur(wide, x, cell.bias, cell.activation)
            if layer.attention is not None:
                write_attention(program, x, inner, wide, layer, i == self.covered)
        write_norm(program, x, inner, self.norm)
        program.linear(
            inner, program.slot(self.project_out.out_features), self.project_out.weight, self.project_out.bias
        )
        return program

    def _initial_states(self, encoder_out: dict[str, Any], batch: int) -> list[State]:
        if self.initial_state is None:
            return [{} for _ in self.layers]
        state = encoder_out["encoder_state"][0].to(self.initial_state.weight.dtype)
        state = self.initial_state(state).repeat_interleave(batch // len(state), 0)
        return [{"c": c} for c in state.chunk(len(self.layers), dim=-1)]
