"""What ``python -m fairseq_sru.doctor`` says, on this machine, on broken ones and on false ones with a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from support.fake_cupy import Gpu
from support.processes import forgetting, python

from fairseq_sru import doctor
from fairseq_sru.install_fairseq import patched_version
from fairseq_sru.recurrence import BACKENDS, build, cuda, dispatch, native, nvrtc
from fairseq_sru.recurrence.build import Unavailable
from fairseq_sru.recurrence.dispatch import set_up

VERSION = patched_version()
OURS = f"fairseq {VERSION.replace('+', ' with our patches +')}"

VARIABLES = ("FAIRSEQ_SRU_BACKEND", "FAIRSEQ_SRU_NVRTC", "CXX")

DRIVER = doctor.driver

_forget = pytest.fixture(autouse=True)(forgetting)


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set that a test doesn't set, and no GPU is there that it doesn't make up."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "driver", list)


Examine = Callable[[], tuple[int, dict[str, Any]]]


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Exit status and what is said, once as JSON and once as text, which agree."""

    def ask() -> tuple[int, dict[str, Any]]:
        status = doctor.main(["--json"])
        found = json.loads(capsys.readouterr().out)
        assert doctor.main([]) == status
        found["text"] = capsys.readouterr().out
        for line in found["advice"]:
            assert f"\n- {line}\n" in found["text"]
        assert ("All is well." in found["text"], found["well"]) == (status == 0, status == 0)
        return status, found

    return ask


@pytest.mark.parametrize("pays, said", [(True, "train with --cpu --amp"), (False, "--cpu --amp does not pay")])
def test_it_says_whether_bfloat16_pays(
    pays: bool, said: str, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "bfloat16_gain", lambda: 1.504)
    monkeypatch.setattr(doctor, "bfloat16_pays", lambda: pays)
    _, found = examine()
    assert found["bfloat16"] == {"gain": 1.5, "pays": pays}
    assert f"products 1.5 times as fast as float32's: {said}\n" in found["text"]


def run(*words: str, **env: str) -> dict[str, Any]:
    return json.loads(python(*words, "-m", "fairseq_sru.doctor", "--json", without=VARIABLES, **env).stdout)


# ---------------------------------------------------------------- this machine


def test_a_machine_that_is_well() -> None:
    found = run()
    assert found["packages"]["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["fairseq"] == OURS
    assert {"cupy", "pynvrtc", "sacrebleu"} < found["packages"].keys()
    command, version = build.host_compiler()
    assert found["compiler"].startswith(command[0]) and version.splitlines()[0] in found["compiler"]
    assert Path(found["user_dir"]) == ROOT / "fairseq_sru"
    assert tuple(found["backends"]) == tuple(BACKENDS)
    for name in ("native", "torch", "reference"):
        assert found["trials"][name]["failure"] is None
        assert 0 < found["trials"][name]["error"] < 1e-4, "float32 against float64"
    assert found["auto"]["cpu"] == {"backend": "native", "failure": None}
    assert found["well"] is True


def test_layers_are_well_without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairseq_sru.models", None)
    found = doctor.examine()
    assert found["well"] and found["models"] in found["advice"]
    assert doctor.text(found).endswith("\nThe layers are well, there are no models.")


@pytest.mark.parametrize(
    "build, said",
    [
        (
            "fairseq 0.12.2+py311.1",
            f"is an earlier one than {VERSION}: python -m fairseq_sru.install_fairseq",
        ),
        ("fairseq 0.12.2", "lacks our repairs of fairseq's faults (README, Install)"),
        (OURS, None),
        (None, None),
    ],
)
def test_a_fairseq_that_works_and_is_another_is_named(
    build: str | None, said: str | None, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "packages", lambda: {"fairseq": build})
    _, found = examine()
    assert [line for line in found["advice"] if "fairseq" in line] == ([f"{build} {said}"] if said else [])


def test_a_fairseq_that_loses_sentences_is_named(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "fairseqs", lambda: {"fairseq-fixed": "0.12.3.1"})
    monkeypatch.setattr("fairseq.data.data_utils.batch_by_size", lambda *_, **__: [])
    _, found = examine()
    assert found["packages"]["fairseq"] == "fairseq-fixed 0.12.3.1"
    assert any(line.endswith("-multiple 1 it loses up to 7 sentences of a data set") for line in found["advice"])


def test_the_size_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "cache"))
    _, found = examine()
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
    assert (found["cache"]["folder"], found["cache"]["bytes"]) == (str(tmp_path / "cache"), sum(sizes))
    assert found["environment"]["FAIRSEQ_SRU_CACHE"] == str(tmp_path / "cache")


