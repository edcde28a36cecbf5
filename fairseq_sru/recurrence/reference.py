"""The SRU recurrence in plain PyTorch.

:func:`reference` is the definition: a loop over time that autograd differentiates, as often as one likes.
:func:`manual` computes the same several times faster: what does not depend on the cell state is done for all steps at
once, the loop is one fused multiply-add a step, and the backward pass is written by hand. Arguments as in
:func:`fairseq_sru.sru_recurrence`.

The gradients, with a' = dL/da and all sums elementwise (reverse directions mirrored)::

    c'_t = h'_t r_t m g'(c_t) + f_{t+1} c'_{t+1}        the only part that loops over time
    candidate'_t = c'_t (1 - f_t)
    forget'_t = c'_t (c_{t-1} - candidate_t) f_t (1 - f_t)
    reset'_t = h'_t (g(c_t) m - s_t) r_t (1 - r_t)
    skip'_t = h'_t (1 - r_t)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# g and its derivative in terms of c and g(c).
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor | None]]] = {
    "identity": (lambda c: c, lambda c, g: None),
    "tanh": (torch.tanh, lambda c, g: 1 - g * g),
    "relu": (torch.relu, lambda c, g: (c > 0).to(c.dtype)),
}


def state_dtype(u: Tensor) -> torch.dtype:
    """The dtype of the cell state: float64 for float64, else float32."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _directions(width: int, bidirectional: bool) -> Iterator[tuple[slice, bool]]:
    """Yield (channels, runs backward in time)."""
    if bidirectional:
        yield slice(0, width // 2), False
        yield slice(width // 2, width), True
    else:
        yield slice(0, width), False


def reference(
    u: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    c0: Tensor | None,
    *,
    activation: str,
    bidirectional: bool,
    dropout_mask: Tensor | None,
    padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The definition, step by step."""
    dtype = state_dtype(u)
    length, batch, planes, width = u.shape
    g = ACTIVATIONS[activation][0]
    state = u.to(dtype)
    skip = state[:, :, 3] if planes == 4 else None if x is None else x.to(dtype)
    b_f, b_r = u.new_zeros(2, width, dtype=dtype) if bias is None else bias.to(dtype)
    c_first = u.new_zeros(batch, width, dtype=dtype) if c0 is None else c0.to(dtype)
    outputs, finals = [], []
    for d, backward in _directions(width, bidirectional):
        c = c_first[:, d]
        h: list[Tensor] = [u.new_empty(0)] * length
        for t in reversed(range(length)) if backward else range(length):
            f = torch.sigmoid(state[t, :, 1, d] + b_f[d])
            r = torch.sigmoid(state[t, :, 2, d] + b_r[d])
            c_next = f * c + (1 - f) * state[t, :, 0, d]
            h_t = r * g(c_next)
            if dropout_mask is not None:
                h_t = h_t * dropout_mask[:, d].to(dtype)
            if skip is not None:
                h_t = h_t + (1 - r) * skip[t, :, d]
            if padding_mask is not None:
                pad = padding_mask[t, :, None]
                c_next = torch.where(pad, c, c_next)
                h_t = torch.where(pad, torch.zeros_like(h_t), h_t)
            c, h[t] = c_next, h_t
        outputs.append(torch.stack(h) if h else u.new_zeros(0, batch, c.size(1), dtype=dtype))
        finals.append(c)
    return torch.cat(outputs, dim=-1).to(u.dtype), torch.cat(finals, dim=-1)


def manual(u: Tensor, x: Tensor | None, bias: Tensor | None, c0: Tensor | None, **how: Any) -> tuple[Tensor, Tensor]:
    """The same as :func:`reference`, faster; a second derivative goes through :func:`reference`."""
    tensors = (u, x, bias, c0, how["dropout_mask"])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        flags = {k: how[k] for k in ("activation", "bidirectional", "padding_mask")}
        return _Manual.apply(*tensors, flags)  # type: ignore[no-any-return]
    h, c_n, _ = _forward(u, x, bias, c0, **how)
    return h, c_n


def _forward(
    u: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    c0: Tensor | None,
    *,
    activation: str,
    bidirectional: bool,
    dropout_mask: Tensor | None,
    padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return h, c_n and (f, r, c), each ``(length, batch, D)`` in the state's dtype."""
    dtype = state_dtype(u)
    length, batch, planes, width = u.shape
    candidate, forget, reset = (u[:, :, i].to(dtype) for i in range(3))
    if bias is not None:
        f = torch.add(forget, bias[0].to(dtype)).sigmoid_()
        r = torch.add(reset, bias[1].to(dtype)).sigmoid_()
    else:
        f, r = forget.sigmoid(), reset.sigmoid()
    pad = None if padding_mask is None else padding_mask[:, :, None]
    if pad is not None:
        f.masked_fill_(pad, 1.0)
        r.masked_fill_(pad, 0.0)
        candidate = candidate.masked_fill(pad, 0.0)
    c = torch.addcmul(candidate, f, candidate, value=-1)  # (1 - f) candidate; the loop adds f c_{t-1}
    c_first = None if c0 is None else c0.to(dtype)
    finals = []
    for d, backward in _directions(width, bidirectional):
        previous = None if c_first is None else c_first[:, d]
        for c_t, f_t in _steps(backward, c[:, :, d], f[:, :, d]):
            if previous is not None:
                c_t.addcmul_(f_t, previous)
            previous = c_t
        finals.append(u.new_zeros(batch, d.stop - d.start, dtype=dtype) if previous is None else previous)
    c_n = torch.cat(finals, dim=-1)  # a copy: c is kept for the backward pass

    g = ACTIVATIONS[activation][0](c)
    if dropout_mask is not None:
        g = g * dropout_mask.to(dtype)
    skip = u[:, :, 3] if planes == 4 else x
    h = g * r if skip is None else torch.lerp(skip.to(dtype), g, r)
    if pad is not None:
        h = h.masked_fill_(pad, 0.0)
    return h.to(u.dtype), c_n, (f, r, c)


def _steps(backward: bool, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The time steps of tensors ``(length, ...)``, in the order of one direction."""
    steps = list(zip(*(t.unbind(0) for t in tensors), strict=True))
    return reversed(steps) if backward else iter(steps)


class _Manual(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        u: Tensor,
        x: Tensor | None,
        bias: Tensor | None,
        c0: Tensor | None,
        dropout_mask: Tensor | None,
        flags: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        h, c_n, saved = _forward(u, x, bias, c0, dropout_mask=dropout_mask, **flags)
        ctx.save_for_backward(u, x, bias, c0, dropout_mask, flags["padding_mask"], *saved)
        ctx.activation, ctx.bidirectional = flags["activation"], flags["bidirectional"]
        ctx.set_materialize_grads(False)
        return h, c_n

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, x, bias, c0, dropout_mask, padding_mask, f, r, c = ctx.saved_tensors
        inputs = (u, x, bias, c0, dropout_mask)
        if torch.is_grad_enabled():  # create_graph=True
            return (*_differentiable(ctx, inputs, padding_mask, grad_h, grad_c), None)
        dtype = c.dtype
        width = u.size(3)
        grad_u = torch.empty_like(u, memory_format=torch.contiguous_format)
        pad = None if padding_mask is None else padding_mask[:, :, None]
        g, slope = ACTIVATIONS[ctx.activation]
        g_c = g(c)
        candidate = u[:, :, 0].to(dtype)
        skip = u[:, :, 3].to(dtype) if u.size(2) == 4 else None if x is None else x.to(dtype)
        grad_x = grad_mask = None
        if grad_h is None:
            grad_state = torch.zeros_like(c)
            grad_u.zero_()
            grad_x = None if x is None else torch.zeros_like(x)
        else:
            grad_h = grad_h.to(dtype)
            if pad is not None:
                grad_h = grad_h.masked_fill(pad, 0.0)
                skip = None if skip is None else skip.masked_fill(pad, 0.0)
            grad_g = grad_h * r
            if dropout_mask is not None:
                mask = dropout_mask.to(dtype)
                if ctx.needs_input_grad[4]:
                    grad_mask = (grad_g * g_c).sum(0).to(dropout_mask.dtype)
                grad_g.mul_(mask)
                g_c_masked = g_c * mask
            else:
                g_c_masked = g_c
            difference = g_c_masked if skip is None else g_c_masked - skip
            grad_reset = difference * grad_h
            grad_reset.mul_(r).addcmul_(grad_reset, r, value=-1)
            grad_u[:, :, 2] = grad_reset
            if skip is not None:
                grad_skip = torch.addcmul(grad_h, grad_h, r, value=-1)
                if x is None:
                    grad_u[:, :, 3] = grad_skip
                else:
                    grad_x = grad_skip.to(x.dtype)
            g_slope = slope(c, g_c)
            grad_state = grad_g if g_slope is None else grad_g.mul_(g_slope)

        c_first = u.new_zeros(u.size(1), width, dtype=dtype) if c0 is None else c0.to(dtype)
        c_before = torch.empty_like(c)
        grad_c0 = torch.empty_like(c_first)
        for d, backward in _directions(width, ctx.bidirectional):
            carry = None if grad_c is None else grad_c[:, d].to(dtype)
            for grad_t, f_t in _steps(not backward, grad_state[:, :, d], f[:, :, d]):
                if carry is not None:
                    grad_t.add_(carry)
                carry = grad_t * f_t
            grad_c0[:, d] = 0.0 if carry is None else carry
            if len(c):
                first, rest, shifted = (
                    (-1, slice(0, -1), slice(1, None)) if backward else (0, slice(1, None), slice(0, -1))
                )
                c_before[first, :, d] = c_first[:, d]
                c_before[rest, :, d] = c[shifted, :, d]
        if pad is not None:
            candidate = candidate.masked_fill(pad, 0.0)
        keep = 1 - f
        grad_candidate = grad_state * keep
        grad_u[:, :, 0] = grad_candidate
        grad_forget = c_before.sub_(candidate).mul_(grad_candidate).mul_(f)
        grad_u[:, :, 1] = grad_forget
        grad_bias = None
        if bias is not None:
            reset_sum = torch.zeros_like(grad_forget[:1]) if grad_h is None else grad_reset
            grad_bias = torch.stack([grad_forget.sum((0, 1)), reset_sum.sum((0, 1))]).to(bias.dtype)
        return grad_u, grad_x, grad_bias, None if c0 is None else grad_c0.to(c0.dtype), grad_mask, None


def _differentiable(
    ctx: Any,
    inputs: tuple[Tensor | None, ...],
    padding_mask: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
) -> list[Tensor | None]:
    """First derivatives that can be differentiated again: through the definition."""
    # Aliases: u was computed from x, and the path from u to x is the outer graph's to add.
    inputs = tuple(None if t is None else t.view_as(t) for t in inputs)
    u, x, bias, c0, dropout_mask = inputs
    assert u is not None
    h, c_n = reference(
        u,
        x,
        bias,
        c0,
        activation=ctx.activation,
        bidirectional=ctx.bidirectional,
        dropout_mask=dropout_mask,
        padding_mask=padding_mask,
    )
    wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed and t is not None]
    given = [(out, grad) for out, grad in ((h, grad_h), (c_n, grad_c)) if grad is not None]
    grads = iter(
        torch.autograd.grad([o for o, _ in given], wanted, [g for _, g in given], create_graph=True, allow_unused=True)
    )
    return [next(grads) if needed else None for needed in ctx.needs_input_grad[: len(inputs)]]
