"""One differentiable function of a backend's forward and backward, in eager mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .modes import batched
from .reference import Options, Tensors, as_needed, reference, state_dtype


class Backend(Protocol):
    """Interface of a backend, which computes the recurrence."""

    name: str

    def saved_shape(self, u: Tensor) -> tuple[int, ...]:
        """Return the shape of the tensor that forward saves, which has the state's dtype."""
        ...

    def forward(
        self, tensors: Tensors, padding_mask: Tensor | None, options: Options, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return h, c_n and, with keep, the tensor that backward needs."""
        ...

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
        ...


class Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: Backend, options: Options, padding_mask: Tensor | None, *tensors: Any) -> Any:  # type: ignore[override]
        state = state_dtype(tensors[0])
        # parameters and states of 16 bits are cast once, for both passes
        narrow = [t is not None and t.dtype is not state for t in tensors[2:]]
        wide = [t.to(state) if n else None for t, n in zip(tensors[2:], narrow, strict=True)] if True in narrow else []
        h, c_n, saved = backend.forward(widened(tensors, wide), padding_mask, options, True)
        ctx.save_for_backward(padding_mask, saved, *tensors, *wide)
        ctx.backend, ctx.options = backend, options
        ctx.set_materialize_grads(False)
        return h, c_n

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c_n: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        padding_mask, saved, *tensors = ctx.saved_tensors
        tensors, wide = tensors[:6], tensors[6:]
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or batched(grad_h, grad_c_n):  # the former is create_graph=True
            grads = differentiable(Tensors(*tensors), padding_mask, ctx.options, grad_h, grad_c_n, needed)
        else:
            used = widened(tensors, wide)
            grads = ctx.backend.backward(used, padding_mask, ctx.options, saved, grad_h, grad_c_n, needed)
            if wide:
                grads = as_needed(grads, Tensors(*tensors), needed)
        return (None, None, None, *grads)


def widened(tensors: Sequence[Any], wide: Sequence[Tensor | None]) -> Tensors:
    """Replace bias, c0, weight_c and dropout_mask by those of the state's dtype where there are."""
    if not wide:
        return Tensors(*tensors)
    return Tensors(*tensors[:2], *(t if w is None else w for t, w in zip(tensors[2:], wide, strict=True)))


def differentiable(
    tensors: Tensors,
    padding_mask: Tensor | None,
    options: Options,
    grad_h: Tensor | None,
    grad_c_n: Tensor | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return first derivatives through the definition; where gradients are on, they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: u was computed from x, and the path from u to x is the outer graph's to add.
        aliases: Any = Tensors(*(None if t is None else t.view_as(t) for t in tensors))  # type: ignore[arg-type]
        h, c_n = reference(aliases, padding_mask, options)
    wanted = [t for t, need in zip(aliases, needed, strict=True) if need]
    weighted = [(out, grad) for out, grad in ((h, grad_h), (c_n, grad_c_n)) if grad is not None and out.requires_grad]
    if not weighted:  # c_n depends on no x, and nothing on an input of no steps
        return (None,) * len(needed)
    outputs, weights = [out for out, _ in weighted], [grad for _, grad in weighted]
    grads = iter(torch.autograd.grad(outputs, wanted, weights, create_graph=again, allow_unused=True))
    return tuple(next(grads) if need else None for need in needed)
