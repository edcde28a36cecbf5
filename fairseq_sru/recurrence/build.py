"""The kernels' text, the compilers that read it, and the cache on disk for what they make.

A cache entry's name is a hash of all that went into it, so an entry never goes stale. It is written aside and renamed,
so that nobody sees half of one. Of many processes that start at once one makes it, and the others wait. What is loaded
runs with the user's rights, so nothing is taken that another user could have written, and a checksum at an entry's end
tells what a failing disk has damaged.

Environment: ``FAIRSEQ_SRU_CACHE`` (the folder; ``~/.cache/fairseq_sru`` if not set), ``CXX`` (the host compiler).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path

CACHE_VARIABLE = "FAIRSEQ_SRU_CACHE"
CHECKSUM = hashlib.sha256().digest_size  # bytes at the end of an entry, which loaders of libraries don't look at
ASIDE = ".fairseq_sru-new-"  # begins the name of a folder in which an entry is made; the user may have others there
PATIENCE = 60.0  # seconds to wait for another process that compiles the same
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

# No fast-math, which is the default of Intel's compiler: NaN and infinity mean something. The two that are switched off
# after it never change a result.
EXACT = ("-fno-fast-math", "-fno-math-errno", "-fno-trapping-math")
HOST_FLAGS = ("-std=c++17", "-O3", "-march=native", *EXACT, "-fPIC", "-shared")


class Unavailable(RuntimeError):
    """A backend can't run here; the message says why and what helps."""


@functools.cache
def kernel_folder() -> Path:
    """The folder of the CUDA source: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "sru.cu").is_file():
            return folder
    raise Unavailable(f"no kernels/sru.cu in or beside {package}: the installation is incomplete, install it again")


@functools.cache
def kernel_text() -> dict[str, str]:
    """The files of the CUDA source, and headers beside them, by name."""
    return {path.name: path.read_text() for path in sorted(kernel_folder().iterdir()) if path.suffix in (".cu", ".h")}


def _check_system() -> None:
    if platform.system() == "Windows":
        raise Unavailable("compiled kernels are not supported on Windows; WSL 2 counts as Linux")


def user_cache() -> tuple[Path, str]:
    """The folder that is to keep compiled kernels, made if need be; and why it can't, with what helps, or "".

    Raises:
        Unavailable: this is Windows.
    """
    _check_system()
    named = os.environ.get(CACHE_VARIABLE)
    folder = Path(named or "~/.cache/fairseq_sru")  # as the message has it
    other = f"{CACHE_VARIABLE} can name another folder"
    try:
        folder = Path(named or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/fairseq_sru").expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        real = folder.resolve()  # programs change their folder, and links their targets
        why = _why_not_private(folder, real)
        if not why:
            with tempfile.TemporaryFile(dir=real):
                return real, ""
    except OSError as error:
        why = f"{folder} can't be written ({error.strerror})"
    except RuntimeError:  # expanduser's
        why = "there is no home folder for compiled kernels"
    return folder, f"{why}; {other}"


def _why_not_private(folder: Path, real: Path) -> str:
    """Who else could put a library into a folder, which may be a link to a real one; or ""."""
    about, me = real.stat(), os.geteuid()
    if about.st_uid != me or folder.lstat().st_uid not in (me, 0):
        return f"{folder} belongs to another user"
    if about.st_mode & OTHERS_WRITE:
        return f"{folder} can be written by other users: chmod go-w {shlex.quote(str(real))}"
    for above in real.parents:
        if above.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:  # /tmp is sticky
            return f"{folder} can be replaced by other users, who can write {above}"
    return ""


@functools.cache
def cache_folder() -> Path:
    """A folder that this user alone can write: the user's cache, or else a temporary one of this process.

    Raises:
        Unavailable: neither can be written, or this is Windows.
    """
    folder, trouble = user_cache()
    return _temporary_folder(trouble) if trouble else folder


def _temporary_folder(trouble: str) -> Path:
    warnings.warn(f"SRU's compiled kernels are kept for this process alone: {trouble}", stacklevel=3)
    try:
        folder = Path(tempfile.mkdtemp(prefix="fairseq_sru_"))
    except OSError as error:
        raise Unavailable(
            f"no folder for compiled kernels can be written ({error}); {CACHE_VARIABLE} can name one"
        ) from error
    Finalize(None, _remove, (folder, os.getpid()), exitpriority=0)  # atexit's don't run in multiprocessing's processes
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not at the end of what it has forked
        shutil.rmtree(folder, ignore_errors=True)


def cached(parts: list[str], suffix: str, make: Callable[[Path], None]) -> Path:
    """The cache entry that ``make(path)`` writes from parts, with a checksum of CHECKSUM bytes behind it.

    Where the cache has no room, it is in a temporary folder of this process.

    Args:
        parts: all that the entry depends on.

    Raises:
        Unavailable: there is no room anywhere.
    """
    path = _entry(parts, suffix)
    if _is_sound(path):
        return path
    with alone(path.with_suffix(".lock")):
        try:
            return path if _is_sound(path) else _put(path, make)
        except OSError as error:
            trouble = f"{path.parent} can't be written ({error.strerror}); {CACHE_VARIABLE} can name another folder"
    try:
        return _put(_temporary_folder(trouble) / path.name, make)
    except OSError as error:
        raise Unavailable(f"{trouble}; nor can {tempfile.gettempdir()} ({error.strerror})") from error


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process or thread at a time make an entry; the others wait, then find it in the cache.

    The lock is the operating system's and goes with its holder. Whoever has waited PATIENCE seconds, or is in a folder
    without locks, goes on without.

    Args:
        path: of the lock.
    """
    import fcntl  # Windows has none

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("w"))
            stack.callback(path.unlink, missing_ok=True)  # who waits for it still has it; who comes now finds the entry
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    stack.callback(fcntl.flock, file, fcntl.LOCK_UN)  # what was forked keeps the file open
                    break
                except BlockingIOError:
                    time.sleep(0.05)
        yield


