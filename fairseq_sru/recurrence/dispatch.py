"""Choice of the backend, and checks of arguments."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from .autograd import Backend
from .build import Unavailable
from .kernels import VALUES
from .native import Native
from .reference import ACTIVATIONS, Tensors, Torch

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
DEVICES = {"cuda": "cuda", "native": "cpu"}  # of those that run on one kind of device only
BEST = {device: name for name, device in reversed(DEVICES.items())}


def number(name: str, value: float) -> float:
    """Return a number, of numpy's, too, as a float."""
    if not isinstance(value, (float, Real)) or isinstance(value, bool):  # Real only takes twice as long
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}")
    return float(value)


def backends() -> dict[str, str]:
    """Return the state of each backend: "ready", or why it can't run here and what helps."""
    states = {}
    for name in BACKENDS:
        try:
            set_up(name)
            states[name] = "ready"
        except Unavailable as error:
            states[name] = str(error)
    return states


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
    """Return the backend, set up once; None for the definition.

    Raises:
        Unavailable: it can't run here.
    """
    make = BACKENDS[name]
    return None if make is None else make()


@functools.cache  # the environment is looked up once, not at every call of every layer
def choose(name: str, device: str) -> Backend | None:
    """Return the backend that runs a call.

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


def choose_name(name: str, device: str) -> str:
    """Return the name of the backend that :func:`choose` takes."""
    chosen = choose(name, device)
    return "reference" if chosen is None else chosen.name


# As torch.compiler.assume_constant_result does, which also imports torch._dynamo: two seconds at every start.
choose_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    check_fits("x", x, (length, batch, width), u)
    check_fits("bias", bias, (gates, width), u)
    check_fits("weight_c", weight_c, (gates, width), u)
    check_fits("c0", c0, (batch, width), u)
    check_fits("dropout_mask", dropout_mask, (batch, width), u)
    check_fits("padding_mask", padding_mask, (length, batch), u)


def check_fits(name: str, t: Tensor | None, shape: tuple[int, ...], like: Tensor, of: str = "u") -> None:
    """Check an argument's type, shape and device. ``of`` names the argument ``like``, which it goes with."""
    if t is None:
        return
    if not isinstance(t, Tensor):
        hint = ", the state c only: there is no h as with nn.LSTM" if name == "c0" else ""
        raise TypeError(f"{name} must be a tensor of shape {tuple(shape)}{hint}; got {type(t).__name__}")
    if t.shape != shape:
        wanted = f"{tuple(shape)}, as {of} has {tuple(like.shape)}"
        raise ValueError(f"{name} must have shape {wanted}; got {tuple(t.shape)}")
    if t.device != like.device:
        raise ValueError(f"{name} must be on {of}'s device, {like.device}; got {t.device}")
    if name == "padding_mask":
        if t.dtype != torch.bool:
            raise TypeError(f"padding_mask must be a bool tensor, True at padding; got {t.dtype}")
    elif not t.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; got {t.dtype}")
