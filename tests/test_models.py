"""The model: its equalities (incremental = full, batch = alone), its options and its complaints."""

from __future__ import annotations

import copy
from argparse import Namespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

from fairseq_sru.models.config import PRESETS, SRUConfig, check, presets

VARIANTS = {
    "plain": {},
    "bidirectional": {"encoder_bidirectional": True, "encoder_layers": 3},
    "sizes differ": {"encoder_hidden_size": 6, "decoder_hidden_size": 12, "decoder_embed_dim": 10, "decoder_layers": 1},
    "no attention": {"decoder_attention": "False", "encoder_bidirectional": True},
    "tied": {"share_all_embeddings": True, "decoder_hidden_size": 12},
    "adaptive softmax": {
        "criterion": "adaptive_loss",
        "adaptive_softmax_cutoff": "10,20,200000",
        "decoder_out_embed_dim": 16,
    },
}


def sources(dictionary, lengths, side="left", seed=0):
    """Random source sentences, each ended by eos: padded (batch, longest)."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths)), dictionary.pad())
    for row, n in zip(tokens, lengths, strict=True):
        words = torch.randint(dictionary.nspecial, len(dictionary), (n,), generator=rng)
        words[-1] = dictionary.eos()
        row[slice(-n, None) if side == "left" else slice(0, n)] = words
    return tokens


def prefixes(dictionary, batch, length, seed=1):
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(dictionary.nspecial, len(dictionary), (batch, length), generator=rng)
    tokens[:, 0] = dictionary.eos()
    return tokens


def log_probs(model, net_output):
    return model.get_normalized_probs(net_output, log_probs=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_incremental_equals_full_position_by_position(variant, build, dictionary):
    model = build(**VARIANTS[variant]).eval()
    src, target = sources(dictionary, [5, 3, 7]), prefixes(dictionary, 3, 9)
    encoded = model.encoder(src)
    full, extra = model.decoder(target, encoded)
    full_probs = log_probs(model, (full, extra))
    state: dict = {}
    for t in range(target.size(1)):
        step, step_extra = model.decoder(target[:, : t + 1], encoded, incremental_state=state)
        assert step.shape[1] == 1
        torch.testing.assert_close(log_probs(model, (step, step_extra))[:, 0], full_probs[:, t])
        if extra["attn"][0] is not None:
            torch.testing.assert_close(step_extra["attn"][0][:, 0], extra["attn"][0][:, t])


@pytest.mark.parametrize("variant", VARIANTS)
def test_incremental_equals_full_after_random_reorderings(variant, build, dictionary):
    """Beams of two sentences, reordered at random at every step, also across sentences, and shrunk as fairseq does
    when a sentence is done."""
    model = build(**VARIANTS[variant]).eval()
    rng = torch.Generator().manual_seed(4)
    src = sources(dictionary, [5, 7]).repeat_interleave(4, 0)
    encoded = model.encoder(src)
    target = prefixes(dictionary, 8, 1)
    state: dict = {}
    for t in range(12):
        step = log_probs(model, model.decoder(target, encoded, incremental_state=state))[:, -1]
        full = log_probs(model, model.decoder(target, model.encoder(src)))[:, -1]
        torch.testing.assert_close(step, full)
        size = len(src) - 2 if t in (4, 8) else len(src)
        order = torch.randint(0, len(src), (size,), generator=rng)
        model.decoder.reorder_incremental_state_scripting(state, order)
        encoded = model.encoder.reorder_encoder_out(encoded, order)
        words = torch.randint(dictionary.nspecial, len(dictionary), (size, 1), generator=rng)
        src, target = src[order], torch.cat([target[order], words], dim=1)


def test_a_prefix_of_many_tokens_may_start_the_incremental_state(build, dictionary):
    model = build().eval()
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 6)
    encoded, state = model.encoder(src), {}
    full, _ = model.decoder(target, encoded)
    first, _ = model.decoder(target[:, :4], encoded, incremental_state=state)
    torch.testing.assert_close(first, full[:, :4])
    torch.testing.assert_close(model.decoder(target[:, :5], encoded, incremental_state=state)[0][:, 0], full[:, 4])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_equals_its_sentences_alone(variant, side, build, dictionary):
    model = build(**VARIANTS[variant]).eval()
    lengths = [4, 9, 1, 6]
    src, target = sources(dictionary, lengths, side), prefixes(dictionary, 4, 5)
    together = log_probs(model, model(src, torch.tensor(lengths), target))
    for i, n in enumerate(lengths):
        one = src[i : i + 1, -n:] if side == "left" else src[i : i + 1, :n]
        alone = log_probs(model, model(one, torch.tensor([n]), target[i : i + 1]))
        torch.testing.assert_close(together[i : i + 1], alone)


def test_a_left_padded_target_equals_a_right_padded_one(build, dictionary):
    model = build().eval()
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    pad = torch.full((2, 2), dictionary.pad())
    right = model(src, None, torch.cat([target, pad], 1))[0][:, :5]
    left = model(src, None, torch.cat([pad, target], 1))[0][:, 2:]
    torch.testing.assert_close(left, right)


def test_no_position_sees_a_later_target(build, dictionary):
    model = build().eval()
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 8)
    changed = target.clone()
    changed[:, 5:] = dictionary.nspecial
    before, after = model(src, None, target)[0], model(src, None, changed)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=0)
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_attention_weights_are_a_distribution_over_the_source(build, dictionary):
    model = build(decoder_attention_heads=4).eval()
    src = sources(dictionary, [4, 6])
    weights = model(src, None, prefixes(dictionary, 2, 5))[1]["attn"][0]
    assert weights.shape == (2, 5, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5).double())
    assert not weights[src.eq(dictionary.pad())[:, None].expand_as(weights)].any()
    model.make_generation_fast_(need_attn=False)
    without = model(src, None, prefixes(dictionary, 2, 5))
    assert without[1]["attn"] == [None]


def test_weights_asked_for_or_not_the_output_is_the_same(build, dictionary):
    model = build().eval()
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    with_weights = model(src, None, target)[0]
    model.decoder.need_attn = False
    torch.testing.assert_close(model(src, None, target)[0], with_weights)


def test_gradients_reach_every_weight(build, dictionary):
    for options in VARIANTS.values():
        model = build(**options)
        target = prefixes(dictionary, 2, 40)
        out, _ = model(sources(dictionary, [4, 6]), None, target)
        if model.decoder.adaptive_softmax is not None:
            out = torch.cat([part.flatten() for part in model.decoder.adaptive_softmax(out, target.flatten())[0]])
        out.square().sum().backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without, options


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_build_and_compute(name, dictionary):
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    args = Namespace(criterion="cross_entropy", max_source_positions=1024, max_target_positions=1024)
    ARCH_CONFIG_REGISTRY[name](args)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    with torch.device("meta"):  # shapes alone: sru_wmt has many weights
        model = ARCH_MODEL_REGISTRY[name].build_model(args, task)
    src, target = torch.zeros(2, 7, dtype=torch.long, device="meta"), torch.zeros(2, 5, dtype=torch.long, device="meta")
    assert model(src, None, target)[0].shape == (2, 5, len(dictionary))


def test_a_flag_goes_before_its_preset():
    from fairseq.models import ARCH_CONFIG_REGISTRY

    args = Namespace(encoder_layers=7)
    ARCH_CONFIG_REGISTRY["sru_tiny"](args)
    assert args.encoder_layers == 7
    assert args.decoder_layers == presets()["sru_tiny"]["decoder_layers"]


def test_presets_hold_options_of_the_model():
    assert {"sru_tiny", "sru_iwslt_de_en", "sru_wmt"} <= {path.stem for path in PRESETS.glob("*.yaml")}
    for options in presets().values():
        assert set(options) <= set(SRUConfig.__dataclass_fields__)


def test_shared_embeddings_are_one_tensor(build):
    model = build(share_all_embeddings=True)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    assert model.decoder.output_projection is None
    model = build(share_decoder_input_output_embed=True)
    assert model.encoder.embed_tokens is not model.decoder.embed_tokens
    assert model.decoder.output_projection is None


def test_state_dict_round_trip(build, dictionary):
    model, other = build(encoder_bidirectional=True).eval(), build(encoder_bidirectional=True).eval()
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    assert not torch.allclose(model(src, None, target)[0], other(src, None, target)[0])
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    torch.testing.assert_close(model(src, None, target)[0], other(src, None, target)[0], rtol=0, atol=0)


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


@pytest.mark.parametrize(
    "name", ["encoder_dropout_in", "encoder_dropout_out", "decoder_dropout_in", "decoder_dropout_out"]
)
def test_each_dropout_does_something_and_follows_dropout(name, build, dictionary):
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    off = {f"{side}_dropout_{end}": 0.0 for side in ("encoder", "decoder") for end in ("in", "out")}
    for options, random in (
        ({"dropout": 0.5, **off}, False),
        ({"dropout": 0.0, **off, name: 0.5}, True),
        ({"dropout": 0.5, **off, name: None}, True),
        ({"dropout": 0.0, **off, "rnn_dropout": 0.5}, True),
    ):
        model = build(**options)
        assert torch.allclose(model(src, None, target)[0], model(src, None, target)[0]) is not random, options


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_narrow_weights(variant, dtype, build, dictionary):
    """As --fp16 and --bf16 have them: forward, backward and incremental, close to float64."""
    model = build(**VARIANTS[variant])
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    expected = model.eval()(src, None, target)[0]
    model = model.to(dtype).train()
    model(src, None, target)[0].float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    full = model(src, None, target)[0]
    assert full.dtype == dtype
    torch.testing.assert_close(full.double(), expected, rtol=0.1, atol=0.1)
    encoded, state = model.encoder(src), {}
    for t in range(target.size(1)):
        step = model.decoder(target[:, : t + 1], encoded, incremental_state=state)[0][:, 0]
        torch.testing.assert_close(step.double(), full[:, t].double(), rtol=0.05, atol=0.05)


def test_adaptive_cutoffs_beyond_the_vocabulary_are_left_out(build, dictionary):
    model = build(criterion="adaptive_loss")  # LSTM's default cutoffs begin at 10,000 words
    assert model.decoder.adaptive_softmax.cutoff == [len(dictionary)]
    model = build(criterion="adaptive_loss", adaptive_softmax_cutoff="[10, 20, 200000]")
    assert model.decoder.adaptive_softmax.cutoff == [10, 20, len(dictionary)]


@pytest.mark.parametrize("text", ["abc", "1/0", "10,-20", "", "[5,__import__('os').getpid()+10]"])
def test_adaptive_cutoffs_are_read_not_evaluated(text, build):
    with pytest.raises(ValueError, match="--adaptive-softmax-cutoff must be increasing numbers of words"):
        build(criterion="adaptive_loss", adaptive_softmax_cutoff=text)


def test_retain_dropout(build, dictionary):
    model = build(dropout=0.5).eval()
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    torch.testing.assert_close(model(src, None, target)[0], model(src, None, target)[0], rtol=0, atol=0)
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.generation.retain_dropout = True
    model.prepare_for_inference_(cfg)
    assert not torch.allclose(model(src, None, target)[0], model(src, None, target)[0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder_layers": 0}, "--encoder-layers must be at least 1; got 0"),
        ({"decoder_layers": 0}, "--decoder-layers must be at least 1; got 0"),
        ({"decoder_hidden_size": -4}, "--decoder-hidden-size must be at least 1; got -4"),
        ({"decoder_attention_heads": 3}, "--decoder-attention-heads must divide --decoder-hidden-size 8; got 3"),
        ({"decoder_attention_heads": 0}, "--decoder-attention-heads must be at least 1; got 0"),
        ({"decoder_attention": "maybe"}, "--decoder-attention must be one of True, False, 1, 0; got 'maybe'"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\); got 1.0"),
        ({"encoder_embed_path": "/none/vectors.txt"}, "--encoder-embed-path: no such file: /none/vectors.txt"),
        (
            {"share_all_embeddings": True, "encoder_embed_dim": 6},
            "--share-all-embeddings requires --encoder-embed-dim to match --decoder-embed-dim; got 6 and 8",
        ),
        (
            {"share_decoder_input_output_embed": True, "decoder_out_embed_dim": 6},
            "--share-decoder-input-output-embed requires --decoder-embed-dim to match --decoder-out-embed-dim; "
            "got 8 and 6",
        ),
        (
            {"criterion": "adaptive_loss", "adaptive_softmax_cutoff": "20,10"},
            "--adaptive-softmax-cutoff must be increasing numbers of words, as 2000,10000; got '20,10'",
        ),
    ],
)
def test_bad_options_are_named(options, message, build):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_bad_embedding_files_are_named(build, tmp_path):
    path = embedding_file(tmp_path / "vectors.txt", ["w3"], 5)
    with pytest.raises(ValueError, match=r"--encoder-embed-path: .*vectors of 5 numbers, --encoder-embed-dim is 8"):
        build(encoder_embed_path=path)
    (tmp_path / "vectors.txt").write_bytes(b"1 8\n\xff\xfe 0.1")
    with pytest.raises(ValueError, match=r"--encoder-embed-path: .* is not UTF-8 text"):
        build(encoder_embed_path=path)
    (tmp_path / "vectors.txt").write_text("2 8\n" + "w3" + " 0.1" * 8 + "\nw4 0.1 two\n")
    with pytest.raises(ValueError, match=r"--encoder-embed-path: .*could not convert"):
        build(encoder_embed_path=path)
    (tmp_path / "vectors.txt").write_text("w3 0.1 0.2\n")
    with pytest.raises(ValueError, match="must begin with a line `words dimensions`"):
        build(encoder_embed_path=path)


def test_shared_embeddings_need_one_dictionary(build):
    other = Dictionary()
    other.add_symbol("another")
    with pytest.raises(ValueError, match="--share-all-embeddings requires a joint dictionary"):
        build(other, share_all_embeddings=True)


def test_a_config_of_an_older_version_takes_the_defaults_of_what_it_lacks(build):
    check(Namespace())
    assert build().encoder.max_positions() == 1024
