"""What goes wrong around the compiled kernels, and what a user sees of it: a fallback that works, or a line that helps.

That a missing, wrong or failing compiler is told is in test_backends.py and test_cuda.py. Here it is what follows from
it, the cache on disk and who else may write there, many processes, forks, and checkpoints that change places.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from support.processes import LONG, forget, forgetting, python

from fairseq_sru import SRU, sru_recurrence
from fairseq_sru.recurrence import build, cuda, native, nvrtc
from fairseq_sru.recurrence.build import CHECKSUM, Unavailable
from fairseq_sru.recurrence.dispatch import choose
from fairseq_sru.recurrence.kernels import DEFAULT_VARIANT
from fairseq_sru.recurrence.reference import Torch

ME = os.geteuid()
as_root = pytest.mark.skipif(ME != 0, reason="only root can give files away")


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


def test_an_entry_is_the_users_alone_and_ends_in_a_checksum(cache: Path) -> None:
    before = os.umask(0)
    try:
        path = put(b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes()[:-CHECKSUM] == b"content"
    assert list(cache.iterdir()) == [path], "nothing else is left"


def test_an_entry_is_made_once(cache: Path) -> None:
    calls: list[str] = []
    first = put(calls=calls)
    assert put(calls=calls) == first
    assert calls == ["a"]
    put(name="b", calls=calls)
    assert calls == ["a", "b"]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "short": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one bit": lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
    "zeros": lambda content: bytes(len(content)),
    "longer": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_again(damage: str, cache: Path) -> None:
    content = os.urandom(2000)
    path = put(content)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    calls: list[str] = []
    assert put(content, calls=calls) == put(content, calls=calls) == path
    assert calls == ["a"]
    assert path.read_bytes()[:-CHECKSUM] == content


def test_a_library_cut_short_is_never_loaded(cache: Path) -> None:
    """It would kill the process."""
    options = ("-DWIDE", *DEFAULT_VARIANT.defines(vec=native.MAX_LANES, ahead=1))
    path = build.host_library(options)
    content = path.read_bytes()
    path.write_bytes(content[:8192])  # the first pages, which say what there should be
    done = python("-c", f"import ctypes; ctypes.CDLL({str(path)!r})", check=False)
    assert done.returncode != 0, "what it would be to load it"
    assert python("-c", "from fairseq_sru import backends; print(backends()['native'])").stdout == "ready\n"
    assert path.read_bytes() == content, "the compiler makes the same file of the same text"


# ---------------------------------------------------------------- the folder


def assert_private(folder: Path) -> None:
    assert folder.is_dir()
    assert folder.stat().st_uid == ME and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``away(why)`` is the folder that is taken instead of the cache; the warning says why."""

    def ask(why: str) -> Path:
        forget()
        with pytest.warns(UserWarning, match=f"kept for this process alone: .*{why}.*; FAIRSEQ_SRU_CACHE can name"):
            folder = build.cache_folder()
        assert_private(folder)
        return folder

    return ask


def test_no_home(monkeypatch: pytest.MonkeyPatch, away: Callable[[str], Path]) -> None:
    """As in a container that runs as a user without a name."""

    def fail(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    for name in ("FAIRSEQ_SRU_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    away("there is no home folder")


def test_the_folder_is_the_same_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", "cache")
    path = put()
    monkeypatch.chdir("/")
    assert put() == path == tmp_path / "cache" / path.name


def test_a_folder_in_the_home_folder_may_be_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no shell has read the variable, as in a container's ENV."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FAIRSEQ_SRU_CACHE", "~/cache")
    path = put()
    assert path.parent == tmp_path / "home" / "cache" and not Path("~").exists()


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
    assert entries and {Path(name).suffix for name in entries} == {".so"}
    assert Path(folder).parent == tmp_path and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_goes_in_time(cache: Path) -> None:
    """But nothing else: the variable may name a folder that is in use."""
    put()
    others = ["new_model", "new_text", ".fairseq_sru-export-old"]
    for name, age in ((f"{build.ASIDE}old", 2), (f"{build.ASIDE}young", 0), *((name, 2) for name in others)):
        (cache / name).mkdir()
        (cache / name / "half").write_bytes(b"ha")
        os.utime(cache / name, (time.time() - age * 24 * 3600,) * 2)
    put(name="b")
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {f"{build.ASIDE}young", *others}


# ---------------------------------------------------------------- no room


def test_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def write(self: Path, content: bytes) -> int:
        if cache in self.parents:
            real(self, content[:100])  # what still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.warns(UserWarning, match=r"cache can't be written \(No space left on device\); FAIRSEQ_SRU_CACHE can"):
        path = put()
    assert path.read_bytes()[:-CHECKSUM] == b"made"
    assert_private(path.parent)
    assert list(cache.iterdir()) == [], "nothing half written"


def test_no_room_anywhere(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Path, content: bytes) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self))

    monkeypatch.setattr(Path, "write_bytes", write)
    message = r"cache can't be written \(.*quota exceeded\); FAIRSEQ_SRU_CACHE can name .*; nor can .* \(.*quota"
    with pytest.warns(UserWarning), pytest.raises(Unavailable, match=message):
        put()


MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
NATIVE = """
import os, sys, torch, warnings
from fairseq_sru import backends, sru_recurrence
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    h, _ = sru_recurrence(torch.ones(4, 2, 3, 8), torch.ones(4, 2, 8))
print("sum", float(h.sum()))
print("native", backends()["native"])
print(*(w.message for w in said), sep="\\n")
print("left", os.listdir(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "options, why",
    [("size=16k", "No space left on device"), ("ro", "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_file_system(options: str, why: str, tmp_path: Path) -> None:
    """A home folder on a full or a read-only file system, which really is one."""
    home = tmp_path / "home"
    home.mkdir()
    script = f'mount -t tmpfs -o {options},mode=700 tmpfs "$1" && shift && exec "$@"'
    if subprocess.run([*MOUNT, script, "sh", str(home), "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user can't mount")
    unset = ("FAIRSEQ_SRU_CACHE", "XDG_CACHE_HOME")
    done = python("-c", NATIVE, home, prefix=(*MOUNT, script, "sh", str(home)), without=unset, HOME=str(home))
    expected = sru_recurrence(torch.ones(4, 2, 3, 8), torch.ones(4, 2, 8), backend="reference")[0]
    total, state, *said, left = done.stdout.splitlines()
    assert float(total.split()[1]) == pytest.approx(float(expected.sum()))
    assert state == "native ready", "the compiled kernels run, from a temporary folder"
    assert len(said) == 1 and f"fairseq_sru can't be written ({why}); FAIRSEQ_SRU_CACHE can name" in said[0]
    assert left in ("left []", "left ['.cache']")


# ---------------------------------------------------------------- who else may write


def test_a_folder_of_another_user(cache: Path, away: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    planted = put(b"evil")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: ME + 1)  # as that user sees it
        patch.setattr(build.tempfile, "mkdtemp", lambda prefix: str(planted.parent.parent / "elsewhere"))
        forget()
        with pytest.warns(UserWarning, match="cache belongs to another user"):
            assert build.cache_folder() != cache


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777], ids=oct)
def test_a_folder_that_others_can_write(mode: int, cache: Path, away: Callable[[str], Path]) -> None:
    put()
    cache.chmod(mode)
    away("cache can be written by other users: chmod go-w /")


def test_a_folder_below_one_that_everybody_can_write(cache: Path, away: Callable[[str], Path]) -> None:
    put()
    above = cache.parent
    before = stat.S_IMODE(above.stat().st_mode)
    try:
        above.chmod(0o777)
        away(f"cache can be replaced by other users, who can write {above}")
        above.chmod(0o1777)  # as /tmp is: what lies there can be replaced by its owner alone
        forget()
        assert build.cache_folder() == cache
    finally:
        above.chmod(before)


def test_the_folder_may_be_a_link_of_ones_own(cache: Path, tmp_path: Path, away: Callable[[str], Path]) -> None:
    real = tmp_path / "scratch"
    real.mkdir(mode=0o700)
    cache.symlink_to(real)
    assert put().parent == real
    real.chmod(0o777)
    away(f"cache can be written by other users: chmod go-w {real}")


@as_root
def test_a_link_or_a_folder_that_another_user_has_put_there(
    cache: Path, tmp_path: Path, away: Callable[[str], Path]
) -> None:
    real = tmp_path / "mine"
    real.mkdir(mode=0o700)
    cache.symlink_to(real)
    os.lchown(cache, 12345, 12345)
    away("cache belongs to another user")
    cache.unlink()
    cache.mkdir(mode=0o700)
    os.chown(cache, 12345, 12345)
    away("cache belongs to another user")
    assert not list(real.iterdir()) and not list(cache.iterdir())


def as_link(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    path.rename(other)
    path.symlink_to(other)


ENTRIES: dict[str, Callable[[Path, Path], None]] = {
    "written by a group": lambda path, _: path.chmod(0o660),
    "written by all": lambda path, _: path.chmod(0o602),
    "a link": as_link,
}


@pytest.mark.parametrize("change", ENTRIES)
def test_an_entry_that_others_could_have_written_is_made_again(change: str, cache: Path, tmp_path: Path) -> None:
    calls: list[str] = []
    path = put(b"evil")
    ENTRIES[change](path, tmp_path)
    assert put(b"good", calls=calls) == path
    assert calls == ["a"]
    assert path.read_bytes()[:-CHECKSUM] == b"good"
    assert stat.S_ISREG(path.lstat().st_mode) and stat.S_IMODE(path.lstat().st_mode) == 0o600
    if (tmp_path / "other").exists():
        assert (tmp_path / "other").read_bytes()[:-CHECKSUM] == b"evil", "what a link points to stays as it is"


@as_root
def test_an_entry_of_another_user_is_made_again(cache: Path) -> None:
    path = put(b"evil")
    os.chown(path, 12345, 12345)
    assert put(b"good").read_bytes()[:-CHECKSUM] == b"good"
    assert path.stat().st_uid == ME


def test_a_folder_in_the_place_of_an_entry(cache: Path) -> None:
    path = put()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match=r"cache can't be written \(Is a directory\)"):
        assert put(b"good").read_bytes()[:-CHECKSUM] == b"good"


# ---------------------------------------------------------------- many processes


COMPILER = """#!/bin/sh
[ "$1" = --version ] && exit 0
for out; do :; done  # the last word
head -c {half} "{whole}" > "$out"
while [ ! -e "{go}" ]; do sleep 0.2; done
tail -c +{rest} "{whole}" >> "$out"
"""

BUILD = """
import hashlib, importlib.util, sys
class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "fairseq", "fairseq_sru"):
            raise ImportError(name)
