"""The models' dropout against what dropout is."""

from __future__ import annotations

import pytest
import torch
from fairseq.modules import FairseqDropout

import fairseq_sru.models  # noqa: F401  which fairseq's --user-dir imports
from fairseq_sru.models.dropout import Dropout


def trained(p: float) -> Dropout:
    return Dropout(p, module_name="Layer").train()


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_share_and_scale(p):
    x = torch.ones(1000, 1000)
    y = trained(p)(x)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p)) ** 0.5 / 1000)
    assert y.double().mean().item() == pytest.approx(1, abs=5 * (p / (1 - p)) ** 0.5 / 1000)
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)


def test_neighbours_are_independent():
    """A block of numbers comes from few draws."""
    dropped = (trained(0.5)(torch.ones(400_000)) == 0).double().view(-1, 4) - 0.5
    correlations = torch.corrcoef(dropped.t())
    assert (correlations - torch.eye(4)).abs().max() < 5 / 100_000**0.5
    for far in (1, 2, 64, 128, 512):  # in a word, in a lane's words, in a block, in the next
        pairs = torch.stack([dropped.flatten()[:-far], dropped.flatten()[far:]])
        assert torch.corrcoef(pairs)[0, 1].abs() < 5 / 400_000**0.5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (7, 5, 3), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes(shape, dtype):
    x = torch.full(shape, 2.0, dtype=dtype)
    y = trained(0.5)(x)
    assert y.shape == x.shape and y.dtype == dtype
    assert set(y.flatten().tolist()) <= {0.0, 4.0}
    assert (x == 2).all()


def test_gradient_goes_where_the_value_went():
    x = torch.randn(50, 60, dtype=torch.float64, requires_grad=True)
    y = trained(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [1, 511, 512, 5000])
def test_with_a_residual_sum(count, dtype):
    layer, residual = trained(0.3), torch.randn(count, requires_grad=True)
    x = (1 + torch.rand(count)).to(dtype).requires_grad_()
    torch.manual_seed(1)
    alone = layer(x)
    torch.manual_seed(1)
    y = layer.plus(residual, x)
    assert y.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(y, residual + alone, rtol=0, atol=max(1e-6, 4 * torch.finfo(dtype).eps))
    weights = torch.randn_like(y)
    grad_residual, grad_x = torch.autograd.grad((y * weights).sum(), (residual, x))
    torch.testing.assert_close(grad_residual.to(y.dtype), weights, rtol=1e-6, atol=1e-6)
    scaled = weights * (alone / x)
    torch.testing.assert_close(grad_x.double(), scaled.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_differentiates_twice():
    layer, x = trained(0.5), torch.randn(100, requires_grad=True)
    torch.manual_seed(1)
    (grad,) = torch.autograd.grad((layer(x) ** 3).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(grad.sum(), x)
    kept = twice != 0
    torch.testing.assert_close(twice[kept], 6 * x[kept] * 2**3)
    assert 20 < kept.sum() < 80


def test_differentiates_twice_beside_a_residual_of_float32():
    layer, x = trained(0.5), torch.randn(1000, dtype=torch.bfloat16, requires_grad=True)
    residual = torch.zeros(1000)
    torch.manual_seed(1)
    y = layer.plus(residual, x)
    kept = y.detach() != 0
    (grad,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(grad.float().sum(), x)
    torch.testing.assert_close(twice.float(), torch.where(kept, 6 * 2**3 * x.float(), 0.0), rtol=0.03, atol=1e-3)


def test_all_cores_draw_what_one_does(monkeypatch):
    x = torch.ones(300_000)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr("fairseq_sru.recurrence.native_call.threads_here", lambda threads=threads: threads)
        torch.manual_seed(3)
        found.append(trained(0.2)(x))
    assert torch.equal(*found)


def test_without_a_compiler_torch_draws(monkeypatch):
    monkeypatch.setattr("fairseq_sru.models.dropout.compiled", lambda *_: None)
    y = trained(0.5).plus(torch.ones(1000), torch.ones(1000))
    assert set(y.tolist()) == {1.0, 3.0}


def test_fairseqs_own_models_have_it():
    x = torch.ones(1000)
    for theirs in (FairseqDropout(0.5), torch.jit.script(FairseqDropout(0.5)).train()):
        torch.manual_seed(7)
        y = theirs(x)
        assert set(y.tolist()) == {0.0, 2.0}
        torch.manual_seed(7)
        ours = trained(0.5)(x)
        assert torch.equal(y, ours) != isinstance(theirs, torch.jit.ScriptModule)  # which torch draws for
    assert torch.equal(FairseqDropout(0.5).eval()(x), x)


def test_a_seed_makes_it_again_and_other_calls_differ():
    layer, x = trained(0.5), torch.ones(100)
    torch.manual_seed(7)
    first, second = layer(x), layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_the_ends(p):
    x = torch.ones(1000)
    assert torch.equal(trained(p)(x), x * (p < 0.5))


def test_decoding_has_none_unless_it_is_retained():
    x = torch.ones(1000)
    for retained, chosen, changed in [
        (False, None, False),
        (True, None, True),
        (True, ["X"], False),
        (True, ["X", "Layer"], True),
    ]:
        layer = trained(0.5).eval()
        assert isinstance(layer, FairseqDropout)
        layer.make_generation_fast_("layer", retain_dropout=retained, retain_dropout_modules=chosen)
        assert torch.equal(layer(x), x) != changed


def test_compiles():
    layer = trained(0.5)
    y = torch.compile(layer, backend="eager", fullgraph=True)(torch.ones(1000))
    assert set(y.tolist()) == {0.0, 2.0}
