"""precision.py: real training in both precisions, and its file. No time decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import precision
import pytest
from conftest import ROOT

RECIPE = {
    "data": "lohelp-en-de",
    "prepare": {"vocab-size": 1000},
    "systems": {"sru": {"arch": "sru_tiny", "encoder-layers": 1, "decoder-layers": 1}, "lstm": {"arch": "lstm"}},
    "baseline": "lstm",
    "budget": {"updates": 100},
    "cpu": True,
    "train": {"optimizer": "adam", "lr": 0.01, "max-tokens": 200, "num-workers": 0},
}


@pytest.mark.slow
def test_the_file(tmp_path: Path) -> None:
    recipe, output = tmp_path / "small.yaml", tmp_path / "found.json"
    recipe.write_text(json.dumps(RECIPE))
    words = [recipe, "slices={updates: 2, rounds: 1}", f"out={tmp_path / 'out'}", "--output", output]
    command = [sys.executable, "recipes/precision.py", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(output.read_text())
    assert found["recipe"] == "small" and found["machine"]["threads"] == 1
    assert list(found["tokens_per_second"]) == ["sru", "lstm"]
    for speeds in found["tokens_per_second"].values():
        assert list(speeds) == ["float32", "bfloat16"] and min(speeds.values()) > 0
    stamps = (tmp_path / "out" / "stamps").glob("slice-*.json")
    assert {path.stem: "--amp" in json.loads(path.read_text())["command"] for path in stamps} == {
        f"slice-{system}-{precision}-1": precision == "bfloat16"
        for system in found["tokens_per_second"]
        for precision in ("float32", "bfloat16")
    }


def test_a_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precision.main(
            [str(ROOT / "recipes" / "configs" / "lohelp.yaml"), "cpu=false", "--output", str(tmp_path / "a")]
        )
    assert "lohelp.yaml: on a GPU --amp is float16: add cpu=true" in capsys.readouterr().err.splitlines()[-1]


def test_recipes_of_other_kinds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precision.main([str(ROOT / "recipes" / "configs" / "language.yaml"), "--output", str(tmp_path / "found.json")])
    assert "language.yaml: kind: must be translation; got language" in capsys.readouterr().err.splitlines()[-1]
