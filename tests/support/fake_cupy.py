"""A GPU that isn't there: what CuPy, the driver and torch.cuda do for fairseq_sru/recurrence/cuda.py, done on the CPU.

A launch runs the kernels themselves, built by the host compiler with the options of the module, with as many threads
as the grid has, on copies of the tensors that lie between guard bytes. :class:`Module` stands for CuPy's class;
:func:`false_driver` instead goes under the real CuPy, in a process of its own.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fairseq_sru.recurrence import cuda, nvrtc
from fairseq_sru.recurrence.build import host_library, kernel_text
from fairseq_sru.recurrence.kernels import Argument, Kernels, Shape, Variant

from .ptx import VALUE_SIZES

GUARD = 256  # bytes before and after each tensor
NAN = 0xFF  # this byte repeated is a NaN in every floating-point format


class Parameter(NamedTuple):
    """A kernel's argument. kind: the type that it has or points to: value_t, state_t, uint8, int64."""

    name: str
    kind: str
    pointer: bool
    written: bool


@functools.cache
def signatures() -> dict[str, list[Parameter]]:
    """The kernels' parameters as kernels/sru.cu declares them."""
    found = {}
    for name, inside in re.findall(r"KERNEL (\w+)\(([^)]*)\)", kernel_text()["sru.cu"]):
        words = [p.split() for p in inside.replace("RESTRICT", "").split(",")]
        found[name] = [Parameter(w[-1], w[-2].rstrip("*"), w[-2].endswith("*"), w[0] != "const") for w in words]
    return found


def counts(options: dict[str, int], shape: Shape) -> dict[str, int]:
    """Return how many numbers each tensor has, by the top of kernels/sru.cu."""
    length, batch, width = shape.length, shape.batch, shape.width
    gates = 1 if options["PLANES"] == 2 else 2
    row, steps = batch * width, length * batch * width
    return {
        **dict.fromkeys(("u", "grad_u"), options["PLANES"] * steps),
        **dict.fromkeys(("x", "h", "grad_x", "grad_h"), steps),
        **dict.fromkeys(("bias", "v"), gates * width),
        **dict.fromkeys(("grad_bias", "grad_v"), shape.chunks * gates * row),
        **dict.fromkeys(("c0", "mask", "c_n", "grad_c_n", "grad_c0"), row),
        "grad_mask": shape.chunks * row,
        "pad": length * batch,
        "c_all": shape.states(Kernels.every) * row,
        "summary": shape.chunks * 2 * row,
    }


class Launch(NamedTuple):
    """The arguments of a launch."""

    kernel: str
    options: dict[str, int]
    grid: int
    block: int
    stream: int
    device: int | None
    values: dict[str, int | float]

    @property
    def shape(self) -> Shape:
        return Shape(*(int(self.values[name]) for name in Shape._fields))


class Guarded:
    """A copy of a tensor's memory, as aligned as that; NaN where it is to be written."""

    def __init__(self, address: int, size: int, written: bool) -> None:
        self.original, self.size, self.written = address, size, written
        self.memory = torch.full((GUARD + 16 + size + GUARD,), NAN, dtype=torch.uint8)
        start = self.memory.data_ptr() + GUARD
        self.address = start + (address - start) % 16
        if not written:
            ctypes.memmove(self.address, address, size)

    def finish(self, name: str) -> None:
        """Look at the guards, and bring back what was written."""
        first = self.address - self.memory.data_ptr()
        untouched = torch.cat([self.memory[:first], self.memory[first + self.size :]])
        assert bool((untouched == NAN).all()), f"a thread wrote outside of {name}"
        if self.written:
            ctypes.memmove(self.original, self.address, self.size)


@functools.cache
def built(options: tuple[str, ...]) -> ctypes.CDLL:
    """The kernels in the form that a GPU runs: a thread has VEC lanes. -O1 builds faster than the backend's own."""
    return ctypes.CDLL(str(host_library((*options, "-O1"))))


