"""The model ``sru`` and its architectures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fairseq import utils
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    FairseqEncoderDecoderModel,
    register_model,
    register_model_architecture,
)
from omegaconf import OmegaConf
from torch import nn

from .config import SRUConfig, attention, check, cutoffs, flag, option, presets
from .decoder import SRUDecoder
from .encoder import SRUEncoder, embedding


@register_model("sru", dataclass=SRUConfig)
class SRUModel(FairseqEncoderDecoderModel):
    """SRU encoder and decoder with multi-head attention in each decoder layer.

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
        source, target = task.source_dictionary, task.target_dictionary
        if option(cfg, "share_all_embeddings") and source != target:
            raise ValueError(
                "--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary)"
            )
        encoder_embed = _embedding(cfg, "encoder", source)
        decoder_embed = encoder_embed if option(cfg, "share_all_embeddings") else _embedding(cfg, "decoder", target)
        for side, module in (("encoder", encoder_embed), ("decoder", decoder_embed)):
            if option(cfg, f"{side}_freeze_embed"):
                module.weight.requires_grad = False

        encoder = SRUEncoder(
            source,
            encoder_embed,
            hidden_size=option(cfg, "encoder_hidden_size"),
            num_layers=option(cfg, "encoder_layers"),
            bidirectional=option(cfg, "encoder_bidirectional"),
            dropout_in=option(cfg, "encoder_dropout_in"),
            dropout_out=option(cfg, "encoder_dropout_out"),
            rnn_dropout=option(cfg, "rnn_dropout"),
            max_source_positions=option(cfg, "max_source_positions"),
            unit=option(cfg, "recurrent_unit"),
            residual=not option(cfg, "no_residual"),
            attended=attention(cfg) != "none",
        )
        decoder = SRUDecoder(
            target,
            decoder_embed,
            hidden_size=option(cfg, "decoder_hidden_size"),
            out_embed_dim=option(cfg, "decoder_out_embed_dim"),
            num_layers=option(cfg, "decoder_layers"),
            attention=attention(cfg),
            heads=option(cfg, "decoder_attention_heads"),
            encoder_output_units=encoder.output_units,
            encoder_state_units=encoder.state_units,
            dropout_in=option(cfg, "decoder_dropout_in"),
            dropout_out=option(cfg, "decoder_dropout_out"),
            rnn_dropout=option(cfg, "rnn_dropout"),
            share_input_output_embed=option(cfg, "share_all_embeddings")
            or option(cfg, "share_decoder_input_output_embed"),
            adaptive_softmax_cutoff=cutoffs(cfg, len(target)),
            max_target_positions=option(cfg, "max_target_positions"),
            unit=option(cfg, "recurrent_unit"),
            residual=not option(cfg, "no_residual"),
        )
        return cls(encoder, decoder)


def _embedding(cfg: Any, side: str, dictionary: Any) -> nn.Embedding:
    module = embedding(len(dictionary), option(cfg, f"{side}_embed_dim"), dictionary.pad())
    path = option(cfg, f"{side}_embed_path")
    if path:
        try:
            vectors = utils.parse_embedding(path)
            utils.print_embed_overlap(vectors, dictionary)
            utils.load_embedding(vectors, dictionary, module)
        except (ValueError, RuntimeError) as error:  # a word without numbers, or with too few
            raise ValueError(f"{flag(f'{side}_embed_path')}: {path}: {error}") from None
    return module


def _exit(message: str) -> NoReturn:
    """End as argparse does at a bad command line: one line, status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _check_data(args: Any) -> None:
    """fairseq-train: are there dictionaries in the data folder? fairseq itself would end in a traceback."""
    data, task = getattr(args, "data", None), getattr(args, "task", None)
    if not data or task != "translation":
        return
    folder = Path(utils.split_paths(data)[0])
    if not folder.is_dir():
        _exit(f"argument data: no such folder: {folder}")
    languages = [lang for lang in (getattr(args, "source_lang", None), getattr(args, "target_lang", None)) if lang]
    wanted = [f"dict.{lang}.txt" for lang in languages] or ["dict.*.txt"]
    found = [path for name in wanted for path in sorted(folder.glob(name))]
    for name in wanted:
        if not any(folder.glob(name)):
            _exit(f"argument data: {folder} holds no {name}; fairseq-preprocess makes it")
    if option(args, "share_all_embeddings") and len(found) == 2 and found[0].read_bytes() != found[1].read_bytes():
        _exit(
            "--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary); "
            f"got {found[0].name} and {found[1].name}, which differ"
        )


def _architecture(options: dict[str, Any]) -> Callable[[Any], None]:
    def apply(args: Any) -> None:
        """fairseq calls this when the command line is parsed (a Namespace) and when the model is built (a
        DictConfig)."""
        for name, value in options.items():
            if not hasattr(args, name):
                setattr(args, name, value)
        if OmegaConf.is_config(args):
            return
        try:
            check(args)
        except ValueError as error:
            _exit(str(error))
        _check_data(args)

    return apply


# fairseq registers an architecture named as the model by itself, but without the checks: ours takes its place.
ARCH_CONFIG_REGISTRY["sru"] = _architecture({})
for _name, _options in presets().items():
    register_model_architecture("sru", _name)(_architecture(_options))
