"""The model ``sru`` and its architectures."""

from __future__ import annotations

from typing import Any

from fairseq.models import register_model

from ..recurrence import ACTIVATIONS
from . import options
from .architectures import register_architectures
from .config import SRUConfig
from .decoder import SRUDecoder
from .embeddings import embeddings
from .encoder import SRUEncoder
from .translation import TranslationModel
from .units import UNITS


def check(cfg: Any) -> None:
    """Check the options against one another.

    Raises:
        ValueError: naming the flag, its value and what is allowed.
    """
    cfg = options.completed(cfg, SRUConfig)
    sides = ("encoder", "decoder")
    options.at_least_one(cfg, [f"{s}_{size}" for s in sides for size in ("embed_dim", "hidden_size", "layers")])
    options.at_least_one(cfg, ["encoder_kernel_size", "decoder_out_embed_dim"])
    dropouts = [f"{s}_dropout_{end}" for s in sides for end in ("in", "out")]
    options.probabilities(cfg, ["dropout", "rnn_dropout", *dropouts])
    options.one_of(cfg, "recurrent_unit", UNITS)
    options.one_of(cfg, "sru_activation", ACTIVATIONS)
    if options.attention(cfg) not in (0, "global"):
        options.must_divide(cfg, "decoder_attention_heads", "decoder_hidden_size")
    options.coverage(cfg, len(options.attended(cfg)))
    options.cutoffs(cfg)
    for side in sides:
        options.embedding_file(cfg, side)
    options.must_match(cfg, "share_all_embeddings", "encoder_embed_dim", "decoder_embed_dim")
    if cfg.share_all_embeddings and cfg.decoder_embed_path and cfg.decoder_embed_path != cfg.encoder_embed_path:
        raise ValueError(
            f"--share-all-embeddings takes the embedding from --encoder-embed-path; "
            f"--decoder-embed-path must be the same or left out, got {cfg.decoder_embed_path}"
        )
    for shared in ("share_all_embeddings", "share_decoder_input_output_embed"):
        options.must_match(cfg, shared, "decoder_embed_dim", "decoder_out_embed_dim")


@register_model("sru", dataclass=SRUConfig)
class SRUModel(TranslationModel):
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
        cfg = options.completed(cfg, SRUConfig)
        source, target = task.source_dictionary, task.target_dictionary
        options.joint_dictionary(cfg, source, target)
        encoder_embed, decoder_embed = embeddings(cfg, source, target)
        encoder = SRUEncoder(cfg, source, encoder_embed)
        return cls(encoder, SRUDecoder(cfg, target, decoder_embed, encoder.output_units, encoder.state_units))


register_architectures("sru", check)
