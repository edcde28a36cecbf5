"""The GPU backend. Without a GPU: its Python side, on the false machine of fake_cupy.py that runs the kernels
themselves, and the compiler, which needs no GPU. With one (mark ``gpu``): the kernels on the device."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cuda_cases import BARE, CASE, by_cuda, check
from support.fake_cupy import Cuda, Gpu, Launch, signatures
from support.gpu_forms import gpu_compiler
from support.processes import python
from support.variants import COVERING, OPTIONS, TENSORS, Case, make, moved, results
from torch import Tensor

from fairseq_sru import SRU, backends, sru_recurrence
from fairseq_sru.recurrence import build, cuda, dispatch, nvrtc, recurrence
from fairseq_sru.recurrence.build import Unavailable, kernel_text
from fairseq_sru.recurrence.cuda import chunk_length, geometry
from fairseq_sru.recurrence.kernels import DEFAULT_VARIANT, Shape, Variant
from fairseq_sru.recurrence.reference import Options, Tensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WIDEST = dict(zip(DTYPES, (4, 8, 8, 2), strict=True))  # lanes of a 16-byte access


def shifted(t: Tensor, offset: int) -> Tensor:
    """A contiguous copy that starts offset numbers after an aligned address."""
    memory = t.new_empty(offset + t.numel())
    assert memory.data_ptr() % 16 == 0
    memory[offset:].copy_(t.reshape(-1))
    return memory[offset:].view(t.shape)


# ---------------------------------------------------------------- the false machine


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Gpu], Cuda]]:
    """``on(gpu)`` makes backend="cuda" that machine's, for tensors of the CPU."""

    def put(gpu: Gpu) -> Cuda:
        made = gpu.backend(monkeypatch)
        monkeypatch.setattr(recurrence, "choose", lambda name, device: made if name == "cuda" else None)
        return made

    yield put
    cuda.multiprocessors.cache_clear()


@pytest.fixture
def gpu(on: Callable[[Gpu], Cuda]) -> Gpu:
    """The machine has one device with one multiprocessor: few columns are many for it."""
    on(made := Gpu())
    return made


ONE = ["sru_forward", "sru_backward"]
SCAN = ["sru_forward_summary", "sru_forward", "sru_backward_summary", "sru_backward"]


def kernels(gpu: Gpu) -> list[str]:
    return [launch.kernel for launch in gpu.launches]


@pytest.mark.parametrize("half", [5, 8], ids=["odd", "even"])
@pytest.mark.parametrize("case", COVERING, ids=str)
def test_every_option_equals_the_definition(case: Case, half: int, gpu: Gpu) -> None:
    check(make(case, batch=3 if half == 5 else 40, half=half))
    assert kernels(gpu) == ONE
    assert all((launch.options["VEC"] > 1) == (half == 8) for launch in gpu.launches)


