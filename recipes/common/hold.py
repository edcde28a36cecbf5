"""One run at a time holds a folder.

    PYTHONPATH=recipes python -m common.hold DIR FD    # for shells: lock the open file FD, DIR/.fairseq_sru.lock

The lock is the operating system's. It goes with the last process that has the file open, however that ends; the file
stays, and tells that the folder is the recipes'.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from .errors import RecipeError

NAME = ".fairseq_sru.lock"
PATIENCE = 2.0  # seconds in which processes that were just killed are gone


class FolderError(RecipeError):
    """A folder can't be held; the message names it and says why."""


def take(folder: Path, fd: int, pid: int, mixed: bool = False) -> None:
    """Lock the open file ``folder``/NAME, for as long as it is open.

    Args:
        pid: of the process to name to others.
        mixed: others' files may lie in the folder. Else one that was never held before must be empty.

    Raises:
        FolderError: somebody else holds the folder, it isn't the recipes', or its file system has no locks.
    """
    try:
        deadline = time.monotonic() + PATIENCE
        while not lock_descriptor(fd, blocking=False):
            if time.monotonic() > deadline:
                raise FolderError(f"{folder} is in use {os.pread(fd, 1 << 10, 0).decode()}")
            time.sleep(0.05)
        if not os.fstat(fd).st_nlink:
            raise FolderError(f"{folder} was in use until now: run this again")
        others = sorted({path.name for path in folder.iterdir()} - {NAME})
        if others and not mixed and not os.fstat(fd).st_size:  # nobody has written its name there before
            (folder / NAME).unlink()
            why = f"holds {others[0]}, and no recipe has written there"
            raise FolderError(f"{folder} {why}: name a new or empty folder")
        text = f"since {time.strftime('%Y-%m-%d %H:%M:%S')}, by process {pid} or one that it started".encode()
        os.pwrite(fd, text, 0)  # not emptied before: a kill in between would leave a file of nobody's
        os.ftruncate(fd, len(text))
    except OSError as error:
        raise FolderError(f"{folder} can't be held ({error}): name a folder on another file system") from None


@contextmanager
def held(folder: Path, mixed: bool = False) -> Iterator[None]:
    """Hold a folder, which is made where there is none, while the body runs. If nothing is written, no trace is left.

    Raises:
        FolderError: as :func:`take`, or it can't be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is a file, not a folder")
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FolderError(f"{folder} can't be held ({error})") from None
    try:
        take(folder, fd, os.getpid(), mixed)
        try:
            yield
        finally:
            with suppress(OSError):
                if [path.name for path in folder.iterdir()] == [NAME]:
                    (folder / NAME).unlink()
                    if new:
                        folder.rmdir()
    finally:
        os.close(fd)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("fd", type=int, metavar="FD", help=f"the shell's open file DIR/{NAME}")
    args = parser.parse_args(argv)
    try:
        take(args.folder, args.fd, os.getppid())
    except FolderError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
