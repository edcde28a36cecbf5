"""The model ``sru``: its parts against their equations, its presets and what it says of them."""

from __future__ import annotations

import copy
import math
from argparse import Namespace
from functools import partial

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment,
)
from fairseq.dataclass.configs import FairseqConfig
from fairseq.sequence_scorer import SequenceScorer
from omegaconf import OmegaConf
from support.small_models import SRU_VARIANTS, UNITS, VARIANTS, log_probs, made, prefixes, preset, size, sources
from torch import Tensor, nn

from fairseq_sru import SRUCell
from fairseq_sru.layers import linear as module
from fairseq_sru.models import convolution as module_of_convolution
from fairseq_sru.models import decoder as decoder_module
from fairseq_sru.models import embeddings
from fairseq_sru.models import encoder as encoder_module
from fairseq_sru.models.attention import Attention, Coverage, GlobalAttention, Source, attend
from fairseq_sru.models.config import SRUConfig, presets
from fairseq_sru.models.convolution import CausalConvolution, Convolution
from fairseq_sru.models.sru import SRUModel
from fairseq_sru.models.transformer_layers import SelfAttention
from fairseq_sru.models.units import LSTM, packed


@pytest.mark.parametrize("unit", UNITS)
def test_a_padded_prefix_may_start_the_incremental_state(unit, build, dictionary):
    model = build(recurrent_unit=unit).eval()
    target = prefixes(dictionary, 2, 6)
    encoded, state = model.encoder(sources(dictionary, [5, 3])), {}
    full, _ = model.decoder(target, encoded)
    ragged = target.clone()
    ragged[1, 2:] = dictionary.pad()
    model.decoder(ragged[:, :4], encoded, incremental_state=state)
    after, _ = model.decoder(target[:, :3], encoded, incremental_state=state)  # the third word of the second sentence
    torch.testing.assert_close(after[1, 0], full[1, 2])


