"""Comparisons on other tasks than translation, each a class with its stages; all have one score and one table."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from common.files import write_text
from corpora.sentences import SETS, TEST, VECTORS
from corpora.texts import TEXTS

from . import stages
from .collecting import of_all, precision, write_report
from .commands import Commands
from .fairseq_output import complete, hypotheses
from .settings import Settings, wrong
from .stages import lines
from .training import Run, Training, TrainingStage

DRAWS = 10_000  # of signs


def paired_p(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """How likely a mean difference as large as this is if each pair were as likely the other way round: paired
    randomisation test, two-sided. An item a pair."""
    differences = np.asarray(ours, float) - theirs
    differences = differences[differences != 0]
    draws = np.random.default_rng(1)
    sums = (draws.choice([-1.0, 1.0], len(differences)) @ differences for _ in range(DRAWS))
    as_large = sum(abs(found) >= abs(differences.sum()) - 1e-9 for found in sums)
    return float((1 + as_large) / (1 + DRAWS))


class Use(Training):
    """What the tasks have in common: all runs are trained and tested, each test has one score.

    Attributes:
        data_sets: that it knows.
        score: name of the score, as the report has it.
        counted: name of what ``parameters`` are.
    """

    data_sets: Collection[str]
    score: str
    counted = "parameters"

    @classmethod
    def completed(cls, given: Settings) -> Settings:
        """The settings with what follows from the data.

        Raises:
            ValueError: the message names the key, what is wrong with it and what is allowed.
        """
        if given.data not in cls.data_sets:
            wrong("data", f"must be one of {', '.join(cls.data_sets)}; got {given.data}")
        return given

    def run(self) -> None:
        """All stages."""
        self.prepare()
        self.time_training()
        self.do_runs()

    def parts(self, run: Run) -> list[Callable[[], object]]:
        return [partial(self.train, run), partial(self.test, run)]

    def test(self, run: Run) -> None:
        """Test the checkpoint that is best on the validation set; a stage that notes what :meth:`tested` finds in what
        the command printed."""
        name, best = run.stage("test"), self.folder(run) / "checkpoint_best.pt"

        def facts() -> dict[str, Any]:
            found = self.tested(self.log(name).read_text(encoding="utf-8"))
            return {**found, "parameters": self.stages.stamp(run.stage("train"))["parameters"]}

        command, inputs = self.test_command(best), [best, self.manifest, *self.commands.read_in_decoding()]
        self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=facts)

    def test_command(self, checkpoint: Path) -> list[str]:
        """The command that tests a checkpoint."""
        return self.commands.generate(self.commands.data / self.commands.folder, "test", checkpoint)

    def tested(self, printed: str) -> dict[str, Any]:
        """What a test found: ``score``; ``items``, what each item of the test set adds to it, or nothing; and more.

        Raises:
            ValueError: the command printed something else.
        """
        raise NotImplementedError

    def measured(self, run: Run) -> list[dict[str, Any]]:
        """What was noted of each test of a run."""
        return [self.stages.stamp(run.stage("test"))]

    def speeds(self, system: str) -> dict[str, float]:
        """Speeds of a system by their names."""
        raise NotImplementedError

    def minutes(self, system: str) -> dict[str, float]:
        """What training took, for :meth:`speeds`: the mean over runs."""
        stamps = (self.stages.stamp(run.stage("train")) for run in self.good(system))
        return {"training, min": statistics.fmean(stamp["train_seconds"] for stamp in stamps) / 60}

    def report(self) -> None:
        """The last stage: report.json and report.md; prints the table."""
        by_system = {name: self.good(name) for name in self.settings.systems}
        items = {name: self.items(runs) for name, runs in by_system.items()}
        baseline = items.get(self.settings.baseline)
        found: dict[str, Any] = {}
        commands = [shlex.join(self.commands.prepare())]
        for name, runs in by_system.items():
            noted, mine = [part for run in runs for part in self.measured(run)], items[name]
            found[name] = {
                "failures": sorted({text for run, text in self.failures.items() if run.system == name}),
                "precision": precision(self, name),
                "parameters": noted[0]["parameters"] if noted else None,
                "seeds": [run.seed for run in runs],
                "scores": [part["score"] for part in noted],
                "p_value": None if mine is None or baseline is None or mine is baseline else paired_p(mine, baseline),
                "speeds": self.speeds(name) if runs else {},
            }
            stamps = [self.stages.stamp(runs[0].stage("train")), noted[0]] if runs else []
            commands += [shlex.join(stamp["command"]) for stamp in stamps if stamp]
        others = {name: mine for name, mine in items.items() if mine is not None and mine is not baseline}
        pairs = {f"{a} and {b}": paired_p(others[a], others[b]) for a, b in combinations(others, 2)}
        facts = {"score": self.score, "counted": self.counted, "commands": commands, "systems": found, "pairs": pairs}
        write_report(self, {**of_all(self), **self.about_data(), **facts})

    def about_data(self) -> dict[str, Any]:
        """What the report tells of the data."""
        return {"data": self.data["data_set"]}

    def items(self, runs: list[Run]) -> np.ndarray[Any, Any] | None:
        """What each test item adds to the score, the mean over seeds; None where there are no runs or no items."""
        noted = [[part["items"] for part in self.measured(run)] for run in runs]
        return np.mean([np.concatenate(parts) for parts in noted], axis=0) if noted and noted[0][0] else None


class Sentences(Use):
    """Classification, over folds of the data or with its test set."""

    data_sets = SETS
    reads = "folds/0"
    score = "accuracy, %"
    counted = "parameters beside the embedding"

    @classmethod
    def completed(cls, given: Settings) -> Settings:
        given = super().completed(given)
        flags: dict[str, Any] = {"num-classes": SETS[str(given.data)].classes}
        if given.prepare.get("embeddings"):
            flags["encoder-embed-path"] = f"{Commands(given).data}/{VECTORS}"
        return replace(given, train={**flags, **given.train})

    def about_data(self) -> dict[str, Any]:
        vectors = self.settings.prepare.get("embeddings")
        return {**super().about_data(), **({"vectors": Path(str(vectors)).name} if vectors else {})}

    @property
    def folds(self) -> range:
        return range(len(self.data["counts"]["test"]))

    def parts(self, run: Run) -> list[Callable[[], object]]:
        return [partial(self.classify, run, fold) for fold in self.folds]

    def stage(self, run: Run, fold: int) -> str:
        return f"{run.stage('classify')} fold {fold}"

    def labels(self, run: Run, fold: int) -> Path:
        """What a run's model says of the test sentences."""
        return self.out / "labels" / f"{run.file}-{fold}.txt"

    def all_labels(self, run: Run) -> Path:
        """A pattern of :meth:`labels` of all folds."""
        return self.labels(run, 0).with_name(f"{run.file}-?.txt")

    def begun(self, run: Run) -> list[Path]:
        done = (fold for fold in self.folds if self.stages.stamp(self.stage(run, fold)).get("done"))
        return [self.all_labels(run)] if any(self.labels(run, fold).is_file() for fold in done) else []

    def folder_of(self, run: Run, fold: int) -> Path:
        return self.folder(run).with_name(f"{run.file}-{fold}")

    def training(self, run: Run, fold: int) -> TrainingStage:
        folder, output = self.folder_of(run, fold), self.labels(run, fold)
        command = self.train_command(Commands(self.settings, f"folds/{fold}"), run, folder)
        return TrainingStage(self.stage(run, fold), command, self.inputs(run.system), output, self.all_labels(run))

    def trainings(self, run: Run) -> list[TrainingStage]:
        return [self.training(run, fold) for fold in self.folds]

    def classify(self, run: Run, fold: int) -> None:
        """Train and test. The checkpoints go when the test sentences have labels, or folds would fill the disk."""
        from .classes import Classes

        name, command, inputs, output, _ = self.training(run, fold)
        data, folder = self.commands.data / f"folds/{fold}", self.folder_of(run, fold)
        updates = self.updates(run.system)

        def tested() -> dict[str, Any]:
            complete(folder / "checkpoint_last.pt", updates)
            classes = Classes(folder / "checkpoint_best.pt", data)
            truth, _, text = zip(*(line.partition(" ") for line in lines(data / TEST)), strict=True)
            labels = [label for label, _ in classes(text)]
            right = [int(a == b) for a, b in zip(truth, labels, strict=True)]
            write_text(output, "".join(f"{label}\n" for label in labels))
            stages.remove(folder)
            weights = [w.numel() for name, w in classes.model.named_parameters() if "embed_tokens" not in name]
            facts = {"parameters": sum(weights), "score": 100 * statistics.fmean(right), "items": right}
            return {**facts, "jobs": self.jobs}

        self.stages.command(name, command, inputs=inputs, outputs=[folder, output], log=self.log(name), facts=tested)

    def measured(self, run: Run) -> list[dict[str, Any]]:
        return [self.stages.stamp(self.stage(run, fold)) for fold in self.folds]

    def speeds(self, system: str) -> dict[str, float]:
        from fairseq.data.data_utils import load_indexed_dataset

        sentences = load_indexed_dataset(str(self.commands.data / self.commands.folder / "input0" / "train"))
        return {"seconds an epoch": int(sentences.sizes.sum()) / self.training_speed(system, "tokens_per_second")}


