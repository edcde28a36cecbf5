"""Stages of a comparison: commands and functions that are run once, and again when what they depend on changed.

Each stage has a stamp, a JSON file that holds its key (a hash of its command and of its inputs' contents), what it cost
and how its outputs looked when it was done.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Timer
from typing import Any, TypeVar

from common.files import write_text
from common.hold import FolderError, held

END = 1 << 20  # bytes of a file's start and end that are hashed; a checkpoint's end has the checksums of all of it
OURS = re.compile(r"checkpoint.*\.pt(\.tmp)?|crash\.pt|average\.pt|dummy|train\.log|\.\d+-.+")  # beside checkpoints
PATIENCE = 10.0  # seconds from being told to end to being killed
NEWS = 20  # last lines of a failed command that are shown

Found = TypeVar("Found")

_running: set[subprocess.Popen[str]] = set()
_ending = Event()  # set while what several threads run is stopped


class StageError(Exception):
    """A stage failed; the message has its name and the last lines of its command."""


@contextmanager
def working_in(out: Path, parser: ArgumentParser, mixed: bool = False) -> Iterator[None]:
    """Hold a comparison's folder while a command works in it. What goes wrong, and Ctrl-C, end the command with a line.

    Args:
        out: the folder.
        parser: of the command.
        mixed: others' files may lie in the folder.
    """
    try:
        with held(out, mixed):
            yield
    except FolderError as error:
        parser.error(f"out: {error}")
    except StageError as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        sys.exit(130)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def evenly(count: int, total: int) -> list[int]:
    """``count`` of the numbers below ``total`` at equal distances, or all if there are fewer."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def remove(path: Path) -> None:
    """Remove a file, or a folder of fairseq-train's.

    Raises:
        StageError: the folder has something else in it, and stays as it is.
    """
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    inside = sorted(path.iterdir())
    if strange := [file for file in inside if file.is_dir() or not OURS.fullmatch(file.name)]:
        raise StageError(f"{strange[0]} is not of this comparison, and {path} has to be made anew: move it")
    for file in inside:
        file.unlink()
    path.rmdir()


def digest(path: Path) -> str | None:
    """What tells two states of a file apart; None without the file."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        seen = hashlib.sha256(file.read(END))
        file.seek(max(END, size - END))
        seen.update(file.read())
    return f"{size} {seen.hexdigest()}"


def program(command: Sequence[str]) -> list[str]:
    """The command with its program from the environment of this Python."""
    if command[0] == "python":  # which may go by another name here
        return [sys.executable, *command[1:]]
    beside = Path(sys.executable).with_name(command[0])
    return [str(beside) if beside.is_file() else command[0], *command[1:]]


def _end_with_parent() -> None:
    # Else the orphan of a killed comparison would go on writing beside its successor.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def peak_memory(pid: int | str) -> int:
    """Peak resident memory of a process or of one of those that it started, in bytes; 0 where /proc doesn't tell.

    Not rusage: there a child begins with the peak of the process that started it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return max([int(own[1]) * 1024 if own else 0, *map(peak_memory, children)])


class Late(StageError):
    """A command took longer than it may."""


