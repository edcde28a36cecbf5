"""Options: their fields with defaults, help and checks; their values once defaults are filled in."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Collection
from dataclasses import field
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass import FairseqDataclass
from omegaconf import OmegaConf

ALIGNED = "label_smoothed_cross_entropy_with_alignment"  # the criterion that reads the weights in training
UNLIMITED = 10**6  # as fairseq writes it for a decoder without a longest sequence


def flag(name: str) -> str:
    """Return the command line's spelling of an option."""
    return "--" + name.replace("_", "-")


def option(
    default: Any,
    help: str,
    must_be: str | Collection[str] = "",
    allowed: Callable[[Any], object] | None = None,
    follows: str | None = None,
) -> Any:
    """Return the dataclass field of an option.

    must_be says what is allowed, for the message about a value of which ``allowed`` is not true; or has all choices.
    follows: the option whose value this one has where it is None.
    """
    if follows:
        help += f" (default: {flag(follows)})"
    return field(default=default, metadata={"help": help, "check": (must_be, allowed), "follows": follows})


def count(default: int | None, help: str, least: int = 1, follows: str | None = None) -> Any:
    """Return the field of a number that is at least so much."""
    return option(default, help, f"at least {least}", lambda value: value >= least, follows)


def probability(default: float | None, help: str, follows: str | None = None) -> Any:
    """Return the field of a dropout probability."""
    return option(default, help, "in [0, 1)", lambda value: 0 <= value < 1, follows)


def numbers(value: Any) -> list[int]:
    """Return the numbers of an option that has commas between them, as ``3,4,5``; none if something else is there. They
    are read, not evaluated as fairseq does: the options of a checkpoint come from whoever wrote it."""
    words = [word.strip() for word in str(value).strip("[]()").split(",")]
    return [int(word) for word in words] if all(word.isdecimal() for word in words) else []


def attention(value: Any) -> int | str | None:
    """Return where the decoder has attention: N, in each N-th layer from the top (0: nowhere), or ``global``, after it.
    None: the value says neither."""
    text = str(value).lower()
    text = {"true": "1", "false": "0"}.get(text, text)
    return int(text) if text.isascii() and text.isdecimal() else "global" if text == "global" else None


def completed(cfg: Any, options: type[FairseqDataclass]) -> Namespace:
    """Return a model's options only, checked one by one; those that cfg lacks or leaves at None have their defaults. An
    option that fairseq should have filled in from the task or the criterion, but has not, is UNLIMITED where it is a
    longest sequence, else None.

    Raises:
        ValueError: a value is not allowed; the message names the flag, the value and what is allowed.
    """
    fields = options.__dataclass_fields__

    def value(name: str) -> Any:
        chosen = getattr(cfg, name, None)
        if chosen is None:
            follows = fields[name].metadata.get("follows")
            chosen = value(follows) if follows else fields[name].default
        if OmegaConf.is_dict(chosen):
            chosen = chosen.get("_name")
        if isinstance(chosen, str) and chosen.startswith("${"):
            return UNLIMITED if name.endswith("_positions") else None
        return chosen

    complete = {name: value(name) for name in fields}
    for name, chosen in complete.items():
        must_be, allowed = fields[name].metadata.get("check", ("", None))
        if chosen is None or not must_be or (allowed(chosen) if allowed else chosen in must_be):
            continue
        wanted = must_be if isinstance(must_be, str) else f"one of {', '.join(must_be)}"
        raise ValueError(f"{flag(name)} must be {wanted}; got {chosen!r}")
    return Namespace(**complete)


def reads_attention(criterion: str | None) -> bool:
    """True of :data:`ALIGNED`, and of a criterion derived from it."""
    return issubclass(CRITERION_REGISTRY.get(criterion, object), CRITERION_REGISTRY[ALIGNED])


def attended(cfg: Namespace) -> range:
    """Return the decoder layers that have attention, from the top."""
    every = attention(cfg.decoder_attention)
    return range(cfg.decoder_layers - 1, -1, -every) if every and isinstance(every, int) else range(0)


def coverage(cfg: Namespace, attentions: int) -> bool:
    """Return whether the top attention of so many knows what the one below has attended to."""
    value = str(cfg.decoder_coverage).lower()
    if value == "true" and attentions < 2:
        raise ValueError(f"--decoder-coverage takes two decoder layers with attention at least; got {attentions}")
    return value != "false" and attentions > 1


def cutoffs(cfg: Namespace, vocabulary: int) -> list[int] | None:
    """Return the adaptive softmax's cutoffs below the vocabulary's size, or None for a full softmax."""
    if cfg.criterion != "adaptive_loss":
        return None
    return [v for v in numbers(cfg.adaptive_softmax_cutoff) if v < vocabulary] or [vocabulary]


def tied(cfg: Namespace) -> bool:
    """Return whether the output layer is an embedding; an adaptive softmax shares none."""
    shared = cfg.share_decoder_input_output_embed or getattr(cfg, "share_all_embeddings", False)
    return shared and cfg.criterion != "adaptive_loss"  # type: ignore[no-any-return]


def must_divide(cfg: Namespace, heads: str, size: str) -> None:
    """Raise a ValueError that names the flags if the size can't be cut into as many heads."""
    if getattr(cfg, size) % getattr(cfg, heads):
        raise ValueError(f"{flag(heads)} must divide {flag(size)} {getattr(cfg, size)}; got {getattr(cfg, heads)}")


def must_match(cfg: Namespace, shared: str, one: str, other: str) -> None:
    """Raise a ValueError that names the flags if an embedding is shared by two places of different sizes."""
    a, b = getattr(cfg, one), getattr(cfg, other)
    if getattr(cfg, shared) and a != b:
        raise ValueError(f"{flag(shared)} requires {flag(one)} to match {flag(other)}; got {a} and {b}")


def vectors(side: str) -> Any:
    """Return the field of a file of pretrained embeddings."""
    return option(
        None,
        f"path to pre-trained {side} embedding",
        "a file that is there",
        lambda path: not path or os.path.isfile(path),
    )
