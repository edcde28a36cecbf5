"""Long training in 16 bits, numbers at the edge of their range, backends against each other, the same bits twice."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from support.small_models import prefixes, sources

from fairseq_sru import SRU, sru_recurrence

BACKENDS = ["native", "torch"]
SMALL = ["--user-dir", "fairseq_sru", "--arch", "sru_tiny", "--encoder-embed-dim", 32, "--decoder-embed-dim", 32]
SMALL += ["--encoder-hidden-size", 16, "--encoder-layers", 1, "--decoder-layers", 2, "--share-all-embeddings"]
SMALL += ["--optimizer", "adam", "--lr", 2e-3, "--batch-size", 32, "--cpu", "--log-format", "json"]


def train(data: Path, save: Path, *more, **env: str) -> list[float]:
    """fairseq-train; returns the training loss of each update, in bits a token."""
    done = run_cli("train", data, *SMALL, "--save-dir", save, "--log-interval", 1, *more, **env)
    lines = [
        json.loads(line[line.index("{") :]) for line in (done.stdout + done.stderr).splitlines() if '{"epoch"' in line
    ]
    return [float(line["loss"]) for line in lines if "loss" in line]


def all_finite(tensors) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors if t is not None)


# Training in 16 bits


OPTIONS = {"v1": {}, "v2": {"v1": False, "layer_norm": True, "bidirectional": True}}


@functools.cache
def learn(cell: str, dtype: torch.dtype, backend: str) -> list[float]:
    """The losses of 2,000 updates of a stack that learns the sign of the sum of the numbers so far; weights,
    activations and gradients have the dtype, and Adam holds the weights in float32, as with fairseq's --fp16."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    rnn = SRU(8, 16, num_layers=2, backend=backend, **OPTIONS[cell]).to(dtype)
    head = torch.nn.Linear(rnn.output_size, 2).to(dtype)
    weights = [*rnn.parameters(), *head.parameters()]
    masters = [w.detach().float().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(masters, lr=3e-3)
    scale = 128.0 if dtype == torch.float16 else 1.0
    losses = []
    for _ in range(2000):
        x = torch.randn(12, 16, 8, generator=generator)
        target = (x[..., 0].cumsum(0) > 0).long()
        lengths = torch.randint(1, 13, (16,), generator=generator)
        inside = torch.arange(12)[:, None] < lengths
        logits = head(rnn(x.to(dtype), lengths=lengths)[0]).float()
        loss = torch.nn.functional.cross_entropy(logits[inside], target[inside])
        grads = torch.autograd.grad(loss * scale, weights)
        assert all_finite([loss, *grads])
        for master, grad in zip(masters, grads, strict=True):
            master.grad = grad.float() / scale
        optimizer.step()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)
        losses.append(loss.item())
    assert all_finite(weights)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("cell", ["v1", "v2"])
def test_two_thousand_updates_in_16_bits(cell, backend, dtype):
    """Nothing infinite or NaN on the way, and learned what float32 learns."""
    losses, wide = learn(cell, dtype, backend), learn(cell, torch.float32, backend)
    assert sum(losses[:20]) / 20 > 0.55
    end = sum(losses[-200:]) / 200
    assert end < 0.35
    assert end == pytest.approx(sum(wide[-200:]) / 200, rel=0.05)


# Numbers at the edge


LARGEST = {torch.float16: 6e4, torch.bfloat16: 1e37, torch.float32: 1e37, torch.float64: 1e300}


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
def test_large_activations(v2, activation, dtype, backend):
    """Candidates, gates and inputs as large as the dtype allows: the gates are 0 or 1 there, so that the outputs and
    gradients follow from the equations by choosing, and nothing may become infinite or NaN on the way."""
    generator = torch.Generator().manual_seed(3)
    size = LARGEST[dtype]
    draw = lambda *shape: torch.randint(0, 2, shape, generator=generator).double() * 2 - 1  # noqa: E731
    signs, skip_signs, upstream = draw(6, 3, 3, 8), draw(6, 3, 8), draw(6, 3, 8)
    u = (signs * size).to(dtype).requires_grad_()
    x = (skip_signs * size).to(dtype).requires_grad_()
    bias = torch.zeros(2, 8, dtype=dtype, requires_grad=True)
    weight_c = torch.zeros(2, 8, dtype=dtype, requires_grad=True) if v2 else None
    h, c = sru_recurrence(u, x, bias, weight_c=weight_c, activation=activation, backend=backend)

    forget, reset = signs[:, :, 1] > 0, signs[:, :, 2] > 0
    state, choices = torch.zeros(3, 8, dtype=torch.float64), []
    for t in range(6):
        state = torch.where(forget[t], state, u[t, :, 0].double())
        g = {"identity": state, "tanh": state.tanh(), "relu": state.relu()}[activation]
        choices.append(torch.where(reset[t], g, x[t].double()))
    torch.testing.assert_close(h.double(), torch.stack(choices), rtol=1e-6, atol=0)
    torch.testing.assert_close(c.double(), state, rtol=1e-6, atol=0)

    inputs = [t for t in (u, x, bias, weight_c) if t is not None]
    grads = torch.autograd.grad(h, inputs, upstream.to(dtype))
    assert all_finite(grads)
    assert not grads[0][:, :, 1:].any()  # of gates that are 0 or 1
    torch.testing.assert_close(grads[1].double(), torch.where(reset, 0.0, upstream.double()), rtol=0, atol=0)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", LARGEST)
