"""One step of a decoder on a CPU as one call of compiled code (kernels/decoder.cpp) in place of a hundred of torch's.

A decoder writes its step down as a :class:`Program`; :func:`compiled` says whether it can run. All is float32. Results
are those of the modules but for rounding.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import SRUCell
from ..recurrence.build import Unavailable, host_library
from ..recurrence.dispatch import choose
from ..recurrence.native import functions, openmp, threads_here
from .attention import Attention, Coverage, Source

EMBED, NORM, LINEAR, RECUR, ATTEND = range(5)
RELU, TANH, ADD, KEEP, TOP = 1, 2, 4, 8, 16
OP = "7q2qd"  # struct Op: code, in, out, n, k, flags, at; weight, bias; number
OPTIONS = ("-fopenmp-simd",)


@functools.cache
def _library() -> tuple[Callable[[bytes], int], int]:
    """The compiled step, and the columns of a block of a packed weight.

    Raises:
        Unavailable: no compiler, or what it builds can't be loaded.
    """
    run_step, block = functions(host_library(OPTIONS, "decoder.cpp"), "run_step", "block")
    run_step.argtypes, run_step.restype = [ctypes.c_char_p], ctypes.c_int64
    block.restype = ctypes.c_int64
    return run_step, block()


class Result(NamedTuple):
    """Of a step: ``logits`` ``(rows, words)``; the new ``state`` ``(rows, state_size)``; with coverage ``past`` and
    where asked for ``weights`` of the top attention, ``(rows, src_len)``."""

    logits: Tensor
    state: Tensor
    past: Tensor | None
    weights: Tensor | None


class Program:
    """The step of one decoder; its methods write down one operation after the other, and :meth:`run` runs them."""

    def __init__(self) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.widths: list[int] = []
        self.state_size = 0
        self.attentions = 0
        self.coverage = False
        self.kept: list[Tensor] = []  # what the operations point to

    def slot(self, width: int) -> int:
        """Room for so many numbers a row. The last one is the result."""
        self.widths.append(width)
        return len(self.widths) - 1

    def _pointer(self, x: Tensor | None) -> int:
        if x is None:
            return 0
        self.kept.append(x.detach().contiguous())
        return self.kept[-1].data_ptr()

    def embed(self, out: int, embedding: Tensor, scale: float = 1.0) -> None:
        rows, size = embedding.shape
        self.ops.append((EMBED, 0, out, size, rows, 0, 0, self._pointer(embedding), 0, scale))

    def norm(self, x: int, out: int, module: nn.LayerNorm) -> None:
        weight, bias = self._pointer(module.weight), self._pointer(module.bias)
        self.ops.append((NORM, x, out, self.widths[x], 0, 0, 0, weight, bias, module.eps))

    def linear(self, x: int, out: int, weight: Tensor, bias: Tensor | None = None, flags: int = 0) -> None:
        _, block = _library()
        columns, k = weight.shape
        packed = nn.functional.pad(weight.detach(), (0, 0, 0, -columns % block))
        packed = packed.view(-1, block, k).transpose(1, 2)
        self.ops.append((LINEAR, x, out, columns, k, flags, 0, self._pointer(packed), self._pointer(bias), 0.0))

    def recur(self, x: int, out: int, cell: SRUCell) -> None:
        """``out += h`` from u in slot x; the state of the cell is the next ``output_size`` numbers."""
        flags = {"identity": 0, "relu": RELU, "tanh": TANH}[cell.activation]
        size, bias = cell.output_size, self._pointer(cell.bias)
        self.ops.append((RECUR, x, out, size, cell.planes, flags, self.state_size, 0, bias, 0.0))
        self.state_size += size

    def attend(self, x: int, inner: int, wide: int, layer: Any, flags: int) -> None:
        """``x += attention(layer_norm(x))`` of a layer with attention_norm, attention and coverage.

        Args:
            x: slot of the residual sum.
            inner: a slot of x's width, for what is between.
            wide: a slot at least as wide, likewise.
            layer: of a decoder.
            flags: KEEP for an attention whose weights the top one reads, TOP for others.
        """
        attention: Attention = layer.attention
        coverage: Coverage | None = layer.coverage
        size, heads, weight = attention.query.out_features, attention.heads, 0
        if coverage is not None:
            self.coverage, weight = True, self._pointer(coverage.weight)
        self.norm(x, inner, layer.attention_norm)
        self.linear(inner, wide, attention.query.weight)
        self.ops.append((ATTEND, wide, inner, size, heads, flags, self.attentions, weight, 0, attention.scale))
        self.linear(inner, x, attention.out.weight, flags=ADD)
        self.attentions += 1

    @functools.cached_property
    def _packed(self) -> tuple[bytes, bytes]:
        ops = b"".join(struct.pack(OP, *op) for op in self.ops)
        return ops, struct.pack(f"{len(self.widths)}q", *self.widths)

    def run(
        self, tokens: Tensor, sources: list[Source], state: Tensor | None, past: Tensor | None, need_weights: bool
    ) -> Result:
        """Run the step.

        Args:
            tokens: ``(rows)``.
            sources: of each attention; rows are a multiple of their sentences.
            state: ``(rows, state_size)``; zeros if None.
            past: with coverage its sum so far, ``(rows, src_len)``; zeros if None.
            need_weights: return those of the top attention.

        Raises:
            IndexError: a token is not of the dictionary.
        """
        rows, src_len = len(tokens), sources[0].key.size(2)
        tokens = tokens.contiguous()
        state = torch.zeros(rows, self.state_size) if state is None else state.contiguous()
        past = torch.zeros(rows, src_len if self.coverage else 0) if past is None else past.contiguous()
        sources = [Source(*(x if x.stride(-1) == 1 else x.contiguous() for x in source)) for source in sources]
        *inner, words = self.widths
        scratch, logits = torch.empty(rows * sum(inner)), torch.empty(rows, words)
        new_state, new_past, weights = torch.empty_like(state), torch.empty_like(past), torch.empty(rows, src_len)
        ops, widths = self._packed
        packed = b"".join(
            struct.pack(
                "10q",
                *(x.data_ptr() for x in source),
                *source.key.stride()[:3],
                *source.value.stride()[:3],
                source.mask.stride(0),
            )
            for source in sources
        )
        addresses = [ctypes.cast(ctypes.c_char_p(x), ctypes.c_void_p).value for x in (ops, widths, packed)]
        pointers = [x.data_ptr() for x in (tokens, scratch, state, new_state, past, new_past, weights, logits)]
        shape = (rows, rows // len(sources[0].key), src_len, self.state_size, need_weights)
        run, _ = _library()
        known = run(
            struct.pack(
                "22q", threads_here(), *openmp(), len(self.ops), len(self.widths), *shape, *addresses, *pointers
            )
        )
        if not known:
            raise IndexError(f"tokens must be of the dictionary; got {int(tokens.min())} to {int(tokens.max())}")
        return Result(logits, new_state, new_past if self.coverage else None, weights if need_weights else None)


def plain(cell: nn.Module) -> bool:
    """Whether :meth:`Program.recur` can compute a cell, and may: no other backend is asked for."""
    if not isinstance(cell, SRUCell) or cell.highway or cell.bidirectional or not cell.v1 or cell.layer_norm:
        return False
    backend = choose(cell.backend, "cpu")
    return backend is not None and backend.name == "native"


def fingerprint(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """What changes when a weight does, but by an optimizer that writes to ``weight.data``."""
    return tuple((x.data_ptr(), x._version) for x in module.parameters())


@functools.cache
def available() -> bool:
    """Whether a step can be compiled here."""
    try:
        _library()
    except Unavailable:  # of a missing compiler, the recurrence's own warning tells
        return False
    return True
