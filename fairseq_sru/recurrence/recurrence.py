"""The function that computes the recurrence: :func:`sru_recurrence`."""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import Recurrence
from .dispatch import check_backend, check_tensors, choose, choose_name, number
from .modes import leaves, transformed
from .operators import NO_ONNX
from .reference import Options, Tensors, reference


def sru_recurrence(
    u: Tensor,
    x: Tensor | None = None,
    bias: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    weight_c: Tensor | None = None,
    activation: str = "tanh",
    bidirectional: bool = False,
    skip_scale: float = 1.0,
    dropout_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the SRU cell over time.

    Per channel, all products elementwise::

        f_t = sigmoid(u_t[1] + v_f c_{t-1} + b_f)    forget gate
        r_t = sigmoid(u_t[2] + v_r c_{t-1} + b_r)    reset gate; 1 where u has two planes
        c_t = f_t c_{t-1} + (1 - f_t) u_t[0]         cell state
        h_t = r_t g(c_t) m + (1 - r_t) s_t           output; m = dropout_mask, s = skip (highway) term

    Without v this is the v1 cell (Lei et al. 2017, arXiv 1709.02755v1, equations 3-7). With v it is the v2 cell (Lei et
    al. 2018, "Simple Recurrent Units for Highly Parallelizable Recurrence", equations 1-4, where g is the identity).
    With two planes and g = relu it is the SSRU (Kim et al. 2019, "From Research to Production and Back"). The skip term
    is ``u[:, :, 3]`` where u has four planes, ``skip_scale * x`` where x is given, and absent otherwise.

    Args:
        u: ``(length, batch, k, D)``, the layer input times the weight matrices; k = 2 planes (candidate, forget), 3
            (and reset) or 4 (and the skip term). D = directions * hidden_size; with two directions the first half of
            the channels runs forward in time and the second half backward. Floating point: float32, float16,
            bfloat16, float64.
        x: ``(length, batch, D)``, the skip term for k = 3.
        bias: ``(2, D)``, b_f and b_r; ``(1, D)`` for k = 2; zeros if not given.
        c0: ``(batch, D)``, the cell state before the first step; zeros if not given.
        weight_c: v_f and v_r, as bias; none for the v1 cell.
        activation: g: "identity", "tanh" or "relu".
        bidirectional: see u.
        skip_scale: alpha of the v2 cell, a finite number: a factor of x.
        dropout_mask: ``(batch, D)``, variational dropout on g(c): one factor a sequence and channel.
        padding_mask: ``(length, batch)`` bool, True at padding: such a step carries the cell state and gives h = 0.
        backend: "auto" takes what the environment variable ``FAIRSEQ_SRU_BACKEND`` named at the first call, or else the
            best that can run: "cuda" on a GPU, "native" on a CPU, "torch" elsewhere. "reference" is the definition.
            torch.export and torch.jit.trace keep the word as it is, and what they made chooses where it runs;
            "reference" goes into them as operations of torch, of as many steps as the example has.

    Returns:
        h ``(length, batch, D)`` in u's dtype, and the last cell state ``(batch, D)`` (of each direction: after its last
        step) in float32, or float64 where u is float64.

    Raises:
        ValueError: an argument's value or shape is not as described; the message names it.
        TypeError: an argument is not a tensor, or not of a floating-point (padding_mask: bool) dtype; or skip_scale is
            no number.
        RuntimeError: the backend that was asked for by name can't run here; the message says why. Or this is an export
            to ONNX.
    """
    tensors = Tensors(u, x, bias, c0, weight_c, dropout_mask)
    check_tensors(tensors, padding_mask, activation, bidirectional)
    options = Options(activation, bidirectional, number("skip_scale", skip_scale))
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if transformed():
        check_backend(backend)
        return reference(tensors, padding_mask, options)
    stored = leaves()
    if stored or torch.compiler.is_compiling():
        name = check_backend(backend) if stored else choose_name(backend, u.device.type)
        if name != "reference":
            if torch.onnx.is_in_onnx_export():
                raise RuntimeError(NO_ONNX)
            named = (name, keep and not stored)
            return torch.ops.fairseq_sru.recurrence(*tensors, padding_mask, *options, *named)[:2]  # type: ignore[no-any-return]
        return reference(tensors, padding_mask, options)
    chosen = choose(backend, u.device.type)
    if chosen is None:
        return reference(tensors, padding_mask, options)
    if keep:
        return Recurrence.apply(chosen, options, padding_mask, *tensors)  # type: ignore[no-any-return]
    h, c_n, _ = chosen.forward(tensors, padding_mask, options, False)
    return h, c_n
