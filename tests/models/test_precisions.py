"""Whole models in the precisions that fairseq trains in. recipes/gpu.sh runs this on a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from support.commands import OPTIMIZER, PLUGIN, SMOOTHED, hypotheses

WHERE = [] if torch.cuda.is_available() else ["--cpu"]
SIZES = ["--encoder-embed-dim", 32, "--decoder-embed-dim", 32, "--encoder-layers", 2, "--decoder-layers", 2]
# fairseq's --fp16 needs a GPU
PRECISIONS = ["float32", "--amp", "--bf16"] + ([] if WHERE else ["--fp16"])
ARCHS = {
    "sru_tiny": ["--encoder-hidden-size", 16, "--decoder-hidden-size", 32],
    "lstm_tiny": ["--encoder-hidden-size", 16, "--decoder-hidden-size", 32],
    "transformer_sru": ["--encoder-ffn-embed-dim", 64, "--decoder-ffn-embed-dim", 64],
}


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_model_learns_goes_on_and_translates(arch: str, precision: str, toy_data: Path, tmp_path: Path) -> None:
    model = [*PLUGIN, "--arch", arch, *SIZES, *ARCHS[arch], "--share-all-embeddings", *OPTIMIZER, *SMOOTHED]
    model += ["--clip-norm", 1.0, "--no-epoch-checkpoints", "--log-format", "json", "--save-dir", tmp_path, *WHERE]
    model += [precision] if precision.startswith("--") else []
    losses = []
    for epochs in (2, 4):
        done = run_cli("train", toy_data, *model, "--max-epoch", epochs)
        losses += [float(found) for found in re.findall(r'"valid_loss": "([\d.]+)"', done.stdout + done.stderr)]
    assert len(losses) == 4 and losses[3] < losses[1] < losses[0]
    decoding = [*PLUGIN, "--path", tmp_path / "checkpoint_last.pt", "--max-len-b", 12, *WHERE]
    half = ["--fp16"] if precision == "--fp16" else []
    assert len(hypotheses(run_cli("generate", toy_data, *decoding, *half).stdout)) == 53
