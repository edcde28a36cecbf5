"""The Transformer with SRU: its parts against their equations, its presets, and the commands of fairseq."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from support.commands import SMOOTHED, generate, hypotheses, reverses, train
from support.small_models import made, prefixes, preset, size, sources
from torch import nn
from torch.nn import functional as F

from fairseq_sru.models.transformer_layers import FeedForward, SelfAttention
from fairseq_sru.models.transformer_sru import _visible


@pytest.fixture
def build(dictionary):
    return partial(made, "transformer_sru", dictionary)


@pytest.mark.parametrize("autoreg", ["ssru", "sru"])
@pytest.mark.parametrize("steps", [1, 6])
def test_the_state_of_a_recurrent_decoder_is_c_alone(autoreg, steps, build, dictionary):
    model = build(decoder_autoreg=autoreg, decoder_layers=2).eval()
    encoded, state = model.encoder(sources(dictionary, [5, 3, 7])), {}
    for t in range(steps):
        model.decoder(prefixes(dictionary, 3, t + 1), encoded, incremental_state=state)
    (cache,) = state.values()
    assert {name: c.shape for name, c in cache.items()} == {f"{layer}.c": (3, 8) for layer in range(2)}


def test_self_attention_is_torchs_multi_head_attention():
    ours, theirs = SelfAttention(8, 2, dropout=0.0).double(), nn.MultiheadAttention(8, 2, bias=False).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.query_key_value.weight)
        theirs.out_proj.weight.copy_(ours.out.weight)
    x, pads = torch.randn(5, 3, 8).double(), torch.zeros(3, 5).bool()
    pads[1, 3:] = pads[2, :2] = True
    expected, _ = theirs(x, x, x, key_padding_mask=pads)
    out, key, value = ours(x, ~pads[:, None, None, :])
    torch.testing.assert_close(out, expected)
    later = torch.ones(5, 5).triu(1).bool()
    expected, _ = theirs(x, x, x, attn_mask=later)
    out, _, _ = ours(x, _visible(torch.zeros(3, 5).bool(), 5))
    torch.testing.assert_close(out, expected)
    out, _, _ = ours(x[3:], _visible(torch.zeros(3, 5).bool(), 2), (key[:, :, :3], value[:, :, :3]))
    torch.testing.assert_close(out, expected[3:])


def test_what_is_visible():
    pads = torch.tensor([[True, False, False], [False, False, True]])
    expected = [[[1, 0, 0], [0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert _visible(pads, 3).squeeze(1).int().tolist() == expected
    assert _visible(pads, 1).squeeze(1).int().tolist() == [rows[-1:] for rows in expected]


def test_the_ssru_is_the_published_equation(build, dictionary):
    """A whole decoder layer, a step at a time, from the equations: pre-norm and residual around each block."""
    layer = build(decoder_layers=1).eval().decoder.layers[0]
    x, source = torch.randn(6, 1, 8).double(), torch.randn(4, 1, 8).double()
    nowhere = torch.zeros(1, 4).bool()
    out, state, _ = layer(x, {}, layer.attention.project(source, nowhere), False, None, torch.zeros(6, 1).bool(), None)
    norm = lambda module, y: F.layer_norm(y, (8,), module.weight, module.bias)  # noqa: E731
    w, w_f = layer.sru.weight.view(2, 8, 8)
    c = torch.zeros(8).double()
    for t in range(6):
        y = norm(layer.autoreg_norm, x[t, 0])
        f = torch.sigmoid(w_f @ y + layer.sru.bias[0])
        c = f * c + (1 - f) * (w @ y)
        h = x[t, 0] + torch.relu(c)
        y = norm(layer.attention_norm, h)
        key, value = (layer.attention.key_value.weight @ source[:, 0].t()).t().split(8, dim=-1)
        context = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = torch.softmax(key[:, head] @ (layer.attention.query.weight @ y)[head] / 2, dim=0)
            context.append(scores @ value[:, head])
        h = h + layer.attention.out.weight @ torch.cat(context)
        block = layer.feed_forward
        inner = torch.relu(block.inner.weight @ norm(layer.feed_forward_norm, h) + block.inner.bias)
        torch.testing.assert_close(out[t, 0], h + block.out.weight @ inner + block.out.bias)
    torch.testing.assert_close(state["c"][0], c)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_feed_forward_sru_is_the_published_equation(bidirectional):
    """Lei et al. 2018, equations 1-4 without the skip term, then one linear map; a number at a time."""
    block = FeedForward(4, 6, "sru", 0.0, bidirectional).double()
    x = torch.randn(5, 1, 4).double()
    out, _ = block(x, None, torch.zeros(5, 1).bool())
    w, w_f, w_r = block.sru.weight.view(3, 6, 4)
    (v_f, v_r), (b_f, b_r) = block.sru.weight_c, block.sru.bias
    h = torch.zeros(5, 6).double()
    for d in range(6):
        backward = bidirectional and d >= 3
        c = torch.zeros(()).double()
        for t in reversed(range(5)) if backward else range(5):
            f = torch.sigmoid(w_f[d] @ x[t, 0] + v_f[d] * c + b_f[d])
            r = torch.sigmoid(w_r[d] @ x[t, 0] + v_r[d] * c + b_r[d])
            c = f * c + (1 - f) * (w[d] @ x[t, 0])
            h[t, d] = r * c
    torch.testing.assert_close(out[:, 0], h @ block.out.weight.t() + block.out.bias)


def test_positions_are_told_to_attention_alone(build, dictionary):
    """Encoder and self-attention have sinusoids; a recurrent decoder has none, and still knows the order."""
    assert build().encoder.embed_positions is not None
    assert build().decoder.embed_positions is None
    assert build(decoder_autoreg="self-attention").decoder.embed_positions is not None
    word = dictionary.index("w3")
    model = build().eval()
    features, _ = model.decoder(torch.full((1, 4), word), model.encoder(sources(dictionary, [4])))
    assert not torch.allclose(features[:, 1], features[:, 2])


def without_embedding(model):
    return size(model) - model.encoder.embed_tokens.weight.numel()


def test_the_plain_variant_is_as_large_as_torchs_transformer():
    """torch's has biases in its attention: 4 a projection."""
    options = {"decoder_autoreg": "self-attention", "share_all_embeddings": True}
    base = nn.Transformer(512, 8, 6, 6, 2048, device="meta")
    biases = 18 * 4 * 512
    assert without_embedding(preset("transformer_sru_wmt", 32000, **options)) == size(base) - biases