def test_without_fairseq(tmp_path: Path) -> None:
    """A Python that has all but fairseq."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith("fairseq"):
            (packages / path.name).symlink_to(path)
    found = run("-S", PYTHONPATH=str(packages))
    assert (found["packages"]["torch"], found["packages"]["fairseq"]) == (torch.__version__, None)
    (line,) = (line for line in found["advice"] if line.endswith("python -m fairseq_sru.install_fairseq"))
    assert line.startswith("fairseq_sru.models needs fairseq, which is not installed.")


def test_a_fairseq_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").write_text("raise ValueError('mutable default CommonConfig')")
    of_the_machine = run()["advice"]  # as of a GPU whose torch has no CUDA
    (line,) = (line for line in run(PYTHONPATH=str(tmp_path))["advice"] if line not in of_the_machine)
    assert "fairseq, which can't be imported (ValueError: mutable default CommonConfig)." in line
    assert line.endswith("python -m fairseq_sru.install_fairseq")


# ---------------------------------------------------------------- what can be wrong


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, found = examine()
    assert status == 1
    assert found["compiler"] is None
    assert found["auto"]["cpu"]["backend"] == "torch"
    assert found["advice"] == ["native: no C++ compiler (Debian, Ubuntu: apt install g++)"]
    assert found["trials"].keys() == {"torch", "reference"}


@pytest.mark.parametrize("named", ["no-such-compiler -O2", 'g++ "-O2', "   ", "/"])
def test_a_compiler_that_does_not_run(named: str, monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    monkeypatch.setenv("CXX", named)
    status, found = examine()
    assert status == 1
    assert found["auto"]["cpu"]["backend"] == "torch"
    assert found["advice"] == [
        f"native: CXX is {named!r}, which doesn't run; unset CXX, or let it name another compiler"
    ]


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nprintf "much\\ncc1plus: killed\\n" >&2\nexit 4\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "cache"))
    status, found = examine()
    assert status == 1
    assert "much\ncc1plus: killed" in found["backends"]["native"]
    (line,) = found["advice"]
    assert re.fullmatch(r"native: .* can't build .*sru.cu: cc1plus: killed; unset CXX, or let .*", line)


@pytest.mark.parametrize("trouble", ["a file", "not to be written"])
def test_a_cache_that_can_not_be_used(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examine: Examine
) -> None:
    folder, said = tmp_path / "cache", r"can't be written \(.*\)"
    if trouble == "a file":
        folder.write_text("mine")
    elif os.geteuid():
        folder.mkdir(mode=0o500)
    else:
        folder = Path("/proc/self")  # root may write wherever it is possible
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(folder))
    status, found = examine()
    assert status == 0, "a temporary folder does, for this process"
    assert found["cache"]["folder"] != str(folder)
    assert found["advice"] == [found["cache"]["trouble"]]
    assert re.fullmatch(f"{folder} {said}; FAIRSEQ_SRU_CACHE can name another folder", found["advice"][0])
    assert trouble != "a file" or folder.read_text() == "mine"


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    def refuse(**_: object) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "mkdtemp", refuse)
    status, found = examine()
    assert status == 1
    assert found["auto"]["cpu"]["backend"] == "torch"
    assert found["cache"]["folder"] is None
    said = "no folder for compiled kernels can be written (No usable temporary directory found); "
    assert found["cache"]["trouble"] == found["backends"]["native"] == said + "FAIRSEQ_SRU_CACHE can name one"


def test_on_windows(monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    status, found = examine()
    assert status == 1
    assert found["auto"]["cpu"]["backend"] == "torch"
    assert "native: compiled kernels are not supported on Windows; WSL 2 counts as Linux" in found["advice"]
    assert found["trials"].keys() == {"torch", "reference"}


def test_a_backend_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", "fast")
    status, found = examine()
    assert status == 1
    assert found["auto"]["cpu"]["backend"] is None
    assert found["advice"] == [
        "FAIRSEQ_SRU_BACKEND must be one of auto, cuda, native, torch, reference; got 'fast'; unset FAIRSEQ_SRU_BACKEND"
    ]
    assert all(found["trials"][name]["failure"] is None for name in ("native", "torch", "reference"))


@pytest.mark.parametrize("named, backend", [("torch", "torch"), ("cuda", None)])
def test_a_backend_that_is_not_compiled_or_not_here(
    named: str, backend: str | None, monkeypatch: pytest.MonkeyPatch, examine: Examine
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", named)
    status, found = examine()
    assert status == 1
    assert found["auto"]["cpu"]["backend"] == backend
    (line,) = found["advice"]
    assert re.search("unset (it|FAIRSEQ_SRU_BACKEND)$", line)


def wrong_by(change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the native backend add to one number of the gradient of u."""
    right = native.Native.backward

    def wrong(self: Any, *arguments: Any) -> tuple[torch.Tensor | None, ...]:
        grad_u, *others = right(self, *arguments)
        assert grad_u is not None
        grad_u.view(-1)[7] += change
        return (grad_u, *others)

    monkeypatch.setattr(native.Native, "backward", wrong)