@pytest.mark.parametrize("variant", ["defaults", "tied", "adaptive softmax", "global attention", "lstm"])
def test_weights_are_laid_out_for_decoding(variant, build, dictionary, monkeypatch):
    """Where that pays, on any processor here: the same model, with the same checkpoint."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "_ONEDNN", True)
    monkeypatch.setattr(module, "SMALL", 0)
    model = build(**SRU_VARIANTS[variant]).float().eval()
    laid_out = copy.deepcopy(model)
    laid_out.make_generation_fast_(need_attn=False)
    decoder = laid_out.decoder
    weights = [m.weight for m in decoder.modules() if isinstance(m, module.Linear | SRUCell)]
    weights += [w for m in decoder.modules() if isinstance(m, LSTM) for w in (m.weight_ih_l0, m.weight_hh_l0)]
    assert weights and all(weight.stride(0) == 1 for weight in weights)
    assert (decoder.tied is None) == (variant != "tied")
    torch.testing.assert_close(laid_out.state_dict(), model.state_dict(), rtol=0, atol=0)
    for rows in (1, 3):
        src, target = sources(dictionary, [5] * rows), prefixes(dictionary, rows, 4)
        torch.testing.assert_close(laid_out(src, None, target)[0], model(src, None, target)[0])
        encoded, state = laid_out.encoder(src), {}
        for t in range(4):
            step, _ = decoder(target[:, : t + 1], encoded, incremental_state=state)
        torch.testing.assert_close(step[:, 0], model(src, None, target)[0][:, -1])


@pytest.mark.parametrize("options", [{}, {"decoder_attention": "False"}], ids=["attention", "none"])
@pytest.mark.parametrize("first", [False, True])
def test_an_ensemble_scores_references_whichever_of_its_models_attend(first, options, build, dictionary):
    """fairseq-generate --score-reference: the mean of the probabilities, the weights of those that have some."""
    attending, other = build().eval(), build(**options).eval()
    other.make_generation_fast_(need_attn=False)
    models = [attending, other] if first else [other, attending]
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 4)
    words = torch.cat([target[:, 1:], torch.full((2, 1), dictionary.eos())], dim=1)
    sample = {"net_input": {"src_tokens": src, "src_lengths": None, "prev_output_tokens": target}, "target": words}
    scored = SequenceScorer(dictionary).generate(models, sample)
    mean = sum(log_probs(model, model(src, None, target)).exp() for model in models) / 2
    for row, (hypothesis,) in enumerate(scored):
        expected = mean[row].log().gather(-1, words[row, :, None])[:, 0]
        torch.testing.assert_close(hypothesis["positional_scores"], expected, check_dtype=False)
        assert hypothesis["attention"] is not None


@pytest.mark.parametrize(
    "name", ["sru, defaults", "sru, coverage", "sru, lstm", "sru, global attention", "transformer_sru, ssru, coverage"]
)
def test_a_decoder_learns_alignments(name, dictionary):
    """Garg et al. 2019, equation 6: minus the log of the top attention's weight for each given pair."""
    kind, options = VARIANTS[name]
    build = partial(made, kind, dictionary, **options, dropout=0.0, rnn_dropout=0.0)
    model = build(criterion="label_smoothed_cross_entropy_with_alignment").train()
    task = Namespace(target_dictionary=dictionary)
    criterion = LabelSmoothedCrossEntropyCriterionWithAlignment(task, False, 0.1, 0.5)
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 4)
    net_input = {"src_tokens": src, "src_lengths": None, "prev_output_tokens": target}
    sample = {"net_input": net_input, "target": target, "ntokens": 8, "nsentences": 2}
    pairs, weights = torch.tensor([[1, 0], [4, 2], [3, 5]]), torch.tensor([1.0, 0.5, 0.5])  # (source, flat target)
    without, *_ = criterion(model, sample)
    loss, _, told = criterion(model, {**sample, "alignments": pairs, "align_weights": weights})
    found = model(**net_input)[1]["attn"][0]
    expected = -(weights * found.flatten(0, 1)[pairs[:, 1], pairs[:, 0]].log()).sum()
    torch.testing.assert_close(loss - without, 0.5 * expected, check_dtype=False)
    assert told["alignment_loss"] == pytest.approx(expected.item())
    model.zero_grad()
    (loss - without).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.encoder.layers.parameters())
    assert build().train()(**net_input)[1]["attn"] is None


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("heads, biased", [(1, False), (2, False), (2, True)])
def test_attention_is_the_published_equation(heads, biased, need_weights):
    """Vaswani et al. 2017, equation 1, a number at a time, with a bias of the scores or not; two hypotheses a
    sentence."""
    bias = torch.randn(4, heads, 3, 5).double() if biased else torch.zeros(4, heads, 3, 5).double()
    query = torch.randn(3, 4, 2 * heads).double()
    key, value = torch.randn(2, heads, 5, 2).double(), torch.randn(2, heads, 5, 3).double()
    hidden = torch.tensor([[True, False, False, False, False], [False, False, False, True, True]])
    mask = torch.where(hidden, -math.inf, 0.0).double()[:, None, None]
    context, weights = attend(query, Source(key, value, mask), 1 / 1.7, need_weights, bias if biased else None)
    for t in range(3):
        for row in range(4):
            n, mean = row // 2, torch.zeros(5).double()
            seen = [s for s in range(5) if not hidden[n, s]]
            for head in range(heads):
                q = query[t, row, 2 * head : 2 * head + 2]
                scores = [math.exp(float(q @ key[n, head, s]) / 1.7 + float(bias[row, head, t, s])) for s in seen]
                shares = [score / sum(scores) for score in scores]
                expected = sum(share * value[n, head, s] for share, s in zip(shares, seen, strict=True))
                torch.testing.assert_close(context[t, row, 3 * head : 3 * head + 3], expected)
                mean[seen] += torch.tensor(shares).double() / heads
            if weights is not None:
                torch.testing.assert_close(weights[row, t], mean)
    assert (weights is not None) is need_weights