sys.meta_path.insert(0, Barred())
spec = importlib.util.spec_from_file_location("build", sys.argv[1])
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
assert "torch" not in sys.modules
build.PATIENCE = float(sys.argv[2])
path = build.host_library(("-DWIDE", *sys.argv[3:]))
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_one_of_many_makes_what_all_want(cache: Path) -> None:
    """Threads lock one another out as processes do: each opens the file for itself."""
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
    assert list(cache.iterdir()) == [path], "nothing else is left"


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


def building(cache: Path, compiler: str, patience: float = LONG) -> subprocess.Popen[str]:
    """A process that builds the usual kernels by build.py alone, without torch."""
    words = [build.__file__, str(patience), *DEFAULT_VARIANT.defines(vec=native.MAX_LANES, ahead=1)]
    return subprocess.Popen(
        [sys.executable, "-S", "-c", BUILD, *words],
        env={**os.environ, "FAIRSEQ_SRU_CACHE": str(cache), "CXX": compiler},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes: list[subprocess.Popen[str]], timeout: float) -> list[str]:
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, stderr) in zip(processes, said, strict=True):
        assert process.returncode == 0, stderr
    return [stdout for stdout, _ in said]


def test_a_hundred_processes_build_at_once_and_some_are_killed(cache: Path, tmp_path: Path) -> None:
    """As where there are no locks, with a compiler that writes half of a real library, and the other half once all have
    got so far."""
    whole = build.host_library(("-DWIDE", *DEFAULT_VARIANT.defines(vec=native.MAX_LANES, ahead=1)))
    content = whole.read_bytes()[:-CHECKSUM]
    (tmp_path / "whole.so").write_bytes(content)
    half = len(content) // 2
    slow, fresh, go = tmp_path / "c++", tmp_path / "fresh", tmp_path / "go"
    slow.write_text(COMPILER.format(half=half, rest=half + 1, whole=tmp_path / "whole.so", go=go))
    slow.chmod(0o755)
    processes = [building(fresh, str(slow), patience=0) for _ in range(100)]
    try:
        for _ in range(10 * LONG):
            libraries = fresh.glob(f"{build.ASIDE}*/*.so")
            if len([path for path in libraries if path.stat().st_size == half]) == len(processes):
                break
            time.sleep(0.1)
        else:
            pytest.fail("they never all came to the middle")
        assert not list(fresh.glob("*.so"))
        for process in processes[::10]:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        go.touch()
        digests = set(finish([process for i, process in enumerate(processes) if i % 10], LONG))
    finally:
        go.touch()  # lets the compilers of the killed end, too
        for process in processes:
            process.kill()
            process.wait()
    assert len(digests) == 1, "none saw half of one"
    (made,) = fresh.glob("*.so")
    assert made.read_bytes() == whole.read_bytes()
    assert len(list(fresh.iterdir())) == 1 + 10, "what the killed have left, which goes in time"
    assert set(finish([building(fresh, str(slow))], LONG)) == digests, "later ones go on"
    native.load(made, DEFAULT_VARIANT.kernels)


@pytest.mark.slow
def test_processes_with_the_real_compiler(cache: Path, tmp_path: Path) -> None:
    (command, *_), _ = build.host_compiler()
    noting, log = tmp_path / "noting", tmp_path / "log"
    noting.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo >> {log}\nexec {command} "$@"\n')
    noting.chmod(0o755)
    digests = set(finish([building(cache, str(noting)) for _ in range(8)], LONG))
    assert len(digests) == 1
    assert len(log.read_text()) == 1, "one compiles for all"
    (made,) = cache.iterdir()
    assert "sru_forward" in native.load(made, DEFAULT_VARIANT.kernels)


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


