"""The matrix product against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fairseq_sru.layers import linear as module
from fairseq_sru.layers.linear import Linear, by_columns, linear


@pytest.fixture(autouse=True, params=["torch", "oneDNN"])
def library(request, monkeypatch):
    """Whose products: on any processor, and for any size."""
    if request.param == "oneDNN" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "_ONEDNN", request.param == "oneDNN")
    monkeypatch.setattr(module, "SMALL", 0)
    return request.param


def test_the_library_is_the_one_that_is_tested(library):
    with torch.profiler.profile() as seen:
        linear(torch.randn(5, 4), torch.randn(3, 4))
    assert any("_linear_pointwise" in event.key for event in seen.key_averages()) == (library == "oneDNN")


@pytest.mark.parametrize("shape", [(7, 5, 24), (1, 24), (35, 24), (0, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", ["dense", "strided", "overlapping", "strided and overlapping", "expanded"])
def test_equals_torch_with_its_gradients(shape, bias, how):
    results = []
    x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] if how == "strided" else torch.randn(shape)
    if how == "overlapping" and x.numel():  # frames of a signal
        x = torch.randn(5 * len(x.flatten(0, -2)) + 19).unfold(0, 24, 5).view(shape)
    elif "and" in how and x.numel():  # of one channel of two
        x = torch.randn(12 * len(x.flatten(0, -2)) + 12, 2)[:, 0].unfold(0, 24, 12).view(shape)
    elif how == "expanded":
        x = torch.randn(*shape[:-1], 1).expand(shape)
    w, b = torch.randn(16, 24), torch.randn(16) if bias else None
    grad = torch.randn(*shape[:-1], 16)
    for function in (linear, F.linear):
        inputs = [None if t is None else t.detach().requires_grad_() for t in (x, w, b)]
        out = function(*inputs)
        out.backward(grad)
        results.append([out, *(t.grad for t in inputs if t is not None)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b), rtol=1e-5, atol=1e-5)


def test_a_weight_that_lies_by_columns_gives_the_same(library):
    w = torch.randn(16, 24)
    laid = by_columns(w)
    assert torch.equal(laid, w)
    if library == "torch":
        assert laid is w
        return
    assert laid.stride() == (1, 16)
    assert by_columns(w.double()).stride() == (24, 1)
    for rows in (1, 2, 64):
        inputs = [(torch.ones(rows, 1, 24, requires_grad=True), m.detach().requires_grad_()) for m in (w, laid)]
        with torch.profiler.profile() as seen:
            outs = [linear(*pair) for pair in inputs]
        assert sum("_linear_pointwise" in event.key for event in seen.events()) == (1 if rows == 1 else 2)
        grads = [torch.autograd.grad(out.square().sum(), pair) for out, pair in zip(outs, inputs, strict=True)]
        for got, expected in zip(*([out, *grad] for out, grad in zip(outs, grads, strict=True)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-3)


def test_what_looks_at_operators_finds_torchs():
    """Such as what counts FLOPs, and what chooses by operator which results a checkpoint keeps."""
    x, w = torch.randn(35, 24), torch.randn(16, 24, requires_grad=True)
    with FlopCounterMode(display=False) as counted:
        linear(x, w).sum().backward()
    assert counted.get_total_flops() == 2 * (2 * 35 * 24 * 16)


def test_second_derivatives():
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    second = []
    for function in (linear, F.linear):
        first = torch.autograd.grad(function(x, w).pow(3).sum(), (x, w), create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, w)))
    for got, expected in zip(*second, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs_own(dtype):
    x, w = torch.randn(5, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    torch.testing.assert_close(linear(x, w), F.linear(x, w), rtol=0, atol=0)


def test_frozen_weights_get_no_gradient():
    layer = Linear(4, 3)
    layer.weight.requires_grad = False
    x = torch.randn(5, 4, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 4))


def test_follows_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(5, 4), torch.randn(3, 4)).dtype == torch.bfloat16
        x, weight = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
        assert torch.equal(linear(x, weight), F.linear(x, weight)) and linear(x, weight).dtype == torch.float64