class Language(Use):
    """Language modelling: perplexity of a token, the state carried over from block to block."""

    data_sets = TEXTS
    score = "perplexity"

    def run(self) -> None:
        super().run()
        for run in self.good():  # alone, since its speed is reported
            self.attempt([run], partial(self.test, run))

    def parts(self, run: Run) -> list[Callable[[], object]]:
        return [partial(self.train, run)]

    def test_command(self, checkpoint: Path) -> list[str]:
        command = super().test_command(checkpoint)
        return ["fairseq-eval-lm", *command[1:]]

    def tested(self, printed: str) -> dict[str, Any]:
        found = re.search(r"Evaluated .* \(([\d.]+) tokens/s\)(?s:.*)Loss \(base 2\): ([\d.]+), Perplexity", printed)
        if not found:
            raise ValueError("fairseq-eval-lm tells no perplexity")
        return {"score": 2 ** float(found[2]), "items": [], "tokens_per_second": float(found[1])}

    def speeds(self, system: str) -> dict[str, float]:
        tested = (self.measured(run)[0] for run in self.good(system))
        return {
            **self.minutes(system),
            "training, tokens/s": self.training_speed(system, "tokens_per_second"),
            "evaluation, tokens/s": statistics.median(test["tokens_per_second"] for test in tested),
        }


class Speech(Use):
    """Speech to text: word error rate."""

    data_sets = ("spoken-digits",)
    reads = ""
    score = "word error rate, %"

    def rows(self, split: str) -> list[str]:
        """The texts of a manifest."""
        return [line.split("\t")[3] for line in lines(self.commands.data / f"{split}.tsv")[1:]]

    def tested(self, printed: str) -> dict[str, Any]:
        import editdistance

        both = list(zip(self.rows("test"), hypotheses(printed, kind="D"), strict=True))
        errors = [editdistance.eval(truth.split(), text.split()) for truth, text in both]
        return {"score": 100 * sum(errors) / sum(len(truth.split()) for truth, _ in both), "items": errors}

    def speeds(self, system: str) -> dict[str, float]:
        tokens = sum(len(text.split()) + 1 for text in self.rows("train"))  # each ends with one
        epoch = tokens / self.training_speed(system, "tokens_per_second")
        return {**self.minutes(system), "seconds an epoch": epoch}


USES: dict[str, type[Use]] = {"sentences": Sentences, "language": Language, "speech": Speech}
