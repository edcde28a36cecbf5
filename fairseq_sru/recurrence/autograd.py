"""How a backend's forward and backward become one differentiable function, in eager mode and as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, List, Protocol  # noqa: UP035

import torch
from torch import Tensor

from .reference import Options, Tensors, as_needed, reference, state_dtype


class Backend(Protocol):
    """What computes the recurrence."""

    name: str

    def saved_shape(self, u: Tensor) -> tuple[int, ...]:
        """Of what forward saves, which has the state's dtype."""
        ...

    def forward(
        self, tensors: Tensors, padding_mask: Tensor | None, options: Options, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """h, c_n and, with keep, what backward wants to have saved."""
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
        """The gradients of tensors, None where not needed."""
        ...


def transformed() -> bool:
    """Whether torch.func or forward-mode derivatives are at work, which know torch's own operations alone."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def recorded() -> bool:
    """Whether what torch computes with is recorded or faked, and has no numbers: by make_fx, fake tensors."""
    kinds = torch._C._TorchDispatchModeKey
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL)
    )


_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has none


def leaves() -> bool:
    """Whether what is computed is stored, to run later and elsewhere: by torch.jit.trace, torch.export, make_fx."""
    return torch.jit.is_tracing() or (_is_exporting() if torch.compiler.is_compiling() else recorded())


def eager() -> bool:
    """Whether torch computes now, with numbers, what it is told: nothing is compiled, stored or transformed."""
    return not (torch.compiler.is_compiling() or leaves() or transformed())


def batched(*grads: Tensor | None) -> bool:
    """Whether gradients come many at once, by vmap."""
    known = (torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor)
    return any(is_batched(grad) for grad in grads if grad is not None for is_batched in known)


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
    """The tensors, with those of the state's dtype in place of bias, c0, weight_c and dropout_mask where there are."""
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
    """First derivatives through the definition; where gradients are on, they can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: u was computed from x, and the path from u to x is the outer graph's to add.
        aliases: Any = Tensors(*(None if t is None else t.view_as(t) for t in tensors))  # type: ignore[arg-type]
        h, c_n = reference(aliases, padding_mask, options)
    wanted = [t for t, need in zip(aliases, needed, strict=True) if need]
    given = [(out, grad) for out, grad in ((h, grad_h), (c_n, grad_c_n)) if grad is not None and out.requires_grad]
    if not given:  # c_n depends on no x, and nothing on an input of no steps
        return (None,) * len(needed)
    outputs, weights = [out for out, _ in given], [grad for _, grad in given]
    grads = iter(torch.autograd.grad(outputs, wanted, weights, create_graph=again, allow_unused=True))
    return tuple(next(grads) if need else None for need in needed)


# ---------------------------------------------------------------- torch.compile, torch.export, torch.jit.trace

# Eager mode goes without operators: one costs 5 to 50 microseconds a call more. An empty tensor stands for none.
# keep: save what the backward pass needs; only where the backend is named, since the shape is its own.


NO_ONNX = "export to ONNX is not supported: ONNX has no operator for the SRU recurrence; torch.export works"


def _run_by(backend: str, u: Tensor) -> Backend:
    from .dispatch import choose, set_up  # which knows all backends, and this file

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
    from .dispatch import check_tensors

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
