"""The CUDA source without a GPU: built for this CPU, in the CPU's form and in the GPU's, against the definition in
float64; and what NVRTC makes of it."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import variants
from support.gpu_forms import V1, by, geometries, gpu_compiler, ptx_of, variant_of
from support.ptx import least, traffic
from support.variants import COVERING, Case, Recurrent, Results, assert_defined, changed, make, results
from torch import Tensor

from fairseq_sru import sru_recurrence
from fairseq_sru.recurrence import build
from fairseq_sru.recurrence.kernels import VALUES, Argument, Kernels, Shape, Variant
from fairseq_sru.recurrence.native import Native, load, run

each_case = pytest.mark.parametrize("case", COVERING, ids=str)
# every kind, dtype and activation, with v terms and without
FEW = [COVERING[i] for i in (1, 6, 8, 11, 14, 16)]


def few_fast(cases: list[Case]) -> Any:
    """The cases as a parameter, those not of FEW slow."""
    few = {case._replace(v=v) for case in FEW for v in (case.v, False)}
    return pytest.mark.parametrize(
        "case", [case if case in few else pytest.param(case, marks=pytest.mark.slow) for case in cases], ids=str
    )


class Host(Kernels):
    """The text built for this CPU.

    Args:
        vec, ahead: of the GPU's form; with wide, vec is how many channels a thread takes of the CPU's form.
        steps: that a thread works on, with v1 cells; all if not given.
        spare: threads more than needed, as a GPU's grid of whole blocks has them.
        workers: threads of the CPU.
    """

    name = "host"

    def __init__(
        self, vec: int, ahead: int, steps: int | None = None, spare: int = 0, workers: int = 1, wide: bool = False
    ) -> None:
        self.vec, self.ahead, self.steps, self.spare, self.workers, self.wide = vec, ahead, steps, spare, workers, wide
        self.every, self.always_pad = 1 if wide else 2, wide

    def chunk_length(self, variant: Variant, length: int, columns: int, device: torch.device) -> int:
        return length if variant.peephole or not self.steps else self.steps

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        half = shape.width // shape.directions
        assert self.wide or half % self.vec == 0
        threads = shape.batch * shape.directions * -(-half // self.vec) * shape.chunks
        entries = host_kernels(form(variant, self.vec, self.ahead, self.wide), variant.kernels)
        run(entries, kernel, threads + self.spare, self.vec, self.workers, shape, arguments)


def form(variant: Variant, vec: int, ahead: int, wide: bool) -> tuple[str, ...]:
    if wide:
        return ("-DWIDE", *variant._replace(pad=1).defines(vec=256, ahead=1))
    # -O1 builds in half the time, and this form is fast on a GPU only; fake_cupy.py shares the built files
    return (*variant.defines(vec=vec, ahead=ahead), "-O1")


@functools.cache
def host_kernels(options: tuple[str, ...], kernels: tuple[str, ...]) -> Any:
    return load(build.host_library(options), kernels)


def native(**arguments: Any) -> tuple[Tensor, Tensor]:
    return sru_recurrence(**arguments, backend="native")


def assert_same_bits(got: Results, expected: Results) -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=0, equal_nan=True, msg=lambda t, n=name: f"{n}: {t}"
        )


# ---------------------------------------------------------------- against the definition


def test_the_cases_have_every_pair_of_options():
    had = {pair for case in COVERING for pair in variants.pairs_in(case._asdict())}
    assert had >= set(variants.all_pairs())
    assert len(variants.all_pairs()) > 200
    assert all(variants.fits(case._asdict()) for case in COVERING)
    for option in ("kind", "dtype", "activation", "v"):
        assert {getattr(case, option) for case in FEW} == {getattr(case, option) for case in COVERING}


def test_the_geometries_are_those_that_the_text_is_written_for():
    """A thread has the channels that 16 bytes hold, at most 4 with v terms."""
    for dtype, v, most in [(0, 0, 4), (1, 0, 8), (2, 0, 8), (3, 0, 2), (0, 1, 4), (1, 1, 4), (2, 1, 4), (3, 1, 2)]:
        assert [vec for vec, _ in geometries(Variant(dtype, 1, 3, 1, v))] == [n for n in (1, 2, 4, 8) if n <= most]


@each_case
def test_native_equals_the_definition(case):
    arguments = make(case, length=11, half=21)
    assert_defined(results(native, arguments), arguments)


@each_case
def test_gpu_form_equals_the_definition(case):
    for vec, ahead in geometries(variant_of(case)):
        for length in (1, ahead + 1, 4 * ahead + 2, 4 * ahead + 3):
            arguments = make(case, length=length, half=3 * vec)
            assert_defined(results(by(Host(vec, ahead)), arguments), arguments)


@few_fast(V1)
def test_chunks_equal_the_definition(case):
    for vec, ahead in geometries(variant_of(case))[-2:]:
        arguments = make(case, length=13, half=vec)
        for steps in (1, 2, 3, 5, 6, 12, 13, 14, 100):
            assert_defined(results(by(Host(vec, ahead, steps)), arguments), arguments)
    arguments = make(case, length=13, half=21)
    assert_defined(results(by(Host(16, 1, 4, wide=True)), arguments), arguments)


def scattered(t: Tensor) -> Tensor:
    """The same values, not contiguous and not aligned."""
    wider = t.new_zeros(*t.shape[:-1], 2 * t.size(-1) + 1)
    wider[..., 1::2] = t
    return wider[..., 1::2]


PADDINGS = ("as it is", "one sequence whole", "all", "first and last step")


def with_padding(arguments: dict[str, Any], which: str) -> dict[str, Any]:
    pad = torch.zeros(arguments["u"].shape[:2], dtype=torch.bool)
    if which == "all":
        pad[:] = True
    elif which == "one sequence whole":
        pad[:, -1] = True
    else:
        pad[0] = pad[-1] = True
    return arguments if which == "as it is" else {**arguments, "padding_mask": pad}


@st.composite
def problems(draw: Any, wide: bool) -> tuple[Host, dict[str, Any]]:
    case = draw(st.sampled_from(V1 + COVERING))
    vec, ahead = draw(st.sampled_from(geometries(variant_of(case))))
    steps = draw(st.none() | st.integers(1, 12))
    if wide:
        host = Host(draw(st.sampled_from([1, 3, 16, 256])), 1, steps, wide=True)
        half = draw(st.sampled_from([1, 2, 3, 7, 16, 17, 33, 255, 256, 257]))
    else:
        host = Host(vec, ahead, steps, spare=draw(st.sampled_from([0, 1, 127])))
        half = vec * draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**31))
    # a state may be close enough to relu's kink for rounding to decide about its gradient
    grads = case.activation != "relu"
    arguments = make(case, draw(st.integers(1, 9)), draw(st.integers(1, 3)), half, seed, requires_grad=grads)
    arguments = with_padding(arguments, draw(st.sampled_from(PADDINGS)))
    return host, changed(arguments, scattered) if draw(st.booleans()) else arguments


@settings(max_examples=80, deadline=None)
@given(problems(wide=False))
def test_gpu_form_with_any_shape(problem):
    host, arguments = problem
    assert_defined(results(by(host), arguments), arguments, factor=2)


@settings(max_examples=80, deadline=None)
@given(problems(wide=True))
def test_cpu_form_with_any_shape(problem):
    host, arguments = problem
    assert_defined(results(by(host), arguments), arguments, factor=2)


@each_case
def test_padding_is_never_looked_at(case):
    hosts = [Native(), Host(1, 8, 3)]
    plain = make(case._replace(padding=True), length=9, half=2)
    pad = plain["padding_mask"]
    pad[:, 1] = True
    for host in hosts:
        expected = results(by(host), plain)
        assert_defined(expected, plain)
        for garbage in (float("nan"), float("inf"), -float("inf")):
            dirty = dict(plain)
            for name in ("u", "x"):
                if plain[name] is not None:
                    dirty[name] = plain[name].detach().clone()
                    dirty[name][pad] = garbage
                    dirty[name].requires_grad_()
            got = results(by(host), dirty)
            assert_same_bits(got, expected)
            assert not got["h"][pad].any()
            assert not got["grad of u"][pad].any()


def in_pieces(u: Tensor, x: Tensor, c0: Tensor, padding_mask: Tensor, **same: Any) -> tuple[Tensor, Tensor]:
    """The definition, of so many steps at a time that it doesn't take long."""
    outputs = []
    for u_part, x_part, pad_part in zip(u.split(200), x.split(200), padding_mask.split(200), strict=True):
        h, c0 = variants.definition(u=u_part, x=x_part, c0=c0, padding_mask=pad_part, **same)
        outputs.append(h)
    return torch.cat(outputs), c0


