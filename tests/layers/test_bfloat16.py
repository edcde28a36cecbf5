"""Products in bfloat16 on a CPU, as autocast asks for them."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.processes import python

from fairseq_sru import SRU
from fairseq_sru.layers import bfloat16
from fairseq_sru.layers import linear as module
from fairseq_sru.layers.linear import Linear, linear

ROUNDING = 2.0**-8  # of bfloat16, relative


@pytest.fixture(autouse=True)
def not_said_yet():
    module.warn_if_slower.cache_clear()
    yield
    module.warn_if_slower.cache_clear()


def autocast(function, *inputs):
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of processors without
        return function(*inputs)


def test_rows_are_padded_to_few_sizes_and_by_little():
    sizes = [bfloat16.padded(rows) for rows in range(1, 4097)]
    assert all(rows <= size < rows + max(16, rows / 8) for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 8 * 8
    assert all(bfloat16.padded(size) == size for size in set(sizes))


@pytest.mark.parametrize("rows", [0, 1, 16, 37, 513])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_those_of_rounded_operands(rows, bias):
    x, w = torch.randn(rows, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    b = torch.randn(40, requires_grad=True) if bias else None
    grad = torch.randn(rows, 40)
    out = autocast(linear, x, w, b)
    assert out.dtype == torch.bfloat16 and out.shape == (rows, 40)
    out.backward(grad.bfloat16())
    exact = {t: t.detach().bfloat16().double() for t in (x, w) + ((b,) if bias else ())}
    g = grad.bfloat16().double()
    expected = exact[x] @ exact[w].t() + (exact[b] if bias else 0)
    sums = exact[x].abs() @ exact[w].abs().t() + 1
    assert ((out.double() - expected).abs() <= ROUNDING * sums).all()
    for t, first, second in ((x, g, exact[w]), (w, g.t(), exact[x])):
        assert t.grad.dtype == torch.float32
        assert ((t.grad.double() - first @ second).abs() <= ROUNDING * (first.abs() @ second.abs() + 1e-9)).all()
    if bias:
        torch.testing.assert_close(b.grad.double(), g.sum(0), rtol=1e-5, atol=1e-4)


def test_no_gradient_is_computed_for_what_is_frozen():
    layer = Linear(24, 16)
    layer.weight.requires_grad = False
    x = torch.randn(5, 24, requires_grad=True)
    autocast(layer, x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    with torch.no_grad():
        assert autocast(layer, x).grad_fn is None


def test_a_loop_of_steps_keeps_no_copy_of_the_weight_for_each():
    weight, kept = torch.randn(16, 8, requires_grad=True), []

    def keep(tensor):
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outs = [autocast(linear, torch.randn(3, 8), weight) for _ in range(4)]
    assert kept.count(weight.untyped_storage().data_ptr()) == 4
    sum(outs).sum().backward()
    assert weight.grad is not None


def test_second_derivatives_are_refused():
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    first = torch.autograd.grad(autocast(linear, x, w).square().sum(), (x, w), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.sum() for g in first).backward()


def test_without_autocast_nothing_is_rounded(monkeypatch):
    def refused(*_):
        raise AssertionError("a product in bfloat16")

    monkeypatch.setattr(bfloat16, "linear", refused)
    rnn, x = SRU(24, 32, num_layers=2, bidirectional=True), torch.randn(7, 3, 24, requires_grad=True)
    rnn(x)[0].sum().backward()
    with torch.autocast("cpu", torch.float16):
        rnn(x)
    with pytest.raises(AssertionError, match="bfloat16"):
        autocast(rnn, x)


@pytest.mark.parametrize("factor", [0.4, 1.1, 2.0])
def test_a_processor_without_is_told_of_once(factor, monkeypatch):
    monkeypatch.setattr(module, "bfloat16_gain", lambda: factor)
    assert module.bfloat16_pays() is (factor > 1.25)
    with warnings.catch_warnings(record=True) as said, torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("always")
        for _ in range(2):
            linear(torch.randn(5, 4), torch.randn(3, 4))
    expected = "products in bfloat16 are 0.40 times as fast as in float32 on this processor"
    assert [str(w.message).partition(":")[0] for w in said] == [expected] * (factor < 1)


def test_what_torch_reads_is_set_unless_it_is():
    names = ("THP_MEM_ALLOC_ENABLE", "TORCH_CUDNN_SDPA_DEPRIORITIZED")
    show = f"import os, fairseq_sru; print(*map(os.environ.get, {names}))"
    for given, expected in (({}, "1 1"), (dict.fromkeys(names, "7"), "7 7")):
        assert python("-c", show, without=names, **given).stdout.strip() == expected


def test_measuring_the_gain_leaves_torch_as_it_was(monkeypatch):
    """Else a run that goes on, which measures in another update, would drop out something else; and one thread is for
    the measurement alone, in which several would wait for one another where other work runs."""
    module.bfloat16_gain.cache_clear()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    used, product = set(), bfloat16.linear
    monkeypatch.setattr(bfloat16, "linear", lambda *of: (used.add(torch.get_num_threads()), product(*of)))
    try:
        torch.set_num_threads(3)
        module.bfloat16_gain()
        assert torch.get_num_threads() == 3 and used == {1}
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
