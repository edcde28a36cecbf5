"""Settings of a comparison, as its YAML file has them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from common.machine import ROOT
from corpora.registry import CORPORA
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

# fairseq's flags that can't be given, by why
OURS = """user-dir cpu seed max-update total-num-update save-dir save-interval-updates no-save distributed-world-size
    no-epoch-checkpoints no-last-checkpoints log-format path gen-subset quiet results-path nbest"""
ENDING = "max-epoch patience stop-min-lr stop-time-hours"  # budgets would not be equal
RESTARTING = """no-save-optimizer-state reset-dataloader reset-lr-scheduler reset-meters reset-optimizer
    restore-file"""
REFUSED = {
    **dict.fromkeys(OURS.split(), "is set by the comparison itself"),
    **dict.fromkeys(ENDING.split(), "can't be given: the budget ends a run"),
    **dict.fromkeys(RESTARTING.split(), "can't be given: a run that was stopped could not go on"),
}

KINDS = ("translation", "sentences", "language", "speech")  # of what is compared
# by how text was made of subwords: flags of fairseq-generate that undo it
JOINING = {
    "sentencepiece": {"remove-bpe": "sentencepiece"},
    "moses-bpe": {"remove-bpe": "subword_nmt", "tokenizer": "moses"},
}
OF_TRANSLATION = ("average", "curve", "speed", "split_compounds")  # settings that other kinds have no use for


@dataclass
class Budget:
    """One of both."""

    updates: int | None = None
    minutes: float | None = None  # equal time: each system gets the updates that it makes in them


@dataclass
class Slices:
    """Training speed is measured in slices of all systems in turns; before each, as many updates warm up."""

    updates: int = 50
    rounds: int = 3


@dataclass
class Curve:
    """Checkpoints are scored on so many sentences of the validation set."""

    sentences: int = 500
    beam: int = 1


@dataclass
class Speed:
    """Decoding is timed on so many sentences of the test set, all systems in turns."""

    sentences: int = 128
    rounds: int = 3
    beams: list[int] = field(default_factory=lambda: [1, 5])
    batches: list[int] = field(default_factory=lambda: [1, 64])


@dataclass
class Settings:
    """A comparison. Flags of fairseq are spelled as on its command line; true stands for a flag without a value, null
    and false for none. Those of SPELLED in commands.py take the word."""

    kind: str = "translation"  # of KINDS
    out: str = MISSING  # folder for everything; paths are relative to the project's folder
    data: str | None = None  # data set of recipes/prepare.py; null for text of your own, which `prepare` names
    prepare: dict[str, Any] = field(default_factory=dict)  # flags of recipes/prepare.py
    systems: dict[str, Any] = field(default_factory=dict)  # name: flags of fairseq-train; null leaves a system out
    baseline: str = MISSING  # the system that the others are compared with
    user_dir: str = "fairseq_sru"  # fairseq's plugin; one of your own may import this one
    train: dict[str, Any] = field(default_factory=dict)  # flags of fairseq-train for all systems
    generate: dict[str, Any] = field(default_factory=dict)  # flags of fairseq-generate
    seeds: list[int] = field(default_factory=lambda: [1])
    budget: Budget = field(default_factory=Budget)
    checkpoints: int = 10  # a run
    average: int = 1  # so many last checkpoints make the model that is tested
    slices: Slices = field(default_factory=Slices)
    curve: Curve | None = field(default_factory=Curve)  # null: checkpoints are not scored
    speed: Speed | None = field(default_factory=Speed)  # null: decoding is not timed
    cpu: Any = "auto"  # true, false, or auto: without a GPU
    processes: int = 1  # of training, each with a GPU of its own; more than one, or options of torchrun's, through that
    torchrun: list[str] = field(default_factory=lambda: ["--standalone"])  # its options beside --nproc-per-node
    split_compounds: bool = False  # also a BLEU over tokens with hyphenated words split

    def flags_of(self, system: str) -> dict[str, Any]:
        """Flags of fairseq-train: the system's own, and those of all systems that it doesn't have."""
        return {**self.train, **self.systems[system]}


def wrong(key: str, what: str) -> NoReturn:
    raise ValueError(f"{key}: {what}")


def load(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a YAML file; ``key=value`` in ``overrides`` goes before it.

    Raises:
        ValueError: the message names the key, what is wrong with it and what is allowed.
    """
    if no_value := [word for word in overrides if not re.match(r"[^=]+=", word)]:
        wrong(no_value[0], "must be key=value")
    try:
        recipe: Any = OmegaConf.load(path)
        above = OmegaConf.from_dotlist(list(overrides))
        settings = OmegaConf.to_object(OmegaConf.merge(Settings, recipe, above))
    except ConfigKeyError as error:
        if not dataclasses.is_dataclass(error.object_type):
            raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
        allowed = ", ".join(sorted(f.name for f in dataclasses.fields(error.object_type)))
        raise ValueError(f"{error.full_key}: unknown key; allowed: {allowed}") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or path}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # of the YAML reader, which has several
        raise ValueError(f"{path} and {' '.join(overrides)} are not YAML: {error}") from None
    assert isinstance(settings, Settings)
    left_out = {name for name, options in settings.systems.items() if options is None}
    for name in left_out:
        del settings.systems[name]
    _check_kind(settings)
    _check_systems(settings)
    _check_numbers(settings)
    if settings.cpu not in (True, False, "auto"):
        wrong("cpu", f"must be true, false or auto; got {settings.cpu!r}")
    return settings


