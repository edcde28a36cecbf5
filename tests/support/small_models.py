"""Small translation models in all their variants, and sentences for them."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor, nn

from fairseq_sru.models.config import presets
from fairseq_sru.models.sru import SRUModel
from fairseq_sru.models.transformer_sru import TransformerSRUModel

Options = dict[str, Any]
FIXED: Options = {"criterion": "cross_entropy", "max_source_positions": 1024, "max_target_positions": 1024}
SIZES: dict[str, Options] = {
    "sru": {"encoder_embed_dim": 8, "decoder_embed_dim": 8, "decoder_attention_heads": 2},
    "transformer_sru": {
        "encoder_embed_dim": 8,
        "encoder_ffn_embed_dim": 12,
        "encoder_attention_heads": 2,
        "decoder_embed_dim": 8,
        "decoder_ffn_embed_dim": 10,
        "decoder_attention_heads": 2,
    },
}


def narrow(options: Options) -> Options:
    """A preset of ``sru`` with its depth and manner, but narrow layers, of other sizes than the embedding where it has
    such."""
    small = {"encoder_embed_dim": 8, "decoder_embed_dim": 8}
    small |= {"encoder_hidden_size": 3, "decoder_hidden_size": 16} if "encoder_hidden_size" in options else {}
    return {**options, **small}


SRU_VARIANTS: dict[str, Options] = {
    "defaults": {},
    "bidirectional": {"encoder_bidirectional": True, "encoder_layers": 3},
    "sizes differ": {"encoder_hidden_size": 6, "decoder_hidden_size": 12, "decoder_embed_dim": 10, "decoder_layers": 1},
    "no attention": {"decoder_attention": "False", "encoder_bidirectional": True},
    "attention in each second layer": {"decoder_attention": "2", "decoder_layers": 4},
    "tied": {"share_all_embeddings": True, "decoder_hidden_size": 12},
    "adaptive softmax": {
        "criterion": "adaptive_loss",
        "adaptive_softmax_cutoff": "10,20,200000",
        "decoder_out_embed_dim": 16,
    },
    "global attention": {"decoder_attention": "global", "encoder_bidirectional": True, "decoder_out_embed_dim": 12},
    "no residual": {"no_residual": True, "encoder_bidirectional": True},
    "convolution": {"encoder_kernel_size": 4, "encoder_bidirectional": True},
    "identity": {"sru_activation": "identity", "encoder_bidirectional": True},
    "lstm": {"recurrent_unit": "lstm"},
    "lstm, convolution": {"recurrent_unit": "lstm", "encoder_kernel_size": 3},
    "lstm, no attention": {"recurrent_unit": "lstm", "decoder_attention": "False", "encoder_bidirectional": True},
    **{name: narrow(options) for name, options in presets().items()},
}
TRANSFORMER_VARIANTS: dict[str, Options] = {
    "ssru": {"decoder_autoreg": "ssru", "encoder_layers": 2, "decoder_layers": 3},
    "sru": {"decoder_autoreg": "sru", "encoder_layers": 3, "decoder_layers": 2},
    "transformer": {"decoder_autoreg": "self-attention", "encoder_layers": 2, "decoder_layers": 2},
    "ssru, feed-forward sru": {"feed_forward": "sru", "encoder_layers": 1, "decoder_layers": 2},
    "sizes differ": {"encoder_embed_dim": 12, "encoder_layers": 1, "decoder_layers": 1},
    "tied": {"share_all_embeddings": True, "encoder_layers": 1, "decoder_layers": 1},
    "adaptive softmax": {"criterion": "adaptive_loss", "adaptive_softmax_cutoff": "10,20", "decoder_embed_dim": 16},
    **{name: {**options, **SIZES["transformer_sru"]} for name, options in presets("transformer_sru").items()},
}
VARIANTS = {f"sru, {name}": ("sru", options) for name, options in SRU_VARIANTS.items()}
VARIANTS |= {f"transformer_sru, {name}": ("transformer_sru", options) for name, options in TRANSFORMER_VARIANTS.items()}
UNITS = ["sru", "lstm"]


def made(kind: str, dictionary: Dictionary, target_dictionary: Dictionary | None = None, **options: Any) -> Any:
    """A small model in float64, its options as on the command line."""
    task = Namespace(source_dictionary=dictionary, target_dictionary=target_dictionary or dictionary)
    model = SRUModel if kind == "sru" else TransformerSRUModel
    return model.build_model(Namespace(**{**FIXED, **SIZES[kind], **options}), task).double()


def preset(name: str, words: int, **options: Any) -> Any:
    """A preset's model for a joint dictionary; on the meta device: shapes alone."""
    dictionary = Dictionary()
    for i in range(words - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    args = Namespace(**FIXED, **options)
    ARCH_CONFIG_REGISTRY[name](args)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    with torch.device("meta"):
        return ARCH_MODEL_REGISTRY[name].build_model(args, task)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def sources(dictionary: Dictionary, lengths: list[int], side: str = "left", seed: int = 0) -> Tensor:
    """Random source sentences, each ended by eos: padded (batch, longest)."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths)), dictionary.pad())
    for row, n in zip(tokens, lengths, strict=True):
        words = torch.randint(dictionary.nspecial, len(dictionary), (n,), generator=rng)
        words[-1] = dictionary.eos()
        row[slice(-n, None) if side == "left" else slice(0, n)] = words
    return tokens


def prefixes(dictionary: Dictionary, batch: int, length: int, seed: int = 1) -> Tensor:
    """Random targets so far, after eos: (batch, length)."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(dictionary.nspecial, len(dictionary), (batch, length), generator=rng)
    tokens[:, 0] = dictionary.eos()
    return tokens


def log_probs(model: Any, net_output: Any) -> Tensor:
    return model.get_normalized_probs(net_output, log_probs=True)
