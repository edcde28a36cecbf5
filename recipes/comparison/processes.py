"""Commands that a comparison runs: one after the other, or several at a time, all of which end with it."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, local
from typing import Any, TypeVar

NEWS = 20  # last lines of a failed command that are shown
OFTEN = 0.1  # seconds between looks at the memory, for commands that print a million lines

# In another locale a command would print what is not UTF-8; a warning would cut a line that is printed in blocks.
ENVIRONMENT = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
UNLESS_GIVEN = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large pages for small tensors, too: training is faster
    "NVIDIA_TF32_OVERRIDE": "0",  # torch would let cuDNN have it: nn.LSTM and convolutions, and no other products
}

Result = TypeVar("Result")

_running: set[subprocess.Popen[str]] = set()
_ending = Event()  # set while what several threads run is stopped
_thread = local()  # gpus: those that a thread's commands see, where not all


def program(command: Sequence[str]) -> list[str]:
    """The command with its program from the environment of this Python."""
    if command[0] == "python":  # which may go by another name here
        return [sys.executable, *command[1:]]
    installed = Path(sys.executable).with_name(command[0])
    return [str(installed) if installed.is_file() else command[0], *command[1:]]


def _end_with_parent() -> None:
    # Else the orphan of a killed comparison would go on writing in its folder.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def peak_memory(pid: int | str) -> int:
    """Peak resident memory of a process or of one of those that it started, in bytes; 0 where /proc lacks it.

    Not rusage: there a child begins with the peak of the process that started it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return max([int(own[1]) * 1024 if own else 0, *map(peak_memory, children)])


def side_by_side(
    jobs: int,
    work: Sequence[Callable[[], Result]],
    then: Callable[[Result], object] = lambda result: None,
    gpus: Sequence[str] = (),
) -> None:
    """Do pieces of work, so many at a time. If one fails, or on Ctrl-C, commands that run are stopped.

    Args:
        jobs: pieces at a time.
        work: the pieces.
        then: is called in this thread with what each returned.
        gpus: values of CUDA_VISIBLE_DEVICES; with several jobs, each sees one of them. Without any, all see all.
    """
    if jobs == 1:
        for piece in work:
            then(piece())
        return
    turns = itertools.cycle(gpus)

    def begin() -> None:
        _thread.gpus = next(turns, None)

    with ThreadPoolExecutor(jobs, initializer=begin) as pool:
        futures = [pool.submit(piece) for piece in work]
        try:
            for future in as_completed(futures):
                then(future.result())
        except BaseException:
            _ending.set()
            for process in list(_running):
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            _ending.clear()


def execute(command: Sequence[str], output: Path, append: bool, on_line: Callable[[str], object]) -> dict[str, Any]:
    """Run a command whose output goes to a file; return its seconds, and its peak memory when it last printed a line.

    Args:
        command: the command.
        output: takes what it prints.
        append: keep what the file has.
        on_line: is called with each line.

    Raises:
        subprocess.CalledProcessError: it failed; its last lines are the exception's output.
        KeyboardInterrupt: :func:`side_by_side` stops its commands.
    """
    if _ending.is_set():
        raise KeyboardInterrupt
    output.parent.mkdir(parents=True, exist_ok=True)
    last: deque[str] = deque(maxlen=NEWS)
    own = getattr(_thread, "gpus", None)
    begun, looked, peak = time.monotonic(), 0.0, 0
    with output.open("a" if append else "w", encoding="utf-8", buffering=1) as file:
        process = subprocess.Popen(
            program(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**UNLESS_GIVEN, **os.environ, **ENVIRONMENT, **({"CUDA_VISIBLE_DEVICES": own} if own else {})},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        assert process.stdout
        _running.add(process)
        if _ending.is_set():  # the others were stopped before it began
            process.terminate()
        try:
            for line in process.stdout:
                file.write(line)
                last.append(line)
                if time.monotonic() - looked > OFTEN:
                    peak, looked = max(peak, peak_memory(process.pid)), time.monotonic()
                on_line(line)
            process.wait()
        finally:
            _running.remove(process)
            if process.returncode is None:  # Ctrl-C
                process.terminate()
                process.wait()
    if _ending.is_set():
        raise KeyboardInterrupt
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), "".join(last))
    return {"seconds": time.monotonic() - begun, "peak_memory": peak or None}
