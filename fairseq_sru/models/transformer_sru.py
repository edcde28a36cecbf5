"""The model ``transformer_sru``: the Transformer with SRU where it pays, and its architectures."""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

import torch
from fairseq.models import register_model
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from ..decoding.program import LONGEST_SOURCE, Program
from . import options
from .architectures import register_architectures
from .base_decoder import BaseDecoder, Extra, IncrementalState, extra, output_layer
from .base_encoder import BaseEncoder
from .config import TransformerSRUConfig
from .dropout import Dropout
from .embeddings import embeddings
from .step import plain, write_attention, write_norm
from .transformer_layers import TransformerSRUDecoderLayer, TransformerSRUEncoderLayer
from .translation import TranslationModel


class TransformerSRUEncoder(BaseEncoder):
    """Embedding with sinusoidal positions, :class:`TransformerSRUEncoderLayer` s, layer norm. Padding is found by its
    token, so the source may be padded on either side."""

    def __init__(self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        size = self.output_units = embed_tokens.embedding_dim
        self.embed_positions = SinusoidalPositionalEmbedding(size, self.padding_idx)
        self.layers = nn.ModuleList(TransformerSRUEncoderLayer(cfg) for _ in range(cfg.encoder_layers))
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(cfg.dropout, module_name=type(self).__name__)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, Any]:
        """See :meth:`SRUEncoder.forward`."""
        padding_mask = src_tokens.eq(self.padding_idx)
        x = math.sqrt(self.output_units) * self.embed_tokens(src_tokens) + self.embed_positions(src_tokens)
        x = self.dropout(x).transpose(0, 1)
        for layer in self.layers:
            x = layer(x, ~padding_mask[:, None, None, :], padding_mask.t())
        return self.result(self.norm(x), padding_mask)

    def program(self) -> Program | None:
        """See :meth:`BaseEncoder.program`."""
        layers: list[Any] = list(self.layers)
        if any(layer.feed_forward.inner is None for layer in layers):
            return None
        program = Program()
        size, first = self.output_units, self.padding_idx + 1
        between = max(3 * size, layers[0].feed_forward.inner.out_features)
        wide, inner, x = program.slot(between), program.slot(size), program.slot(size)
        most = min(self.max_source_positions, LONGEST_SOURCE)
        table = self.embed_positions.get_embedding(first + most, size, self.padding_idx)
        program.embed(x, self.embed_tokens.weight, table[first:], math.sqrt(size))
        for layer in layers:
            attention = layer.self_attention
            write_norm(program, x, inner, layer.self_attention_norm)
            program.linear(inner, wide, attention.query_key_value.weight)
            program.self_attend(wide, inner, attention.heads, 1 / math.sqrt(size // attention.heads))
            program.linear(inner, x, attention.out.weight, add=True)
            _write_feed_forward(program, x, inner, wide, layer)
        write_norm(program, x, inner, self.norm)
        program.result = inner
        return program


class TransformerSRUDecoder(BaseDecoder):
    """Embedding, :class:`TransformerSRUDecoderLayer` s, layer norm, logits.

    With ``ssru`` or ``sru`` the decoder knows the order by its state and has no position embeddings; its incremental
    state is c of each SRU, and with coverage a number for each word of the source, however long the sentence.
    """

    def __init__(self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding, source_size: int) -> None:
        size = embed_tokens.embedding_dim
        super().__init__(cfg, dictionary, embed_tokens)
        self.adaptive_softmax, self.output_projection = output_layer(cfg, dictionary, size, cfg.dropout)
        self.embed_positions = None
        if cfg.decoder_autoreg == "self-attention":
            self.embed_positions = SinusoidalPositionalEmbedding(size, self.padding_idx)
        coverage = options.coverage(cfg, cfg.decoder_layers)
        self.layers = nn.ModuleList(
            TransformerSRUDecoderLayer(cfg, source_size, coverage and i == cfg.decoder_layers - 1)
            for i in range(cfg.decoder_layers)
        )
        self.covered = cfg.decoder_layers - 2 if coverage else None
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(cfg.dropout, module_name=type(self).__name__)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """Decode without the output layer: features ``(batch, tgt_len, embed_dim)``."""
        assert encoder_out is not None
        states = self.cached(incremental_state)
        tokens = prev_output_tokens[:, -1:] if states[0] else prev_output_tokens
        x = math.sqrt(self.embed_tokens.embedding_dim) * self.embed_tokens(tokens)
        visible = None
        if self.embed_positions is not None:
            x = x + self.embed_positions(prev_output_tokens)[:, -tokens.size(1) :]
            visible = _visible(prev_output_tokens.eq(self.padding_idx), tokens.size(1))
        x = self.dropout(x).transpose(0, 1)
        padding_mask = tokens.eq(self.padding_idx).t().contiguous()  # once for all layers

        sources = self.sources(encoder_out, incremental_state)
        x, weights = self.run_layers(x, states, sources, padding_mask, visible, incremental_state)
        return self.norm(x).transpose(0, 1), extra(weights)

    def features_program(self) -> Program | None:
        """See :meth:`BaseDecoder.features_program`."""
        layers: list[Any] = list(self.layers)
        if not all(plain(layer.sru) and layer.feed_forward.inner is not None for layer in layers):
            return None
        program = Program()
        size = self.norm.normalized_shape[0]
        between = max(3 * size, layers[0].feed_forward.inner.out_features)
        wide, inner, x = program.slot(between), program.slot(size), program.slot(size)
        program.embed(x, self.embed_tokens.weight, scale=math.sqrt(size))
        for i, layer in enumerate(layers):
            write_norm(program, x, inner, layer.autoreg_norm)
            program.linear(inner, wide, layer.sru.weight)
            program.recur(wide, x, layer.sru.bias, layer.sru.activation)
            write_attention(program, x, inner, wide, layer, i == self.covered)
            _write_feed_forward(program, x, inner, wide, layer)
        write_norm(program, x, program.slot(size), self.norm)
        return program


def _write_feed_forward(program: Program, x: int, inner: int, wide: int, layer: Any) -> None:
    first, second = layer.feed_forward.inner, layer.feed_forward.out
    write_norm(program, x, inner, layer.feed_forward_norm)
    program.linear(inner, wide, first.weight, first.bias, relu=True)
    program.linear(wide, x, second.weight, second.bias, add=True)


def _visible(padding_mask: Tensor, last: int) -> Tensor:
    """Return which positions the last so many see, ``(batch, 1, last, length)``: themselves and what is before them but
    for padding, which sees itself, too, lest it see nothing."""
    at = torch.arange(padding_mask.size(1), device=padding_mask.device)
    here = at[-last:, None]
    return (at < here) & ~padding_mask[:, None, None, :] | (at == here)


def check(cfg: Any, config: type[TransformerSRUConfig]) -> Namespace:
    """Return the options, completed and checked; a ValueError names the flag, its value and what is allowed."""
    cfg = options.completed(cfg, config)
    for side in ("encoder", "decoder"):
        options.must_divide(cfg, f"{side}_attention_heads", f"{side}_embed_dim")
    if cfg.feed_forward == "sru" and cfg.encoder_ffn_embed_dim % 2:
        raise ValueError(
            "--encoder-ffn-embed-dim must be even with --feed-forward sru, whose channels run in two directions; "
            f"got {cfg.encoder_ffn_embed_dim}"
        )
    options.coverage(cfg, cfg.decoder_layers)
    options.must_match(cfg, "share_all_embeddings", "encoder_embed_dim", "decoder_embed_dim")
    return cfg


@register_model("transformer_sru", dataclass=TransformerSRUConfig)
class TransformerSRUModel(TranslationModel):
    """The Transformer (Vaswani et al. 2017) with SRU in one of two places or both, pre-norm.

    In the decoder's self-attention's place, where each step then costs the same however long the sentence: the SSRU of
    Kim et al. 2019 ("From Research to Production and Back: Ludicrously Fast Neural Machine Translation") or the SRU of
    2017. Or in the place of the inner layer of the feed-forward blocks of encoder and decoder (Lei et al. 2018, on
    translation), ``transformer_sru_ffn_wmt``. With neither it is the Transformer itself, for comparison.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> TransformerSRUModel:
        """Build the model for a task's dictionaries; a ValueError names the flag of options that don't go together."""
        cfg = check(cfg, TransformerSRUConfig)
        source, target = task.source_dictionary, task.target_dictionary
        encoder_embed, decoder_embed = embeddings(cfg, source, target)
        encoder = TransformerSRUEncoder(cfg, source, encoder_embed)
        return cls(encoder, TransformerSRUDecoder(cfg, target, decoder_embed, encoder.output_units))


register_architectures("transformer_sru", TransformerSRUConfig, check)