def stop(process: subprocess.Popen[str], how: int = signal.SIGTERM) -> None:
    """End a process and, where it has a group of its own, all that it started."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)


def side_by_side(
    jobs: int, work: Sequence[Callable[[], Found]], then: Callable[[Found], object] = lambda found: None
) -> None:
    """Do pieces of work, so many at a time; ``then`` is called in this thread with what each returned. If one fails, or
    on Ctrl-C, commands that run are stopped and no further ones begin."""
    if jobs == 1:
        for piece in work:
            then(piece())
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(piece) for piece in work]
        try:
            for future in as_completed(futures):
                then(future.result())
        except BaseException:
            _ending.set()
            for process in list(_running):
                stop(process)
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            _ending.clear()


def execute(
    command: Sequence[str],
    output: Path,
    append: bool,
    on_line: Callable[[str], object],
    limit: float | None = None,
) -> dict[str, Any]:
    """Run a command whose output goes to a file, and see its lines; its wall time, and its peak memory when it last
    printed a line (None where /proc doesn't tell).

    Args:
        limit: seconds after which it is stopped, with all that it started; PATIENCE later it is killed.

    Raises:
        subprocess.CalledProcessError: it failed; its last lines are the exception's output.
        Late: it was stopped.
        KeyboardInterrupt: :func:`side_by_side` stops what it does.
    """
    if _ending.is_set():
        raise KeyboardInterrupt
    output.parent.mkdir(parents=True, exist_ok=True)
    last: deque[str] = deque(maxlen=NEWS)
    begun, peak = time.monotonic(), 0
    with output.open("a" if append else "w", encoding="utf-8", buffering=1) as file:
        process = subprocess.Popen(
            program(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=limit is not None,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        assert process.stdout
        _running.add(process)
        timers = [] if limit is None else [Timer(limit, stop, [process])]
        timers += [] if limit is None else [Timer(limit + PATIENCE, stop, [process, signal.SIGKILL])]
        for timer in timers:
            timer.start()
        try:
            for line in process.stdout:
                file.write(line)
                last.append(line)
                peak = max(peak, peak_memory(process.pid))
                on_line(line)
            process.wait()
        finally:
            _running.remove(process)
            for timer in timers:
                timer.cancel()
            if process.returncode is None:  # Ctrl-C
                stop(process)
                process.wait()
    if _ending.is_set():
        raise KeyboardInterrupt
    if limit is not None and time.monotonic() - begun >= limit:
        raise Late(f"stopped after {limit:.0f} seconds")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), "".join(last))
    return {"seconds": time.monotonic() - begun, "peak_memory": peak or None}


class Stages:
    """Runs stages once. ``folder`` takes the stamps; ``show`` is told of each stage's begin."""

    def __init__(self, folder: Path, show: Callable[[str], object] = print) -> None:
        self.folder = folder
        self.show = show

    def stamp(self, name: str) -> dict[str, Any]:
        """What is known of a stage; empty if it never began."""
        path = self.folder / f"{name.replace(' ', '-')}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _write(self, name: str, stamp: dict[str, Any]) -> None:
        write_text(self.folder / f"{name.replace(' ', '-')}.json", json.dumps(stamp, indent=1) + "\n")

    def _begin(
        self, name: str, what: Any, inputs: Sequence[Path], outputs: Sequence[Path], goes_on: bool = False
    ) -> dict[str, Any]:
        """The stage's stamp. Where the stage begins anew, its outputs are removed.

        Raises:
            StageError: an output is there that this stage has not made, or not like that.
        """
        key = hashlib.sha256(json.dumps([what, [digest(path) for path in inputs]]).encode()).hexdigest()
        stamp = self.stamp(name)
        same = stamp.get("key") == key
        if same and stamp["done"] and stamp["outputs"] == [digest(path) for path in outputs if path.is_file()]:
            return stamp
        if not (same and not stamp["done"] and goes_on):
            there = [path for path in outputs if path.exists()]
            if not stamp and there:
                raise StageError(f"{name}: {there[0]} is there, and not of this comparison: move it")
            changed = [path for path in there if path.is_file() and digest(path) not in stamp.get("outputs", [])]
            if stamp.get("done") and changed:
                raise StageError(f"{name}: {changed[0]} was changed, and would have to be made anew: move it")
            for path in outputs:  # before the stamp changes: a kill in between leaves nothing that would pass for new
                remove(path)
            stamp = {"key": key, "done": False}
            self._write(name, stamp)
        return stamp

    def _end(self, name: str, stamp: dict[str, Any], outputs: Sequence[Path], facts: dict[str, Any]) -> dict[str, Any]:
        looks = [digest(path) for path in outputs if path.is_file()]
        finished = time.strftime("%Y-%m-%d %H:%M")
        stamp = {**stamp, **facts, "done": True, "finished": finished, "outputs": looks}
        self._write(name, stamp)
        return stamp

    def always(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        append: bool = False,
        on_line: Callable[[str], object] = lambda line: None,
        limit: float | None = None,
    ) -> dict[str, Any]:
        """Run a command that knows by itself whether there is something to do; what it cost. limit: of
        :func:`execute`.

        Raises:
            StageError: it failed; Late: it took too long.
        """
        self.show(f"\n{name}\n+ {shlex.join(command)}")
        try:
            return execute(command, log, append, on_line, limit)
        except Late as error:
            raise Late(f"{name}: {error}") from None
        except subprocess.CalledProcessError as error:
            raise StageError(f"{name}: exit status {error.returncode}\n{error.output}".rstrip()) from None
        except OSError as error:
            raise StageError(f"{name}: {error}") from None

    def command(
        self,
        name: str,
        command: Sequence[str],
        *,
        inputs: Sequence[Path],
        outputs: Sequence[Path],
        log: Path,
        on_line: Callable[[str], object] = lambda line: None,
        resume: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
        facts: Callable[[], dict[str, Any]] = dict,
        limit: float | None = None,
    ) -> dict[str, Any]:
        """Run a command once; its stamp. limit: of :func:`execute`.

        Args:
            inputs: files that the result depends on.
            outputs: files that the command makes; folders of this stage alone, which are removed when it begins anew.
            resume: for a command that goes on where it stopped: told the stamp before the command is run; returns what
                to add to the stamp, or None if nothing is left to do.
            facts: called when it is done; returns what to add to the stamp.

        Raises:
            StageError: the command failed, or ``facts`` did with a ValueError.
        """
        stamp = self._begin(name, list(command), inputs, outputs, goes_on=resume is not None)
        if stamp["done"]:
            return stamp
        cost: dict[str, Any] = {}
        more = resume(stamp) if resume else {}
        if more is not None:
            stamp = {**stamp, "command": list(command), **more}
            self._write(name, stamp)
            part = log if resume else log.with_name(log.name + ".part")
            cost = self.always(name, command, part, append=resume is not None, on_line=on_line, limit=limit)
            part.replace(log)
        try:
            return self._end(name, stamp, outputs, {**cost, **facts()})
        except ValueError as error:
            raise StageError(f"{name}: {error}") from None

    def function(
        self, name: str, what: Any, work: Callable[[], object], *, inputs: Sequence[Path], outputs: Sequence[Path]
    ) -> None:
        """Call ``work`` once: again if ``what`` (anything JSON can hold), inputs or outputs changed."""
        stamp = self._begin(name, what, inputs, outputs)
        if not stamp["done"]:
            self.show(f"\n{name}")
            work()
            self._end(name, stamp, outputs, {})
