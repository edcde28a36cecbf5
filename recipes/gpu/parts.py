"""The parts of ../gpu.sh as data, the most important first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .packages import FAIRSEQ, ROOT

TESTS = "tests/recurrence/test_cuda.py"
LOHELP = "recipes/configs/lohelp.yaml"


class Part(NamedTuple):
    """A command with a time limit.

    Attributes:
        limit: seconds after which it is stopped.
        needs: parts without which it can't be done.
        beside: it runs beside the parts that follow, up to the one that needs it.
        shown: what it prints is a result of its own, of this name.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    needs: tuple[str, ...] = ()
    beside: bool = False
    shown: str | None = None


def tests(out: Path, name: str, select: str, *options: str) -> tuple[str, ...]:
    """pytest on the tests that need a GPU; their outcomes go to NAME.xml."""
    return ("python", "-m", "pytest", TESTS, "-q", "-rfE", "-k", select, f"--junitxml={out / name}.xml", *options)


def training(out: Path, name: str, *overrides: str) -> tuple[str, ...]:
    """SRU, LSTM units, fairseq's lstm and a Transformer on the text that ships."""
    work = out / "work"
    # One Transformer is enough. Both batch sizes take the same data.
    general = ("cpu=auto", "systems.transformer-sru=null", f"out={work / name}", f"prepare.out={work / 'data'}")
    options = (*general, "slices.rounds=1", *overrides, "--output", str(out / f"{name}.json"))
    return ("python", "recipes/equal_time.py", LOHELP, *options)


def parts(out: Path, dry: bool) -> list[Part]:
    """dry: at small sizes and without haste, for a CPU; tests that need a GPU are collected and skipped."""
    python, processes = ("python", "-m"), str(max(1, min(6, (os.cpu_count() or 1) // 2)))
    quick = ("--quick", "--turns", "1") if dry else ("--turns", "7")
    few = ("--quick", "--turns", "1", "--vocabulary", "500", "--pairs", "1") if dry else ("--turns", "3")
    cpu_test = " or padding_mask_starts" if dry else ""
    small = [f"systems.{name}.{flag}" for name in ("sru", "lstm") for flag in ("encoder-layers=1", "decoder-layers=1")]
    times = ("budget.minutes=0.02", "slices.updates=2", "generate.beam=1", "generate.max-len-b=3", *small)
    times = times if dry else ("budget.minutes=0.25", "slices.updates=50")
    large = ("--preset", "sru_wmt", "--pairs", "160", "--updates")  # of 4,000 target tokens
    updates = ("python", "recipes/steps.py", *large, *few)
    extensions = (*python, "gpu.packages", "build")
    chosen, slow = "TestOnTheGpu and not test_every_variant and not sanitizer", "TestOnTheGpu and test_every_variant"
    spread = ("-n", "0" if dry else processes)
    found = [
        Part("fairseq", (*python, "gpu.packages", "fairseq", str(ROOT / "wheels"), str(FAIRSEQ)), 240, beside=True),
        Part("extensions", extensions, 240, beside=True),
        Part("doctor", (*python, "fairseq_sru.doctor"), 45, shown="doctor.txt"),
        Part("tests", tests(out, "tests", f"({chosen}){cpu_test}", *spread), 110),
        Part("sanitizer", tests(out, "sanitizer", "sanitizer", "-rs"), 60),
        Part("speed", ("python", "recipes/speed.py", *quick, "--out", str(out / "speed")), 170, ("extensions",)),
        Part("updates", (*updates, "--out", str(out / "updates")), 70, ("fairseq",)),
        Part("steps", ("python", "recipes/steps.py", *few, "--out", str(out / "steps")), 80, ("fairseq",)),
        Part("training", training(out, "training", *times), 240, ("fairseq",)),
        Part("training2000", training(out, "training2000", "train.max-tokens=2000", *times), 240, ("fairseq",)),
        Part("variants", tests(out, "variants", slow, *spread), 240),
    ]
    return [part._replace(limit=10 * part.limit) for part in found] if dry else found
