"""The stages of a comparison in their order."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common.files import write_text
from tqdm import tqdm

from fairseq_sru.models.config import PRESETS

from . import scores, settings, stages
from .commands import Commands
from .fairseq_output import Trained, hypotheses, trained
from .run import Run
from .settings import Settings
from .stages import StageError, Stages, evenly, lines
from .subset import write_subset

SPLITS = ("valid", "test")


def carry(now: Trained, carried: list[list[float]]) -> Trained:
    """Seconds and tokens from the run's begin. ``carried`` has updates, seconds and tokens at each place where fairseq
    counted from 0 again."""
    _, seconds, tokens = max((c for c in carried if c[0] < now.updates), default=(0, 0.0, 0))
    return now._replace(seconds=now.seconds + seconds, tokens=int(now.tokens + tokens))


class Comparison:
    """The stages of a comparison in their order. What fails is noted in ``failures`` and left out from there on."""

    def __init__(self, given: Settings) -> None:
        self.settings = given
        self.commands = Commands(given)
        self.out = Path(given.out)
        self.stages = Stages(self.out / "stamps", tqdm.write)
        self.failures: dict[Run, str] = {}
        seeds = given.all_seeds()
        self.runs = [Run(n, seed) for seed in seeds for n in given.systems if seed in given.seeds_of(n)]

    def attempt(self, runs: list[Run], work: Callable[[], object]) -> None:
        """Do what concerns these runs, if none of them failed before."""
        if any(run in self.failures for run in runs):
            return
        try:
            work()
        except StageError as error:
            tqdm.write(f"FAILED: {error}")
            self.failures.update(dict.fromkeys(runs, str(error)))

    def good(self) -> list[Run]:
        return [run for run in self.runs if run not in self.failures]

    def first(self) -> dict[str, Run]:
        """Each system's first run that did not fail."""
        found = {run.system: run for run in reversed(self.good())}
        return {system: found[system] for system in self.settings.systems if system in found}

    def log(self, name: str) -> Path:
        return self.out / "logs" / f"{name.replace(' ', '-')}.log"

    def run(self) -> None:
        """All stages.

        Raises:
            StageError: the data could not be prepared.
        """
        self.prepare()
        self.time_training()
        for run in self.runs:
            self.attempt([run], partial(self.train, run))
            self.attempt([run], partial(self.average, run))
        for run in self.runs:
            self.attempt([run], partial(self.translate, run))
            self.attempt([run], partial(self.curve, run))
        self.time_decoding()
        self.score()

    def turns(self, what: str, *parts: Any) -> Iterator[tuple[Any, ...]]:
        return iter(tqdm(list(itertools.product(*parts)), desc=what, leave=False, disable=None))

    def prepare(self) -> None:
        """The data, and from it the sentences that checkpoints are scored and decoding is timed on."""
        self.stages.always("prepare", self.commands.prepare(), self.log("prepare"))
        self.manifest = self.commands.data / "manifest.json"
        self.data = json.loads(self.manifest.read_text(encoding="utf-8"))
        self.source, self.target = self.data["source"], self.data["target"]
        self.text = {
            split: {language: lines(self.raw(split, language)) for language in (self.source, self.target)}
            for split in SPLITS
        }
        counts = {"valid": self.settings.curve.sentences, "test": self.settings.speed.sentences}
        self.chosen = {split: evenly(counts[split], len(self.text[split][self.source])) for split in SPLITS}
        self.subset = self.out / "subset"
        self.stages.function(
            "subset",
            self.chosen,
            lambda: write_subset(self.commands.data / "bin", self.subset, self.source, self.target, self.chosen),
            inputs=[self.manifest],
            outputs=[path for split in SPLITS for path in self.subset_files(split)],
        )

    def subset_files(self, split: str) -> list[Path]:
        pair = f"{split}.{self.source}-{self.target}"
        return [self.subset / f"{pair}.{language}.bin" for language in (self.source, self.target)]

    def raw(self, split: str, ending: str) -> Path:
        return self.commands.data / f"{split}.{ending}"

    def time_training(self) -> None:
        rounds = range(1, self.settings.slices.rounds + 1)
        for number, system in self.turns("training speed", rounds, self.settings.systems):
            self.attempt([run for run in self.runs if run.system == system], partial(self.slice, system, number))

    def slice(self, system: str, number: int) -> None:
        name = f"slice {system} {number}"
        folder = self.out / "slices" / f"{system}-{number}"
        updates = self.settings.slices.updates

        def measured() -> dict[str, float]:
            seen = {now.updates: now for now in map(trained, folder.glob("checkpoint*.pt"))}
            last = seen.pop(max(seen))
            # fairseq leaves the first out where it falls on an epoch's end
            first = seen[max(seen)] if seen else last._replace(updates=0, seconds=0.0, tokens=0)
            seconds = last.seconds - first.seconds
            stages.remove(folder)
            return {
                "updates_per_second": (last.updates - first.updates) / seconds,
                "tokens_per_second": (last.tokens - first.tokens) / seconds,
            }

        more = {"disable-validation": True}
        command = self.commands.train(system, number, 2 * updates, updates, folder, **more)
        inputs = [self.manifest, *self.preset(system)]
        self.stages.command(name, command, inputs=inputs, outputs=[folder], log=self.log(name), facts=measured)

    def preset(self, system: str) -> list[Path]:
        """The file of this project's preset that the system is of, if it is of one."""
        arch = {**self.settings.train, **self.settings.systems[system]}["arch"]
        return list(PRESETS.glob(f"*/{arch}.yaml"))

    def training_speed(self, system: str, unit: str) -> float:
        """Median of the slices; ``unit`` is updates_per_second or tokens_per_second."""
        rounds = range(1, self.settings.slices.rounds + 1)
        return statistics.median(self.stages.stamp(f"slice {system} {number}")[unit] for number in rounds)

    def decoding_speed(self, system: str, beam: int, batch: int) -> float:
        """Sentences a second, median of the rounds."""
        names = [f"speed {system} beam {beam} batch {batch} {n}" for n in range(1, self.settings.speed.rounds + 1)]
        return statistics.median(self.stages.stamp(name)["sentences_per_second"] for name in names)

    def updates(self, system: str) -> int:
        budget, checkpoints = self.settings.budget, self.settings.checkpoints
        if budget.minutes is None:
            assert budget.updates
            return budget.updates
        return settings.updates_in(budget.minutes, self.training_speed(system, "updates_per_second"), checkpoints)

    def folder(self, run: Run) -> Path:
        return self.out / "checkpoints" / run.file

    def train(self, run: Run) -> None:
        name, log, last = run.stage("train"), self.folder(run) / "train.log", self.last(run)
        updates = self.updates(run.system)
        command = self.commands.train(*run, updates, updates // self.settings.checkpoints, self.folder(run))
        bar = tqdm(total=updates, desc=name, unit="update", leave=False, disable=None)

        def resume(stamp: dict[str, Any]) -> dict[str, Any] | None:
            if not last.is_file():
                return {}
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
            now = carry(trained(last), self.stages.stamp(name).get("carried", []))
            printed = log.read_text(encoding="utf-8")
            free = [float(gigabytes) for gigabytes in re.findall(r'"gb_free": "([\d.]+)"', printed)]
            total = re.search(r"total memory = ([\d.]+) GB", printed)
            return {
                "updates": now.updates,
                "train_seconds": now.seconds,
                "clock_seconds": now.clock,
                "parameters": now.parameters,
                "peak_gpu_memory": int((float(total[1]) - min(free)) * 2**30) if free and total else None,
            }

        with bar:
            self.stages.command(
                name,
                command,
                inputs=[self.manifest, *self.preset(run.system)],
                outputs=[self.folder(run), last],
                log=log,
                on_line=show,
                resume=resume,
                facts=facts,
            )

    def last(self, run: Run) -> Path:
        return self.folder(run) / "checkpoint_last.pt"

    def checkpoints(self, run: Run) -> list[tuple[int, Path]]:
        """A run's checkpoints with their numbers of updates, in order."""
        numbered = {
            int(found[1]): path
            for path in self.folder(run).glob("checkpoint_*.pt")
            if (found := re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name))
        }
        # fairseq numbers none that falls on an epoch's end
        numbered.setdefault(self.stages.stamp(run.stage("train"))["updates"], self.last(run))
        return sorted(numbered.items())

    def average(self, run: Run) -> None:
        if self.settings.average > 1:
            name = run.stage("average")
            inputs = [path for _, path in self.checkpoints(run)][-self.settings.average :]
            command = self.commands.average(inputs, self.final(run))
            self.stages.command(name, command, inputs=inputs, outputs=[self.final(run)], log=self.log(name))

    def final(self, run: Run) -> Path:
        """The model that is tested."""
        return self.last(run) if self.settings.average == 1 else self.folder(run) / "average.pt"

    def output(self, run: Run) -> Path:
        return self.out / "translations" / f"{run.file}.{self.target}"

    def generated(self, log: Path, count: int) -> list[str]:
        found = hypotheses(log.read_text(encoding="utf-8"), kind="D")
        if len(found) != count:
            raise ValueError(f"{log} has {len(found)} translations of {count} sentences")
        return found

    def translate(self, run: Run) -> None:
        name = run.stage("generate")
        command = self.commands.generate(self.commands.data / "bin", "test", self.final(run))
        count = len(self.text["test"][self.source])
        bar = tqdm(total=count, desc=name, unit="sentence", leave=False, disable=None)

        def keep() -> dict[str, Any]:
            text = "".join(f"{line}\n" for line in self.generated(self.log(name), count))
            write_text(self.output(run), text)
            return {}

        with bar:
            self.stages.command(
                name,
                command,
                inputs=[self.final(run), self.manifest],
                outputs=[self.output(run)],
                log=self.log(name),
                on_line=lambda line: bar.update(line.startswith("D-")),
                facts=keep,
            )

    def curve(self, run: Run) -> None:
        references = [self.text["valid"][self.target][i] for i in self.chosen["valid"]]
        carried = self.stages.stamp(run.stage("train")).get("carried", [])
        for (updates, checkpoint), *_ in self.turns(run.stage("curve"), self.checkpoints(run)):
            name = f"{run.stage('curve')} {updates}"
            command = self.commands.generate(self.subset, "valid", checkpoint, beam=self.settings.curve.beam)

            def point(name: str = name, checkpoint: Path = checkpoint) -> dict[str, Any]:
                now = carry(trained(checkpoint), carried)
                bleu = scores.bleu(references, self.generated(self.log(name), len(references)))
                at = {"updates": now.updates, "train_seconds": now.seconds, "clock_seconds": now.clock}
                return {"point": {**at, "loss": now.loss, "BLEU": bleu}}

            inputs = [checkpoint, *self.subset_files("valid")]
            self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=point)

    def time_decoding(self) -> None:
        speed = self.settings.speed
        tested = self.first()
        rounds = range(1, speed.rounds + 1)
        for number, beam, batch, system in self.turns("decoding speed", rounds, speed.beams, speed.batches, tested):
            run = tested[system]
            self.attempt([run], partial(self.time, run, number, beam, batch))

    def time(self, run: Run, number: int, beam: int, batch: int) -> None:
        name = f"speed {run.system} beam {beam} batch {batch} {number}"
        more = {"beam": beam, "batch-size": batch, "max-tokens": None, "quiet": True}
        command = self.commands.generate(self.subset, "test", self.final(run), **more)

        def measured() -> dict[str, Any]:
            said = self.log(name).read_text(encoding="utf-8")
            found = re.search(r"Translated [\d,]+ sentences .* \(([\d.]+) sentences/s", said)
            if not found:
                raise ValueError(f"{self.log(name)} does not tell the speed")
            return {"sentences_per_second": float(found[1])}

        inputs = [self.final(run), *self.subset_files("test")]
        self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=measured)

    def score(self) -> None:
        """Scores of all translations, to scores.json."""
        reference, labels = self.raw("test", self.target), self.raw("test", "domains")
        truth, baseline = self.text["test"][self.target], self.settings.baseline

        def work() -> None:
            found: dict[str, Any] = {"runs": {}, "signatures": {}, "references_repetition": scores.repetition(truth)}
            found["copied_source"] = scores.bleu(truth, self.text["test"][self.source])
            for seed in self.settings.all_seeds():
                outputs = {run.system: lines(self.output(run)) for run in self.good() if run.seed == seed}
                if not outputs:
                    continue
                compared = scores.compare(truth, outputs, baseline)
                found["signatures"] = compared["signatures"]
                for system, output in outputs.items():
                    scored: dict[str, Any] = {"scores": compared["systems"][system]}
                    scored["repetition"] = scores.repetition(output)
                    if labels.is_file():
                        scored["domains"] = scores.bleu_by_domain(truth, output, lines(labels))
                    if self.settings.split_compounds:
                        scored["scores"][scores.SPLIT] = {"score": scores.bleu_compounds_split(truth, output)}
                    found["runs"][f"{system} {seed}"] = scored
            write_text(self.out / "scores.json", json.dumps(found, indent=1) + "\n")

        what = [self.good(), baseline, self.settings.split_compounds]
        inputs = [reference, self.raw("test", self.source), labels, *map(self.output, self.good())]
        self.stages.function("score", what, work, inputs=inputs, outputs=[self.out / "scores.json"])
