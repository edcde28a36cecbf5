"""Reads Debian packages, without installing or unpacking them. Needs dpkg-deb."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import RecipeError

from .archives import digest


def run(*command: str, remedy: str, cwd: Path | None = None) -> str:
    """Output of a command; its failure is an error that says what to do."""
    try:
        env = {**os.environ, "LC_ALL": "C.UTF-8"}  # what is read of it is in English
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)
    except FileNotFoundError:
        raise RecipeError(f"{command[0]} is missing: run this on Debian or Ubuntu, or in a container of one") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RecipeError(f"{' '.join(command[:2])} failed ({why}): {remedy}")
    return done.stdout


def find_deb(folder: Path, package: str) -> Path:
    found = sorted(folder.glob(f"{package}_*.deb"))
    if len(found) != 1:
        raise RecipeError(f"{folder} has {len(found)} files {package}_*.deb: put exactly one version there")
    return found[0]


def members(deb: Path, wanted: re.Pattern[str]) -> Iterator[tuple[re.Match[str], bytes]]:
    """Match and content of each file in a package whose path matches; nothing is unpacked to disk."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    try:
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tar,
        ):
            for item in tar:
                match = wanted.search(item.name) if item.isfile() else None
                if match and (content := tar.extractfile(item)):
                    yield match, content.read()
    except tarfile.TarError as error:
        raise RecipeError(f"{deb} cannot be read ({error}): fetch the package again") from None
    if process.returncode:
        raise RecipeError(f"{deb} cannot be read to its end: fetch it again")


def facts(deb: Path) -> dict[str, str]:
    version = run("dpkg-deb", "--field", str(deb), "Version", remedy="fetch the package again").strip()
    return {"package": deb.name.split("_")[0], "version": version, "sha256": digest(deb)}