@pytest.mark.parametrize("v", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("vec", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_width_of_access_equals_the_definition(dtype: torch.dtype, vec: int, v: bool, gpu: Gpu) -> None:
    """Many columns, which divide by vec and not by more."""
    check(make(CASE._replace(dtype=dtype, v=v, bidirectional=True), length=11, batch=5, half=27 * vec))
    expected = min(vec, WIDEST[dtype], 4 if v else 8)
    assert [launch.options["VEC"] for launch in gpu.launches] == [expected] * 2
    assert {launch.block for launch in gpu.launches} == {64}


def test_parameters_may_be_wider_than_the_values(gpu: Gpu) -> None:
    """Autocast has u in half, and parameters and states in float."""
    arguments = make(CASE._replace(dtype=torch.float16, v=True), batch=40)
    for name in ("bias", "weight_c", "c0", "dropout_mask"):
        arguments[name] = arguments[name].detach().float().requires_grad_()
    check(arguments)
    got = results(by_cuda, arguments)
    assert got["h"].dtype == got["grad of u"].dtype == torch.float16
    assert got["grad of bias"].dtype == got["c_n"].dtype == torch.float32


@pytest.mark.parametrize("length", [256, 263, 640])
@pytest.mark.parametrize("kind, activation", [("k3-input", "tanh"), ("k2", "relu"), ("k4", "identity")])
def test_few_columns_and_many_steps_are_cut_into_chunks(kind: str, activation: str, length: int, gpu: Gpu) -> None:
    case = CASE._replace(kind=kind, activation=activation, bidirectional=True)
    check(make(case, length, 2, 3), 4)
    assert kernels(gpu) == SCAN
    for launch in gpu.launches:
        assert launch.shape.chunks == 11, "128 threads for the one multiprocessor, of 12 columns"


@pytest.mark.parametrize("length", [1, 2, 5, 256, 263])
def test_every_second_state_is_saved(length: int, gpu: Gpu, on: Callable[[Gpu], Cuda]) -> None:
    """c0, and the second of each two, counted from the end of each chunk."""
    backend, arguments = on(gpu), make(CASE._replace(bidirectional=False), length, 2, 3, requires_grad=False)
    tensors, pad = Tensors(*(arguments[name] for name in TENSORS)), arguments["padding_mask"]
    assert tensors.c0 is not None
    saved = backend.forward(tensors, pad, Options("tanh", False, 1.5), True)[2]
    assert saved is not None
    assert saved.shape == backend.saved_shape(tensors.u) == (length // 2 + 1 + length % 2, 2, 3)
    chunk = gpu.launches[-1].shape.chunk_length
    after = {t for begin in range(0, length, chunk) for t in range(min(begin + chunk, length), begin, -2)}
    torch.testing.assert_close(saved[0], tensors.c0)
    for row, steps in enumerate(sorted(after), start=1):
        some = {**arguments, "u": tensors.u[:steps], "x": tensors.x[:steps], "padding_mask": pad[:steps]}
        torch.testing.assert_close(saved[row], sru_recurrence(**some, backend="reference")[1])


def test_cells_whose_gates_see_the_state_are_never_cut(gpu: Gpu) -> None:
    check(make(CASE._replace(v=True), 263, 2, 3), 4)
    assert kernels(gpu) == ONE
    assert gpu.launches[0].shape.chunks == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_of_several_lanes(dtype: torch.dtype, gpu: Gpu) -> None:
    """Each chunk has few columns, and all together fill the machine: with 16 bits two lanes a thread, or 4 bytes."""
    check(make(CASE._replace(dtype=dtype), 600, 1, 32), 4)
    assert kernels(gpu) == SCAN
    assert {launch.options["VEC"] for launch in gpu.launches} == {2 if dtype.itemsize == 2 else 1}
    assert {launch.shape.chunks for launch in gpu.launches} == {4}


OFFSETS = [
    {"u": 1},
    {"x": 2},
    {"bias": 1},
    {"bias": 2},
    {"weight_c": 1},
    {"weight_c": 2},
    {"c0": 3},
    {"dropout_mask": 1},
    {"u": 4, "x": 4},
    {"u": 2, "x": 2, "bias": 1},
]


@pytest.mark.parametrize("offset", OFFSETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_tensors_that_start_anywhere(offset: dict[str, int], dtype: torch.dtype, gpu: Gpu) -> None:
    """The false machine looks at every address, as a GPU does."""
    arguments = make(CASE._replace(dtype=dtype, v="weight_c" in offset), length=2, batch=8, half=128)
    for name, by in offset.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        t = arguments[name].detach().to(dtype if name in ("u", "x") else wide)
        arguments[name] = shifted(t, by).requires_grad_()
    check(arguments)


def test_where_the_padding_mask_starts_does_not_matter(gpu: Gpu) -> None:
    """It is read byte by byte."""
    arguments = make(CASE, length=2, batch=8, half=128)
    check({**arguments, "padding_mask": shifted(arguments["padding_mask"], 1)})
    assert {launch.options["VEC"] for launch in gpu.launches} == {4}


@settings(max_examples=40, deadline=None)
@given(
    length=st.one_of(st.integers(1, 9), st.integers(256, 330)),
    batch=st.integers(1, 6),
    half=st.integers(1, 40),
    multiprocessors=st.integers(1, 40),
    offset=st.integers(0, 4),
    options=st.fixed_dictionaries(
        {name: st.booleans() for name in ("bidirectional", "dropout", "padding", "c0", "bias", "scaled")}
    ),
)
def test_any_shape_equals_the_definition(
    length: int, batch: int, half: int, multiprocessors: int, offset: int, options: dict[str, bool]
) -> None:
    arguments = make(CASE._replace(**options), length, batch, half)
    arguments["u"] = shifted(arguments["u"].detach(), offset).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        made = Gpu([multiprocessors]).backend(patch)
        patch.setattr(recurrence, "choose", lambda name, device: made if name == "cuda" else None)
        check(arguments, 4)
    cuda.multiprocessors.cache_clear()


@pytest.mark.parametrize("length, batch", [(0, 3), (4, 0)])
def test_nothing_to_do_launches_nothing(length: int, batch: int, gpu: Gpu) -> None:
    arguments = make(CASE, length, batch)
    got = results(by_cuda, arguments)
    torch.testing.assert_close(got["c_n"], arguments["c0"].detach())
    assert got["h"].shape == (length, batch, 8)
    assert not got["grad of bias"].any()
    assert not gpu.launches


def addresses(launch: Launch) -> dict[str, int | float]:
    return {p.name: launch.values[p.name] for p in signatures()[launch.kernel] if p.pointer}


@pytest.mark.parametrize("length", [5, 300], ids=["whole", "chunks"])
def test_every_argument_is_where_the_kernel_has_it(length: int, gpu: Gpu, on: Callable[[Gpu], Cuda]) -> None:
    backend = on(gpu)
    made = make(CASE._replace(bidirectional=True), length, half=5, requires_grad=False)
    u, x, bias, c0, v, mask = (made[name] for name in TENSORS)
    tensors, pad = Tensors(u, x, bias, c0, v, mask), made["padding_mask"]
    options = Options("tanh", True, 1.5)
    h, c_n, c = backend.forward(tensors, pad, options, True)
    assert c is not None
    grad_h, grad_c_n = torch.randn_like(h), torch.randn_like(c_n)
    grads = backend.backward(tensors, pad, options, c, grad_h, grad_c_n, tuple(t is not None for t in tensors))

    known = {"u": u, "x": x, "bias": bias, "c0": c0, "mask": mask, "pad": pad, "h": h, "c_n": c_n, "c_all": c}
    known |= {"grad_h": grad_h, "grad_c_n": grad_c_n, "grad_u": grads[0], "grad_x": grads[1], "grad_c0": grads[3]}
    assert kernels(gpu) == (ONE if length == 5 else SCAN)
    for launch in gpu.launches:
        got = addresses(launch)
        for name in got.keys() & known.keys():
            assert got[name] == known[name].data_ptr(), f"{name} of {launch.kernel}"
        assert got.get("v", 0) == got.get("grad_v", 0) == 0
        assert (got.get("summary", 0) != 0) == (length == 300)
        assert launch.shape == Shape(length, 3, 10, 2, 5 if length == 5 else 60)
        assert launch.values.get("scale", 1.5) == 1.5
    got = addresses(gpu.launches[-1])
    assert got["grad_bias"] and got["grad_mask"]
    assert got["grad_bias"] != got["grad_mask"]


def test_absent_tensors_are_null(gpu: Gpu) -> None:
    by_cuda(**make(BARE._replace(kind="k4"), requires_grad=False))
    (forward,) = gpu.launches
    null = {"x", "bias", "v", "c0", "mask", "pad", "summary", "c_all"}  # c_all: nobody will differentiate
    assert {name for name, value in addresses(forward).items() if not value} == null


def test_gradients_that_nobody_wants_are_null(gpu: Gpu) -> None:
    arguments = make(CASE._replace(v=True), requires_grad=False)
    h, _ = by_cuda(**{**arguments, "u": arguments["u"].requires_grad_()})
    h.sum().backward()
    assert kernels(gpu) == ONE
    null = {"summary", "grad_c_n", "grad_bias", "grad_v", "grad_c0", "grad_mask"}
    assert {name for name, value in addresses(gpu.launches[-1]).items() if not value} == null


def test_each_launch_goes_to_the_stream_that_is_current_then(on: Callable[[Gpu], Cuda]) -> None:
    gpu = Gpu([1, 1])
    backend = on(gpu)
    for device, stream in ((0, 11), (0, 0), (1, 12), (1, 13)):
        backend.index = device
        gpu.streams = [-1, -1]
        gpu.streams[device] = stream
        h, _ = by_cuda(**make(CASE))
        gpu.streams[device] = stream + 100
        h.sum().backward()
    expected = [(0, 11), (0, 111), (0, 0), (0, 100), (1, 12), (1, 112), (1, 13), (1, 113)]
    assert [(launch.device, launch.stream) for launch in gpu.launches] == expected
    assert gpu.current == 0, "the caller's device is as it was"


def test_each_device_loads_a_variant_once_for_itself(on: Callable[[Gpu], Cuda]) -> None:
    gpu = Gpu([1, 100])
    backend = on(gpu)
    for index in (0, 1, 0, 1, 0):
        backend.index = index
        check(make(CASE, batch=4, half=128))
    # Four lanes a thread fill one multiprocessor; a hundred want one lane a thread.
    assert {(launch.device, launch.options["VEC"]) for launch in gpu.launches} == {(0, 4), (1, 1)}
    assert len(gpu.launches) == 10
    assert [(device, code.split(b"\n")[0]) for device, code in gpu.loads] == [(0, b"sm_90"), (1, b"sm_91")]


def test_a_backward_pass_in_a_thread_without_a_context(on: Callable[[Gpu], Cuda]) -> None:
    """Autograd has such a thread, where nothing has run yet."""
    gpu = Gpu()
    on(gpu)
    arguments = make(CASE)
    h, _ = by_cuda(**arguments)
    failures: list[BaseException] = []

    def backward() -> None:
        try:
            h.sum().backward()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert not failures, failures
    assert [launch.kernel for launch in gpu.launches] == ["sru_forward", "sru_backward"]


@pytest.mark.parametrize("batch, width, length", [(2**21, 1024, 1), (2**31, 1, 1), (1, 8, 2**31)])
def test_what_32_bits_do_not_count_is_refused(batch: int, width: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"^u must have less than 2147483584 steps, "):
        geometry(DEFAULT_VARIANT, Shape(length, batch, width, 1, length), 132)


def test_what_differs_in_options_has_a_module_of_its_own(gpu: Gpu) -> None:
    changes: list[dict[str, Any]] = [
        {"activation": "relu"},
        {"kind": "k3-noskip"},
        {"kind": "k4"},
        {"kind": "k2"},
        {"v": True},
        {"padding": not CASE.padding},
        {"dtype": torch.float64},
    ]
    different = [make(CASE._replace(**change)) for change in ({}, *changes)]
    different.append(make(CASE, batch=64))  # more lanes a thread
    same = [make(CASE, length=9), make(CASE, half=5), make(CASE._replace(bidirectional=True))]
    same.append(make(BARE._replace(padding=CASE.padding)))
    for arguments in (*different, *same):
        check(arguments)
    assert len({code for _, code in gpu.loads}) == len(gpu.loads) == len(different)


REAL_CUPY = """
import pytest, torch
from support.fake_cupy import Gpu, false_driver
from fairseq_sru.recurrence import recurrence
from support.cuda_cases import CASE, check
from support.variants import make

gpu, patch = Gpu(), pytest.MonkeyPatch()
made = gpu.backend(patch, false_driver(gpu))
patch.setattr(recurrence, "choose", lambda name, device: made if name == "cuda" else None)
check(make(CASE._replace(bidirectional=True, scaled=True)))
check(make(CASE._replace(dtype=torch.float64, v=True, c0=False)))
check(make(CASE, 300), 4)
print(made.module_type.__mro__[1].__module__)
print(len(gpu.loads), *(launch.kernel for launch in gpu.launches), *{launch.stream for launch in gpu.launches})
"""


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="no CuPy: bash tests/run.sh --all installs it")
def test_the_real_cupy_hands_the_driver_what_the_kernels_read() -> None:
    """Nothing below CuPy is real: grid, stream and the packed arguments are read where the driver would."""
    done = python("-c", REAL_CUPY)
    assert "Exception ignored" not in done.stderr, done.stderr[-3000:]  # in a callback of the false driver
    module, said = done.stdout.splitlines()
    assert module == "cupy.cuda.function"
    assert said.split() == ["2", *ONE, *ONE, *SCAN, str(Gpu().streams[0])]


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="no CuPy: bash tests/run.sh --all installs it")
def test_launches_are_a_part_of_the_calls_that_are_timed() -> None:
    """The keys are those of launches.json; here of few calls."""
    few = "import sys; sys.path.insert(0, 'recipes'); from support import launches; "
    few += "launches.TURNS, launches.CALLS = 1, 2; launches.main()"
    found = json.loads(python("-c", few).stdout)["microseconds"]
    committed = json.loads((ROOT / "recipes/results/kernels/launches.json").read_text())["microseconds"]
    assert found.keys() == committed.keys()
    assert all(0 < took["launch"] < took["call"] for took in found.values())


# ---------------------------------------------------------------- how a launch is cut

VARIANTS = st.builds(Variant, st.integers(0, 3), st.integers(0, 2), st.integers(2, 4), st.just(0), st.integers(0, 1))


@given(
    variant=VARIANTS,
    length=st.integers(1, 20_000),
    batch=st.integers(1, 3000),
    half=st.integers(1, 3000),
    directions=st.integers(1, 2),
    multiprocessors=st.integers(1, 200),
    aligned=st.sampled_from([1, 2, 4, 8, 16]),
)
def test_geometry_holds_what_the_kernels_need(
    variant: Variant, length: int, batch: int, half: int, directions: int, multiprocessors: int, aligned: int
) -> None:
    width = half * directions
    chunk = chunk_length(variant, length, batch * width, multiprocessors)
    shape = Shape(length, batch, width, directions, chunk)
    how = geometry(variant, shape, multiprocessors, aligned)
    item = {0: 4, 1: 2, 2: 2, 3: 8}[variant.value]
    assert how.vec in (1, 2, 4, 8)
    assert half % how.vec == 0
    assert how.vec * item <= 16
    if how.vec > 1:  # one number is always where its type wants it
        assert min(16, how.vec * item) <= aligned
        assert min(16, how.vec * max(item, 4)) <= aligned, "the state's accesses are wider than the values'"
        assert batch * width * shape.chunks >= how.vec * multiprocessors * 128 or how.vec * item <= 4
    assert how.ahead >= 2
    assert how.block in (32, 64)
    assert f"#define BLOCK {cuda.BLOCK} " in kernel_text()["device.h"]
    threads = half // how.vec * directions * batch * shape.chunks
    assert threads <= how.grid * how.block < threads + how.block


@given(
    variant=VARIANTS,
    length=st.integers(1, 20_000),
    columns=st.integers(1, 100_000),
    multiprocessors=st.integers(1, 200),
)
def test_no_chunk_is_empty_or_short(variant: Variant, length: int, columns: int, multiprocessors: int) -> None:
    steps = chunk_length(variant, length, columns, multiprocessors)
    shape = Shape(length, 1, columns, 1, steps)
    assert 1 <= steps <= length
    assert (shape.chunks - 1) * steps < length <= shape.chunks * steps
    if steps < length:
        assert not variant.peephole
        assert steps % Cuda.every == 0, "as many states are saved as with one chunk"
        assert (shape.chunks - 1) * columns < multiprocessors * cuda.ENOUGH, "more at once than the GPU takes"
    if not variant.peephole:
        times = [cuda.estimate(length, chunks, columns, multiprocessors) for chunks in range(1, min(length, 400) + 1)]
        assert times[shape.chunks - 1] <= 1.05 * min(times)


def test_what_is_cut_into_chunks() -> None:
    """So that neither property above holds because nothing is ever cut, or wide."""
    assert chunk_length(DEFAULT_VARIANT, 10_000, 512, 132) == 304
    assert chunk_length(DEFAULT_VARIANT, 128, 512, 132) == 8
    assert chunk_length(DEFAULT_VARIANT, 64, 512, 132) == 64
    assert chunk_length(DEFAULT_VARIANT, 128, 8 * 512, 132) == 26
    assert chunk_length(DEFAULT_VARIANT, 10_000, 64 * 512, 132) == 10_000
    assert chunk_length(DEFAULT_VARIANT._replace(peephole=1), 10_000, 512, 132) == 10_000
    many, few = Shape(10, 512, 1024, 1, 10), Shape(1, 1, 512, 1, 1)
    assert [geometry(DEFAULT_VARIANT._replace(value=v), many, 108).vec for v in range(4)] == [4, 8, 8, 2]
    assert [geometry(DEFAULT_VARIANT._replace(value=v), few, 108).vec for v in range(4)] == [1, 2, 2, 1]
    assert geometry(DEFAULT_VARIANT, few, 108) == (1, 8, 16, 32)
    assert geometry(DEFAULT_VARIANT, many, 108) == (4, 2, 2048, 64)


# ---------------------------------------------------------------- NVRTC


def library() -> str:
    return gpu_compiler().path


@pytest.fixture(scope="module")
def compiler() -> nvrtc.Compiler:
    return nvrtc.Compiler(library())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache for compiled kernels."""
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "cache"))
    build.cache_folder.cache_clear()
    yield tmp_path / "cache"
    build.cache_folder.cache_clear()


@pytest.mark.parametrize(
    "variant, vec, ahead",
    [
        (DEFAULT_VARIANT, 4, 2),
        pytest.param(Variant(1, 2, 2, 0, 0), 8, 2, marks=pytest.mark.slow),
        pytest.param(Variant(2, 0, 4, 0, 1), 4, 2, marks=pytest.mark.slow),
        pytest.param(Variant(2, 1, 3, 1, 0), 1, 8, marks=pytest.mark.slow),
        (Variant(3, 1, 3, 1, 1), 2, 2),
    ],
    ids=str,
)
def test_variants_compile_to_a_cubin(compiler: nvrtc.Compiler, variant: Variant, vec: int, ahead: int) -> None:
    code, _ = compiler.compile(variant.defines(vec=vec, ahead=ahead), "sm_90")
    assert code.startswith(b"\x7fELF")
    for kernel in signatures():
        there = b"\0.text." + kernel.encode() + b"\0" in code
        assert there == (not variant.peephole or not kernel.endswith("_summary")), kernel


def test_a_gpu_newer_than_nvrtc_gets_ptx(compiler: nvrtc.Compiler) -> None:
    newest = compiler.architectures()[-1]
    assert compiler.target(newest) == f"sm_{newest}"
    target = compiler.target(newest + 50)
    assert target == f"compute_{newest}"
    text = compiler.compile(DEFAULT_VARIANT.defines(vec=4, ahead=2), target).code.decode()
    assert f".target sm_{newest}" in text
    for kernel, parameters in signatures().items():
        found = re.search(rf"\.visible \.entry {kernel}\(([^)]*)\)", text)
        assert found is not None, kernel
        kinds = re.findall(r"\.param \.(\w+)", found[1])
        # what CuPy packs: the skip term's scale is a float, all else is a word of 8 bytes
        assert kinds == ["u64" if p.pointer or p.kind == "int64" else "f32" for p in parameters]


def test_between_two_architectures_the_older_one_counts(
    compiler: nvrtc.Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "architectures", lambda: [75, 80, 90])
    assert [compiler.target(c) for c in (75, 86, 89, 90, 121)] == [
        "sm_75",
        "compute_80",
        "compute_80",
        "sm_90",
        "compute_90",
    ]
    with pytest.raises(Unavailable, match=r"compute capability 7\.5 and up; this GPU has 7\.0\. An NVRTC 12 "):
        compiler.target(70)


def test_a_compile_error_holds_the_log(compiler: nvrtc.Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**nvrtc.kernel_text(), "lanes.h": "int x = undeclared_name;"}
    monkeypatch.setattr(nvrtc, "kernel_text", lambda: text)
    with pytest.raises(Unavailable, match=r"(?s)can't compile -DVALUE=0 .*lanes\.h\(1\): error: .*undeclared_name"):
        compiler.compile(DEFAULT_VARIANT.defines(vec=1, ahead=1), "sm_90")


def counted(compiler: nvrtc.Compiler, patch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Let compile only note its arguments."""
    calls: list[tuple[Any, ...]] = []

    def compile_nothing(*arguments: Any) -> nvrtc.Compiled:
        calls.append(arguments)
        return nvrtc.Compiled(f"made {len(calls)}".encode(), "")

    patch.setattr(compiler, "compile", compile_nothing)
    return calls


def test_the_second_time_the_cache_has_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nvrtc.Compiler(library()), nvrtc.Compiler(library())
    calls = counted(first, monkeypatch)
    others = counted(second, monkeypatch)
    assert first.cubin(("-DA",), "sm_90") == first.cubin(("-DA",), "sm_90") == b"made 1"
    assert second.cubin(("-DA",), "sm_90") == b"made 1", "as another process would find it"
    assert (calls, others) == ([(("-DA",), "sm_90")], [])
    assert len(list(cache.glob("*.cubin"))) == 1


def test_an_entry_is_of_one_target_version_text_and_set_of_options(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = nvrtc.Compiler(library())
    calls = counted(compiler, monkeypatch)
    made = [compiler.cubin(*a) for a in ((("-DA",), "sm_90"), (("-DB",), "sm_90"), (("-DA",), "sm_80"))]
    made.append(compiler.cubin(("-DA",), "compute_90"))
    monkeypatch.setattr(compiler, "version", (12, 9))
    made.append(compiler.cubin(("-DA",), "sm_90"))
    monkeypatch.setattr(nvrtc, "kernel_text", lambda: {"sru.cu": "another text", "lanes.h": ""})
    made.append(compiler.cubin(("-DA",), "sm_90"))
    entries = [path for path in cache.iterdir() if path.suffix in (".cubin", ".ptx")]
    assert len(calls) == len(set(made)) == len(entries) == 6


# ---------------------------------------------------------------- where it can't run


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch for CUDA 13 that sees a GPU."""
    monkeypatch.delenv(nvrtc.NVRTC_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    return monkeypatch


find_nvrtc: Callable[[], nvrtc.Compiler] = nvrtc.compiler.__wrapped__  # without its memory


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gpu": False}, "torch sees no CUDA GPU"),
        ({"cuda": None}, "this torch is built without CUDA"),
        ({"cuda": "11.8"}, r"torch is for CUDA 11\.8; the kernels need a torch for CUDA 12 or later"),
        ({"cuda": "12.8"}, r"torch is for CUDA 12\.8, and .* is not: pip install 'nvidia-cuda-nvrtc-cu12==12"),
        ({"cuda": "14.1"}, r"pip install 'nvidia-cuda-nvrtc==14\.\*', or name one in FAIRSEQ_SRU_NVRTC"),
        ({"named": "/none/libnvrtc.so"}, r"/none/libnvrtc\.so can't be loaded as NVRTC .*FAIRSEQ_SRU_NVRTC can name"),
        ({"named": "libm.so.6"}, r"libm\.so\.6 can't be loaded as NVRTC \(.*nvrtc"),
        ({"missing": "cuda"}, r"no NVRTC found \(.*\); pip install 'fairseq_sru\[cuda13\]'"),
        ({"missing": "pynvrtc.compiler"}, r"pynvrtc can't be imported \(.*\); pip install pynvrtc==9\.2"),
        ({"missing": "cupy"}, r"CuPy can't be imported \(.*\); pip install 'fairseq_sru\[cuda13\]'"),
    ],
    ids=str,
)
def test_what_keeps_the_kernels_from_running(
    setting: dict[str, Any], message: str, present: pytest.MonkeyPatch
) -> None:
    present.setattr(nvrtc, "compiler", find_nvrtc)
    present.setattr(nvrtc, "_nvidia_packages", lambda: [])  # whatever wheels there are
    if "gpu" in setting:
        present.setattr(torch.cuda, "is_available", lambda: False)
    if "cuda" in setting:
        present.setattr(torch.version, "cuda", setting["cuda"])
    if "named" in setting:
        present.setenv(nvrtc.NVRTC_VARIABLE, setting["named"])
    if "missing" in setting:
        present.setitem(sys.modules, setting["missing"], None)
    if setting.get("missing") == "cupy":
        present.setattr(nvrtc, "compiler", Gpu)
        present.setitem(sys.modules, "cupy.cuda.function", None)
    with pytest.raises(Unavailable, match=message):
        cuda.Cuda()


def test_the_nvrtc_of_torch_is_found(present: pytest.MonkeyPatch) -> None:
    assert find_nvrtc().version[0] == 13
    present.setenv(nvrtc.NVRTC_VARIABLE, library())
    present.setattr(torch.version, "cuda", "99.0")
    assert find_nvrtc().path == library(), "whatever torch is for"


def test_the_right_nvrtc_next_to_a_wrong_one(present: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first is not for torch's CUDA, and the wheel that torch brings is."""
    wheel = tmp_path / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
    wheel.parent.mkdir(parents=True)
    wheel.write_text("")
    present.setattr(nvrtc, "_nvidia_packages", lambda: [tmp_path])
    present.setattr(torch.version, "cuda", "12.8")
    versions = {str(wheel): (12, 8)}
    present.setattr(nvrtc, "Compiler", lambda path: SimpleNamespace(path=path, version=versions.get(path, (13, 0))))
    assert find_nvrtc().path == str(wheel)


def test_a_driver_that_refuses_is_quoted(gpu: Gpu) -> None:
    class Refusing:
        def load(self, code: bytes) -> None:
            raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Unavailable, match=r"NVRTC \(13, 0\) .*CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    ):
        gpu.backend(patch, Refusing)


# ---------------------------------------------------------------- on a GPU


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every bit."""
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert torch.equal(value, expected[name]), name


def devices(count: int) -> None:
    """Skip where there are fewer."""
    if torch.cuda.device_count() < count:
        pytest.skip(f"{count} GPUs are needed, {torch.cuda.device_count()} there")


def trained(rnn: torch.nn.Module, run: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """The outputs of run(x) and the gradients of rnn and x for a loss that all outputs enter."""
    h = run(x)
    weight = torch.linspace(-1, 1, h.numel(), device=h.device).view(h.shape)
    grads = torch.autograd.grad((h.float() * weight).sum(), (x, *rnn.parameters()))
    return [h.detach(), *grads]


class First(torch.nn.Module):
    """The outputs of an SRU without the states."""

    def __init__(self, rnn: SRU) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.rnn(x)[0]
        return h


SANITIZED = """
from support.cuda_cases import CASE, check
from support.variants import COVERING, make, moved
for case in COVERING:
    check(moved(make(case, length=8, batch=4, half=5)), 4)  # whole words: the last one of others has bytes of no tensor
    check(moved(make(case, batch=200, half=504, length=3, requires_grad=case.activation != "relu")), 4)
check(moved(make(CASE._replace(bidirectional=True), 300, half=5)), 8)
print("all checked")
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
class TestOnTheGpu:
    @pytest.fixture(autouse=True)
    def ready(self) -> Iterator[None]:
        assert backends()["cuda"] == "ready"
        yield
        try:
            torch.cuda.synchronize()
        except RuntimeError:  # no later call of this process works: xdist begins another, and names this test
            if "PYTEST_XDIST_WORKER" in os.environ:
                os._exit(3)
            raise

    @pytest.mark.parametrize("v", OPTIONS["v"], ids=["v2", "v1"])
    @pytest.mark.parametrize("activation", OPTIONS["activation"])
    @pytest.mark.parametrize("dtype", OPTIONS["dtype"], ids=str)
    @pytest.mark.parametrize("kind", OPTIONS["kind"])
    def test_every_variant(self, kind: str, dtype: torch.dtype, activation: str, v: bool) -> None:
        case = CASE._replace(kind=kind, dtype=dtype, activation=activation, v=v, bidirectional=True)
        check(moved(make(case, half=5)), 4)
        many = 8 * 128 * cuda.multiprocessors(0)  # enough columns for the widest accesses
        # of so many states one is close enough to relu's kink for rounding to decide about its gradient
        grads = activation != "relu"
        check(moved(make(case, length=3, batch=-(-many // 512), half=256, requires_grad=grads)), 4)

    @pytest.mark.parametrize("case", COVERING, ids=str)
    def test_every_two_options(self, case: Case) -> None:
        check(moved(make(case)), 4)
        check(moved(make(case, half=5)), 4)  # one channel a thread

    @pytest.mark.parametrize("offset", OFFSETS, ids=str)
    def test_tensors_that_start_anywhere(self, offset: dict[str, int]) -> None:
        many = 8 * 128 * cuda.multiprocessors(0)
        case = CASE._replace(dtype=torch.float16, v="weight_c" in offset)
        arguments = moved(make(case, length=3, batch=-(-many // 256), half=256))
        for name, by in offset.items():
            t = arguments[name].detach()
            arguments[name] = shifted(t if name in ("u", "x") else t.float(), by).requires_grad_()
        check(arguments, 4)

    @pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.01), (torch.bfloat16, 0.05)], ids=str)
    def test_autocast(self, dtype: torch.dtype, tolerance: float) -> None:
        torch.manual_seed(0)
        rnn = SRU(64, 64, num_layers=2, bidirectional=True).cuda()
        x = torch.randn(20, 8, 64, device="cuda", requires_grad=True)

        def narrow(x: Tensor) -> Tensor:
            with torch.autocast("cuda", dtype):
                h, c = rnn(x)
            assert (h.dtype, c.dtype) == (dtype, torch.float32)
            return h  # type: ignore[no-any-return]

        expected = trained(rnn, lambda x: rnn(x)[0], x)
        for got, exact in zip(trained(rnn, narrow, x), expected, strict=True):
            assert float((got - exact).norm()) < tolerance * float(exact.norm())

    @pytest.mark.parametrize("length, batch, half", [(50, 64, 256), (2000, 2, 64)], ids=["whole", "chunks"])
    def test_the_same_bits_each_time(self, length: int, batch: int, half: int) -> None:
        arguments = moved(make(CASE._replace(bidirectional=True), length, batch, half))
        first = results(by_cuda, arguments)
        for _ in range(5):
            assert_same(results(by_cuda, arguments), first)

    def test_a_long_sequence_in_chunks_and_step_by_step(
        self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        length, batch, half = 10_000, 2, 64
        assert chunk_length(DEFAULT_VARIANT, length, batch * 2 * half, cuda.multiprocessors(0)) < length
        arguments = moved(make(CASE._replace(bidirectional=True), length, batch, half))
        chunks = results(by_cuda, arguments)
        monkeypatch.setattr(cuda, "chunk_length", lambda variant, length, columns, multiprocessors: length)
        backend = dispatch.choose("cuda", "cuda")
        assert isinstance(backend, cuda.Cuda)
        request.addfinalizer(backend.plan.cache_clear)
        backend.plan.cache_clear()
        whole = results(by_cuda, arguments)
        assert any(not torch.equal(value, whole[name]) for name, value in chunks.items())
        for name, value in chunks.items():
            size = max(1.0, float(whole[name].abs().max()))
            torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-5 * size, msg=name)

    @pytest.mark.parametrize("v", [False, True], ids=["v1", "v2"])
    @pytest.mark.parametrize("length", [3, 256])
    def test_gradcheck(self, length: int, v: bool) -> None:
        case = CASE._replace(dtype=torch.float64, v=v, bidirectional=True)
        arguments = moved(make(case, length, 2, 2))
        names = [name for name in TENSORS if arguments[name] is not None]

        def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return by_cuda(**{**arguments, **dict(zip(names, tensors, strict=True))})

        assert torch.autograd.gradcheck(run, [arguments[name] for name in names], fast_mode=length > 3)

    def test_a_stream_of_ones_own(self) -> None:
        arguments = moved(make(CASE, batch=40))
        expected = results(by_cuda, arguments)
        late = torch.zeros_like(arguments["u"])
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)  # 0.1 s: who doesn't wait for this stream finds zeros
            late.copy_(arguments["u"].detach())
            got = results(by_cuda, {**arguments, "u": late.requires_grad_()})
        side.synchronize()
        assert_same(got, expected)

    @pytest.mark.parametrize("length", [7, 2000], ids=["whole", "chunks"])
    def test_a_cuda_graph_of_forward_and_backward(self, length: int) -> None:
        arguments = moved(make(CASE, length))
        wanted = [arguments[name] for name in TENSORS if arguments[name] is not None]
        weights = [torch.randn_like(t).detach() for t in by_cuda(**arguments)]

        def step() -> dict[str, Tensor]:
            h, c_n = by_cuda(**arguments)
            grads = torch.autograd.grad((h, c_n), wanted, weights)
            return dict(zip(("h", "c_n", *map(str, range(len(wanted)))), (h, c_n, *grads), strict=True))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as torch.cuda.graph wants it: what is set up once is set up now
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            arguments["u"].copy_(torch.randn_like(arguments["u"]))
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, step())

    def test_data_parallel(self) -> None:
        devices(2)
        torch.manual_seed(0)
        one = First(SRU(32, 32, bidirectional=True, batch_first=True)).cuda()
        both = torch.nn.DataParallel(one, device_ids=[0, 1])
        x = torch.randn(6, 20, 32, device="cuda", requires_grad=True)
        for got, expected in zip(trained(one, both, x), trained(one, one, x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_data_parallel_over_the_second_dimension(self) -> None:
        devices(2)
        torch.manual_seed(0)
        rnn = SRU(32, 32, bidirectional=True).cuda()
        both = torch.nn.DataParallel(rnn, device_ids=[0, 1], dim=1)
        x, c0 = torch.randn(20, 6, 32, device="cuda"), torch.randn(2, 6, 64, device="cuda")
        mask = torch.arange(20, device="cuda")[:, None] >= torch.arange(15, 21, device="cuda")
        for got, expected in zip(both(x, c0, padding_mask=mask), rnn(x, c0, padding_mask=mask), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_threads_without_a_context(self) -> None:
        case = moved(make(CASE))
        failures: list[BaseException] = []

        def run() -> None:
            try:
                check(case, 4)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_a_device_that_is_not_the_current_one(self) -> None:
        devices(2)
        with torch.cuda.device(0):
            check(moved(make(CASE), "cuda:1"), 4)
            check(moved(make(CASE, 2000), "cuda:1"), 8)
            assert torch.cuda.current_device() == 0

    def test_torch_compile(self) -> None:
        pytest.importorskip("triton")
        if not any(map(shutil.which, ("cc", "gcc", "clang"))):
            pytest.skip("Triton needs a C compiler")
        torch.manual_seed(0)
        one = First(SRU(32, 32, bidirectional=True)).cuda()
        x = torch.randn(20, 6, 32, device="cuda", requires_grad=True)
        compiled = torch.compile(one, fullgraph=True)
        for got, expected in zip(trained(one, compiled, x), trained(one, one, x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_compute_sanitizer_finds_nothing(self) -> None:
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            pytest.skip("compute-sanitizer, which comes with the CUDA toolkit, is not on the PATH")
        beside = Path(tool).resolve().parent  # pip's wheel has none of these, and starts no program
        if not any((f / "TreeLauncherSubreaper").is_file() for f in (beside, beside.parent / "compute-sanitizer")):
            pytest.skip(f"{tool} lacks TreeLauncherSubreaper, without which it starts nothing")
        prefix = (tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9")
        prefix += ("--kernel-regex", "kns=sru_")  # the definition has thousands of others
        done = python("-c", SANITIZED, prefix=prefix, PYTORCH_NO_CUDA_MEMORY_CACHING="1")  # else all share one block
        assert "all checked" in done.stdout
