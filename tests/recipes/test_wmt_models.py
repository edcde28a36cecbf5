"""The models for WMT at their size: one trains, is averaged and translates on a CPU."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, preprocess, run_cli, write_pairs


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised pairs of 15 + 15 words, with a joint dictionary of 32,000."""
    folder = tmp_path_factory.mktemp("large")
    words = [f"w{number}" for number in range(32_000 - 4)]  # less fairseq's own
    random.Random(1).shuffle(words)
    text = [words[at : at + 15] for at in range(0, len(words), 15)]
    pairs = [(line, line[::-1]) for line in text]
    write_pairs(folder, "train", pairs)
    write_pairs(folder, "valid", pairs[:8])
    write_pairs(folder, "test", pairs[:8])
    return preprocess(folder)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sru_wmt", "lstm_wmt", "transformer_sru_wmt"])
def test_models_for_wmt_train_average_and_translate_on_a_cpu(arch: str, large_vocabulary: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoints"
    flags = "--share-all-embeddings --optimizer adam --adam-betas (0.9,0.98) --clip-norm 1.0 --lr 7e-4"
    flags += " --lr-scheduler inverse_sqrt --warmup-updates 4000 --criterion label_smoothed_cross_entropy"
    flags += " --label-smoothing 0.1 --max-tokens 4096 --max-update 3 --save-interval-updates 1"
    flags += " --no-epoch-checkpoints --no-last-checkpoints --disable-validation --log-format json --log-interval 1"
    common = [large_vocabulary, "--user-dir", "fairseq_sru", "--cpu"]
    said = run_cli("train", *common, "--arch", arch, "--save-dir", out, *flags.split()).stdout
    updates = [json.loads(line) for line in re.findall(r"\| train_inner \| (\{.*\})", said)]
    assert [(update["num_updates"], float(update["wpb"])) for update in updates] == [(n, 4096) for n in "123"]
    losses = [float(update["loss"]) for update in updates]
    assert abs(losses[0] - math.log2(32_000)) < 2
    command = [
        "recipes/average.py",
        "--inputs",
        str(out),
        "--num-update-checkpoints",
        "2",
        "--output",
        str(out / "mean.pt"),
    ]
    said = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"checkpoint_1_\d\.pt", said) == ["checkpoint_1_2.pt", "checkpoint_1_3.pt"]
    translated = run_cli("generate", *common, "--path", out / "mean.pt", "--beam", "5", "--max-len-b", "20").stdout
    assert len(re.findall(r"^D-\d+\t", translated, re.MULTILINE)) == 8
    shutil.rmtree(out)
