"""The parts of ../gpu.sh as data, the most important first."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.timing import ON_GPU

from .packages import READY

TESTS = ("tests/recurrence/test_cuda.py",)
PRECISIONS = ("tests/models/test_precisions.py",)
GRAPHS = ("tests/recipes/test_steps.py", "tests/test_docs.py")
LOHELP = "recipes/configs/lohelp.yaml"
SYSTEMS = ("sru", "lstm", "fairseq-lstm", "transformer")


class Part(NamedTuple):
    """A command with a time limit.

    Attributes:
        limit: seconds after which it is stopped, within ten minutes in all; of more it has its share.
        needs: parts without which it can't be done.
        beside: it runs beside the parts that follow, up to the one that needs it.
        shown: what it prints is a result of its own, of this name.
        made: the file that it goes on with; what was made of other source is removed.
        outcomes: a file that it makes at its end; an earlier one is removed when it begins.
        report: the report of a comparison, which is copied to ``made``.
        reads: a file that its results depend on, beside the source.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    needs: tuple[str, ...] = ()
    beside: bool = False
    shown: str | None = None
    made: str | None = None
    outcomes: str | None = None
    report: Path | None = None
    reads: Path | None = None


def tests(
    out: Path,
    name: str,
    select: str,
    limit: float,
    *options: str,
    files: tuple[str, ...] = TESTS,
) -> Part:
    """pytest on the tests that need a GPU. Outcomes go to NAME.xml; one by one to NAME.txt, as it may be stopped."""
    outcomes = f"{name}.xml"
    # a thread a process: each compares with the definition on the CPU
    python = ("env", "OMP_NUM_THREADS=1", sys.executable)
    command = (*python, "-m", "pytest", *files, "-v", "-rfEs", "-k", select, f"--junitxml={out / outcomes}", *options)
    return Part(name, command, limit, shown=f"{name}.txt", outcomes=outcomes)


def training(out: Path, of: str, name: str, batch: int, limit: float, *overrides: str) -> Part:
    """SRU, LSTM units, fairseq's lstm and a Transformer on the text that ships, in batches of as many tokens."""
    work = out / "work"
    folder = work / f"{name}-{of}"
    # One Transformer is enough. Both batch sizes take the same data.
    general = (
        "cpu=auto",
        "systems.transformer-sru=null",
        # as many parameters in heads of 48 features: torch's fused attention takes none of the recipe's 50
        *(f"systems.transformer.{side}-embed-dim=192" for side in ("encoder", "decoder")),
        *(f"systems.transformer.{side}-ffn-embed-dim=464" for side in ("encoder", "decoder")),
        f"out={folder}",
        f"prepare.out={work / 'data'}",
    )
    alike = {"max-tokens": batch, "warmup-updates": 0.1}  # a recipe's own are for minutes on a CPU
    shared = [f"systems.{system}.{flag}={value}" for system in SYSTEMS for flag, value in alike.items()]
    once = (
        "seeds=[1]",
        "slices.rounds=1",
        "checkpoints=1",
        "train.validate-interval=1000000",
        "curve=null",
        "speed=null",
    )
    options = (*general, *once, *shared, *overrides)
    # by name: what can't run there then fails, where by itself it would go on in plain torch
    python = ("env", "FAIRSEQ_SRU_BACKEND=cuda", sys.executable) if ON_GPU else ("python",)
    command = (*python, "recipes/compare.py", LOHELP, *options)
    return Part(name, command, limit, made=f"{name}.json", report=folder / "report.json")


def parts(out: Path, dry: bool, of: str) -> list[Part]:
    """The parts.

    Args:
        out: takes the results.
        dry: at small sizes and without haste, for a CPU; tests that need a GPU are collected and skipped.
        of: the card and the source, as a word: what was trained on another or with other source is not gone on with.
    """
    python, processes = ("python", "-m"), str(max(1, min(6, (os.cpu_count() or 1) // 2)))
    quick = ("--quick", "--turns", "1") if dry else ("--turns", "7")
    few = ("--quick", "--turns", "1", "--vocabulary", "500", "--pairs", "1") if dry else ("--turns", "3")
    cpu_test = " or padding_mask_starts" if dry else ""
    precisions = "learns and sru_tiny and amp" if dry else "learns"
    small = [f"systems.{name}.{flag}" for name in ("sru", "lstm") for flag in ("encoder-layers=1", "decoder-layers=1")]
    times = ("budget.minutes=0.02", "slices.updates=2", "generate.beam=1", "generate.max-len-b=3", *small)
    short = ("generate.beam=1", "generate.max-len-b=60")
    times = times if dry else ("budget.minutes=0.15", "slices.updates=60", *short)  # twelve processes start, too
    large = ("--preset", "sru_wmt", "--pairs", "160", "--updates", "--resume")  # of 4,000 target tokens
    updates = ("python", "recipes/steps.py", *large, *few, *(() if dry else ("--vocabulary", "32000", "--turns", "7")))
    speed = ("python", "recipes/speed.py", *quick, "--resume")
    rivals = (*speed, "--rivals")
    steps = ("python", "recipes/steps.py", *few, "--resume")
    beside = ("nice", "-n", "19", sys.executable, "-m", "gpu.packages")  # what is measured meanwhile goes before
    slow = "test_every_variant or test_torch_compile"
    chosen, slow = f"TestOnTheGpu and not ({slow} or sanitizer)", f"TestOnTheGpu and ({slow})"
    spread = ("-n", "0" if dry else processes)
    found = [
        Part("extensions", (*beside, "build"), 240, beside=True),
        Part("doctor", (*python, "fairseq_sru.doctor"), 30, shown="doctor.txt"),
        tests(out, "tests", f"({chosen}){cpu_test}", 80, *spread),
        tests(out, "sanitizer", "sanitizer", 60),
        Part("speed", (*speed, "--out", str(out / "speed")), 110, made="speed/speed.json"),
        Part("updates", (*updates, "--out", str(out / "updates")), 60, made="updates/steps.json"),
        Part("steps", (*steps, "--out", str(out / "steps")), 60, made="steps/steps.json"),
        training(out, of, "training", 1000, 170, *times),  # so far 570 s of gpu.sh's ten minutes
        tests(out, "precisions", precisions, 90, *spread, files=PRECISIONS),
        tests(out, "graphs", "cuda_graph", 60, files=GRAPHS),
        Part(
            "rivals",
            (*rivals, "--out", str(out / "rivals")),
            150,
            ("extensions",),
            made="rivals/speed.json",
            reads=READY,
        ),
        tests(out, "variants", slow, 120, *spread),
        training(out, of, "training4096", 4096, 240, *times),
    ]
    return [part._replace(limit=10 * part.limit) for part in found] if dry else found
