"""fairseq's commands on the toy data, as a user types them."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import ROOT, preprocess, reversed_pairs, run_cli, write_pairs

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


def hydra_words(data: Path, save: Path, model: str, *more, task: str = "translation") -> list[str]:
    """Return the arguments of fairseq-hydra-train for the preset ``model``, such as ``sru/sru_tiny``."""
    plugin = ROOT / "fairseq_sru"  # absolute: hydra changes the folder
    words = ["--config-dir", str(plugin / "config"), f"model={model}", f"task={task}", f"task.data={data}"]
    words += ["optimizer=adam", "optimization.lr=[0.005]", "lr_scheduler=inverse_sqrt", "common.cpu=true"]
    return [*words, f"common.user_dir={plugin}", f"hydra.run.dir={save}", f"checkpoint.save_dir={save}", *more]


def reverses(folder: Path, arch: list, beam: int, epochs: int) -> float:
    """The share of 200 sequences that a model reverses, after so many epochs of 4,000 others: the decoder can't do it
    without attention that moves, or a state that keeps count."""
    test = reversed_pairs(200, 3)
    for split, pairs in (("train", reversed_pairs(4000, 1)), ("valid", reversed_pairs(100, 2)), ("test", test)):
        write_pairs(folder, split, pairs)
    data, save = preprocess(folder), folder / "save"
    schedule = ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", 100, "--max-epoch", epochs, "--max-tokens", 1000]
    train(data, save, *schedule, "--no-epoch-checkpoints", arch=["--arch", *arch, "--cpu"])
    found = hypotheses(generate(data, save / "checkpoint_best.pt", "--beam", beam))
    return sum(found[i].split() == target for i, (_, target) in enumerate(test)) / len(test)