def tokenizer(s: Settings) -> str:
    """Name of the tokenizer that makes text into subwords: that of ``prepare``, or of the vocabulary that it takes."""
    if folder := s.prepare.get("vocabulary"):
        try:
            return str(json.loads((ROOT / folder / "manifest.json").read_text(encoding="utf-8"))["tokenizer"])
        except (OSError, ValueError, LookupError, TypeError):
            wrong("prepare.vocabulary", f"must be a folder of parallel text that prepare.py has made; got {folder}")
    return str(s.prepare.get("tokenizer", "sentencepiece"))


def _check_kind(s: Settings) -> None:
    if s.kind not in KINDS:
        wrong("kind", f"must be one of {', '.join(KINDS)}; got {s.kind!r}")
    if s.kind != "translation":
        for key in OF_TRANSLATION:
            if getattr(s, key) != getattr(Settings(), key):
                wrong(key, f"is for the kind translation only; this is {s.kind}")
        if s.kind == "sentences" and s.generate:
            wrong("generate", "is not for the kind sentences, which generates nothing")
    elif s.data is not None and s.data not in CORPORA:
        wrong("data", f"must be one of {', '.join(CORPORA)}, or null for text of your own; got {s.data}")
    elif tokenizer(s) == "moses-bpe":
        for key, allowed in JOINING["moses-bpe"].items():
            if (value := s.generate.get(key, allowed)) != allowed:
                wrong(f"generate.{key}", f"must be {allowed} where subwords are of moses-bpe; got {value}")
    for key in ("source-lang", "target-lang", "test-speakers", "out"):
        if not isinstance(value := s.prepare.get(key), str | None):
            wrong(f"prepare.{key}", f"must be text; YAML reads no as false, 01 as 1: quote it; got {value}")


def _check_systems(s: Settings) -> None:
    if not s.systems:
        wrong("systems", "must hold a system at least")
    for name, options in s.systems.items():
        if not re.fullmatch(r"[\w.-]+", name):
            wrong(f"systems.{name}", "a system's name is of letters, digits, '_', '-' and '.'")
        if not isinstance(options, dict) or "arch" not in {**s.train, **options}:
            wrong(f"systems.{name}", f"must be flags of fairseq-train, 'arch' among them; got {options!r}")
    groups = {"train": s.train, "generate": s.generate, **{f"systems.{n}": o for n, o in s.systems.items()}}
    for group, options in groups.items():
        for flag in REFUSED.keys() & {flag for flag, value in options.items() if value not in (None, False)}:
            if not (s.kind == "sentences" and flag in RESTARTING.split()):  # a fold begins again
                wrong(f"{group}.{flag}", REFUSED[flag])
    if s.baseline not in s.systems:
        wrong("baseline", f"must be one of {', '.join(s.systems)}; got {s.baseline}")


def _check_numbers(s: Settings) -> None:
    if not s.seeds or len(set(s.seeds)) != len(s.seeds):
        wrong("seeds", f"must be different numbers, one at least; got {s.seeds}")
    numbers: dict[str, Any] = {"checkpoints": s.checkpoints, "average": s.average, "processes": s.processes}
    for group in ("budget", "slices", "curve", "speed"):
        if (values := getattr(s, group)) is not None:
            numbers |= {f"{group}.{key}": value for key, value in dataclasses.asdict(values).items()}
    for key, value in numbers.items():
        if value == []:
            wrong(key, "must have a number at least")
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number <= 0:
                wrong(key, f"must be above 0; got {number}")
    updates = s.budget.updates
    if (updates is None) == (s.budget.minutes is None):
        wrong("budget", f"must have either updates or minutes; got {updates} and {s.budget.minutes}")
    if s.average > s.checkpoints:
        wrong("average", f"must be at most checkpoints, {s.checkpoints}; got {s.average}")
    if updates and updates < s.checkpoints:
        wrong("budget.updates", f"must be at least checkpoints, {s.checkpoints}; got {updates}")
    if updates and s.average > 1 and updates % s.checkpoints:  # those that are averaged are at equal distances
        wrong("budget.updates", f"must be a multiple of checkpoints, {s.checkpoints}; got {updates}")
    for name in s.systems:
        number = s.flags_of(name).get("keep-interval-updates") or 0
        if 0 < number < s.average:
            wrong(f"systems.{name}.keep-interval-updates", f"must be at least average, {s.average}; got {number}")


def updates_in(minutes: float, updates_per_second: float, checkpoints: int) -> int:
    """Updates of a run of that time: a multiple of the number of checkpoints, and one each at least."""
    return max(1, round(minutes * 60 * updates_per_second / checkpoints)) * checkpoints
