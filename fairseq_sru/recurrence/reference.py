"""The SRU recurrence in plain PyTorch.

:func:`reference` is the definition: a loop over time that autograd differentiates, as often as one likes.
:class:`Torch` computes the same several times faster: what does not depend on the cell state is done for all steps at
once, the loop is one fused multiply-add a step (a few operations more with v terms), and the backward pass is written
by hand. Arguments as in :func:`fairseq_sru.sru_recurrence`.

The gradients, with a' = dL/da and all products elementwise (reverse directions mirrored)::

    c'_t = h'_t r_t m g'(c_t) + v_r reset'_{t+1} + k_{t+1} c'_{t+1}     the only part that loops over time
    k_t = f_t + v_f (c_{t-1} - candidate_t) f_t (1 - f_t)
    candidate'_t = c'_t (1 - f_t)
    forget'_t = c'_t (c_{t-1} - candidate_t) f_t (1 - f_t)
    reset'_t = h'_t (g(c_t) m - s_t) r_t (1 - r_t)
    skip'_t = h'_t (1 - r_t)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# g and its derivative in terms of c and g(c).
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor | None]]] = {
    "identity": (lambda c: c, lambda c, g: None),
    "tanh": (torch.tanh, lambda c, g: 1 - g * g),
    "relu": (torch.relu, lambda c, g: (c > 0).to(c.dtype)),
}


class Options(NamedTuple):
    """Non-tensor arguments of the recurrence."""

    activation: str
    bidirectional: bool
    skip_scale: float


class Tensors(NamedTuple):
    """Tensors that can require a gradient."""

    u: Tensor
    x: Tensor | None = None
    bias: Tensor | None = None
    c0: Tensor | None = None
    weight_c: Tensor | None = None
    dropout_mask: Tensor | None = None


def state_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype of the cell state: float64 for float64, else float32."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def as_needed(grads: Sequence[Tensor | None], tensors: Tensors, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return each gradient in its tensor's dtype; None where it isn't needed."""
    return tuple(
        None if not wanted or grad is None or t is None else grad.to(t.dtype)
        for wanted, grad, t in zip(needed, grads, tensors, strict=True)
    )


