"""The options of all models: their presets, embeddings that are shared or given, and one line that names a bad one."""

from __future__ import annotations

import re
from argparse import Namespace

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from support.small_models import MODELS, UNITS, made

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
from fairseq_sru.models.options import ALIGNED, reads_attention

ALL, TRANSLATION = tuple(MODELS), ("sru", "transformer_sru")
translating = pytest.mark.parametrize("kind", TRANSLATION)

# which models, options, message
BAD = [
    (TRANSLATION, {"encoder_layers": 0}, "--encoder-layers must be at least 1; got 0"),
    (ALL, {"decoder_layers": 0}, "--decoder-layers must be at least 1; got 0"),
    (["sru"], {"encoder_kernel_size": 0}, "--encoder-kernel-size must be at least 1; got 0"),
    (["sru_lm"], {"decoder_kernel_size": 0}, "--decoder-kernel-size must be at least 1; got 0"),
    (["sru", "sru_lm"], {"decoder_hidden_size": -4}, "--decoder-hidden-size must be at least 1; got -4"),
    (["transformer_sru"], {"decoder_ffn_embed_dim": 0}, "--decoder-ffn-embed-dim must be at least 1; got 0"),
    (["transformer_sru"], {"encoder_embed_dim": 2}, "--encoder-embed-dim must be at least 4; got 2"),
    (["sru"], {"decoder_attention_heads": 3}, "--decoder-attention-heads must divide --decoder-hidden-size 8; got 3"),
    (["sru"], {"decoder_attention_heads": 0}, "--decoder-attention-heads must be at least 1; got 0"),
    *(
        (
            ["transformer_sru"],
            {f"{s}_attention_heads": 3},
            f"--{s}-attention-heads must divide --{s}-embed-dim 8; got 3",
        )
        for s in ("encoder", "decoder")
    ),
    (
        ["sru"],
        {"decoder_attention": "maybe"},
        "--decoder-attention must be True, False, global or a number of layers; got 'maybe'",
    ),
    (TRANSLATION, {"decoder_coverage": "maybe"}, "--decoder-coverage must be True, False or auto; got 'maybe'"),
    (
        ["sru"],
        {"decoder_coverage": "True", "decoder_attention": "2"},
        "--decoder-coverage takes two decoder layers with attention at least; got 1",
    ),
    (
        ["sru"],
        {"decoder_coverage": "True", "decoder_attention": "global"},
        "--decoder-coverage takes two decoder layers with attention at least; got 0",
    ),
    (
        ["transformer_sru"],
        {"decoder_coverage": "True", "decoder_layers": 1},
        "--decoder-coverage takes two decoder layers with attention at least; got 1",
    ),
    (["sru", "sru_lm"], {"sru_activation": "gelu"}, "--sru-activation must be one of identity, tanh, relu; got 'gelu'"),
    (["sru"], {"recurrent_unit": "gru"}, "--recurrent-unit must be one of sru, lstm; got 'gru'"),
    (
        ["transformer_sru"],
        {"decoder_autoreg": "lstm"},
        "--decoder-autoreg must be one of ssru, sru, self-attention; got 'lstm'",
    ),
    (["transformer_sru"], {"feed_forward": "conv"}, "--feed-forward must be one of linear, sru; got 'conv'"),
    (
        ["transformer_sru"],
        {"feed_forward": "sru", "encoder_ffn_embed_dim": 7},
        "--encoder-ffn-embed-dim must be even with --feed-forward sru, .*; got 7",
    ),
    (ALL, {"dropout": 1.0}, r"--dropout must be in \[0, 1\); got 1.0"),
    (TRANSLATION, {"attention_dropout": 1.0}, r"--attention-dropout must be in \[0, 1\); got 1.0"),
    (ALL, {"rnn_dropout": -0.1}, r"--rnn-dropout must be in \[0, 1\); got -0.1"),
    (["sru_lm"], {"rnn_dropout": 2}, r"--rnn-dropout must be in \[0, 1\); got 2"),
    (["sru", "sru_lm"], {"decoder_dropout_in": 1.0}, r"--decoder-dropout-in must be in \[0, 1\); got 1.0"),
    (["sru"], {"encoder_embed_path": "/none/vectors.txt"}, "--encoder-embed-path: no such file: /none/vectors.txt"),
    (
        TRANSLATION,
        {"share_all_embeddings": True, "encoder_embed_dim": 6},
        "--share-all-embeddings requires --encoder-embed-dim to match --decoder-embed-dim; got 6 and 8",
    ),
    (
        ["sru", "sru_lm"],
        {"share_decoder_input_output_embed": True, "decoder_out_embed_dim": 6},
        "--share-decoder-input-output-embed requires --decoder-embed-dim to match --decoder-out-embed-dim; got 8 and 6",
    ),
    (
        ["sru"],
        {"decoder_attention": "False", "criterion": "label_smoothed_cross_entropy_with_alignment"},
        "--criterion label_smoothed_cross_entropy_with_alignment goes with attention; got --decoder-attention False",
    ),
    *(  # read, not evaluated
        (
            ALL,
            {"criterion": "adaptive_loss", "adaptive_softmax_cutoff": text},
            "--adaptive-softmax-cutoff must be increasing numbers of words from 2 on, as 2000,10000; "
            f"got {re.escape(repr(text))}",
        )
        for text in ("20,10", "1,10", "abc", "1/0", "10,-20", "", "[5,__import__('os').getpid()+10]")
    ),
]


