"""Programs of operations: what doesn't fit is refused, and int8 products are what their definition says."""

from __future__ import annotations

import ctypes
import math
import platform
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_sru.decoding import program
from fairseq_sru.decoding.program import Program, quantised
from fairseq_sru.models.attention import Source
from fairseq_sru.models.step import Step
from fairseq_sru.recurrence import build

# What the compiler is told not to use, so that each form of the product is built, as far as this processor has it.
FORMS = [(), ("-DPLAIN",)]
if platform.machine() == "x86_64":
    FORMS[1:1] = [("-mno-avx512vnni", "-mno-avxvnni"), ("-mno-avx512f",), ("-mno-avx2",)]


@pytest.fixture(
    params=[FORMS[0], *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[1:])],
    ids=lambda form: " ".join(form) or "native",
)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(program, "OPTIONS", (*program.OPTIONS, *request.param))
    program.library.cache_clear()
    yield " ".join(request.param)
    program.library.cache_clear()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """By compiled code: x's rows are an embedding's."""
    made = Program()
    made.embed(made.slot(x.size(1)), x)
    made.linear(0, made.slot(len(weight)), quantised(weight), bias)
    nothing = Source(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    return Step(made).run(torch.arange(len(x)), [nothing], None, None, False).logits


def definition(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In float64: rows of x and of the weight in whole steps of 1/127 of their largest number. x is multiplied by 127
    over it, the weight divided by a 127th of it: two ways to round, which differ halfway between two steps."""
    a, b = (rows.abs().amax(1, keepdim=True) for rows in (x, weight))
    q = torch.where(a > 0, x * torch.tensor(127.0).div(a), 0.0).round().double()  # 127 / a is 127 times 1 / a
    w = torch.where(b > 0, weight / (b / 127), 0.0).round().double()
    return (q @ w.t()) * (a / 127).double() * (b / 127).double().t() + (0 if bias is None else bias.double())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), k=st.integers(1, 140), n=st.integers(1, 140), seed=st.integers(0, 99))
def shapes(rows: int, k: int, n: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, k, generator=rng), torch.randn(n, k, generator=rng)
    weight[0], x[-1] = 0, x[-1] * 1e4
    bias = torch.randn(n, generator=rng) if seed % 2 else None
    got, expected = product(x, weight, bias), definition(x, weight, bias)
    step = (x.abs().amax(1)[:, None] / 127 * weight.abs().amax(1)[None]).double()
    assert ((got - expected).abs() <= 1e-5 * expected.abs() + 1e-4 * step).all()


def test_int8_products_are_their_definition(form: str) -> None:
    shapes()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 8, 33])
def test_every_form_gives_the_same_bits(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are whole numbers, so the forms agree but for the contraction of the last two operations."""
    x, weight = torch.randn(rows, 272), torch.randn(77, 272)
    found = []
    for options in FORMS:
        monkeypatch.setattr(program, "OPTIONS", ("-fopenmp-simd", "-ffp-contract=off", *options))
        program.library.cache_clear()
        found.append(product(x, weight, None))
    program.library.cache_clear()
    for other in found[1:]:
        assert torch.equal(other, found[0])


def test_the_largest_numbers_do_not_overflow(form: str) -> None:
    x, weight = torch.ones(3, 5000), torch.ones(9, 5000)
    weight[1] = -1
    x[1] = -1
    torch.testing.assert_close(product(x, weight, None), (x @ weight.t()), rtol=1e-5, atol=0)


def test_quantised_rows_are_within_half_a_step() -> None:
    weight = torch.randn(50, 60) * torch.logspace(-6, 6, 50)[:, None]
    q, scale = quantised(weight)
    assert (q.float().abs().amax(1) == 127).all()
    assert ((q * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all()


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.embed(1, torch.zeros(5, 4)),
        lambda p: p.embed(0, torch.zeros(5, 9)),
        lambda p: p.embed(0, torch.zeros(5, 4), torch.zeros(9, 3)),
        lambda p: p.norm(0, 0, torch.zeros(9), torch.zeros(9), 1e-5),
        lambda p: p.norm(0, 0, torch.zeros(4), torch.zeros(3), 1e-5),
        lambda p: p.linear(0, -1, torch.zeros(8, 8)),
        lambda p: p.linear(0, 0, torch.zeros(8, 8)),
        lambda p: (p.slot(8), p.linear(0, 1, torch.zeros(7, 8), torch.zeros(7, 0))),
        lambda p: (p.slot(8), p.linear(0, 1, torch.zeros(7, 8), torch.zeros(8))),
        lambda p: p.recur(0, 0, torch.zeros(2, 2), "tanh"),
        lambda p: p.self_attend(0, 0, 2, 1.0),
        lambda p: p.attend(0, 0, 2, 1.0, True),
        lambda p: p.source(0, 3),
    ],
)
def test_what_does_not_fit_is_an_error(write: object) -> None:
    made = Program()
    made.slot(8)
    with pytest.raises(ValueError, match=r"slots and weights don't fit$"):
        write(made)  # type: ignore[operator]


EXPONENTIALS = """
#include "ops.h"
extern "C" void exponentials(const float* x, float* y, int64 count) {
    for (int64 i = 0; i < count; i += LANES) *(vec*)(y + i) = exponential_to_one(*(const vec*)(x + i));
}
"""


def test_the_exponentials_of_a_softmax_are_exact(tmp_path: Path) -> None:
    command, _ = build.host_compiler()
    words = [*command, *build.HOST_FLAGS, *program.OPTIONS, f"-I{build.kernel_folder()}"]
    path = tmp_path / "exponentials.so"
    subprocess.run([*words, "-x", "c++", "-", "-o", str(path)], input=EXPONENTIALS, text=True, check=True)
    x = -torch.logspace(-40, 2.5, 2**20)
    x[:6] = torch.tensor([0.0, -0.0, -87.0, -88.0, -math.inf, math.nan])
    y = torch.empty_like(x)
    ctypes.CDLL(str(path)).exponentials(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(len(x))
    )
    assert y[:2].tolist() == [1, 1]
    assert y[3:5].tolist() == [0, 0]
    assert y[5].isnan()
    kept = x >= -87
    assert kept.sum() > 1e5
    exact = x[kept].double().exp()
    assert ((y[kept].double() - exact).abs() <= 1.5 * 2**-23 * exact).all()
    assert (y[x < -87] == 0).all()
