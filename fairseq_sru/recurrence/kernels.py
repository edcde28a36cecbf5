"""Code that the CPU and the GPU backend share: the variant of the CUDA source that a call needs, the arguments of the
kernels, and the tensors that they write.

A backend is a subclass of :class:`Kernels` that launches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, overload

import torch
from torch import Tensor

from .reference import ACTIVATIONS, Options, Tensors, as_needed

VALUES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}

Argument = Tensor | int | float | None
KERNELS = ("sru_forward", "sru_backward")
KEPT = 4096  # calls of different shapes whose preparation is kept


class Variant(NamedTuple):
    """Values of the CUDA source's macros, by their names."""

    value: int
    activation: int
    planes: int
    skip: int
    peephole: int
    pad: int = 1

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels; v2 cells, whose gates depend on the state, have no summary."""
        return KERNELS if self.peephole else (*KERNELS, *(f"{kernel}_summary" for kernel in KERNELS))

    def defines(self, **more: int) -> tuple[str, ...]:
        """Return options for a compiler."""
        return tuple(f"-D{name.upper()}={value}" for name, value in {**self._asdict(), **more}.items())


DEFAULT_VARIANT = Variant(value=0, activation=1, planes=3, skip=1, peephole=0)


class Shape(NamedTuple):
    """The numbers that all kernels take; chunk_length: steps that a thread works on."""

    length: int
    batch: int
    width: int
    directions: int
    chunk_length: int

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk_length)

    def states(self, every: int) -> int:
        """Return the number of saved states: before every EVERY-th step of each chunk, from its end, and the last."""
        if not self.length:
            return 1
        last = self.length - (self.chunks - 1) * self.chunk_length
        return (self.chunks - 1) * -(-self.chunk_length // every) + -(-last // every) + 1


def nowhere(t: Tensor) -> int:
    """Return 0, the address of a tensor without elements.

    Raises:
        TypeError: it has elements, which are elsewhere, as a DTensor's are.
    """
    if t.numel():
        raise TypeError(f"compiled kernels can't read a {type(t).__name__}: it holds no values itself")
    return 0


class Kernels:
    """Forward and backward of :func:`fairseq_sru.sru_recurrence` by the CUDA source."""

    name: str
    every: int = 2  # EVERY of the source
    always_pad: bool = False  # calls without a padding mask have no form of their own

    @functools.cached_property
    def plan(self) -> Callable[..., tuple[Variant, Shape, torch.dtype]]:
        """:meth:`_plan` with a memory: lengths and batches come again and again."""
        return functools.lru_cache(maxsize=KEPT)(self._plan)

    def saved_shape(self, u: Tensor) -> tuple[int, ...]:
        """Return the shape of the cell states before every EVERY-th step, and after the last."""
        return ((u.size(0) + self.every - 1) // self.every + 1, u.size(1), u.size(3))

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        """Run a kernel on the arguments, whose last is the skip term's scale where there is one, and the shape."""
        raise NotImplementedError

    def chunk_length(self, variant: Variant, length: int, columns: int, device: torch.device) -> int:
        """Return the steps that a thread works on: the length, or, where several chunks at once are faster, a multiple
        of EVERY, so that as many states are saved."""
        return length

    def forward(
        self, tensors: Tensors, padding_mask: Tensor | None, options: Options, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return h, c_n and, with keep, the cell states of some steps ``(states, batch, D)`` for :meth:`backward`."""
        u, x, bias, c0, v, mask = tensors
        present = x is not None, v is not None, padding_mask is not None
        variant, shape, state = self.plan(u.shape, u.dtype, u.device, options, *present)
        u, x = u.contiguous(), _like(x, u.dtype)
        bias, c0, v, mask = _like(bias, state), _like(c0, state), _like(v, state), _like(mask, state)
        pad = None if padding_mask is None else padding_mask.contiguous()
        length, batch, width = shape.length, shape.batch, shape.width
        h = u.new_empty((length, batch, width)) if x is None else torch.empty_like(x)
        c_n = u.new_empty((batch, width), dtype=state)
        c = u.new_empty((shape.states(self.every), batch, width), dtype=state) if keep else None
        if not length or not batch or not width:  # nothing to launch
            c_n.zero_() if c0 is None else c_n.copy_(c0)
            return h, c_n, c
        summary = self._summary(c_n, shape)
        if summary is not None:
            self.launch("sru_forward_summary", variant, shape, u.device, u, bias, pad, summary)
        inputs = (u, x, bias, v, c0, mask, pad, summary)
        self.launch("sru_forward", variant, shape, u.device, *inputs, h, c, c_n, options.skip_scale)
        return h, c_n, c

    def backward(
        self,
        tensors: Tensors,
        padding_mask: Tensor | None,
        options: Options,
        c: Tensor,
        grad_h: Tensor | None,
        grad_c_n: Tensor | None,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of tensors, None where not needed."""
        u, x, bias, c0, v, mask = tensors
        present = x is not None, v is not None, padding_mask is not None
        variant, shape, state = self.plan(u.shape, u.dtype, u.device, options, *present)
        u, x = u.contiguous(), _like(x, u.dtype)
        c = c.contiguous()  # as forward gave it, unless hooks of saved tensors lay it out otherwise
        bias, v, mask = _like(bias, state), _like(v, state), _like(mask, state)
        pad = None if padding_mask is None else padding_mask.contiguous()
        length, batch, width, gates = shape.length, shape.batch, shape.width, 1 if variant.planes == 2 else 2
        _, _, need_bias, need_c0, need_v, need_mask = needed
        grad_h = u.new_zeros((length, batch, width)) if grad_h is None else _like(grad_h, u.dtype)
        grad_c_n = _like(grad_c_n, state)
        grad_u = torch.empty_like(u)
        grad_x = None if x is None else torch.empty_like(x)
        chunks = shape.chunks if length else 1
        new = c.new_empty if u.numel() else c.new_zeros
        grad_bias = new((chunks, batch, gates, width)) if need_bias else None
        grad_v = new((chunks, batch, gates, width)) if need_v else None
        grad_c0 = new((batch, width)) if need_c0 else None
        grad_mask = new((chunks, batch, width)) if need_mask else None
        if u.numel():
            summary = self._summary(c[0], shape)
            if summary is not None:
                self.launch("sru_backward_summary", variant, shape, u.device, u, bias, c, mask, pad, grad_h, summary)
            self.launch(
                "sru_backward",
                variant,
                shape,
                u.device,
                *(u, x, bias, v, c, mask, pad, summary, grad_h, grad_c_n),
                *(grad_u, grad_x, grad_bias, grad_v, grad_c0, grad_mask),
                options.skip_scale,
            )
        elif grad_c0 is not None and grad_c_n is not None:
            grad_c0.copy_(grad_c_n)
        grads = (
            grad_u,
            grad_x,
            None if grad_bias is None else grad_bias.sum((0, 1)),
            grad_c0,
            None if grad_v is None else grad_v.sum((0, 1)),
            None if grad_mask is None else grad_mask.sum(0) if chunks > 1 else grad_mask[0],
        )
        return as_needed(grads, tensors, needed)

    def _plan(
        self,
        u: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        options: Options,
        skip: bool,
        peephole: bool,
        pad: bool,
    ) -> tuple[Variant, Shape, torch.dtype]:
        """Return the variant, the shape and the cell state's dtype, which follow from a call's dtypes and shapes."""
        length, batch, planes, width = u
        activation = list(ACTIVATIONS).index(options.activation)
        pad = pad or self.always_pad
        variant = Variant(VALUES[dtype], activation, planes, int(skip), int(peephole), int(pad))
        steps = self.chunk_length(variant, length, batch * width, device)
        shape = Shape(length, batch, width, 2 if options.bidirectional else 1, steps)
        return variant, shape, torch.float64 if dtype == torch.float64 else torch.float32

    def _summary(self, like: Tensor, shape: Shape) -> Tensor | None:
        return like.new_empty(shape.chunks, 2, shape.batch, shape.width) if shape.chunks > 1 else None


@overload
def _like(t: None, dtype: torch.dtype) -> None: ...
@overload
def _like(t: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def _like(t: Tensor | None, dtype: torch.dtype) -> Tensor | None: ...
def _like(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the tensor in a dtype and contiguous; itself where it is."""
    if t is None:
        return None
    return (t if t.dtype is dtype else t.to(dtype)).contiguous()
