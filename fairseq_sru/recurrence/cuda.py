"""The GPU backend: the CUDA source compiled by NVRTC for the GPU that is there, launched by CuPy on torch's current
stream.

Nothing is bound at import: the stream is asked for at every launch, and each device has modules of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import nvrtc
from .build import Unavailable
from .kernels import DEFAULT_VARIANT, KEPT, Argument, Kernels, Shape, Variant


class Stream(NamedTuple):
    """What CuPy wants of a stream."""

    ptr: int


class Entry(NamedTuple):
    """A kernel on a device, and how many blocks of how many threads run it."""

    function: Callable[..., None]
    grid: tuple[int]
    block: tuple[int]


class Geometry(NamedTuple):
    """vec, ahead: what the text is compiled for; see kernels/sru.cu."""

    vec: int
    ahead: int
    grid: int
    block: int


ITEM_SIZES = {0: 4, 1: 2, 2: 2, 3: 8}


def geometry(variant: Variant, shape: Shape, multiprocessors: int, aligned: int = 16) -> Geometry:
    """How to cut a launch into threads.

    Threads take as many channels as a 16-byte access holds while enough threads remain to keep every multiprocessor's
    memory requests going (128 each), with few columns one channel each and loads further ahead.

    Args:
        variant: gives the size of a value.
        shape: of the problem.
        multiprocessors: of the GPU.
        aligned: bytes to which all tensors are aligned.
    """
    item = ITEM_SIZES[variant.value]
    half = shape.width // shape.directions
    columns = shape.batch * shape.width * shape.chunks
    vec = 16 // item if aligned >= 16 else aligned // max(item, 4)  # the state's values have 4 bytes at least
    if variant.peephole:  # more registers a channel
        vec = min(vec, 4)
    while vec > 1 and (half % vec or columns < vec * multiprocessors * 128):
        vec //= 2
    vec = max(vec, 1)
    threads = columns // vec
    block = max(32, min(128, -(-threads // multiprocessors // 32) * 32))
    # as far ahead as registers allow: tests/test_kernels.py looks for spills
    tight = vec * item > 8 and (variant.peephole or item == 8)
    ahead = 2 if tight else {1: 8, 2: 8, 4: 4, 8: 2}[vec]
    return Geometry(vec, ahead, -(-threads // block), block)


def chunk_length(variant: Variant, length: int, columns: int, multiprocessors: int) -> int:
    """How many steps a thread works on: with few columns and many steps several chunks run at once, for the price of
    reading part of the input twice."""
    if variant.peephole or columns >= multiprocessors * 128:
        return length
    chunks = min(multiprocessors * 256 // columns, length // 64)
    return length if chunks < 4 else -(-length // chunks)


class Cuda(Kernels):
    name = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA GPU")
        if torch.version.hip:
            raise Unavailable("this torch is built for ROCm; the kernels are for CUDA")
        self.compiler = nvrtc.compiler()
        self.module_type = module_type()
        self.modules: dict[tuple[int, Variant, int, int], Any] = {}
        device = torch.device("cuda", torch.cuda.current_device())
        try:  # shows now whether it works, when there still is a choice
            self._load(DEFAULT_VARIANT, 1, 8, device)
        except Unavailable:
            raise
        except Exception as error:  # CuPy's, for the driver
            raise Unavailable(
                f"the driver doesn't take what NVRTC {self.compiler.version} compiles: {error}"
            ) from error

    def chunk_length(self, variant: Variant, length: int, columns: int, device: torch.device) -> int:
        return chunk_length(variant, length, columns, multiprocessors(device.index)) if columns else length

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        values: list[int | float] = []
        bits = 16
        for a in arguments:
            if isinstance(a, Tensor):
                values.append(a.data_ptr())
                bits |= 0 if a.dtype is torch.bool else a.data_ptr()
            else:
                values.append(0 if a is None else a)
        index = device.index
        function, grid, block = self.entry(kernel, variant, shape, index, bits & -bits)
        stream = Stream(raw_stream(index))
        if index == torch.cuda.current_device():  # a guard takes longer than to ask
            function(grid, block, (*values, *shape), stream=stream)
        else:
            with torch.cuda.device(device):
                function(grid, block, (*values, *shape), stream=stream)

    @functools.cached_property
    def entry(self) -> Callable[..., Entry]:
        """:meth:`_entry` with a memory: of each shape, everything but addresses and the stream is looked up once."""
        return functools.lru_cache(maxsize=KEPT)(self._entry)

    def _entry(self, kernel: str, variant: Variant, shape: Shape, index: int, aligned: int) -> Entry:
        how = geometry(variant, shape, multiprocessors(index), aligned)
        key = (index, variant, how.vec, how.ahead)
        device = torch.device("cuda", index)
        with torch.cuda.device(device):
            if key not in self.modules:
                self.modules[key] = self._load(variant, how.vec, how.ahead, device)
            return Entry(self.modules[key].get_function(kernel), (how.grid,), (how.block,))

    def _load(self, variant: Variant, vec: int, ahead: int, device: torch.device) -> Any:
        """A CuPy module with the kernels, on the current device."""
        major, minor = torch.cuda.get_device_capability(device)
        target = self.compiler.target(10 * major + minor)
        module = self.module_type()
        options = variant.defines(vec=vec, ahead=ahead)
        code = self.compiler.cubin(options, target)
        try:
            module.load(code)
        except Exception:  # CuPy's, for the driver: a damaged file in the cache
            module.load(self.compiler.cubin(options, target, fresh=True))
        return module


def raw_stream(device: int) -> int:
    """The address of torch's current stream on a device; without an object for it where torch can."""
    if _current_raw_stream is not None:
        return _current_raw_stream(device)  # type: ignore[no-any-return]
    return int(torch.cuda.current_stream(device).cuda_stream)


_current_raw_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)


@functools.cache
def multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def module_type() -> Any:
    """CuPy's class of modules.

    Raises:
        Unavailable: CuPy can't be imported.
    """
    try:
        from cupy.cuda.function import Module
    except Exception as error:  # a CuPy for another numpy or CUDA raises anything
        major = (torch.version.cuda or "13").split(".")[0]
        raise Unavailable(f"CuPy can't be imported ({error}); {nvrtc.INSTALL.format(major)}") from error
    return Module
