"""Checks of what layers are given: one line that names the argument, what is wanted and what was given."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..recurrence.dispatch import number
from ..recurrence.modes import recorded


def whole(name: str, value: int, least: int) -> int:
    """As an int, whatever integer it is, of numpy's, too."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    return number


def positive(name: str, value: int) -> int:
    return whole(name, value, 1)


def probability(name: str, value: float) -> float:
    p = number(name, value)
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name} must be a probability in [0, 1); got {value!r}")
    return p


def floating(dtype: torch.dtype | None) -> torch.dtype | None:
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise TypeError(f"dtype must be torch.float32, float16, bfloat16 or float64; got {dtype!r}")
    return dtype


def check_input(x: Tensor, features: int, order: str = "length, batch", step: bool = False) -> None:
    """step: ``(batch, features)`` is also allowed."""
    if isinstance(x, Tensor) and x.shape[-1:] == (features,) and (x.dim() == 3 or (step and x.dim() == 2)):
        return
    wanted = f"({order}, {features})" + f" or (batch, {features})" * step
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor of shape {wanted}; got {type(x).__name__}")
    hint = ""
    if x.dim() == 2 and not step:  # one sequence to nn.LSTM, one step to nn.LSTMCell
        first, second = ("x[:, None]", "x[None]") if order.startswith("batch") else ("x[None]", "x[:, None]")
        hint = f": {first} is a single step, {second} a single sequence"
    raise ValueError(f"x must have shape {wanted}; got {tuple(x.shape)}{hint}")


def check_c0(c0: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if not isinstance(c0, Tensor):
        raise TypeError(
            f"c0 must be a tensor of shape {shape}, the state c alone (there is no h as with nn.LSTM); "
            f"got {type(c0).__name__}"
        )
    if c0.shape != shape:
        raise ValueError(f"c0 must have shape {shape}; got {tuple(c0.shape)}")
    if c0.device != x.device:
        raise ValueError(f"c0 must be on x's device, {x.device}; got {c0.device}")
    if not c0.is_floating_point():
        raise TypeError(f"c0 must be a floating-point tensor; got {c0.dtype}")


def check_padding_mask(padding_mask: Tensor, x: Tensor) -> None:
    if not isinstance(padding_mask, Tensor) or padding_mask.dtype != torch.bool:
        what = padding_mask.dtype if isinstance(padding_mask, Tensor) else type(padding_mask).__name__
        raise TypeError(f"padding_mask must be a bool tensor, True at padding; got {what}")
    if padding_mask.shape != x.shape[:-1]:
        raise ValueError(
            f"padding_mask must have shape {tuple(x.shape[:-1])}, as x has {tuple(x.shape)}; "
            f"got {tuple(padding_mask.shape)}"
        )
    if padding_mask.device != x.device:
        raise ValueError(f"padding_mask must be on x's device, {x.device}; got {padding_mask.device}")


def padding(lengths: Tensor | Sequence[int], x: Tensor) -> Tensor:
    """The padding mask ``(length, batch)`` of right-padded sequences."""
    steps, batch, _ = x.shape
    wanted = f"lengths must be {batch} integers, one a sequence"
    try:
        if not isinstance(lengths, Tensor):  # as_tensor would make torch.compile start anew with each list
            lengths = torch.tensor(lengths, dtype=None if len(lengths) else torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:  # of what isn't a number
        raise TypeError(f"{wanted}; got {lengths!r}") from error
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        hint = "; a mask is given as padding_mask=" if lengths.dtype == torch.bool or lengths.dim() == 2 else ""
        raise ValueError(f"{wanted}; got {lengths.dtype} {tuple(lengths.shape)}{hint}")
    lengths = lengths.to(torch.int64)  # torch can do little with unsigned ones
    # a GPU would have to be awaited; what is traced or transformed has no numbers yet
    seen = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not (seen or recorded()) and lengths.device.type == "cpu" and batch:
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > steps:
            raise ValueError(f"lengths must be from 0 to {steps}, the length of x; got {least if least < 0 else most}")
    return torch.arange(steps, device=x.device)[:, None] >= lengths.to(x.device)
