"""Compare translation systems: train, translate, score, time and report, as a YAML file says.

    python recipes/compare.py recipes/lohelp.yaml [key=value ...]
    python recipes/compare.py recipes/lohelp.yaml out=runs/mine seeds=[1,2,3] systems.sru.dropout=0.2

Stopped and run again, it goes on where it stopped; with other settings, what they concern is done again. ``--dry-run``
prints the commands and checks their flags. The exit status is 1 if a system failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare_report
import scores
import settings
import stages
from common.files import write_text
from common.hold import FolderError, held
from common.machine import processor
from report import Trained, hypotheses, trained
from settings import Commands, Settings
from stages import StageError, Stages, evenly, lines

from fairseq_sru.models.config import PRESETS
from fairseq_sru.versions import __version__

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("valid", "test")
SAMPLES = 10  # translations that a report shows


class Run(NamedTuple):
    """A system that is trained with a seed."""

    system: str
    seed: int

    def stage(self, what: str) -> str:
        """The name of a stage of this run."""
        return f"{what} {self.system} {self.seed}"

    @property
    def file(self) -> str:
        """What names its files."""
        return f"{self.system}-{self.seed}"


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
        self.runs: list[Run] = [
            Run(n, seed) for seed in given.all_seeds() for n in given.systems if seed in given.seeds_of(n)
        ]

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
        rounds = range(1, self.settings.slices.rounds + 1)
        for number, system in self.turns("training speed", rounds, self.settings.systems):
            self.attempt([run for run in self.runs if run.system == system], partial(self.slice, system, number))
        for run in self.runs:
            self.attempt([run], partial(self.train, run))
            self.attempt([run], partial(self.average, run))
        for run in self.runs:
            self.attempt([run], partial(self.translate, run))
            self.attempt([run], partial(self.curve, run))
        self.time_decoding()
        self.score()
        self.report()

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

    def slice(self, system: str, number: int) -> None:
        """Measure a system's training speed once."""
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
        """Score each checkpoint on sentences of the validation set."""
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

    def report(self) -> None:
        found = collected(self)
        files = [self.out / name for name in compare_report.FILES]
        self.stages.function("report", found, lambda: compare_report.write(found, self.out), inputs=[], outputs=files)
        print(f"\n{found['verdict']}\n\n{self.out / 'report.md'}")


# What the report says, from what the stages noted


def seconds_to(bleu: float, curve: Sequence[dict[str, Any]]) -> float | None:
    """Training time of the first checkpoint with that BLEU; None if there is none."""
    return next((point["train_seconds"] for point in curve if point["BLEU"] >= bleu), None)


def machine(cpu: bool) -> dict[str, Any]:
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None if cpu else torch.cuda.get_device_name(),
        "system": platform.platform(),
    }


def curve(c: Comparison, run: Run) -> list[dict[str, Any]]:
    return [c.stages.stamp(f"{run.stage('curve')} {updates}")["point"] for updates, _ in c.checkpoints(run)]


def collected_run(c: Comparison, run: Run, scored: dict[str, Any]) -> dict[str, Any]:
    """``scored``: of all runs, as score() has them."""
    stamp, trained, points = c.stages.stamp, c.stages.stamp(run.stage("train")), curve(c, run)
    baseline = Run(c.settings.baseline, run.seed)
    best = max((point["BLEU"] for point in curve(c, baseline)), default=None) if baseline in c.good() else None
    keys = ("updates", "train_seconds", "clock_seconds", "parameters", "peak_memory", "peak_gpu_memory")
    stages = ["train", *(["average"] if c.settings.average > 1 else []), "generate"]
    return {
        "seed": run.seed,
        **{key: trained.get(key) for key in keys},
        **scored[f"{run.system} {run.seed}"],
        "seconds_to_baseline": None if best is None else seconds_to(best, points),
        "curve": points,
        "commands": [shlex.join(stamp(run.stage(stage))["command"]) for stage in stages],
    }


def collected_system(c: Comparison, system: str, scored: dict[str, Any]) -> dict[str, Any]:
    failures = list(dict.fromkeys(text for run, text in c.failures.items() if run.system == system))
    runs = [collected_run(c, run, scored) for run in c.good() if run.system == system]
    found: dict[str, Any] = {"failures": failures, "runs": runs}
    if runs:
        found["scores"] = {m: compare_report.spread(r["scores"][m]["score"] for r in runs) for m in runs[0]["scores"]}
        found["training_tokens_per_second"] = c.training_speed(system, "tokens_per_second")
        found["decoding"] = [
            {"beam": beam, "batch": batch, "sentences_per_second": c.decoding_speed(system, beam, batch)}
            for beam, batch in itertools.product(c.settings.speed.beams, c.settings.speed.batches)
        ]
    return found