def execute(code: bytes, launch: Launch) -> None:
    """Run a launch of a module, with code as :meth:`Gpu.cubin` gives it."""
    words = tuple(code.decode().split("\n"))[1:]
    shape, vec = launch.shape, launch.options["VEC"]
    assert launch.block % 32 == 0 and 0 < launch.block <= 1024 and launch.grid > 0
    threads = launch.grid * launch.block
    needed = -(-shape.width // shape.directions // vec) * shape.directions * shape.batch * shape.chunks
    assert needed <= threads < needed + launch.block, f"{threads} threads run, {needed} are needed"

    item = VALUE_SIZES[launch.options["VALUE"]]
    sizes = {"value_t": item, "state_t": max(item, 4), "uint8": 1}
    numbers = counts(launch.options, shape)
    slots: list[int | float] = [threads, 0, 1, 0, 0, 0]  # struct Launch in kernels/host.h
    guarded = {}
    for p in signatures()[launch.kernel]:
        value = launch.values[p.name]
        if p.pointer and value:
            boundary = 1 if p.kind == "uint8" else min(16, vec * sizes[p.kind])
            assert int(value) % boundary == 0, f"{p.name} is read {boundary} bytes at once, and isn't aligned to that"
            guarded[p.name] = Guarded(int(value), numbers[p.name] * sizes[p.kind], p.written)
            value = guarded[p.name].address
        slots.append(value if isinstance(value, int) else float(value))
    formats = "".join("d" if isinstance(slot, float) else "q" for slot in slots)
    getattr(built(words), f"run_{launch.kernel}")(struct.pack(formats, *slots))
    for name, one in guarded.items():
        one.finish(name)


def options_of(code: bytes) -> dict[str, int]:
    words = (word.removeprefix("-D").split("=") for word in code.decode().split("\n")[1:])
    return {name: int(value) for name, value in words}


def scalar(options: dict[str, int]) -> type:
    """Return the type that CuPy wants for a number of type state_t."""
    return float if options["VALUE"] == 3 else np.float32


class Gpu:
    """The state of the false machine, and its compiler: a module's code is its target and options."""

    version = (13, 0)

    def __init__(self, multiprocessors: Sequence[int] = (1,)) -> None:
        self.multiprocessors = list(multiprocessors)  # one number a device
        self.streams = [0x1000 * (i + 1) for i in range(len(multiprocessors))]
        self.current = 0
        self.loads: list[tuple[int, bytes]] = []
        self.launches: list[Launch] = []

    def target(self, capability: int) -> str:
        return f"sm_{capability}"

    def cubin(self, options: tuple[str, ...], target: str) -> bytes:
        return "\n".join((target, *options)).encode()

    def empty(self, target: str) -> bytes:
        return target.encode()

    @contextmanager
    def device(self, which: torch.device) -> Iterator[None]:
        assert which.type == "cuda" and which.index is not None
        before, self.current = self.current, which.index
        try:
            yield
        finally:
            self.current = before

    def run(self, code: bytes, kernel: str, grid: Any, block: Any, values: Sequence[Any], stream: int) -> None:
        """Note the launch, and do it."""
        assert len(grid) == len(block) == 1
        names = signatures()[kernel]
        options = options_of(code)
        assert len(values) == len(names), f"{kernel} takes {len(names)} arguments"
        for p, value in zip(names, values, strict=True):
            wanted = scalar(options) if p.kind == "state_t" and not p.pointer else int
            assert type(value) is wanted, f"{p.name} must be of type {wanted}: CuPy packs it by its type"
        launch = Launch(
            kernel,
            options,
            *(grid[0], block[0], stream, self.current),
            {p.name: value for p, value in zip(names, values, strict=True)},
        )
        self.launches.append(launch)
        execute(code, launch)

    def backend(self, patch: pytest.MonkeyPatch, module_type: Callable[[], Any] | None = None) -> Cuda:
        """The GPU backend on this machine, for as long as patch lasts."""
        patch.setattr(torch.cuda, "current_device", lambda: self.current)
        patch.setattr(torch.cuda, "device", self.device)
        patch.setattr(cuda, "raw_stream", lambda index: self.streams[index])
        patch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
        patch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda index: SimpleNamespace(multi_processor_count=self.multiprocessors[index]),
        )
        cuda.multiprocessors.cache_clear()
        with pytest.MonkeyPatch.context() as now:
            now.setattr(torch.cuda, "is_available", lambda: True)
            now.setattr(torch.version, "hip", None)
            now.setattr(nvrtc, "compiler", lambda: self)
            now.setattr(cuda, "module_type", lambda: module_type or functools.partial(Module, self))
            made = Cuda()
        self.loads.clear()
        return made


