"""Which backend runs, and the checks before it: :func:`sru_recurrence`."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from .autograd import NO_ONNX, Backend, Recurrence, leaves, transformed
from .build import Unavailable
from .kernels import VALUES
from .native import Native
from .reference import ACTIVATIONS, Options, Tensors, Torch, reference

BACKEND_VARIABLE = "FAIRSEQ_SRU_BACKEND"


def _cuda() -> Backend:
    from .cuda import Cuda  # CuPy and pynvrtc are looked for then

    return Cuda()


# Each with what sets it up, the best first. None is the definition, which autograd differentiates by itself.
BACKENDS: dict[str, Callable[[], Backend] | None] = {
    "cuda": _cuda,
    "native": Native,
    "torch": Torch,
    "reference": None,
}
DEVICES = {"cuda": "cuda", "native": "cpu"}  # of those that run on one kind of device alone
BEST = {device: name for name, device in reversed(DEVICES.items())}


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
        name = check_backend(backend) if stored else _choose_name(backend, u.device.type)
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


def number(name: str, value: float) -> float:
    """As a float, whatever number it is, of numpy's, too."""
    if not isinstance(value, (float, Real)) or isinstance(value, bool):  # Real alone takes twice as long
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}")
    return float(value)


def backends() -> dict[str, str]:
    """What each backend has to say here: "ready", or why it can't run and what helps."""
    said = {}
    for name in BACKENDS:
        try:
            set_up(name)
            said[name] = "ready"
        except Unavailable as error:
            said[name] = str(error)
    return said


def check_backend(name: str, what: str = "backend") -> str:
    """Return name if it is "auto" or a backend's name.

    Args:
        what: the argument or variable that gave it.

    Raises:
        ValueError: it is neither.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{what} must be one of auto, {', '.join(BACKENDS)}; got {name!r}")
    return name


@functools.cache
def set_up(name: str) -> Backend | None:
    """The backend, set up once; None for the definition.

    Raises:
        Unavailable: it can't run here.
    """
    make = BACKENDS[name]
    return None if make is None else make()


@functools.cache  # the environment is looked up once, not at every call of every layer
def choose(name: str, device: str) -> Backend | None:
    """The backend that runs a call.

    Args:
        name: "auto" or a backend's name.
        device: the type of the tensors' device.

    Raises:
        ValueError: there is no such backend, or not for this device.
        RuntimeError: it was asked for by name and can't run here.
    """
    source = f" (named by {BACKEND_VARIABLE})" if name == "auto" else ""
    if check_backend(name) == "auto":
        name = check_backend(os.environ.get(BACKEND_VARIABLE) or "auto", BACKEND_VARIABLE)
    if name == "auto":
        return _best(device)
    if DEVICES.get(name, device) != device:
        raise ValueError(f"backend {name!r}{source} needs tensors on the device {DEVICES[name]!r}; u is on {device!r}")
    try:
        return set_up(name)
    except Unavailable as error:
        raise RuntimeError(f"backend {name!r}{source} can't run: {error}") from error


def _choose_name(name: str, device: str) -> str:
    chosen = choose(name, device)
    return "reference" if chosen is None else chosen.name


# As torch.compiler.assume_constant_result does, which also imports torch._dynamo: two seconds at every start.
_choose_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _best(device: str) -> Backend | None:
    wanted = BEST.get(device, "torch")
    try:
        return set_up(wanted)
    except Unavailable as error:
        warnings.warn(f"SRU runs in plain PyTorch on {device}, which is slower: {error}", stacklevel=4)
        return set_up("torch")


def check_tensors(tensors: Tensors, padding_mask: Tensor | None, activation: str, bidirectional: bool) -> None:
    u, x, bias, c0, weight_c, dropout_mask = tensors
    if not isinstance(u, Tensor):
        raise TypeError(f"u must be a tensor; got {type(u).__name__}")
    if u.dim() != 4 or u.size(2) not in (2, 3, 4):
        raise ValueError(f"u must have shape (length, batch, 2 to 4, D); got {tuple(u.shape)}")
    length, batch, planes, width = u.shape
    if x is not None and planes != 3:
        why = "the fourth is the skip term" if planes == 4 else "without a reset gate there is no skip term"
        raise ValueError(f"x must not be given where u has {planes} planes: {why}")
    if bidirectional and width % 2:
        raise ValueError(f"bidirectional needs an even number of channels in u; got {width}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if u.dtype not in VALUES:
        raise TypeError(f"u must be a tensor of float32, float16, bfloat16 or float64; got {u.dtype}")
    gates = 1 if planes == 2 else 2
    _fits("x", x, (length, batch, width), u)
    _fits("bias", bias, (gates, width), u)
    _fits("weight_c", weight_c, (gates, width), u)
    _fits("c0", c0, (batch, width), u)
    _fits("dropout_mask", dropout_mask, (batch, width), u)
    _fits("padding_mask", padding_mask, (length, batch), u)


def _fits(name: str, t: Tensor | None, shape: tuple[int, ...], u: Tensor) -> None:
    if t is None:
        return
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}; got {type(t).__name__}")
    if t.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, as u has {tuple(u.shape)}; got {tuple(t.shape)}")
    if t.device != u.device:
        raise ValueError(f"{name} must be on u's device, {u.device}; it is on {t.device}")
    if name == "padding_mask":
        if t.dtype != torch.bool:
            raise TypeError(f"padding_mask must be a bool tensor, True at padding; got {t.dtype}")
    elif not t.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; got {t.dtype}")
