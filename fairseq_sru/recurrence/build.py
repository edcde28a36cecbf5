"""The kernels' text, the compilers that read it, and the cache on disk for what they make.

A cache entry's name is a hash of all that went into it, so an entry never goes stale. It is written aside and renamed:
of many processes that start at once each may compile the same entry, none ever sees half of one, and one that is killed
leaves no lock behind.

Environment: ``FAIRSEQ_SRU_CACHE`` (the folder; ``~/.cache/fairseq_sru`` if not set), ``CXX`` (the host compiler).
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["Unavailable", "cache_folder", "cached", "host_compiler", "host_library", "kernel_folder", "kernel_text"]

# No fast-math: NaN and infinity mean something. The two that are switched off never change a result.
HOST_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")


class Unavailable(RuntimeError):
    """A backend can't run here; the message says why and what helps."""


@functools.cache
def kernel_folder() -> Path:
    """The folder of the CUDA text: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "sru.cu").is_file():
            return folder
    raise Unavailable(f"no kernels/sru.cu in or beside {package}: the installation is incomplete, install it again")


@functools.cache
def kernel_text() -> dict[str, str]:
    """The files of the CUDA text by name."""
    return {path.name: path.read_text() for path in sorted(kernel_folder().iterdir()) if path.suffix in (".cu", ".h")}


@functools.cache
def cache_folder() -> Path:
    """A folder that can be written: the user's cache, or else a temporary one, private to this process."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "fairseq_sru"
    folder = Path(os.environ.get("FAIRSEQ_SRU_CACHE") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="fairseq_sru_"))


def cached(parts: list[str], suffix: str, make: Callable[[Path], None], fresh: bool = False) -> Path:
    """The cache entry that ``make(path)`` writes from parts.

    Args:
        parts: all that the entry depends on.
        suffix: of the file's name.
        make: writes the file.
        fresh: make it even if it is there.
    """
    folder = cache_folder()
    path = folder / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + suffix)
    if fresh or not path.exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix="new_") as aside:
            new = Path(aside) / path.name
            make(new)
            new.replace(path)
    return path


@functools.cache
def host_compiler() -> tuple[tuple[str, ...], str]:
    """The host compiler's command, and what it says of its version.

    Raises:
        Unavailable: there is none, or ``CXX`` names one that doesn't run.
    """
    named = os.environ.get("CXX")
    for words in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(words[0]) is None:
            continue
        done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return tuple(words), done.stdout
    raise Unavailable(
        f"CXX is {named!r}, which doesn't run" if named else "no C++ compiler (Debian, Ubuntu: apt install g++)"
    )


@functools.cache
def cpu_features() -> str:
    """What -march=native depends on: a cache in a shared home folder serves different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})) or platform.processor()


def host_library(options: tuple[str, ...], fresh: bool = False) -> Path:
    """The kernels built for this CPU as a shared library.

    Args:
        options: further options of the compiler, ``-D`` and the like.
        fresh: build it even if the cache has it.

    Raises:
        Unavailable: no compiler, or it fails; the message holds its output.
    """
    command, version = host_compiler()
    words = [*command, *HOST_FLAGS, *options]

    def make(path: Path) -> None:
        source = kernel_folder() / "sru.cu"
        done = subprocess.run(
            [*words, "-x", "c++", str(source), "-o", str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"{shlex.join(words)} can't build {source}:\n{done.stderr.strip()[-3000:]}")

    parts = [*words, version, platform.machine(), cpu_features(), *kernel_text().values()]
    return cached(parts, ".so", make, fresh)