@pytest.mark.parametrize("v", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ten_thousand_steps(v):
    case = Case("k3-input", torch.float32, "tanh", v, False, True, True, True, True, True)
    arguments = make(case, length=10000, batch=2, half=4)
    exact = results(in_pieces, changed(arguments, Tensor.double))
    for recurrent in (native, by(Host(4, 2)), *(() if v else (by(Host(4, 2, 157)), by(Host(1, 8, 64))))):
        got = results(recurrent, arguments)
        for name, value in got.items():
            summed = name in ("grad of bias", "grad of weight_c", "grad of dropout_mask")
            worst = (value - exact[name]).abs().max() / exact[name].abs().max()
            assert worst < (1e-4 if summed else 1e-5), (name, worst)


@each_case
def test_what_nobody_asks_for_changes_nothing(case):
    """Gradients of some tensors only, a loss of h or c_n only, no gradients at all."""
    arguments = make(case, length=5, half=4)
    for recurrent in (native, by(Host(*geometries(variant_of(case))[1], 2))):
        all_of_them = results(recurrent, arguments)
        given_names = [name for name in variants.TENSORS if arguments[name] is not None]
        for wanted in given_names:
            one = {**arguments, **{n: arguments[n].detach() for n in given_names if n != wanted}}
            assert_same_bits(results(recurrent, one), {n: all_of_them[n] for n in ("h", "c_n", f"grad of {wanted}")})
        with torch.no_grad():
            h, c_n = recurrent(**arguments)
        assert_same_bits({"h": h, "c_n": c_n}, {n: all_of_them[n] for n in ("h", "c_n")})
        exact = changed(arguments, Tensor.double)
        for which in (0, 1):
            tensors, doubles = ([a[n] for n in given_names] for a in (arguments, exact))
            got = torch.autograd.grad(recurrent(**arguments)[which].sum(), tensors)
            expected = torch.autograd.grad(variants.definition(**exact)[which].sum(), doubles, materialize_grads=True)
            rtol, atol = variants.TOLERANCES[case.dtype]
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_may_be_wider_than_u(dtype):
    """Autocast has a float32 layer, whose product is 16-bit."""
    case = Case("k3-input", torch.float32, "tanh", True, True, True, True, True, True, True)
    arguments = make(case, half=8)
    arguments["u"] = arguments["u"].detach().to(dtype).requires_grad_()
    arguments["x"] = arguments["x"].detach().to(dtype).requires_grad_()
    for recurrent in (native, by(Host(8, 2)), by(Host(1, 8))):
        got = results(recurrent, arguments)
        assert {t.dtype for t in got.values()} == {dtype, torch.float32}
        assert_defined(got, arguments)


# ---------------------------------------------------------------- derivatives, bits


@few_fast(COVERING)
def test_gradcheck_through_the_text(case):
    case = case._replace(dtype=torch.float64)
    arguments = make(case, length=5, batch=2, half=2)
    names = [name for name in variants.TENSORS if arguments[name] is not None]
    for recurrent in (native, by(Host(2, 2)), by(Host(1, 4, 2))):

        def call(*tensors: Tensor, recurrent: Recurrent = recurrent) -> tuple[Tensor, Tensor]:
            return recurrent(**{**arguments, **dict(zip(names, tensors, strict=True))})

        assert torch.autograd.gradcheck(call, [arguments[name] for name in names])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@few_fast(COVERING)
def test_the_number_of_threads_changes_no_bit(case, two_threads):
    arguments = make(case, length=23, batch=5, half=301)
    torch.set_num_threads(1)
    expected = results(native, arguments)
    assert_same_bits(results(native, arguments), expected)
    torch.set_num_threads(2)
    for _ in range(3):
        assert_same_bits(results(native, arguments), expected)
    narrow = make(case, length=23, batch=5, half=4)
    steps = None if case.v else 5
    expected = results(by(Host(2, 4, steps)), narrow)
    for threads, workers in ((2, 1), (2, 2), (2, 3), (3, 2), (3, 3)):
        torch.set_num_threads(threads)
        assert_same_bits(results(by(Host(2, 4, steps, workers=workers)), narrow), expected)


@each_case
def test_spare_threads_write_nothing(case):
    arguments = make(case, length=7, half=4)
    for steps in (None, 3):
        expected = results(by(Host(2, 4, steps)), arguments)
        assert_same_bits(results(by(Host(2, 4, steps, spare=1000)), arguments), expected)


# ---------------------------------------------------------------- the functions of one number in host.h

FUNCTIONS = """
#include "sru.cu"
#define MAP(name, from, to, what) \\
    extern "C" void name(const from* x, to* y, int64 n) { for (int64 i = 0; i < n; ++i) y[i] = what; }
MAP(map_exp, float, float, exponential(x[i]))
MAP(map_tanh, float, float, hyperbolic_tangent(x[i]))
MAP(map_sigmoid, float, float, sigmoid(x[i], 0.f))
MAP(widen, value_t, float, float(x[i]))
MAP(narrow, float, value_t, value_t(x[i]))
"""


@functools.cache
def functions(value: int) -> ctypes.CDLL:
    command, version = build.host_compiler()
    options = [*build.HOST_FLAGS, *Variant(value, 1, 3, 1, 0).defines(vec=1, ahead=2)]

    def make_library(path: Path) -> None:
        words = [*command, *options, f"-I{build.kernel_folder()}", "-x", "c++", "-", "-o", str(path)]
        subprocess.run(words, input=FUNCTIONS, text=True, check=True)

    parts = [*command, *options, version, build.cpu_features(), FUNCTIONS, *build.kernel_text().values()]
    return ctypes.CDLL(str(build.cached(parts, ".so", make_library)))


def mapped(name: str, x: Tensor, to: torch.dtype = torch.float32, value: int = 0) -> Tensor:
    y = torch.empty(x.shape, dtype=to)
    getattr(functions(value), name)(*(ctypes.c_void_p(t.data_ptr()) for t in (x, y)), ctypes.c_int64(x.numel()))
    return y


EXACT = {"map_exp": torch.exp, "map_tanh": torch.tanh, "map_sigmoid": torch.sigmoid}


def all_floats(step: int) -> Iterator[Tensor]:
    """Every step-th float of the whole range, NaN and infinity among them."""
    for start in range(-(2**31), 2**31, 2**28):
        yield torch.arange(start, start + 2**28, step, dtype=torch.int64).to(torch.int32).view(torch.float32)


def units(got: Tensor, exact: Tensor, smallest: int = -126) -> Tensor:
    """The error in units of the last place of a float; 2 ** smallest: below it the unit stays as it is."""
    exponent = torch.frexp(exact).exponent.sub(1).clamp(min=smallest)
    return (got.double() - exact).abs() / torch.ldexp(torch.ones_like(exact), exponent - 23)


# The sigmoid's exponential overflows where the result would fall below the normal numbers, as torch's does.
@pytest.mark.parametrize("name, bound", [("map_exp", 1.5), ("map_tanh", 4), ("map_sigmoid", 3)])
def test_functions_are_exact_to_a_few_units(name, bound):
    greatest = torch.finfo(torch.float32).max
    count = 0
    for x in all_floats(step=257):
        exact = EXACT[name](x.double())
        got = mapped(name, x)
        assert torch.equal(got.isnan(), x.isnan())
        x, got, exact = (t[~x.isnan()] for t in (x, got, exact))
        huge = exact > greatest
        assert bool((got[huge] == math.inf).all())
        small = exact.abs() < 2**-126 if name == "map_sigmoid" else torch.zeros_like(huge)
        assert bool((got[small].abs() <= 2**-126).all())
        rest = ~(huge | small)
        error = units(got[rest], exact[rest])
        assert bool((error <= bound).all()), (name, error.max(), x[rest][error.argmax()])
        count += int(rest.sum())
    assert count > 1e7


def test_functions_of_special_numbers():
    x = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, 1e-45, -1e-45, 3e38, -3e38, 88.8, -103.9, -104.1])
    for name, exact in EXACT.items():
        got, expected = mapped(name, x), exact(x)
        torch.testing.assert_close(got, expected, rtol=3e-7, atol=1e-45, equal_nan=True)


