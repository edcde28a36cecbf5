"""Scores against sacreBLEU's own command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def check_paired(found: dict[str, Any], reference: Path, outputs: list[Path]) -> None:
    """Compare scores with what ``sacrebleu --paired-bs`` prints for the files; the first output is the baseline."""
    command = [sys.executable, "-m", "sacrebleu", str(reference), "-i", *map(str, outputs)]
    command += ["-m", "bleu", "chrf", "ter", "--paired-bs", "-f", "latex", "-w", "6"]
    env = {**os.environ, "NO_COLOR": "1"}
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    rows = [line.split("&")[1:] for line in printed.splitlines() if "±" in line and "CI" not in line]
    assert len(rows) == len(outputs)
    for row, output in zip(rows, outputs, strict=True):
        for cell, metric in zip(row, ("BLEU", "chrF2", "TER"), strict=True):
            score, mean, ci = map(float, re.match(r" *([\d.]+) \(([\d.]+) ± ([\d.]+)\)", cell).groups())
            p_value = re.search(r"p = ([\d.]+)", cell)
            ours = found[output.name][metric]
            assert ours["score"] == pytest.approx(score, abs=1e-5)
            assert ours["mean"] == pytest.approx(mean, abs=1e-4)
            assert ours["ci"] == pytest.approx(ci, abs=1e-4)
            assert (ours["p_value"] is None) == (p_value is None)
            assert p_value is None or ours["p_value"] == pytest.approx(float(p_value[1]), abs=1e-4)
