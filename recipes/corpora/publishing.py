"""The user's folder: what is in it already, and what a run moves there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from common.hold import NAME, FolderError, Hold

from . import debian
from .archives import digest, find
from .building import MANIFEST, Task
from .sentences import Sentences
from .speech_sets import Speech
from .texts import Text

MARK = ".made_by_prepare"  # in a folder of downloads; one without it is somebody else's


Preparation = Task | Sentences | Text | Speech  # a data set that is to be prepared


def differences(manifest: dict[str, Any], task: Preparation) -> list[str]:
    """What is otherwise in a manifest than in a task; archives are compared where they are at hand. What was made by
    another version of a tool stays good: a comparison has trained with it."""
    found = [
        f"{key}: {manifest.get(key)}, not {value}"
        for key, value in task.options().items()
        if key != "versions" and manifest.get(key) != value
    ]
    at_hand = task.files()
    sources = manifest.get("sources", [])
    parts = [part for source in sources for kind in ("packages", "lists") for part in source.get(kind, [])]
    known = {source.get("name"): source["sha256"] for source in sources if "sha256" in source}
    given = task.local_dir or isinstance(task, Task)  # else the files are downloads, which needn't stay
    gone = known.keys() - at_hand.keys() - {archive.name for archive in task.archives} if given and at_hand else set()
    found += [f"{name} is gone" for name in sorted(gone)]
    if task.local_dir:
        built = {part.get("package") or part["list"]: part["sha256"] for part in parts}
        at_hand |= {name: path for name in built if (path := debian.find(name, [task.local_dir]))}
        known |= built
        at_hand |= {archive.name: path for archive in task.archives if (path := find(archive, [task.local_dir]))}
    other = {name: path for name, path in at_hand.items() if digest(path) != known.get(name)}
    return found + [f"{path} {'has changed' if name in known else 'is new'}" for name, path in other.items()]


def some(what: list[str]) -> str:
    return "; ".join(what if len(what) < 5 else [*what[:3], f"{len(what) - 3} more"])


def already_made(task: Preparation, out: Path) -> bool:
    """Whether ``out`` holds what is to be made; says so.

    Raises:
        RecipeError: it holds something else, or not all of it.
    """
    if not (out / MANIFEST).is_file():
        return False
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        files, _ = manifest["files"], manifest["data_set"]
    except (ValueError, KeyError, TypeError):
        raise FolderError(f"{out / MANIFEST} is not of this script: name a new or empty folder") from None
    if other := differences(manifest, task):
        raise FolderError(
            f"{out} was made of other data or with other options ({some(other)}); remove it or name another"
        )
    wrong = []
    for name, facts in files.items():
        if not (out / name).is_file():
            wrong.append(f"{name} is missing")
        elif digest(out / name) != facts["sha256"]:
            wrong.append(f"{name} has changed")
    if wrong:
        raise FolderError(f"{out} is not as it was made ({some(wrong)}): put that right, or remove it or name another")
    print(f"{out}: already made")
    return True


def publish(made: Path, out: Path) -> None:
    """Move what is made to ``out``, the manifest last. A killed run is taken up where it was killed.

    Raises:
        FolderError: ``out`` has a file of that name; nothing was moved.
    """
    names = sorted(path.name for path in made.iterdir())
    if there := [name for name in names if os.path.lexists(out / name)]:
        raise FolderError(f"{out / there[0]} is not of this script: move it and run this again")
    for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
        (made / name).rename(out / name)


def drop_if_empty(archives: Path, work: Path) -> None:
    """Drop a folder of downloads without any, by way of ``work``: no half of it is ever seen."""
    if archives.is_dir() and [path.name for path in archives.iterdir()] == [MARK]:
        archives.rename(work / "archives")
        shutil.rmtree(work / "archives")


def prepare(task: Preparation, out: Path, hold: Hold) -> None:
    """Make what is not made yet.

    Raises:
        RecipeError: ``out`` holds something else, or the data can't be had or used.
        BrokenProcessPool: a process was killed.
    """
    archives = out / "archives"
    hold.work.mkdir()
    try:
        drop_if_empty(archives, hold.work)
        for folder in hold.left:
            if (folder / "made" / MANIFEST).is_file():
                publish(folder / "made", out)
            shutil.rmtree(folder, ignore_errors=True)  # the killed run's children may be at work for a moment longer
        if already_made(task, out):
            return
        ours = {NAME, hold.work.name, *(folder.name for folder in hold.left)}
        ours |= {"archives"} if (archives / MARK).is_file() else set()
        if strange := sorted({path.name for path in out.iterdir()} - ours):
            raise FolderError(f"{out} holds {strange[0]}, which is not of this script: move it, or name another folder")
        if not archives.exists():
            (hold.work / "archives").mkdir()
            (hold.work / "archives" / MARK).touch()
            (hold.work / "archives").rename(archives)
        try:
            made = task.make(hold.work, archives)
        finally:
            drop_if_empty(archives, hold.work)
        publish(made, out)
    finally:
        if not (hold.work / "made" / MANIFEST).exists():  # else it only has to be moved
            shutil.rmtree(hold.work, ignore_errors=True)
    print(f"{out}: made")
