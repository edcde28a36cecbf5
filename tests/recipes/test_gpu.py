"""gpu.sh: its parts at small sizes without a GPU, parts that fail or take too long, and its tables. No time decides but
that a part which sleeps for an hour is stopped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.registry import CONTESTANTS
from conftest import ROOT, ended
from gpu import __main__ as day
from gpu import tables
from gpu.__main__ import Part

# What the others' packages offer, by plain torch.
STAND_INS = {
    "accelerated_scan/__init__.py": "",
    "accelerated_scan/warp.py": """
import torch
def scan(gates, tokens):
    assert gates.shape == tokens.shape and gates.is_contiguous() and tokens.is_contiguous()
    state, states = 0, []
    for gate, token in zip(gates.unbind(-1), tokens.unbind(-1)):
        state = gate * state + token
        states.append(state)
    return torch.stack(states, -1)
""",
    "fla/__init__.py": "",
    "fla/ops/__init__.py": "",
    "fla/ops/hgrn.py": """
from accelerated_scan.warp import scan
def fused_recurrent_hgrn(x, g):
    return scan(g.exp().transpose(1, 2).contiguous(), x.transpose(1, 2).contiguous()).transpose(1, 2), None
chunk_hgrn = fused_recurrent_hgrn
""",
}


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    """With stand-ins of others' packages."""
    for name, text in STAND_INS.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    out = tmp_path / "results" / "card"
    place = os.pathsep.join(map(str, (ROOT, ROOT / "recipes", tmp_path / "site")))
    env = {**os.environ, "FAIRSEQ_SRU_GPU_DRY": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": place}
    env["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "gpu", str(out), "--minutes", "60"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert {name: part["state"] for name, part in report["parts"].items()} == {
        part.name: "done" for part in day.parts(out, out)
    }
    assert "All is well." in (out / "doctor.txt").read_text()

    layers, others = (json.loads((out / f"{name}.json").read_text()) for name in ("layer", "others"))
    assert {(case["dtype"], case["mode"]) for case in layers["cases"]} == {
        (dtype, mode) for dtype in ("float32", "bfloat16") for mode in ("eager", "CUDA graph")
    }
    assert not layers["other_kernels"] and others["other_kernels"]
    assert all(set(case["ms"]) == set(CONTESTANTS["recurrence"]) for case in others["other_kernels"])
    assert "<svg" in (out / "layer.svg").read_text()
    for name, preset, cases in (("updates", "sru_wmt", 5), ("model", "sru_iwslt_de_en", 5)):
        models = json.loads((out / f"{name}.json").read_text())
        assert (models["preset"], len(models["cases"])) == (preset, cases)
    for name, tokens in (("training", 1000), ("training4096", 4096)):
        trained = json.loads((out / f"{name}.json").read_text())
        assert list(trained["systems"]) == list(day.SYSTEMS)
        for system in trained["systems"].values():
            assert system["training_tokens_per_second"] > 0 and not system["failures"]
            assert f"--max-tokens {tokens} " in system["runs"][0]["commands"][0]

    page = (out / "report.md").read_text()
    for make in tables.TABLES.values():
        table = make(out)
        assert table.count("\n|") > 2 and table in page
    passed = dict(re.findall(r"^\| (\w+) \| done .* (\d+) passed", page, re.MULTILINE))
    assert passed == {"tests": "1", "precisions": "1"}
    assert tables.layers(out) in tables.published(out.parent)
    assert f"(../recipes/results/gpu/{out.name}/layer.svg)\n" in tables.published(out.parent)


# ---------------------------------------------------------------- the order of things


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(part, ...)`` does these parts; how each ended."""
    monkeypatch.setattr(day, "DRY", True)

    def go(*todo: Part, minutes: int = 10) -> dict[str, str]:
        monkeypatch.setattr(day, "parts", lambda out, work: list(todo))
        day.main([str(tmp_path), "--minutes", str(minutes)])
        found = json.loads((tmp_path / "report.json").read_text())["parts"]
        return {part.name: found[part.name]["state"] for part in todo}

    return go


def test_a_part_that_fails_or_hangs_leaves_the_others(run: Any, tmp_path: Path) -> None:
    grandchild = tmp_path / "pid"
    hang = f"""
import subprocess, time
child = subprocess.Popen(["sleep", "3600"])
open({str(grandchild)!r}, "w").write(str(child.pid))
print("begun", flush=True)
time.sleep(3600)
"""
    todo = [
        Part("fails", 60, ["-c", "raise SystemExit('no such card')"]),
        Part("hangs", 5, ["-c", hang]),
        Part("last", 60, ["-c", "print('shown')"]),
    ]
    assert run(*todo) == {"fails": "failed", "hangs": "stopped", "last": "done"}
    assert (tmp_path / "hangs.txt").read_text() == "begun\n"
    assert (tmp_path / "last.txt").read_text() == "shown\n"
    assert ended(grandchild.read_text()), "what it had started ended with it"
    page = (tmp_path / "report.md").read_text()
    assert "| fails | failed |" in page and "| hangs | stopped |" in page


def test_what_is_done_is_not_done_again(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(int(open(sys.argv[2]).read()))"
    todo = [Part(name, 60, ["-c", count, str(tmp_path / name), str(tmp_path / f"{name}-status")]) for name in "ab"]
    (tmp_path / "a-status").write_text("0")
    (tmp_path / "b-status").write_text("1")
    assert run(*todo) == {"a": "done", "b": "failed"}
    (tmp_path / "b-status").write_text("0")
    assert run(*todo) == {"a": "done", "b": "done"}
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("x", "xx")
    monkeypatch.setattr(day, "source", lambda *_: "other")
    monkeypatch.setenv("FAIRSEQ_SRU_GPU_BEGUN", "0")
    assert run(*todo) == {"a": "not begun", "b": "not begun"}


def test_without_a_gpu_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        day.main([str(tmp_path)])
    assert ended.value.code == 2 and not list(tmp_path.iterdir())


def test_parts_name_what_is_there() -> None:
    todo = day.parts(Path("out"), Path("work"))
    for part in todo:
        for word in part.command:
            if re.match(r"(recipes|tests)/", word):
                assert (ROOT / word).is_file(), word
    names = [part.name for part in todo]
    # what matters most, within ten minutes
    assert sum(part.limit for part in todo[: names.index("training") + 1]) < 60 * day.MINUTES


# ---------------------------------------------------------------- tables and packages

HERE = {"device": "Tesla Z1", "threads": 1, "torch": "2.13", "date": "2026-11-29"}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_a_layers_table_says_whether_cudnn_ran(tmp_path: Path) -> None:
    ms = {name: {"median": median} for name, median in (("LSTM", 9.0), ("SRU", 2.0))}
    case = {"what": "forward", "length": 32, "batch": 32, "size": 512, "dtype": "float32", "mode": "eager", "ms": ms}
    report = {"machine": HERE, "turns": 1, "contestants": {"LSTM": "nn.LSTM (_cudnn_rnn)", "GRU": "nn.GRU"}}
    report["cases"] = [{**case, "ratios": {"LSTM / SRU": 4.5}}]
    (tmp_path / "layer.json").write_text(json.dumps(report))
    table = tables.layers(tmp_path)
    assert table.startswith("Milliseconds of a call; LSTM: nn.LSTM (_cudnn_rnn). Tesla Z1")
    assert rows(table)[-1] == ["forward L32 B32 d512", "–", "9.00", "–", "2.00", "–", "–", "4.50", "–"]


ONLINE = """#!/bin/bash
case $2 in
    *torch.version.cuda*) echo 12 ;;
    "import cupy") exit 1 ;;
    *get_device_capability*) echo 9.0 ;;
    pip) [ "$4" = install ] && { echo "$@"; exit 1; } || echo "$@ | $PIP_CONSTRAINT | $PIP_USER" ;;
    *RIVALS*) echo one two ;;
    *find_spec*) echo sru ;;
    *) echo "$@ | $TORCH_CUDA_ARCH_LIST | $PIP_CONSTRAINT | $PIP_USER" ;;