def test_gates_far_from_zero_are_0_and_1():
    """Through the recurrence, for all sizes of a product: f is 0 or 1, never anything between or beyond."""
    sizes = torch.cat([torch.linspace(90, 400, 3101), torch.logspace(2, 38, 500), torch.tensor([math.inf])])
    for recurrent in (native, by(Host(1, 8))):
        for sign, gate in ((-1, 0.0), (1, 1.0)):
            u = torch.zeros(1, 1, 2, sizes.numel())
            u[0, 0, 0], u[0, 0, 1] = 5.0, sign * sizes
            arguments = {**make(COVERING[0]._replace(v=False, bidirectional=False)), "u": u}
            for name in ("bias", "dropout_mask", "padding_mask"):
                arguments[name] = None
            arguments["c0"] = torch.full((1, sizes.numel()), 3.0)
            _, c_n = recurrent(**arguments)
            torch.testing.assert_close(c_n, torch.full_like(c_n, 3.0 if gate else 5.0), rtol=1e-6, atol=0)


def assert_special_numbers_propagate(recurrent: Recurrent, case: Case) -> None:
    """NaN and infinity in one channel of each input come out where the definition has them come out."""
    for special in (math.nan, math.inf, -math.inf):
        arguments = make(case, length=4, batch=2, half=16, requires_grad=False)
        channel = 0
        for name in variants.TENSORS:
            t = arguments[name]
            for plane in range(t.size(-2)) if t is not None and name != "x" else range(t is not None):
                t.view(-1, *t.shape[-2:])[-1 if name != "u" else 2, plane, channel] = special
                channel += 1
        got, expected = recurrent(**arguments), variants.definition(**arguments)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4, equal_nan=True)


