"""Which backend runs, what is said where one can't, and what a cache entry depends on."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import forget, forgetting, python

import fairseq_sru
from fairseq_sru import sru_recurrence
from fairseq_sru.recurrence import BACKENDS, build, native, native_call
from fairseq_sru.recurrence.dispatch import choose, set_up
from fairseq_sru.recurrence.native import Native
from fairseq_sru.recurrence.reference import Torch

# Runs one small recurrence and prints what it took.
SCRIPT = """
import warnings
import torch
from fairseq_sru import backends, sru_recurrence
from fairseq_sru.recurrence.dispatch import choose
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        h, c = sru_recurrence(torch.ones(4, 2, 3, 8), torch.ones(4, 2, 8))
    for w in said:
        print("warning:", w.message)
print("sum", float(h.sum()))
print("backend", choose("auto", "cpu").name)
print("native:", backends()["native"])
"""


_forget = pytest.fixture(autouse=True)(forgetting)


def test_the_backends_are_told() -> None:
    told = fairseq_sru.backends()
    assert tuple(told) == tuple(BACKENDS)
    assert told["native"] == told["torch"] == told["reference"] == "ready"
    if not torch.cuda.is_available():
        assert told["cuda"] == "torch sees no CUDA GPU"


def test_auto_takes_the_best_and_the_variable_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIRSEQ_SRU_BACKEND", raising=False)
    assert isinstance(choose("auto", "cpu"), Native)
    assert isinstance(choose("auto", "meta"), Torch)
    monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", "torch")
    forget()
    assert isinstance(choose("auto", "cpu"), Torch)
    assert isinstance(choose("native", "cpu"), Native)  # what the call names goes first
    monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", "reference")
    forget()
    assert choose("auto", "cpu") is None
    monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", "fast")
    forget()
    with pytest.raises(ValueError, match=r"FAIRSEQ_SRU_BACKEND must be one of auto, cuda, .*; got 'fast'"):
        sru_recurrence(torch.zeros(1, 1, 3, 1))


@pytest.mark.parametrize(("backend", "variable"), [("cuda", None), ("auto", "cuda")])
def test_a_backend_of_another_device_is_an_error(
    backend: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", variable or "auto")
    named = r" \(named by FAIRSEQ_SRU_BACKEND\)" if variable else ""
    with pytest.raises(ValueError, match=f"backend 'cuda'{named} needs tensors on the device 'cuda'; u is on 'cpu'"):
        sru_recurrence(torch.zeros(1, 1, 3, 1), backend=backend)


class Wrapper(torch.Tensor):
    """A tensor whose values are in another one, as a DTensor's."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if "contiguous" in str(function) else NotImplemented


def test_a_tensor_without_values_of_its_own_is_refused_and_not_read() -> None:
    c0 = torch.Tensor._make_wrapper_subclass(Wrapper, (1, 1))  # type: ignore[attr-defined]
    with torch.no_grad(), pytest.raises(TypeError, match="compiled kernels can't read a Wrapper: it holds no values"):
        sru_recurrence(torch.zeros(1, 1, 3, 1), c0=c0, backend="native")
    h, _ = sru_recurrence(torch.zeros(0, 1, 3, 1), c0=torch.zeros(1, 1), backend="native")
    assert h.shape == (0, 1, 1)


def test_without_a_compiler_pytorch_runs_and_says_so_once(tmp_path: Path) -> None:
    out = python("-c", SCRIPT, PATH=str(tmp_path), CXX="").stdout
    assert out.count("warning:") == 1
    assert "warning: SRU runs in plain PyTorch on cpu, which is slower: no C++ compiler (Debian, Ubuntu: apt" in out
    assert "backend torch" in out
    assert "native: no C++ compiler" in out
    assert out.splitlines()[1] == python("-c", SCRIPT).stdout.splitlines()[0], "the same result"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "cc1plus: out of memory" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match=r"(?s)can't build .*sru.cu:\ncc1plus: out of memory"):
        sru_recurrence(torch.zeros(1, 1, 3, 1), backend="native")
    assert not list((tmp_path / "cache").glob("*.so")), "nothing half made stays"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        h, _ = sru_recurrence(torch.zeros(1, 1, 3, 1))
        sru_recurrence(torch.zeros(1, 1, 3, 1))
    assert h.shape == (1, 1, 1)
    assert ["out of memory" in str(w.message) for w in said] == [True]
    assert said[0].filename == __file__, "the warning points at the caller"


def test_on_windows_pytorch_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    monkeypatch.delattr(os, "geteuid")
    with pytest.warns(UserWarning, match="runs in plain PyTorch on cpu.*not supported on Windows; WSL 2"):
        assert choose("auto", "cpu") is set_up("torch")
    assert "Windows" in fairseq_sru.backends()["native"]