def collected(c: Comparison) -> dict[str, Any]:
    """The report."""
    s, found = c.settings, json.loads((c.out / "scores.json").read_text(encoding="utf-8"))
    report = {
        "name": c.out.name,
        "date": max((c.stages.stamp(run.stage("generate"))["finished"] for run in c.good()), default=None),
        "data": {
            **{key: c.data[key] for key in ("data_set", "source", "target", "tokenizer")},
            "test_sentences": len(c.text["test"][c.source]),
            "curve_sentences": len(c.chosen["valid"]),
            "speed_sentences": len(c.chosen["test"]),
        },
        "budget": {key: value for key, value in vars(s.budget).items() if value is not None},
        "baseline": s.baseline,
        "curve_beam": s.curve.beam,
        "loss": s.train.get("best-checkpoint-metric", "loss"),
        "machine": machine(c.commands.cpu),
        "versions": {
            "python": platform.python_version(),
            "fairseq_sru": __version__,
            **{name: version(name) for name in ("torch", "fairseq", "sacrebleu")},
        },
        "prepare": shlex.join(c.commands.prepare()),
        **{key: found[key] for key in ("signatures", "copied_source", "references_repetition")},
        "systems": {system: collected_system(c, system, found["runs"]) for system in s.systems},
        "samples": samples(c),
    }
    return {"verdict": compare_report.verdict(report), **report}


def samples(c: Comparison) -> list[dict[str, Any]]:
    """Sentences from all of the test set, with each system's translation by its first run."""
    outputs = {system: lines(c.output(run)) for system, run in c.first().items()}
    source, reference = c.text["test"][c.source], c.text["test"][c.target]
    return [
        {"source": source[i], "reference": reference[i], "systems": {name: text[i] for name, text in outputs.items()}}
        for i in evenly(SAMPLES, len(source))
    ]


def dry_run(given: Settings) -> None:
    """Check fairseq's flags and print the commands, of the first seed and the last system's model; under an
    equal-time budget with a number of updates that stands for what will be measured.

    Raises:
        SystemExit: fairseq doesn't take a flag; it says which.
    """
    from fairseq import options

    commands, out = Commands(given), Path(given.out)
    print(shlex.join(commands.prepare()))
    with tempfile.TemporaryDirectory() as no_data:
        for language in ("source", "target"):
            Path(no_data, f"dict.{language}.txt").touch()

        def check(command: list[str], parser: argparse.ArgumentParser) -> None:
            print(shlex.join(command))
            flags = command[command.index(f"{commands.data}/bin") + 1 :]
            options.parse_args_and_arch(parser, input_args=[no_data, *flags])

        for system in given.systems:
            updates = given.budget.updates or given.checkpoints
            seed = given.seeds_of(system)[0]
            folder = out / "checkpoints" / f"{system}-{seed}"
            every = updates // given.checkpoints
            check(commands.train(system, seed, updates, every, folder), options.get_training_parser())
        generate = commands.generate(commands.data / "bin", "test", folder / "checkpoint_last.pt")
        check(generate, options.get_generation_parser())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="goes before the recipe's value")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and check their flags")
    args = parser.parse_intermixed_args(argv)
    if not args.recipe.is_file():
        parser.error(f"no such file: {args.recipe}")
    try:
        given = settings.load(args.recipe, args.overrides)
    except ValueError as error:
        parser.error(f"{args.recipe}: {error}")
    logging.disable(logging.INFO)  # of fairseq and sacreBLEU, in this process
    os.chdir(ROOT)  # where the commands that are printed can be copied to
    if args.dry_run:
        dry_run(given)
        return 0
    out = Path(given.out)
    comparison = Comparison(given)
    try:
        with held(out, mixed=(out / "stamps" / "subset.json").is_file()):  # of a version that left no other trace
            comparison.run()
    except FolderError as error:
        parser.error(f"out: {error}")
    except StageError as error:
        sys.exit(f"compare.py: {error}")
    except KeyboardInterrupt:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        return 130
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
