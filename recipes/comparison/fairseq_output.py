"""Readers of fairseq's output: translations of fairseq-generate, checkpoints of fairseq-train."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from common.machine import parameters

from fairseq_sru.models.checkpoints import fairseq_checkpoints


def hypotheses(generated: str, kind: str = "H") -> list[str]:
    """The best translation of each sentence, in the order of the data set, from what fairseq-generate printed.

    ``kind`` names its lines: "H" are without subwords, "D" besides without tokenisation.

    Raises:
        ValueError: a sentence is missing or there twice.
    """
    printed = re.findall(rf"^{kind}-(\d+)\t[^\t\n]*\t?(.*)$", generated, re.MULTILINE)
    lines = {int(number): text for number, text in printed}
    if len(lines) != len(printed) or sorted(lines) != list(range(len(lines))):
        raise ValueError(
            f"{len(printed)} translations of {len(lines)} sentences, the last of which is {max(lines, default=0)}"
        )
    return [lines[i] for i in range(len(lines))]


def gpu_memory(printed: str) -> int | None:
    """Peak of a GPU's memory in bytes, from the log of fairseq-train; None without a GPU."""
    free = [float(gigabytes) for gigabytes in re.findall(r'"(?:train_)?gb_free": "([\d.]+)"', printed)]
    total = re.search(r"total memory = ([\d.]+) GB", printed)
    return int((float(total[1]) - min(free)) * 2**30) if free and total else None


class Trained(NamedTuple):
    """Facts of a run up to a checkpoint."""

    parameters: int  # tied weights count once, copies that fairseq keeps not at all
    updates: int
    seconds: float  # in training steps
    clock: float  # seconds of the training process, with validation and saving
    tokens: int  # target tokens
    loss: float | None  # on the validation set, by fairseq's --best-checkpoint-metric
    at_epoch_end: bool


def trained(checkpoint: Path) -> Trained:
    """Read a checkpoint that fairseq-train wrote.

    fairseq counts seconds and tokens from 0 again when it goes on from a checkpoint of an epoch's end.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with fairseq_checkpoints():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{checkpoint} is damaged: put a whole one in its place ({error})") from None
    extra = state["extra_state"]
    meters = {name: meter for _, name, _, meter in extra["metrics"]["default"]}
    return Trained(
        parameters=parameters(state["model"]),
        updates=state["optimizer_history"][-1]["num_updates"],
        seconds=float(meters["train_wall"]["sum"]),
        clock=float(extra["previous_training_time"]),  # a tensor where several processes trained
        tokens=int(meters["wpb"]["sum"]),
        loss=extra["val_loss"],
        at_epoch_end=extra["train_iterator"]["iterations_in_epoch"] == 0,
    )


def carry(now: Trained, carried: list[list[float]]) -> Trained:
    """Seconds and tokens from the run's begin. ``carried`` has updates, seconds and tokens at each place where fairseq
    counted from 0 again."""
    _, seconds, tokens = max((c for c in carried if c[0] < now.updates), default=(0, 0.0, 0))
    return now._replace(seconds=now.seconds + seconds, tokens=int(now.tokens + tokens))


def complete(checkpoint: Path, updates: int) -> Trained:
    """Facts of a run's last checkpoint.

    Raises:
        ValueError: it has made fewer updates.
    """
    now = trained(checkpoint)
    if now.updates < updates:
        raise ValueError(f"stopped after {now.updates} of {updates} updates (--max-epoch, --patience, ...?)")
    return now
