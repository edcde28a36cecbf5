"""Stages of a comparison: commands and functions that are run once, and again when what they depend on changed.

Each stage has a stamp, a JSON file with its key (a hash of its command and of its inputs' contents), what it cost and
digests of its outputs.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from common.errors import RecipeError
from common.files import write_text
from common.hold import FolderError, held

from .processes import execute

END = 1 << 20  # bytes of a file's start and end that are hashed; a checkpoint's end has the checksums of all of it


class StageError(Exception):
    """A stage failed; the message has its name and the last lines of its command."""


@contextmanager
def working_in(out: Path, parser: ArgumentParser, mixed: bool = False) -> Iterator[None]:
    """Hold a comparison's folder while a command works in it. Errors, and Ctrl-C, end the command with a line.

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
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path) -> str | None:
    """Size of a file and hash of its ends; None without the file."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = hashlib.sha256(file.read(END))
        file.seek(max(END, size - END))
        ends.update(file.read())
    return f"{size} {ends.hexdigest()}"


def _key(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _digests(paths: Sequence[Path]) -> list[str | None]:
    return [digest(path) for path in paths if path.is_file()]


class Stages:
    """Runs stages once.

    Args:
        folder: takes the stamps.
        show: is called with the name and command of each stage that begins.
        here: facts of this machine, for the stamp of each command that runs.
    """

    def __init__(
        self, folder: Path, show: Callable[[str], object] = print, here: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.show = show
        self.here = here or {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.json"

    def stamp(self, name: str) -> dict[str, Any]:
        """Facts of a stage; empty if it never began."""
        path = self._path(name)
        stamp: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return stamp

    def _write(self, name: str, stamp: dict[str, Any]) -> None:
        write_text(self._path(name), json.dumps(stamp, indent=1) + "\n")

    def noted(self, fact: str) -> list[Any]:
        """A fact of all commands that are done, each value once, in the order of time."""
        stamps = (json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("[!.]*.json"))
        done = [stamp for stamp in stamps if {fact, "finished", "command"} <= stamp.keys()]
        return list(dict.fromkeys(stamp[fact] for stamp in sorted(done, key=lambda stamp: str(stamp["finished"]))))

    def is_of(self, name: str, what: Any, inputs: Sequence[Path]) -> bool:
        """Return whether a stage's stamp is of this command (or ``what`` of a function) and these inputs."""
        stamp, now = self.stamp(name), list(map(digest, inputs))
        before = stamp.get("inputs", [])
        if stamp.get("done"):  # an input that was removed since, as to free the disk, is as it was
            now = [new or old for new, old in zip_longest(now, before)]
        return stamp.get("key") == _key(what) and before == now

    def _once(
        self,
        name: str,
        what: Any,
        work: Callable[[dict[str, Any]], dict[str, Any]],
        inputs: Sequence[Path],
        outputs: Sequence[Path],
        goes_on: bool = False,
    ) -> dict[str, Any]:
        """The stage's stamp; ``work`` is called with it and returns more facts, unless all is as when it was done."""
        stamp, same = self.stamp(name), self.is_of(name, what, inputs)
        if same and stamp["done"] and stamp["outputs"] == _digests(outputs):
            return stamp
        if not (same and goes_on and not stamp["done"]):
            for path in outputs:  # before the stamp changes: a kill in between leaves nothing that would pass for new
                remove(path)
            stamp = {"key": _key(what), "inputs": list(map(digest, inputs)), "done": False}
            self._write(name, stamp)
        try:
            facts = work(stamp)
        except (ValueError, RecipeError) as error:
            raise StageError(f"{name}: {error}") from None
        finished = time.strftime("%Y-%m-%d %H:%M")
        stamp = {**stamp, **facts, "done": True, "finished": finished, "outputs": _digests(outputs)}
        self._write(name, stamp)
        return stamp

    def always(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        append: bool = False,
        on_line: Callable[[str], object] = lambda line: None,
    ) -> dict[str, Any]:
        """Run a command unconditionally and return its time and memory; arguments as of :func:`execute`.

        Raises:
            StageError: it failed.
        """
        self.show(f"\n{name}\n+ {shlex.join(command)}")
        try:
            return execute(command, log, append, on_line)
        except subprocess.CalledProcessError as error:
            self.show(f"{name} failed; all that it printed: {log}")
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
    ) -> dict[str, Any]:
        """Run a command once; return its stamp.

        Args:
            name: of the stage.
            command: the command.
            inputs: files that the result depends on.
            outputs: files that the command makes; folders of this stage only, which are removed when it begins.
            log: takes what it prints.
            on_line: as of :func:`execute`.
            resume: for a command that goes on where it stopped: is called with the stamp before the command is run;
                returns what to add to the stamp, or None if nothing is left to do.
            facts: called when it is done; returns what to add to the stamp.

        Raises:
            StageError: the command failed, or ``resume`` or ``facts`` did with a ValueError or RecipeError.
        """

        def work(stamp: dict[str, Any]) -> dict[str, Any]:
            cost: dict[str, Any] = {}
            more = resume(stamp) if resume else {}
            if more is not None:
                more |= {"command": list(command)}
                self._write(name, {**stamp, **more})
                cost = self.always(name, command, log, append=resume is not None, on_line=on_line)
            return {**(more or {}), **cost, **facts(), **self.here}

        return self._once(name, command, work, inputs, outputs, resume is not None)

    def function(
        self, name: str, what: Any, work: Callable[[], object], *, inputs: Sequence[Path], outputs: Sequence[Path]
    ) -> None:
        """Call ``work`` once: again if ``what`` (anything JSON can hold), inputs or outputs changed."""

        def shown(stamp: dict[str, Any]) -> dict[str, Any]:
            self.show(f"\n{name}")
            work()
            return {}

        self._once(name, what, shown, inputs, outputs)
