"""Training of systems: their speed, and a run of each with each seed."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common.hold import FolderError
from tqdm import tqdm

from fairseq_sru.models.config import PRESETS

from . import settings, stages
from .commands import Commands, files_named
from .fairseq_output import carry, complete, gpu_memory, trained
from .processes import side_by_side
from .settings import Settings
from .stages import StageError, Stages, refuse

SPEEDS = ("updates_per_second", "tokens_per_second")


class Run(NamedTuple):
    """A system that is trained with a seed."""

    system: str
    seed: int

    def stage(self, what: str) -> str:
        return f"{what} {self.system} {self.seed}"

    @property
    def file(self) -> str:
        return f"{self.system}-{self.seed}"


class TrainingStage(NamedTuple):
    """A stage that trains: its name, command and inputs, the file that is there once it has trained, and what has to be
    removed to train anew."""

    name: str
    command: list[str]
    inputs: list[Path]
    made: Path
    kept: Path


class Training:
    """The stages that train. What fails is noted in ``failures`` and left out from there on.

    Attributes:
        jobs: runs that are trained and tested at a time.
        reads: the folder that fairseq reads, in that of the data set.
    """

    reads = "bin"

    def __init__(self, given: Settings) -> None:
        self.settings = given
        self.jobs = 1
        self.commands = Commands(given, self.reads)
        self.out = Path(given.out)
        self.here = self.commands.here()
        self.stages = Stages(self.out / "stamps", tqdm.write, self.here)
        self.failures: dict[Run, str] = {}
        self.rounds = range(1, given.slices.rounds + 1)
        self.runs = [Run(system, seed) for seed in sorted(given.seeds) for system in given.systems]

    def attempt(self, runs: list[Run], work: Callable[[], object]) -> None:
        """Do what concerns these runs, if none of them failed before."""
        if any(run in self.failures for run in runs):
            return
        try:
            work()
        except StageError as error:
            tqdm.write(f"FAILED: {error}")
            self.failures.update(dict.fromkeys(runs, str(error)))

    def parts(self, run: Run) -> list[Callable[[], object]]:
        """The stages of a run."""
        raise NotImplementedError

    def do_runs(self) -> None:
        """The stages of all runs; a FolderError is that of :meth:`keep`."""
        self.keep()

        def whole(run: Run) -> None:
            for part in self.parts(run):
                self.attempt([run], part)

        side_by_side(self.jobs, [partial(whole, run) for run in self.runs], gpus=self.commands.gpus)

    def good(self, system: str | None = None) -> list[Run]:
        """The runs that did not fail: of one system, or all."""
        return [run for run in self.runs if run not in self.failures and system in (None, run.system)]

    def first(self) -> dict[str, Run]:
        """Each system's first run that did not fail."""
        found = {run.system: run for run in reversed(self.good())}
        return {system: found[system] for system in self.settings.systems if system in found}

    def log(self, name: str) -> Path:
        return self.out / "logs" / f"{name.replace(' ', '-')}.log"

    def turns(self, what: str, *parts: Any) -> Iterator[tuple[Any, ...]]:
        return iter(tqdm(list(itertools.product(*parts)), desc=what, leave=False, disable=None))

    def prepare(self) -> None:
        """The data.

        Raises:
            StageError: the comparison was begun with another number of threads, so that its times would be of both, or
                on another kind of device, so that what is half trained would begin anew; or there are too few GPUs.
        """
        if not self.commands.cpu and not torch.cuda.is_available():
            raise StageError("cpu: is false, and torch sees no GPU: give cpu=auto")
        wanted, there = self.settings.processes, 0 if self.commands.cpu else torch.cuda.device_count()
        if there and wanted > there:
            raise StageError(f"processes: is {wanted}, and torch sees {there} GPUs: give processes={there}")
        begun, here = self.stages.noted("threads"), self.here["threads"]
        if self.commands.cpu and begun and here not in begun:
            raise StageError(
                f"{self.out} was begun with {begun[0]} threads, here are {here}: set OMP_NUM_THREADS={begun[0]}, or "
                f"begin anew with out=DIR"
            )
        if self.stages.noted("gpu" if self.commands.cpu else "backend"):
            was, remedy = ("a GPU", "let torch see it") if self.commands.cpu else ("a CPU", "give cpu=true")
            raise StageError(f"{self.out} was begun on {was}: {remedy}, or begin anew with out=DIR")
        if others := [was for was in self.stages.noted("fairseq_sru") if was != self.here["fairseq_sru"]]:
            tqdm.write(f"{self.out} has results of fairseq_sru {others[-1]}: they stay, but for timings that lack some")
        self.stages.always("prepare", self.commands.prepare(), self.log("prepare"), on_line=partial(tqdm.write, end=""))
        self.commands.keep()
        self.manifest = self.commands.data / "manifest.json"
        self.data = json.loads(self.manifest.read_text(encoding="utf-8"))

    def time_training(self, then: Callable[[], object] = lambda: None) -> None:
        """Measure the speed of training, systems in turns, as many at a time as runs will be; call ``then`` after each.

        Raises:
            StageError: something is trained already, and some speeds were measured with another number at a time.
            FolderError: something was trained, even in part, with other updates or settings; the message names it all.
        """

        def timed(system: str, number: int) -> None:
            self.attempt([run for run in self.runs if run.system == system], partial(self.slice, system, number))

        turns = [(system, number) for number in self.rounds for system in self.settings.systems]
        stamps = {turn: self.stages.stamp(f"slice {turn[0]} {turn[1]}") for turn in turns}
        known = {turn for turn in turns if self.is_timed(*turn)}
        if self.settings.budget.minutes is not None:
            anew = {turn[0] for turn, stamp in stamps.items() if stamp.get("done") and turn not in known}
            refuse(path for run in self.runs if run.system in anew for path in self.begun(run))
        else:
            self.keep()
        others = {stamps[turn].get("at_a_time", self.jobs) for turn in known} - {self.jobs}
        if not any(map(self.begun, self.runs)):
            self.time_alike(turns)
        elif others and len(known) < len(turns):
            raise StageError(f"{self.out}: begun with --jobs {max(others)}: give that, or begin anew with out=DIR")
        with tqdm(desc="training speed", total=len(turns), leave=False, disable=None) as bar:
            slices = [partial(timed, *turn) for turn in turns]
            side_by_side(self.jobs, slices, lambda _: (bar.update(), then()), self.commands.gpus)

    def slice(self, system: str, number: int) -> None:
        """Measure a system's speed once; where others are trained already, one of them again beside it."""
        name, timed, then = f"slice {system} {number}", self.is_timed(system, number), None
        trained = dict.fromkeys(run.system for run in self.runs if run.system != system and self.begun(run))
        others = (other for other in trained if all(self.is_timed(other, number) for number in self.rounds))
        if not timed and (other := next(others, None)):
            beside = f"{name} beside {other}"
            self.stages.again(beside)
            again = self.measure(beside, other, number)
            then = {unit: self.training_speed(other, unit) / again[unit] for unit in SPEEDS}
        self.measure(name, system, number, then)

    def time_alike(self, slices: list[tuple[str, int]]) -> None:
        """Measure all again where some had other jobs, or where some are missing and others of another machine, or of
        other code."""
        known = [f"slice {system} {number}" for system, number in slices if self.is_timed(system, number)]
        facts = self.here if len(known) < len(slices) else {}
        self.stages.alike(known, {**facts, "at_a_time": self.jobs})

    def is_timed(self, system: str, number: int) -> bool:
        """Whether a measurement is there, of the settings as they are."""
        name = f"slice {system} {number}"
        _, command, inputs = self.measuring(name, system, number)
        return bool(self.stages.stamp(name).get("done")) and self.stages.is_of(name, command, inputs)

    def measuring(self, name: str, system: str, number: int) -> tuple[Path, list[str], list[Path]]:
        """Folder, command and inputs of a measurement."""
        folder = self.out / "slices" / name.removeprefix("slice ").replace(" ", "-")
        updates = self.settings.slices.updates
        more = {"disable-validation": True, "keep-interval-updates": None}  # the checkpoint before is read, too
        return folder, self.commands.train(system, number, 2 * updates, updates, folder, **more), self.inputs(system)

    def measure(self, name: str, system: str, number: int, then: dict[str, float] | None = None) -> dict[str, Any]:
        """The stage of a measurement; its stamp. ``then``: how many times as fast the machine was."""
        folder, command, inputs = self.measuring(name, system, number)

        def measured() -> dict[str, Any]:
            seen = {now.updates: now for now in map(trained, folder.glob("checkpoint*.pt"))}
            last = seen.pop(max(seen))
            first = seen[max(seen)]
            seconds = last.seconds - first.seconds
            stages.remove(folder)
            return {
                "updates_per_second": (last.updates - first.updates) / seconds,
                "tokens_per_second": (last.tokens - first.tokens) / seconds,
                "then": then or {},
                "at_a_time": self.jobs,
            }

        log = self.log(name)
        return self.stages.command(name, command, inputs=inputs, outputs=[folder], log=log, facts=measured)

    def preset(self, system: str) -> list[Path]:
        """The file of this project's preset that the system is of, if it is of one."""
        return list(PRESETS.glob(f"*/{self.settings.flags_of(system)['arch']}.yaml"))

    def inputs(self, system: str) -> list[Path]:
        """What a system's training depends on beside its command: files that its flags name, too."""
        return [self.manifest, *self.preset(system), *files_named(self.commands.options(system))]

    def training_speed(self, system: str, unit: str) -> float:
        """Median of the slices, as the machine was then; ``unit`` is updates_per_second or tokens_per_second."""
        stamps = [self.stages.stamp(f"slice {system} {number}") for number in self.rounds]
        return statistics.median(stamp[unit] * stamp.get("then", {}).get(unit, 1.0) for stamp in stamps)

    def updates(self, system: str) -> int:
        budget, checkpoints = self.settings.budget, self.settings.checkpoints
        if budget.minutes is None:
            assert budget.updates
            return budget.updates
        return settings.updates_in(budget.minutes, self.training_speed(system, "updates_per_second"), checkpoints)

    def folder(self, run: Run) -> Path:
        return self.out / "checkpoints" / run.file

    def begun(self, run: Run) -> list[Path]:
        """What would have to be removed to train a run anew that has a checkpoint; empty where there is none."""
        return [self.folder(run)] if self.stages.stamp(run.stage("train")) and self.last(run).is_file() else []

    def train_command(self, commands: Commands, run: Run, folder: Path) -> list[str]:
        updates = self.updates(run.system)
        return commands.train(*run, updates, updates // self.settings.checkpoints, folder)

    def trainings(self, run: Run) -> list[TrainingStage]:
        """The stages that train a run."""
        folder = self.folder(run)
        command = self.train_command(self.commands, run, folder)
        return [TrainingStage(run.stage("train"), command, self.inputs(run.system), self.last(run), folder)]

    def keep(self) -> None:
        """Make sure that nothing trains anew that has trained.

        Raises:
            FolderError: something would; the message names all of it. Or it is gone from its folder.
        """
        every = [part for run in self.good() for part in self.trainings(run)]
        refuse(part.kept for part in every if self.is_of_others(part))

    def is_of_others(self, part: TrainingStage) -> bool:
        """Whether a stage trained with another command or other inputs.

        Raises:
            FolderError: what it made, or had made so far, is gone from its folder.
        """
        stamp = self.stages.stamp(part.name)
        if part.made.is_file():
            return bool(stamp) and not self.stages.is_of(part.name, part.command, part.inputs)
        done = stamp.get("done")
        if part.kept.is_dir() and (done or any(part.kept.glob("checkpoint*.pt"))):  # as a full disk leaves it
            how = "put it back" if done else "copy the newest of its checkpoints to that name"
            raise FolderError(f"{part.kept} lacks {part.made.name}: {how}, or remove the folder")
        return False

    def train(self, run: Run) -> None:
        """Train a run."""
        [(name, command, inputs, last, folder)] = self.trainings(run)
        log, updates = folder / "train.log", self.updates(run.system)
        bar = tqdm(total=updates, desc=name, unit="update", leave=False, disable=None)

        def resume(stamp: dict[str, Any]) -> dict[str, Any] | None:
            if not last.is_file():
                return {"carried": []}
            now = trained(last)
            bar.initial = bar.n = now.updates
            if now.updates >= updates:
                return None
            carried = [c for c in stamp.get("carried", []) if c[0] < now.updates]
            if now.at_epoch_end:
                now = carry(now, carried)
                carried.append([now.updates, now.seconds, now.tokens])
            return {"carried": carried}

        def show(line: str) -> None:
            if found := re.search(r'"num_updates": "(\d+)"', line):
                bar.update(int(found[1]) - bar.n)

        def facts() -> dict[str, Any]:
            now = carry(complete(last, updates), self.stages.stamp(name).get("carried", []))
            return {
                "updates": now.updates,
                "train_seconds": now.seconds,
                "clock_seconds": now.clock,
                "jobs": self.jobs,
                "parameters": now.parameters,
                "peak_gpu_memory": gpu_memory(log.read_text(encoding="utf-8")),
                "checkpoints": {path.name: number for number, path in self._numbered(run)},
            }

        outputs = [folder, last]
        told: dict[str, Any] = {"on_line": show, "resume": resume, "facts": facts}
        with bar:
            self.stages.command(name, command, inputs=inputs, outputs=outputs, log=log, **told)

    def last(self, run: Run) -> Path:
        return self.folder(run) / "checkpoint_last.pt"

    def _numbered(self, run: Run) -> list[tuple[int, Path]]:
        found = ((re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name), path) for path in self.folder(run).glob("*.pt"))
        return [(int(number[1]), path) for number, path in found if number]

    def checkpoints(self, run: Run) -> list[tuple[int, Path]]:
        """A run's checkpoints with their numbers of updates, in order; some may have been removed since."""
        stamp = self.stages.stamp(run.stage("train"))
        noted = [(number, self.folder(run) / name) for name, number in stamp.get("checkpoints", {}).items()]
        return sorted({stamp["updates"]: self.last(run), **dict(noted or self._numbered(run))}.items())

    def average(self, run: Run) -> None:
        if self.settings.average > 1:
            name = run.stage("average")
            inputs = [path for _, path in self.checkpoints(run)][-self.settings.average :]
            if len(inputs) < self.settings.average:
                raise StageError(f"{name}: there are {len(inputs)} checkpoints; average is {self.settings.average}")
            command = self.commands.average(inputs, self.final(run))
            self.stages.command(name, command, inputs=inputs, outputs=[self.final(run)], log=self.log(name))

    def final(self, run: Run) -> Path:
        """The model that is tested."""
        return self.last(run) if self.settings.average == 1 else self.folder(run) / "average.pt"