@pytest.mark.parametrize("side", ["left", "right"])
def test_coverage_is_what_was_attended_to_before(side):
    """Tu et al. 2016, section 3.1.1, a number at a time, with the sum for the neural network; in two calls."""
    module = Coverage(2).double()
    nn.init.normal_(module.weight)
    weights = torch.rand(2, 5, 3).double()
    padding = torch.zeros(2, 5).bool()
    padding[1, : 2 if side == "left" else 0] = True
    padding[1, 5 if side == "left" else 3 :] = True
    first, past = module(weights[:, :2], None, padding[:, :2])
    bias, past = module(weights[:, 2:], past, padding[:, 2:])
    bias = torch.cat([first, bias], dim=2)
    for row in range(2):
        sums = torch.zeros(3).double()
        for t in range(5):
            for head, (a, b, c) in enumerate(module.weight.t().tolist()):
                expected = a * sums + 4 * b * sums.tanh() + 4 * c * weights[row, t]
                if not padding[row, t]:
                    torch.testing.assert_close(bias[row, head, t], expected)
            sums = sums + (0 if padding[row, t] else weights[row, t])
        torch.testing.assert_close(past[row], sums)


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_takes_weights_away_and_scales_the_others(need_weights):
    """Values that are the rows of a unit matrix show the weights; those that are returned are before dropout."""
    query, key = torch.randn(400, 2, 3), torch.randn(1, 1, 5, 3)
    source = Source(key, torch.eye(5)[None, None], torch.zeros(1, 1, 1, 5))
    whole, _ = attend(query, source, 0.6, False)
    dropped, weights = attend(query, source, 0.6, need_weights, dropout=0.3)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.7)
    assert 0.66 < kept.float().mean() < 0.74
    if need_weights:
        torch.testing.assert_close(weights.transpose(0, 1), whole)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("sru", {}),
        ("sru", {"decoder_attention": "global"}),
        ("sru", {"recurrent_unit": "lstm"}),
        ("sru", {"decoder_coverage": "True"}),
        ("transformer_sru", {}),
        ("transformer_sru", {"decoder_autoreg": "self-attention"}),
    ],
)
def test_attention_dropout_is_that_of_each_attention_in_training(kind, options, dictionary):
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    model = made(kind, dictionary, dropout=0.0, attention_dropout=0.5, **options)
    without = made(kind, dictionary, dropout=0.0, **options)
    without.load_state_dict(model.state_dict())
    attentions = [m for m in model.modules() if isinstance(m, Attention | GlobalAttention | SelfAttention)]
    assert attentions and all(attention.dropout.p == 0.5 for attention in attentions)
    for attention in attentions:  # one at a time
        for other in attentions:
            other.dropout.train(other is attention)
        first, second = (model(src, None, target)[0] for _ in range(2))
        assert not torch.allclose(first, second)
    torch.testing.assert_close(model.eval()(src, None, target)[0], without.eval()(src, None, target)[0])
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.generation.retain_dropout = True
    model.prepare_for_inference_(cfg)
    assert not torch.allclose(model(src, None, target)[0], model(src, None, target)[0])


@pytest.mark.parametrize(
    "attention, coverage, has",
    [("1", "auto", True), ("2", "auto", False), ("global", "auto", False), ("1", "False", False), ("1", "True", True)],
)
def test_auto_is_coverage_where_there_is_an_attention_below(attention, coverage, has, build):
    decoder = build(decoder_attention=attention, decoder_coverage=coverage).decoder
    assert any(isinstance(m, Coverage) for m in decoder.modules()) is has


