"""The model ``transformer_sru``: the Transformer with SRU where it pays, and its architectures."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairseq.models import FairseqEncoderDecoderModel, register_model
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from .architectures import register_architectures
from .config import (
    TransformerSRUConfig,
    at_least_one,
    completed,
    cutoffs,
    flag,
    joint_dictionary,
    must_match,
    probabilities,
)
from .dropout import Dropout
from .encoder import Encoder, embedding
from .output import Decoder, Extra, IncrementalState, State, extra
from .transformer_layers import AUTOREGRESSIONS, FEED_FORWARDS, DecoderLayer, EncoderLayer


class TransformerSRUEncoder(Encoder):
    """Embedding with sinusoidal positions, :class:`EncoderLayer` s, layer norm.

    Padding is found by its token, so the source may be padded on either side.

    Args:
        dictionary: the source dictionary.
        embed_tokens: the source embedding, ``(len(dictionary), embed_dim)``.
        inner: features inside the feed-forward blocks.
        num_layers: number of layers.
        heads: attention heads.
        feed_forward: ``linear`` or ``sru``.
        dropout: dropout on the embedded tokens and on the output of each block.
        rnn_dropout: variational dropout on the input of each SRU, one draw a sentence.
        max_source_positions: longest source sentence.
    """

    def __init__(
        self,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        inner: int,
        num_layers: int,
        heads: int,
        feed_forward: str,
        dropout: float,
        rnn_dropout: float,
        max_source_positions: int,
    ) -> None:
        super().__init__(dictionary, embed_tokens, max_source_positions)
        size = self.output_units = embed_tokens.embedding_dim
        self.embed_positions = SinusoidalPositionalEmbedding(size, self.padding_idx)
        self.layers = nn.ModuleList(
            EncoderLayer(size, inner, heads, feed_forward, dropout, rnn_dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(dropout, module_name=type(self).__name__)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, Any]:
        """Encode.

        Args:
            src_tokens: ``(batch, src_len)``, padded on either side.
            src_lengths: not needed; fairseq passes it.

        Returns:
            encoder_out ``[(src_len, batch, embed_dim)]``, encoder_padding_mask ``[(batch, src_len)]`` and
            rows_per_sentence, 1. The decoder adds keys, values and masks, of the :class:`Source` of each attention.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        x = math.sqrt(self.output_units) * self.embed_tokens(src_tokens) + self.embed_positions(src_tokens)
        x = self.dropout(x).transpose(0, 1)
        for layer in self.layers:
            x = layer(x, ~padding_mask[:, None, None, :], padding_mask.t())
        return {"encoder_out": [self.norm(x)], "encoder_padding_mask": [padding_mask], "rows_per_sentence": 1}


