"""What options are once their defaults are filled in, and their checks, which name the flag and what is allowed."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass import FairseqDataclass
from omegaconf import OmegaConf

ALIGNED = "label_smoothed_cross_entropy_with_alignment"  # the criterion that reads the weights in training
UNLIMITED = 10**6  # as fairseq writes it for a decoder without a longest sequence

# options left at None that take another one's value
FOLLOWS = {
    "encoder_hidden_size": "encoder_embed_dim",
    "decoder_hidden_size": "decoder_embed_dim",
    "decoder_out_embed_dim": "decoder_embed_dim",
    **{f"{side}_dropout_{end}": "dropout" for side in ("encoder", "decoder") for end in ("in", "out")},
}


def completed(cfg: Any, options: type[FairseqDataclass]) -> Namespace:
    """A model's options alone; those that cfg lacks or leaves at None have the value that their help text names. An
    option that fairseq should have filled in from the task or the criterion, but has not, is UNLIMITED where it is a
    longest sequence, else None.
    """

    def value(name: str) -> Any:
        given = getattr(cfg, name, None)
        if given is None:
            given = value(FOLLOWS[name]) if name in FOLLOWS else options.__dataclass_fields__[name].default
        if OmegaConf.is_dict(given):
            given = given.get("_name")
        if isinstance(given, str) and given.startswith("${"):
            return UNLIMITED if name.endswith("_positions") else None
        return given

    return Namespace(**{name: value(name) for name in options.__dataclass_fields__})


def flag(name: str) -> str:
    """The command line's spelling of an option."""
    return "--" + name.replace("_", "-")


def reads_attention(criterion: str | None) -> bool:
    """Whether a criterion is :data:`ALIGNED`, or derived from it."""
    return issubclass(CRITERION_REGISTRY.get(criterion, object), CRITERION_REGISTRY[ALIGNED])


def attention(cfg: Namespace) -> int | str:
    """Where the decoder has attention: N, in each N-th layer from the top (0: nowhere), or ``global``, after it."""
    value = str(cfg.decoder_attention)
    found = {"true": "1", "false": "0"}.get(value.lower(), value.lower())
    if found != "global" and not (found.isascii() and found.isdecimal()):
        raise ValueError(f"--decoder-attention must be True, False, global or a number of layers; got {value!r}")
    return found if found == "global" else int(found)


def attended(cfg: Namespace) -> range:
    """The decoder layers that have attention, from the top."""
    every = attention(cfg)
    return range(cfg.decoder_layers - 1, -1, -every) if every and isinstance(every, int) else range(0)


def coverage(cfg: Namespace, attentions: int) -> bool:
    """Whether the top attention of so many knows what the one below has attended to."""
    value = str(cfg.decoder_coverage)
    if value.lower() not in ("true", "false", "auto"):
        raise ValueError(f"--decoder-coverage must be True, False or auto; got {value!r}")
    if value.lower() == "true" and attentions < 2:
        raise ValueError(f"--decoder-coverage takes two decoder layers with attention at least; got {attentions}")
    return value.lower() != "false" and attentions > 1


def cutoffs(cfg: Namespace, vocabulary: int | None = None) -> list[int] | None:
    """The adaptive softmax's cutoffs below the vocabulary's size, or None for a full softmax."""
    if cfg.criterion != "adaptive_loss":
        return None
    text = str(cfg.adaptive_softmax_cutoff)
    words = text.strip("[]()").split(",")
    # read as numbers, not evaluated as fairseq does: the options of a checkpoint come from whoever wrote it
    values = [int(word) for word in words if word.strip().isdecimal()]
    if len(values) < len(words) or sorted(set(values)) != values or values[0] < 2:
        raise ValueError(
            f"--adaptive-softmax-cutoff must be increasing numbers of words from 2 on, as 2000,10000; got {text!r}"
        )
    return values if vocabulary is None else [v for v in values if v < vocabulary] or [vocabulary]


def at_least_one(cfg: Namespace, names: Iterable[str]) -> None:
    """Raise a ValueError that names the flag if a size is below 1."""
    for name in names:
        if getattr(cfg, name) < 1:
            raise ValueError(f"{flag(name)} must be at least 1; got {getattr(cfg, name)}")


def numbers(cfg: Namespace, name: str, what: str, allowed: Callable[[int], object]) -> list[int]:
    """The numbers of an option that has commas between them, as ``3,4,5``.

    Raises:
        ValueError: one is none, or not allowed; the message names the flag and ``what`` they must be.
    """
    words = str(getattr(cfg, name)).split(",")
    if not all(word.strip().isdecimal() and allowed(int(word)) for word in words):
        raise ValueError(f"{flag(name)} must be {what}; got {getattr(cfg, name)!r}")
    return [int(word) for word in words]


def one_of(cfg: Namespace, name: str, allowed: Iterable[str]) -> None:
    """Raise a ValueError that names the flag if a choice is not one of those."""
    if getattr(cfg, name) not in allowed:
        raise ValueError(f"{flag(name)} must be one of {', '.join(allowed)}; got {getattr(cfg, name)!r}")


def probabilities(cfg: Namespace, names: Iterable[str]) -> None:
    """Raise a ValueError that names the flag if a probability is outside [0, 1)."""
    for name in names:
        if not 0.0 <= getattr(cfg, name) < 1.0:
            raise ValueError(f"{flag(name)} must be in [0, 1); got {getattr(cfg, name)}")


def must_divide(cfg: Namespace, heads: str, size: str) -> None:
    """Raise a ValueError that names the flags if the size can't be cut into as many heads."""
    at_least_one(cfg, [heads])
    if getattr(cfg, size) % getattr(cfg, heads):
        raise ValueError(f"{flag(heads)} must divide {flag(size)} {getattr(cfg, size)}; got {getattr(cfg, heads)}")


def tied(cfg: Namespace) -> bool:
    """Whether the output layer is an embedding; an adaptive softmax shares none."""
    return cutoffs(cfg) is None and (
        cfg.share_decoder_input_output_embed or getattr(cfg, "share_all_embeddings", False)
    )


def must_match(cfg: Namespace, shared: str, one: str, other: str) -> None:
    """Raise a ValueError that names the flags if an embedding is shared by two places of different sizes."""
    a, b = getattr(cfg, one), getattr(cfg, other)
    if getattr(cfg, shared) and a != b:
        raise ValueError(f"{flag(shared)} requires {flag(one)} to match {flag(other)}; got {a} and {b}")


def is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False


def embedding_file(cfg: Namespace, side: str) -> None:
    """Raise a ValueError if a file of embeddings isn't there or not of fairseq's format and the model's size: its first
    line is ``words dimensions``, each other one a word and its numbers."""
    path, dim = getattr(cfg, f"{side}_embed_path"), getattr(cfg, f"{side}_embed_dim")
    if not path:
        return
    name = flag(f"{side}_embed_path")
    if not os.path.isfile(path):
        raise ValueError(f"{name}: no such file: {path}")
    try:
        with Path(path).open(encoding="utf-8") as lines:
            header = next(lines, "").split()
            first = next(lines, "").rstrip().split(" ")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {path} is not UTF-8 text") from None
    if len(header) != 2 or not all(h.isdigit() for h in header):
        raise ValueError(f"{name}: {path} must begin with a line `words dimensions`")
    size = next((i for i, field in enumerate(reversed(first[1:])) if not is_number(field)), len(first) - 1)
    if size != dim:
        raise ValueError(f"{name}: {path} holds vectors of {size} numbers, {flag(f'{side}_embed_dim')} is {dim}")
