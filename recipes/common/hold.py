"""One run at a time holds a folder.

    PYTHONPATH=recipes python -m common.hold DIR FD    # for shells: lock the open file FD, DIR/.fairseq_sru.lock

The lock is the operating system's. It goes with the last process that has the file open, however that ends; the file
stays, and tells that the folder is the recipes'.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from .errors import RecipeError

NAME = ".fairseq_sru.lock"
HELD_BY = "fairseq_sru"
PATIENCE = 2.0  # seconds in which processes that were just killed are gone


class FolderError(RecipeError):
    """A folder can't be held; the message names it and says why."""


def recorded(fd: int) -> dict[str, Any] | None:
    """What the last holder wrote; empty if nobody did, None if the file is of something else."""
    text = os.pread(fd, 1 << 20, 0)
    if not text:
        return {}
    with contextlib.suppress(ValueError):
        record = json.loads(text.split(b"\n")[0])
        if isinstance(record, dict) and record.get("held_by") == HELD_BY:
            return record
    return None


def holder(record: dict[str, Any] | None) -> str:
    if not record:
        return "by another process"
    host = "" if record["host"] == platform.node() else f" on {record['host']}"
    return f"since {record['since']}, by process {record['pid']}{host} or one that it started"


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Make FolderErrors of the body's OSErrors."""
    try:
        yield
    except OSError as error:
        without = error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
        why = f"its file system has no locks: name a folder on another; {error}" if without else error
        raise FolderError(f"{folder} can't be held ({why})") from None


def take(folder: Path, fd: int, pid: int, mixed: bool = False) -> None:
    """Lock the open file ``folder``/NAME, for as long as it is open.

    Args:
        pid: of the process to name to others.
        mixed: others' files may lie in the folder. Else one that was never held before must be empty.

    Raises:
        FolderError: somebody else holds the folder, or it isn't the recipes'.
        OSError: the file system has no locks, or no room.
    """
    deadline = time.monotonic() + PATIENCE
    while not lock_descriptor(fd, blocking=False):
        if time.monotonic() > deadline:
            raise FolderError(f"{folder} is in use {holder(recorded(fd))}")
        time.sleep(0.05)
    if not os.fstat(fd).st_nlink:
        raise FolderError(f"{folder} was in use until now: run this again")
    last = recorded(fd)
    if last is None:
        raise FolderError(f"{folder / NAME} is not of these recipes: move it, or name another folder")
    if not last and not mixed and (others := sorted({path.name for path in folder.iterdir()} - {NAME})):
        (folder / NAME).unlink()
        raise FolderError(f"{folder} holds {others[0]}, and no recipe has written there: name a new or empty folder")
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    record = {"held_by": HELD_BY, "pid": pid, "host": platform.node(), "since": since}
    text = f"{json.dumps(record)}\n".encode()
    os.pwrite(fd, text, 0)  # not emptied before: a kill in between would leave a file of nobody's
    os.ftruncate(fd, len(text))


@contextmanager
def held(folder: Path, mixed: bool = False) -> Iterator[None]:
    """Hold a folder, which is made where there is none, while the body runs. If nothing is written, no trace is left.

    Raises:
        FolderError: as :func:`take`, or it can't be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is a file, not a folder")
    new = not folder.exists()
    with contextlib.ExitStack() as opened:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            opened.callback(os.close, fd)
            take(folder, fd, os.getpid(), mixed)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [path.name for path in folder.iterdir()] == [NAME]:
                    (folder / NAME).unlink()
                    if new:
                        folder.rmdir()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("fd", type=int, metavar="FD", help=f"the shell's open file DIR/{NAME}")
    args = parser.parse_args(argv)
    try:
        with explained(args.folder):
            take(args.folder, args.fd, os.getppid())
    except FolderError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
