"""The stages of a comparison of translation systems in their order."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.files import write_text
from tqdm import tqdm

from . import scores
from .fairseq_output import carry, hypotheses, trained
from .settings import Settings
from .stages import StageError, evenly, lines
from .training import Run, Training
from .translators import Translators

SPLITS = ("valid", "test")
POSITIONS = 1024  # tokens of a sentence that fairseq takes unless told otherwise


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


def timing(system: str, number: int, beam: int, batch: int) -> str:
    """The name of a stage that times decoding."""
    return f"speed {system} beam {beam} batch {batch} {number}"


class Comparison(Training):
    """The stages of a comparison in their order."""

    def __init__(self, given: Settings) -> None:
        super().__init__(given)
        self.translators = Translators(self)

    def run(self) -> None:
        """All stages.

        Raises:
            StageError: the data could not be prepared.
        """
        self.prepare()
        self.time_training()
        self.do_runs()
        self.translators.score()
        self.time_decoding()
        self.score()

    def parts(self, run: Run) -> list[Callable[[], object]]:
        parts = [self.train, self.average, self.translate, *([self.curve] if self.settings.curve else [])]
        return [partial(part, run) for part in parts]

    def prepare(self) -> None:
        """The data, and from it the sentences that checkpoints are scored and decoding is timed on.

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
        self.check_lengths()
        self.subset = self.out / "subset"
        self.stages.function(
            "subset",
            self.chosen,
            lambda: write_subset(self.commands.data / "bin", self.subset, self.source, self.target, self.chosen),
            inputs=[self.manifest],
            outputs=[path for split in SPLITS for path in self.subset_files(split)],
        )

    def check_lengths(self) -> None:
        """Look for lines that fairseq refuses, which would show at the first validation, or after all training.

        Raises:
            StageError: there is one; the message says where, and what it exceeds.
        """
        from fairseq.data.data_utils import load_indexed_dataset

        generate, skip = self.settings.generate, "skip-invalid-size-inputs-valid-test"
        sides = (("source", self.source), ("target", self.target))
        sizes: dict[tuple[str, str], list[int]] = {}
        for split, (_, language) in itertools.product(SPLITS, sides):
            name = f"{split}.{self.source}-{self.target}.{language}"
            dataset = load_indexed_dataset(str(self.commands.data / "bin" / name))
            sizes[split, language] = list(dataset.sizes)  # of a file that is closed where dataset is gone
        for system, (side, language) in itertools.product(self.settings.systems, sides):
            flags, flag = self.settings.flags_of(system), f"max-{side}-positions"
            positions, read = flags.get(flag) or POSITIONS, generate.get(flag) or POSITIONS
            batch = flags.get("max-tokens-valid") or flags.get("max-tokens") or math.inf
            validation = {"train.max-tokens": batch, f"train.{flag}": math.inf if flags.get(skip) else positions}
            decoding = {"generate.max-tokens": generate.get("max-tokens") or math.inf, f"train.{flag}": positions}
            decoding[f"generate.{flag}"] = read
            cuts = [side == "source" and given.get("truncate-source") for given in (flags, generate)]
            validated = [("valid", validation, cuts[0] and positions)] * (not flags.get("disable-validation"))
            decoded = [(split, decoding, cuts[1] and read) for split in SPLITS]
            for split, limits, most in [*validated, *decoded]:
                tokens = sizes[split, language]
                scored = self.chosen["valid"] if split == "valid" and limits is decoding else range(len(tokens))
                if not scored:
                    continue
                longest, limit = max(scored, key=tokens.__getitem__), min(limits, key=limits.__getitem__)
                # fairseq counts one more where it truncates
                if (min(tokens[longest] + 1, most) if most else tokens[longest]) > limits[limit]:
                    line = f"line {longest + 1} of {split}.{language} has {tokens[longest]} tokens"
                    raise StageError(f"{line}; {limit} is {limits[limit]}")

    def subset_files(self, split: str) -> list[Path]:
        pair = f"{split}.{self.source}-{self.target}"
        return [self.subset / f"{pair}.{language}.bin" for language in (self.source, self.target)]

    def raw(self, split: str, ending: str) -> Path:
        return self.commands.data / f"{split}.{ending}"

    def decoding_speed(self, system: str, beam: int, batch: int) -> float:
        """Sentences a second, median of the rounds."""
        assert self.settings.speed
        names = [timing(system, number, beam, batch) for number in range(1, self.settings.speed.rounds + 1)]
        return statistics.median(self.stages.stamp(name)["sentences_per_second"] for name in names)

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
                inputs=[self.final(run), self.manifest, *self.commands.read_in_decoding()],
                outputs=[self.output(run)],
                log=self.log(name),
                on_line=lambda line: bar.update(line.startswith("D-")),
                facts=keep,
            )

    def curve(self, run: Run) -> None:
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

    def time_decoding(self) -> None:
        speed = self.settings.speed
        if speed is None:
            return
        tested = self.first()
        rounds = range(1, speed.rounds + 1)
        cells = itertools.product({run.system for run in self.good()}, rounds, speed.beams, speed.batches)
        names = list(itertools.starmap(timing, cells))
        names += [name for number in rounds for name in self.translators.timings(number)]
        known = [name for name in names if self.stages.stamp(name).get("done")]
        self.stages.alike(known, self.here if len(known) < len(names) else {})
        for number in rounds:
            for beam, batch, system in self.turns(f"decoding speed {number}", speed.beams, speed.batches, tested):
                if runs := self.good(system):
                    self.attempt(runs, partial(self.time, tested[system], number, beam, batch))
            self.translators.time(number)

    def time(self, run: Run, number: int, beam: int, batch: int) -> None:
        name = timing(run.system, number, beam, batch)
        more = {"beam": beam, "batch-size": batch, "max-tokens": None, "quiet": True}
        command = self.commands.generate(self.subset, "test", self.final(run), **more)

        def measured() -> dict[str, Any]:
            said = self.log(name).read_text(encoding="utf-8")
            found = re.search(r"Translated [\d,]+ sentences .* \(([\d.]+) sentences/s", said)
            if not found:
                raise ValueError(f"{self.log(name)} does not tell the speed")
            return {"sentences_per_second": float(found[1])}

        inputs = [*self.in_turns(), *self.subset_files("test"), *self.commands.read_in_decoding()]
        self.stages.command(name, command, inputs=inputs, outputs=[], log=self.log(name), facts=measured)

    def in_turns(self) -> list[Path]:
        """The models whose decoding is timed: where one is new, all are timed anew, as the machine is now."""
        return [self.final(run) for run in self.first().values()]

    def score(self) -> None:
        """Scores of all translations, to scores.json."""
        reference, labels = self.raw("test", self.target), self.raw("test", "domains")
        truth, baseline = self.text["test"][self.target], self.settings.baseline

        def work() -> None:
            found: dict[str, Any] = {"runs": {}, "signatures": {}}
            found["references_repetition"] = scores.repetition(truth, self.target)
            found["copied_source"] = scores.bleu(truth, self.text["test"][self.source], self.target)
            for seed in sorted(self.settings.seeds):
                outputs = {run.system: lines(self.output(run)) for run in self.good() if run.seed == seed}
                if not outputs:
                    continue
                compared = scores.compare(truth, outputs, baseline, self.target)
                found["signatures"] = compared["signatures"]
                for system, output in outputs.items():
                    scored: dict[str, Any] = {"scores": compared["systems"][system]}
                    scored["repetition"] = scores.repetition(output, self.target)
                    if labels.is_file():
                        scored["domains"] = scores.bleu_by_domain(truth, output, lines(labels), self.target)
                    if self.settings.split_compounds:
                        scored["scores"][scores.SPLIT] = {"score": scores.bleu_compounds_split(truth, output)}
                    found["runs"][f"{system} {seed}"] = scored
            write_text(self.out / "scores.json", json.dumps(found, indent=1) + "\n")

        what = [self.good(), baseline, self.settings.split_compounds, version("sacrebleu")]
        texts = [reference, self.raw("test", self.source), *([labels] if labels.is_file() else [])]
        inputs = [*texts, *map(self.output, self.good())]
        self.stages.function("score", what, work, inputs=inputs, outputs=[self.out / "scores.json"])
