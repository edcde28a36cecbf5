"""gpu.sh: its parts at small sizes without a GPU, how it goes on, what it does with what fails or takes too long, and
packages brought along. No time decides but that a part which sleeps for an hour is stopped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import layer, scans, timing
from benchmarks.layer import EAGER, FORWARD, GRAPH, Case
from comparison.processes import execute
from comparison.stages import Stages
from conftest import ROOT, ended
from gpu import __main__ as day
from gpu import packages, parts, tables
from gpu.parts import Part

from fairseq_sru.recurrence.dispatch import choose

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


def dry(out: Path, beside: Path) -> subprocess.CompletedProcess[str]:
    """All of it, with stand-ins of others' packages; the text is prepared once for both batch sizes."""
    place = os.pathsep.join(map(str, (ROOT, ROOT / "recipes", beside)))
    env = {**os.environ, "FAIRSEQ_SRU_GPU_DRY": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": place}
    env["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "gpu", str(out), "--minutes", "60"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    for name, text in STAND_INS.items():
        path = tmp_path / "beside" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    out = tmp_path / "results" / "card"
    done = dry(out, tmp_path / "beside")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert {name: part["state"] for name, part in report["parts"].items()} == {
        part.name: "done" for part in parts.parts(out, dry=True, of="dry")
    }
    assert "All is well." in (out / "doctor.txt").read_text()

    speed = json.loads((out / "speed" / "speed.json").read_text())
    assert {(case["dtype"], case["mode"]) for case in speed["cases"]} == {
        (dtype, mode) for dtype in ("float32", "bfloat16") for mode in ("eager", "CUDA graph")
    }
    rivals = json.loads((out / "rivals" / "speed.json").read_text())
    assert not speed["other_kernels"] and rivals["other_kernels"]
    assert all(set(case["ms"]) == set(scans.NAMES) for case in rivals["other_kernels"])
    assert "<svg" in (out / "speed" / "speed.svg").read_text()
    for name, preset, cases in (("updates", "sru_wmt", 3), ("steps", "sru_iwslt_de_en", 6)):
        steps = json.loads((out / name / "steps.json").read_text())
        assert (steps["preset"], len(steps["cases"])) == (preset, cases)
    for name, tokens in (("training", 1000), ("training4096", 4096)):
        trained = json.loads((out / f"{name}.json").read_text())
        assert list(trained["systems"]) == ["sru", "lstm", "fairseq-lstm", "transformer"]
        for system in trained["systems"].values():
            assert system["training_tokens_per_second"] > 0 and not system["failures"]
            assert system["runs"][0]["updates"] > 0
            assert f"--max-tokens {tokens} " in system["runs"][0]["commands"][0]

    page = (out / "report.md").read_text()
    for make in tables.TABLES.values():
        table = make(out)
        assert table.count("\n|") > 2 and table in page
    assert {*re.findall(r"^\| (\w+) \| (\d+) \| 0 \| \d+ \|", page, re.MULTILINE)} == {
        ("tests", "1"),
        ("sanitizer", "0"),
        ("precisions", "1"),
        ("graphs", "2"),
        ("variants", "0"),
    }
    assert tables.layers(out) in tables.published(out.parent)
    assert f"(../recipes/results/gpu/{out.name}/speed/speed.svg)\n" in tables.published(out.parent)

    before = {path: path.stat().st_mtime_ns for path in (out / "work" / "stamps" / "dry").iterdir()}
    again = dry(out, tmp_path / "beside")
    assert again.returncode == 0 and "\nspeed: done, " in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is done twice"


# ---------------------------------------------------------------- the order of things

SAY = ("python", "-c")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(part, ...)`` does these parts; how each ended."""
    monkeypatch.setattr(tables, "page", tables.ended)
    monkeypatch.setattr(day, "card", lambda: "any")

    def go(*todo: Part, minutes: int = 10) -> dict[str, str]:
        ran = day.Day(tmp_path, minutes)
        ran.inputs = []
        ran.run_all(list(todo))
        return {
            name: part["state"] for name, part in json.loads((tmp_path / "report.json").read_text())["parts"].items()
        }

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
        Part("first", (*SAY, "print('shown')"), 60, shown="first.txt"),
        Part("fails", (*SAY, "raise SystemExit('no such card')"), 60),
        Part("hangs", (*SAY, hang), 5, shown="hangs.txt"),
        Part("last", (*SAY, ""), 60),
    ]
    assert run(*todo) == {"first": "done", "fails": "failed", "hangs": "stopped", "last": "done"}
    assert (tmp_path / "first.txt").read_text() == "shown\n"
    assert (tmp_path / "hangs.txt").read_text() == "begun\n"
    assert ended(grandchild.read_text()), "what it had started ended with it"
    page = (tmp_path / "report.md").read_text()
    assert "| fails | failed |" in page and "| fails: exit status 1 |" in page
    assert "| hangs: stopped after 5 seconds |" in page


def test_what_is_done_is_not_done_again(run: Any, tmp_path: Path) -> None:
    count = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(int(open(sys.argv[2]).read()))"
    todo = [Part(name, (*SAY, count, str(tmp_path / name), str(tmp_path / f"{name}-status")), 60) for name in "ab"]
    (tmp_path / "a-status").write_text("0")
    (tmp_path / "b-status").write_text("1")
    assert run(*todo) == {"a": "done", "b": "failed"}
    (tmp_path / "b-status").write_text("0")
    assert run(*todo) == {"a": "done", "b": "done"}
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("x", "xx")


def test_parts_wait_for_what_they_need_and_end_in_time(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = tmp_path / "made", tmp_path / "seen"
    slow = f"""
import os, time
while not os.path.exists({str(seen)!r}):
    time.sleep(0.05)
open({str(made)!r}, "w").close()
"""
    todo = [
        Part("beside", (*SAY, slow), 60, beside=True),
        Part("at once", (*SAY, f"import os; assert not os.path.exists({str(made)!r}); open({str(seen)!r}, 'w')"), 60),
        Part("needs", (*SAY, f"import os; assert os.path.exists({str(made)!r})"), 60, ("beside",)),
    ]
    assert run(*todo) == {"beside": "done", "at once": "done", "needs": "done"}
    monkeypatch.setenv("FAIRSEQ_SRU_GPU_BEGUN", str(time.time() - 43))
    assert run(Part("late", (*SAY, ""), 60), minutes=1) == {"late": "not begun"}


def test_what_can_be_had_later_is_measured_then(run: Any, tmp_path: Path) -> None:
    """Others' kernels of which one couldn't be downloaded, or built."""
    ready, made = tmp_path / "ready.txt", tmp_path / "made"
    copies = f"open({str(made)!r}, 'a').write(open({str(ready)!r}).read())"
    part = Part("rivals", (*SAY, copies), 60, made="made", reads=ready)
    ready.write_text("sru\n")
    assert run(part) == run(part) == {"rivals": "done"} and made.read_text() == "sru\n"
    ready.write_text("sru\nfla.ops.hgrn\n")
    assert run(part) == {"rivals": "done"} and made.read_text() == "sru\nfla.ops.hgrn\n"


def test_what_runs_beside_ends_on_ctrl_c(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grandchild = tmp_path / "pid"
    build = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "3600"])
open({str(grandchild)!r} + "-", "w").write(str(child.pid))
os.rename({str(grandchild)!r} + "-", {str(grandchild)!r})
time.sleep(3600)
"""

    def interrupted(*_: Any, **__: Any) -> None:
        while not grandchild.exists():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(Stages, "command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Part("extensions", (*SAY, build), 60, beside=True), Part("speed", (*SAY, ""), 60))
    assert any(ended(grandchild.read_text()) or time.sleep(0.1) for _ in range(100))


def test_a_command_in_time_is_not_stopped(tmp_path: Path) -> None:
    assert execute((*SAY, "print(1)"), tmp_path / "log", False, lambda line: None, limit=60)["seconds"] > 0
    with pytest.raises(subprocess.TimeoutExpired, match="timed out after 1 seconds"):
        execute((*SAY, "import time; time.sleep(3600)"), tmp_path / "log", False, lambda line: None, limit=1)


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if day.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        day.main([str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "torch sees no CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parts_name_what_is_there() -> None:
    for is_dry in (False, True):
        todo = parts.parts(Path("out"), is_dry, "card")
        names = [part.name for part in todo]
        assert len(set(names)) == len(names)
        for part in todo:
            assert all(todo[names.index(needed)].beside for needed in part.needs)
            for word in part.command:
                if re.match(r"(recipes|tests)/", word):
                    assert (ROOT / word).is_file(), word
        for name in ("training", "training4096"):
            assert todo[names.index(name)].made == f"{name}.json"
    # all that is aimed at, within ten minutes
    todo = [part for part in parts.parts(Path("out"), False, "card") if not part.beside]
    required = todo[: [part.name for part in todo].index("training") + 1]
    assert sum(part.limit for part in required) < 600 - day.END


@pytest.mark.parametrize("name", ["report.json", "report.md", "tests.txt"])
def test_results_without_what_they_are_of_are_left_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a clone of a project that has published them."""
    monkeypatch.setattr(day, "DRY", True)
    monkeypatch.setenv("FAIRSEQ_SRU_GPU_FROM", str(tmp_path.parent))
    (tmp_path / name).write_text("{}")
    with pytest.raises(SystemExit):
        day.main([tmp_path.name])
    assert f"argument OUT: {tmp_path} has a {name}, and no folder work" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_outcomes_of_an_earlier_run_are_not_taken_for_this_ones(run: Any, tmp_path: Path) -> None:
    xml = tmp_path / "tests.xml"
    ends = (*SAY, f"open({str(xml)!r}, 'w').write('x')")
    assert run(Part("tests", ends, 60, outcomes="tests.xml")) == {"tests": "done"}
    assert run(Part("tests", (*SAY, "raise SystemExit(1)"), 60, outcomes="tests.xml")) == {"tests": "failed"}
    assert not xml.exists()


def test_what_was_made_of_other_source_is_no_result_of_a_part_that_does_not_begin(run: Any, tmp_path: Path) -> None:
    made, told = tmp_path / "made.json", tmp_path / "made.txt"
    part = Part("makes", (*SAY, f"open({str(made)!r}, 'w').write('x')"), 60, made="made.json", shown="made.txt")
    assert run(part) == {"makes": "done"}
    assert run(part, minutes=0) == {"makes": "done"} and made.exists() and told.exists()
    assert run(part._replace(command=(*SAY, "other")), minutes=0) == {"makes": "not begun"}
    assert not made.exists() and not told.exists()


def test_a_part_goes_on_with_what_it_has_made_of_the_same_source(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "made.json"
    add = f"import sys; open({str(file)!r}, 'a').write('x'); sys.exit(len(open({str(file)!r}).read()) < 3)"
    part = Part("adds", (*SAY, add), 60, made="made.json")
    for state in ("failed", "failed", "done", "done"):
        assert run(part) == {"adds": state}
    assert file.read_text() == "xxx"
    assert run(part._replace(command=(*SAY, f"{add} # other"))) == {"adds": "failed"}
    assert file.read_text() == "x"


def test_what_left_a_case_out_is_run_again_at_once(run: Any, tmp_path: Path) -> None:
    """One kernel that ends the process twice must not keep the others for another day; what makes nothing is not tried
    again."""
    file = tmp_path / "made.json"
    add = f"import sys; open({str(file)!r}, 'a').write('x'); sys.exit(len(open({str(file)!r}).read()) < 3)"
    assert run(Part("adds", (*SAY, add, "--resume"), 60, made="made.json")) == {"adds": "done"}
    assert file.read_text() == "xxx"
    fails = "import sys; print('x', file=open(sys.argv[2], 'a')); sys.exit(1)"
    seen = tmp_path / "seen"
    part = Part("fails", (*SAY, fails, "--resume", str(seen)), 60, made="none.json")
    assert run(part) == {"fails": "failed"} and seen.read_text() == "x\n"


def test_a_gpu_that_does_no_more_ends_the_process_in_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*_: Any, **__: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    for module in (layer, scans):
        monkeypatch.setattr(module, "graphed", stuck)
    monkeypatch.setattr(timing, "ON_GPU", True)
    monkeypatch.setattr(torch.cuda, "synchronize", stuck)
    backend, kept = choose("auto", layer.DEVICE.type), list[dict[str, Any]]()
    assert backend is not None
    case = Case(FORWARD, 2, 2, 8, mode=GRAPH)
    for all_of in (layer.all_cases, partial(layer.all_scans, backend)):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            all_of([case], *([None] if all_of is layer.all_cases else []), 1, kept.append)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        scans.all_others([case], 1, kept.append)
    assert not kept


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
def test_outcomes_of_tests_that_were_stopped_are_told(tmp_path: Path, said: str) -> None:
    """pytest's XML comes at its end."""
    (tmp_path / "tests.txt").write_text(said)
    assert tables.tests(tmp_path).splitlines()[2:] == ["| tests | 1 | 1 | 1 | test_x[lstm] |"]


def test_what_stays_in_the_cache_is_no_share_of_a_large_copy(tmp_path: Path) -> None:
    entry = {"what": "forward", "length": 64, "batch": 256, "dtype": "float32", "mode": "CUDA graph", "share": 0.9}
    entry |= {"size": 1024, "ms": {"median": 1.0}, "bytes": 2**27}
    machine = {"device": "Tesla Z1", "threads": 1, "torch": "2.13", "date": "2026-11-29"}
    report = {"machine": machine, "turns": 1, "copy_gb_per_s": 200.0, "l2_bytes": 2**25}
    report |= {"recurrence": [entry, {**entry, "length": 32, "bytes": 2**26}]}
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "speed.json").write_text(json.dumps(report))
    rows = [line.split(" | ")[2:] for line in tables.recurrence(tmp_path).splitlines()[-2:]]
    assert rows == [["134", "67%", "90% |"], ["67", "–", "90% |"]]


def test_a_graph_that_cannot_be_captured_costs_no_other_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(function: Any, seconds: float = 0.0) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    for module in (layer, scans):
        monkeypatch.setattr(module, "graphed", refuses)
    cases = [Case(FORWARD, 2, 2, 8, mode=mode) for mode in (GRAPH, EAGER)]
    backend = choose("auto", layer.DEVICE.type)
    assert backend is not None
    kept: list[dict[str, Any]] = []
    layer.all_cases(cases, None, 1, kept.append)
    layer.all_scans(backend, cases, 1, kept.append)
    scans.all_others(cases, 1, kept.append)
    # the second has two passes, and takes those of the graph call by call
    assert [entry["mode"] for entry in kept] == [EAGER] * 6


def test_aims_are_told(tmp_path: Path) -> None:
    case = {"dtype": "bfloat16", "mode": "CUDA graph"}
    spread = {"median": 1.0, "low": 1.0, "high": 1.0}
    wide = {"what": "backward", "length": 64, "batch": 256, "size": 1024, "ms": spread, "bytes": 1.7e9, **case}
    small = {**wide, "length": 32, "batch": 32, "size": 512, "bytes": 0.98e9, "share": 0.9}  # of a copy in the cache
    layer = {"what": "forward+backward", "length": 128, "batch": 32, "size": 512, **case}
    layer["ms"] = {"SRU": spread, "LSTM": {**spread, "median": 9.5}}
    speed = {
        "copy_gb_per_s": 2000.0,
        "contestants": {"LSTM, bfloat16": "nn.LSTM: cuDNN (_cudnn_rnn)"},
        "recurrence": [wide, {**wide, "length": 32}, small],
        "cases": [layer, {**layer, "batch": 1}],
    }
    for name, report in (
        ("speed/speed.json", speed),
        ("updates/steps.json", {"cases": {"train": {"ratios": {"lstm unit": 3.25, "fairseq lstm": 2.0}}}}),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(report))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.aims(tmp_path).splitlines()[2:]]
    assert rows == [
        [
            "recurrence alone, backward L64 B256 d1024 bfloat16 CUDA graph",
            "85% of a large copy's speed",
            "85%",
            "yes",
        ],
        [
            "recurrence alone, backward L32 B32 d512 bfloat16 CUDA graph",
            "50% of a large copy's speed",
            "49%",
            "no",
        ],
        ["LSTM / SRU, forward+backward L128 B32 d512 bfloat16 CUDA graph", "10", "9.5", "no"],
        ["lstm_wmt / sru_wmt, train", "3", "3.25", "yes"],
    ]
    assert tables.aims(tmp_path / "none") == ""
    speed["contestants"] = {"LSTM, bfloat16": "nn.LSTM: cuBLAS (addmm)"}  # torch's own loop is no rival
    (tmp_path / "speed" / "speed.json").write_text(json.dumps(speed))
    assert "LSTM / SRU" not in tables.aims(tmp_path)


def test_cudnn_is_given_bfloat16_weights_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch asks whether cuDNN accepts them, and itself says no."""
    said: list[bool] = []

    class Probe(torch.nn.Module):
        def flatten_parameters(self) -> None:
            said.append(torch.backends.cudnn.is_acceptable(torch.zeros(1, dtype=torch.bfloat16)))

    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    layer.flatten(Probe(), "bfloat16")
    Probe().flatten_parameters()
    assert said == [True, False]


def test_a_loop_of_torch_is_no_rival(tmp_path: Path) -> None:
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    ms = {name: {**spread, "median": median} for name, median in (("LSTM", 9.0), ("SRU", 2.0))}
    case = {"what": "forward", "length": 32, "batch": 32, "size": 512, "mode": "eager", "ms": ms}
    here = {"device": "X", "threads": 1, "torch": "2", "date": "2026-01-01"}
    notes = {"LSTM": "nn.LSTM: cuDNN (_cudnn_rnn)", "LSTM, bfloat16": "nn.LSTM: cuBLAS (addmm)"}
    report = {"machine": here, "turns": 1, "contestants": notes}
    report["cases"] = [{**case, "dtype": dtype} for dtype in ("float32", "bfloat16")]
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "speed.json").write_text(json.dumps(report))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.layers(tmp_path).splitlines()[-3:]]
    assert [row[6] for row in rows[-2:]] == ["4.50", "–"]


def test_the_published_package_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "environment" / "sru" / "csrc"
    source.mkdir(parents=True)
    (source.parent / "__init__.py").touch()
    (source / "sru_cuda_kernel.cu").write_text("AT_DISPATCH(U.type(), [&] { kernel<<<blocks, threads>>>(); });\n")
    monkeypatch.setattr(packages, "SITE", tmp_path / "site")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "environment"), *sys.path])
    monkeypatch.delitem(sys.modules, "sru", raising=False)
    for _ in range(2):
        packages.mend_sru()
        text = (tmp_path / "site" / "sru" / "csrc" / "sru_cuda_kernel.cu").read_text()
        assert text.count("CUDAStream.h") == text.count("getCurrentCUDAStream") == text.count("U.scalar_type()") == 1
    assert "U.type()" in (source / "sru_cuda_kernel.cu").read_text(), "the environment stays as it is"


# ---------------------------------------------------------------- packages brought along


@pytest.mark.slow
def test_a_build_that_was_stopped_holds_nobody_up(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch waits for ever for the end of one whose lock is there."""
    lock = tmp_path / "extensions" / "sru_cuda" / "lock"
    lock.parent.mkdir(parents=True)
    monkeypatch.setattr(packages, "BUILDS", tmp_path / "extensions")
    begun = tmp_path / "begun"
    code = f"open({str(lock)!r}, 'w'); open({str(begun)!r}, 'w'); import time; time.sleep(3600)"
    builds = Part("extensions", (*SAY, code), 10, beside=True)
    takes = Part("rivals", (*SAY, f"import os; os.path.exists({str(lock)!r}) and exit(1)"), 60, ("extensions",))
    assert run(builds, takes) == {"extensions": "stopped", "rivals": "done"}
    assert begun.exists(), "there was a lock"


def test_a_build_that_goes_on_keeps_its_lock(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch removes it at its end, and fails where it is gone. What needs another part begins meanwhile."""
    lock, begun = tmp_path / "extensions" / "sru_cuda" / "lock", tmp_path / "begun"
    lock.parent.mkdir(parents=True)
    monkeypatch.setattr(packages, "BUILDS", tmp_path / "extensions")
    wait = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.1)\n"
    other = Part("fairseq", (*SAY, wait.format(str(lock))), 60, beside=True)
    builds = f"open({str(lock)!r}, 'w')\n{wait.format(str(begun))}os.remove({str(lock)!r})"
    updates = Part("updates", (*SAY, f"open({str(begun)!r}, 'w')"), 60, ("fairseq",))
    todo = (other, Part("extensions", (*SAY, builds), 60, beside=True), updates)
    assert run(*todo) == {"fairseq": "done", "extensions": "done", "updates": "done"}


def test_others_kernels_are_downloaded_where_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(packages, "pip", lambda *words: asked.append(words))
    monkeypatch.setattr(packages, "installed", lambda: {"einops", "torch"})
    packages.main(["others", str(tmp_path)])
    assert asked[0][-3:] == (tmp_path, *packages.RIVALS[:2])
    monkeypatch.setattr(packages, "installed", lambda: {"einops", "fla-core", "accelerated-scan"})
    packages.main(["others", str(tmp_path)])
    assert len(asked) == 1


def test_results_of_another_card_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(day, "DRY", True)
    (tmp_path / "work").mkdir()
    (tmp_path / "report.json").write_text(json.dumps({"machine": {"device": "a card"}}))
    with pytest.raises(SystemExit):
        day.main([str(tmp_path)])
    assert "is of a card, this is " in capsys.readouterr().err


ONLINE = """#!/bin/bash
case $2 in
    *torch.version.cuda*) echo 12 ;;
    *"find_spec('cupy')"*) exit 1 ;;
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
    (project / "recipes" / "setup.sh").write_text('_sru_run() { "$@"; }\n')
    (tmp_path / "bin" / "python").write_text(ONLINE)
    (tmp_path / "bin" / "python").chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PIP_CONSTRAINT": "of-an-image.txt", "PIP_USER": "1"}
    done = subprocess.run(["bash", "recipes/gpu.sh"], cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "-m pip install -e .[cuda12] |  |  | 0",
        f"-m gpu.packages others {project}/runs/gpu/site",
        "-m gpu | 9.0 | of-an-image.txt | 1",
    ]
    assert done.stderr == "gpu.sh: going on without others' kernels\n"
