"""fairseq's commands on the toy data, as a user types them."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import run_cli

PLUGIN = ["--user-dir", "fairseq_sru"]
SMALL = ["--arch", "sru_tiny", "--encoder-embed-dim", 32, "--decoder-embed-dim", 32, "--encoder-hidden-size", 16]
SMALL += ["--share-all-embeddings", "--encoder-layers", 1, "--decoder-layers", 1, "--cpu", "--no-progress-bar"]
OPTIMIZER = ["--optimizer", "adam", "--lr", 5e-3, "--max-tokens", 400]
SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1]


def train(data: Path, save: Path, *more, check: bool = True, arch=tuple(SMALL), **env):
    words = [data, *PLUGIN, *arch, *OPTIMIZER, "--save-dir", save, *more]
    return run_cli("train", *words, check=check, **env)


def generate(data: Path, path, *more, **how):
    return run_cli("generate", data, *PLUGIN, "--path", path, "--cpu", "--max-len-b", 12, *more, **how).stdout


def hypotheses(text: str) -> dict[int, str]:
    """The output lines of fairseq-generate by sentence number; a sentence may have an empty one."""
    return {int(m[1]): m[2] for m in re.finditer(r"^H-(\d+)\t[^\t]*\t?(.*)$", text, re.M)}
