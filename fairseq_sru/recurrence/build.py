"""The kernels' text, the compilers that read it, and the cache on disk for what they make.

A cache entry's name is a hash of all that went into it, so an entry never goes stale. It is written in a folder of its
own and renamed, so that nobody reads half of one.

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
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.util import Finalize
from pathlib import Path

from filelock import FileLock, Timeout

CACHE_VARIABLE = "FAIRSEQ_SRU_CACHE"
PATIENCE = 60.0  # seconds to wait for another process that compiles the same

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
    """Return the folder for compiled kernels, made if need be, and why it can't be used, or "".

    Raises:
        Unavailable: this is Windows.
    """
    _check_system()
    named = os.environ.get(CACHE_VARIABLE)
    folder = Path(named or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/fairseq_sru")
    try:
        folder = folder.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        real = folder.resolve()  # programs change their folder
        with tempfile.TemporaryFile(dir=real):
            return real, ""
    except OSError as error:
        trouble = f"{folder} can't be written ({error.strerror})"
    except RuntimeError:  # expanduser's
        trouble = "there is no home folder for compiled kernels"
    return folder, f"{trouble}; {CACHE_VARIABLE} can name another folder"


@functools.cache
def cache_folder() -> Path:
    """Return the user's cache, or a temporary folder of this process where that can't be written.

    Raises:
        Unavailable: neither can be written, or this is Windows.
    """
    folder, trouble = user_cache()
    if not trouble:
        return folder
    warnings.warn(f"SRU's compiled kernels are kept for this process only: {trouble}", stacklevel=3)
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
    """Return the cache entry that ``make(path)`` writes from parts.

    Of many processes that want it at once, one makes it and the others wait.

    Args:
        parts: all that the entry depends on.

    Raises:
        Unavailable: there is no room for it.
    """
    folder = cache_folder()
    path = folder / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + suffix)
    if path.exists():
        return path
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, NotImplementedError, Timeout):  # no locks there, or the holder hangs
                stack.enter_context(FileLock(path.with_suffix(".lock"), timeout=PATIENCE))
            if not path.exists():
                aside = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True))
                new = Path(aside) / path.name
                make(new)
                new.replace(path)
    except OSError as error:
        raise Unavailable(
            f"{folder} can't be written ({error.strerror}); {CACHE_VARIABLE} can name another folder"
        ) from error
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
            said = done.stderr.strip()[-3000:] or f"exit status {done.returncode}, nothing said, nothing made"
            raise Unavailable(f"{shlex.join(words)} can't build {source}:\n{said}{_remedy()}")

    return cached([*words, version, str(libc), platform.machine(), cpu_features(), *texts.values()], ".so", make)
