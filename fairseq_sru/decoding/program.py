"""A model in evaluation on a CPU, written as a short list of operations that compiled code runs (kernels/ops.h).

Activations are float32. A weight is float32, or int8 with a scale a row (:func:`quantised`): its product takes inputs
that are rounded to int8 as well, with a scale a row of theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recurrence.build import Unavailable, host_library
from ..recurrence.dispatch import set_up
from ..recurrence.native_call import functions, threads_here
from ..recurrence.reference import ACTIVATIONS

EMBED, NORM, LINEAR, RECUR, ATTEND, SCAN, CONVOLVE, SELF_ATTEND = range(8)
RELU, TANH, ADD, KEEP, BOTH_WAYS = 1, 2, 4, 8, 16
ACTIVATION_FLAGS = dict(zip(ACTIVATIONS, (0, TANH, RELU), strict=True))
OP = "7q3qd"  # struct Op: code, in, out, n, k, flags, at; weight, scale, bias; number
OPTIONS = ("-fopenmp-simd",)
LONGEST_SOURCE = 4096  # tokens of a sentence, where training set no limit or a higher one
LONGEST_INT8 = 2**16  # columns of a matrix, whose products are summed in 32 bits


def mind_fork() -> None:
    """Use one thread in a forked process, where torch would wait forever for its parent's."""
    if threads_here() < torch.get_num_threads():
        torch.set_num_threads(1)


@functools.cache
def library() -> Any:
    """Return the entries of kernels/translator.cpp: ``run_step``, ``translate``, and ``block``, the number of columns
    of a packed weight that lie together.

    Raises:
        Unavailable: no compiler, or what it builds can't be loaded.
    """
    names = ("run_step", "translate", "block")
    entries = functions(host_library(OPTIONS, "translator.cpp"), *names)
    for entry in entries:
        entry.restype = ctypes.c_int64
    return SimpleNamespace(**dict(zip(names, entries, strict=True)))


@functools.cache
def available() -> bool:
    """Return True if operations can be compiled here."""
    try:
        library()
    except Unavailable as error:
        with contextlib.suppress(Unavailable):  # where there is no compiler, the recurrence's own warning tells
            set_up("native")
            warnings.warn(f"decoding runs in plain PyTorch on the CPU, which is slower: {error}", stacklevel=2)
        return False
    return True


class Quantised(NamedTuple):
    """``weight`` ``(n, k)`` int8; ``scale`` ``(n)`` float32, what a row is to be multiplied by."""

    weight: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape


Weight = Tensor | Quantised


def quantised(weight: Tensor) -> Quantised:
    """Return each row of a float32 matrix ``(n, k)`` as int8: rounded to the nearest of 255 steps between minus and
    plus the row's largest absolute value."""
    scale = weight.abs().amax(1) / 127
    steps = torch.where(scale > 0, weight.t() / scale, 0.0).t().round()
    return Quantised(steps.clamp(-127, 127).to(torch.int8), scale)


