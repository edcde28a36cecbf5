"""Checks of arguments: one line that names the argument, what is wanted and what it is."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ..recurrence.dispatch import number
from ..recurrence.modes import recorded


def whole(name: str, value: int, least: int) -> int:
    """Return an integer, of numpy's, too, as an int."""
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


def check_input(x: Tensor, features: int, order: str = "length, batch", step: bool = False) -> None:
    """Check the shape of x; with step, ``(batch, features)`` is also allowed."""
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


def padding(lengths: Tensor | Sequence[int], x: Tensor) -> Tensor:
    """Return the padding mask ``(length, batch)`` of right-padded sequences."""
    steps, batch, _ = x.shape
    wanted = f"lengths must be {batch} integers, one a sequence"
    try:
        if not isinstance(lengths, Tensor):  # as_tensor would make torch.compile start again with each list
            lengths = torch.tensor(lengths, dtype=None if len(lengths) else torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:  # of what isn't a number
        raise TypeError(f"{wanted}; got {lengths!r}") from error
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        hint = "; a mask is given as padding_mask=" if lengths.dtype == torch.bool or lengths.dim() == 2 else ""
        raise ValueError(f"{wanted}; got {lengths.dtype} {tuple(lengths.shape)}{hint}")
    lengths = lengths.to(torch.int64)  # torch can do little with unsigned ones
    # a GPU would have to be awaited; what is traced or transformed has no numbers yet
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not (traced or recorded()) and lengths.device.type == "cpu" and batch:
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > steps:
            raise ValueError(f"lengths must be from 0 to {steps}, the length of x; got {least if least < 0 else most}")
    return torch.arange(steps, device=x.device)[:, None] >= lengths.to(x.device)
