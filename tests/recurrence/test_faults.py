"""Faults around the compiled kernels, and what a user sees of them: a fallback that works, or a line that helps.

That a missing, wrong or failing compiler is told is in test_backends.py and test_cuda.py. Here it is what follows from
it, the cache on disk and who else may write there, many processes, forks, and checkpoints that change places.
"""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from support.processes import LONG, forgetting, python

from fairseq_sru import SRU
from fairseq_sru.recurrence import build, cuda, nvrtc
from fairseq_sru.recurrence.build import Unavailable
from fairseq_sru.recurrence.dispatch import choose, set_up
from fairseq_sru.recurrence.reference import Torch

_forget = pytest.fixture(autouse=True)(forgetting)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for compiled kernels, not yet made."""
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(text: bytes = b"made", name: str = "a", calls: list[str] | None = None) -> Path:
    """A cache entry that is no library."""

    def make(path: Path) -> None:
        if calls is not None:
            calls.append(name)
        path.write_bytes(text)

    return build.cached([name], ".bin", make)


# ---------------------------------------------------------------- an entry


def test_an_entry_is_made_once(cache: Path) -> None:
    calls: list[str] = []
    first = put(calls=calls)
    assert put(calls=calls) == first
    assert calls == ["a"]
    put(name="b", calls=calls)
    assert calls == ["a", "b"]


# ---------------------------------------------------------------- the folder


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user without a name."""

    def fail(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    for name in ("FAIRSEQ_SRU_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match="for this process only: .*home directory.*; FAIRSEQ_SRU_CACHE can name"):
        assert build.cache_folder().is_dir()


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "mkdtemp", refuse)
    with pytest.warns(UserWarning, match="FAIRSEQ_SRU_CACHE"):
        assert choose("auto", "cpu") is set_up("torch")


@pytest.mark.parametrize(("named", "folder"), [("cache", "cache"), ("~/cache", "home/cache")])
def test_the_folder_is_named(named: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same after a change of folder; no shell may have read the variable, as in a container's ENV."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", named)
    path = put()
    monkeypatch.chdir("/")
    assert put() == path == tmp_path / folder / path.name


def test_a_temporary_folder_goes_with_its_process(tmp_path: Path) -> None:
    """And not with the end of a process that it has forked."""
    (tmp_path / "file").write_text("")
    done = python(
        "-c",
        "import os, sys, torch; from fairseq_sru import sru_recurrence\n"
        "from fairseq_sru.recurrence import build\n"
        "sru_recurrence(torch.ones(1, 1, 3, 1), backend='native')\n"
        "if (child := os.fork()) == 0: sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "print(build.cache_folder(), *os.listdir(build.cache_folder()))\n"
        "import multiprocessing as mp; build.cache_folder.cache_clear()\n"
        "process = mp.get_context('fork').Process(target=build.cache_folder); process.start(); process.join()",
        FAIRSEQ_SRU_CACHE=str(tmp_path / "file"),
        TMPDIR=str(tmp_path),
    )
    folder, *entries = done.stdout.split()
    assert any(name.endswith(".so") for name in entries)
    assert Path(folder).parent == tmp_path and [path.name for path in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------- no room


def test_a_full_disk(cache: Path) -> None:
    def make(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(Unavailable, match=r"No space left on device.*; FAIRSEQ_SRU_CACHE can"):
        build.cached(["a"], ".bin", make)
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}, "nothing half written"


# ---------------------------------------------------------------- many processes


def test_one_of_many_makes_what_all_want(cache: Path) -> None:
    calls: list[str] = []

    def want(_: int) -> Path:
        def make(path: Path) -> None:
            calls.append("a")
            time.sleep(0.2)
            path.write_bytes(b"made")

        return build.cached(["a"], ".bin", make)

    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(want, range(8)))
    assert calls == ["a"]
    assert {other.suffix for other in cache.iterdir()} <= {".bin", ".lock"}


HOLD = """
from fairseq_sru.recurrence import build
def make(path):
    print("held", flush=True)
    input()
build.cached(["a"], ".bin", make)
"""


@pytest.mark.parametrize("killed", [True, False])
def test_who_dies_or_hangs_stops_nobody(killed: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PATIENCE", LONG if killed else 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FAIRSEQ_SRU_CACHE": str(cache)},
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            if killed:
                holder.kill()
            begun = time.monotonic()
            put()
            if killed:
                assert time.monotonic() - begun < LONG / 2
            else:
                assert holder.poll() is None
        finally:
            holder.kill()


@pytest.mark.slow
def test_processes_with_the_real_compiler(cache: Path, tmp_path: Path) -> None:
    (command, *_), _ = build.host_compiler()
    compiler, log = tmp_path / "c++", tmp_path / "log"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo >> {log}\nexec {command} "$@"\n')
    compiler.chmod(0o755)
    script = "from fairseq_sru.recurrence.native import Native; Native()"
    env = {**os.environ, "FAIRSEQ_SRU_CACHE": str(cache), "CXX": str(compiler)}
    processes = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=env) for _ in range(4)]
    assert [process.wait(LONG) for process in processes] == [0] * 4
    assert len(log.read_text()) == 1, "one compiles for all"


