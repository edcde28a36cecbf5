"""Run the parts of ../gpu.sh, the most important first, each within its time.

    PYTHONPATH=recipes python -m gpu [OUT] [--minutes N]

OUT is recipes/results/gpu/CARD unless given (runs/gpu/dry without a GPU). There report.json has how each part ended,
report.md has the tables, and each part has its own files; OUT/work has the logs. Run again with the same source on the
same card, it does the parts that are not done. The exit status is 1 where a part is not done.

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


class Part(NamedTuple):
    """Command with a time limit.

    Attributes:
        name: of the part, and of its log.
        command: arguments of Python.
        limit: seconds, within ten minutes in all; of more it has its share.
        result: a file that the command writes and OUT gets, as NAME and this file's suffix.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    result: Path | None = None


def tests(name: str, select: str, limit: float, *files: str, processes: int = 0) -> Part:
    """Tests that need a GPU, one outcome a line in the log."""
    return Part(name, ("-m", "pytest", *files, "-v", "-rfEs", "-k", select, "-n", str(processes)), limit)


def speed(name: str, limit: float, *options: str, work: Path, turns: int = 3) -> Part:
    output = work / f"{name}.json"
    small = ("--quick", "--turns", "1") if DRY else ("--turns", str(turns))
    return Part(name, ("recipes/speed.py", *options, *small, "--output", str(output)), limit, output)


def training(name: str, batch: int, limit: float, work: Path) -> Part:
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
        f"out={work / name}",
        f"prepare.out={work / 'data'}",  # for both batch sizes
    ]
    if DRY:
        sides = ("encoder-layers=1", "decoder-layers=1")
        settings += [f"systems.{system}.{side}" for system in ("sru", "lstm") for side in sides]
        settings += ["budget.minutes=0.02", "slices.updates=2", "generate.max-len-b=3"]
    else:
        settings += ["budget.minutes=0.15", "slices.updates=60", "generate.max-len-b=60"]
    command = ("recipes/compare.py", "recipes/configs/lohelp.yaml", *settings)
    return Part(name, command, limit, work / name / "report.json")


def translation(work: Path) -> Part:
    """Translation, by the CPU, with the models of :func:`training`."""
    runs = {"sru": "sru-1", "lstm": "fairseq-lstm-1", "transformer": "transformer-1"}
    checkpoints = work / "training" / "checkpoints"
    models = [word for flag, run in runs.items() for word in (f"--{flag}", f"{checkpoints / run}/checkpoint_last.pt")]
    output = work / "translate.json"
    words = ("--data", str(work / "data"), *models, "--turns", "1", "--sentences", "2" if DRY else "50")
    return Part("translate", ("recipes/speed.py", "translate", *words, "--output", str(output)), 120, output)


def parts(work: Path) -> list[Part]:
    cuda, slow = "tests/recurrence/test_cuda.py", "(test_every_variant or test_torch_compile)"
    processes = 0 if DRY else max(1, min(6, (os.cpu_count() or 1) // 2))
    cpu_test = " or padding_mask_starts" if DRY else ""
    small = " and sru_tiny and amp" if DRY else ""
    precisions, graphs = "tests/models/test_precisions.py", "tests/recipes/test_speed.py"
    chosen = f"(TestOnTheGpu and not ({slow} or sanitizer)){cpu_test}"
    todo = [
        Part("doctor", ("-m", "fairseq_sru.doctor"), 30),
        tests("tests", chosen, 80, cuda, processes=processes),
        tests("sanitizer", "sanitizer", 60, cuda),
        speed("layer", 110, "layer", work=work, turns=7),
        speed("updates", 60, "model", "--preset", "sru_wmt", work=work, turns=7),
        speed("model", 60, "model", work=work),
        training("training", 1000, 170, work),  # so far 570 s of ten minutes
        tests("precisions", f"learns{small}", 90, precisions, processes=processes),
        tests("graphs", "cuda_graph", 60, graphs),
        speed("others", 240, "layer", "--others", work=work, turns=7),
        tests("variants", f"TestOnTheGpu and {slow}", 120, cuda, processes=processes),
        training("training4096", 4096, 240, work),
        translation(work),
    ]
    return [part._replace(limit=10 * part.limit) for part in todo] if DRY else todo


def run(part: Part, out: Path, limit: float) -> dict[str, Any]:
    """Do a part; how it ended."""
    log = out / "work" / f"{part.name}.txt"
    if part.result and part.result.parent == out / "work":  # others go on with theirs
        part.result.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if ON_GPU and part.name.startswith("training"):  # by itself it would go on in plain torch where this one can't run
        env["FAIRSEQ_SRU_BACKEND"] = "cuda"
    begun = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
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
    if part.result is None:
        shutil.copyfile(log, out / log.name)
    elif part.result.is_file():
        for result in part.result, part.result.with_suffix(".svg"):
            if result.is_file():
                shutil.copyfile(result, out / f"{part.name}{result.suffix}")
    return {"state": state, "seconds": round(time.monotonic() - begun, 1), "why": why}


def card() -> str:
    """The GPU's name as that of a folder."""
    return "dry" if DRY else re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()


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
    results = ROOT / "runs" / "gpu" if DRY else ROOT / "recipes" / "results" / "gpu"
    out = (os.environ.get("FAIRSEQ_SRU_GPU_FROM", ".") / args.out if args.out else results / card()).absolute()
    report: dict[str, Any] = {"machine": machine(), "source": source(*SOURCES), "dry": DRY, "parts": {}}
    if (path := out / "report.json").exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["machine"]["device"] != (device := report["machine"]["device"]):
            parser.error(f"argument OUT: {out} is of {before['machine']['device']}, this is {device}")
        if before["source"] == report["source"]:
            report["parts"] = before["parts"]
    work = out / "work" / report["source"]
    work.mkdir(parents=True, exist_ok=True)
    todo = parts(work)
    for part in todo:
        if report["parts"].get(part.name, {}).get("state") == "done":
            continue
        left = end - time.time()
        report["parts"][part.name] = state = {"state": "not begun", "seconds": 0.0, "why": "no time was left"}
        if left > WORTH:
            state |= run(part, out, min(part.limit * max(1.0, args.minutes / MINUTES), left))
        print(f"{part.name}: {state['state']}, {state['seconds']} s {state['why']}", flush=True)
        write_text(path, json.dumps(report, indent=1) + "\n")
        try:
            write_text(out / "report.md", tables.page(out))
        except Exception as error:  # the parts that are left matter more than a table
            print(f"report.md: {type(error).__name__}: {error}", file=sys.stderr)
    done = all(report["parts"][part.name]["state"] == "done" for part in todo)
    print(f"\n{tables.ended(out)}\n{out / 'report.md'}")
    print("all is done" if done else "run the same command to do the rest")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
