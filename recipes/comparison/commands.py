"""The commands that follow from a comparison's settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common.files import write_text
from common.machine import processor, source
from corpora.registry import CORPORA

from fairseq_sru.layers.linear import bfloat16_pays
from fairseq_sru.recurrence.dispatch import choose
from fairseq_sru.versions import __version__

from .settings import JOINING, Settings, tokenizer

READ = {"finetune-from-model", "encoder-embed-path", "decoder-embed-path"}  # are files that training begins with
SPELLED = {"decoder-attention", "decoder-coverage", "left-pad-source", "left-pad-target"}  # take the word True or False


def words(flags: Mapping[str, Any]) -> list[str]:
    line: list[str] = []
    for name, value in flags.items():
        if name in SPELLED and isinstance(value, bool):
            value = str(value)
        if value is None or value is False:
            continue
        line.append(f"--{name}")
        if value is not True:
            line += map(str, value if isinstance(value, list) else [value])
    return line


def files_named(flags: Mapping[str, Any]) -> list[Path]:
    """The files that flags name, also those of READ that are gone."""
    named = {flag: value for flag, value in flags.items() if isinstance(value, str)}
    return [Path(value) for flag, value in named.items() if flag in READ or os.path.isfile(value)]


def cpu_backend() -> str:
    """Name of the recurrence's backend on a CPU, or the reason why none runs."""
    try:
        return getattr(choose("auto", "cpu"), "name", "reference")
    except (RuntimeError, ValueError) as error:  # of what the environment names
        return str(error)


@dataclass(frozen=True)
class Commands:
    """The commands of a comparison, as they can be copied into a shell."""

    settings: Settings
    folder: str = "bin"  # that fairseq reads, in that of the data set

    @property
    def data(self) -> Path:
        return Path(self.settings.prepare.get("out", f"{self.settings.out}/data"))

    @property
    def cpu(self) -> bool:
        return not torch.cuda.is_available() if self.settings.cpu == "auto" else bool(self.settings.cpu)

    @property
    def gpus(self) -> list[str]:
        """Values of CUDA_VISIBLE_DEVICES for runs at a time: each has as many GPUs as processes, all like the first
        one. Empty on a CPU."""
        each, count = self.settings.processes, 0 if self.cpu else torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        kinds = [torch.cuda.get_device_name(i) for i in range(count)]
        names = [name for name, kind in zip(visible.split(","), kinds, strict=False) if kind == kinds[0]]
        return [",".join(names[i : i + each]) for i in range(0, len(names) - each + 1, each)]

    def prepare(self) -> list[str]:
        s = self.settings
        named = [] if s.data is None else [s.data]
        return ["python", "recipes/prepare.py", *named, *words({**s.prepare, "out": self.data})]

    def here(self) -> dict[str, Any]:
        """Facts of this machine that decide how fast the commands are, and versions of packages."""
        packages = {name: version(name) for name in ("torch", "fairseq")}
        packages["fairseq_sru"] = f"{__version__} (source {source('kernels/*', 'fairseq_sru/**/*.py')})"
        facts = {"processor": processor(), "threads": torch.get_num_threads(), **packages}
        if self.cpu:  # on a GPU it would take memory of it
            facts["backend"] = cpu_backend()
        elif torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
        return facts

    @cached_property
    def pays(self) -> bool:
        """True if this CPU is faster in bfloat16, as measured when the comparison began: a measurement on a busy
        machine could differ, and would change the commands that train."""
        if self._measured.is_file():
            return bool(json.loads(self._measured.read_text(encoding="utf-8"))["pays"])
        return bfloat16_pays()

    @property
    def _measured(self) -> Path:
        return Path(self.settings.out, "stamps", "bfloat16.json")

    def keep(self) -> None:
        """Note :attr:`pays` for commands that go on with this comparison."""
        if self.cpu and not self._measured.is_file():
            write_text(self._measured, json.dumps({"pays": self.pays}) + "\n")

    def options(self, system: str) -> dict[str, Any]:
        """A system's flags of fairseq-train: on a CPU in bfloat16 where that pays, unless the settings say how."""
        given = self.settings.flags_of(system)
        said = given.keys() & {"amp", "bf16", "fp16", "memory-efficient-bf16", "memory-efficient-fp16"}
        return given if said else {"amp": self.cpu and self.pays, **given}

    def read_in_decoding(self) -> list[Path]:
        """The files that the flags of fairseq-generate name, such as a language model."""
        return files_named(self.settings.generate)

    def train(self, system: str, seed: int, updates: int, every: int, folder: Path, **more: Any) -> list[str]:
        """Train for ``updates`` updates with a checkpoint after ``every``; a warm-up below 1 is a share of them."""
        s = self.settings
        flags = {**self.options(system), **more, "seed": seed, "max-update": updates}
        if isinstance(warmup := flags.get("warmup-updates"), float) and warmup < 1:
            flags["warmup-updates"] = round(warmup * updates)
        if flags.get("lr-scheduler") == "polynomial_decay":
            flags["total-num-update"] = updates
        flags |= {"save-dir": folder, "save-interval-updates": every, "no-epoch-checkpoints": True}
        flags |= {"log-format": "json", "cpu": self.cpu}
        if s.processes > 1 or s.torchrun != Settings().torchrun:
            start = ["torchrun", *s.torchrun, f"--nproc-per-node={s.processes}", "-m", "fairseq_cli.train"]
            if self.cpu:  # fairseq's default wants a GPU
                flags["distributed-backend"] = "gloo"
        else:
            start = ["fairseq-train"]
            flags["distributed-world-size"] = None if self.cpu else 1  # else it takes every GPU that it sees
        return [*start, str(self.data / self.folder), "--user-dir", s.user_dir, *words(flags)]

    def joining(self) -> dict[str, Any]:
        """Flags of fairseq-generate that make text of subwords."""
        if self.settings.kind != "translation":
            return {}
        if tokenizer(self.settings) != "moses-bpe":
            return dict(JOINING["sentencepiece"])
        prepare, known = self.settings.prepare, CORPORA.get(str(self.settings.data))
        own = (prepare.get("source-lang", ""), prepare.get("target-lang", ""))
        source, target = known.languages if known else own
        return {**JOINING["moses-bpe"], "source-lang": source, "target-lang": target}

    def generate(self, data: Path, split: str, checkpoint: Path, **more: Any) -> list[str]:
        given = self.settings.generate
        unsaid = {flag: value for flag, value in self.joining().items() if flag not in given}
        flags = {"required-batch-size-multiple": 1, **given, **unsaid, **more}  # or fairseq's main loses sentences
        flags |= {"no-progress-bar": True, "cpu": self.cpu}
        start = ["fairseq-generate", str(data), "--user-dir", self.settings.user_dir, "--gen-subset", split]
        return [*start, "--path", str(checkpoint), *words(flags)]

    def average(self, checkpoints: Sequence[Path], output: Path) -> list[str]:
        return ["python", "recipes/average.py", "--inputs", *map(str, checkpoints), "--output", str(output)]