def test_coverage_reads_the_attention_below_the_top(build, dictionary):
    model = build(decoder_coverage="True", decoder_layers=3).eval()
    assert [layer.coverage is not None for layer in model.decoder.layers] == [False, False, True]
    src, target = sources(dictionary, [4, 6]), prefixes(dictionary, 2, 5)
    before = model(src, None, target)[0]
    nn.init.zeros_(model.decoder.layers[2].coverage.weight)
    assert not torch.allclose(model(src, None, target)[0], before)
    plain = build(decoder_layers=3).eval()  # a model of before goes on with coverage from where it was
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model(src, None, target)[0], plain(src, None, target)[0])


def test_global_attention_is_the_published_equation():
    """Luong et al. 2015, equations 5, 7 and 8 ("general")."""
    module = GlobalAttention(4, 6, 5, dropout=0.0).double()
    source, x = torch.randn(7, 1, 6).double(), torch.randn(2, 1, 4).double()
    out, _ = module(x, module.project(source, torch.zeros(1, 7).bool()), False)
    for t in range(2):
        scores = torch.stack([x[t, 0] @ module.key.weight @ h for h in source[:, 0]])
        context = (torch.exp(scores) / torch.exp(scores).sum()) @ source[:, 0]
        torch.testing.assert_close(out[t, 0], torch.tanh(module.out.weight @ torch.cat([context, x[t, 0]])))


