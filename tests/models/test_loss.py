"""The loss in one pass, against fairseq's in float64."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from support.small_models import ADAPTIVE, made, numbered, prefixes, sources
from torch import Tensor

from fairseq_sru.models import loss
from fairseq_sru.models.loss import CrossEntropy

PAD = 1


def expected(logits: Tensor, target: Tensor, one: float, each: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, likelihood and gradient by autograd in float64."""
    logits = logits.detach().double().requires_grad_()
    log_p = torch.log_softmax(logits, -1)[target != PAD]
    likelihood = -log_p.gather(1, target[target != PAD].unsqueeze(1)).sum()
    total = one * likelihood + (each * -log_p.sum() if each else 0)
    return total.detach(), likelihood.detach(), torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("words", [2, 15, 2000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)])
def test_value_and_gradient(words, dtype, tolerance, threads):
    torch.manual_seed(words)
    logits = (5 * torch.randn(70, words)).to(dtype).requires_grad_()
    target = torch.randint(words, (70,))
    target[::3] = PAD
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        total, likelihood = CrossEntropy.apply(logits, target, PAD, 0.85, 0.1 / words)
        (total * 0.5).backward()
    finally:
        torch.set_num_threads(before)
    true_total, true_likelihood, true_gradient = expected(logits, target, 0.85, 0.1 / words)
    torch.testing.assert_close(total.double(), true_total, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(likelihood.double(), true_likelihood, rtol=2e-6, atol=1e-6)
    # rounded in the end, and again where it is halved
    torch.testing.assert_close(logits.grad.double(), true_gradient / 2, rtol=2 * tolerance, atol=1e-7)
    assert not logits.grad[::3].any() and not likelihood.requires_grad


def test_logits_of_all_sizes():
    """exp neither overflows nor vanishes altogether; a word that can't come costs nothing where it isn't asked for."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [-300.0, -301.0, -300.0], [2.0, 1.0, -torch.inf]])
    target = torch.tensor([2, 0, 0])
    total, _ = CrossEntropy.apply(logits, target, PAD, 1.0, 0.0)
    torch.testing.assert_close(total.double(), expected(logits, target, 1.0, 0.0)[0])
    assert CrossEntropy.apply(logits + torch.nan, target, PAD, 1.0, 0.0)[0].isnan()


def criterion(kind: str) -> Any:
    task = Namespace(target_dictionary=numbered(20))
    if kind == "plain":
        return CrossEntropyCriterion(task, sentence_avg=False)
    return LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)


def sample(dictionary: Any) -> dict[str, Any]:
    target = prefixes(dictionary, 3, 6)
    target[1, 4:] = dictionary.pad()
    net_input = {"src_tokens": sources(dictionary, [3, 5, 4]), "src_lengths": None, "prev_output_tokens": target}
    return {"net_input": net_input, "target": target, "ntokens": 16}


@pytest.mark.parametrize("what", ["positions", "dtype", "probabilities", "adaptive"])
def test_what_compiled_code_does_not_check_is_fairseqs(what, monkeypatch):
    """Targets of another shape or dtype, and a model that has probabilities of its own."""
    dictionary = numbered(20)
    model, batch = made("sru", dictionary).float(), sample(dictionary)
    monkeypatch.setattr(loss.CrossEntropy, "apply", lambda *_: "compiled")
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch["net_input"])
        assert loss.cross_entropy(model, out, batch, 0.1, PAD) == "compiled"
        if what == "positions":
            out = (torch.cat([out[0], out[0][:, :1]], dim=1), *out[1:])
        elif what == "dtype":
            batch["target"] = batch["target"].int()
        elif what == "adaptive":
            model = made("sru", dictionary, **ADAPTIVE).float()
            out = model(**batch["net_input"])
        else:
            monkeypatch.setattr(type(model), "get_normalized_probs", lambda *_: None)
        assert loss.cross_entropy(model, out, batch, 0.1, PAD) is None


@pytest.mark.parametrize("kind", ["plain", "smoothed"])
def test_criterions_take_it_in_bfloat16_alone(kind, monkeypatch):
    dictionary = numbered(20)
    model = made("sru", dictionary).float().eval()
    batch = sample(dictionary)
    calls = []
    apply = CrossEntropy.apply
    monkeypatch.setattr(CrossEntropy, "apply", lambda *args: calls.append(args) or apply(*args))

    def told() -> tuple[tuple[float, float], list[Tensor]]:
        total, _, printed = criterion(kind)(model, batch)
        gradients = torch.autograd.grad(total, list(model.parameters()))
        return (total.item(), printed.get("nll_loss", total).item()), gradients

    plain = told()
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        fused = told()
        assert len(calls) == 1
        monkeypatch.setattr("fairseq_sru.models.faster.cross_entropy", lambda *_: None)
        theirs = told()
    assert fused[0] == pytest.approx(theirs[0], rel=1e-6)
    assert fused[0] == pytest.approx(plain[0], rel=0.01)
    for a, b in zip(fused[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * b.abs().max().item())


def test_a_criterion_with_probabilities_of_its_own_keeps_them():
    class Tempered(LabelSmoothedCrossEntropyCriterion):
        def get_lprobs_and_target(self, *given: Any) -> Any:
            lprobs, target = super().get_lprobs_and_target(*given)
            return lprobs / 2, target

    dictionary = numbered(20)
    model, batch = made("sru", dictionary).float().eval(), sample(dictionary)
    usual, tempered = (
        kind(Namespace(target_dictionary=dictionary), sentence_avg=False, label_smoothing=0.1)
        for kind in (LabelSmoothedCrossEntropyCriterion, Tempered)
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert tempered(model, batch)[0].item() == pytest.approx(usual(model, batch)[0].item() / 2, rel=1e-4)


def test_a_target_that_is_no_word_is_named():
    dictionary = numbered(20)
    model, batch = made("sru", dictionary).float(), sample(dictionary)
    batch["target"] = batch["target"] + len(dictionary) - 6
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(IndexError, match=r"^target: must be from 0 to 23"):
        loss.cross_entropy(model, model(**batch["net_input"]), batch, 0.0, PAD)
