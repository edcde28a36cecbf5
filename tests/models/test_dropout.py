"""The models' dropout against what dropout is."""

from __future__ import annotations

import pytest
import torch
from fairseq.modules import FairseqDropout

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
    """Four numbers come from one draw."""
    dropped = (trained(0.5)(torch.ones(400_000)) == 0).double().view(-1, 4) - 0.5
    correlations = torch.corrcoef(dropped.t())
    assert (correlations - torch.eye(4)).abs().max() < 5 / 100_000**0.5
    assert torch.corrcoef(torch.stack([dropped[:-1, 3], dropped[1:, 0]]))[0, 1].abs() < 5 / 100_000**0.5


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


def test_strided_input():
    x = torch.randn(40, 30).t()
    y = trained(0.5)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], 2 * x[kept])


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
    for retained, chosen, changed in [(False, None, False), (True, None, True), (True, ["X"], False)]:
        layer = trained(0.5).eval()
        assert isinstance(layer, FairseqDropout)
        layer.make_generation_fast_("layer", retain_dropout=retained, retain_dropout_modules=chosen)
        assert torch.equal(layer(x), x) != changed


def test_compiles():
    layer = trained(0.5)
    y = torch.compile(layer, backend="eager", fullgraph=True)(torch.ones(1000))
    assert set(y.tolist()) == {0.0, 2.0}
