"""A data set of any kind: prepared in a folder OUT.part, which becomes OUT when all is there."""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import RecipeError
from common.hold import NAME, FolderError, held

from .archives import Archive, digest

MANIFEST = "manifest.json"


class Folders(NamedTuple):
    """Where a data set is prepared.

    Attributes:
        made: what is written there is the data set.
        archives: downloads, which stay, also for the next run after one that was killed.
        work: for what nobody needs afterwards.
        out: where the data set will be.
    """

    made: Path
    archives: Path
    work: Path
    out: Path


@dataclass(frozen=True)
class Dataset(ABC):
    """A data set that is to be prepared.

    Attributes:
        name: of the data set.
        local_dir: a folder of archives that were fetched already.
    """

    name: str
    local_dir: Path | None

    @property
    @abstractmethod
    def archives(self) -> list[Archive]:
        """Files that are fetched."""

    @abstractmethod
    def files(self) -> dict[str, Path]:
        """Files of the user's by their names among the manifest's sources."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """All but files that the result depends on, as the manifest has it; "versions" only inform."""

    @abstractmethod
    def make(self, folders: Folders) -> dict[str, Any]:
        """Write the data set; returns what the manifest has besides options, with "sources".

        Raises:
            RecipeError: the data can't be had or used.
        """


def described(path: Path, name: str) -> dict[str, Any]:
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest(path)}


def differences(manifest: dict[str, Any], dataset: Dataset) -> list[str]:
    """Options and files of the user's that differ between a manifest and a data set."""
    found = [
        f"{key}: {manifest.get(key)}, not {value}"
        for key, value in dataset.options().items()
        if key != "versions" and manifest.get(key) != value
    ]
    known = {source["name"]: source["sha256"] for source in manifest["sources"] if "sha256" in source}
    for name, path in dataset.files().items():
        if name not in known:
            found.append(f"{path} is new")
        elif digest(path) != known[name]:
            found.append(f"{path} has changed")
    return found


def already_made(dataset: Dataset, out: Path) -> bool:
    """Whether ``out`` holds the data set; says so.

    Raises:
        FolderError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise FolderError(f"{out} is a file, not a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        found = differences(manifest, dataset)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FolderError(f"{out} holds files that are not of this script: name a new or empty folder") from None
    if found:
        shown = "; ".join([*found[:3], *([f"{len(found) - 3} more"] if len(found) > 3 else [])])
        raise FolderError(f"{out} was made of other data or with other options ({shown}); remove it or name another")
    print(f"{out}: already made")
    return True


def clear(part: Path) -> None:
    """Remove what an unfinished run left, but for its lock and its downloads."""
    for path in part.iterdir():
        if path.name == NAME or (path.name == "archives" and any(file.is_file() for file in path.rglob("*"))):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def prepare(dataset: Dataset, out: Path) -> None:
    """Make a data set in ``out``, if it isn't there yet.

    The lock in OUT.part tells that the folder is of this script, so that what a killed run left there may go.

    Raises:
        FolderError: ``out`` or OUT.part is somebody else's, or is being written.
        RecipeError: the data can't be had or used.
    """
    if already_made(dataset, out):
        return
    place = Path(os.path.realpath(out))
    part = place.with_name(f"{place.name}.part")
    with held(part):
        if already_made(dataset, out):  # by a run that held the folder until now
            return
        clear(part)
        folders = Folders(part, part / "archives", part / "work", place)
        folders.archives.mkdir(exist_ok=True)
        folders.work.mkdir()
        try:
            manifest = {**dataset.options(), **dataset.make(folders)}
        except BaseException:
            clear(part)
            raise
        shutil.rmtree(folders.work)
        if not any(folders.archives.iterdir()):
            folders.archives.rmdir()
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (part / MANIFEST).write_text(text, encoding="utf-8")
        try:
            part.rename(place)
        except OSError as error:
            raise RecipeError(f"{part} can't become {out}: {error.strerror}") from None
    print(f"{out}: made")