@pytest.mark.parametrize("error", [OSError("x.so: failed to map segment"), AttributeError("undefined symbol")])
def test_a_library_that_can_not_be_loaded(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system allows no programs, or the compiler's linker does as it likes."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(native.ctypes, "CDLL", fail)
    assert fairseq_sru.backends()["native"].startswith(f"{error}; CXX can name another compiler")
    with pytest.warns(UserWarning, match="runs in plain PyTorch on cpu"):
        assert choose("auto", "cpu") is set_up("torch")


def test_an_entry_is_for_one_compiler_processor_text_and_set_of_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path))
    made = []

    def compile_nothing(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        Path(words[-1]).write_text("")
        made.append([*words, Path(words[-3]).read_text()])
        return subprocess.CompletedProcess(words, 0, "", "")

    build.host_compiler()
    monkeypatch.setattr(build.subprocess, "run", compile_nothing)
    first = build.host_library(("-DA",))
    assert build.host_library(("-DA",)) == first
    assert len(made) == 1, "the second time it is there"
    others = [build.host_library(("-DB",))]
    for name, changed in [
        ("host_compiler", (("g++",), "another version")),
        ("cpu_features", "another processor"),
        ("kernel_text", {"sru.cu": "another text"}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(build, name, lambda value=changed: value)
            others.append(build.host_library(("-DA",)))
    assert len({first, *others}) == 5
    assert made[-1][-1] == "another text", "what is hashed is compiled, though the files may have changed since"
    assert "-march=native" in made[0], "why the processor counts"
    assert "flags" in build.cpu_features() or not Path("/proc/cpuinfo").exists() or "Features" in build.cpu_features()


def test_threads_follow_torch_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    u, x = torch.randn(50, 8, 3, 200, requires_grad=True), torch.randn(50, 8, 200)
    bias = torch.randn(2, 200, requires_grad=True)
    before = torch.get_num_threads()
    seen, results = [], []

    def spied(entry: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def spy(packed: bytes) -> None:
            seen.append(int.from_bytes(packed[16:24], "little"))
            entry(packed)

        return spy

    real = native.library
    monkeypatch.setattr(native, "library", lambda of: {name: spied(entry) for name, entry in real(of).items()})
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            h, c = sru_recurrence(u, x, bias, backend="native")
            results.append([h, c, *torch.autograd.grad(h.square().sum() + c.sum(), (u, bias))])
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 2, 2, 3, 3], "forward and backward"
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_alone_can_not_be_built_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can, the recurrence tells."""
    native_call.compiled.cache_clear()

    def unavailable(*_: object) -> Path:
        raise build.Unavailable("cc1plus: killed")

    monkeypatch.setattr(native_call, "host_library", unavailable)
    try:
        with pytest.warns(UserWarning, match=r"^loss.cpp runs in plain PyTorch, which is slower: cc1plus: killed$"):
            assert native_call.compiled("loss.cpp", torch.float32, ("run_loss",)) is None
        native_call.compiled.cache_clear()
        monkeypatch.setattr(native_call, "host_compiler", unavailable)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert native_call.compiled("loss.cpp", torch.float32, ("run_loss",)) is None
    finally:
        native_call.compiled.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to look the loaded libraries up in")
def test_one_openmp_library() -> None:
    script = SCRIPT + "torch.set_num_threads(2); sru_recurrence(torch.ones(99, 9, 3, 99), torch.ones(99, 9, 99))\n"
    script += "from fairseq_sru.recurrence.native_call import openmp\nprint('parallel', all(openmp()))\n"
    script += "import re\nmaps = open('/proc/self/maps').read()\n"
    script += "print('loaded', len(set(re.findall(r'/\\S*lib(?:gomp|iomp|omp)\\S*', maps))))\n"
    out = python("-c", script).stdout
    assert "parallel True" in out
    assert "loaded 1\n" in out


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to count threads in")
def test_what_wants_few_threads_ends_none_of_torchs() -> None:
    """GNU's OpenMP library ends threads that a smaller team leaves out, and torch's next operation would start them."""
    script = (
        SCRIPT
        + """
import os
torch.set_num_threads(4)
u, large = torch.randn(20, 32, 3, 32), torch.ones(1 << 22)
sru_recurrence(u, backend="native")  # loads what it needs
def threads():
    large.add_(1)
    return sorted(os.listdir("/proc/self/task"))
before = threads()
sru_recurrence(u, backend="native")
print("kept", threads() == before, len(before) >= 4)
"""
    )
    assert native.cut(native.Shape(20, 32, 32, 1, 20), 4)[2] == 2
    assert "kept True True" in python("-c", script).stdout


def test_subnormal_numbers_stay_as_torch_has_them() -> None:
    tiny = 1e-40
    u = torch.zeros(1, 1, 3, 20)
    u[:, :, 0] = tiny
    u[:, :, 1] = -200.0  # f = 0: the candidate becomes the state
    for flush, expected in ((False, tiny), (True, 0.0)):
        if not torch.set_flush_denormal(flush):
            pytest.skip("this processor can't")
        try:
            h, c = sru_recurrence(u, activation="identity", backend="native")
            assert float(torch.tensor(tiny) * 1.0) == pytest.approx(expected, abs=1e-44)
            torch.testing.assert_close(c, torch.full_like(c, expected), rtol=0, atol=1e-44)
        finally:
            torch.set_flush_denormal(False)
