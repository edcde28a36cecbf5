"""Search for settings: as many trials of each system of a recipe, chosen by the loss on the validation set.

    python recipes/tune.py recipes/configs/lohelp.yaml --jobs 2 --output recipes/results/tune/lohelp.json

The recipe's ``tune`` declares what may vary. The first trial has the recipe's own settings. Each trains for the
recipe's budget times ``tune.budget``: minutes are turned into updates at the speed that its own settings have. Stopped
and run again, it goes on with the next trial. The plot goes beside the output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.files import write, write_text
from comparison import plots, stages
from comparison.collecting import machine
from comparison.commands import Commands
from comparison.fairseq_output import trained
from comparison.run import Run
from comparison.runs import Comparison
from comparison.settings import Budget, Settings, load
from comparison.stages import StageError, working_in
from comparison.trials import at_edge, trials
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
SEED = 1


class Search(Comparison):
    """A comparison whose systems are trials, named SYSTEM-NUMBER."""

    def trial(self, name: str) -> dict[str, Any]:
        """Train one; its loss is None where it failed.

        Raises:
            StageError: the recipe's own settings failed.
        """
        try:
            if self.settings.budget.minutes is not None:
                self.slice(name, 1)
            return self.train_once(Run(name, SEED))
        except StageError as error:
            if name.endswith("-0"):
                raise
            tqdm.write(f"FAILED: {error}")
            return {"loss": None, "failure": str(error).splitlines()[0]}

    def train_once(self, run: Run) -> dict[str, Any]:
        """Train a run without checkpoints before its end, and keep what it tells alone."""
        name, folder, updates = run.stage("trial"), self.folder(run), self.updates(run.system)
        more: dict[str, Any] = {"validate-interval": 10**6}  # at the end alone
        command = self.commands.train(*run, updates, updates, folder, **more)

        def facts() -> dict[str, Any]:
            now = trained(folder / "checkpoint_last.pt")
            stages.remove(folder)
            loss = now.loss if now.loss is not None and math.isfinite(now.loss) else None
            told = {"loss": loss, "updates": now.updates, "parameters": now.parameters, "train_seconds": now.seconds}
            return {"told": told}

        inputs = [self.manifest, *self.preset(run.system)]
        stamp = self.stages.command(name, command, inputs=inputs, outputs=[folder], log=self.log(name), facts=facts)
        told: dict[str, Any] = stamp["told"]
        return told


def of_trials(given: Settings) -> Settings:
    """The recipe with its trials in the place of its systems, and the trials' budget."""
    budget, share = given.budget, given.tune.budget
    minutes = None if budget.minutes is None else budget.minutes * share
    updates = None if budget.updates is None else max(1, round(budget.updates * share))
    return dataclasses.replace(
        given,
        systems={f"{name}-{i}": flags for name in given.systems for i, flags in enumerate(trials(given, name))},
        budget=Budget(updates=updates, minutes=minutes),
        slices=dataclasses.replace(given.slices, rounds=1),
        checkpoints=1,
    )


def search(recipe: Settings, jobs: int) -> dict[str, list[dict[str, Any]]]:
    """The trials of each system with their losses.

    Raises:
        StageError: the data can't be prepared, or a system doesn't train with its own settings.
    """
    names = {system: [f"{system}-{i}" for i in range(recipe.tune.trials)] for system in recipe.systems}
    made = of_trials(recipe)
    work = Search(made)
    work.prepare()
    with ThreadPoolExecutor(jobs) as pool:
        # the first trial of each system first: what is wrong with it shows early
        turns = [name for turn in zip(*names.values(), strict=True) for name in turn]
        running = {pool.submit(work.trial, name): name for name in turns}
        found: dict[str, dict[str, Any]] = {}
        try:
            for done in tqdm(as_completed(running), desc="trials", total=len(running), disable=None):
                found[running[done]] = done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {
        system: [{"flags": made.systems[name], **found[name]} for name in numbered]
        for system, numbered in names.items()
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="goes before the recipe's value")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="written at the end")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at a time (1)")
    args = parser.parse_intermixed_args(argv)
    if args.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1; got {args.jobs}")
    try:
        given = load(args.recipe, [f"out=runs/tune-{args.recipe.stem}", *args.overrides])
    except (ValueError, OSError) as error:
        parser.error(f"{args.recipe}: {error}")
    output = args.output.absolute()
    logging.disable(logging.INFO)
    os.chdir(ROOT)
    with working_in(Path(given.out), parser):
        found = search(given, args.jobs)
    report: dict[str, Any] = {
        "recipe": args.recipe.stem,
        "overrides": args.overrides,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**machine(Commands(given).cpu), "jobs": args.jobs},
        "versions": {name: version(name) for name in ("torch", "fairseq")},
        "budget": {key: value for key, value in vars(given.budget).items() if value is not None},
        "trials": given.tune.trials,
        "space": {system: given.tune.space_of(system) for system in given.systems},
        "systems": {},
    }
    for system, tried in found.items():
        best = min(tried, key=lambda trial: math.inf if trial["loss"] is None else trial["loss"])
        edges = at_edge([t["flags"] for t in tried], best["flags"], given.tune.space_of(system))
        report["systems"][system] = {"best": best, "at_edge": edges, "trials": tried}
        print(f"{system}: loss {best['loss']:.3f}, the recipe's own settings {tried[0]['loss']:.3f}: {best['flags']}")
        for flag in edges:
            print(f"{system}: --{flag} {best['flags'][flag]} is the lowest or highest that was tried: widen its range")
    write_text(output, json.dumps(report, indent=1) + "\n")
    figure = plots.trials(report)
    write(output.with_suffix(".svg"), partial(figure.savefig, metadata={"Date": None}))


if __name__ == "__main__":
    main()
