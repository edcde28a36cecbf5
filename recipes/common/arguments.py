"""Types of arguments; argparse names the argument in their errors."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def file(text: str) -> Path:
    path = Path(text)
    if not os.path.isfile(path):  # False, too, below a folder that one may not enter, where Path's own raises
        raise argparse.ArgumentTypeError(f"no such file: {path}")
    return path


def output_file(text: str) -> Path:
    """A file that is written at the end of long work: refused before it where it can't be."""
    path = Path(text)
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{path} can't be written: it is a folder")
    written = os.path.realpath(path) if os.path.islink(path) else path  # a link's own folder need not be there
    folder(os.path.dirname(written) or ".")
    return path


def new_file(text: str) -> Path:
    """An :func:`output_file` that isn't there yet."""
    path = output_file(text)
    if os.path.exists(path):
        raise argparse.ArgumentTypeError(f"{path} is there already: remove it, or name another file")
    return path


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text!r}")
    return int(text)


def folder(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"must be a folder; {text!r} can't be made: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be a folder that can be written; got {text!r}")
    return path