@each_case
def test_special_numbers_propagate(case):
    for recurrent in (native, functools.partial(sru_recurrence, backend="torch"), by(Host(1, 8)), by(Host(2, 4, 3))):
        assert_special_numbers_propagate(recurrent, case)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_conversions_are_torchs(dtype):
    value = VALUES[dtype]
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(dtype)
    wide = mapped("widen", patterns, value=value)
    nan = numbers.isnan()
    assert torch.equal(wide.isnan(), nan)
    assert torch.equal(wide[~nan].view(torch.int32), numbers.float()[~nan].view(torch.int32))

    # each of them, the ties between neighbours, and what lies just next to these
    finite = numbers[~nan & ~numbers.isinf()].double().unique()
    top = finite[-1] + (finite[-1] - finite[-2])
    line = torch.cat([-top[None], finite, top[None]])
    points = torch.cat([line, (line[1:] + line[:-1]) / 2]).float()
    beside = [torch.nextafter(points, torch.tensor(s * math.inf)) for s in (1, -1)]
    for x in (torch.cat([points, *beside]), *all_floats(step=1021)):
        got = mapped("narrow", x, torch.int16, value).view(dtype)
        nan = x.isnan()
        assert torch.equal(got.isnan(), nan)
        assert torch.equal(got[~nan].view(torch.int16), x[~nan].to(dtype).view(torch.int16))