def _directions(width: int, bidirectional: bool) -> Iterator[tuple[slice, bool]]:
    """Yield (channels, runs backward in time)."""
    if bidirectional:
        yield slice(0, width // 2), False
        yield slice(width // 2, width), True
    else:
        yield slice(0, width), False


def _state(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype)


def _skip(u: Tensor, x: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor | None:
    """Return the skip term ``(length, batch, D)`` as it enters the output."""
    if u.size(2) == 4:
        return u[:, :, 3].to(dtype)
    if x is None:
        return None
    return x.to(dtype) if scale == 1.0 else x.to(dtype) * scale


def reference(tensors: Tensors, padding_mask: Tensor | None, options: Options) -> tuple[Tensor, Tensor]:
    """Compute the recurrence step by step: the definition."""
    u, x, bias, c0, weight_c, dropout_mask = tensors
    dtype = state_dtype(u)
    length, batch, planes, width = u.shape
    gates = 1 if planes == 2 else 2
    g = ACTIVATIONS[options.activation][0]
    state = u.to(dtype)
    skip = _skip(u, x, options.skip_scale, dtype)
    if padding_mask is not None:  # 0 times NaN is NaN: what padding holds would reach the gradients
        state = state.masked_fill(padding_mask[:, :, None, None], 0.0)
        skip = None if skip is None else skip.masked_fill(padding_mask[:, :, None], 0.0)
    b = u.new_zeros(gates, width, dtype=dtype) if bias is None else bias.to(dtype)
    v = _state(weight_c, dtype)
    c_first = u.new_zeros(batch, width, dtype=dtype) if c0 is None else c0.to(dtype)
    # each step's part once: the gradient of an index into all of them has all of their size
    states, skips = state.unbind(0), None if skip is None else skip.unbind(0)

    def gate(i: int, t: int, d: slice, c: Tensor) -> Tensor:
        before = states[t][:, 1 + i, d] + b[i, d]
        return torch.sigmoid(before if v is None else before + v[i, d] * c)  # not + 0 c, which may be NaN

    outputs, finals = [], []
    for d, backward in _directions(width, options.bidirectional):
        c = c_first[:, d]
        h: list[Tensor] = [u.new_empty(0)] * length
        for t in reversed(range(length)) if backward else range(length):
            f = gate(0, t, d, c)
            c_next = f * c + (1 - f) * states[t][:, 0, d]
            h_t = g(c_next)
            if dropout_mask is not None:
                h_t = h_t * dropout_mask[:, d].to(dtype)
            if gates == 2:
                r = gate(1, t, d, c)
                h_t = r * h_t
                if skips is not None:
                    h_t = h_t + (1 - r) * skips[t][:, d]
            if padding_mask is not None:
                pad = padding_mask[t, :, None]
                c_next = torch.where(pad, c, c_next)
                h_t = torch.where(pad, torch.zeros_like(h_t), h_t)
            c, h[t] = c_next, h_t
        outputs.append(torch.stack(h) if h else state[:, :, 0, d])
        finals.append(c)
    return torch.cat(outputs, dim=-1).to(u.dtype), torch.cat(finals, dim=-1)


def _steps(backward: bool, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Return the time steps of tensors ``(length, ...)``, in the order of one direction."""
    steps = list(zip(*(t.unbind(0) for t in tensors), strict=True))
    return reversed(steps) if backward else iter(steps)


def _before(c: Tensor, c0: Tensor | None, bidirectional: bool) -> Tensor:
    """Return the cell state before each step of each direction."""
    before = torch.empty_like(c)
    for d, backward in _directions(c.size(-1), bidirectional):
        if len(c):
            first, rest, shifted = (-1, slice(0, -1), slice(1, None)) if backward else (0, slice(1, None), slice(0, -1))
            before[first, :, d] = 0.0 if c0 is None else c0[:, d]
            before[rest, :, d] = c[shifted, :, d]
    return before


class Torch:
    """A backend of plain PyTorch, for any device."""

    name = "torch"

    def saved_shape(self, u: Tensor) -> tuple[int, ...]:
        """Return the shape of f, r, c of all steps, without r where there is no reset gate."""
        return (min(u.size(2), 3), u.size(0), u.size(1), u.size(3))

    def forward(
        self, tensors: Tensors, padding_mask: Tensor | None, options: Options, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return h, c_n and, with keep, the tensors that :meth:`backward` needs: f, r, c as ``(2 or 3, length, batch,
        D)``."""
        u, x, bias, c0, v, mask = tensors
        dtype = state_dtype(u)
        length, batch, planes, width = u.shape
        bias, v, c0, mask = (_state(t, dtype) for t in (bias, v, c0, mask))
        pad = None if padding_mask is None else padding_mask[:, :, None]
        saved = u.new_empty(self.saved_shape(u), dtype=dtype)
        f, c = saved[0], saved[-1]
        candidate = u[:, :, 0].to(dtype)
        if pad is not None:
            candidate = candidate.masked_fill(pad, 0.0)
        self._gate(u[:, :, 1], bias, 0, f)

        finals = []
        if v is None:
            f.sigmoid_()
            if pad is not None:
                f.masked_fill_(pad, 1.0)
            torch.neg(f, out=c).add_(1).mul_(candidate)  # the loop adds f c_{t-1}
        for d, backward in _directions(width, options.bidirectional):
            previous = None if c0 is None else c0[:, d]
            if v is None:
                for c_t, f_t in _steps(backward, c[:, :, d], f[:, :, d]):
                    if previous is not None:
                        c_t.addcmul_(f_t, previous)
                    previous = c_t
            else:
                for t in reversed(range(length)) if backward else range(length):
                    f_t, c_t = f[t, :, d], c[t, :, d]
                    previous = torch.zeros_like(c_t) if previous is None else previous
                    f_t.addcmul_(v[0, d], previous).sigmoid_()
                    if pad is not None:
                        f_t.masked_fill_(pad[t], 1.0)
                    torch.neg(f_t, out=c_t).add_(1).mul_(candidate[t, :, d]).addcmul_(f_t, previous)
                    previous = c_t
            finals.append(u.new_zeros(batch, d.stop - d.start, dtype=dtype) if previous is None else previous)
        c_n = torch.cat(finals, dim=-1)  # a copy: c is kept for the backward pass

        h = ACTIVATIONS[options.activation][0](c)
        if mask is not None:
            h = h * mask
        if planes > 2:
            r = self._gate(u[:, :, 2], bias, 1, saved[1])
            if v is not None:
                r.addcmul_(v[1], _before(c, c0, options.bidirectional))
            r.sigmoid_()
            if pad is not None:
                r.masked_fill_(pad, 0.0)
            skip = _skip(u, x, options.skip_scale, dtype)
            h = h * r if skip is None else (h * r).addcmul_(1 - r, skip)  # lerp has inf - inf
        if pad is not None:
            h = h.masked_fill(pad, 0.0)
        return h.to(u.dtype, copy=h.data_ptr() == c.data_ptr()), c_n, saved if keep else None

    @staticmethod
    def _gate(product: Tensor, bias: Tensor | None, index: int, out: Tensor) -> Tensor:
        return out.copy_(product) if bias is None else torch.add(product, bias[index], out=out)

    def backward(
        self,
        tensors: Tensors,
        padding_mask: Tensor | None,
        options: Options,
        saved: Tensor,
        grad_h: Tensor | None,
        grad_c_n: Tensor | None,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of tensors, None where not needed."""
        u, x, bias, c0, v, mask = tensors
        need = dict(zip(Tensors._fields, needed, strict=True))
        dtype = saved.dtype
        width = u.size(3)
        f, c = saved[0], saved[-1]
        c0, v, mask = (_state(t, dtype) for t in (c0, v, mask))
        pad = None if padding_mask is None else padding_mask[:, :, None]
        grad_u = torch.empty_like(u, memory_format=torch.contiguous_format)
        g, slope = ACTIVATIONS[options.activation]
        g_c = g(c)
        grad_h = torch.zeros_like(c) if grad_h is None else grad_h.to(dtype)
        candidate, skip = u[:, :, 0].to(dtype), _skip(u, x, options.skip_scale, dtype)
        if pad is not None:
            grad_h = grad_h.masked_fill(pad, 0.0)
            skip = None if skip is None else skip.masked_fill(pad, 0.0)
            candidate = candidate.masked_fill(pad, 0.0)
        before = _before(c, c0, options.bidirectional)

        grad_x = grad_reset = None
        grad_state = grad_h.clone()
        if u.size(2) > 2:
            r = saved[1]
            grad_state.mul_(r)
            grad_reset = g_c if mask is None else g_c * mask
            grad_reset = (grad_reset if skip is None else grad_reset - skip) * grad_h
            grad_reset.mul_(r).addcmul_(grad_reset, r, value=-1)
            grad_u[:, :, 2] = grad_reset
            if skip is not None:
                grad_skip = torch.addcmul(grad_h, grad_h, r, value=-1)
                if x is None:
                    grad_u[:, :, 3] = grad_skip
                else:
                    grad_x = grad_skip if options.skip_scale == 1.0 else grad_skip * options.skip_scale
        grad_mask = None
        if mask is not None:
            grad_mask = (grad_state * g_c).sum(0) if need["dropout_mask"] else None
            grad_state.mul_(mask)
        g_slope = slope(c, g_c)
        if g_slope is not None:
            grad_state.mul_(g_slope)

        keep = 1 - f
        if pad is not None:
            keep.masked_fill_(pad, 0.0)
        forget_slope = (before - candidate).mul_(f).mul_(keep)
        factor = f if v is None else torch.addcmul(f, v[0], forget_slope)
        extra = v[1] * grad_reset if v is not None and grad_reset is not None else None
        grad_c0 = torch.empty_like(c[0]) if len(c) else c.new_zeros(c.shape[1:])
        for d, backward in _directions(width, options.bidirectional):
            carry = None if grad_c_n is None else grad_c_n[:, d].to(dtype)
            more = () if extra is None else (extra[:, :, d],)
            for grad_t, factor_t, *extra_t in _steps(not backward, grad_state[:, :, d], factor[:, :, d], *more):
                if carry is not None:
                    grad_t.add_(carry)
                carry = torch.addcmul(extra_t[0], grad_t, factor_t) if extra_t else grad_t * factor_t
            grad_c0[:, d] = 0.0 if carry is None else carry
        grad_u[:, :, 0] = grad_state * keep
        grad_forget = forget_slope.mul_(grad_state)
        grad_u[:, :, 1] = grad_forget
        gates = [grad_forget] if grad_reset is None else [grad_forget, grad_reset]
        grads = (
            grad_u,
            grad_x,
            torch.stack([grad.sum((0, 1)) for grad in gates]) if need["bias"] else None,
            grad_c0,
            torch.stack([(grad * before).sum((0, 1)) for grad in gates]) if need["weight_c"] else None,
            grad_mask,
        )
        return as_needed(grads, tensors, needed)
