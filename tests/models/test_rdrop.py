"""R-Drop against its equation."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.models.lstm import LSTMModel, base_architecture
from support.small_models import made, numbered, prefixes, sources
from torch import nn
from torch.nn import functional as F

from fairseq_sru.models import RDropCriterion
from fairseq_sru.models.rdrop import RDropConfig

DICTIONARY = numbered(20)
TASK = Namespace(target_dictionary=DICTIONARY)
PLAIN = LabelSmoothedCrossEntropyCriterion(TASK, sentence_avg=False, label_smoothing=0.1, report_accuracy=True)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return made("sru", DICTIONARY, dropout=0.3, rnn_dropout=0.2)


@pytest.fixture
def sample():
    target = prefixes(DICTIONARY, 3, 6)
    target[1, 4:] = DICTIONARY.pad()
    net_input = {"src_tokens": sources(DICTIONARY, [3, 5, 4]), "src_lengths": None, "prev_output_tokens": target}
    return {"net_input": net_input, "target": target.roll(-1, 1), "ntokens": 16}


def rdrop(alpha: float) -> RDropCriterion:
    return RDropCriterion(TASK, sentence_avg=False, label_smoothing=0.1, rdrop_alpha=alpha, report_accuracy=True)


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_is_equation_4(alpha, model, sample):
    model.train()
    torch.manual_seed(2)
    loss, size, told = rdrop(alpha)(model, sample)
    torch.manual_seed(2)
    twice = {name: None if x is None else x.repeat_interleave(2, 0) for name, x in sample["net_input"].items()}
    log_p = model.get_normalized_probs(model(**twice), log_probs=True)
    target = sample["target"]
    real = target != DICTIONARY.pad()
    first, second = log_p[::2][real], log_p[1::2][real]
    expected, likelihood = 0, 0
    for x in (first, second):
        even = 0.1 / (len(DICTIONARY) - 1)
        smooth = (0.9 - even) * F.nll_loss(x, target[real], reduction="sum") - even * x.sum()
        expected, likelihood = expected + smooth / 2, likelihood + F.nll_loss(x, target[real], reduction="sum") / 2
    for a, b in ((first, second), (second, first)):
        expected = expected + alpha / 4 * F.kl_div(a, b, reduction="sum", log_target=True)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(told["nll_loss"], likelihood)
    assert size == told["sample_size"] == 16 and told["total"] == real.sum()


def test_passes_differ_by_dropout_alone(model, sample):
    """Without dropout it is the usual loss, gradients included."""
    model.train()
    for module in model.modules():
        for name in ("p", "rnn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    got, expected = rdrop(5.0)(model, sample), PLAIN(model, sample)
    torch.testing.assert_close(got[0], expected[0])
    assert {k: float(v) for k, v in got[2].items()} == pytest.approx({k: float(v) for k, v in expected[2].items()})
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(found[0], parameters) for found in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_validation_has_one_pass(model, sample, monkeypatch):
    seen = []
    monkeypatch.setattr(
        model.encoder, "forward", lambda *args, f=model.encoder.forward, **kw: seen.append(1) or f(*args, **kw)
    )
    got, expected = rdrop(5.0)(model.eval(), sample), PLAIN(model, sample)
    assert got[0] == expected[0] and got[2] == expected[2] and len(seen) == 2


def test_models_that_want_the_longest_sentence_first_have_it(sample):
    """As fairseq's own LSTM, which packs."""
    options = Namespace(
        arch="lstm", criterion="cross_entropy", encoder_embed_dim=8, decoder_embed_dim=8, max_source_positions=9
    )
    base_architecture(options)
    task = Namespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    model = LSTMModel.build_model(options, task).train()
    lengths = torch.tensor([5, 4, 3])
    net_input = {"src_tokens": sources(DICTIONARY, lengths.tolist()), "src_lengths": lengths}
    net_input["prev_output_tokens"] = sample["net_input"]["prev_output_tokens"]
    loss, _, _ = rdrop(1.0)(model, {**sample, "net_input": net_input})
    assert loss.isfinite()


def test_a_negative_weight_is_refused(capsys):
    with pytest.raises(ValueError, match=r"^--rdrop-alpha: must be at least 0; got -1$"):
        rdrop(-1)
    with pytest.raises(SystemExit):
        RDropCriterion.build_criterion(RDropConfig(label_smoothing=0.1, rdrop_alpha=-1, sentence_avg=False), TASK)
    assert capsys.readouterr().err.endswith("error: --rdrop-alpha: must be at least 0; got -1\n")


def test_sentences_are_counted_once(model, sample):
    criterion = RDropCriterion(TASK, sentence_avg=True, label_smoothing=0.1)
    assert criterion(model.train(), sample)[1] == 3 and isinstance(criterion, nn.Module)
