"""The model ``sru`` and its architectures."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from fairseq.models import register_model
from torch import nn

from . import options
from .architectures import register_architectures
from .config import SRUConfig
from .decoder import SRUDecoder
from .embeddings import embeddings
from .encoder import SRUEncoder
from .translation import TranslationModel


def check(cfg: Any, config: type[SRUConfig]) -> Namespace:
    """Return the options, completed and checked; a ValueError names the flag, its value and what is allowed."""
    cfg = options.completed(cfg, config)
    where = options.attention(cfg.decoder_attention)
    if where == 0 and options.reads_attention(cfg.criterion):
        raise ValueError(
            f"--criterion {cfg.criterion} goes with attention; got --decoder-attention {cfg.decoder_attention}"
        )
    if where not in (0, "global"):
        options.must_divide(cfg, "decoder_attention_heads", "decoder_hidden_size")
    options.coverage(cfg, len(options.attended(cfg)))
    options.must_match(cfg, "share_all_embeddings", "encoder_embed_dim", "decoder_embed_dim")
    if cfg.share_all_embeddings and cfg.decoder_embed_path and cfg.decoder_embed_path != cfg.encoder_embed_path:
        raise ValueError(
            f"--share-all-embeddings takes the embedding from --encoder-embed-path; "
            f"--decoder-embed-path must be the same or left out, got {cfg.decoder_embed_path}"
        )
    if options.tied(cfg):
        for shared in ("share_all_embeddings", "share_decoder_input_output_embed"):
            options.must_match(cfg, shared, "decoder_embed_dim", "decoder_out_embed_dim")
    return cfg


@register_model("sru", dataclass=SRUConfig)
class SRUModel(TranslationModel):
    """SRU encoder and decoder with multi-head attention in each decoder layer or each N-th.

    Deep bidirectional encoder, deep decoder, multi-head attention, layer normalisation and residual connections follow
    RNMT+ (Chen et al. 2018), with SRU (Lei et al. 2017) in place of LSTM and pre-norm residual layers. The same model
    is to be had with LSTM, and both as plain layers with one global attention. A subclass's ``config`` may have more
    options.
    """

    config: type[SRUConfig] = SRUConfig

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> SRUModel:
        """Build the model for a task's dictionaries; a ValueError names the flag of options that don't go together."""
        cfg = check(cfg, cls.config)
        source, target = task.source_dictionary, task.target_dictionary
        encoder_embed, decoder_embed = embeddings(cfg, source, target)
        encoder = cls.build_encoder(cfg, source, encoder_embed, options.attention(cfg.decoder_attention) != 0)
        return cls(encoder, cls.build_decoder(cfg, target, decoder_embed, encoder))

    @classmethod
    def build_encoder(cls, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding, read: bool) -> SRUEncoder:
        """The encoder, with its embedding; cfg: options, completed; read: of :class:`SRUEncoder`."""
        return SRUEncoder(cfg, dictionary, embed_tokens, read)

    @classmethod
    def build_decoder(
        cls, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding, encoder: SRUEncoder
    ) -> SRUDecoder:
        """The decoder, with its embedding, for what the encoder gives; cfg: options, completed."""
        return SRUDecoder(cfg, dictionary, embed_tokens, encoder.output_units, encoder.state_units)


register_architectures("sru", SRUConfig, check)
