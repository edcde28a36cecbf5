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

from filelock import FileLock

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
    """Return the folder of the CUDA source: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "sru.cu").is_file():
            return folder
    raise Unavailable(f"no kernels/sru.cu in or next to {package}: the installation is incomplete, install it again")


@functools.cache
def kernel_text() -> dict[str, str]:
    """Return the text of the CUDA source and its headers by file name."""
    return {path.name: path.read_text() for path in sorted(kernel_folder().iterdir()) if path.suffix in (".cu", ".h")}


def _check_system() -> None:
    if platform.system() == "Windows":
        raise Unavailable("compiled kernels are not supported on Windows; WSL 2 counts as Linux")


@functools.cache
def cache_folder() -> Path:
    """Return the user's cache, made if need be, or a temporary folder of this process where that can't be written.

    Raises:
        Unavailable: neither can be written, or this is Windows.
    """
    _check_system()
    named = os.environ.get(CACHE_VARIABLE) or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/fairseq_sru"
    try:
        folder = Path(named).expanduser().resolve()  # programs change their folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # the latter where there is no home folder
        trouble = f"{named} can't be written ({error}); {CACHE_VARIABLE} can name another folder"
    warnings.warn(f"SRU's compiled kernels are kept for this process only: {trouble}", stacklevel=3)
    try:
        folder = Path(tempfile.mkdtemp(prefix="fairseq_sru_"))
    except OSError:
        raise Unavailable(trouble) from None
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
            with contextlib.suppress(OSError, NotImplementedError):  # no locks there, or the holder hangs
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
    """Return the host compiler's command, and what it says of its version.

    Raises:
        Unavailable: there is none, or ``CXX`` names one that doesn't run; or this is Windows.
    """
    _check_system()
    named = os.environ.get("CXX")
    for words in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(words[0]) is not None:
            done = _run([*words, "--version"])
            if done.returncode == 0:
                return tuple(words), done.stdout
    if named:
        raise Unavailable(f"CXX is {named!r}, which doesn't run; unset CXX, or let it name another compiler")
    raise Unavailable("no C++ compiler (Debian, Ubuntu: apt install g++)")


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")


@functools.cache
def cpu_features() -> str:
    """Return the features that -march=native depends on: a cache in a shared home serves different processors."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})) or platform.processor()


def host_library(options: tuple[str, ...], name: str = "sru.cu") -> Path:
    """Return a file of the kernels' folder built for this CPU as a shared library.

    Args:
        options: further options of the compiler, ``-D`` and the like.
        name: of the file.

    Raises:
        Unavailable: no compiler, or it fails; the message holds its output.
    """
    command, version = host_compiler()
    libc = "-".join(platform.libc_ver())
    words = [*command, *HOST_FLAGS, *options]
    source = kernel_folder() / name
    texts = kernel_text() if name in kernel_text() else {**kernel_text(), name: source.read_text()}

    def make(path: Path) -> None:
        for file, text in texts.items():  # what the entry's name is of, though the package may be another by now
            (path.parent / file).write_text(text)
        done = _run([*words, "-x", "c++", str(path.parent / name), "-o", str(path)])
        if done.returncode:
            raise Unavailable(f"{shlex.join(words)} can't build {source}:\n{done.stderr.strip()[-3000:]}")

    return cached([*words, version, libc, platform.machine(), cpu_features(), *texts.values()], ".so", make)
