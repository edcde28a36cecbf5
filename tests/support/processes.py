"""Python in a process of its own, and what this one remembers of compilers, caches and GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from fairseq_sru.recurrence import build, cuda, native, native_call, nvrtc
from fairseq_sru.recurrence.dispatch import choose, set_up

LONG = 1200  # seconds after which a process counts as hanging: machines are slow, and pause

# Taken before any test replaces one of them.
MEMORIES = (
    *(set_up, choose, native.library, native.address, native_call.compiled, nvrtc.compiler, cuda.multiprocessors),
    *(build.cache_folder, build.host_compiler, build.kernel_folder, build.kernel_text),
)


def python(
    *words: str | Path, prefix: tuple[str, ...] = (), check: bool = True, without: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these words. prefix: a program that starts it; without: variables that are not set."""
    kept = {name: value for name, value in os.environ.items() if name not in without}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", os.environ.get("PYTHONPATH", ""))))
    env = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
    command = [*prefix, sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LONG)
    assert not check or done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return done


ALONE = """
import sys

class Alone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {allowed!r} | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Alone())
"""
TORCHS = {"torch", "torchgen", "functorch", "numpy", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2"}
TORCHS |= {"markupsafe", "fsspec", "filelock", "fairseq_sru"}


def alone(*more: str) -> str:
    """A program's beginning, after which it finds torch, what torch brings, this package, and ``more``."""
    return ALONE.format(allowed=TORCHS | set(more))


BEGIN = """
from fairseq_sru.decoding import program
program.OPTIONS += ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
"""


def under_sanitizers(script: str, cache: Path) -> None:
    """Run Python with the programs of fairseq_sru.decoding under the address and undefined-behaviour sanitizers, whose
    malloc is torch's then."""
    command, _ = build.host_compiler()
    libraries = [
        subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    if not all(Path(path).is_absolute() for path in libraries):
        pytest.skip("the compiler has no sanitizers")
    # gcc 12 aligns no AVX-512 vector in the stack that it puts aside for finding uses after return
    checks = "detect_leaks=0:detect_stack_use_after_return=0"
    env = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": checks, "FAIRSEQ_SRU_CACHE": str(cache)}
    done = python("-c", f"{BEGIN}{script}\nprint('done')", check=False, **env)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]


def forget() -> None:
    """Find out again what runs here."""
    for function in MEMORIES:
        function.cache_clear()


def forgetting() -> Iterator[None]:
    """For a fixture: nothing that a test finds out stays in this process."""
    forget()
    yield
    forget()