# ---------------------------------------------------------------- forks

FORK = """
import os, signal, torch
torch.set_num_threads(2)
from fairseq_sru import sru_recurrence
u, x = torch.randn(100, 32, 3, 128), torch.randn(100, 32, 128)
{first}
if (child := os.fork()) == 0:
    signal.alarm(900)  # else a hang would outlast the test
    h, _ = sru_recurrence(u, x, backend="native")
    os._exit(0)
print("status", os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize(
    "first",
    ["sru_recurrence(u, x, backend='native')", "torch.randn(2000, 2000).mul(2).sum()"],
    ids=["ours", "torch's"],
)
def test_a_fork_after_threads_have_run(first: str) -> None:
    """OpenMP's threads don't come along, and whoever waits for them waits forever."""
    assert python("-c", FORK.format(first=first)).stdout == "status 0\n", "14 is SIGALRM: it hung"


LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset
from fairseq_sru import SRU
torch.set_num_threads(2)
torch.manual_seed(0)
rnn = SRU(128, 128, backend="native").requires_grad_(False)
x = torch.randn(8, 100, 32, 128)
here = torch.stack([rnn(item)[0] for item in x])  # the threads run now

class Encoded(Dataset):
    def __len__(self):
        return len(x)
    def __getitem__(self, i):
        return rnn(x[i])[0].numpy()

there = torch.cat(list(DataLoader(Encoded(), num_workers=2, multiprocessing_context="fork", timeout=900)))
torch.testing.assert_close(there, here)
print(len(there), "items")
"""


def test_workers_of_a_data_loader_use_an_sru() -> None:
    assert python("-c", LOADER).stdout == "8 items\n"


# ---------------------------------------------------------------- faults of the GPU end in a fallback


def test_a_gpu_whose_driver_is_too_old(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """``auto`` ends in plain PyTorch, and says once what helps."""

    class Old:
        def load(self, code: bytes) -> None:
            raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    monkeypatch.delenv(nvrtc.NVRTC_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda, "module_type", lambda: Old)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            assert isinstance(choose("auto", "cuda"), Torch)
    (warning,) = warned
    assert str(warning.message).startswith(
        "SRU runs in plain PyTorch on cuda, which is slower: the driver doesn't take"
    )
    with pytest.raises(RuntimeError, match=r"backend 'cuda' can't run: .*CUDA_ERROR_UNSUPPORTED_PTX_VERSION"):
        choose("cuda", "cuda")


# ---------------------------------------------------------------- from one backend and device to another


@functools.cache
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 3, 16, generator=generator), torch.randn(12, 3, 16, generator=generator)


@pytest.mark.parametrize("saver, loader", [("native", "torch"), ("torch", "native"), ("native", "reference")])
def test_a_checkpoint_of_one_backend_goes_on_with_another(saver: str, loader: str, tmp_path: Path) -> None:
    """Weights and Adam's state; two steps with one and two with the other are four steps with one."""
    x, target = problem()

    def train(rnn: SRU, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (rnn(x)[0] - target).square().mean().backward()
            optimizer.step()

    def new(backend: str, seed: int) -> tuple[SRU, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        rnn = SRU(16, 16, num_layers=2, layer_norm=True, v1=False, backend=backend)
        return rnn, torch.optim.Adam(rnn.parameters(), lr=0.01)

    one, optimizer = new(saver, 0)
    train(one, optimizer, 2)
    torch.save({"model": one.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    train(one, optimizer, 2)
    other, its_optimizer = new(loader, 1)
    read = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other.load_state_dict(read["model"])
    its_optimizer.load_state_dict(read["optimizer"])
    train(other, its_optimizer, 2)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