class TransformerSRUDecoder(Decoder):
    """Embedding, :class:`DecoderLayer` s, layer norm, logits.

    With ``ssru`` or ``sru`` the decoder knows the order by its state and has no position embeddings; its incremental
    state is c of each SRU, however long the sentence.

    Args:
        dictionary: the target dictionary.
        embed_tokens: the target embedding, ``(len(dictionary), embed_dim)``.
        source_size: features of the encoder outputs.
        inner: features inside the feed-forward blocks.
        num_layers: number of layers.
        heads: attention heads.
        autoreg: ``ssru``, ``sru`` or ``self-attention``.
        feed_forward: ``linear`` or ``sru``.
        dropout: dropout on the embedded tokens and on the output of each block.
        rnn_dropout: variational dropout on the input of each SRU, one draw a sentence.
        share_input_output_embed, adaptive_softmax_cutoff, max_target_positions: as of :class:`Decoder`.
    """

    def __init__(
        self,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        source_size: int,
        inner: int,
        num_layers: int,
        heads: int,
        autoreg: str,
        feed_forward: str,
        dropout: float,
        rnn_dropout: float,
        share_input_output_embed: bool,
        adaptive_softmax_cutoff: list[int] | None,
        max_target_positions: int,
    ) -> None:
        size = embed_tokens.embedding_dim
        super().__init__(dictionary, embed_tokens, max_target_positions)
        self.add_output_layer(size, dropout, share_input_output_embed, adaptive_softmax_cutoff)
        self.embed_positions = None
        if autoreg == "self-attention":
            self.embed_positions = SinusoidalPositionalEmbedding(size, self.padding_idx)
        self.layers = nn.ModuleList(
            DecoderLayer(size, source_size, inner, heads, autoreg, feed_forward, dropout, rnn_dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(dropout, module_name=type(self).__name__)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """As :meth:`forward`, without the output layer: features ``(batch, tgt_len, embed_dim)``."""
        assert encoder_out is not None
        sources = self.sources(encoder_out, keep=incremental_state is not None)
        state = self.cached(incremental_state)
        tokens = prev_output_tokens[:, -1:] if state else prev_output_tokens
        x = math.sqrt(self.embed_tokens.embedding_dim) * self.embed_tokens(tokens)
        visible = None
        if self.embed_positions is not None:
            x = x + self.embed_positions(prev_output_tokens)[:, -tokens.size(1) :]
            visible = _visible(prev_output_tokens.eq(self.padding_idx), tokens.size(1))
        x = self.dropout(x).transpose(0, 1)
        pads = tokens.eq(self.padding_idx).t()

        new: State = {}
        weights = None
        for i, layer in enumerate(self.layers):
            last = i + 1 == len(self.layers)
            own = {name.removeprefix(f"{i}."): kept for name, kept in state.items() if name.startswith(f"{i}.")}
            need_weights = last and self.need_attn and not self.training
            x, own, weights = layer(x, own, visible, pads, sources[i], need_weights)
            new |= {f"{i}.{name}": kept for name, kept in own.items()}
        self.cache(incremental_state, new)
        return self.norm(x).transpose(0, 1), extra(weights)


def _visible(pads: Tensor, last: int) -> Tensor:
    """``(batch, 1, last, length)``: each of the last positions sees itself and what is before it but for padding.

    Args:
        pads: ``(batch, length)`` bool, True at padding; there, too, a position sees itself, lest it see nothing.
        last: how many positions are computed.
    """
    at = torch.arange(pads.size(1), device=pads.device)
    here = at[-last:, None]
    return (at < here) & ~pads[:, None, None, :] | (at == here)


def check(cfg: Any) -> None:
    """Check the options against one another.

    Raises:
        ValueError: naming the flag, its value and what is allowed.
    """
    cfg = completed(cfg, TransformerSRUConfig)
    for name, allowed in (("decoder_autoreg", AUTOREGRESSIONS), ("feed_forward", FEED_FORWARDS)):
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{flag(name)} must be one of {', '.join(allowed)}; got {getattr(cfg, name)!r}")
    for side in ("encoder", "decoder"):
        for size in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads"):
            at_least_one(cfg, f"{side}_{size}")
        heads, dim = getattr(cfg, f"{side}_attention_heads"), getattr(cfg, f"{side}_embed_dim")
        if dim % heads:
            raise ValueError(f"--{side}-attention-heads must divide --{side}-embed-dim {dim}; got {heads}")
    if cfg.feed_forward == "sru" and cfg.encoder_ffn_embed_dim % 2:
        raise ValueError(
            "--encoder-ffn-embed-dim must be even with --feed-forward sru, whose channels run in two directions; "
            f"got {cfg.encoder_ffn_embed_dim}"
        )
    for side in ("encoder", "decoder"):
        positions = side == "encoder" or cfg.decoder_autoreg == "self-attention"
        if positions and getattr(cfg, f"{side}_embed_dim") < 4:  # sines and cosines of two frequencies
            raise ValueError(f"--{side}-embed-dim must be at least 4; got {getattr(cfg, f'{side}_embed_dim')}")
    probabilities(cfg, ("dropout", "rnn_dropout"))
    cutoffs(cfg, None)
    if cfg.share_all_embeddings:
        must_match(cfg, "share_all_embeddings", "encoder_embed_dim", "decoder_embed_dim")


@register_model("transformer_sru", dataclass=TransformerSRUConfig)
class TransformerSRUModel(FairseqEncoderDecoderModel):
    """The Transformer (Vaswani et al. 2017) with SRU in one of two places, pre-norm.

    In the decoder's self-attention's place, where each step then costs the same however long the sentence: the SSRU of
    Kim et al. 2019 ("From Research to Production and Back: Ludicrously Fast Neural Machine Translation") or the SRU of
    2017. Or in the place of the inner layer of the feed-forward blocks of encoder and decoder (Lei et al. 2018, on
    translation), ``transformer_sru_ffn_wmt``. With neither it is the Transformer itself, in the same code, for
    comparison.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> TransformerSRUModel:
        """Build the model for a task's dictionaries.

        Raises:
            ValueError: the options do not go together; the message names the flag.
        """
        check(cfg)
        cfg = completed(cfg, TransformerSRUConfig)
        source, target = task.source_dictionary, task.target_dictionary
        joint_dictionary(cfg, source, target)
        encoder_embed = decoder_embed = embedding(len(source), cfg.encoder_embed_dim, source.pad())
        if not cfg.share_all_embeddings:
            decoder_embed = embedding(len(target), cfg.decoder_embed_dim, target.pad())
        encoder = TransformerSRUEncoder(
            source,
            encoder_embed,
            inner=cfg.encoder_ffn_embed_dim,
            num_layers=cfg.encoder_layers,
            heads=cfg.encoder_attention_heads,
            feed_forward=cfg.feed_forward,
            dropout=cfg.dropout,
            rnn_dropout=cfg.rnn_dropout,
            max_source_positions=cfg.max_source_positions,
        )
        decoder = TransformerSRUDecoder(
            target,
            decoder_embed,
            source_size=encoder.output_units,
            inner=cfg.decoder_ffn_embed_dim,
            num_layers=cfg.decoder_layers,
            heads=cfg.decoder_attention_heads,
            autoreg=cfg.decoder_autoreg,
            feed_forward=cfg.feed_forward,
            dropout=cfg.dropout,
            rnn_dropout=cfg.rnn_dropout,
            share_input_output_embed=cfg.share_all_embeddings or cfg.share_decoder_input_output_embed,
            adaptive_softmax_cutoff=cutoffs(cfg, len(target)),
            max_target_positions=cfg.max_target_positions,
        )
        return cls(encoder, decoder)


register_architectures("transformer_sru", check)
