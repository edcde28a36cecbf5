"""Search for settings: as many trials of each system of a recipe, chosen by the loss on the validation set.

    python recipes/tune.py recipes/configs/lohelp.yaml --jobs 2 --output runs/tune-lohelp.json

The recipe's ``tune`` declares what may vary. The first trial has the recipe's own settings. Each trains for the
recipe's budget times ``tune.budget``: minutes are turned into updates at the speed that its own settings have. Then
come the finals, for the whole budget, since a short trial can't tell how much dropout a long run wants: the best trial
of each system with the values of ``tune.finals``, and the recipe's own settings. Stopped and run again, it goes on with
the next trial; so it does on another machine with the file that it has written: there the trials have as many updates
as they would have had here. The plot goes beside the output at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import end_with_reader
from common.figures import write_figure
from common.files import write_text
from common.machine import source
from comparison import plots, stages
from comparison.collecting import machine, precision
from comparison.command_line import portable, portable_flags, read_recipe, recipe_parser
from comparison.commands import Commands, files_named
from comparison.fairseq_output import complete
from comparison.flags import check_training
from comparison.processes import side_by_side
from comparison.settings import Budget, Settings
from comparison.stages import StageError, working_in
from comparison.training import Run, Training
from comparison.trials import at_edge, best_of, finals, trials, unfinished
from omegaconf import OmegaConf
from tqdm import tqdm

SEED = 1
# what a trial that is done notes of where it was trained, and how the report calls it
MADE = {"processor": "cpu", "threads": "threads", "torch": "torch", "fairseq": "fairseq", "fairseq_sru": "fairseq_sru"}


class Search(Training):
    """A comparison whose systems are trials (:func:`of_trials`).

    Args:
        given: the recipe of the trials.
        own: updates that the first trial of a system had, of the systems of which it is done: on another machine they
            make up the same budget.
    """

    def __init__(self, given: Settings, own: dict[str, int]) -> None:
        super().__init__(given)
        self.own = own

    def training_speed(self, system: str, unit: str) -> float:
        """Median over the trials of the same model and batches, measured likewise: one slice would favour by chance."""
        own = self.stages.stamp(f"slice {system} 1")
        facts = {fact: own[fact] for fact in {*self.here, "at_a_time"} & own.keys()}
        alike = [f"slice {name} 1" for name, flags in self.lasting.items() if flags == self.lasting[system]]
        stamps = (self.stages.stamp(name) for name in alike if not self.stages.differ([name], facts))
        return statistics.median(stamp[unit] for stamp in stamps if unit in stamp)

    @functools.cached_property
    def lasting(self) -> dict[str, dict[str, Any]]:
        """Of each trial the flags that decide how long an update takes, its preset's too. A dropout of 0 is none."""
        free = {"lr", "warmup-updates", *self.settings.tune.finals}
        found = {}
        for system in self.settings.systems:
            options = [OmegaConf.load(path).items() for path in self.preset(system)]
            flags = {str(name).replace("_", "-"): value for given in options for name, value in given}
            flags |= self.settings.flags_of(system)
            found[system] = {flag: value for flag, value in flags.items() if flag not in free and value}
        return found

    def timed(self, name: str) -> None:
        """Measure the speed of a trial; what fails is told by :meth:`trial`, but:

        Raises:
            StageError: the recipe's own settings failed, from whose speed the others' updates follow.
        """
        if self.settings.budget.minutes is not None:
            try:
                self.slice(name, 1)
            except StageError:
                if name.endswith("-0"):
                    raise

    def updates(self, system: str) -> int:
        own, unit = system.rpartition("-")[0], "updates_per_second"
        if self.settings.budget.minutes is None or own not in self.own:
            return super().updates(system)
        return max(1, round(self.own[own] * self.training_speed(system, unit) / self.training_speed(f"{own}-0", unit)))

    def trial(self, name: str) -> dict[str, Any]:
        """Train one; its loss is None where it failed.

        Raises:
            StageError: the recipe's own settings failed, or have no loss.
        """
        try:
            if self.settings.budget.minutes is not None:
                self.slice(name, 1)
            told = self.train_once(Run(name, SEED))
            if told["loss"] is None and name.endswith("-0"):
                raise StageError(f"{name}: fairseq-train told no finite loss on the validation set")
            return told
        except StageError as error:
            if name.endswith("-0"):
                raise
            tqdm.write(f"FAILED: {error}")
            return {"loss": None, "failure": str(error).splitlines()[0]}

    def train_once(self, run: Run) -> dict[str, Any]:
        """Train a run without checkpoints before its end, and keep what it tells alone."""
        name, folder, updates = run.stage("trial"), self.folder(run), self.updates(run.system)
        more: dict[str, Any] = {"validate-interval": 10**6, "save-interval": 10**6}  # at the end alone
        command = self.commands.train(*run, updates, updates, folder, **more)

        def facts() -> dict[str, Any]:
            now = complete(folder / "checkpoint_last.pt", updates)
            stages.remove(folder)
            loss = now.loss if now.loss is not None and math.isfinite(now.loss) else None
            told = {"loss": loss, "updates": now.updates, "parameters": now.parameters, "train_seconds": now.seconds}
            return {"told": told}

        inputs = self.inputs(run.system)
        stamp = self.stages.command(name, command, inputs=inputs, outputs=[folder], log=self.log(name), facts=facts)
        return {**stamp["told"], "made": {MADE[name]: stamp[name] for name in MADE if name in stamp}}


