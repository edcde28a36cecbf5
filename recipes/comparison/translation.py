"""Comparisons of translation systems: their translations, scores, learning curves and speeds."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.decoding import FLOAT32, INT8
from common.files import write_text
from corpora.subwords import MODELS
from tqdm import tqdm

from . import scores
from .fairseq_output import carry, hypotheses, trained
from .report import spread, verdict
from .settings import Settings
from .stages import StageError, evenly, lines
from .training import Run, Training

SPLITS = ("valid", "test")
SAMPLES = 10  # translations that a report shows
WEIGHTS = {"float32": FLOAT32, "int8": INT8}  # of the translator; as benchmarks/decoding.py calls them
DECODERS = ("generate", *WEIGHTS)  # in the names of stages
FILES = ("config.json", "vocabulary.json", "weights.safetensors")  # of an exported model, and the subword model
OURS = ("sru", "transformer_sru")  # architectures that the translator may be able to run begin with one of these
# of fairseq-generate: those that the translator knows by another name, and those that it doesn't know
OPTIONS = {"lenpen": "lenpen", "max-len-b": "max_length", "no-repeat-ngram-size": "no_repeat_ngram_size"}
UNKNOWN = [
    *("constraints", "diverse-beam-groups", "diversity-rate", "lm-path", "match-source-len", "max-len-a", "min-len"),
    *("prefix-size", "replace-unk", "retain-dropout", "sampling", "temperature", "unkpen", "unnormalized"),
]
MANY = 64  # sentences at a time where nothing is timed


def timing(decoder: str, system: str, beam: int, batch: int, number: int) -> str:
    """The name of a stage that times decoding."""
    return f"speed {system} {decoder} beam {beam} batch {batch} {number}"


def write_subset(bin_data: Path, folder: Path, source: str, target: str, chosen: dict[str, list[int]]) -> None:
    """Copy the chosen sentences of binarised splits, in their order, to a folder that fairseq reads."""
    from fairseq.data import Dictionary, data_utils, indexed_dataset

    folder.mkdir(parents=True, exist_ok=True)
    for language in (source, target):
        dictionary = Dictionary.load(str(bin_data / f"dict.{language}.txt"))
        dictionary.save(str(folder / f"dict.{language}.txt"))
        for split, numbers in chosen.items():
            name = f"{split}.{source}-{target}.{language}"
            sentences = data_utils.load_indexed_dataset(str(bin_data / name), dictionary)
            builder = indexed_dataset.make_builder(str(folder / f"{name}.bin"), "mmap", vocab_size=len(dictionary))
            for i in numbers:
                builder.add_item(sentences[i])
            builder.finalize(str(folder / f"{name}.idx"))


class Comparison(Training):
    """A comparison of translation systems: fairseq-generate's translations are scored, the translator is timed, too.

    Attributes:
        missing: by system, why the translator did not run; that is no failure of the system.
    """

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.missing: dict[str, str] = {}
        self.subset = self.out / "subset"

    # ---------------------------------------------------------------- steps

    def prepare(self) -> None:
        """Make the data, and from it the sentences that checkpoints are scored and decoding is timed on.

        Raises:
            StageError: see :class:`Training`; or sacreBLEU lacks what its scores of the language need.
        """
        super().prepare()
        self.source, self.target = self.data["source"], self.data["target"]
        try:
            scores.metrics(self.target)
        except RuntimeError as error:  # better now than after training
            raise StageError(" ".join(str(error).split())) from None
        self.text = {
            split: {language: lines(self.raw(split, language)) for language in (self.source, self.target)}
            for split in SPLITS
        }
        curve, speed = self.settings.curve, self.settings.speed
        counts = {"valid": curve.sentences if curve else 0, "test": speed.sentences if speed else 0}
        self.chosen = {split: evenly(counts[split], len(self.text[split][self.source])) for split in SPLITS}
        self.stages.function(
            "subset",
            self.chosen,
            lambda: write_subset(self.commands.data / "bin", self.subset, self.source, self.target, self.chosen),
            inputs=[self.manifest],
            outputs=[path for split in SPLITS for path in self.subset_files(split)],
        )

    def parts(self, run: Run) -> list[Callable[[], object]]:
        parts = [partial(work, run) for work in (self.train, self.average, self.generate)]
        if self.is_ours(run.system):
            parts += [partial(self.translate, run, weights) for weights in WEIGHTS]
        return [*parts, partial(self.curve, run)] if self.settings.curve else list(parts)

    def time_decoding(self) -> None:
        speed = self.settings.speed
        if speed is None:
            return
        firsts = self.first()
        for number in range(1, speed.rounds + 1):
            turns = self.turns(f"decoding speed {number}", DECODERS, speed.beams, speed.batches, firsts)
            for decoder, beam, batch, system in turns:
                runs, name = self.good(system), timing(decoder, system, beam, batch, number)
                if runs and decoder == "generate":
                    self.attempt(runs, partial(self.time_generate, firsts[system], name, beam, batch))
                elif runs and self.is_ours(system):
                    self.time_translator(firsts[system], decoder, name, beam, batch)

    def score(self) -> None:
        """Score all translations; the results go to scores.json."""
        texts, labels = self.text["test"], self.raw("test", "domains")
        truth, baseline = texts[self.target], self.settings.baseline

        def work() -> None:
            result: dict[str, Any] = {"runs": {}, "signatures": {}}
            result["references_repetition"] = scores.repetition(truth, self.target)
            result["copied_source"] = scores.bleu(truth, texts[self.source], self.target)
            for seed in sorted(self.settings.seeds):
                outputs = {run.system: lines(self.output(run)) for run in self.good() if run.seed == seed}
                if not outputs:
                    continue
                compared = scores.compare(truth, outputs, baseline, self.target)
                result["signatures"] = compared["signatures"]
                for system, output in outputs.items():
                    scored: dict[str, Any] = {"scores": compared["systems"][system]}
                    scored["repetition"] = scores.repetition(output, self.target)
                    if labels.is_file():
                        scored["domains"] = scores.bleu_by_domain(truth, output, lines(labels), self.target)
                    if self.settings.split_compounds:
                        scored["scores"][scores.SPLIT] = {"score": scores.bleu_compounds_split(truth, output)}
                    result["runs"][f"{system} {seed}"] = scored
            write_text(self.out / "scores.json", json.dumps(result, indent=1) + "\n")

        what = [self.good(), baseline, self.settings.split_compounds, version("sacrebleu")]
        read = [self.raw("test", ending) for ending in (self.target, self.source, "domains")]
        inputs = [*filter(Path.is_file, read), *map(self.output, self.good())]
        self.stages.function("score", what, work, inputs=inputs, outputs=[self.out / "scores.json"])

    # ---------------------------------------------------------------- files

    def subset_files(self, split: str) -> list[Path]:
        pair = f"{split}.{self.source}-{self.target}"
        return [self.subset / f"{pair}.{language}.bin" for language in (self.source, self.target)]

    def raw(self, split: str, ending: str) -> Path:
        return self.commands.data / f"{split}.{ending}"

    def output(self, run: Run) -> Path:
        return self.out / "translations" / f"{run.file}.{self.target}"

    def timed(self) -> list[Path]:
        """The models whose decoding is timed: where one is new, all are timed again, as the machine is now."""
        return [self.final(run) for run in self.first().values()]

    # ---------------------------------------------------------------- fairseq-generate

    def test_command(self, checkpoint: Path) -> list[str]:
        return self.commands.generate(self.commands.data / "bin", "test", checkpoint)

    def generated(self, log: Path, count: int) -> list[str]:
        """The translations that fairseq-generate printed.

        Raises:
            ValueError: there are more or fewer.
        """
        texts = hypotheses(log.read_text(encoding="utf-8"), kind="D")
        if len(texts) != count:
            raise ValueError(f"{log} has {len(texts)} translations of {count} sentences")
        return texts

    def generate(self, run: Run) -> None:
        """Translate the test set."""
        name = run.stage("generate")
        log, count = self.log(name), len(self.text["test"][self.source])
        bar = tqdm(total=count, desc=name, unit="sentence", leave=False, disable=None)

        def keep() -> dict[str, Any]:
            write_text(self.output(run), "".join(f"{line}\n" for line in self.generated(log, count)))
            return {}

        with bar:
            self.stages.command(
                name,
                self.test_command(self.final(run)),
                inputs=[self.final(run), self.manifest, *self.commands.read_in_decoding()],
                outputs=[self.output(run)],
                log=log,
                on_line=lambda line: bar.update(line.startswith("D-")),
                facts=keep,
            )

    def time_generate(self, run: Run, name: str, beam: int, batch: int) -> None:
        more = {"beam": beam, "batch-size": batch, "max-tokens": None, "quiet": True}
        command = self.commands.generate(self.subset, "test", self.final(run), **more)

        def speed() -> dict[str, Any]:
            printed = self.log(name).read_text(encoding="utf-8")
            match = re.search(r"Translated [\d,]+ sentences .* \(([\d.]+) sentences/s", printed)
            if not match:
                raise ValueError(f"{self.log(name)} has no speed")
            return {"sentences_per_second": float(match[1])}

        inputs = [*self.timed(), *self.subset_files("test"), *self.commands.read_in_decoding()]
        self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=speed)

    def curve(self, run: Run) -> None:
        """Score a run's checkpoints on sentences of the validation set."""
        assert self.settings.curve
        references = [self.text["valid"][self.target][i] for i in self.chosen["valid"]]
        carried = self.stages.stamp(run.stage("train")).get("carried", [])
        for (updates, checkpoint), *_ in self.turns(run.stage("curve"), self.checkpoints(run)):
            name = f"{run.stage('curve')} {updates}"
            command = self.commands.generate(self.subset, "valid", checkpoint, beam=self.settings.curve.beam)

            def point(name: str = name, checkpoint: Path = checkpoint) -> dict[str, Any]:
                now = carry(trained(checkpoint), carried)
                bleu = scores.bleu(references, self.generated(self.log(name), len(references)), self.target)
                at = {"updates": now.updates, "train_seconds": now.seconds, "clock_seconds": now.clock}
                return {"point": {**at, "loss": now.loss, "BLEU": bleu}}

            inputs = [checkpoint, *self.subset_files("valid"), *self.commands.read_in_decoding()]
            self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=point)

    # ---------------------------------------------------------------- the translator

    def is_ours(self, system: str) -> bool:
        """Return whether the translator may be able to run a system: it is for CPUs."""
        arch = str(self.settings.flags_of(system)["arch"])
        return self.commands.cpu and self.settings.speed is not None and arch.startswith(OURS)

    def attempt_translator(self, system: str, work: Callable[[], object]) -> None:
        """Do work for a system unless the translator failed with it before."""
        if system in self.missing:
            return
        if unknown := [flag for flag in UNKNOWN if self.settings.generate.get(flag)]:
            self.missing[system] = f"it doesn't know --{unknown[0]}, which fairseq-generate has here"
            return
        try:
            work()
        except StageError as error:
            self.missing[system] = str(error).splitlines()[-1]
            tqdm.write(f"left out, the translator of {system}: {error}")

    def exported(self, run: Run, weights: str) -> Path:
        return self.out / "models" / f"{run.file}-{weights}"

    def translate(self, run: Run, weights: str) -> None:
        """Translate the test set with each beam."""
        assert self.settings.speed
        beams, everything = self.settings.speed.beams, range(len(self.text["test"][self.source]))

        def work() -> None:
            self.export(run, weights)
            for beam in beams:
                name = f"{run.stage('translator')} {weights} beam {beam}"
                self.run_translator(name, run, weights, beam, MANY, everything)

        self.attempt_translator(run.system, work)

    def time_translator(self, run: Run, weights: str, name: str, beam: int, batch: int) -> None:
        work = partial(self.run_translator, name, run, weights, beam, batch, self.chosen["test"], self.timed())
        self.attempt_translator(run.system, work)

    def export(self, run: Run, weights: str) -> None:
        folder, name = self.exported(run, weights), f"{run.stage('export')} {weights}"
        kind = self.data["tokenizer"]
        flag = "--sentencepiece-model" if kind == "sentencepiece" else "--subword-nmt-codes"
        command = ["python", "-m", "fairseq_sru.export", "--path", str(self.final(run))]
        command += [flag, str(self.commands.data / MODELS[kind])]
        command += ["--data", str(self.commands.data / "bin"), "--out", str(folder)]
        command += ["--lowercase"] if self.data.get("lower", False) else []
        command += ["--no-normalise"] if not self.data.get("normalise", True) and kind != "sentencepiece" else []
        command += ["--int8"] if weights == "int8" else []
        inputs, outputs = [self.final(run), self.manifest], [folder / file for file in (*FILES, MODELS[kind])]
        self.stages.command(name, command, inputs=inputs, outputs=outputs, log=self.log(name))

    def run_translator(
        self,
        name: str,
        run: Run,
        weights: str,
        beam: int,
        batch: int,
        chosen: Sequence[int],
        also: Sequence[Path] = (),
    ) -> None:
        """Note speed and BLEU of these sentences of the test set. ``also`` are further inputs of the stage."""
        folder, generate = self.exported(run, weights), self.settings.generate
        sources, references = ([self.text["test"][side][i] for i in chosen] for side in (self.source, self.target))
        task = {
            "data": str(self.commands.data),
            "threads": torch.get_num_threads(),
            "models": {WEIGHTS[weights]: str(folder)},
            "lines": sources,
            "cells": [[beam, batch]],
            "options": {name: generate[flag] for flag, name in OPTIONS.items() if generate.get(flag) is not None},
        }
        file = folder.parent / f"{name.replace(' ', '-')}.json"
        write_text(file, json.dumps(task, indent=1, ensure_ascii=False) + "\n")

        def results() -> dict[str, Any]:
            [cell] = json.loads(self.log(name).read_text(encoding="utf-8").splitlines()[-1])["cells"]
            return {
                "sentences_per_second": cell["sentences"] / cell["seconds"],
                "BLEU": scores.bleu(references, cell["text"], self.target),
                "repetition": scores.repetition(cell["text"], self.target)["any"],
            }

        command = ["python", "recipes/benchmarks/decoding.py", WEIGHTS[weights], str(file)]
        inputs = [file, *sorted(folder.iterdir()), *also]
        self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=results)

    # ---------------------------------------------------------------- facts

    def facts(self) -> dict[str, Any]:
        settings = self.settings
        scored = json.loads((self.out / "scores.json").read_text(encoding="utf-8"))
        keys = ("data_set", "source", "target", "tokenizer", "lower")
        facts = {
            **self.common_facts("sacrebleu"),
            "data": {
                **{key: self.data[key] for key in keys if key in self.data},
                "test_sentences": len(self.text["test"][self.source]),
                "curve_sentences": len(self.chosen["valid"]),
                "speed_sentences": len(self.chosen["test"]),
            },
            "curve_beam": settings.curve.beam if settings.curve else None,
            "loss": settings.train.get("best-checkpoint-metric", "loss"),
            "prepare": shlex.join(self.commands.prepare()),
            **{key: scored[key] for key in ("signatures", "copied_source", "references_repetition")},
            "systems": {system: self.system_facts(system, scored["runs"]) for system in settings.systems},
            "samples": self.samples(),
        }
        return {"verdict": verdict(facts), **facts}

    def system_facts(self, system: str, scored: dict[str, Any]) -> dict[str, Any]:
        runs = [self.run_facts(run, scored[f"{system} {run.seed}"]) for run in self.good(system)]
        facts: dict[str, Any] = {
            "failures": self.failures_of(system),
            "precision": self.precision(system),
            "runs": runs,
        }
        if not runs:
            return facts
        facts |= {
            "scores": {metric: spread(run["scores"][metric]["score"] for run in runs) for metric in runs[0]["scores"]},
            "training_tokens_per_second": self.training_speed(system, "tokens_per_second"),
            "decoding": self.speeds("generate", system),
        }
        if system in self.missing:
            facts["translator"] = {"missing": self.missing[system]}
        elif self.is_ours(system):
            facts["translator"] = {weights: self.translator_facts(weights, system) for weights in WEIGHTS}
        return facts

    def translator_facts(self, weights: str, system: str) -> dict[str, Any]:
        assert self.settings.speed
        facts: dict[str, Any] = {"BLEU": [], "repetition": [], "decoding": self.speeds(weights, system)}
        for key, beam in itertools.product(("BLEU", "repetition"), self.settings.speed.beams):
            names = [f"{run.stage('translator')} {weights} beam {beam}" for run in self.good(system)]
            facts[key].append({"beam": beam, **spread(self.stages.stamp(name)[key] for name in names)})
        return facts

    def speeds(self, decoder: str, system: str) -> list[dict[str, Any]]:
        """Sentences a second in each setting, medians of the rounds."""
        speed, medians = self.settings.speed, []
        for beam, batch in itertools.product(speed.beams, speed.batches) if speed else ():
            names = [timing(decoder, system, beam, batch, number + 1) for number in range(speed.rounds if speed else 0)]
            values = [self.stages.stamp(name)["sentences_per_second"] for name in names]
            medians.append({"beam": beam, "batch": batch, "sentences_per_second": statistics.median(values)})
        return medians

    def run_facts(self, run: Run, scored: dict[str, Any]) -> dict[str, Any]:
        stamp, points = self.stages.stamp, self.points(run)
        baseline = Run(self.settings.baseline, run.seed)
        theirs = self.points(baseline) if baseline in self.good() else []
        best = max((point["BLEU"] for point in theirs), default=None)
        keys = ("updates", "train_seconds", "clock_seconds", "parameters", "peak_memory", "peak_gpu_memory")
        parts = ["train", *(["average"] if self.settings.average > 1 else []), "generate"]
        return {
            "seed": run.seed,
            **{key: stamp(run.stage("train")).get(key) for key in keys},
            **scored,
            "seconds_to_baseline": None if best is None else seconds_to(best, points),
            "curve": points,
            "commands": [shlex.join(stamp(run.stage(part))["command"]) for part in parts],
        }

    def points(self, run: Run) -> list[dict[str, Any]]:
        """The learning curve."""
        if self.settings.curve is None:
            return []
        names = [f"{run.stage('curve')} {updates}" for updates, _ in self.checkpoints(run)]
        return [self.stages.stamp(name)["point"] for name in names]

    def samples(self) -> list[dict[str, Any]]:
        """Sentences from all of the test set, with each system's translation by its first run."""
        outputs = {system: lines(self.output(run)) for system, run in self.first().items()}
        source, reference = self.text["test"][self.source], self.text["test"][self.target]
        return [
            {
                "source": source[i],
                "reference": reference[i],
                "systems": {name: text[i] for name, text in outputs.items()},
            }
            for i in evenly(SAMPLES, len(source))
        ]


def seconds_to(bleu: float, curve: Sequence[dict[str, Any]]) -> float | None:
    """Training time of the first checkpoint with that BLEU; None if there is none."""
    return next((point["train_seconds"] for point in curve if point["BLEU"] >= bleu), None)
