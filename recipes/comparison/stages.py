"""Stages of a comparison: commands and functions that are run once, and again when what they depend on changed.

Each stage has a stamp, a JSON file that holds its key (a hash of its command and of its inputs' contents), what it cost
and how its outputs looked when it was done.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import RecipeError
from common.files import write_text
from common.hold import FolderError, held

from .processes import execute

END = 1 << 20  # bytes of a file's start and end that are hashed; a checkpoint's end has the checksums of all of it
OURS = re.compile(r"checkpoint.*\.pt(\.tmp|\.part)?|crash\.pt|average\.pt|train\.log|\.\d+-.+")  # of a run
MEETING = re.compile(r"--(standalone|(master|node|rdzv|local)[-_].*)")  # how torchrun's processes meet


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
    except (StageError, OSError) as error:  # of a full disk, too
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


def refuse(trained: Iterable[Path]) -> None:
    """Raise a FolderError that names what would have to be removed to train anew, if there is anything."""
    if names := dict.fromkeys(map(str, trained)):
        told = "trained with other settings or moved; remove that, or name another out=DIR"
        raise FolderError(f"{', '.join(names)}: {told}")


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


def essence(command: Sequence[str]) -> list[str]:
    """What a command's result depends on: not how torchrun's processes meet, nor how a path here is spelled."""
    here = f"{Path.cwd()}/"
    words = [word.removeprefix(here) for word in command]
    if words[0] != "torchrun":
        return words
    values = [bool(MEETING.fullmatch(word)) and "=" not in word and word != "--standalone" for word in words]
    return [
        word
        for word, is_value in zip(words, [False, *values], strict=False)
        if not is_value and not MEETING.fullmatch(word)
    ]


class Late(StageError):
    """A command took longer than it may."""


class Stages:
    """Runs stages once.

    Args:
        folder: takes the stamps.
        show: is told of each stage's begin.
        here: facts of this machine, for the stamp of each command that runs.
    """

    def __init__(
        self, folder: Path, show: Callable[[str], object] = print, here: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.show = show
        self.here = here or {}

    def stamp(self, name: str) -> dict[str, Any]:
        """What is known of a stage; empty if it never began."""
        return self._read(self.folder / f"{name.replace(' ', '-')}.json")

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise StageError(f"{path} is damaged ({error}): remove it, and move what its stage made") from None
        return found

    def noted(self, fact: str) -> list[Any]:
        """What the stamps of commands that are done say, each once, in the order of time."""
        stamps = map(self._read, self.folder.glob("[!.]*.json"))
        done = (stamp for stamp in stamps if {fact, "finished", "command"} <= stamp.keys())
        return list(dict.fromkeys(stamp[fact] for stamp in sorted(done, key=lambda stamp: str(stamp["finished"]))))

    def differ(self, names: Sequence[str], here: Mapping[str, Any]) -> bool:
        """Whether a stage was run where other facts held; what its stamp lacks counts as the same."""
        return any(self.stamp(name).get(fact, value) != value for name in names for fact, value in here.items())

    def alike(self, names: Sequence[str], here: Mapping[str, Any]) -> None:
        """Let all of these run anew where some were run where other facts held."""
        for name in names if self.differ(names, here) else ():
            self.again(name)

    def _write(self, name: str, stamp: dict[str, Any]) -> None:
        write_text(self.folder / f"{name.replace(' ', '-')}.json", json.dumps(stamp, indent=1) + "\n")

    def _key(self, what: Any, inputs: Sequence[str | None]) -> str:
        return hashlib.sha256(json.dumps([what, inputs]).encode()).hexdigest()

    def is_of(self, name: str, command: Sequence[str], inputs: Sequence[Path]) -> bool:
        """Whether what is known of a stage is of this command and these inputs."""
        stamp = self.stamp(name)
        return stamp.get("key") == self._key(essence(command), self._looks(stamp, inputs))

    def _looks(self, stamp: dict[str, Any], inputs: Sequence[Path]) -> list[str | None]:
        """The inputs' digests; of one that is gone since the stage was done, as it was: it may be removed, as to free
        the disk."""
        looks, before = list(map(digest, inputs)), stamp.get("inputs", [])
        if not stamp.get("done") or len(before) != len(looks):
            return looks
        return [look or noted for look, noted in zip(looks, before, strict=True)]

    def again(self, name: str) -> None:
        """Let a stage run anew that may be done."""
        if stamp := self.stamp(name):
            self._write(name, {**stamp, "done": False})

    def _begin(
        self, name: str, what: Any, inputs: Sequence[Path], outputs: Sequence[Path], goes_on: bool = False
    ) -> dict[str, Any]:
        """The stage's stamp. Where the stage begins anew, its outputs are removed.

        Raises:
            StageError: an output is there that this stage has not made, or not like that; or it can't be made anew.
        """
        stamp = self.stamp(name)
        gone = [path for path in inputs if not path.is_file()] if stamp.get("done") else []
        key = self._key(what, looks := self._looks(stamp, inputs))
        same = stamp.get("key") == key
        if same and stamp["done"] and stamp["outputs"] == [digest(path) for path in outputs if path.is_file()]:
            return stamp
        if not (same and not stamp["done"] and goes_on):
            if gone:
                raise StageError(f"{name}: can't be made anew, {gone[0]} is gone")
            there = [path for path in outputs if path.exists()]
            if not stamp and there:
                raise StageError(f"{name}: {there[0]} is there, and not of this comparison: move it")
            if changed := self.changed(name, there):
                raise StageError(f"{name}: {changed[0]} was changed, and would have to be made anew: move it")
            for path in outputs:  # before the stamp changes: a kill in between leaves nothing that would pass for new
                remove(path)
            stamp = {"key": key, "inputs": looks, "done": False}
            self._write(name, stamp)
        return stamp

    def _end(self, name: str, stamp: dict[str, Any], outputs: Sequence[Path], facts: dict[str, Any]) -> dict[str, Any]:
        looks = [digest(path) for path in outputs if path.is_file()]
        finished = time.strftime("%Y-%m-%d %H:%M")
        stamp = {**stamp, **facts, "done": True, "finished": finished, "outputs": looks}
        self._write(name, stamp)
        return stamp

    def changed(self, name: str, outputs: Sequence[Path]) -> list[Path]:
        """Outputs of a stage that is done which are not as it made them."""
        stamp = self.stamp(name)
        there = [path for path in outputs if path.is_file()] if stamp.get("done") else []
        return [path for path in there if digest(path) not in stamp["outputs"]]

    def remade(self, name: str, outputs: Sequence[Path]) -> None:
        """Note that another command of ours made a stage's outputs anew."""
        if stamp := self.stamp(name):
            self._end(name, stamp, outputs, {})

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
        except subprocess.TimeoutExpired as error:
            raise Late(f"{name}: stopped after {error.timeout:.0f} seconds") from None
        except subprocess.CalledProcessError as error:
            self.show(f"{name} failed; all that it said: {log}")
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
            StageError: the command failed, or ``resume`` or ``facts`` did with a ValueError or RecipeError.
        """
        stamp = self._begin(name, essence(command), inputs, outputs, resume is not None)
        if stamp["done"]:
            return stamp
        cost: dict[str, Any] = {}
        try:
            more = resume(stamp) if resume else {}
            if more is not None:
                stamp = {**stamp, "command": list(command), **more}
                self._write(name, stamp)
                part = log if resume else log.with_name(log.name + ".part")
                cost = self.always(name, command, part, append=resume is not None, on_line=on_line, limit=limit)
                part.replace(log)
            return self._end(name, stamp, outputs, {**cost, **facts(), **self.here})
        except (ValueError, RecipeError) as error:
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
