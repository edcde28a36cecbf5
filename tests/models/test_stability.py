"""Gradient descent with fairseq's own test settings (nag, learning rate 0.05, no clipping, random letters) doesn't
explode: the loss is not too curved for it where training starts."""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.optim.nag import NAG
from support.small_models import FIXED, sources
from torch import Tensor

import fairseq_sru.models  # noqa: F401

LR, MOMENTUM = 0.05, 0.99  # of fairseq's tests; the momentum is nag's default
LIMIT = (2 + 2 * MOMENTUM) / (1 + 2 * MOMENTUM) / LR  # docs/maths.md

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sru": ("sru", {}),
    "identity": ("sru", {"sru_activation": "identity"}),
    "tied": ("sru", {"share_all_embeddings": True}),
    "lstm units": ("sru", {"recurrent_unit": "lstm"}),
    "plain": ("sru", {"no_residual": True}),
    "sru_tiny": ("sru_tiny", {}),
    "lstm_tiny": ("lstm_tiny", {}),
}


@pytest.fixture(scope="module")
def letters() -> Dictionary:
    made = Dictionary()
    for letter in "abcdefghijklmnopqrstuvwxyz":
        made.add_symbol(letter)
    return made


def build(letters: Dictionary, seed: int, arch: str, **options: Any) -> Any:
    """A model of an architecture at its own sizes; ``lstm`` is fairseq's."""
    torch.manual_seed(seed)
    args = Namespace(**{**FIXED, **options})
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, Namespace(source_dictionary=letters, target_dictionary=letters))


def loss(model: Any, letters: Dictionary, batch: int = 20, seed: int = 0) -> Tensor:
    """The cross-entropy, in nats a token, of random sentences of 1 to 20 letters, given others."""
    lengths = [21 - math.ceil(20 * (i + 1) / batch) for i in range(batch)]
    source, target = sources(letters, lengths, seed=2 * seed), sources(letters, lengths, "right", seed=2 * seed + 1)
    previous = torch.cat([target.new_full((batch, 1), letters.eos()), target[:, :-1]], dim=1)
    logits, _ = model(source, torch.tensor(lengths), previous)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=letters.pad())


def length(tensors: list[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(tensors).item()


def gradient(model: Any, letters: Dictionary) -> list[Tensor]:
    return list(torch.autograd.grad(loss(model, letters), list(model.parameters()), materialize_grads=True))


def curvature(model: Any, letters: Dictionary, steps: int = 3) -> float:
    """The largest curvature of the loss, from below, by power iteration on differences of gradients."""

    def ahead(distance: float) -> list[Tensor]:
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=distance)
        found = gradient(model, letters)
        with torch.no_grad():
            torch._foreach_sub_(parameters, direction, alpha=distance)
        return found

    parameters = list(model.parameters())
    direction, found = [torch.randn_like(p) for p in parameters], 0.0
    for _ in range(steps):
        direction = [d / length(direction) for d in direction]
        direction = [(a - b) / 2e-2 for a, b in zip(ahead(1e-2), ahead(-1e-2), strict=True)]
        found = length(direction)
    return found


def test_the_limit_of_nag():
    """On a parabola, on either side of the limit that docs/maths.md states."""
    for share, converges in ((0.99, True), (1.01, False)):
        x = torch.ones(1, dtype=torch.float64)
        optimizer = NAG([x], lr=LR, momentum=MOMENTUM)
        for _ in range(1000):
            x.grad = share * LIMIT * x
            optimizer.step()
        assert (abs(x.item()) < 1) is converges


@pytest.fixture(scope="module")
def theirs(letters: Dictionary) -> float:
    """The length of the gradient of fairseq's ``lstm``."""
    return length(gradient(build(letters, 1, "lstm", dropout=0.0), letters))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_at_initialisation_are_as_those_of_fairseqs_lstm(name, letters, theirs):
    arch, options = MODELS[name]
    assert length(gradient(build(letters, 1, arch, dropout=0.0, **options), letters)) < 5 * theirs


def test_the_gain_before_the_output_layer_decides(letters):
    """At its start, and at 1, where an nn.LayerNorm starts."""
    model = build(letters, 1, "sru", dropout=0.0)
    assert curvature(model, letters) < LIMIT / 2
    torch.nn.init.ones_(model.decoder.norm.weight)
    assert curvature(model, letters) > LIMIT * 2


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sru", "sru_tiny"])
def test_four_seeds_of_nag_without_clipping(arch, letters):
    """With a gain of 1 ``sru`` ends in NaN."""
    for seed in range(4):
        model = build(letters, seed, arch)
        optimizer = NAG(model.parameters(), lr=LR, momentum=MOMENTUM)
        losses, norms = [], []
        for update in range(40):
            optimizer.zero_grad()
            value = loss(model, letters, 48, update)
            value.backward()
            norms.append(length([p.grad for p in model.parameters()]))
            losses.append(value.item())
            optimizer.step()
        assert max(norms) < 5, (seed, norms)
        assert sum(losses[-10:]) / 10 < losses[0] - 0.1, (seed, losses)
