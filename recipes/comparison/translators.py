"""The translator (fairseq_sru.Translator) with the models of a comparison: scored, and timed on a CPU."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from benchmarks.decoding import FLOAT32, INT8
from common.files import write_text
from corpora.subwords import MODELS
from tqdm import tqdm

from . import scores
from .report import spread
from .stages import StageError
from .training import Run

if TYPE_CHECKING:
    from .runs import Comparison

WEIGHTS = {"float32": FLOAT32, "int8": INT8}  # as a benchmark calls them
FILES = ("config.json", "vocabulary.json", "weights.safetensors")  # of an exported model, and the subword model
OURS = ("sru", "transformer_sru")  # what architectures begin with that it may be able to run
OPTIONS = {"lenpen": "lenpen", "max-len-b": "max_length", "no-repeat-ngram-size": "no_repeat_ngram_size"}
# of fairseq-generate, that it doesn't know
OTHERS = [
    *("constraints", "diverse-beam-groups", "diversity-rate", "lm-path", "match-source-len", "max-len-a", "min-len"),
    *("prefix-size", "replace-unk", "retain-dropout", "sampling", "temperature", "unkpen", "unnormalized"),
]
MANY = 64  # sentences at a time where nothing is timed


def _timing(system: str, weights: str, number: int) -> str:
    return f"speed {system} translator {weights} {number}"


class Translators:
    """The stages of a comparison that have to do with the translator.

    Attributes:
        missing: why it did not run a system.
    """

    def __init__(self, c: Comparison) -> None:
        self.c = c
        self.missing: dict[str, str] = {}
        generate = c.settings.generate
        self.options = {name: generate[flag] for flag, name in OPTIONS.items() if generate.get(flag) is not None}
        others = [flag for flag in OTHERS if generate.get(flag)]
        self._refused = f"it doesn't know --{others[0]}, which fairseq-generate has here" if others else None

    def systems(self) -> dict[str, Run]:
        """The first run of each system that it may be able to run."""
        if not self.c.commands.cpu or self.c.settings.speed is None:
            return {}
        flags_of = self.c.settings.flags_of
        return {system: run for system, run in self.c.first().items() if flags_of(system)["arch"].startswith(OURS)}

    def score(self) -> None:
        """Translate the test set with each run's model."""
        speed = self.c.settings.speed
        cells = [(beam, MANY) for beam in speed.beams] if speed else []
        everything = range(len(self.c.text["test"][self.c.source]))
        systems = self.systems()
        for run, weights in itertools.product(self.c.good(), WEIGHTS):
            if run.system in systems:
                self._attempt(run.system, partial(self._export, run, weights))
                name = f"{run.stage('translator')} {weights}"
                self._attempt(run.system, partial(self._translate, name, run, weights, cells, everything))

    def timings(self, number: int) -> list[str]:
        """The names of what :meth:`time` notes."""
        systems = () if self._refused else [system for system in self.systems() if system not in self.missing]
        return [_timing(system, weights, number) for system in systems for weights in WEIGHTS]

    def time(self, number: int) -> None:
        """A round of decoding, on the sentences that fairseq-generate's speed is measured on."""
        speed = self.c.settings.speed
        assert speed
        cells = list(itertools.product(speed.beams, speed.batches))
        chosen, beside = self.c.chosen["test"], self.c.in_turns()
        for run, weights in itertools.product(self.systems().values(), WEIGHTS):
            name = _timing(run.system, weights, number)
            self._attempt(run.system, partial(self._translate, name, run, weights, cells, chosen, beside))

    def _attempt(self, system: str, work: Callable[[], object]) -> None:
        if self._refused:
            self.missing[system] = self._refused
        if system in self.missing:
            return
        try:
            work()
        except StageError as error:
            self.missing[system] = str(error).splitlines()[-1]
            tqdm.write(f"left out, the translator of {system}: {error}")

    def _folder(self, run: Run, weights: str) -> Path:
        return self.c.out / "models" / f"{run.file}-{weights}"

    def _export(self, run: Run, weights: str) -> None:
        c, folder, name = self.c, self._folder(run, weights), f"{run.stage('export')} {weights}"
        kind, lower, normalise = c.data["tokenizer"], c.data.get("lower", False), c.data.get("normalise", True)
        subwords = c.commands.data / MODELS[kind]
        flag = "--sentencepiece-model" if kind == "sentencepiece" else "--subword-nmt-codes"
        command = ["python", "-m", "fairseq_sru.export", "--path", str(c.final(run)), flag, str(subwords)]
        command += ["--data", str(c.commands.data / "bin"), "--out", str(folder)]
        command += ["--lowercase"] if lower else []
        command += ["--no-normalise"] if normalise is False and kind != "sentencepiece" else []
        command += ["--int8"] if weights == "int8" else []
        inputs, outputs = [c.final(run), c.manifest], [folder / file for file in (*FILES, MODELS[kind])]
        c.stages.command(name, command, inputs=inputs, outputs=outputs, log=c.log(name))

    def _translate(
        self,
        name: str,
        run: Run,
        weights: str,
        cells: list[tuple[int, int]],
        chosen: Sequence[int],
        beside: Sequence[Path] = (),
    ) -> None:
        """A stage that notes speed and BLEU of these sentences of the test set in each cell; beside: what is timed in
        the same turns."""
        c, folder, test = self.c, self._folder(run, weights), self.c.text["test"]
        task = {
            "data": str(c.commands.data),
            "threads": torch.get_num_threads(),
            "models": {WEIGHTS[weights]: str(folder)},
            "lines": [test[c.source][i] for i in chosen],
            "cells": cells,
            "options": self.options,
        }
        file = folder.parent / f"{name.replace(' ', '-')}.json"
        write_text(file, json.dumps(task, indent=1, ensure_ascii=False) + "\n")

        def measured() -> dict[str, Any]:
            found = json.loads(c.log(name).read_text(encoding="utf-8").splitlines()[-1])["cells"]
            references = [test[c.target][i] for i in chosen]
            return {
                "cells": [
                    {
                        "beam": beam,
                        "batch": batch,
                        "sentences_per_second": cell["sentences"] / cell["seconds"],
                        "BLEU": scores.bleu(references, cell["text"], c.target),
                        "repetition": scores.repetition(cell["text"], c.target)["any"],
                    }
                    for (beam, batch), cell in zip(cells, found, strict=True)
                ]
            }

        command = ["python", "recipes/benchmarks/decoding.py", WEIGHTS[weights], str(file)]
        inputs = [file, *sorted(folder.iterdir()), *beside]
        c.stages.command(name, command, inputs=inputs, outputs=[], log=c.log(name), facts=measured)

    def found(self, system: str) -> dict[str, Any]:
        """What a report says of a system that it may be able to run."""
        if system in self.missing:
            return {"missing": self.missing[system]}
        made: dict[str, Any] = {}
        c = self.c
        assert c.settings.speed
        for weights in WEIGHTS:
            runs, numbers = c.good(system), range(1, c.settings.speed.rounds + 1)
            tested = [c.stages.stamp(f"{run.stage('translator')} {weights}")["cells"] for run in runs]
            rounds = [c.stages.stamp(_timing(system, weights, number))["cells"] for number in numbers]
            made[weights] = {
                **{
                    key: [
                        {"beam": cells[0]["beam"], **spread(cell[key] for cell in cells)}
                        for cells in zip(*tested, strict=True)
                    ]
                    for key in ("BLEU", "repetition")
                },
                "decoding": [
                    {
                        **{key: cells[0][key] for key in ("beam", "batch")},
                        "sentences_per_second": statistics.median(cell["sentences_per_second"] for cell in cells),
                    }
                    for cells in zip(*rounds, strict=True)
                ],
            }
        return made
