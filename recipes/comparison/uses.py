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
from .commands import Commands
from .fairseq_output import complete, hypotheses
from .settings import Settings, wrong
from .stages import lines
from .training import Run, Training, TrainingStage

DRAWS = 10_000  # of signs

Array = np.ndarray[Any, Any]


def paired_p(ours: Array, theirs: Array) -> float:
    """Probability of a mean difference as large as this if each pair were as likely the other way round: paired
    randomisation test, two-sided. An item a pair."""
    differences = np.asarray(ours, float) - theirs
    differences = differences[differences != 0]
    draws = np.random.default_rng(1)
    sums = (draws.choice([-1.0, 1.0], len(differences)) @ differences for _ in range(DRAWS))
    as_large = sum(abs(total) >= abs(differences.sum()) - 1e-9 for total in sums)
    return float((1 + as_large) / (1 + DRAWS))


class Use(Training):
    """A comparison on one task: all runs are trained and tested, each test has one score.

    Attributes:
        data_sets: the names that ``data`` may have.
        score_name: name of the score, as the report has it.
        counted: name of the number of ``parameters``.
    """

    data_sets: Collection[str]
    score_name: str
    counted = "parameters"

    @classmethod
    def completed(cls, given: Settings) -> Settings:
        """The settings with flags that follow from the data.

        Raises:
            ValueError: the message names the key, what is wrong with it and what is allowed.
        """
        if given.data not in cls.data_sets:
            wrong("data", f"must be one of {', '.join(cls.data_sets)}; got {given.data}")
        return given

    def parts(self, run: Run) -> list[Callable[[], object]]:
        return [partial(self.train, run), partial(self.test, run)]

    def test_command(self, checkpoint: Path) -> list[str] | None:
        return self.commands.generate(self.commands.data / self.commands.folder, "test", checkpoint)

    def final(self, run: Run) -> Path:
        return self.folder(run) / "checkpoint_best.pt"

    def test(self, run: Run) -> None:
        """Test the checkpoint that is best on the validation set; the stamp has the facts of :meth:`results`."""
        name, best = run.stage("test"), self.final(run)

        def facts() -> dict[str, Any]:
            results = self.results(self.log(name).read_text(encoding="utf-8"))
            return {**results, "parameters": self.stages.stamp(run.stage("train"))["parameters"]}

        command, inputs = self.test_command(best), [best, self.manifest, *self.commands.read_in_decoding()]
        assert command
        self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=facts)

    def results(self, printed: str) -> dict[str, Any]:
        """Results of a test: ``score``; ``items``, what each item of the test set adds to it, or nothing; and more.

        Raises:
            ValueError: the command printed something else.
        """
        raise NotImplementedError

    def tests(self, run: Run) -> list[dict[str, Any]]:
        """The stamps of each test of a run."""
        return [self.stages.stamp(run.stage("test"))]

    def speeds(self, system: str) -> dict[str, float]:
        """Speeds of a system by their names."""
        raise NotImplementedError

    def minutes(self, system: str) -> dict[str, float]:
        """Minutes of training, the mean over runs, for :meth:`speeds`."""
        stamps = (self.stages.stamp(run.stage("train")) for run in self.good(system))
        return {"training, min": statistics.fmean(stamp["train_seconds"] for stamp in stamps) / 60}

    def facts(self) -> dict[str, Any]:
        items = {name: self.items(name) for name in self.settings.systems}
        baseline = items[self.settings.baseline]
        others = {name: mine for name, mine in items.items() if mine is not None and mine is not baseline}
        systems: dict[str, Any] = {}
        commands = [shlex.join(self.commands.prepare())]
        for name in self.settings.systems:
            runs = self.good(name)
            tests = [test for run in runs for test in self.tests(run)]
            systems[name] = {
                "failures": self.failures_of(name),
                "precision": self.precision(name),
                "parameters": tests[0]["parameters"] if tests else None,
                "seeds": [run.seed for run in runs],
                "scores": [test["score"] for test in tests],
                "p_value": paired_p(others[name], baseline) if name in others and baseline is not None else None,
                "speeds": self.speeds(name) if runs else {},
            }
            stamps = [self.stages.stamp(runs[0].stage("train")), tests[0]] if runs else []
            commands += [shlex.join(stamp["command"]) for stamp in stamps if stamp]
        return {
            **self.common_facts(),
            **self.data_facts(),
            "score": self.score_name,
            "counted": self.counted,
            "commands": commands,
            "systems": systems,
            "pairs": {f"{a} and {b}": paired_p(others[a], others[b]) for a, b in combinations(others, 2)},
        }

    def data_facts(self) -> dict[str, Any]:
        return {"data": self.data["data_set"]}

    def items(self, system: str) -> Array | None:
        """The addition of each test item to the score, the mean over seeds; None without runs or items."""
        of_runs = [[test["items"] for test in self.tests(run)] for run in self.good(system)]
        return np.mean([np.concatenate(parts) for parts in of_runs], axis=0) if of_runs and of_runs[0][0] else None