def of_trials(given: Settings, flags: dict[str, list[dict[str, Any]]], share: float) -> Settings:
    """The recipe with trials in the place of its systems, named SYSTEM-NUMBER, and a share of its budget."""
    budget = given.budget
    minutes = None if budget.minutes is None else budget.minutes * share
    updates = None if budget.updates is None else max(1, round(budget.updates * share))
    return dataclasses.replace(
        given,
        systems={f"{name}-{i}": trial for name, every in flags.items() for i, trial in enumerate(every)},
        budget=Budget(updates=updates, minutes=minutes),
        slices=dataclasses.replace(given.slices, rounds=1),
        checkpoints=1,
    )


def plan(report: dict[str, Any]) -> dict[str, Any]:
    """What a search is to do, of its report, on any machine."""
    flags = {system: [trial["flags"] for trial in kept["trials"]] for system, kept in report["systems"].items()}
    keys = ("recipe", "overrides", "data", "prepare", "train", "budget", "share", "processes", "space", "presets")
    found = {key: report[key] for key in (*keys, "files") if key in report}
    if "prepare" in found:
        found["prepare"] = portable_flags(found["prepare"])
    return {**found, "overrides": portable(found["overrides"]), "flags": flags}


def begun(recipe: Settings, name: str, overrides: list[str], output: Path) -> dict[str, Any]:
    """The report of a search that is gone on with, or else one with trials that have no loss yet.

    Raises:
        ValueError: ``output`` is of another search.
    """
    new = {
        "recipe": name,
        "overrides": overrides,
        "data": recipe.data,
        "prepare": recipe.prepare,
        "train": recipe.train,
        "budget": {key: value for key, value in vars(recipe.budget).items() if value is not None},
        "share": recipe.tune.budget,
        "processes": recipe.processes,
        "space": {system: recipe.tune.space_of(system) for system in recipe.systems},
        "presets": source(*(f"fairseq_sru/config/**/{recipe.flags_of(s)['arch']}.yaml" for s in recipe.systems)),
        "files": [stages.digest(path) for s in recipe.systems for path in files_named(recipe.flags_of(s))],
        "systems": {s: {"trials": [{"flags": flags} for flags in trials(recipe, s)]} for s in recipe.systems},
    }
    if not output.exists():
        return new
    try:
        found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        has = plan(found)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{output} is no output of tune.py: {error!r}") from error
    for key, value in plan(json.loads(json.dumps(new))).items():
        if has.get(key, value) != value:
            raise ValueError(f"{output} is of a search with other {key}; give the name of a new file")
    return found


def search(
    recipe: Settings,
    jobs: int,
    found: dict[str, list[dict[str, Any]]],
    share: float,
    keep: Callable[[], None],
    text: Callable[[dict[str, Any]], None],
) -> None:
    """Do the trials that are :func:`unfinished`, and call ``keep`` after each.

    Args:
        recipe: what the trials don't say.
        jobs: trials at a time.
        found: the trials of each system, the recipe's own settings first; is written to.
        share: of the budget.
        keep: writes the report.
        text: is told the files of the data, with their checksums, before anything is tried.

    Raises:
        StageError: the data can't be prepared, or a system doesn't train with its own settings, or a trial failed for
            the first time.
    """
    made = of_trials(recipe, {name: [trial["flags"] for trial in every] for name, every in found.items()}, share)
    work = Search(made, {name: every[0]["updates"] for name, every in found.items() if "updates" in every[0]})
    work.jobs = jobs
    work.prepare()
    here = {**machine(Commands(recipe).cpu), "jobs": jobs, **{name: version(name) for name in ("torch", "fairseq")}}
    text(work.data["files"])
    # the first trial of each system first: what is wrong with it shows early
    turns = [(name, i) for i in range(max(map(len, found.values()))) for name, every in found.items() if i < len(every)]
    left = [f"{name}-{i}" for name, i in turns if unfinished(found[name][i])]
    # speeds first, beside one another alone: what runs beside a trial changes how long it takes, and no more
    timed = dict.fromkeys([*(f"{name}-0" for name in work.own), *left]) if left else {}
    if work.settings.budget.minutes is not None:
        work.time_alike([(name, 1) for name in timed])
    with tqdm(desc="training speed", total=len(timed), leave=False, disable=None) as bar:
        side_by_side(jobs, [partial(work.timed, name) for name in timed], lambda _: bar.update(), work.commands.gpus)

    def tried(name: str) -> tuple[str, dict[str, Any]]:
        return name, work.trial(name)

    def note(done: tuple[str, dict[str, Any]]) -> None:
        name, told = done
        system, _, i = name.rpartition("-")
        trial = found[system][int(i)]
        trial.pop("failure", None)
        made = told.pop("made", {})
        trial |= {"precision": precision(work, name), **told, "machine": {**here, **made}}
        if "failure" in trial:
            trial["failures"] = trial.get("failures", 0) + 1
        keep()
        bar.update()

    with tqdm(desc="trials", total=len(turns), initial=len(turns) - len(left), disable=None) as bar:
        side_by_side(jobs, [partial(tried, name) for name in left], note, work.commands.gpus)
    if again := [trial["failure"] for every in found.values() for trial in every if unfinished(trial)]:
        raise StageError(f"{len(again)} trials failed ({again[0]}): run the same command to try them once more")


