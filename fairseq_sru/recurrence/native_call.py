"""Calls of C++ from Python: the files of the kernels' folder built by the host compiler, their entries, and threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .build import Unavailable, host_compiler, host_library
from .kernels import VALUES, Argument, nowhere

ENOUGH = 16384  # elements below which a second core costs more than it brings


def words(*arguments: Argument) -> list[int | float]:
    """Return the arguments with the addresses of tensors."""
    return [0 if a is None else a.data_ptr() or nowhere(a) if isinstance(a, Tensor) else a for a in arguments]


@functools.cache
def compiled(file: str, dtype: torch.dtype, names: tuple[str, ...]) -> list[Any] | None:
    """Return the entries of another file of the kernels' folder, for values of a dtype.

    Returns:
        None where they can't be built: it warns, or, where nothing can be built, the recurrence does.
    """
    try:
        return functions(host_library((f"-DVALUE={VALUES[dtype]}", "-fopenmp-simd"), file), *names)
    except Unavailable as error:
        with contextlib.suppress(Unavailable):
            host_compiler()
            warnings.warn(f"{file} runs in plain PyTorch, which is slower: {error}", stacklevel=2)
        return None


def call(entry: Any, threads: int, elements: int, *arguments: Argument) -> None:
    """Run an entry of :func:`compiled` for so many of its threads, on as many cores as the elements are worth."""
    workers = min(threads_here(), 1 + elements // ENOUGH)
    numbers = words(*arguments)
    kinds = "".join("d" if isinstance(a, float) else "q" for a in numbers)
    entry(struct.pack("6q" + kinds, threads, 1, workers, *openmp(), *numbers))


def functions(path: Path, *names: str) -> list[Any]:
    """Return the functions of a built library.

    Raises:
        Unavailable: it can't be loaded, or hides one.
    """
    try:
        opened = ctypes.CDLL(str(path))
        return [getattr(opened, name) for name in names]
    except (OSError, AttributeError) as error:
        remedy = "CXX can name another compiler, FAIRSEQ_SRU_CACHE a folder that allows programs"
        raise Unavailable(f"{error}; {remedy}") from error


_process = os.getpid()


def threads_here() -> int:
    """Return the threads that may work: torch's, but one in a forked process, where OpenMP waits forever for its
    parent's."""
    return torch.get_num_threads() if os.getpid() == _process else 1


@functools.cache
def openmp() -> tuple[int, int, int]:
    """Return the addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads in the library that torch uses.

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
