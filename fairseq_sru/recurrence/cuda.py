"""The GPU backend: the CUDA source compiled by NVRTC for the GPU that is there, launched by CuPy on torch's current
stream.

Nothing is bound at import: the stream is asked for at every launch, and each device has modules of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import nvrtc
from .build import Unavailable
from .kernels import KEPT, VALUES, Argument, Kernels, Shape, Variant, nowhere


class Stream(NamedTuple):
    """A stream as CuPy takes it."""

    ptr: int


class Geometry(NamedTuple):
    """vec, ahead: what the source is compiled for; see kernels/sru.cu."""

    vec: int
    ahead: int
    grid: int
    block: int


ITEM_SIZES = {code: dtype.itemsize for dtype, code in VALUES.items()}
ENOUGH = 128  # threads that keep a multiprocessor's requests to memory going
BLOCK = 64  # threads at most, as kernels/device.h has it
LIMIT = 2**31 - BLOCK  # of what the kernels count by 32 bits

# Of the estimate in chunk_length, in microseconds; from the machine code and an H100's data sheet, not measured.
STEP = 0.1  # of ENOUGH threads a multiprocessor or less: what is on its way from memory, and what waits for the state
PASS = 0.08  # a chunk's summary on the way through those before
LAUNCH = 5.0  # one kernel more


def geometry(variant: Variant, shape: Shape, multiprocessors: int, aligned: int = 16) -> Geometry:
    """Cut a launch into threads.

    Threads take as many channels as a 16-byte access holds while ENOUGH threads remain for every multiprocessor, with
    few columns one channel each, or what fills the 4 bytes that are copied at least.

    Args:
        variant: gives the size of a value.
        shape: of the problem.
        multiprocessors: of the GPU.
        aligned: bytes to which all tensors are aligned.

    Raises:
        ValueError: there are more steps or channels than the kernels count.
    """
    item = ITEM_SIZES[variant.value]
    half = shape.width // shape.directions
    columns = shape.batch * shape.width * shape.chunks
    if max(columns, shape.length) >= LIMIT:
        raise ValueError(f"u must have less than {LIMIT} steps, and channels of all sequences, on a GPU; got {shape}")
    vec = 16 // item if aligned >= 16 else aligned // max(item, 4)  # the state's values have 4 bytes at least
    if variant.peephole:  # more registers a channel
        vec = min(vec, 4)
    while vec > 1 and (half % vec or (columns < vec * multiprocessors * ENOUGH and vec * item > 4)):
        vec //= 2
    vec = max(vec, 1)
    threads = columns // vec
    block = max(32, min(BLOCK, -(-threads // multiprocessors // 32) * 32))
    return Geometry(vec, steps_ahead(variant, vec), -(-threads // block), block)


def steps_ahead(variant: Variant, vec: int) -> int:
    """Return the steps that a thread asks for at once: 32 bytes of a tensor, so that ENOUGH threads with four tensors
    have 16 to 32 KiB on their way, which is what keeps a multiprocessor's share of an H100's memory busy."""
    return min(8, 32 // (vec * ITEM_SIZES[variant.value]))


def estimate(length: int, chunks: int, columns: int, multiprocessors: int) -> float:
    """Return the microseconds that a pass over so many chunks takes on the GPU."""
    crowd = max(1.0, chunks * columns / (multiprocessors * ENOUGH))
    once = STEP * crowd * -(-length // chunks)
    return once if chunks == 1 else LAUNCH + 2 * once + PASS * chunks


def chunk_length(variant: Variant, length: int, columns: int, multiprocessors: int) -> int:
    """Return the steps that a thread works on: with few columns and many steps several chunks run at once, for the
    price of reading part of the input twice, where the estimate says that it pays."""
    if variant.peephole or length < 2:
        return length
    # LAUNCH + 2 STEP length / n + PASS n is least where its slope in n is 0; more than fill the GPU bring nothing
    most = -(-multiprocessors * ENOUGH // columns)
    chunks = min(most, length, max(1, round(math.sqrt(2 * STEP * length / PASS))))
    steps = -(-length // (Kernels.every * chunks)) * Kernels.every
    chunked, whole = (estimate(length, n, columns, multiprocessors) for n in (-(-length // steps), 1))
    return steps if chunked < whole else length


class Cuda(Kernels):
    """The kernels on NVIDIA GPUs.

    Raises:
        Unavailable: there is no GPU, CuPy, pynvrtc or NVRTC, or the driver is too old for it.
    """

    name = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA GPU")
        self.compiler = nvrtc.compiler()
        self.module_type = module_type()
        self.functions: dict[tuple[int, Variant, int, int], dict[str, Any]] = {}
        try:  # shows now whether it works, when there still is a choice
            self.module_type().load(self.compiler.empty(self._target(torch.cuda.current_device())))
        except Unavailable:
            raise
        except Exception as error:  # CuPy's, for the driver
            raise Unavailable(
                f"the driver doesn't take what NVRTC {self.compiler.version} compiles: {error}; a newer driver may"
            ) from error

    def chunk_length(self, variant: Variant, length: int, columns: int, device: torch.device) -> int:
        return chunk_length(variant, length, columns, multiprocessors(device.index)) if columns else length

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        values: list[Any] = []
        bits = 16
        for a in arguments:
            if a is None:
                values.append(0)
            elif isinstance(a, Tensor):
                address = a.data_ptr() or nowhere(a)
                values.append(address)
                if a.dtype is not torch.bool:
                    bits |= address
            elif isinstance(a, float):  # CuPy packs a float of Python's as double
                values.append(a if variant.value == 3 else np.float32(a))
            else:
                values.append(a)
        index = device.index
        function, grid, block = self.entry(kernel, variant, shape, index, bits & -bits)
        stream = Stream(raw_stream(index))
        if index == torch.cuda.current_device():  # a guard takes longer than to ask
            function(grid, block, (*values, *shape), stream=stream)
        else:
            with torch.cuda.device(device):
                function(grid, block, (*values, *shape), stream=stream)

    @functools.cached_property
    def entry(self) -> Callable[..., tuple[Callable[..., None], tuple[int], tuple[int]]]:
        """:meth:`_entry` with a memory: of each shape, everything but addresses and the stream is looked up once."""
        return functools.lru_cache(maxsize=KEPT)(self._entry)

    def _entry(
        self, kernel: str, variant: Variant, shape: Shape, index: int, aligned: int
    ) -> tuple[Callable[..., None], tuple[int], tuple[int]]:
        """Return a kernel on a device, its number of blocks, and that of each one's threads."""
        how = geometry(variant, shape, multiprocessors(index), aligned)
        key = (index, variant, how.vec, how.ahead)
        device = torch.device("cuda", index)
        with torch.cuda.device(device):
            if key not in self.functions:
                self.functions[key] = self._load(variant, how.vec, how.ahead, index)
            return self.functions[key][kernel], (how.grid,), (how.block,)

    def _target(self, device: int) -> str:
        major, minor = torch.cuda.get_device_capability(device)
        return self.compiler.target(10 * major + minor)

    def _load(self, variant: Variant, vec: int, ahead: int, device: int) -> dict[str, Any]:
        """Load the kernels on the current device. All at once: CuPy's load makes its context this thread's, where there
        is none, as in that of autograd; its get_function would fail there."""
        target = self._target(device)
        module = self.module_type()
        module.load(self.compiler.cubin(variant.defines(vec=vec, ahead=ahead), target))
        return {kernel: module.get_function(kernel) for kernel in variant.kernels}


# The address of torch's current stream on a device, without an object for it. A torch without CUDA hasn't got it.
raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


@functools.cache
def multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def module_type() -> Any:
    """Return CuPy's class of modules.

    Raises:
        Unavailable: CuPy can't be imported.
    """
    try:
        from cupy.cuda.function import Module
    except Exception as error:  # a CuPy for another numpy or CUDA raises anything
        major = (torch.version.cuda or "13").split(".")[0]
        raise Unavailable(f"CuPy can't be imported ({error}); {nvrtc.INSTALL.format(major)}") from error
    return Module
