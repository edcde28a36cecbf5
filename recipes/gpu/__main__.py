"""Run the parts of ../gpu.sh, the most important first, each within its time.

    PYTHONPATH=recipes python -m gpu [OUT] [--minutes N]

OUT is recipes/results/gpu/CARD unless given (runs/gpu/dry without a GPU). There report.json has how each part ended,
report.md has the tables, and each part has its log and its figures. Run again with the same source, it does the parts
that are not done. The exit status is 1 where a part is not done.

With FAIRSEQ_SRU_GPU_DRY=1 all parts run at small sizes without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.timing import DRY, ON_GPU, machine
from common.arguments import at_least_one
from common.files import write_text
from common.machine import ROOT, source

from . import tables

MINUTES = 10
WORTH = 5.0  # seconds; with less left nothing is begun
SOURCES = ("kernels/*", "fairseq_sru/**/*.py", "fairseq_sru/config/**/*.yaml", "recipes/**/*.py", "tests/**/*.py")
SYSTEMS = ("sru", "lstm", "fairseq-lstm", "transformer")
CUDA = "tests/recurrence/test_cuda.py"
SLOW = "(test_every_variant or test_torch_compile)"


class Part(NamedTuple):
    """Command with a time limit; ``limit`` is in seconds, within ten minutes in all."""

    name: str
    limit: float
    command: list[str]  # arguments of Python


def tests(select: str, file: str) -> list[str]:
    return ["-m", "pytest", file, "-v", "-rfEs", "-k", select]


def speed(output: Path, *options: str) -> list[str]:
    small = ["--quick", "--turns", "1"] if DRY else []
    return ["recipes/speed.py", *options, *small, "--output", str(output)]


def training(out: Path, batch: int) -> list[str]:
    """SRU, LSTM units, fairseq's lstm and a Transformer on the text that ships, in batches of as many tokens."""
    settings = [
        "cpu=auto",
        "seeds=[1]",
        "checkpoints=1",
        "curve=null",
        "speed=null",
        "slices.rounds=1",
        "train.validate-interval=1000000",
        "systems.transformer-sru=null",
        # as many parameters in heads of 48 features: torch's fused attention takes none of the recipe's 50
        *(f"systems.transformer.{side}-embed-dim=192" for side in ("encoder", "decoder")),
        *(f"systems.transformer.{side}-ffn-embed-dim=464" for side in ("encoder", "decoder")),
        *(f"systems.{system}.max-tokens={batch}" for system in SYSTEMS),
        *(f"systems.{system}.warmup-updates=0.1" for system in SYSTEMS),  # a recipe's own are for minutes on a CPU
        "generate.beam=1",
        f"out={out}",
        f"prepare.out={out.with_name('data')}",  # for both batch sizes
    ]
    if DRY:
        sides = ("encoder-layers=1", "decoder-layers=1")
        settings += [f"systems.{system}.{side}" for system in ("sru", "lstm") for side in sides]
        settings += ["budget.minutes=0.02", "slices.updates=2", "generate.max-len-b=3"]
    else:
        settings += ["budget.minutes=0.15", "slices.updates=60", "generate.max-len-b=60"]
    return ["recipes/compare.py", "recipes/configs/lohelp.yaml", *settings]


