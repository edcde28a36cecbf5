"""The options of all models: their presets, embeddings that are shared or given, and one line that names a bad one."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from support.small_models import FIXED, MODELS, SIZES, UNITS, made

from fairseq_sru.models.config import (
    PRESETS,
    ClassifierConfig,
    CNNClassifierConfig,
    SpeechConfig,
    SRUConfig,
    SRULanguageModelConfig,
    TransformerSRUConfig,
    presets,
)
from fairseq_sru.models.options import ALIGNED, flag, reads_attention

ALL, TRANSLATION = tuple(MODELS), ("sru", "transformer_sru")
translating = pytest.mark.parametrize("kind", TRANSLATION)

# models, options; the message has the flag of the first, and its value
BAD: list[tuple[Sequence[str], dict[str, Any]]] = [
    (TRANSLATION, {"encoder_layers": 0}),
    (ALL, {"decoder_layers": 0}),
    (["sru"], {"encoder_kernel_size": 0}),
    (["sru_lm"], {"decoder_kernel_size": 0}),
    (["sru", "sru_lm"], {"decoder_hidden_size": -4}),
    (["transformer_sru"], {"decoder_ffn_embed_dim": 0}),
    (["transformer_sru"], {"encoder_embed_dim": 2}),
    (TRANSLATION, {"decoder_attention_heads": 3}),
    (TRANSLATION, {"decoder_attention_heads": 0}),
    (["transformer_sru"], {"encoder_attention_heads": 3}),
    (["sru"], {"decoder_attention": "maybe"}),
    (TRANSLATION, {"decoder_coverage": "maybe"}),
    (["sru", "sru_lm"], {"sru_activation": "gelu"}),
    (["sru", "sru_lm"], {"recurrent_unit": "gru"}),
    (["transformer_sru"], {"decoder_autoreg": "lstm"}),
    (["transformer_sru"], {"feed_forward": "conv"}),
    (["transformer_sru"], {"encoder_ffn_embed_dim": 7, "feed_forward": "sru"}),
    (ALL, {"dropout": 1.0}),
    (TRANSLATION, {"attention_dropout": 1.0}),
    (ALL, {"rnn_dropout": -0.1}),
    (["sru", "sru_lm"], {"decoder_dropout_in": 1.0}),
    (["sru"], {"encoder_embed_path": "/none/vectors.txt"}),
    (["sru"], {"criterion": ALIGNED, "decoder_attention": "False"}),
    *(  # read, not evaluated
        (ALL, {"adaptive_softmax_cutoff": text, "criterion": "adaptive_loss"})
        for text in ("20,10", "1,10", "abc", "1/0", "10,-20", "", "[5,__import__('os').getpid()+10]")
    ),
    (["s2t_sru"], {"conv_kernel_sizes": "4,5"}),
    (["s2t_sru"], {"conv_kernel_sizes": ""}),
    (["s2t_sru"], {"conv_channels": 7}),
    (["sru_classifier"], {"pooling": "min"}),
    (["sru_classifier"], {"encoder_layers": 0}),
    (["cnn_classifier"], {"filter_widths": "3,0"}),
    (["cnn_classifier"], {"filters": 0}),
]


@pytest.mark.parametrize("kind, options", [(kind, options) for kinds, options in BAD for kind in kinds])
def test_a_bad_option_is_named_with_its_value(kind, options, dictionary):
    name, value = next(iter(options.items()))
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    given = Namespace(**{**FIXED, **SIZES.get(kind, {}), **options})
    with pytest.raises(ValueError, match=flag(name)) as refused:
        ARCH_MODEL_REGISTRY[kind].build_model(given, task)
    assert str(value) in str(refused.value)


@pytest.mark.parametrize(
    "kind, options, size",
    [
        ("sru", {"decoder_attention": "2"}, "1"),
        ("sru", {"decoder_attention": "global"}, "0"),
        ("transformer_sru", {"decoder_layers": 1}, "1"),
    ],
)
def test_coverage_takes_two_attentions(kind, options, size, dictionary):
    with pytest.raises(ValueError, match=f"^--decoder-coverage takes two decoder layers .*; got {size}$"):
        made(kind, dictionary, decoder_coverage="True", **options)


@pytest.mark.parametrize(
    "kind, shared, sizes",
    [
        ("sru", "share_all_embeddings", {"encoder_embed_dim": 6, "decoder_embed_dim": 8}),
        ("transformer_sru", "share_all_embeddings", {"encoder_embed_dim": 6, "decoder_embed_dim": 8}),
        ("sru", "share_decoder_input_output_embed", {"decoder_embed_dim": 8, "decoder_out_embed_dim": 6}),
        ("sru_lm", "share_decoder_input_output_embed", {"decoder_embed_dim": 8, "decoder_out_embed_dim": 6}),
    ],
)
def test_sizes_of_a_shared_embedding_must_match(kind, shared, sizes, dictionary):
    with pytest.raises(ValueError, match=flag(shared)) as refused:
        made(kind, dictionary, **{shared: True, **sizes})
    assert all(flag(name) in str(refused.value) and str(size) in str(refused.value) for name, size in sizes.items())


@pytest.mark.parametrize("flag", ["share_all_embeddings", "share_decoder_input_output_embed"])
def test_an_adaptive_softmax_has_a_size_of_its_own(flag, dictionary):
    cutoff = {"criterion": "adaptive_loss", "adaptive_softmax_cutoff": "10"}
    model = made("sru", dictionary, **cutoff, **{flag: True, "decoder_out_embed_dim": 6})
    assert model.decoder.adaptive_softmax.head.in_features == 6


@translating
def test_shared_embeddings_are_one_tensor_and_need_one_dictionary(kind, dictionary):
    for option, shared in (("share_all_embeddings", True), ("share_decoder_input_output_embed", False)):
        model = made(kind, dictionary, **{option: True})
        assert (model.encoder.embed_tokens is model.decoder.embed_tokens) == shared
        assert model.decoder.output_projection is None
    other = Dictionary()
    other.add_symbol("another")
    with pytest.raises(ValueError, match="--share-all-embeddings requires a joint dictionary"):
        made(kind, dictionary, other, share_all_embeddings=True)


PRESET_SIZES = ("tiny", "iwslt_de_en", "wmt", "wmt_big", "wmt_2017")


@pytest.mark.parametrize(
    "kind, config, names",
    [
        ("sru", SRUConfig, [f"{unit}_{made_for}" for unit in UNITS for made_for in PRESET_SIZES]),
        ("transformer_sru", TransformerSRUConfig, [f"{ALL[1]}_{n}" for n in ("wmt", "iwslt_de_en", "tiny", "ffn_wmt")]),
        ("sru_lm", SRULanguageModelConfig, ["sru_lm_wikitext103", "sru_lm_small", "lstm_lm_small"]),
        ("s2t_sru", SpeechConfig, ["s2t_sru", "s2t_lstm"]),
        ("sru_classifier", ClassifierConfig, ["sru_classifier", "lstm_classifier"]),
        ("cnn_classifier", CNNClassifierConfig, ["cnn_classifier"]),
    ],
    ids=[*ALL, "s2t_sru", "sru_classifier", "cnn_classifier"],
)
def test_presets_hold_options_of_the_model_and_a_flag_goes_before_them(kind, config, names):
    assert {path.stem for path in (PRESETS / kind).glob("*.yaml")} == set(names)
    for name, options in presets(kind).items():
        assert set(options) <= set(config.__dataclass_fields__)
        args = Namespace(decoder_layers=7)
        ARCH_CONFIG_REGISTRY[name](args)
        assert vars(args) == {**vars(args), **options, "decoder_layers": 7}


def embedding_file(path, words, dim):
    rows = [f"{w} " + " ".join(str(0.01 * i + 0.1 * k) for k in range(dim)) for i, w in enumerate(words)]
    path.write_text(f"{len(words)} {dim}\n" + "\n".join(rows) + "\n")
    return str(path)


def test_pretrained_and_frozen_embeddings(build, dictionary, tmp_path):
    path = embedding_file(tmp_path / "vectors.txt", ["w3", "w5"], 8)
    model = build(encoder_embed_path=path, encoder_freeze_embed=True, decoder_embed_path=path)
    expected = torch.tensor([0.01 + 0.1 * k for k in range(8)]).double()
    for side in (model.encoder, model.decoder):
        torch.testing.assert_close(side.embed_tokens.weight[dictionary.index("w5")], expected, rtol=1e-5, atol=1e-6)
    assert not model.encoder.embed_tokens.weight.requires_grad
    assert model.decoder.embed_tokens.weight.requires_grad
    assert not build(decoder_freeze_embed=True).decoder.embed_tokens.weight.requires_grad  # no path needed


def test_words_of_embedding_files_may_have_spaces(build, dictionary, tmp_path):
    """Some of GloVe's do."""
    path = embedding_file(tmp_path / "vectors.txt", [". . .", "w5"], 8)
    with open(path, "a") as file:
        file.write("\nelsewhere" + " x" * 8 + "\n")  # of a word that nobody asks for, no number is read
    weight = build(encoder_embed_path=path).encoder.embed_tokens.weight
    expected = torch.tensor([0.01 + 0.1 * k for k in range(8)]).double()
    torch.testing.assert_close(weight[dictionary.index("w5")], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        b"1 5\nw3" + b" 0.1" * 5 + b"\n",
        b"1 8\nw3 0.1\n",
        b"1 8\nw3" + b" two" * 8 + b"\n",
        b"1 8\n\xff\xfe 0.1\n",
        b"w3 0.1 0.2\n",
        b"",
    ],
)
def test_a_file_without_vectors_of_the_size_is_named(content, build, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^--encoder-embed-path: {path} .* --encoder-embed-dim 8: "):
        build(encoder_embed_path=str(path))


def test_a_criterion_that_is_derived_reads_attention_too(monkeypatch):
    monkeypatch.setitem(CRITERION_REGISTRY, "own", type("Own", (CRITERION_REGISTRY[ALIGNED],), {}))
    assert reads_attention(ALIGNED) and reads_attention("own")
    assert not any(map(reads_attention, ("label_smoothed_cross_entropy", "unknown", None)))
