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
from gpu import packages, tables
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
        part.name: "done" for part in day.parts(out)
    }
    assert "All is well." in (out / "doctor.txt").read_text()

    layers, others = (json.loads((out / f"{name}.json").read_text()) for name in ("layer", "others"))
    assert {(case["dtype"], case["mode"]) for case in layers["cases"]} == {
        (dtype, mode) for dtype in ("float32", "bfloat16") for mode in ("eager", "CUDA graph")
    }
    assert not layers["other_kernels"] and others["other_kernels"]
    assert all(set(case["ms"]) == set(CONTESTANTS["recurrence"]) for case in others["other_kernels"])
    assert "<svg" in (out / "layer.svg").read_text()
    for name, preset in (("updates", "sru_wmt"), ("model", "sru_iwslt_de_en")):
        models = json.loads((out / f"{name}.json").read_text())
        assert (models["preset"], len(models["cases"])) == (preset, 6)
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
    assert {*re.findall(r"^\| (\w+) \| (\d+) \| 0 \| \d+ \|", page, re.MULTILINE)} == {
        ("tests", "1"),
        ("sanitizer", "0"),
        ("precisions", "1"),
        ("graphs", "1"),
        ("variants", "0"),
    }
    assert tables.layers(out) in tables.published(out.parent)
    assert f"(../recipes/results/gpu/{out.name}/layer.svg)\n" in tables.published(out.parent)