def test_sizes_of_the_presets():
    shared = {"share_all_embeddings": True}
    base = without_embedding(preset("transformer_sru_wmt", 32000, decoder_autoreg="self-attention", **shared))
    fast = without_embedding(preset("transformer_sru_wmt", 32000, **shared))
    # two matrices in place of four, a bias and no more
    assert base - fast == 6 * (2 * 512 * 512 - 512)
    tiny, sru_tiny = (size(preset(name, 2000, **shared)) for name in ("transformer_sru_tiny", "sru_tiny"))
    assert tiny == pytest.approx(sru_tiny, rel=0.1)
    hybrid = preset("transformer_sru_ffn_wmt", 32000, **shared)
    kinds = [(m.hidden_size, m.bidirectional, m.v1, m.highway) for m in hybrid.modules() if hasattr(m, "skip_scale")]
    assert kinds == [(1024, True, False, False)] * 4 + [(2048, False, False, False)] * 4


SMALL = ["--encoder-embed-dim", 32, "--encoder-ffn-embed-dim", 64, "--encoder-attention-heads", 2]
SMALL += ["--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 64, "--decoder-attention-heads", 2]
SMALL += ["--encoder-layers", 1, "--decoder-layers", 1, "--share-all-embeddings", "--cpu", "--no-progress-bar"]


@pytest.fixture(
    scope="module", params=["transformer_sru_tiny", pytest.param("transformer_sru_ffn_wmt", marks=pytest.mark.slow)]
)
def trained(request, toy_data, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("checkpoints")
    train(toy_data, save, *SMOOTHED, "--max-epoch", 1, arch=["--arch", request.param, *SMALL])
    return save / "checkpoint_last.pt"


@pytest.mark.slow
def test_an_ensemble_with_fairseqs_transformer_and_alignment(trained, toy_data, tmp_path):
    arch = ["--arch", "transformer_tiny", "--encoder-layers", 1, "--decoder-layers", 1, "--cpu"]
    train(toy_data, tmp_path, "--max-update", 5, arch=arch)
    both = f"{trained}:{tmp_path / 'checkpoint_last.pt'}"
    text = generate(toy_data, both, "--beam", 2, "--print-alignment")
    assert sorted(hypotheses(text)) == list(range(53))
    assert sum(line.startswith("A-") for line in text.splitlines()) == 53


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--decoder-autoreg", "sru"], ["--feed-forward", "sru"]], ids=str)
def test_a_toy_task_is_learned(options, tmp_path):
    sizes = ["--encoder-embed-dim", 64, "--decoder-embed-dim", 64, "--dropout", 0.0]
    assert reverses(tmp_path, ["transformer_sru_tiny", *SMALL, *sizes, *options], beam=1, epochs=50) > 0.9
