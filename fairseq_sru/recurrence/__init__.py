"""The elementwise SRU recurrence behind one function, :func:`sru_recurrence`.

Everything an SRU layer does beside its matrix product happens here. The function checks its arguments, picks a backend
and hands over; a backend is one function with the signature of :func:`fairseq_sru.recurrence.reference.reference`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reference import ACTIVATIONS, manual, reference

__all__ = ["ACTIVATIONS", "BACKENDS", "sru_recurrence"]

BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"reference": reference, "torch": manual}


def sru_recurrence(
    u: Tensor,
    x: Tensor | None = None,
    bias: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    activation: str = "tanh",
    bidirectional: bool = False,
    dropout_mask: Tensor | None = None,
    padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the v1 SRU cell (Lei et al. 2017, arXiv 1709.02755v1, equations 3-7) over time.

    Per channel, all products elementwise::

        f_t = sigmoid(u_t[1] + b_f)                  forget gate
        r_t = sigmoid(u_t[2] + b_r)                  reset gate
        c_t = f_t c_{t-1} + (1 - f_t) u_t[0]         cell state
        h_t = r_t g(c_t) m + (1 - r_t) s_t           output; m = dropout_mask, s = skip (highway) term

    The skip term is ``u[:, :, 3]`` where u has four planes, ``x`` where it is given, and absent otherwise.

    Args:
        u: ``(length, batch, k, D)``, the layer input times the weight matrices; k = 3 planes (candidate, forget, reset)
            or 4 (and the skip term). D = directions * hidden_size; with two directions the first half of the channels
            runs forward in time and the second half backward. Floating point, any dtype.
        x: ``(length, batch, D)``, the skip term for k = 3.
        bias: ``(2, D)``, b_f and b_r; zeros if not given.
        c0: ``(batch, D)``, the cell state before the first step; zeros if not given.
        activation: g: "identity", "tanh" or "relu".
        bidirectional: see u.
        dropout_mask: ``(batch, D)``, variational dropout on g(c): one factor a sequence and channel.
        padding_mask: ``(length, batch)`` bool, True at padding: such a step carries the cell state and gives h = 0.
        backend: "auto", "torch" (plain PyTorch with its backward written by hand) or "reference" (the definition).

    Returns:
        h ``(length, batch, D)`` in u's dtype, and the last cell state ``(batch, D)`` (of each direction: after its last
        step) in float32, or float64 where u is float64.

    Raises:
        ValueError: an argument's value or shape is not as described; the message names it.
        TypeError: an argument is not of a floating-point (padding_mask: bool) dtype.
    """
    _check(u, x, bias, c0, activation, bidirectional, dropout_mask, padding_mask)
    if backend == "auto":
        backend = "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}; got {backend!r}")
    return BACKENDS[backend](
        u,
        x,
        bias,
        c0,
        activation=activation,
        bidirectional=bidirectional,
        dropout_mask=dropout_mask,
        padding_mask=padding_mask,
    )


def _check(
    u: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    c0: Tensor | None,
    activation: str,
    bidirectional: bool,
    dropout_mask: Tensor | None,
    padding_mask: Tensor | None,
) -> None:
    if u.dim() != 4 or u.size(2) not in (3, 4):
        raise ValueError(f"u must have shape (length, batch, 3 or 4, D); got {tuple(u.shape)}")
    length, batch, planes, width = u.shape
    if planes == 4 and x is not None:
        raise ValueError("x must not be given where u has 4 planes: the fourth is the skip term")
    if bidirectional and width % 2:
        raise ValueError(f"bidirectional needs an even number of channels in u; got {width}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("x", x, (length, batch, width)),
        ("bias", bias, (2, width)),
        ("c0", c0, (batch, width)),
        ("dropout_mask", dropout_mask, (batch, width)),
        ("padding_mask", padding_mask, (length, batch)),
    ]
    for name, tensor, shape in [("u", u, tuple(u.shape)), *expected]:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, as u has {tuple(u.shape)}; got {tuple(tensor.shape)}")
        if name == "padding_mask":
            if tensor.dtype != torch.bool:
                raise TypeError(f"padding_mask must be a bool tensor, True at padding; got {tensor.dtype}")
        elif not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor; got {tensor.dtype}")
