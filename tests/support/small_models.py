"""Small models in all their variants, sentences for them, and what is done with a model of any kind."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor, nn

from fairseq_sru.models.attention import Coverage
from fairseq_sru.models.config import presets
from fairseq_sru.models.lm import SRULanguageModel
from fairseq_sru.models.sru import SRUModel
from fairseq_sru.models.transformer_sru import TransformerSRUModel

Options = dict[str, Any]
FIXED: Options = {"criterion": "cross_entropy", "max_source_positions": 1024, "max_target_positions": 1024}
MODELS = {"sru": SRUModel, "transformer_sru": TransformerSRUModel, "sru_lm": SRULanguageModel}
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
    "sru_lm": {"decoder_embed_dim": 8, "max_target_positions": None},
}
ADAPTIVE: Options = {
    "criterion": "adaptive_loss",
    "adaptive_softmax_cutoff": "10,20,200000",
    "decoder_out_embed_dim": 16,
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
    "coverage": {"decoder_coverage": "True", "decoder_attention": "2", "decoder_layers": 4},
    "coverage, three attentions, lstm": {"decoder_coverage": "True", "decoder_layers": 3, "recurrent_unit": "lstm"},
    "tied": {"share_all_embeddings": True, "decoder_hidden_size": 12},
    "adaptive softmax": ADAPTIVE,
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
    "coverage": {"decoder_coverage": "True", "decoder_autoreg": "self-attention", "decoder_layers": 3},
    "ssru, coverage": {"decoder_coverage": "True", "decoder_layers": 3, "encoder_layers": 1},
    "sizes differ": {"encoder_embed_dim": 12, "encoder_layers": 1, "decoder_layers": 1},
    "tied": {"share_all_embeddings": True, "encoder_layers": 1, "decoder_layers": 1},
    "adaptive softmax": {"criterion": "adaptive_loss", "adaptive_softmax_cutoff": "10,20", "decoder_embed_dim": 16},
    **{name: {**options, **SIZES["transformer_sru"]} for name, options in presets("transformer_sru").items()},
}
LM_VARIANTS: dict[str, Options] = {
    "defaults": {},
    "tied": {"share_decoder_input_output_embed": True, "decoder_hidden_size": 12, "decoder_layers": 3},
    "identity": {"sru_activation": "identity"},
    "lstm": {"recurrent_unit": "lstm"},
    "convolution": {"decoder_kernel_size": 4},
    "lstm, convolution": {"recurrent_unit": "lstm", "decoder_kernel_size": 2},
    "adaptive softmax": ADAPTIVE,
    **{
        name: {**options, "decoder_embed_dim": 16, "decoder_hidden_size": 12, "decoder_out_embed_dim": 16}
        for name, options in presets("sru_lm").items()
    },
}
VARIANTS = {
    f"{kind}, {name}": (kind, options)
    for kind, variants in zip(MODELS, (SRU_VARIANTS, TRANSFORMER_VARIANTS, LM_VARIANTS), strict=True)
    for name, options in variants.items()
}
UNITS = ["sru", "lstm"]


def numbered(count: int) -> Dictionary:
    """A dictionary of so many words."""
    dictionary = Dictionary()
    for i in range(count):
        dictionary.add_symbol(f"w{i}")
    return dictionary


def made(kind: str, dictionary: Dictionary, target_dictionary: Dictionary | None = None, **options: Any) -> Any:
    """A small model in float64, its options as on the command line; what starts at 0 is random."""
    task = Namespace(source_dictionary=dictionary, target_dictionary=target_dictionary or dictionary)
    model = MODELS[kind].build_model(Namespace(**{**FIXED, **SIZES[kind], **options}), task).double()
    for module in model.modules():
        if isinstance(module, Coverage):
            nn.init.normal_(module.weight, std=0.3)
    return model


def preset(name: str, words: int, **options: Any) -> Any:
    """A preset's model for a joint dictionary; on the meta device: shapes alone."""
    dictionary = numbered(words - Dictionary().nspecial)
    args = Namespace(**{**FIXED, **options})
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


def encode(model: Any, src: Tensor) -> Any:
    return model.encoder(src) if hasattr(model, "encoder") else None


def run(model: Any, src: Tensor, target: Tensor, lengths: Tensor | None = None) -> Any:
    """All positions at once. A language model reads the target alone."""
    return model(src, lengths, target) if hasattr(model, "encoder") else model(target)


def reorder(model: Any, state: Any, encoded: Any, order: Tensor) -> Any:
    """Reorder as fairseq's search does after a step; return what was encoded in the new order."""
    model.decoder.reorder_incremental_state_scripting(state, order)
    return None if encoded is None else model.encoder.reorder_encoder_out(encoded, order)