def _entry(parts: list[str], suffix: str) -> Path:
    return cache_folder() / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + suffix)


def _is_sound(path: Path) -> bool:
    """Whether an entry is there, this user's alone, and whole: a library cut short kills the process that loads it."""
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & OTHERS_WRITE:
            return False
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-CHECKSUM]).digest() == content[-CHECKSUM:]


def _put(path: Path, make: Callable[[Path], None]) -> Path:
    for left in path.parent.glob(f"{ASIDE}*"):  # by who was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=ASIDE, ignore_cleanup_errors=True) as aside:
        new = Path(aside) / path.name
        make(new)
        content = new.read_bytes()
        new.write_bytes(content + hashlib.sha256(content).digest())
        new.chmod(0o600)
        if not _is_sound(path):  # else another process was first, and others may have it loaded
            new.replace(path)
    return path


@functools.cache
def host_compiler() -> tuple[tuple[str, ...], str]:
    """The host compiler's command, and what it says of its version.

    Raises:
        Unavailable: there is none, or ``CXX`` names one that doesn't run; or this is Windows.
    """
    _check_system()
    named = os.environ.get("CXX")
    try:
        commands = [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]
    except ValueError:  # an open quotation mark
        commands = []
    for words in commands:
        if not words or shutil.which(words[0]) is None:
            continue
        with contextlib.suppress(OSError):  # no program, though it may be run
            done = _run([*words, "--version"])
            if done.returncode == 0:
                return tuple(words), done.stdout
    if named:
        raise Unavailable(f"CXX is {named!r}, which doesn't run{_remedy()}")
    raise Unavailable("no C++ compiler (Debian, Ubuntu: apt install g++)")


def _remedy() -> str:
    return "; unset CXX, or let it name another compiler" if os.environ.get("CXX") else ""


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")


@functools.cache
def cpu_features() -> str:
    """What -march=native depends on: a cache in a shared home folder serves different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})) or platform.processor()


def host_library(options: tuple[str, ...], name: str = "sru.cu") -> Path:
    """A file of the kernels' folder built for this CPU as a shared library.

    Args:
        options: further options of the compiler, ``-D`` and the like.
        name: of the file.

    Raises:
        Unavailable: no compiler, or it fails; the message holds its output.
    """
    command, version = host_compiler()
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    words = [*command, *HOST_FLAGS, *options]
    source = kernel_folder() / name
    texts = kernel_text() if name in kernel_text() else {**kernel_text(), name: source.read_text()}

    def make(path: Path) -> None:
        for file, text in texts.items():  # what the entry's name is of, though the package may be another by now
            (path.parent / file).write_text(text)
        try:
            done = _run([*words, "-x", "c++", str(path.parent / name), "-o", str(path)])
        except OSError as error:  # not of the cache
            raise Unavailable(f"{command[0]} can't be started: {error}") from error
        if done.returncode or not path.exists():
            path.write_bytes(bytes(2**20))  # raises where there was no room
            said = done.stderr.strip()[-3000:] or f"exit status {done.returncode}, nothing said, nothing made"
            raise Unavailable(f"{shlex.join(words)} can't build {source}:\n{said}{_remedy()}")

    return cached([*words, version, str(libc), platform.machine(), cpu_features(), *texts.values()], ".so", make)