def sequences(lengths, size, side):
    """Random sequences, their padded batch (longest, batch, size) and its mask; side may be "both"."""
    made = [torch.randn(n, size).double() for n in lengths]
    x, mask = (
        torch.full((max(lengths), len(lengths), size), 7.0).double(),
        torch.ones(max(lengths), len(lengths)).bool(),
    )
    for i, sequence in enumerate(made):
        room = max(lengths) - len(sequence)
        start = {"left": room, "right": 0, "both": room // 2}[side]
        x[start : start + len(sequence), i], mask[start : start + len(sequence), i] = sequence, False
    return made, x, mask


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_padded_lstm_layer_is_torchs_lstm_on_each_sequence(bidirectional, side):
    layer, truth = LSTM(5, 3, 0.0, bidirectional).double(), torch.nn.LSTM(5, 3, bidirectional=bidirectional).double()
    truth.load_state_dict(layer.state_dict())
    made, x, mask = sequences([4, 9, 1, 9, 6], 5, side)
    directions = 2 if bidirectional else 1
    before = torch.randn(5, 2, directions, 3).double()
    out, after = layer(x, before.flatten(1), packed(mask, False, True))
    for i, sequence in enumerate(made):
        h0, c0 = before[i]
        alone, (h, c) = truth(sequence, (h0, c0))
        torch.testing.assert_close(out[~mask[:, i], i], alone)
        torch.testing.assert_close(after[i], torch.cat([h.flatten(), c.flatten()]))
    assert not out[mask].any()


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("started", [False, True])
@torch.no_grad()
def test_a_step_of_an_lstm_layer_is_torchs_lstm_but_not_by_onednn(started, rows, monkeypatch):
    """oneDNN takes several times as long for a step, and would make LSTM a weak rival in decoding."""
    layer, truth = LSTM(40, 24, 0.0, False).eval(), nn.LSTM(40, 24).double()
    truth.load_state_dict(layer.state_dict())
    x, state = torch.randn(1, rows, 40), torch.randn(rows, 48)
    before = tuple(part[None].double() for part in state.chunk(2, dim=1)) if started else None
    expected, (h, c) = truth(x.double(), before)
    monkeypatch.setattr(nn.LSTM, "forward", lambda *_: pytest.fail("torch's"))
    out, after = layer(x, state if started else None)
    torch.testing.assert_close(out, expected.float())
    torch.testing.assert_close(after, torch.cat([h, c], dim=-1)[0].float())


def test_padding_after_a_forward_lstm_layer_needs_no_care():
    _, x, mask = sequences([4, 9], 5, "right")
    layer = LSTM(5, 3, 0.0, False).double()
    assert packed(mask, True, True) is None
    torch.testing.assert_close(layer(x)[0][~mask], layer(x, None, packed(mask, False, True))[0][~mask])
    assert packed(mask.flip(0), True, True) is not None


def test_an_lstm_layer_starts_remembering():
    layer = LSTM(6, 4, 0.0, True)
    torch.testing.assert_close(layer.weight_hh_l0_reverse[4:8] @ layer.weight_hh_l0_reverse[4:8].t(), torch.eye(4))
    gates = (layer.bias_ih_l0 + layer.bias_hh_l0).view(4, 4).mean(1)  # input, forget, cell, output, as torch has them
    assert gates.tolist() == [0, 1, 0, 0]


def test_rnn_dropout_of_an_lstm_layer_is_one_draw_a_sequence():
    layer = LSTM(6, 4, 0.5, False)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        layer.bias_ih_l0[4:8] = -1e9  # forget everything: what comes out depends on this step's input alone
    out, _ = layer(torch.ones(9, 50, 6))
    torch.testing.assert_close(out, out[:1].expand_as(out))
    assert len(out[0].unique(dim=0)) > 20
    layer.eval()
    assert len(layer(torch.ones(9, 50, 6))[0][0].unique(dim=0)) == 1


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_convolution_is_torchs_depthwise_one(kernel_size, length):
    convolution = Convolution(6, kernel_size)
    x, mask = torch.randn(length, 3, 6, requires_grad=True), torch.zeros(length, 3, dtype=torch.bool)
    left = kernel_size // 2
    padded = torch.nn.functional.pad(x.permute(1, 2, 0), (left, kernel_size - 1 - left))
    expected = torch.nn.functional.conv1d(padded, convolution.weight.t().unsqueeze(1), groups=6).permute(2, 0, 1)
    torch.testing.assert_close(convolution(x, mask), expected)
    inputs, grad = (x, convolution.weight), torch.randn_like(x)
    got = torch.autograd.grad(convolution(x, mask), inputs, grad)
    for mine, truth in zip(got, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(mine, truth)
    mask[-2:, 1] = True
    assert convolution(x.detach().masked_fill(mask.unsqueeze(-1), float("nan")), mask).isfinite().all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kernel_size, own", [(2, None), (3, None), (5, None), (4, 3)])
def test_the_compiled_convolution_is_torchs_with_padding_anywhere(
    kernel_size, own, threads, dtype, tolerance, monkeypatch
):
    """The size is no whole number of vectors, and the memory isn't in order."""
    convolution = Convolution(101, kernel_size, own).to(dtype)
    x = torch.randn(40, 11, 101, dtype=dtype).transpose(0, 1).requires_grad_()  # enough for three threads
    mask = torch.rand(40, 11).t() < 0.3
    grad = torch.randn(11, 40, 101, dtype=dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for padding in (None, mask):
            found = []
            for there in (True, False):
                assert (module_of_convolution._compiled(x, convolution.weight) is not None) == there
                y = convolution(x, padding)
                found.append((y, *torch.autograd.grad(y, (x, convolution.weight), grad)))
                monkeypatch.setattr(module_of_convolution, "compiled", lambda *_: None)
            monkeypatch.undo()
            torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
@pytest.mark.parametrize("lengths", [[1, 1, 1], [9, 7, 0], [3, 1, 4]])
def test_the_causal_convolution_goes_on_where_it_was(kernel_size, lengths):
    """Against torch's, a sentence at a time, cut in two anywhere; padded on the right, and what is there isn't read."""
    convolution = CausalConvolution(6, kernel_size)
    for cut in range(max(lengths) + 1):
        parts = [[min(cut, n) for n in lengths], [max(0, n - cut) for n in lengths]]
        texts = [torch.randn(n, 6) for n in lengths]
        found: list[list[Tensor]] = [[] for _ in texts]
        state = None
        for part, at in zip(parts, (0, cut), strict=True):
            if not max(part):
                continue
            x = torch.full((max(part), len(texts), 6), float("nan"))
            for row, (text, n) in enumerate(zip(texts, part, strict=True)):
                x[:n, row] = text[at : at + n]
            y, state = convolution(x, x[..., 0].isnan(), state)
            for row, n in enumerate(part):
                found[row].append(y[:n, row])
        assert state is not None
        for text, got, last in zip(texts, found, state, strict=True):
            padded = torch.nn.functional.pad(text.t(), (kernel_size - 1, 0))
            torch.testing.assert_close(last, padded[:, len(text) :].t().flatten())
            if len(text):
                expected = torch.nn.functional.conv1d(padded, convolution.weight.t().unsqueeze(1), groups=6).t()
                torch.testing.assert_close(torch.cat(got), expected)


def test_the_causal_convolution_without_a_mask_and_its_gradients():
    convolution, x = CausalConvolution(6, 3).double(), torch.randn(5, 2, 6, dtype=torch.double, requires_grad=True)
    before = torch.randn(2, 12, dtype=torch.double, requires_grad=True)
    mask = torch.zeros(5, 2, dtype=torch.bool)
    for state in (None, before):
        for got, expected in zip(convolution(x, None, state), convolution(x, mask, state), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda x, before: convolution(x, None, before), (x, before))
    for state in (None, before):
        y, after = convolution(x[:0], mask[:0], state)
        assert y.shape == (0, 2, 6) and torch.equal(after, torch.zeros(2, 12).double() if state is None else state)


def test_the_convolution_differentiates_twice_and_follows_autocast():
    convolution, x = Convolution(6, 3), torch.randn(5, 2, 6, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: convolution.double()(x, None), x.double())
    assert torch.autograd.gradgradcheck(lambda x: convolution(x.transpose(0, 1), None), x.double().transpose(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = convolution.float()(x.bfloat16(), None)
    out.sum().backward()
    torch.testing.assert_close(out, convolution(x, None), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("shared", ["share_all_embeddings", "share_decoder_input_output_embed"])
def test_tied_embeddings_have_one_dense_gradient_of_all_their_uses(shared, build, dictionary, monkeypatch):
    """In bfloat16, where that of a lookup is sparse; padding gets none."""
    model = build(**{shared: True}).float()
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 4)
    weights = {model.encoder.embed_tokens.weight, model.decoder.embed_tokens.weight}
    found = []
    for lookup in (embeddings.look_up, lambda embedding, tokens, output: embedding(tokens)):
        for user in (encoder_module, decoder_module):
            monkeypatch.setattr(user, "look_up", lookup)
        torch.manual_seed(1)  # of dropout
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(src, None, target)[0]
        found.append(torch.autograd.grad(logits.float().square().sum(), [*weights]))
    for mine, truth in zip(*found, strict=True):
        assert not mine.is_sparse
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = embeddings.look_up(model.decoder.embed_tokens, target, True)
    assert torch.autograd.grad(alone.sum(), model.decoder.embed_tokens.weight)[0].is_sparse


@pytest.mark.parametrize(
    "made_for, words", [("tiny", 2000), ("iwslt_de_en", 10000), ("wmt", 32000), ("wmt_big", 32000)]
)
def test_lstm_presets_have_the_parameters_of_their_sru_counterparts(made_for, words):
    sru, lstm = f"sru_{made_for}", f"lstm_{made_for}"
    own = {"recurrent_unit", "sru_activation", "encoder_hidden_size", "decoder_hidden_size"}
    options = [{k: v for k, v in presets()[name].items() if k not in own} for name in (sru, lstm)]
    assert options[0] == options[1]
    for shared in (True, False):
        sizes = [size(preset(name, words, share_all_embeddings=shared)) for name in (sru, lstm)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


@pytest.mark.parametrize("name, width, heads", [("sru_wmt", 512, 8), ("sru_wmt_big", 1024, 16)])
def test_presets_for_wmt_are_about_as_large_as_the_transformers(name, width, heads):
    transformer = size(torch.nn.Transformer(width, heads, 6, 6, 4 * width, device="meta")) + 37000 * width
    assert size(preset(name, 37000, share_all_embeddings=True)) == pytest.approx(transformer, rel=0.1)


@pytest.mark.parametrize("unit", UNITS)
def test_the_2017_presets_are_plain_stacks_with_one_attention(unit):
    model = preset(f"{unit}_wmt_2017", 5000, encoder_layers=10, decoder_layers=10)
    kinds = [type(m).__name__ for m in model.modules()]
    assert kinds.count("SRU" if unit == "sru" else "LSTM") == 20
    assert kinds.count("GlobalAttention") == 1
    assert not {"Attention", "LayerNorm"} & set(kinds)
    for layer in (m for m in model.modules() if type(m).__name__ in ("SRU", "LSTM")):
        assert (layer.input_size, layer.hidden_size, layer.bidirectional) == (500, 500, False)
        assert unit == "lstm" or layer.highway
    assert model.decoder.output_projection.weight.shape == (5000, 500)


@pytest.mark.parametrize("activation", ["tanh", "identity", "relu"])
def test_the_activation_is_that_of_every_sru(activation, build):
    cells = [m for m in build(sru_activation=activation).modules() if isinstance(m, SRUCell)]
    assert [cell.activation for cell in cells] == [activation] * 4


@pytest.mark.parametrize(
    "layers, attention, expected",
    [(4, "2", "0101"), (3, "2", "101"), (1, "2", "1"), (3, "True", "111"), (2, "0", "00")],
)
def test_attention_in_each_nth_layer_from_the_top(layers, attention, expected, build):
    decoder = build(decoder_layers=layers, decoder_attention=attention).decoder
    assert "".join(str(int(layer.attention is not None)) for layer in decoder.layers) == expected


def test_names_of_the_weights_stay_as_in_older_checkpoints(build):
    names = build(encoder_layers=1, decoder_layers=1, decoder_hidden_size=12, encoder_hidden_size=6).state_dict()
    expected = """encoder.embed_tokens.weight encoder.project_in.weight encoder.layers.0.norm.weight
    encoder.layers.0.norm.bias encoder.layers.0.sru.weight encoder.layers.0.sru.bias encoder.norm.weight
    encoder.norm.bias decoder.embed_tokens.weight decoder.project_in.weight decoder.layers.0.rnn.norm.weight
    decoder.layers.0.rnn.norm.bias decoder.layers.0.rnn.sru.weight decoder.layers.0.rnn.sru.bias
    decoder.layers.0.attention_norm.weight decoder.layers.0.attention_norm.bias
    decoder.layers.0.attention.query.weight decoder.layers.0.attention.key_value.weight
    decoder.layers.0.attention.out.weight decoder.norm.weight decoder.norm.bias decoder.project_out.weight
    decoder.project_out.bias decoder.output_projection.weight"""
    assert list(names) == expected.split()


def test_adaptive_cutoffs_beyond_the_vocabulary_are_left_out(build, dictionary):
    model = build(criterion="adaptive_loss")  # LSTM's default cutoffs begin at 10,000 words
    assert model.decoder.adaptive_softmax.cutoff == [len(dictionary)]
    model = build(criterion="adaptive_loss", adaptive_softmax_cutoff="[10, 20, 200000]")
    assert model.decoder.adaptive_softmax.cutoff == [10, 20, len(dictionary)]


def test_a_bare_namespace_has_no_longest_sentence(dictionary):
    """fairseq's dataclasses have ``${task.max_target_positions}`` there, which only its command line resolves."""
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    sizes = {"encoder_embed_dim": 8, "decoder_embed_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
    for options in (Namespace(**sizes), Namespace(**{**vars(SRUConfig()), **sizes})):
        assert SRUModel.build_model(options, task).max_positions() == (10**6, 10**6)
