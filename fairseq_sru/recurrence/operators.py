"""The recurrence as custom operators, for torch.compile, torch.export and torch.jit.trace."""

from __future__ import annotations

from typing import Any, List  # noqa: UP035

import torch
from torch import Tensor

from .autograd import Backend, differentiable
from .dispatch import check_tensors, choose, set_up
from .modes import batched
from .reference import Options, Tensors, state_dtype

# Eager mode goes without operators: one costs 5 to 50 microseconds a call more. An empty tensor stands for none.
# keep: save what the backward pass needs; only where the backend is named, since the shape is its own.


NO_ONNX = "export to ONNX is not supported: ONNX has no operator for the SRU recurrence; torch.export works"


def _run_by(backend: str, u: Tensor) -> Backend:
    # Autograd can't look into an operator, which the definition leaves its gradients to.
    chosen = choose(backend, u.device.type) or set_up("torch")
    assert chosen is not None
    return chosen


@torch.library.custom_op("fairseq_sru::recurrence", mutates_args=())
def recurrence(
    u: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    c0: Tensor | None,
    weight_c: Tensor | None,
    dropout_mask: Tensor | None,
    padding_mask: Tensor | None,
    activation: str,
    bidirectional: bool,
    skip_scale: float,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(activation, bidirectional, skip_scale)
    tensors = Tensors(u, x, bias, c0, weight_c, dropout_mask)
    check_tensors(tensors, padding_mask, activation, bidirectional)  # a trace has left the layers' own checks out
    h, c_n, saved = _run_by(backend, u).forward(tensors, padding_mask, options, keep)
    return h.contiguous(), c_n, c_n.new_empty(0) if saved is None else saved


@recurrence.register_fake
def _(u: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if torch.onnx.is_in_onnx_export():  # as torch.compile's, which ONNX tries, too, the layer's code doesn't see it
        raise RuntimeError(NO_ONNX)
    *_, backend, keep = rest
    length, batch, _, width = u.shape
    state = state_dtype(u)
    saved = _run_by(backend, u).saved_shape(u) if keep else (0,)
    return (
        u.new_empty(length, batch, width),
        u.new_empty(batch, width, dtype=state),
        u.new_empty(saved, dtype=state),
    )


@torch.library.custom_op("fairseq_sru::recurrence_backward", mutates_args=())
def recurrence_backward(
    u: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    c0: Tensor | None,
    weight_c: Tensor | None,
    dropout_mask: Tensor | None,
    padding_mask: Tensor | None,
    saved: Tensor,
    grad_h: Tensor | None,
    grad_c_n: Tensor | None,
    activation: str,
    bidirectional: bool,
    skip_scale: float,
    backend: str,
    needed: List[bool],  # noqa: UP006  # torch 2.6 reads no other here
) -> List[Tensor]:  # noqa: UP006
    options = Options(activation, bidirectional, skip_scale)
    tensors = Tensors(u, x, bias, c0, weight_c, dropout_mask)
    chosen = _run_by(backend, u)
    if not saved.numel():
        again = chosen.forward(tensors, padding_mask, options, True)[2]
        assert again is not None
        saved = again
    grads = chosen.backward(tensors, padding_mask, options, saved, grad_h, grad_c_n, tuple(needed))
    return [u.new_empty(0) if grad is None else grad.contiguous() for grad in grads]


@recurrence_backward.register_fake
def _(*tensors: Any) -> list[Tensor]:
    u, needed = tensors[0], tensors[-1]
    return [
        t.new_empty(t.shape) if t is not None and need else u.new_empty(0)
        for t, need in zip(tensors, needed, strict=False)
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, activation, bidirectional, skip_scale, backend, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.options = (activation, bidirectional, skip_scale, backend)


def _backward(ctx: Any, grad_h: Tensor | None, grad_c_n: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:6]
    # create_graph=True, of an export
    if batched(grad_h, grad_c_n) or (torch.is_grad_enabled() and not torch.compiler.is_compiling()):
        *tensors, padding_mask, _ = ctx.saved_tensors
        options = Options(*ctx.options[:3])
        return (*differentiable(Tensors(*tensors), padding_mask, options, grad_h, grad_c_n, needed), *[None] * 6)
    grads = torch.ops.fairseq_sru.recurrence_backward(*ctx.saved_tensors, grad_h, grad_c_n, *ctx.options, needed)
    return (*(grad if need else None for grad, need in zip(grads, needed, strict=True)), *[None] * 6)


recurrence.register_autograd(_backward, setup_context=_setup)
