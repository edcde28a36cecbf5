"""Equalities of every model, of each kind and in every variant: incremental = full, batch = alone, padding,
reordering, causality, dropout, state dicts, 16 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from support.small_models import VARIANTS, encode, log_probs, made, prefixes, reorder, run, sources
from torch.nn import functional as F

from fairseq_sru.layers import cell, linear
from fairseq_sru.models import attention, base_decoder, transformer_layers, units
from fairseq_sru.models.attention import Attention, GlobalAttention


@pytest.fixture(params=VARIANTS)
def make(request: pytest.FixtureRequest, dictionary: Dictionary) -> Callable[[], Any]:
    """``make()``: another model of the variant."""
    kind, options = VARIANTS[request.param]
    return lambda: made(kind, dictionary, **options)


@pytest.fixture
def model(make: Callable[[], Any]) -> Any:
    return make().eval()


translating = pytest.mark.parametrize("make", [v for v in VARIANTS if not v.startswith("sru_lm")], indirect=True)


def attentions(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, Attention | GlobalAttention)]


def test_incremental_equals_full_position_by_position(model, dictionary):
    src, target = sources(dictionary, [5, 3, 7]), prefixes(dictionary, 3, 9)
    encoded = encode(model, src)
    full, extra = model.decoder(target, encoded)
    full_probs = log_probs(model, (full, extra))
    state: dict = {}
    for t in range(target.size(1)):
        step, step_extra = model.decoder(target[:, : t + 1], encoded, incremental_state=state)
        assert step.shape[1] == 1
        torch.testing.assert_close(log_probs(model, (step, step_extra))[:, 0], full_probs[:, t])
        assert (step_extra["attn"] is None) == (extra["attn"] is None) == (not attentions(model))
        if extra["attn"] is not None:
            torch.testing.assert_close(step_extra["attn"][0][:, 0], extra["attn"][0][:, t])


def test_incremental_equals_full_after_random_reorderings(model, dictionary):
    """Beams of two sentences, reordered at random at every step, also across sentences, and shrunk as fairseq does
    when a sentence is done."""
    rng = torch.Generator().manual_seed(4)
    src = sources(dictionary, [5, 7]).repeat_interleave(4, 0)
    encoded = encode(model, src)
    target = prefixes(dictionary, 8, 1)
    state: dict = {}
    for t in range(12):
        step = log_probs(model, model.decoder(target, encoded, incremental_state=state))[:, -1]
        full = log_probs(model, model.decoder(target, encode(model, src)))[:, -1]
        torch.testing.assert_close(step, full)
        rows = len(src) - 2 if t in (4, 8) else len(src)
        order = torch.randint(0, len(src), (rows,), generator=rng)
        encoded = reorder(model, state, encoded, order)
        words = torch.randint(dictionary.nspecial, len(dictionary), (rows, 1), generator=rng)
        src, target = src[order], torch.cat([target[order], words], dim=1)


@translating
@torch.no_grad()
def test_hypotheses_of_a_sentence_share_its_keys_and_values(model, dictionary):
    """Beams as in fairseq's beam search: next to one another, reordered within their sentence, sentences that are
    done taken out."""
    rng = torch.Generator().manual_seed(5)
    beam, alive = 4, [0, 1, 2]
    src = sources(dictionary, [5, 7, 3])
    encoded = encode(model, src)
    outputs = encoded["encoder_out"][0]
    encoded = model.encoder.reorder_encoder_out(encoded, torch.arange(3).repeat_interleave(beam))
    assert encoded["encoder_out"][0] is outputs
    target, state = prefixes(dictionary, 3 * beam, 1), {}
    for t in range(8):
        step = log_probs(model, model.decoder(target, encoded, incremental_state=state))[:, -1]
        alone = model.encoder(src[alive].repeat_interleave(beam, 0))
        torch.testing.assert_close(step, log_probs(model, model.decoder(target, alone))[:, -1])
        keys = [source.key for source in model.decoder.sources(encoded, state)]
        assert len(keys) == len(attentions(model))
        assert all(len(key) == len(alive) for key in keys)
        stay = [row for row, n in enumerate(alive) if (t, n) not in ((2, 1), (5, 0))]
        alive = [alive[row] for row in stay]
        order = torch.cat([row * beam + torch.randint(beam, (beam,), generator=rng) for row in stay])
        encoded = reorder(model, state, encoded, order)
        kept = [source.key for source in model.decoder.sources(encoded, state)]
        assert t in (2, 5) or all(new is old for new, old in zip(kept, keys, strict=True))
        words = torch.randint(dictionary.nspecial, len(dictionary), (len(order), 1), generator=rng)
        target = torch.cat([target[order], words], dim=1)


def test_a_prefix_of_many_tokens_may_start_the_incremental_state(model, dictionary):
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 6)
    encoded, state = encode(model, src), {}
    full, _ = model.decoder(target, encoded)
    first, _ = model.decoder(target[:, :4], encoded, incremental_state=state)
    torch.testing.assert_close(first, full[:, :4])
    torch.testing.assert_close(model.decoder(target[:, :5], encoded, incremental_state=state)[0][:, 0], full[:, 4])


@pytest.mark.parametrize("target_side", ["left", "right"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_its_sentences_alone(model, side, target_side, dictionary):
    lengths, target_lengths = [4, 9, 1, 6], [5, 2, 7, 1]
    src = sources(dictionary, lengths, side)
    target = sources(dictionary, target_lengths, target_side, seed=1)
    together = log_probs(model, run(model, src, target, torch.tensor(lengths)))
    assert together.isfinite().all()
    for i, (n, m) in enumerate(zip(lengths, target_lengths, strict=True)):
        one, words = src[i : i + 1, src[i].ne(dictionary.pad())], target[i : i + 1, target[i].ne(dictionary.pad())]
        alone = log_probs(model, run(model, one, words, torch.tensor([n])))
        own = together[i : i + 1, -m:] if target_side == "left" else together[i : i + 1, :m]
        torch.testing.assert_close(own, alone)


def test_attention_weights_are_a_distribution_over_the_source_and_only_where_asked_for(model, dictionary):
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    out, extra = run(model, src, target)
    if attentions(model):
        (weights,) = extra["attn"]
        assert weights.shape == (2, 5, 6)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5).double())
        assert not weights[src.eq(dictionary.pad())[:, None].expand_as(weights)].any()
    model.make_generation_fast_(need_attn=False)
    without, extra = run(model, src, target)
    assert extra["attn"] is None
    torch.testing.assert_close(without, out)


def test_no_position_sees_a_later_target(model, dictionary):
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 8)
    changed = target.clone()
    changed[:, 5:] = dictionary.nspecial
    before, after = run(model, src, target)[0], run(model, src, changed)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=0)
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_each_position_depends_on_the_whole_source_and_all_targets_up_to_it(model, dictionary):
    embedded: list = []

    def keep(module: Any, words: Any, vectors: Any) -> None:
        vectors.retain_grad()
        embedded.append(vectors)

    for module in {side.embed_tokens for side in (model.decoder, getattr(model, "encoder", model.decoder))}:
        module.register_forward_hook(keep)
    run(model, sources(dictionary, [6]), prefixes(dictionary, 1, 5))[0][0, 3].square().sum().backward()
    *source, target = (vectors.grad.abs().sum(-1).flatten() for vectors in embedded)
    assert all(token.all() for token in source)
    assert target[:4].all() and not target[4]


ENDS = ("encoder_dropout_in", "encoder_dropout_out", "decoder_dropout_in", "decoder_dropout_out")
DROPOUTS: dict[str, tuple[str, ...]] = {
    **{f"sru, {v}": ENDS for v in ("defaults", "global attention", "no residual", "lstm", "lstm_wmt_2017")},
    **dict.fromkeys(("transformer_sru, ssru", "transformer_sru, transformer_sru_ffn_wmt"), ()),
    "sru_lm, defaults": ENDS[2:],
}


@pytest.mark.parametrize("variant", DROPOUTS)
def test_each_dropout_does_something_and_follows_dropout(variant, dictionary):
    (kind, given), names = VARIANTS[variant], DROPOUTS[variant]
    none = {"dropout": 0.0, **dict.fromkeys(names, 0.0)}
    cases = [({}, False), ({"dropout": 0.5}, not names), ({"rnn_dropout": 0.5}, True)]
    cases += [case for name in names for case in (({name: 0.5}, True), ({"dropout": 0.5, name: None}, True))]
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    for options, random in cases:
        model = made(kind, dictionary, **{**given, **none, **options})
        first, second = (run(model, src, target)[0] for _ in range(2))
        assert torch.allclose(first, second) is not random, options


def test_gradients_reach_every_weight(make, dictionary):
    model = make()
    target = prefixes(dictionary, 2, 40)
    out, _ = run(model, sources(dictionary, [4, 6]), target)
    if model.decoder.adaptive_softmax is not None:
        out = torch.cat([part.flatten() for part in model.decoder.adaptive_softmax(out, target.flatten())[0]])
    out.square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_state_dict_round_trip(make, dictionary):
    model, other = make().eval(), make().eval()
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    assert not torch.allclose(run(model, src, target)[0], run(other, src, target)[0])
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    torch.testing.assert_close(run(model, src, target)[0], run(other, src, target)[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights(model, dtype, dictionary):
    """Weights of --fp16 and --bf16: forward, backward and incremental, close to float64."""
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    expected = run(model, src, target)[0]
    model = model.to(dtype).train()
    run(model, src, target)[0].float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    full = run(model, src, target)[0]
    assert full.dtype == dtype
    encoded, state = encode(model, src), {}
    steps = torch.cat(
        [model.decoder(target[:, : t + 1], encoded, incremental_state=state)[0] for t in range(target.size(1))], dim=1
    )
    torch.testing.assert_close(steps.double(), full.double(), rtol=0.05, atol=0.05)
    for got in (full, steps):
        assert (got - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()


def test_autocast_on_a_cpu_rounds_products_alone(make, dictionary):
    """Loss and gradients are about those of float32, gradients of the weights' dtype, and what is summed from layer to
    layer is not rounded."""
    model = make().float().eval()
    src, target = sources(dictionary, [5, 3, 7]), prefixes(dictionary, 3, 9)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    inputs: list[torch.dtype] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0].dtype))
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = run(model, src, target)[0].float()
        out.square().mean().backward()
        found.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    if all(getattr(m, "residual", True) for m in model.modules()):
        assert len(inputs) == 2 * len(norms) > 0 and set(inputs) == {torch.float32}
    (exact, grads), (rounded, rounded_grads) = found
    assert 0 < (rounded - exact).norm() <= 0.05 * exact.norm()
    assert {grad.dtype for grad in rounded_grads.values()} == {torch.float32}
    together, rounded_together = (torch.cat([g.flatten() for g in gs.values()]) for gs in (grads, rounded_grads))
    assert (rounded_together - together).norm() <= 0.1 * together.norm()


@pytest.mark.parametrize(
    "make",
    ["sru, sru_tiny", "sru, lstm_tiny", "sru, coverage", "transformer_sru, sru", "sru_lm, identity"],
    indirect=True,
)
def test_training_in_float32_is_bit_for_bit_that_with_torchs_own_functions(make, dictionary, monkeypatch):
    """Code for bfloat16 changes nothing without autocast."""
    src, target = sources(dictionary, [5, 3, 7]), prefixes(dictionary, 3, 9)

    def trained() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = make().float().train()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            adam.zero_grad()
            run(model, src, target)[0].square().mean().backward()
            adam.step()
        return dict(model.named_parameters())

    monkeypatch.setattr(linear, "_ONEDNN", False)  # whose sums have another order
    ours = trained()
    for module in (linear, base_decoder, cell):
        monkeypatch.setattr(module, "linear", F.linear)
    for module in (attention, transformer_layers):
        monkeypatch.setattr(
            module,
            "dot_product_attention",
            lambda q, k, v, mask, scale=None, dropout=0.0: F.scaled_dot_product_attention(
                q, k, v, mask, dropout, scale=scale
            ),
        )
    monkeypatch.setattr(units.SRU, "finite_padding", False)
    torchs = trained()
    assert ours.keys() == torchs.keys() and all(torch.equal(ours[name], torchs[name]) for name in ours)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_lstm_over_padding_is_what_it_is_packed(bidirectional: bool, side: str) -> None:
    """Outputs and gradients, each direction by itself, and by nn.LSTM over a packed batch."""
    unit = units.LSTM(6, 4, 0.0, bidirectional)
    real = torch.arange(7)[:, None] < torch.tensor([7, 5, 1])
    padding_mask = ~(real if side == "right" else real.flip(0))
    packing = units.packed(padding_mask, True, False)
    assert packing is not None
    x = torch.randn(7, 3, 6)
    found = []
    for way in (packing, packing._replace(outputs_only=False)):
        given = x.clone().requires_grad_()
        out, state = unit(given, None, way)
        assert (state is None) is way.outputs_only
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append([out, given.grad, *(p.grad.clone() for p in unit.parameters())])
        unit.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
