"""The CPU backend: the CUDA source built by the host compiler, each variant when it is first needed; and how other
files of the kernels' folder are built and called."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build import Unavailable, host_library
from .kernels import DEFAULT_VARIANT, KEPT, VALUES, Argument, Kernels, Shape, Variant, nowhere
from .reference import Options

MAX_LANES = 256  # channels that a thread of the CUDA source works on at most
ENOUGH = 16384  # elements below which a second core costs more than it brings
FEW = 8  # rows that kernels/layer.cpp takes; with more torch multiplies faster


class Native(Kernels):
    """The kernels on this CPU.

    Raises:
        Unavailable: no compiler, or what it builds can't be loaded.
    """

    name = "native"
    every = 1
    always_pad = True  # what a mask costs a CPU is less than building another form

    def __init__(self) -> None:
        library(DEFAULT_VARIANT)  # shows now whether it works, when there still is a choice

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        run(library(variant), kernel, *cut(shape, threads_here()), shape, arguments)

    def layer(
        self, x: Tensor, weight: Tensor, bias: Tensor, c0: Tensor | None, v: Tensor | None, skip: bool, options: Options
    ) -> tuple[Tensor, Tensor] | None:
        """A layer of few rows in evaluation, product and recurrence in one call: what Python and torch do between them
        takes as long as either.

        Args:
            x: ``(length, batch, k)`` float32, with 1 to FEW steps of all sequences.
            weight: ``(planes * D, k)``.
            bias, v: ``(1, D)`` for two planes, else ``(2, D)``.
            c0: ``(batch, D)``.
            skip: whether x is the skip term.

        Returns:
            h and c_n as of :meth:`forward`; None where it can't be built.
        """
        if (entries := compiled("layer.cpp", torch.float32, ("run_layer",))) is None:
            return None
        length, batch, k = x.shape
        n, width = weight.size(0), bias.size(1)
        size = torch.Size((length, batch, n // width, width))
        variant, shape, _ = self.plan(size, x.dtype, x.device, options, skip, v is not None, False)
        u, h, c_n = x.new_empty((length * batch, n)), x.new_empty((length, batch, width)), x.new_empty((batch, width))
        most = threads_here()
        product = (address(variant), *words(x, weight, u), length * batch, n, k, most)
        # without dropout, padding, summaries and saved states
        arguments = words(u, x if skip else None, bias, v, c0, None, None, None, h, None, c_n)
        launch = (*cut(shape, most), *openmp(), *arguments, options.skip_scale, *shape)
        entries[0](struct.pack("25qd5q", *product, *launch))
        return h, c_n


@functools.lru_cache(maxsize=KEPT)
def cut(shape: Shape, most: int) -> tuple[int, int, int]:
    """Threads of the CUDA source, the channels of each, and the CPU threads that run them, at most ``most``."""
    half = shape.width // shape.directions
    rows = shape.batch * shape.directions * shape.chunks
    workers = min(most, 1 + shape.length * shape.batch * shape.width // ENOUGH)
    group = MAX_LANES
    if workers > 1:  # some parts for each worker, of whole cache lines
        group = max(16, min(MAX_LANES, -(-half * rows // (4 * workers)) // 16 * 16))
    return rows * -(-half // group), group, workers


def run(
    built: dict[str, Callable[[bytes], None]],
    kernel: str,
    threads: int,
    group: int,
    workers: int,
    shape: Shape,
    arguments: tuple[Argument, ...],
) -> None:
    """Pack the arguments as struct Launch in kernels/host.h has them, and call."""
    values = [threads, group, workers, *openmp(), *words(*arguments)]
    numbers = f"{len(values) - 1}qd" if isinstance(values[-1], float) else f"{len(values)}q"
    built[kernel](struct.pack(numbers + "5q", *values, *shape))


def words(*arguments: Argument) -> list[int | float]:
    """Of tensors their addresses."""
    return [0 if a is None else a.data_ptr() or nowhere(a) if isinstance(a, Tensor) else a for a in arguments]


@functools.cache
def compiled(file: str, dtype: torch.dtype, names: tuple[str, ...]) -> list[Any] | None:
    """Entries of another file of the kernels' folder, for values of a dtype.

    Returns:
        None where they can't be built: it warns, or, where nothing can be built, the recurrence does.
    """
    try:
        return functions(host_library((f"-DVALUE={VALUES[dtype]}", "-fopenmp-simd"), file), *names)
    except Unavailable as error:
        with contextlib.suppress(Unavailable):
            library(DEFAULT_VARIANT)
            warnings.warn(f"{file} runs in plain PyTorch, which is slower: {error}", stacklevel=2)
        return None


def call(entry: Any, threads: int, elements: int, *arguments: Argument) -> None:
    """Run an entry of :func:`compiled` for so many of its threads, on as many cores as the elements are worth."""
    workers = min(threads_here(), 1 + elements // ENOUGH)
    numbers = words(*arguments)
    kinds = "".join("d" if isinstance(a, float) else "q" for a in numbers)
    entry(struct.pack("6q" + kinds, threads, 1, workers, *openmp(), *numbers))


def functions(path: Path, *names: str) -> list[Any]:
    """The functions of a built library, as ctypes has them.

    Raises:
        Unavailable: it can't be loaded, or hides one.
    """
    try:
        opened = ctypes.CDLL(str(path))
        return [getattr(opened, name) for name in names]
    except OSError as error:
        folder = "FAIRSEQ_SRU_CACHE can name another folder, which allows programs"
        remedy = folder if "failed to map" in str(error) else "CXX can name another compiler"
        raise Unavailable(f"{error}; {remedy}") from error
    except AttributeError as error:
        raise Unavailable(f"{error}; CXX can name a compiler that doesn't hide it") from error


def load(path: Path, kernels: tuple[str, ...]) -> dict[str, Callable[[bytes], None]]:
    """The entries of a built library by the kernels' names."""
    return dict(zip(kernels, functions(path, *(f"run_{kernel}" for kernel in kernels)), strict=True))


@functools.cache
def address(variant: Variant) -> int:
    """Of a variant's forward kernel."""
    return ctypes.cast(library(variant)["sru_forward"], ctypes.c_void_p).value or 0  # type: ignore[arg-type]


@functools.cache
def library(variant: Variant) -> dict[str, Callable[[bytes], None]]:
    """The kernels of a variant, built if need be."""
    options = ("-DWIDE", *variant.defines(vec=MAX_LANES, ahead=1))
    return load(host_library(options), variant.kernels)


_process = os.getpid()


def threads_here() -> int:
    """How many threads may work: torch's, but one in a forked process, where OpenMP waits forever for its parent's."""
    return torch.get_num_threads() if os.getpid() == _process else 1


@functools.cache
def openmp() -> tuple[int, int, int]:
    """The addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads in the library that torch uses.

    They are looked up among what libtorch depends on, so that no second OpenMP library comes in with threads of its
    own. Zeros if there is none: one thread then.
    """
    try:
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        first, second, third = (ctypes.cast(getattr(torch_library, n), ctypes.c_void_p).value or 0 for n in names)
        return first, second, third
    except (OSError, AttributeError):
        return 0, 0, 0