def begin_finals(recipe: Settings, report: dict[str, Any]) -> None:
    """Write down what trains for the whole budget, where it isn't yet.

    Raises:
        ValueError: something else is written down.
    """
    for kept in report["systems"].values():
        flags = finals(recipe, [trial["flags"] for trial in kept["trials"]], kept["best"])
        new = [{"flags": each} for each in flags]
        if [{"flags": each["flags"]} for each in kept.setdefault("finals", new)] != new:
            raise ValueError("is of a search with other finals; remove `finals` from it, or name another file")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, given: Settings) -> None:
    """End with a line where no search can be made of the recipe or ``--output``."""
    if same := [system for system in given.systems if not given.tune.space_of(system)]:
        parser.error(f"{args.recipe}: tune.space: must have a flag that varies in {', '.join(same)}")
    output: Path = args.output
    if output.suffix != ".json":
        parser.error(f"argument --output: must end with .json; got {output}")
    figure = output.with_suffix(".svg")
    if figure.exists() and not output.exists():
        parser.error(f"argument --output: the plot would replace {figure}: move that, or name another file")
    for system in given.systems:
        for flag, values in given.tune.space_of(system).items():
            own = given.flags_of(system).get(flag)
            if isinstance(values, dict) and own is not None and type(own) not in (int, float):
                parser.error(f"{args.recipe}: systems.{system}.{flag}: must be a number to be searched; got {own}")
    if any(given.flags_of(name).get("maximize-best-checkpoint-metric") for name in given.systems):
        parser.error(f"{args.recipe}: train.maximize-best-checkpoint-metric: the best trial is that of the lowest loss")


def main(argv: list[str] | None = None) -> None:
    parser = recipe_parser(__doc__, jobs="trials", output="written after each trial; what is there is gone on with")
    args = parser.parse_intermixed_args(argv)
    given, output = read_recipe(parser, args, "tune"), args.output
    check(parser, args, given)
    try:
        there = output.read_bytes() if output.exists() else None
        report = begun(given, args.recipe.stem, args.overrides, output)
    except (ValueError, OSError) as error:
        parser.error(f"argument --output: {error}")

    def keep() -> None:
        nonlocal there
        if there != (output.read_bytes() if output.exists() else None):
            raise StageError(f"{output} was changed by another program meanwhile, and stays as it is")
        if there and json.loads(there) == report:
            return  # with the date of the last trial
        report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(output, text := json.dumps(report, indent=1) + "\n")
        there = text.encode()

    def same_text(files: dict[str, Any]) -> None:
        now = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        if report.setdefault("data_sha256", now) != now:
            raise StageError(
                f"{output} has losses of other data than {Commands(given).data}: give the name of a new file"
            )

    systems = report["systems"]
    with working_in(Path(given.out), parser):
        for name, own in given.systems.items():  # better now than in one trial after the other
            tried_with = [*(trial["flags"] for trial in systems[name]["trials"]), *finals(given, [own], 0)]
            check_training(Search(of_trials(given, {name: tried_with}, 1.0), {}))
        tried = {name: kept["trials"] for name, kept in systems.items()}
        search(given, args.jobs, tried, given.tune.budget, keep, same_text)
        for system, kept in systems.items():
            kept["best"] = best_of(kept["trials"])
            every = [{**given.train, **trial["flags"]} for trial in kept["trials"]]
            best = every[kept["best"]]
            kept["at_edge"] = at_edge(every, best, given.tune.space_of(system))
            for flag in kept["at_edge"]:
                print(f"{system}: --{flag} {best[flag]} is the lowest or highest that was tried: widen its range")
        try:
            begin_finals(given, report)
        except ValueError as error:
            parser.error(f"argument --output: {output} {error}")
        if last := {f"{name}-whole": kept["finals"] for name, kept in systems.items() if kept["finals"]}:
            search(given, args.jobs, last, 1.0, keep, same_text)
        for system, kept in systems.items():
            done, at = kept["trials"], kept["best"]
            if kept["finals"]:
                done, at = kept["finals"], best_of(kept["finals"])
                kept["best_final"] = at
            own, best = done[0], done[at]
            print(f"{system}: loss {best['loss']:.3f}, the recipe's own settings {own['loss']:.3f}: {best['flags']}")
        keep()
    write_figure(output.with_suffix(".svg"), plots.trials(report, given.train))


if __name__ == "__main__":
    end_with_reader()
    main()