def test_a_backend_that_computes_wrong(monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    wrong_by(0.001, monkeypatch)
    status, found = examine()
    assert status == 1
    assert found["trials"]["native"]["error"] == pytest.approx(0.001, rel=0.01)
    assert "ready, and WRONG: differs from the definition by 1e-03" in found["text"]
    assert found["text"].count("and right") == 2
    assert found["advice"][0].startswith("native can't be trusted here: FAIRSEQ_SRU_BACKEND=torch avoids it")


def test_a_backend_that_gives_nan(monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    wrong_by(float("nan"), monkeypatch)
    status, found = examine()
    assert status == 1
    assert found["trials"]["native"] == {"error": None, "failure": "what it computes is not finite"}
    assert "ready, but FAILS: what it computes is not finite" in found["text"]


def test_a_backend_that_raises(monkeypatch: pytest.MonkeyPatch, examine: Examine) -> None:
    def fail(*_: object) -> None:
        raise OSError("the driver is gone")

    monkeypatch.setattr(native.Native, "forward", fail)
    status, found = examine()
    assert status == 1
    assert found["trials"]["native"]["failure"] == "OSError: the driver is gone"


# ---------------------------------------------------------------- false machines with a GPU


class Machine:
    """A torch for CUDA 13.0 that sees one GPU, a driver for 13.0, and NVRTC 13.0. Tensors of the CPU are the GPU's."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = patch, folder
        made = Gpu().backend(patch)
        properties = SimpleNamespace(
            name="Tesla Z1", major=9, minor=0, total_memory=16 * 2**30, multi_processor_count=1
        )
        patch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setitem(dispatch.DEVICES, "cuda", "cpu")
        patch.setattr(doctor, "driver", DRIVER)
        self.knows(13000)
        self.has_nvrtc((13, 0))
        self.backend(lambda: made)
        self.lists("Tesla Z1, 580.65.06")

    def backend(self, make: Any) -> None:
        real = set_up
        self.patch.setattr(dispatch, "set_up", lambda name: make() if name == "cuda" else real(name))

    def knows(self, version: int) -> None:
        """The driver's CUDA."""
        self.patch.setattr(doctor, "driver_cuda", lambda: version)

    def has_nvrtc(self, version: tuple[int, int]) -> None:
        found = SimpleNamespace(version=version, path=f"/lib/libnvrtc.so.{version[0]}")
        self.patch.setattr(nvrtc, "compiler", lambda: found)

    def lists(self, said: str, status: int = 0) -> None:
        """nvidia-smi"""
        tool = self.folder / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\n[ "$1" = --query-gpu=name,driver_version ] && echo "{said}"\nexit {status}\n')
        tool.chmod(0o755)
        self.patch.setenv("PATH", f"{self.folder}{os.pathsep}{os.environ['PATH']}")

    def sees_nothing(self) -> None:
        self.patch.setattr(torch.cuda, "is_available", lambda: False)
        self.patch.setitem(dispatch.DEVICES, "cuda", "cuda")
        self.backend(cuda.Cuda)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_the_drivers_cuda_is_asked_of_its_library(tmp_path: Path) -> None:
    asks = "from fairseq_sru import doctor; print(doctor.driver_cuda())"
    (tmp_path / "cuda.c").write_text("int cuDriverGetVersion(int *version) { *version = 13020; return 0; }")
    compiler = build.host_compiler()[0][0]
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", tmp_path / "cuda.c", "-o", tmp_path / "libcuda.so.1"], check=True
    )
    assert python("-c", asks, LD_LIBRARY_PATH=str(tmp_path)).stdout == "13020\n"


def test_a_driver_without_its_library_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    assert doctor.driver_cuda() is None


def test_a_gpu_that_is_well(machine: Machine, examine: Examine) -> None:
    status, found = examine()
    assert status == 0, found["text"]
    assert found["auto"] == {
        "cpu": {"backend": "native", "failure": None},
        "cuda": {"backend": "cuda", "failure": None},
    }
    assert 0 < found["trials"]["cuda"]["error"] < 1e-4, "the kernels ran"
    assert found["gpu"] == {
        "torch's CUDA": "13.0",
        "driver": ["Tesla Z1, 580.65.06"],
        "driver's CUDA": "13.0",
        "devices": ["Tesla Z1, sm_90, 16 GiB"],
        "NVRTC": "13.0, /lib/libnvrtc.so.13",
        "mismatch": None,
    }
    assert re.search(r"CUDA versions +match\n", found["text"])
    assert found["advice"] == []


def test_on_a_gpu_the_cpu_need_not_be_well(machine: Machine, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dispatch.set_up

    def only_cuda(name: str) -> Any:
        if name == "native":
            raise Unavailable("no C++ compiler")
        return real(name)

    monkeypatch.setattr(dispatch, "set_up", only_cuda)
    status, found = examine()
    assert status == 0
    assert (found["auto"]["cuda"]["backend"], found["auto"]["cpu"]["backend"]) == ("cuda", "torch")
    assert found["advice"] == ["native: no C++ compiler"]


def test_a_gpu_whose_backend_can_not_run(machine: Machine, examine: Examine) -> None:
    def fail() -> None:
        raise Unavailable("CuPy can't be imported (no module); pip install 'fairseq_sru[cuda13]'")

    machine.backend(fail)
    status, found = examine()
    assert status == 1, "the CPU's kernels don't help who has a GPU"
    assert found["auto"]["cuda"]["backend"] == "torch"
    assert found["advice"] == ["cuda: CuPy can't be imported (no module); pip install 'fairseq_sru[cuda13]'"]


def test_a_driver_older_than_nvrtc(machine: Machine, examine: Examine) -> None:
    machine.knows(12040)
    _, found = examine()
    assert found["gpu"]["driver's CUDA"] == "12.4"
    assert found["advice"] == [
        "the driver knows CUDA 12 and NVRTC is of 13: update the driver, or install a torch for CUDA 12 and "
        "pip install 'fairseq_sru[cuda12]'"
    ]


def test_an_nvrtc_of_another_cuda_than_torchs(
    machine: Machine, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRSEQ_SRU_NVRTC", "/lib/libnvrtc.so.12")
    machine.has_nvrtc((12, 8))
    _, found = examine()
    assert found["advice"] == ["torch is for CUDA 13.0 and NVRTC of 12: unset FAIRSEQ_SRU_NVRTC, which names it"]


def test_no_nvrtc(machine: Machine, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Unavailable("no NVRTC found; pip install it")

    monkeypatch.setattr(nvrtc, "compiler", fail)
    machine.backend(cuda.Cuda)
    status, found = examine()
    assert status == 1
    assert found["gpu"]["NVRTC"] == found["backends"]["cuda"] == "no NVRTC found; pip install it"
    assert "cuda: no NVRTC found; pip install it" in found["advice"]


def test_a_gpu_and_a_torch_for_cpus(machine: Machine, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.sees_nothing()
    monkeypatch.setattr(torch.version, "cuda", None)
    _, found = examine()
    assert "none that torch sees" in found["text"] and "Tesla Z1, 580.65.06" in found["text"]
    (line,) = found["advice"]
    assert line == f"torch {torch.__version__} is built without CUDA, and the GPU idle: install torch for CUDA"


@pytest.mark.parametrize("hidden", [False, True])
def test_a_gpu_that_torch_does_not_see(
    hidden: bool, machine: Machine, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.sees_nothing()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    _, found = examine()
    (line,) = found["advice"]
    assert "sees no GPU, though there is one" in line
    assert ("unset CUDA_VISIBLE_DEVICES" in line) == hidden


def test_a_driver_that_does_not_answer(machine: Machine, examine: Examine) -> None:
    machine.sees_nothing()
    machine.lists("NVIDIA-SMI has failed because it couldn't communicate with the driver", status=9)
    _, found = examine()
    assert found["gpu"]["driver"] == [
        "nvidia-smi fails: NVIDIA-SMI has failed because it couldn't communicate with the driver"
    ]
    assert found["advice"] == ["the GPU's driver doesn't answer nvidia-smi: load it, or install it again"]


def test_the_command_that_asks_the_driver_is_no_shell_string(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = tmp_path / "a folder; touch bad"
    odd.mkdir()
    shutil.copy2(tmp_path / "nvidia-smi", odd)
    monkeypatch.setenv("PATH", str(odd))
    assert doctor.driver() == ["Tesla Z1, 580.65.06"] or not Path("/bin/sh").exists()
