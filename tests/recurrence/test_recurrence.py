"""The recurrence against a float64 loop over scalars, written from the paper's equations, and against finite
differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_sru import sru_recurrence
from fairseq_sru.recurrence import dispatch

BACKENDS = [name for name in dispatch.BACKENDS if dispatch.DEVICES.get(name, "cpu") == "cpu"]
KINDS = ["own", "input", "none", "ungated"]  # skip term: a matrix of its own, x, none; none and no reset gate


def paper(
    u, x, bias, c0, activation, bidirectional, dropout_mask, padding_mask, weight_c=None, skip_scale=1.0
) -> tuple[Tensor, Tensor]:
    """Equations 3-7 of arXiv 1709.02755v1, and what v2 and the SSRU change in them, one number at a time."""
    g = {"identity": lambda v: v, "tanh": math.tanh, "relu": lambda v: max(v, 0.0)}[activation]
    u, x, bias, c0, weight_c = (None if v is None else v.detach() for v in (u, x, bias, c0, weight_c))
    length, batch, planes, width = u.shape
    h = torch.zeros(length, batch, width, dtype=torch.float64)
    c_n = torch.zeros(batch, width, dtype=torch.float64)
    for b, j in itertools.product(range(batch), range(width)):
        backward = bidirectional and j >= width // 2
        c = float(c0[b, j]) if c0 is not None else 0.0
        gates = range(planes - 1)[:2]
        constant = [float(bias[i, j]) if bias is not None else 0.0 for i in gates]
        slope = [float(weight_c[i, j]) if weight_c is not None else 0.0 for i in gates]
        for t in reversed(range(length)) if backward else range(length):
            if padding_mask is not None and padding_mask[t, b]:
                continue
            plane = [float(u[t, b, i, j]) for i in range(planes)]
            f, *r = (1 / (1 + math.exp(-(plane[1 + i] + slope[i] * c + constant[i]))) for i in gates)
            c = f * c + (1 - f) * plane[0]
            skip = plane[3] if planes == 4 else float(x[t, b, j]) * skip_scale if x is not None else 0.0
            mask = float(dropout_mask[b, j]) if dropout_mask is not None else 1.0
            h[t, b, j] = r[0] * g(c) * mask + (1 - r[0]) * skip if r else g(c) * mask
        c_n[b, j] = c
    return h, c_n


def make(
    length=5,
    batch=3,
    width=4,
    kind="input",
    extras=True,
    pad=True,
    v2=False,
    dtype=torch.float64,
    seed=0,
    requires_grad=False,
) -> tuple[tuple[Tensor, Tensor | None, Tensor | None, Tensor | None], dict]:
    """u, x, bias, c0, and the arguments by name that are tensors or belong to them."""
    rng = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)  # noqa: E731
    gates = 1 if kind == "ungated" else 2
    u = rand(length, batch, {"own": 4, "ungated": 2}.get(kind, 3), width)
    x = rand(length, batch, width) if kind == "input" else None
    bias = rand(gates, width) if extras else None
    c0 = rand(batch, width) if extras else None
    mask = (torch.rand(batch, width, generator=rng) < 0.7).to(dtype) / 0.7 if extras else None
    padding = torch.rand(length, batch, generator=rng) < 0.3 if pad else None
    weight_c = rand(gates, width) if v2 else None
    for t in (u, x, bias, c0, weight_c):
        if t is not None:
            t.requires_grad_(requires_grad)
    named = {"dropout_mask": mask, "padding_mask": padding, "weight_c": weight_c, "skip_scale": 1.5 if v2 else 1.0}
    return (u, x, bias, c0), named


CHOICES = BACKENDS, [False, True], ["identity", "tanh", "relu"], KINDS, [False, True], [False, True]
EVERY = list(itertools.product(*CHOICES))
NAMES = "backend, bidirectional, activation, kind, v2, extras"
every = pytest.mark.parametrize(NAMES, EVERY)
# Every fourth of them, so that each pair of choices is among them, and the rest with --all.
every_fourth = pytest.mark.parametrize(
    NAMES,
    [pytest.param(*case, marks=[pytest.mark.slow] * (sum(map(list.index, CHOICES, case)) % 4 > 0)) for case in EVERY],
)


@every
def test_equals_the_equations(backend, bidirectional, activation, kind, v2, extras):
    tensors, masks = make(kind=kind, extras=extras, pad=extras, v2=v2)
    expected = paper(*tensors, activation, bidirectional, **masks)
    got = sru_recurrence(*tensors, activation=activation, bidirectional=bidirectional, backend=backend, **masks)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_fourth
def test_gradcheck(backend, bidirectional, activation, kind, v2, extras):
    tensors, masks = make(3, 2, 4, kind, extras, extras, v2, requires_grad=True)
    if extras:
        masks["dropout_mask"].requires_grad_(True)
    maybe = (*tensors, masks["dropout_mask"], masks["weight_c"])
    given_tensors = [t for t in maybe if t is not None]

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        values = iter(inputs)
        u, x, bias, c0, mask, weight_c = (next(values) if t is not None else None for t in maybe)
        more = {**masks, "dropout_mask": mask, "weight_c": weight_c, "bidirectional": bidirectional}
        return sru_recurrence(u, x, bias, c0, activation=activation, backend=backend, **more)

    assert torch.autograd.gradcheck(run, given_tensors)  # of h alone and of c_n alone: the other gradient is None
    outputs = run(*given_tensors)
    weights = [torch.randn_like(output) for output in outputs]
    both, h_alone, c_alone = (
        torch.autograd.grad(outputs[one], given_tensors, weights[one], retain_graph=True, materialize_grads=True)
        for one in (slice(None), slice(1), slice(1, None))
    )
    for of_both, *of_one in zip(both, h_alone, c_alone, strict=True):
        torch.testing.assert_close(of_both, sum(of_one), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_depends_on_nothing_has_no_gradient(backend):
    """c_n on x, and anything on an input of no steps but for c_n on c0."""
    (u, x, *_), _ = make()
    x.requires_grad_()
    h, c_n = sru_recurrence(u, x, backend=backend)
    (grad,) = torch.autograd.grad(h.sum() + c_n.sum(), x, create_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(sru_recurrence(u, x, backend=backend)[0].sum(), x)[0])
    if c_n.requires_grad:
        _, c_n = sru_recurrence(u, x, backend=backend)
        assert torch.autograd.grad(c_n.sum(), x, create_graph=True, allow_unused=True) == (None,)
    (u, x, _, c0), _ = make(length=0, requires_grad=True)
    h, c_n = sru_recurrence(u, x, None, c0, backend=backend)
    grads = torch.autograd.grad(h.sum() + c_n.sum(), (u, c0), create_graph=True)
    assert grads[0].shape == u.shape and torch.equal(grads[1], torch.ones_like(c0))


by_entry = pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["sums", "entries"])


@by_entry
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("v2", [False, True])
def test_second_derivative(backend, v2, fast):
    tensors, masks = make(3, 2, 4, v2=v2, requires_grad=True)
    run = lambda *a: sru_recurrence(*a, bidirectional=True, backend=backend, **masks)  # noqa: E731
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=fast)


@by_entry
@pytest.mark.parametrize("backend", BACKENDS)
def test_first_derivatives_are_the_same_with_create_graph(backend, fast):
    """u depends on x, as in a layer whose input is the skip term: no path may count twice."""
    x = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    results = []
    for create_graph in (False, True):
        h, c = sru_recurrence((x @ w.t()).view(5, 2, 3, 4), x, bias, backend=backend)
        loss = h.square().sum() + c.sum()
        results.append(torch.autograd.grad(loss, (x, w, bias), create_graph=create_graph))
    for plain, differentiable in zip(*results, strict=True):
        torch.testing.assert_close(differentiable.detach(), plain)
    through = lambda x, w: sru_recurrence((x @ w.t()).view(5, 2, 3, 4), x, backend=backend)  # noqa: E731
    assert torch.autograd.gradgradcheck(through, (x, w), fast_mode=fast)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 9),
    batch=st.integers(1, 4),
    half=st.integers(1, 5),
    kind=st.sampled_from(KINDS),
    v2=st.booleans(),
    extras=st.booleans(),
    pad=st.booleans(),
    bidirectional=st.booleans(),
    activation=st.sampled_from(["identity", "tanh", "relu"]),
    seed=st.integers(0, 2**31),
)
def test_backends_agree(length, batch, half, kind, v2, extras, pad, bidirectional, activation, seed):
    results = []
    for backend in BACKENDS:
        tensors, masks = make(length, batch, 2 * half, kind, extras, pad, v2, seed=seed, requires_grad=True)
        h, c_n = sru_recurrence(*tensors, activation=activation, bidirectional=bidirectional, backend=backend, **masks)
        (h.square().sum() + (c_n * 3).sum()).backward()
        results.append([h, c_n, *(t.grad for t in (*tensors, masks["weight_c"]) if t is not None)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_steps_leave_the_state_as_it_is(backend):
    (u, x, bias, c0), masks = make(0, requires_grad=True)
    h, c_n = sru_recurrence(u, x, bias, c0, bidirectional=True, backend=backend, **masks)
    assert h.shape == (0, 3, 4)
    torch.testing.assert_close(c_n, c0)
    c_n.sum().backward()
    torch.testing.assert_close(c0.grad, torch.ones_like(c0))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_dtypes_keep_a_float32_state(backend, dtype, tolerance):
    tensors, masks = make(40, 3, 6, dtype=dtype)
    h, c_n = sru_recurrence(*tensors, backend=backend, **masks)
    assert h.dtype == dtype
    assert c_n.dtype == torch.float32
    exact = paper(*tensors, "tanh", False, **masks)
    torch.testing.assert_close(h.double(), exact[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(c_n.double(), exact[1], rtol=1e-5, atol=1e-5)  # inputs rounded, the sum over time not


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_content_is_never_read(backend):
    tensors, masks = make(requires_grad=True)
    pad = masks["padding_mask"]
    results = []
    for garbage in (0.0, float("nan"), float("inf")):
        u, x, bias, c0 = (t.detach().clone().requires_grad_() for t in tensors)
        with torch.no_grad():
            u[pad] = garbage
            x[pad] = garbage
        h, c_n = sru_recurrence(u, x, bias, c0, bidirectional=True, backend=backend, **masks)
        assert not h[pad].any()
        leaves, loss = (u, x, bias, c0), h.square().sum() + c_n.sum()
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        differentiable = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in differentiable), leaves)
        for grads in (first, differentiable, second):
            assert not grads[0][pad].any()
            assert not grads[1][pad].any()
        results.append((h, c_n, *first, *differentiable, *second))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"u": None}, TypeError, "u must be a tensor; got NoneType"),
        ({"u": torch.zeros(5, 3, 3, 4).long()}, TypeError, "u must be a tensor of float32, .*; got torch.int64"),
        ({"u": torch.zeros(5, 3, 3, 4).to(torch.float8_e4m3fn)}, TypeError, "u must be a tensor .*float8"),
        ({"u": torch.zeros(5, 3, 5, 4)}, ValueError, "u must have shape"),
        ({"u": torch.zeros(5, 3, 4, 4)}, ValueError, "x must not be given where u has 4 planes"),
        ({"u": torch.zeros(5, 3, 2, 4)}, ValueError, "x must not be given where u has 2 planes"),
        ({"x": torch.zeros(5, 3, 3)}, ValueError, r"x must have shape \(5, 3, 4\).*got \(5, 3, 3\)"),
        ({"bias": torch.zeros(8)}, ValueError, "bias must have shape"),
        ({"weight_c": torch.zeros(1, 4)}, ValueError, r"weight_c must have shape \(2, 4\)"),
        ({"c0": (torch.zeros(3, 4),) * 2}, TypeError, r"c0 must be a tensor of shape \(3, 4\).*; got tuple"),
        ({"c0": torch.zeros(3, 4, device="meta")}, ValueError, "c0 must be on u's device, cpu; got meta"),
        ({"c0": torch.zeros(1, 3, 4)}, ValueError, "c0 must have shape"),
        ({"padding_mask": torch.zeros(3, 5).bool()}, ValueError, "padding_mask must have shape"),
        ({"padding_mask": torch.zeros(5, 3)}, TypeError, "padding_mask must be a bool"),
        ({"u": torch.zeros(5, 3, 3, 3), "x": None, "bidirectional": True}, ValueError, "even number .* u; got 3"),
        ({"activation": "selu"}, ValueError, "activation must be one of identity, tanh, relu; got 'selu'"),
        ({"backend": "tpu"}, ValueError, "backend must be one of auto, cuda, native, torch, reference; got 'tpu'"),
        ({"skip_scale": math.inf}, ValueError, "skip_scale must be a finite number; got inf"),
        ({"skip_scale": "2"}, TypeError, "skip_scale must be a number; got '2'"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        sru_recurrence(**{"u": torch.zeros(5, 3, 3, 4), "x": torch.zeros(5, 3, 4), **change})


def test_a_transform_knows_the_backends_names():
    with pytest.raises(ValueError, match="backend must be one of"):
        torch.func.vmap(lambda u: sru_recurrence(u, backend="tpu")[0])(torch.zeros(2, 5, 3, 3, 4))