def parts(out: Path, work: Path) -> list[Part]:
    """All parts; those of training are in ``work``, others write to ``out``."""
    cpu_test = " or padding_mask_starts" if DRY else ""
    small = " and sru_tiny and amp" if DRY else ""
    todo = [
        Part("doctor", 30, ["-m", "fairseq_sru.doctor"]),
        Part("tests", 80, tests(f"(TestOnTheGpu and not ({SLOW} or sanitizer)){cpu_test}", CUDA)),
        Part("sanitizer", 60, tests("sanitizer", CUDA)),
        Part("layer", 110, speed(out / "layer.json", "layer", "--turns", "7")),
        Part("updates", 60, speed(out / "updates.json", "model", "--preset", "sru_wmt")),
        Part("model", 60, speed(out / "model.json", "model", "--turns", "3")),
        Part("training", 170, training(work / "training", 1000)),  # so far 570 s of ten minutes
        Part("precisions", 90, tests(f"learns{small}", "tests/models/test_precisions.py")),
        Part("others", 240, speed(out / "others.json", "layer", "--others", "--turns", "7")),
        Part("variants", 120, tests(f"TestOnTheGpu and {SLOW}", CUDA)),
        Part("training4096", 240, training(work / "training4096", 4096)),
    ]
    processes = 0 if DRY else max(1, min(6, (os.cpu_count() or 1) // 2))
    for part in todo:
        if part.name in ("tests", "precisions", "variants"):
            part.command.extend(["-n", str(processes)])
    return [part._replace(limit=10 * part.limit) for part in todo] if DRY else todo


def run(part: Part, out: Path, limit: float) -> dict[str, Any]:
    """Do a part; how it ended."""
    for figures in out.glob(f"{part.name}.*"):
        figures.unlink()
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if ON_GPU and part.name.startswith("training"):  # by itself it would go on in plain torch where this one can't run
        env["FAIRSEQ_SRU_BACKEND"] = "cuda"
    begun = time.monotonic()
    with (out / f"{part.name}.txt").open("w", encoding="utf-8") as file:
        command = [sys.executable, *part.command]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True)
        try:
            status = process.wait(limit)
            state, why = ("failed", f"exit status {status}") if status else ("done", "")
        except subprocess.TimeoutExpired:
            state, why = "stopped", f"after {limit:.0f} seconds"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
            process.wait()
    return {"state": state, "seconds": round(time.monotonic() - begun, 1), "why": why}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder (recipes/results/gpu/CARD)")
    parser.add_argument("--minutes", type=at_least_one, default=MINUTES, help="in all (%(default)s)")
    args = parser.parse_args(argv)
    if not (DRY or torch.cuda.is_available()):
        parser.error(
            "torch sees no CUDA GPU: python -m fairseq_sru.doctor says more; FAIRSEQ_SRU_GPU_DRY=1 does without"
        )
    now = time.time()
    end = float(os.environ.get("FAIRSEQ_SRU_GPU_BEGUN", now)) + 60 * args.minutes  # begun by gpu.sh
    if args.out:
        out = (os.environ.get("FAIRSEQ_SRU_GPU_FROM", ".") / args.out).absolute()
    elif DRY:
        out = ROOT / "runs" / "gpu" / "dry"
    else:
        out = ROOT / "recipes" / "results" / "gpu" / re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower()
    report: dict[str, Any] = {"machine": machine(), "source": source(*SOURCES), "parts": {}}
    before = tables.read(out / "report.json")
    if before and before["source"] == report["source"]:
        report["parts"] = before["parts"]
    work = out / "work" / report["source"]
    work.mkdir(parents=True, exist_ok=True)
    todo = parts(out, work)
    for part in todo:
        if report["parts"].get(part.name, {}).get("state") == "done":
            continue
        left = end - time.time()
        report["parts"][part.name] = state = {"state": "not begun", "seconds": 0.0, "why": "no time was left"}
        if left > WORTH:
            state |= run(part, out, min(part.limit * max(1.0, args.minutes / MINUTES), left))
            if (compared := work / part.name / "report.json").is_file():
                shutil.copyfile(compared, out / f"{part.name}.json")
        print(f"{part.name}: {state['state']}, {state['seconds']} s {state['why']}", flush=True)
        write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
        try:
            write_text(out / "report.md", tables.page(out))
        except Exception as error:  # the parts that are left matter more than a table
            print(f"report.md: {type(error).__name__}: {error}", file=sys.stderr)
    done = all(report["parts"][part.name]["state"] == "done" for part in todo)
    print(f"{out / 'report.md'}\n{'all is done' if done else 'run the same command to do the rest'}")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
