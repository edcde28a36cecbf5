"""Run the parts of ../gpu.sh, each within its time, and write what they found after each.

    PYTHONPATH=recipes python -m gpu [OUT] [--minutes N]

OUT is recipes/results/gpu/CARD unless given (runs/gpu/dry without a GPU). There report.json says how each part ended,
report.md has the tables, and the other files are the parts' own. OUT/work has logs and all that is not a result. Run
again, what is done and made of the same source on the same machine is kept, and the rest done again. The exit status is
1 where a part is not done.

With FAIRSEQ_SRU_GPU_DRY=1 all parts run at small sizes without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from benchmarks import layer
from benchmarks.timing import DRY, machine
from common.arguments import at_least_one
from common.files import write_text
from common.machine import files, source
from comparison.processes import stop_all
from comparison.stages import Late, StageError, Stages, remove, working_in

from . import tables
from .packages import BUILDS, ROOT, unlock
from .parts import GRAPHS, PRECISIONS, Part, parts

MINUTES = 10
END = 15  # seconds that it takes
WORTH = 5.0  # seconds; with less left nothing is begun
SOURCES = (
    *("kernels/*", "fairseq_sru/**/*.py", "fairseq_sru/config/**/*.yaml", "tests/conftest.py", "tests/support/*.py"),
    *("tests/recurrence/*.py", *PRECISIONS, *GRAPHS),
    *("recipes/common/*.py", "recipes/benchmarks/*.py", "recipes/gpu/packages.py", "recipes/speed.py"),
)
MODELS = ("recipes/steps.py", "recipes/compare.py", "recipes/comparison/*.py", "recipes/configs/lohelp.yaml")


class Day:
    """The parts, run in their order."""

    def __init__(self, out: Path, minutes: int) -> None:
        self.out, self.work = out, out / "work"
        now = time.time()
        taken = now - float(os.environ.get("FAIRSEQ_SRU_GPU_BEGUN", now))  # by gpu.sh
        self.until = time.monotonic() + 60 * minutes - END - taken
        self.longer = max(1.0, minutes / MINUTES)  # than a part's limit, which is for ten minutes
        self.stages = Stages(self.work / "stamps" / card())
        here = {**machine(), "date": "", "sanitizer": shutil.which("compute-sanitizer")}
        write_text(self.work / "machine.json", json.dumps(here))
        self.inputs = [self.work / "machine.json", *files(*SOURCES, *MODELS)]
        self.states: dict[str, dict[str, Any]] = {}

    def run(self, part: Part) -> dict[str, Any]:
        """Do a part; how it ended."""
        log = self.work / "logs" / f"{part.name}.log"
        inputs = [*self.inputs, *([part.reads] if part.reads else [])]
        begun = time.monotonic()
        left = self.until - begun
        outputs = [self.out / name for name in (part.made, part.outcomes) if name]
        if left < WORTH:
            known = self.stages.stamp(part.name)
            ours = bool(known) and self.stages.is_of(part.name, part.command, inputs)
            if known and not ours:  # of other source, they are no result of this day
                for name in filter(None, (part.made, part.outcomes, part.shown)):
                    remove(self.out / name)
            if not (ours and known.get("done")):
                return {"state": "not begun", "why": "no time was left"}
        limit = min(part.limit * self.longer, left)
        state = {"state": "done", "seconds": 0.0, "why": ""}
        made = self.out / part.made if part.made and "--resume" in part.command else None
        before = made.read_bytes() if made and made.is_file() else b""
        try:
            if part.beside:  # it knows by itself what is there, which is not below OUT
                took = self.stages.always(part.name, part.command, log, limit=limit)["seconds"]
                return {**state, "seconds": round(took, 1)}
            stamp = self.stages.command(
                part.name,
                part.command,
                inputs=inputs,
                outputs=outputs,
                resume=(lambda _: {}) if part.made else None,
                log=log,
                limit=limit,
                facts=partial(self.take_report, part),
            )
            return {**state, "seconds": round(stamp["seconds"], 1)}
        except StageError as error:
            # a case that ends the process twice is left out: the others shall not wait for another day
            went_on = made and made.is_file() and made.read_bytes() != before
            took = time.monotonic() - begun
            if went_on and not isinstance(error, Late) and limit - took > WORTH:
                print(f"{part.name}: once more after {error}"[:200], flush=True)
                again = self.run(part._replace(limit=(limit - took) / self.longer))
                return {**again, "seconds": round(again.get("seconds", 0.0) + took, 1)}
            state |= {"state": "stopped" if isinstance(error, Late) else "failed", "why": str(error)}
            return {**state, "seconds": round(took, 1)}
        finally:
            logs = [path for path in (log.with_name(f"{log.name}.part"), log) if path.is_file()]
            if part.shown and logs:
                shutil.copyfile(logs[0], self.out / part.shown)

    def take_report(self, part: Part) -> dict[str, Any]:
        """Copy a comparison's report from its folder to the results."""
        if part.report and part.made:
            shutil.copyfile(part.report, self.out / part.made)
        return {}

    def run_all(self, todo: list[Part]) -> bool:
        """Run the parts in order; whether all are done."""
        beside: dict[str, Thread] = {}
        try:
            for part in todo:
                if part.beside:
                    beside[part.name] = Thread(target=self.do, args=[part], daemon=True)
                    beside[part.name].start()
                    continue
                for needed in part.needs:
                    beside[needed].join()
                if not any(thread.is_alive() for thread in beside.values()):  # what still builds needs its lock
                    unlock()
                self.do(part)
                self.note(todo)
            for thread in beside.values():
                thread.join()
        finally:
            stop_all()  # on Ctrl-C, which those beside don't get
        self.note(todo)
        return all(state["state"] == "done" for state in self.states.values())

    def do(self, part: Part) -> None:
        state = self.states[part.name] = self.run(part)
        print(f"{part.name}: {state['state']}, {state.get('seconds', 0)} s {state['why'][:200]}", flush=True)

    def note(self, todo: list[Part]) -> None:
        """Write down what is known so far."""
        states = {part.name: self.states[part.name] for part in todo if part.name in self.states}
        report = {"machine": machine(), "dry": DRY, "parts": states}
        write_text(self.out / "report.json", json.dumps(report, indent=1) + "\n")
        speed, drawn = self.out / "speed" / "speed.json", self.out / "speed" / layer.DRAWN
        try:  # speed.py draws at its end, which it may not have reached
            if speed.is_file() and not (drawn.is_file() and drawn.stat().st_mtime > speed.stat().st_mtime):
                layer.draw(json.loads(speed.read_text(encoding="utf-8")), speed.parent)
            write_text(self.out / "report.md", tables.page(self.out))
        except Exception as error:  # the parts that are left matter more than a table
            print(f"report.md: {type(error).__name__}: {error}", file=sys.stderr)


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
    results = ROOT / "runs" / "gpu" if DRY else ROOT / "recipes" / "results" / "gpu"
    out = (os.environ.get("FAIRSEQ_SRU_GPU_FROM", ".") / args.out if args.out else results / card()).absolute()
    todo = parts(out, DRY, f"{card()}-{source(*SOURCES, *MODELS)}")
    for file in ("report.json", "report.md", *(part.shown for part in todo if part.shown)):
        if (out / file).exists() and not (out / "work").exists():
            parser.error(f"argument OUT: {out} has a {file}, and no folder work to go on from: name another folder")
    if (report := out / "report.json").exists():
        device = json.loads(report.read_text(encoding="utf-8")).get("machine", {}).get("device")
        if device != (here := machine()["device"]):
            parser.error(f"argument OUT: {out} is of {device}, this is {here}: name another folder")
    with working_in(out / "work", parser), working_in(BUILDS.parent, parser, mixed=True):
        day = Day(out, args.minutes)
        done = day.run_all(todo)
    print(f"\n{tables.ended(out)}\n{out / 'report.md'}")
    print("all is done" if done else "run the same command to do the rest")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
