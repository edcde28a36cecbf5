"""What the CPU and the GPU backend share: the variant of the CUDA source that a call needs, the arguments of the
kernels, and the tensors that they write.

A backend is a subclass of :class:`Kernels` that launches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import ACTIVATIONS, Options, Tensors, state_dtype

VALUES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}

Argument = Tensor | int | float | None


class Variant(NamedTuple):
    """What the CUDA source is specialised for; the names are those of its macros."""

    value: int
    activation: int
    planes: int
    skip: int
    peephole: int

    def defines(self, **more: int) -> tuple[str, ...]:
        """Options for a compiler."""
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

    @property
    def summarised(self) -> bool:
        """Whether there are several chunks, whose summaries are computed first."""
        return self.chunk_length < self.length


class Kernels:
    """forward and backward of :func:`fairseq_sru.sru_recurrence` by the CUDA source."""

    name: str

    def saved_shape(self, u: Tensor) -> tuple[int, ...]:
        """The cell state before the first and after each step."""
        return (u.size(0) + 1, u.size(1), u.size(3))

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        """Run a kernel; the numbers of the shape follow the arguments, and the skip term's scale where it has one."""
        raise NotImplementedError

    def chunk_length(self, variant: Variant, length: int, columns: int, device: torch.device) -> int:
        """How many steps a thread works on: the length, unless working on several chunks at once is faster."""
        return length

    def forward(
        self, tensors: Tensors, padding_mask: Tensor | None, options: Options, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """h, c_n and, with keep, the cell states of all steps ``(length + 1, batch, D)`` for :meth:`backward`."""
        u, x, bias, c0, v, mask, pad, variant, shape = self._prepare(tensors, padding_mask, options)
        length, batch, _, width = u.shape
        h = torch.empty((length, batch, width), dtype=u.dtype, device=u.device)
        c_n = torch.empty((batch, width), dtype=state_dtype(u), device=u.device)
        c = torch.empty(self.saved_shape(u), dtype=c_n.dtype, device=u.device) if keep else None
        if not h.numel():  # no steps, or no sequences: nothing to launch
            c_n.zero_() if c0 is None else c_n.copy_(c0)
            return h, c_n, c
        summary = self._summary(c_n, shape)
        if summary is not None:
            self.launch("sru_forward_summary", variant, shape, u.device, u, bias, pad, summary)
        self.launch(
            "sru_forward",
            variant,
            shape,
            u.device,
            u,
            x,
            bias,
            v,
            c0,
            mask,
            pad,
            summary,
            h,
            c,
            c_n,
            options.skip_scale,
        )
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
        """The gradients of tensors, None where not needed."""
        u, x, bias, c0, v, mask, pad, variant, shape = self._prepare(tensors, padding_mask, options)
        length, batch, planes, width = u.shape
        gates = 1 if planes == 2 else 2
        need = dict(zip(Tensors._fields, needed, strict=True))
        grad_h = torch.zeros_like(u[:, :, 0]) if grad_h is None else grad_h.to(u.dtype)
        grad_c_n = None if grad_c_n is None else grad_c_n.to(c.dtype).contiguous()
        new = c.new_empty if u.numel() else c.new_zeros
        grad_u = torch.empty_like(u)
        grad_x = None if x is None else torch.empty_like(x)
        chunks = shape.chunks if length else 1
        grad_bias = new(chunks, batch, gates, width) if need["bias"] else None
        grad_v = new(chunks, batch, gates, width) if need["weight_c"] else None
        grad_c0 = new(batch, width) if need["c0"] else None
        grad_mask = new(chunks, batch, width) if need["dropout_mask"] else None
        if u.numel():
            grad_h = grad_h.contiguous()
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
        sums = (
            None if grad_bias is None else grad_bias.sum((0, 1)),
            grad_c0,
            None if grad_v is None else grad_v.sum((0, 1)),
            None if grad_mask is None else grad_mask.sum(0),
        )
        return tuple(
            None if not wanted or grad is None or t is None else grad.to(t.dtype)
            for wanted, grad, t in zip(needed, (grad_u, grad_x, *sums), tensors, strict=False)
        )

    def _prepare(self, tensors: Tensors, padding_mask: Tensor | None, options: Options) -> tuple[Any, ...]:
        u, x, bias, c0, v, mask = tensors
        state = state_dtype(u)
        length, batch, planes, width = u.shape
        variant = Variant(
            VALUES[u.dtype], list(ACTIVATIONS).index(options.activation), planes, int(x is not None), int(v is not None)
        )
        chunk_length = self.chunk_length(variant, length, batch * width, u.device)
        shape = Shape(length, batch, width, 2 if options.bidirectional else 1, chunk_length)
        return (
            u.contiguous(),
            None if x is None else x.to(u.dtype).contiguous(),
            None if bias is None else bias.to(state).contiguous(),
            None if c0 is None else c0.to(state).contiguous(),
            None if v is None else v.to(state).contiguous(),
            None if mask is None else mask.to(state).contiguous(),
            None if padding_mask is None else padding_mask.contiguous(),
            variant,
            shape,
        )

    def _summary(self, like: Tensor, shape: Shape) -> Tensor | None:
        return like.new_empty(shape.chunks, 2, shape.batch, shape.width) if shape.summarised else None