def test_no_gradient_gives_none(dtype, backend):
    rnn = SRU(6, 6, bidirectional=True, layer_norm=True, v1=False, backend=backend).to(dtype)
    x = (torch.randn(5, 3, 6) * 100).to(dtype).requires_grad_()
    h, c = rnn(x, lengths=[5, 2, 0])
    grads = torch.autograd.grad((h, c), [x, *rnn.parameters()], (torch.zeros_like(h), torch.zeros_like(c)))
    assert all(not grad.any() for grad in grads)  # NaN is no zero either


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("cell", OPTIONS)
def test_rows_of_padding_alone(cell, dtype, backend):
    """Such rows give 0, carry the state, and change no other row's gradients, whatever they hold."""
    rnn = SRU(6, 6, backend=backend, **OPTIONS[cell]).to(dtype)
    x, c0 = torch.randn(5, 3, 6).to(dtype), torch.randn(2, 3, rnn.output_size).to(dtype)
    content = torch.full_like(x[:, 1], LARGEST[dtype] / 8 if cell == "v1" else 7.0)  # a norm squares what it is given
    found = []
    for rows in ([0, 1, 2], [0, 2]):
        given = torch.cat([x[:, :1], content[:, None], x[:, 2:]], 1)[:, rows].requires_grad_()
        lengths = torch.tensor([5, 0, 3])[rows]
        h, c = rnn(given, c0[:, rows], lengths=lengths)
        grads = torch.autograd.grad(h.float().square().sum() + c.square().sum(), [given, *rnn.parameters()])
        assert all_finite([h, c, *grads])
        if len(rows) == 3:
            assert not h[:, 1].any()
            assert torch.equal(c[:, 1], c0[:, 1].to(c.dtype))
            assert not grads[0][:, 1].any()
        found.append(grads[1:])
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for padded, alone in zip(*found, strict=True):
        torch.testing.assert_close(padded, alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{"decoder_attention": attention} for attention in ("True", "False", "global")] + [{"decoder_coverage": "True"}],
)
def test_sources_of_padding_alone(options, dtype, build, dictionary):
    """In a model such a sentence leaves the loss and all gradients finite, and those of others as they are."""
    model = build(**options, encoder_bidirectional=True, dropout=0.0).to(dtype).train()
    src, target = sources(dictionary, [4, 6, 5]), prefixes(dictionary, 3, 5)
    src[1] = dictionary.pad()
    found = []
    for rows in ([0, 1, 2], [0, 2]):
        model.zero_grad()
        logits = model(src[rows], None, target[rows])[0]
        assert all_finite([logits])
        logits[[0, -1]].float().square().sum().backward()
        grads = [p.grad for p in model.parameters()]
        assert all_finite(grads)
        found.append(grads)
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 1e-1, torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    for padded, alone in zip(*found, strict=True):
        torch.testing.assert_close(padded, alone, rtol=tolerance, atol=tolerance)


# Whole training


@pytest.mark.slow
def test_backends_learn_along_the_same_curve(toy_data, tmp_path):
    """The compiled kernels and plain PyTorch, 200 updates of a small translation model with dropout."""
    curves = [
        train(toy_data, tmp_path / name, "--max-update", 200, "--dropout", 0.1, FAIRSEQ_SRU_BACKEND=name)
        for name in BACKENDS
    ]
    assert len(curves[0]) == len(curves[1]) >= 200
    assert curves[0][-1] < 0.7 * curves[0][0]
    for native, torchs in zip(*curves, strict=True):
        assert math.isclose(native, torchs, abs_tol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_one_seed_gives_one_result(threads, toy_data, tmp_path):
    """Bit for bit, with dropout, whether in one go or in two: weights and the optimizer's state."""
    options = ["--dropout", 0.2, "--rnn-dropout", 0.1]
    for name, updates in (("one go", 30), ("two", 20), ("two", 30)):
        train(toy_data, tmp_path / name, *options, "--max-update", updates, OMP_NUM_THREADS=threads)
    one, two = (torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("one go", "two"))
    for what in ("model", "last_optimizer_state"):
        torch.testing.assert_close(one[what], two[what], rtol=0, atol=0)
