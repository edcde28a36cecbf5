"""What a fairseq checkpoint may hold beside tensors.

Since torch 2.6, ``torch.load`` reads tensors and plain containers alone unless it is told of other types. fairseq's
checkpoints also hold options in an ``argparse.Namespace`` and, unpatched and after ``--eval-bleu``, arrays of numpy.
numpy's own unpickling trusts the file (a forged dtype makes it follow pointers), so stand-ins take its place while a
checkpoint is read: they accept numbers alone and check what they are given. Whatever else a file asks for is refused as
before.

Options may be nodes of OmegaConf, too, as in what fairseq read and somebody saved again. Reading these types fills in
attributes and containers, and runs nothing that isn't on the list itself.
"""

from __future__ import annotations

import argparse
import collections
import functools
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import omegaconf
from omegaconf.base import ContainerMetadata, Metadata
from torch.serialization import add_safe_globals, get_safe_globals, safe_globals

# what OmegaConf's nodes are made of
_NODES = [omegaconf.DictConfig, omegaconf.ListConfig, omegaconf.AnyNode, ContainerMetadata, Metadata, Any]
_NODES += [collections.defaultdict, dict, list, int]

_NUMBERS = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}


class _DType:
    """Reads ``numpy.dtype``: the name of a type of numbers, in this machine's byte order."""

    def __init__(self, name: str, align: Any = False, copy: Any = True) -> None:
        if name not in _NUMBERS:
            raise pickle.UnpicklingError(f"a checkpoint's numpy data must be numbers; got dtype {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if tuple(state) != (3, self.dtype.str[0], None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f"a checkpoint's numpy data must be plain numbers; got dtype state {state!r}")


class _Marker:
    """Reads ``numpy.ndarray``, which only names a type to :class:`_Array`."""


class _Array(np.ndarray):
    """Reads ``numpy._core.multiarray._reconstruct``: an array of numbers."""

    def __new__(cls, subtype: Any, shape: Any, typecode: Any) -> _Array:
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if type(dtype) is not _DType or type(data) is not bytes or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError("a checkpoint's numpy array must be plain numbers")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"a checkpoint's numpy array of shape {shape} has {len(data)} bytes")
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), data))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return np.array(self, subok=False).__reduce_ex__(protocol)  # saved again, it is numpy's own


def _scalar(dtype: _DType, data: bytes) -> Any:
    """Reads ``numpy._core.multiarray.scalar``: one number."""
    if type(dtype) is not _DType or type(data) is not bytes or len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("a checkpoint's numpy scalar must be a plain number")
    return np.frombuffer(data, dtype.dtype)[0]


_READERS: list[Any] = [(_DType, "numpy.dtype"), (_Marker, "numpy.ndarray")]
for _module in ("numpy._core.multiarray", "numpy.core.multiarray"):  # numpy 2, numpy 1
    _READERS += [(_scalar, f"{_module}.scalar"), (_Array, f"{_module}._reconstruct")]


VECTORS = ("encoder_embed_path", "decoder_embed_path")  # files that only training reads


_reading = threading.RLock()  # a thread that ends would take the stand-ins of the others


def allow_options() -> None:
    """Let ``torch.load`` read options with its safety on, from now on."""
    add_safe_globals([argparse.Namespace, *_NODES])


@contextmanager
def fairseq_checkpoints() -> Iterator[None]:
    """Within it, ``torch.load`` reads fairseq's checkpoints with its safety on.

    Not for good: of two things with one name, a stand-in and numpy's own that other code allows, torch takes either.
    Where other code allows any of numpy's, there are no stand-ins.
    """
    names = {name for _, name in _READERS}
    with _reading:
        allow_options()
        allowed = (f if isinstance(f, tuple) else (f, f"{f.__module__}.{f.__qualname__}") for f in get_safe_globals())
        theirs = any(name in names for _, name in allowed)
        with safe_globals([] if theirs else _READERS):
            yield


def loader(load: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return fairseq's function that loads a checkpoint, with :func:`fairseq_checkpoints`. The model then asks for no
    file of pretrained embeddings, whose vectors the checkpoint has."""

    @functools.wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> dict[str, Any]:
        with fairseq_checkpoints():
            state = load(*args, **kwargs)
        cfg = (state.get("cfg") or {}).get("model")
        for name in VECTORS:
            if getattr(cfg, name, None) is not None:
                setattr(cfg, name, None)
        return state

    return loaded