# ---------------------------------------------------------------- what NVRTC makes of it


class Use(NamedTuple):
    """Registers of a GPU's thread, and bytes of memory for what doesn't fit them."""

    registers: int
    stack: int
    stores: int
    loads: int


def compiled_use(variant: Variant, vec: int, ahead: int, target: str) -> dict[str, Use]:
    """Return the assembler's log of each kernel, read."""
    log = gpu_compiler().compile((*variant.defines(vec=vec, ahead=ahead), "--ptxas-options=-v"), target).log
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert spilled and registers, log
        found[part.split("'")[0]] = Use(int(registers[1]), *map(int, spilled.groups()))
    assert sorted(found) == sorted(variant.kernels), log
    return found


WIDEST, REST, ALL = slice(-1, None), slice(-1), slice(None)
some_geometries = pytest.mark.parametrize(
    "chosen", [WIDEST, pytest.param(REST, marks=pytest.mark.slow)], ids=["widest", "rest"]
)


def assert_nothing_spilled(case: Case, target: str, chosen: slice = ALL) -> None:
    variant = variant_of(case)
    for vec, ahead in geometries(variant)[chosen]:
        for kernel, use in compiled_use(variant, vec, ahead, target).items():
            assert use[1:] == (0, 0, 0), (kernel, vec, ahead, use)
            assert 16 < use.registers <= 255