class Program:
    """Operations one after the other on slots, which are so many rows of numbers; a row is a token.

    Each method writes one down. ``calls`` has them as they were called, to be written to a file.

    Raises:
        ValueError: from each method, where slots and weights don't fit.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.widths: list[int] = []
        self.result = 0  # of an encoder: the slot of its outputs
        self.sources: list[tuple[int, int]] = []  # of an encoder: the slot and the heads of what each attention reads
        self.state_size = 0
        self.attentions: list[tuple[int, int]] = []  # of a decoder: the width and the heads of each
        self.coverage = False
        self.words = 0  # of the embedding
        self.positions: int | None = None  # that it has embeddings for; None: any number
        self._ops: list[tuple[Any, ...]] = []

    def slot(self, width: int) -> int:
        """Make room for so many numbers a row. A decoder's last slot is the result."""
        self.widths.append(width)
        return len(self.widths) - 1

    def _write(self, name: str, fits: bool, call: dict[str, Any], *op: Any) -> None:
        if not fits:
            raise ValueError(f"operation {len(self.calls)}, {name}: slots and weights don't fit")
        self.calls.append((name, {k: v for k, v in call.items() if k != "self"}))
        if op:  # else nothing runs
            self._ops.append(op)

    def _room(self, slot: int, numbers: int) -> bool:
        return 0 <= slot < len(self.widths) and 0 < numbers <= self.widths[slot]

    def _recurrence_fits(self, x: int, out: int, bias: Tensor) -> bool:
        gates, n = bias.shape
        return gates in (1, 2) and self._room(x, (gates + 1) * n) and self._room(out, n) and x != out

    def embed(self, out: int, weight: Weight, positions: Tensor | None = None, scale: float = 1.0) -> None:
        """``scale`` times a token's row of ``weight`` ``(words, n)``, plus that of ``positions`` ``(length, n)`` for
        its place."""
        call = locals().copy()
        words, size = weight.shape
        fits = self._room(out, size) and (positions is None or positions.size(1) == size)
        self._write("embed", fits, call, EMBED, 0, out, size, words, 0, 0, weight, positions, scale)
        self.words, self.positions = words, None if positions is None else len(positions)

    def norm(self, x: int, out: int, weight: Tensor, bias: Tensor, eps: float) -> None:
        """Layer norm with ``weight`` and ``bias`` ``(n)``."""
        call = locals().copy()
        fits = weight.dim() == 1 and self._room(x, len(weight)) and self._room(out, len(weight))
        fits = fits and bias.shape == weight.shape
        self._write("norm", fits, call, NORM, x, out, len(weight), 0, 0, 0, weight, bias, eps)

    def linear(
        self, x: int, out: int, weight: Weight, bias: Tensor | None = None, relu: bool = False, add: bool = False
    ) -> None:
        """``x weight^T + bias``, ``weight`` ``(n, k)``; with relu, max(0, ...); with add, added to what is there."""
        call = locals().copy()
        n, k = weight.shape
        fits = (self._room(x, k) and self._room(out, n) and x != out and (bias is None or bias.shape == (n,))) and (
            k < LONGEST_INT8 or not isinstance(weight, Quantised)
        )
        self._write("linear", fits, call, LINEAR, x, out, n, k, RELU * relu + ADD * add, 0, weight, bias, 0.0)

    def recur(self, x: int, out: int, bias: Tensor, activation: str) -> None:
        """``out += h``, one step of SRU without skip term: x holds its planes; the state is the next n numbers.

        Args:
            x, out: slots.
            bias: ``(gates, n)`` of SRUCell.
            activation: likewise.
        """
        call = locals().copy()
        gates, n = bias.shape
        fits, flags = self._recurrence_fits(x, out, bias), ACTIVATION_FLAGS[activation]
        self._write("recur", fits, call, RECUR, x, out, n, gates + 1, flags, self.state_size, None, bias, 0.0)
        self.state_size += n

    def scan(self, x: int, out: int, bias: Tensor, activation: str, bidirectional: bool) -> None:
        """Add all steps of each sentence; else the same as :meth:`recur`."""
        call = locals().copy()
        gates, n = bias.shape
        fits = self._recurrence_fits(x, out, bias) and not (bidirectional and n % 2)
        flags = ACTIVATION_FLAGS[activation] + BOTH_WAYS * bidirectional
        self._write("scan", fits, call, SCAN, x, out, n, gates + 1, flags, 0, None, bias, 0.0)

    def convolve(self, x: int, out: int, weight: Tensor) -> None:
        """A depthwise convolution over each sentence, ``weight`` ``(kernel_size, n)``."""
        call = locals().copy()
        size, n = weight.shape
        fits = self._room(x, n) and self._room(out, n) and x != out and size > 0
        self._write("convolve", fits, call, CONVOLVE, x, out, n, size, 0, 0, weight, None, 0.0)

    def self_attend(self, x: int, out: int, heads: int, scale: float) -> None:
        """Attention of each sentence over itself: x holds query, key and value."""
        call = locals().copy()
        n = self.widths[out] if self._room(out, 1) else 0
        fits = self._room(x, 3 * n) and x != out and heads > 0 and n % heads == 0
        self._write("self_attend", fits, call, SELF_ATTEND, x, out, n, heads, 0, 0, None, None, scale)

    def attend(self, x: int, out: int, heads: int, scale: float, keep: bool, coverage: Tensor | None = None) -> None:
        """Attention over the source, of the query in x: without the maps before and after.

        Args:
            x, out: slots; out is as wide as the query.
            heads: of the attention.
            scale: of the scores.
            keep: the attention whose weights the top one's coverage reads.
            coverage: the weight ``(3, heads)`` of :class:`Coverage`.
        """
        call = locals().copy()
        n = self.widths[out] if self._room(out, 1) else 0
        fits = self._room(x, n) and x != out and heads > 0 and n % heads == 0
        fits = fits and (coverage is None or coverage.shape == (3, heads))
        at, flags = len(self.attentions), KEEP * keep
        self._write("attend", fits, call, ATTEND, x, out, n, heads, flags, at, coverage, None, scale)
        self.attentions.append((n, heads))
        self.coverage = self.coverage or coverage is not None

    def source(self, slot: int, heads: int) -> None:
        """Give an encoder's slot, keys and next to them values, to the decoder's next attention."""
        call = locals().copy()
        fits = self._room(slot, 2) and heads > 0 and self.widths[slot] % (2 * heads) == 0
        self._write("source", fits, call)
        self.sources.append((slot, heads))

    @property
    def handed_over(self) -> list[tuple[int, int]]:
        """The width and the heads that an encoder gives each attention, to compare with a decoder's ``attentions``."""
        return [(self.widths[slot] // 2, heads) for slot, heads in self.sources]

    def packed(self) -> Packed:
        """Return the program in the form that compiled code reads.

        Raises:
            Unavailable: there is none.
        """
        tensors: list[Tensor] = []
        block = library().block()
        mind_fork()

        def pointer(x: Tensor | None) -> int:
            if x is None:
                return 0
            tensors.append(x.detach().contiguous())
            return tensors[-1].data_ptr()

        ops = b""
        for code, *numbers, weight, bias, number in self._ops:
            scale = None
            if isinstance(weight, Quantised):
                weight, scale = weight
            if code == LINEAR:
                more = -weight.size(0) % block  # rows of zeros, so that all blocks are whole
                weight = _blocks(weight, block)
                scale, bias = (None if x is None else F.pad(x, (0, more)) for x in (scale, bias))
            ops += struct.pack(OP, code, *numbers, pointer(weight), pointer(scale), pointer(bias), number)
        widths = struct.pack(f"{len(self.widths)}q", *self.widths)
        return Packed((len(self._ops), len(self.widths), address(ops), address(widths)), [ops, widths, *tensors])


class Packed(NamedTuple):
    """The fields of struct Program, and what they point to."""

    fields: tuple[int, ...]
    kept: list[Any]

    def __reduce__(self) -> Any:
        raise TypeError("what is ready to run can't be copied: it has addresses")


def address(data: bytes) -> int:
    """Return the address of bytes, which have to be held."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _blocks(weight: Tensor, block: int) -> Tensor:
    """Return a weight ``(n, k)`` as kernels/products.h reads it; an int8 w as the byte w + 128."""
    n, k = weight.shape
    weight = weight.detach()
    if weight.dtype == torch.int8:
        weight = F.pad(weight, (0, -k % 4, 0, -n % block)).view(-1, block, -(-k // 4), 4).transpose(1, 2)
        return (weight.to(torch.int16) + 128).to(torch.uint8)
    return F.pad(weight, (0, 0, 0, -n % block)).view(-1, block, k).transpose(1, 2)