@pytest.mark.parametrize(
    "kind, options, message", [(kind, options, message) for kinds, options, message in BAD for kind in kinds]
)
def test_bad_options_are_named(kind, options, message, dictionary):
    with pytest.raises(ValueError, match=message):
        made(kind, dictionary, **options)


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


def test_a_joint_dictionary_is_one_of_the_same_words(tmp_path):
    given = {"task": "translation", "data": str(tmp_path), "share_all_embeddings": True}
    (tmp_path / "dict.en.txt").write_text("a 1\nb 2\n")
    (tmp_path / "dict.de.txt").write_text("a 3\nb 4\n")  # counts don't matter
    ARCH_CONFIG_REGISTRY["sru_tiny"](Namespace(**given))
    (tmp_path / "dict.de.txt").write_text("b 4\na 3\n")
    with pytest.raises(SystemExit):
        ARCH_CONFIG_REGISTRY["sru_tiny"](Namespace(**given))


SIZES = ("tiny", "iwslt_de_en", "wmt", "wmt_big", "wmt_2017")


@pytest.mark.parametrize(
    "kind, config, names",
    [
        ("sru", SRUConfig, [f"{unit}_{made_for}" for unit in UNITS for made_for in SIZES]),
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
    """As some of GloVe's do."""
    path = embedding_file(tmp_path / "vectors.txt", [". . .", "w5"], 8)
    with open(path, "a") as file:
        file.write("\nelsewhere" + " x" * 8 + "\n")  # of a word that nobody asks for, no number is read
    weight = build(encoder_embed_path=path).encoder.embed_tokens.weight
    expected = torch.tensor([0.01 + 0.1 * k for k in range(8)]).double()
    torch.testing.assert_close(weight[dictionary.index("w5")], expected, rtol=1e-5, atol=1e-6)


def test_bad_embedding_files_are_named(build, tmp_path):
    path = embedding_file(tmp_path / "vectors.txt", ["w3"], 5)
    with pytest.raises(ValueError, match=r"--encoder-embed-path: .*vectors of 5 numbers, --encoder-embed-dim is 8"):
        build(encoder_embed_path=path)
    embedding_file(tmp_path / "vectors.txt", ["w3"], 10)
    (tmp_path / "vectors.txt").write_text((tmp_path / "vectors.txt").read_text().replace("1 10", "1 8"))
    with pytest.raises(ValueError, match=r"--encoder-embed-path: .*vectors of 10 numbers, --encoder-embed-dim is 8"):
        build(encoder_embed_path=path)
    for content, message in (
        (b"1 8\n\xff\xfe 0.1", r"--encoder-embed-path: .* is not UTF-8 text"),
        (b"2 8\nw3" + b" 0.1" * 8 + b"\nw4 0.1 two\n", r"--encoder-embed-path: .*: line 3: could not convert"),
        (b"2 8\nw3" + b" 0.1" * 8 + b"\nw4 0.1\n", r"embed-path: .*: line 3 holds a vector of 1 numbers, not of 8"),
        (b"999 8\n" + 999 * (b"w3" + b" 0.1" * 8 + b"\n") + b"\xff\n", r"embed-path: .*: line 1001: 'utf-8' codec"),
        (b"w3 0.1 0.2\n", "must begin with a line `words dimensions`"),
    ):
        (tmp_path / "vectors.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            build(encoder_embed_path=path)


def test_a_criterion_that_is_derived_reads_attention_too(monkeypatch):
    monkeypatch.setitem(CRITERION_REGISTRY, "own", type("Own", (CRITERION_REGISTRY[ALIGNED],), {}))
    assert reads_attention(ALIGNED) and reads_attention("own")
    assert not any(map(reads_attention, ("label_smoothed_cross_entropy", "unknown", None)))