# ---------------------------------------------------------------- the order of things


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(part, ...)`` does these parts; how each ended."""
    monkeypatch.setattr(day, "DRY", True)

    def go(*todo: Part, minutes: int = 10) -> dict[str, str]:
        monkeypatch.setattr(day, "parts", lambda work: list(todo))
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
        Part("fails", ("-c", "raise SystemExit('no such card')"), 60),
        Part("hangs", ("-c", hang), 5),
        Part("last", ("-c", "print('shown')"), 60),
    ]
    assert run(*todo) == {"fails": "failed", "hangs": "stopped", "last": "done"}
    assert (tmp_path / "hangs.txt").read_text() == "begun\n"
    assert (tmp_path / "last.txt").read_text() == "shown\n"
    assert ended(grandchild.read_text()), "what it had started ended with it"
    page = (tmp_path / "report.md").read_text()
    assert "| fails | failed |" in page and "| hangs | stopped |" in page


def test_what_is_done_is_not_done_again(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(int(open(sys.argv[2]).read()))"
    todo = [Part(name, ("-c", count, str(tmp_path / name), str(tmp_path / f"{name}-status")), 60) for name in "ab"]
    (tmp_path / "a-status").write_text("0")
    (tmp_path / "b-status").write_text("1")
    assert run(*todo) == {"a": "done", "b": "failed"}
    (tmp_path / "b-status").write_text("0")
    assert run(*todo) == {"a": "done", "b": "done"}
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("x", "xx")
    monkeypatch.setattr(day, "source", lambda *_: "other")
    monkeypatch.setenv("FAIRSEQ_SRU_GPU_BEGUN", "0")
    assert run(*todo) == {"a": "not begun", "b": "not begun"}


def test_results_of_another_card_and_of_no_gpu_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"machine": {"device": "a card"}}))
    for dry, said in ((False, "torch sees no CUDA GPU"), (True, "is of a card, this is ")):
        monkeypatch.setattr(day, "DRY", dry)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as ended:
            day.main([str(tmp_path)])
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_parts_name_what_is_there() -> None:
    todo = day.parts(Path("work"))
    for part in todo:
        for word in part.command:
            if re.match(r"(recipes|tests)/", word):
                assert (ROOT / word).is_file(), word
    names = [part.name for part in todo]
    # what matters most, within ten minutes
    assert sum(part.limit for part in todo[: names.index("training") + 1]) < 60 * day.MINUTES


# ---------------------------------------------------------------- tables

XDIST = """
[gw0] [ 33%] PASSED tests/recurrence/test_cuda.py::TestOnTheGpu::test_x[sru v2-1]
[gw1] [ 66%] FAILED tests/recurrence/test_cuda.py::TestOnTheGpu::test_x[lstm]
[gw1] [100%] SKIPPED tests/recurrence/test_cuda.py::TestOnTheGpu::test_y
tests/recurrence/test_cuda.py::TestOnTheGpu::test_z
"""
PLAIN = """
tests/recurrence/test_cuda.py::TestOnTheGpu::test_x[sru v2-1] PASSED   [ 33%]
tests/recurrence/test_cuda.py::TestOnTheGpu::test_x[lstm] FAILED       [ 66%]
tests/recurrence/test_cuda.py::TestOnTheGpu::test_y SKIPPED (no tool)  [100%]
"""


@pytest.mark.parametrize("said", [XDIST, PLAIN], ids=["xdist", "plain"])
def test_outcomes_of_tests_that_were_stopped_are_shown(tmp_path: Path, said: str) -> None:
    (tmp_path / "tests.txt").write_text(said)
    assert tables.tests(tmp_path).splitlines()[2:] == ["| tests | 1 | 1 | 1 | test_x[lstm] |"]


HERE = {"device": "Tesla Z1", "threads": 1, "torch": "2.13", "date": "2026-11-29"}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_what_stays_in_the_cache_is_no_share_of_a_large_copy(tmp_path: Path) -> None:
    entry = {"what": "forward", "length": 64, "batch": 256, "dtype": "float32", "mode": "CUDA graph", "share": 0.9}
    entry |= {"size": 1024, "ms": {"median": 1.0}, "bytes": 2**27}
    report = {"machine": HERE, "turns": 1, "copy_gb_per_s": 200.0, "l2_bytes": 2**25}
    report |= {"recurrence": [entry, {**entry, "length": 32, "bytes": 2**26}]}
    (tmp_path / "layer.json").write_text(json.dumps(report))
    shown = rows(tables.recurrence(tmp_path))[-2:]
    assert [row[2:] for row in shown] == [["134", "67%", "90%"], ["67", "–", "90%"]]


def test_a_layers_table_says_whether_cudnn_ran(tmp_path: Path) -> None:
    ms = {name: {"median": median} for name, median in (("LSTM", 9.0), ("SRU", 2.0))}
    case = {"what": "forward", "length": 32, "batch": 32, "size": 512, "dtype": "float32", "mode": "eager", "ms": ms}
    report = {"machine": HERE, "turns": 1, "contestants": {"LSTM": "nn.LSTM (_cudnn_rnn)", "GRU": "nn.GRU"}}
    report["cases"] = [{**case, "ratios": {"LSTM / SRU": 4.5}}]
    (tmp_path / "layer.json").write_text(json.dumps(report))
    table = tables.layers(tmp_path)
    assert table.startswith("Milliseconds of a call; LSTM: nn.LSTM (_cudnn_rnn). Tesla Z1")
    assert rows(table)[-1] == ["forward L32 B32 d512", "–", "9.00", "–", "2.00", "–", "–", "4.50", "–"]


# ---------------------------------------------------------------- others' packages


def test_others_packages_are_downloaded_where_they_lack_and_sru_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, site = tmp_path / "environment" / "sru" / "csrc", tmp_path / "site"
    source.mkdir(parents=True)
    (source.parent / "__init__.py").touch()
    (source / "sru_cuda_kernel.cu").write_text("AT_DISPATCH(U.type(), [&] { kernel<<<blocks, threads>>>(); });\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "environment"), *sys.path])
    monkeypatch.delitem(sys.modules, "sru", raising=False)
    asked: list[Any] = []

    def pip(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        asked.append(command[-4:])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(packages.subprocess, "run", pip)
    monkeypatch.setattr(packages, "missing", lambda pins: list(pins[:1]))
    for _ in range(2):
        with pytest.raises(SystemExit, match="1"):
            packages.main([str(site)])
        text = (site / "sru" / "csrc" / "sru_cuda_kernel.cu").read_text()
        assert text.count("CUDAStream.h") == text.count("getCurrentCUDAStream") == text.count("U.scalar_type()") == 1
    assert asked == 2 * [["--upgrade", "--target", str(site), packages.VERSIONS["RIVALS"][0]]]
    assert "U.type()" in (source / "sru_cuda_kernel.cu").read_text(), "the environment stays as it is"
    monkeypatch.undo()
    assert packages.missing(("torch==1", "none-such==1")) == ["none-such==1"]


ONLINE = """#!/bin/bash
case $2 in
    *torch.version.cuda*) echo 12 ;;
    "import cupy") exit 1 ;;
    *get_device_capability*) echo 9.0 ;;
    gpu.packages) echo "$@"; exit 1 ;;
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
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PIP_CONSTRAINT": "of-an-image.txt", "PIP_USER": "1"}
    env["TMPDIR"] = str(tmp_path)
    done = subprocess.run(["bash", "recipes/gpu.sh"], cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "-m pip install -e .[cuda12] |  |  | 0",
        f"-m gpu.packages {project}/runs/gpu/site",
        "-m gpu | 9.0 | of-an-image.txt | 1",
    ]
    assert done.stderr == "gpu.sh: going on without others' kernels\n"