class TestOnAFalseGpu:
    """torch sees a GPU of CUDA 13; ``auto`` ends in plain PyTorch, and says once what helps."""

    @pytest.fixture(autouse=True)
    def present(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        monkeypatch.delenv(nvrtc.NVRTC_VARIABLE, raising=False)
        monkeypatch.delenv("FAIRSEQ_SRU_BACKEND", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.version, "hip", None)

    def fallback(self) -> str:
        """The one warning."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                assert isinstance(choose("auto", "cuda"), Torch)
        (warning,) = said
        assert str(warning.message).startswith("SRU runs in plain PyTorch on cuda, which is slower: ")
        with pytest.raises(RuntimeError, match="backend 'cuda' can't run: "):
            choose("cuda", "cuda")
        return str(warning.message).split(": ", 1)[1]

    def test_a_cupy_that_breaks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken:
            def find_spec(self, name: str, *_: object) -> None:
                if name.split(".")[0] == "cupy":
                    raise ValueError("numpy.dtype size changed, may indicate binary incompatibility")

        for name in [name for name in sys.modules if name.split(".")[0] == "cupy"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
        said = self.fallback()
        assert (
            "CuPy can't be imported (numpy.dtype size changed" in said and "pip install 'fairseq_sru[cuda13]'" in said
        )

    def test_a_compile_error(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """The real NVRTC, and a text that isn't C++."""
        text = {**build.kernel_text(), "sru.cu": "int;;; not C++"}
        monkeypatch.setattr(nvrtc, "kernel_text", lambda: text)
        monkeypatch.setattr(cuda, "module_type", lambda: Module)
        backend = choose("auto", "cuda")
        assert isinstance(backend, cuda.Cuda)
        with pytest.raises(Unavailable, match=r"(?s)can't compile -DVALUE=0.*sru\.cu\(1\): error: "):
            backend._load(DEFAULT_VARIANT, 1, 8, 0)
        assert list(cache.iterdir()) == [], "nothing half made"

    def test_a_driver_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Old:
            def load(self, code: bytes) -> None:
                raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

        monkeypatch.setattr(cuda, "module_type", lambda: Old)
        said = self.fallback()
        assert "the driver doesn't take what NVRTC" in said and "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" in said

    def test_a_full_cache(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """The kernels run all the same."""
        real = Path.write_bytes

        def write(self: Path, content: bytes) -> int:
            if cache in self.parents:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(self, content)

        monkeypatch.setattr(Path, "write_bytes", write)
        monkeypatch.setattr(cuda, "module_type", lambda: Module)
        backend = choose("auto", "cuda")
        assert isinstance(backend, cuda.Cuda)
        with pytest.warns(UserWarning, match="No space left on device"):
            found = backend._load(DEFAULT_VARIANT, 1, 8, 0)
        assert {code[:4] for code in found.values()} == {b"\x7fELF"}


class Module:
    """CuPy's, as far as loading goes."""

    def load(self, code: bytes) -> None:
        self.code = code

    def get_function(self, name: str) -> bytes:
        return self.code


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


def test_a_state_dict_has_nothing_of_a_device_or_a_backend() -> None:
    """All that a checkpoint holds is tensors, which map_location moves; here to the device without memory and back."""
    rnn = SRU(16, 16, num_layers=2, bidirectional=True, backend="native")
    rnn(problem()[0])  # whatever use leaves in it
    state = rnn.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    assert set(state) == {name for name, _ in rnn.named_parameters()}, "no buffers"
    for backend in ("torch", "reference"):
        assert SRU(16, 16, num_layers=2, bidirectional=True, backend=backend).state_dict().keys() == state.keys()


@pytest.mark.parametrize("saved_on", ["cuda:3", "cpu"])
def test_map_location(saved_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint says where its tensors were; one of a GPU that isn't here is read with map_location."""
    x, _ = problem()
    rnn = SRU(16, 16, backend="native")
    path = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch:  # as torch.save writes it on that device
        patch.setattr(torch.serialization, "location_tag", lambda _: saved_on)
        torch.save(rnn.state_dict(), path)
    if saved_on != "cpu" and not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="map_location"):
            torch.load(path, weights_only=True)
    other = SRU(16, 16, backend="torch")
    other.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    torch.testing.assert_close(other(x)[0], rnn(x)[0])
    on_meta = torch.load(path, map_location="meta", weights_only=True)
    assert {t.device.type for t in on_meta.values()} == {"meta"}, "no tensor is bound to where it was"
