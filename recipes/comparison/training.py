"""Training of systems: their speed, and a run of each with each seed."""

from __future__ import annotations

import itertools
import json
import platform
import re
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common.hold import FolderError
from common.machine import cores
from tqdm import tqdm

from fairseq_sru.models.config import PRESETS

from . import report, stages
from .commands import Commands, files_named
from .fairseq_output import carry, complete, gpu_memory, trained
from .processes import side_by_side
from .settings import Settings, updates_in
from .stages import StageError, Stages


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
    """A stage that trains.

    Attributes:
        result: the file that is there once it has trained.
        remove: the files that the user has to remove so that it trains again.
    """

    name: str
    command: list[str]
    inputs: list[Path]
    result: Path
    remove: Path


class Training:
    """A comparison. Its steps are called in the order in which they stand here; compare.py does so.

    Runs that fail are noted in ``failures`` and left out from there on.

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
        self.manifest = self.commands.data / "manifest.json"

    # ---------------------------------------------------------------- steps

    def prepare(self) -> None:
        """Make the data."""
        self.stages.always("prepare", self.commands.prepare(), self.log("prepare"), on_line=partial(tqdm.write, end=""))
        self.commands.keep()
        self.data = json.loads(self.manifest.read_text(encoding="utf-8"))

    def time_training(self) -> None:
        """Measure the speed of training, systems in turns, as many at a time as runs will be.

        A system that has trained keeps its speed: another would change the updates of its runs.
        """
        turns = [(system, number) for number in self.rounds for system in self.settings.systems]

        def measure(system: str, number: int) -> None:
            runs = [run for run in self.runs if run.system == system]
            measured = self.stages.stamp(f"slice {system} {number}").get("done")
            if not (measured and any(map(self.has_trained, runs))):
                self.attempt(runs, partial(self.slice, system, number))

        with tqdm(desc="training speed", total=len(turns), leave=False, disable=None) as bar:
            pieces = [partial(measure, *turn) for turn in turns]
            side_by_side(self.jobs, pieces, lambda _: bar.update(), self.commands.gpus)

    def train_and_test(self) -> None:
        """Do the parts of all runs.

        Raises:
            FolderError: something that has trained would train again; the message names all of it.
        """
        parts = [part for run in self.good() for part in self.trainings(run)]
        if changed := dict.fromkeys(str(part.remove) for part in parts if self.has_changed(part)):
            raise FolderError(
                f"{', '.join(changed)}: trained with other settings or moved; remove that, or name another out=DIR"
            )

        def whole(run: Run) -> None:
            for part in self.parts(run):
                self.attempt([run], part)

        side_by_side(self.jobs, [partial(whole, run) for run in self.runs], gpus=self.commands.gpus)

    def time_decoding(self) -> None:
        """Time the trained models, one at a time."""

    def score(self) -> None:
        """Score what was translated."""

    def report(self) -> None:
        """Write the report, and print what it says in short."""
        facts = self.facts()
        files = [self.out / name for name in report.files(facts)]
        self.stages.function("report", facts, lambda: report.write(facts, self.out), inputs=[], outputs=files)
        print(f"\n{report.in_short(facts)}\n\n{self.out / 'report.md'}")

    # ---------------------------------------------------------------- parts that tasks define

    def parts(self, run: Run) -> list[Callable[[], object]]:
        """The stages of a run, in their order."""
        raise NotImplementedError

    def test_command(self, checkpoint: Path) -> list[str] | None:
        """The command of fairseq's that tests a checkpoint; None where there is none."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """The contents of report.json."""
        raise NotImplementedError

    # ---------------------------------------------------------------- runs

    def attempt(self, runs: list[Run], work: Callable[[], object]) -> None:
        """Do what concerns these runs, if none of them failed before."""
        if any(run in self.failures for run in runs):
            return
        try:
            work()
        except StageError as error:
            tqdm.write(f"FAILED: {error}")
            self.failures.update(dict.fromkeys(runs, str(error)))

    def good(self, system: str | None = None) -> list[Run]:
        """The runs that did not fail: of one system, or all."""
        return [run for run in self.runs if run not in self.failures and system in (None, run.system)]

    def first(self) -> dict[str, Run]:
        """Each system's first run that did not fail."""
        firsts = {run.system: run for run in reversed(self.good())}
        return {system: firsts[system] for system in self.settings.systems if system in firsts}

    def log(self, name: str) -> Path:
        return self.out / "logs" / f"{name.replace(' ', '-')}.log"

    def turns(self, what: str, *parts: Any) -> Iterator[tuple[Any, ...]]:
        return iter(tqdm(list(itertools.product(*parts)), desc=what, leave=False, disable=None))

    # ---------------------------------------------------------------- speed of training

    def slice(self, system: str, number: int) -> None:
        """Measure a system's speed once."""
        name, count = f"slice {system} {number}", self.settings.slices.updates
        folder = self.out / "slices" / f"{system}-{number}"
        more = {"disable-validation": True, "keep-interval-updates": None}  # both checkpoints are read
        command = self.commands.train(system, number, 2 * count, count, folder, **more)

        def speeds() -> dict[str, Any]:
            by_updates = {state.updates: state for state in map(trained, folder.glob("checkpoint*.pt"))}
            *_, first, last = (by_updates[updates] for updates in sorted(by_updates))
            stages.remove(folder)
            seconds = last.seconds - first.seconds
            return {
                "updates_per_second": (last.updates - first.updates) / seconds,
                "tokens_per_second": (last.tokens - first.tokens) / seconds,
            }

        inputs = self.inputs(system)
        self.stages.command(name, command, inputs=inputs, outputs=[folder], log=self.log(name), facts=speeds)

    def training_speed(self, system: str, unit: str) -> float:
        """Median of the slices; ``unit`` is updates_per_second or tokens_per_second."""
        return statistics.median(self.stages.stamp(f"slice {system} {number}")[unit] for number in self.rounds)

    def updates(self, system: str) -> int:
        budget, checkpoints = self.settings.budget, self.settings.checkpoints
        if budget.minutes is None:
            assert budget.updates
            return budget.updates
        return updates_in(budget.minutes, self.training_speed(system, "updates_per_second"), checkpoints)

    # ---------------------------------------------------------------- training

    def inputs(self, system: str) -> list[Path]:
        """Files that a system's training depends on: the data, our preset, and those that its flags name."""
        flags = self.commands.options(system)
        return [self.manifest, *PRESETS.glob(f"*/{flags['arch']}.yaml"), *files_named(flags)]

    def folder(self, run: Run) -> Path:
        return self.out / "checkpoints" / run.file

    def last(self, run: Run) -> Path:
        return self.folder(run) / "checkpoint_last.pt"

    def has_trained(self, run: Run) -> bool:
        """Return whether a run has a checkpoint."""
        return self.last(run).is_file()

    def train_command(self, commands: Commands, run: Run, folder: Path) -> list[str]:
        updates = self.updates(run.system)
        return commands.train(*run, updates, updates // self.settings.checkpoints, folder)

    def trainings(self, run: Run) -> list[TrainingStage]:
        """The stages that train a run."""
        folder = self.folder(run)
        command = self.train_command(self.commands, run, folder)
        return [TrainingStage(run.stage("train"), command, self.inputs(run.system), self.last(run), folder)]

    def has_changed(self, part: TrainingStage) -> bool:
        """Return whether a stage has trained with another command or other inputs."""
        return part.result.is_file() and not self.stages.is_of(part.name, part.command, part.inputs)

    def train(self, run: Run) -> None:
        """Train a run, from its last checkpoint on where there is one."""
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
            if match := re.search(r'"num_updates": "(\d+)"', line):
                bar.update(int(match[1]) - bar.n)

        def facts() -> dict[str, Any]:
            now = carry(complete(last, updates), self.stages.stamp(name).get("carried", []))
            return {
                "updates": now.updates,
                "train_seconds": now.seconds,
                "clock_seconds": now.clock,
                "jobs": self.jobs,
                "parameters": now.parameters,
                "peak_gpu_memory": gpu_memory(log.read_text(encoding="utf-8")),
                "checkpoints": self._numbers(run),
            }

        how: dict[str, Any] = {"on_line": show, "resume": resume, "facts": facts}
        with bar:
            self.stages.command(name, command, inputs=inputs, outputs=[folder, last], log=log, **how)

    def _numbers(self, run: Run) -> dict[str, int]:
        """Updates of the numbered checkpoints in a run's folder."""
        matches = (re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name) for path in self.folder(run).glob("*.pt"))
        return {match[0]: int(match[1]) for match in matches if match}

    def checkpoints(self, run: Run) -> list[tuple[int, Path]]:
        """A run's checkpoints with their numbers of updates, in order; some may have been removed since."""
        stamp = self.stages.stamp(run.stage("train"))
        numbered = {number: self.folder(run) / name for name, number in stamp["checkpoints"].items()}
        return sorted({stamp["updates"]: self.last(run), **numbered}.items())

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

    # ---------------------------------------------------------------- facts of every report

    def noted(self, fact: str) -> str:
        """A fact of where the stages ran; more than one where a comparison went on elsewhere."""
        return ", then ".join(map(str, self.stages.noted(fact))) or str(self.here[fact])

    def common_facts(self, *packages: str) -> dict[str, Any]:
        """Facts of the report of every comparison, with the versions of these packages."""
        cpu = self.commands.cpu
        return {
            "name": self.out.name,
            "budget": {key: value for key, value in vars(self.settings.budget).items() if value is not None},
            "baseline": self.settings.baseline,
            "date": max(self.stages.noted("finished"), default=None),
            "machine": {
                "cpu": self.noted("processor"),
                "cores": cores(),
                "threads": torch.get_num_threads(),
                "gpu": None if cpu else self.noted("gpu"),
                "system": platform.platform(),
                **({"backend": self.noted("backend")} if cpu else {}),
                "jobs": max(self.stages.noted("jobs"), default=self.jobs),
            },
            "versions": {
                "python": platform.python_version(),
                **{name: self.noted(name) for name in ("fairseq_sru", "torch", "fairseq")},
                **{name: version(name) for name in packages},
            },
        }

    def failures_of(self, system: str) -> list[str]:
        return list(dict.fromkeys(text for run, text in self.failures.items() if run.system == system))

    def precision(self, system: str) -> str:
        """Precision of the products in training."""
        on = {flag for flag, value in self.commands.options(system).items() if value}
        if on & {"bf16", "memory-efficient-bf16"} or ("amp" in on and self.commands.cpu):
            return "bfloat16"
        return "float16" if on & {"fp16", "memory-efficient-fp16", "amp"} else "float32"