class Sentences(Use):
    """Classification, over folds of the data or with its test set."""

    data_sets = SETS
    reads = "folds/0"
    score_name = "accuracy, %"
    counted = "parameters beside the embedding"

    @classmethod
    def completed(cls, given: Settings) -> Settings:
        given = super().completed(given)
        flags: dict[str, Any] = {"num-classes": SETS[str(given.data)].classes}
        if given.prepare.get("embeddings"):
            flags["encoder-embed-path"] = f"{Commands(given).data}/{VECTORS}"
        return replace(given, train={**flags, **given.train})

    def data_facts(self) -> dict[str, Any]:
        vectors = self.settings.prepare.get("embeddings")
        return {**super().data_facts(), **({"vectors": Path(str(vectors)).name} if vectors else {})}

    @property
    def folds(self) -> range:
        return range(len(self.data["counts"]["test"]))

    def parts(self, run: Run) -> list[Callable[[], object]]:
        return [partial(self.classify, run, fold) for fold in self.folds]

    def test_command(self, checkpoint: Path) -> None:
        return None

    def stage(self, run: Run, fold: int) -> str:
        return f"{run.stage('classify')} fold {fold}"

    def labels(self, run: Run, fold: int | str) -> Path:
        """The labels that a run's model gives the test sentences; of fold "?" the pattern of all folds."""
        return self.out / "labels" / f"{run.file}-{fold}.txt"

    def has_trained(self, run: Run) -> bool:
        return any(self.labels(run, fold).is_file() for fold in self.folds)

    def fold_folder(self, run: Run, fold: int) -> Path:
        return self.folder(run).with_name(f"{run.file}-{fold}")

    def training(self, run: Run, fold: int) -> TrainingStage:
        command = self.train_command(Commands(self.settings, f"folds/{fold}"), run, self.fold_folder(run, fold))
        files = (self.labels(run, fold), self.labels(run, "?"))
        return TrainingStage(self.stage(run, fold), command, self.inputs(run.system), *files)

    def trainings(self, run: Run) -> list[TrainingStage]:
        return [self.training(run, fold) for fold in self.folds]

    def classify(self, run: Run, fold: int) -> None:
        """Train and test. The checkpoints go when the test sentences have labels, or folds would fill the disk."""
        from .classes import Classes

        name, command, inputs, output, _ = self.training(run, fold)
        data, folder = self.commands.data / f"folds/{fold}", self.fold_folder(run, fold)
        updates = self.updates(run.system)

        def results() -> dict[str, Any]:
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

        self.stages.command(name, command, inputs=inputs, outputs=[folder, output], log=self.log(name), facts=results)

    def tests(self, run: Run) -> list[dict[str, Any]]:
        return [self.stages.stamp(self.stage(run, fold)) for fold in self.folds]

    def speeds(self, system: str) -> dict[str, float]:
        from fairseq.data.data_utils import load_indexed_dataset

        sentences = load_indexed_dataset(str(self.commands.data / self.commands.folder / "input0" / "train"))
        return {"seconds an epoch": int(sentences.sizes.sum()) / self.training_speed(system, "tokens_per_second")}


class Language(Use):
    """Language modelling: perplexity of a token, the state carried over from block to block."""

    data_sets = TEXTS
    score_name = "perplexity"

    def parts(self, run: Run) -> list[Callable[[], object]]:
        return [partial(self.train, run)]

    def time_decoding(self) -> None:
        for run in self.good():
            self.attempt([run], partial(self.test, run))

    def test_command(self, checkpoint: Path) -> list[str]:
        command = super().test_command(checkpoint)
        assert command
        return ["fairseq-eval-lm", *command[1:]]

    def results(self, printed: str) -> dict[str, Any]:
        match = re.search(r"Evaluated .* \(([\d.]+) tokens/s\)(?s:.*)Loss \(base 2\): ([\d.]+), Perplexity", printed)
        if not match:
            raise ValueError("fairseq-eval-lm printed no perplexity")
        return {"score": 2 ** float(match[2]), "items": [], "tokens_per_second": float(match[1])}

    def speeds(self, system: str) -> dict[str, float]:
        tests = (self.tests(run)[0] for run in self.good(system))
        return {
            **self.minutes(system),
            "training, tokens/s": self.training_speed(system, "tokens_per_second"),
            "evaluation, tokens/s": statistics.median(test["tokens_per_second"] for test in tests),
        }


class Speech(Use):
    """Speech to text: word error rate."""

    data_sets = ("spoken-digits",)
    reads = ""
    score_name = "word error rate, %"

    def texts(self, split: str) -> list[str]:
        return [line.split("\t")[3] for line in lines(self.commands.data / f"{split}.tsv")[1:]]

    def results(self, printed: str) -> dict[str, Any]:
        import editdistance

        pairs = list(zip(self.texts("test"), hypotheses(printed, kind="D"), strict=True))
        errors = [editdistance.eval(truth.split(), text.split()) for truth, text in pairs]
        return {"score": 100 * sum(errors) / sum(len(truth.split()) for truth, _ in pairs), "items": errors}

    def speeds(self, system: str) -> dict[str, float]:
        tokens = sum(len(text.split()) + 1 for text in self.texts("train"))  # each ends with one
        epoch = tokens / self.training_speed(system, "tokens_per_second")
        return {**self.minutes(system), "seconds an epoch": epoch}


USES: dict[str, type[Use]] = {"sentences": Sentences, "language": Language, "speech": Speech}
