"""The CPU backend: the CUDA source built by the host compiler, each variant when it is first needed."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .build import host_library
from .kernels import DEFAULT_VARIANT, KEPT, Argument, Kernels, Shape, Variant
from .native_call import ENOUGH, compiled, functions, openmp, threads_here, words
from .reference import Options

MAX_LANES = 256  # channels that a thread of the CUDA source works on at most
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
        """Compute a layer of few rows in evaluation, product and recurrence in one call: Python's and torch's work
        between them takes as long as either.

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
    """Return the threads of the CUDA source, the channels of each, and the CPU threads that run them, at most
    ``most``."""
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


def load(path: Path, kernels: tuple[str, ...]) -> dict[str, Callable[[bytes], None]]:
    """Return the entries of a built library by the kernels' names."""
    return dict(zip(kernels, functions(path, *(f"run_{kernel}" for kernel in kernels)), strict=True))


@functools.cache
def address(variant: Variant) -> int:
    """Return the address of a variant's forward kernel."""
    return ctypes.cast(library(variant)["sru_forward"], ctypes.c_void_p).value or 0  # type: ignore[arg-type]


@functools.cache
def library(variant: Variant) -> dict[str, Callable[[bytes], None]]:
    """Return the kernels of a variant, built if need be."""
    options = ("-DWIDE", *variant.defines(vec=MAX_LANES, ahead=1))
    return load(host_library(options), variant.kernels)
