"""The doctor on this machine, on broken ones and on false ones with a GPU."""

from __future__ import annotations

import json
import re
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fake_cupy import Gpu
from support.processes import forgetting, python

from fairseq_sru import doctor
from fairseq_sru.install_fairseq import patched_version
from fairseq_sru.recurrence import BACKENDS, cuda, dispatch, native, nvrtc
from fairseq_sru.recurrence.build import Unavailable
from fairseq_sru.recurrence.dispatch import set_up

OURS = patched_version()
VARIABLES = ("FAIRSEQ_SRU_BACKEND", "FAIRSEQ_SRU_NVRTC", "CXX")

_forget = pytest.fixture(autouse=True)(forgetting)


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set that a test doesn't set, and no GPU is there that it doesn't make up."""
    for name in (*VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "driver", lambda: "no nvidia-smi")


def run(*words: str, **env: str) -> dict[str, Any]:
    return json.loads(python(*words, "-m", "fairseq_sru.doctor", "--json", without=VARIABLES, **env).stdout)


# ---------------------------------------------------------------- this machine


def test_a_machine_that_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["fairseq"] == f"fairseq {OURS.replace('+', ' with our patches +')}"
    assert tuple(report["backends"]) == tuple(BACKENDS)
    for name in ("native", "torch", "reference"):
        assert "right" in report["backends"][name]
    assert (report["auto"], report["advice"], report["well"]) == ({"cpu": "native"}, [], True)
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("\nAll is well.\n")


@pytest.mark.parametrize(
    ("builds", "advice"),
    [
        ({"fairseq": "0.12.2+py311.1"}, f"is an earlier one than {OURS}"),
        ({"fairseq": "0.12.2"}, "lacks our repairs of fairseq's faults"),
        ({"fairseq": OURS}, None),
        ({}, None),
    ],
)
def test_advice_on_a_fairseq(builds: dict[str, str], advice: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda: builds)
    said = doctor.models()
    assert said is None if advice is None else advice in str(said)
    assert "loses" not in str(said)
    monkeypatch.setattr("fairseq.data.data_utils.batch_by_size", lambda *_, **__: [])
    assert ("loses" in str(doctor.models())) == (builds == {"fairseq": "0.12.2"})


def test_without_fairseq(tmp_path: Path) -> None:
    """A Python that has all but fairseq."""
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith("fairseq"):
            (tmp_path / path.name).symlink_to(path)
    report = run("-S", PYTHONPATH=str(tmp_path))
    assert report["machine"]["fairseq"] == "not installed" and report["well"]
    (line,) = (line for line in report["advice"] if line.endswith("python -m fairseq_sru.install_fairseq"))
    assert "fairseq, which is not installed" in line


def test_a_fairseq_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").write_text("raise ValueError('mutable default CommonConfig')")
    advice = run(PYTHONPATH=str(tmp_path))["advice"]
    assert "fairseq, which can't be imported (ValueError: mutable default CommonConfig)." in advice[0]


# ---------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize(
    ("variable", "value", "backend", "advice"),
    [
        ("PATH", "/nowhere", "torch", r"native: no C\+\+ compiler"),
        ("CXX", "no-such-compiler -O2", "torch", "native: CXX is 'no-such-compiler -O2', which doesn't run"),
        ("FAIRSEQ_SRU_BACKEND", "fast", None, "auto: FAIRSEQ_SRU_BACKEND must be one of auto, .*; got 'fast'"),
        ("FAIRSEQ_SRU_BACKEND", "torch", "torch", "auto: torch, by FAIRSEQ_SRU_BACKEND: unset it"),
        ("FAIRSEQ_SRU_BACKEND", "cuda", None, "auto: .* FAIRSEQ_SRU_BACKEND: unset it"),
    ],
)
def test_advice_on_the_environment(
    variable: str, value: str, backend: str | None, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    report = doctor.examine()
    assert not report["well"] and doctor.text(report).endswith("Not all is well.")
    assert backend is None or report["auto"]["cpu"] == backend
    (line,) = report["advice"]
    assert re.match(advice, line), line


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nprintf "much\\ncc1plus: killed\\n" >&2\nexit 4\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "cache"))
    (line,) = doctor.examine()["advice"]
    assert line.startswith("native: ") and "cc1plus: killed" in line


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (0.001, "ready, and WRONG: differs from the definition by 1e-03"),
        (float("nan"), "WRONG"),
        (None, "OSError: gone"),
    ],
)
def test_a_backend_that_computes_wrong(change: float | None, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = native.Native.backward

    def wrong(self: Any, *arguments: Any) -> tuple[torch.Tensor | None, ...]:
        if change is None:
            raise OSError("gone")
        grad_u, *others = right(self, *arguments)
        assert grad_u is not None
        grad_u.view(-1)[7] += change
        return (grad_u, *others)

    monkeypatch.setattr(native.Native, "backward", wrong)
    report = doctor.examine()
    assert state in report["backends"]["native"] and not report["well"]
    assert report["advice"][0].startswith("native can't be trusted here: FAIRSEQ_SRU_BACKEND")
    assert all("right" in report["backends"][name] for name in ("torch", "reference"))


# ---------------------------------------------------------------- false machines with a GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch for CUDA 13.0 that sees one GPU, and NVRTC 13.0. Tensors of the CPU are the GPU's."""
    backend, real = Gpu().backend(monkeypatch), set_up
    properties = SimpleNamespace(name="Tesla Z1", major=9, minor=0, multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setitem(dispatch.DEVICES, "cuda", "cpu")
    monkeypatch.setattr(nvrtc, "compiler", lambda: SimpleNamespace(path="/lib/libnvrtc.so.13"))
    monkeypatch.setattr(doctor, "driver", lambda: "Tesla Z1, 580.65.06")
    monkeypatch.setattr(dispatch, "set_up", lambda name: backend if name == "cuda" else real(name))
    return monkeypatch


def test_a_gpu_that_is_well(gpu: pytest.MonkeyPatch) -> None:
    report = doctor.examine()
    assert (report["auto"], report["advice"], report["well"]) == ({"cpu": "native", "cuda": "cuda"}, [], True)
    assert "right" in report["backends"]["cuda"]
    assert "Tesla Z1" in report["machine"]["GPU"]
    assert report["machine"]["NVRTC"] == "/lib/libnvrtc.so.13"


@pytest.mark.parametrize("broken", ["native", "cuda"])
def test_a_gpu_and_a_backend_that_can_not_run(broken: str, gpu: pytest.MonkeyPatch) -> None:
    """On a GPU the CPU's kernels needn't run, but those of the GPU."""
    real = dispatch.set_up

    def fail(name: str) -> Any:
        if name == broken:
            raise Unavailable("no compiler")
        return real(name)

    gpu.setattr(dispatch, "set_up", fail)
    report = doctor.examine()
    device = {"native": "cpu", "cuda": "cuda"}[broken]
    assert report["auto"][device] == "torch"
    assert (report["advice"], report["well"]) == ([f"{broken}: no compiler"], broken == "native")


@pytest.mark.parametrize(
    ("listed", "built", "hidden", "advice"),
    [
        ("Tesla Z1, 580.65.06", None, False, "is built without CUDA"),
        ("Tesla Z1, 580.65.06", "13.0", False, "torch sees no GPU, though there is one: update the driver"),
        ("Tesla Z1, 580.65.06", "13.0", True, "though there is one: unset CUDA_VISIBLE_DEVICES, update"),
        ("nvidia-smi fails: it couldn't communicate", "13.0", False, "doesn't answer nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_does_not_see(
    listed: str, built: str | None, hidden: bool, advice: str, gpu: pytest.MonkeyPatch
) -> None:
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    gpu.setattr(torch.version, "cuda", built)
    gpu.setattr(doctor, "driver", lambda: listed)
    gpu.setitem(dispatch.DEVICES, "cuda", "cuda")
    gpu.setattr(dispatch, "set_up", lambda name: cuda.Cuda() if name == "cuda" else set_up(name))
    if hidden:
        gpu.setenv("CUDA_VISIBLE_DEVICES", "")
    report = doctor.examine()
    assert report["machine"]["GPU"] == "none that torch sees"
    (line,) = report["advice"]
    assert advice in line


@pytest.mark.parametrize(("status", "said"), [(0, "Tesla Z1, 580.65.06"), (9, "nvidia-smi fails: Tesla Z1, 580.65.06")])
def test_the_driver_is_asked(status: int, said: str, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    query = "--query-gpu=name,driver_version"
    tool.write_text(f'#!/bin/sh\n[ "$1" = {query} ] && echo "Tesla Z1, 580.65.06"\nexit {status}\n')
    tool.chmod(0o755)
    done = python("-c", "from fairseq_sru import doctor; print(doctor.driver())", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.stdout == f"{said}\n"