class Cuda(cuda.Cuda):
    """Tensors of the CPU count as those of the GPU ``index``."""

    index = 0

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        assert device.type == "cpu"
        super().launch(kernel, variant, shape, torch.device("cuda", self.index), *arguments)

    def chunk_length(self, variant: Variant, length: int, columns: int, device: torch.device) -> int:
        return super().chunk_length(variant, length, columns, torch.device("cuda", self.index))


class Module:
    """cupy.cuda.function.Module"""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def load(self, code: bytes) -> None:
        assert type(code) is bytes
        self.device = self.gpu.current
        self.threads = {threading.get_ident()}
        self.code = code
        self.gpu.loads.append((self.device, code))

    def get_function(self, name: str) -> Callable[..., None]:
        assert name in signatures()
        assert threading.get_ident() in self.threads, "CUDA_ERROR_INVALID_CONTEXT: CuPy makes none current here"
        return functools.partial(self._call, name)

    def _call(self, name: str, grid: Any, block: Any, args: Any, shared_mem: int = 0, stream: Any = None) -> None:
        """cupy.cuda.function.Function.__call__"""
        assert self.gpu.current == self.device, "a module is of one device"
        self.threads.add(threading.get_ident())
        self.gpu.run(self.code, name, grid, block, args, stream.ptr)


def real_module(library: Any) -> Any:
    """The real CuPy's Module, whose driver is this library. CuPy must not have been imported before."""
    from cupy_backends.cuda.api import runtime

    address = ctypes.c_void_p
    # CuPy's CUDA runtime, which is linked into it, would look for a GPU.
    context = ctypes.PYFUNCTYPE(ctypes.py_object)(lambda: None)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [address, address, address]
    signature = ctypes.create_string_buffer(b"PyObject *(void)")
    capsule = new(ctypes.cast(context, address), ctypes.cast(signature, address), None)
    assert "_ensure_context" in runtime.__pyx_capi__
    runtime.__pyx_capi__["_ensure_context"] = capsule
    from cupy.cuda.function import Module as RealModule

    real = ctypes.CDLL

    def load(name: Any, *args: Any, **options: Any) -> Any:
        return library if "libcuda.so" in str(name) else real(name, *args, **options)

    class Loading(RealModule):
        keep = (context, signature)

        def load(self, code: bytes) -> None:
            with pytest.MonkeyPatch.context() as patch:  # CuPy opens the driver when it first calls it
                patch.setattr(ctypes, "CDLL", load)
                super().load(code)

    return Loading


def false_driver(gpu: Gpu) -> Any:
    """:func:`real_module`, whose driver notes and runs what it is told to."""
    int_, word, address = ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
    modules: list[bytes] = []
    functions: list[tuple[bytes, str]] = []

    @ctypes.CFUNCTYPE(int_, ctypes.POINTER(address), address)
    def cu_module_load_data(handle: Any, image: int) -> int:
        modules.append(ctypes.string_at(image))
        gpu.loads.append((gpu.current, modules[-1]))
        handle[0] = len(modules)
        return 0

    @ctypes.CFUNCTYPE(int_, ctypes.POINTER(address), address, ctypes.c_char_p)
    def cu_module_get_function(handle: Any, module: int, name: bytes) -> int:
        functions.append((modules[module - 1], name.decode()))
        handle[0] = len(functions)
        return 0

    @ctypes.CFUNCTYPE(int_, address)
    def cu_module_unload(module: int) -> int:
        return 0

    @ctypes.CFUNCTYPE(int_, address, *[word] * 7, address, ctypes.POINTER(address), address)
    def cu_launch_kernel(function: int, *rest: Any) -> int:
        grid, _, _, block, _, _, _, stream, slots, _ = rest
        code, name = functions[function - 1]
        real = scalar(options_of(code))
        values = []
        for i, p in enumerate(signatures()[name]):
            number = p.kind == "state_t" and not p.pointer
            format_ = "q" if not number else "d" if real is float else "f"
            (value,) = struct.unpack(format_, ctypes.string_at(slots[i], struct.calcsize(format_)))
            values.append(real(value) if number else value)
        gpu.run(code, name, (grid,), (block,), values, stream)
        return 0

    library = SimpleNamespace(
        cuModuleLoadData=cu_module_load_data,
        cuModuleGetFunction=cu_module_get_function,
        cuModuleUnload=cu_module_unload,
        cuLaunchKernel=cu_launch_kernel,
    )
    return real_module(library)