esac
"""


def test_the_script_installs_what_is_missing(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for folder in (project / "recipes", tmp_path / "bin"):
        folder.mkdir(parents=True)
    (project / "recipes" / "gpu.sh").write_text((ROOT / "recipes" / "gpu.sh").read_text())
    (project / "recipes" / "setup.sh").touch()
    (tmp_path / "bin" / "python").write_text(ONLINE)
    (tmp_path / "bin" / "python").chmod(0o755)
    (project / "sru" / "csrc").mkdir(parents=True)
    kernel = "AT_DISPATCH(U.type(), [&] { kernel<<<blocks, threads>>>(); });\n"
    (project / "sru" / "csrc" / "sru_cuda_kernel.cu").write_text(kernel)
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PIP_CONSTRAINT": "of-an-image.txt", "PIP_USER": "1"}
    env["TMPDIR"] = str(tmp_path)
    done = subprocess.run(["bash", "recipes/gpu.sh"], cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "-m pip install -e .[cuda12] |  | 0",
        f"-m pip -q install --no-deps --target {project}/runs/gpu/site one two",
        "-m gpu | 9.0 | of-an-image.txt | 1",
    ]
    assert done.stderr == "gpu.sh: going on without others' kernels\n"
    mended = (project / "runs" / "gpu" / "site" / "sru" / "csrc" / "sru_cuda_kernel.cu").read_text()
    assert mended.count("CUDAStream.h") == mended.count("getCurrentCUDAStream") == mended.count("U.scalar_type()") == 1
    assert (project / "sru" / "csrc" / "sru_cuda_kernel.cu").read_text() == kernel, "the environment stays as it is"
