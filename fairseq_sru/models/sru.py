"""The model ``sru`` and its architectures."""

from __future__ import annotations

from typing import Any

from fairseq import utils
from fairseq.models import FairseqEncoderDecoderModel, register_model
from torch import nn

from .architectures import register_architectures
from .config import SRUConfig, attention, check, completed, cutoffs, flag, joint_dictionary
from .decoder import SRUDecoder
from .encoder import SRUEncoder, embedding


@register_model("sru", dataclass=SRUConfig)
class SRUModel(FairseqEncoderDecoderModel):
    """SRU encoder and decoder with multi-head attention in each decoder layer or each N-th.

    Deep bidirectional encoder, deep decoder, multi-head attention, layer normalisation and residual connections follow
    RNMT+ (Chen et al. 2018), with SRU (Lei et al. 2017) in place of LSTM and pre-norm residual layers. The same
    model is to be had with LSTM, and both as plain layers with one global attention.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> SRUModel:
        """Build the model for a task's dictionaries.

        Raises:
            ValueError: the options do not go together; the message names the flag.
        """
        check(cfg)
        cfg = completed(cfg, SRUConfig)
        source, target = task.source_dictionary, task.target_dictionary
        joint_dictionary(cfg, source, target)
        encoder_embed = _embedding(cfg, "encoder", source)
        decoder_embed = encoder_embed if cfg.share_all_embeddings else _embedding(cfg, "decoder", target)
        for side, module in (("encoder", encoder_embed), ("decoder", decoder_embed)):
            if getattr(cfg, f"{side}_freeze_embed"):
                module.weight.requires_grad = False

        encoder = SRUEncoder(
            source,
            encoder_embed,
            hidden_size=cfg.encoder_hidden_size,
            num_layers=cfg.encoder_layers,
            bidirectional=cfg.encoder_bidirectional,
            dropout_in=cfg.encoder_dropout_in,
            dropout_out=cfg.encoder_dropout_out,
            rnn_dropout=cfg.rnn_dropout,
            max_source_positions=cfg.max_source_positions,
            unit=cfg.recurrent_unit,
            activation=cfg.sru_activation,
            residual=not cfg.no_residual,
            attended=attention(cfg) != 0,
            kernel_size=cfg.encoder_kernel_size,
        )
        decoder = SRUDecoder(
            target,
            decoder_embed,
            hidden_size=cfg.decoder_hidden_size,
            out_embed_dim=cfg.decoder_out_embed_dim,
            num_layers=cfg.decoder_layers,
            attention=attention(cfg),
            heads=cfg.decoder_attention_heads,
            encoder_output_units=encoder.output_units,
            encoder_state_units=encoder.state_units,
            dropout_in=cfg.decoder_dropout_in,
            dropout_out=cfg.decoder_dropout_out,
            rnn_dropout=cfg.rnn_dropout,
            share_input_output_embed=cfg.share_all_embeddings or cfg.share_decoder_input_output_embed,
            adaptive_softmax_cutoff=cutoffs(cfg, len(target)),
            max_target_positions=cfg.max_target_positions,
            unit=cfg.recurrent_unit,
            activation=cfg.sru_activation,
            residual=not cfg.no_residual,
        )
        return cls(encoder, decoder)


def _embedding(cfg: Any, side: str, dictionary: Any) -> nn.Embedding:
    module = embedding(len(dictionary), getattr(cfg, f"{side}_embed_dim"), dictionary.pad())
    path = getattr(cfg, f"{side}_embed_path")
    if path:
        try:
            vectors = utils.parse_embedding(path)
            utils.print_embed_overlap(vectors, dictionary)
            utils.load_embedding(vectors, dictionary, module)
        except (ValueError, RuntimeError) as error:  # a word without numbers, or with too few
            raise ValueError(f"{flag(f'{side}_embed_path')}: {path}: {error}") from None
    return module


register_architectures("sru", check)