@some_geometries
@few_fast(COVERING)
def test_registers_suffice(case, chosen):
    assert_nothing_spilled(case, "sm_90", chosen)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_75", "sm_80"])
@each_case
def test_registers_suffice_on_older_gpus(case, target):
    assert_nothing_spilled(case, target)


@some_geometries
@few_fast(COVERING)
def test_a_step_moves_no_byte_more_than_needed_by_accesses_as_wide_as_can_be(case, chosen):
    variant = variant_of(case)
    for vec, ahead in geometries(variant)[chosen]:
        for kernel in variant.kernels:
            found = traffic(ptx_of(variant, vec, ahead), kernel)
            (loads, stores), where = least(variant, kernel), (kernel, vec, ahead)
            if (
                kernel == "sru_forward"
            ):  # one of two places keeps c; of the ways through, one has both, and is never taken
                stores = [*stores, stores[-1]]
            # copies to shared memory have 4 bytes at least, among them those with the padding mask's bytes
            units, masks = ahead // 2, 2 * variant.pad
            copied, stored = sum(max(4, vec * size) for size in loads) + 4 * masks, sum(vec * size for size in stores)
            assert (found.loaded, found.stored) == (units * copied, units * stored), where
            wide = [sum(-(-vec * size // 16) for size in sizes) for sizes in (loads, stores)]
            assert (found.loads, found.stores) == (units * (wide[0] + masks), units * wide[1]), where
            assert found.copies == found.loads, f"{where}: something is waited for at once"


# ---------------------------------------------------------------- under the address and undefined-behaviour sanitizers

SANITIZED = r"""
// Launches the kernels on buffers of exactly the size that each tensor has, and looks whether all results were written.
#include "sru.cu"

#include <cstdio>
#include <cstdlib>
#include <vector>

static std::vector<void*> buffers;

template <class T>
T* inputs(int64 n) {
    T* p = (T*)std::malloc(n * sizeof(T));
    buffers.push_back(p);
    for (int64 i = 0; i < n; ++i) p[i] = T(float(i * 37 % 101 - 50) / 25);
    return p;
}

template <class T>
T* outputs(int64 n) {  // NaN
    T* p = inputs<T>(n);
    std::memset((void*)p, 0xff, n * sizeof(T));
    return p;
}

static bool complete = true;

template <class T>
void look(const char* name, const T* p, int64 n) {
    for (int64 i = 0; i < n; ++i) {
        const double x = double(state_t(p[i]));
        if (x != x) {
            std::printf("%s: element %ld of %ld was not written, or from what was not\n", name, long(i), long(n));
            complete = false;
            return;
        }
    }
}

template <class... A>
void launch(void (*kernel)(const Launch*), int64 threads, int64 group, A... arguments) {
    const int64 words[] = {threads, group, 1, 0, 0, 0, bit_cast<int64>(arguments)...};
    void* packed = std::malloc(sizeof words);
    std::memcpy(packed, words, sizeof words);
    kernel((const Launch*)packed);
    std::free(packed);
}

static void problem(int64 length, int64 batch, int64 half, int64 directions, int64 steps, bool bare) {
    const int64 width = half * directions, rows = length * batch, chunks = (length + steps - 1) / steps;
    const int64 parameters = GATES * width, columns = batch * width;
    const auto units = [](int64 steps) { return (steps + EVERY - 1) / EVERY; };
    const int64 states = ((chunks - 1) * units(steps) + units(length - (chunks - 1) * steps) + 1) * columns;
#ifdef WIDE
    const int64 group = 5;
#else
    const int64 group = VEC;
#endif
    const int64 threads = batch * directions * ((half + group - 1) / group) * chunks + 130;
    const value_t* u = inputs<value_t>(rows * PLANES * width);
    const value_t* x = SKIP ? inputs<value_t>(rows * width) : nullptr;
    const state_t* bias = bare ? nullptr : inputs<state_t>(parameters);
    const state_t* v = PEEPHOLE ? inputs<state_t>(parameters) : nullptr;
    const state_t* c0 = bare ? nullptr : inputs<state_t>(columns);
    const state_t* mask = bare ? nullptr : inputs<state_t>(columns);
    uint8* pad = bare ? nullptr : inputs<uint8>(rows);
    for (int64 i = 0; pad && i < rows; ++i) pad[i] = i % 5 == 3;
    state_t* summary = steps < length ? outputs<state_t>(chunks * 2 * columns) : nullptr;
    value_t* h = outputs<value_t>(rows * width);
    state_t *c = outputs<state_t>(states), *c_n = outputs<state_t>(columns);
#if !PEEPHOLE
    if (summary)
        launch(run_sru_forward_summary, threads, group, u, bias, (const uint8*)pad, summary, length, batch, width,
               directions, steps);
#endif
    for (state_t* saved : {(state_t*)nullptr, c})
        launch(run_sru_forward, threads, group, u, x, bias, v, c0, mask, (const uint8*)pad, (const state_t*)summary, h,
               saved, c_n, 1.5, length, batch, width, directions, steps);
    look("h", h, rows * width);
    look("c", c, states);
    look("c_n", c_n, columns);

    summary = steps < length ? outputs<state_t>(chunks * 2 * columns) : nullptr;
    const value_t* grad_h = inputs<value_t>(rows * width);
    const state_t* grad_c_n = bare ? nullptr : inputs<state_t>(columns);
    value_t* grad_u = outputs<value_t>(rows * PLANES * width);
    value_t* grad_x = SKIP ? outputs<value_t>(rows * width) : nullptr;
    state_t* grad_bias = bare ? nullptr : outputs<state_t>(chunks * batch * parameters);
    state_t* grad_v = PEEPHOLE && !bare ? outputs<state_t>(chunks * batch * parameters) : nullptr;
    state_t* grad_c0 = bare ? nullptr : outputs<state_t>(columns);
    state_t* grad_mask = bare ? nullptr : outputs<state_t>(chunks * columns);
#if !PEEPHOLE
    if (summary)
        launch(run_sru_backward_summary, threads, group, u, bias, (const state_t*)c, mask, (const uint8*)pad, grad_h,
               summary, length, batch, width, directions, steps);
#endif
    launch(run_sru_backward, threads, group, u, x, bias, v, (const state_t*)c, mask, (const uint8*)pad,
           (const state_t*)summary, grad_h, grad_c_n, grad_u, grad_x, grad_bias, grad_v, grad_c0, grad_mask, 1.5,
           length, batch, width, directions, steps);
    look("grad_u", grad_u, rows * PLANES * width);
    if (grad_x) look("grad_x", grad_x, rows * width);
    if (grad_bias) look("grad_bias", grad_bias, chunks * batch * parameters);
    if (grad_v) look("grad_v", grad_v, chunks * batch * parameters);
    if (grad_c0) look("grad_c0", grad_c0, columns);
    if (grad_mask) look("grad_mask", grad_mask, chunks * columns);
    for (void* p : buffers) std::free(p);
    buffers.clear();
}

int main() {
    int count = 0;
    for (int64 length : {1, 2, 3, 9, 17})
        for (int64 batch : {1, 3})
            for (int64 part : {1, 3})
                for (int64 directions : {1, 2})
                    for (int64 steps : {int64(1), int64(2), int64(4), length})
                        for (bool bare : {false, true}) {
                            if (PEEPHOLE && steps < length) continue;
#ifdef WIDE
                            problem(length, batch, part * 3 - 2, directions, steps, bare);
#else
                            problem(length, batch, part * VEC, directions, steps, bare);
#endif
                            ++count;
                        }
    std::printf("%d problems\n", count);
    return complete ? 0 : 1;
}
"""
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@functools.cache
def sanitizing_compiler() -> tuple[str, ...]:
    """The compiler's command with the sanitizers; the test is skipped where it doesn't have them."""
    command = (*build.host_compiler()[0], "-std=c++17", "-O1", "-g1", *SANITIZERS)
    words = [*command, "-x", "c++", "-", "-o", os.devnull]
    done = subprocess.run(words, input="int main() {}", text=True, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} has no sanitizers: {done.stderr.strip().splitlines()[-1]}")
    return command


def sanitize(options: tuple[str, ...], folder: Path) -> str:
    """Build and run :data:`SANITIZED`; what the sanitizers, or it, have to complain of."""
    program = folder / "sanitized"
    words = [*sanitizing_compiler(), *options, f"-I{build.kernel_folder()}", "-x", "c++", "-", "-o", str(program)]
    subprocess.run(words, input=SANITIZED, text=True, check=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program], env=environment, text=True, capture_output=True, check=False)
    program.unlink()
    if done.returncode == 0:
        assert "problems" in done.stdout
        return ""
    return done.stdout + done.stderr


def assert_sanitary(case: Case, folder: Path, chosen: slice = ALL) -> None:
    variant = variant_of(case)
    for options in [
        form(variant, 5, 1, wide=True),
        *(form(variant, *g, wide=False) for g in geometries(variant)[chosen]),
    ]:
        said = sanitize(options, folder)
        assert not said, f"{options}\n{said[:5000]}"


USUAL_CASES = [case for case in COVERING if case.kind == "k3-input"][:1]


@some_geometries
@pytest.mark.parametrize("case", USUAL_CASES, ids=str)
def test_no_access_is_out_of_bounds(case, chosen, tmp_path):
    assert_sanitary(case, tmp_path, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in COVERING if case not in USUAL_CASES], ids=str)
def test_no_access_is_out_of_bounds_with_any_option(case, tmp_path):
    assert_sanitary(case, tmp_path)
