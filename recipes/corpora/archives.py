"""Archives from the internet, or from a folder they were put into: downloads that resume, checked before use."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import lzma
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import RecipeError
from common.progress import progress

TRIES = 4  # that bring nothing; whatever arrives starts the count again
PAUSE = 2.0  # seconds before the second try, twice as long before each further one
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20
# what reading a cut-off or damaged archive ends in; the last, of an encrypted .zip
DAMAGED = (
    shutil.ReadError,
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
)


class Unreachable(RecipeError):
    """The file cannot be downloaded from here."""


@dataclass(frozen=True)
class Archive:
    """A file to fetch."""

    url: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None  # for what sacreBLEU knows only by its MD5
    cached: Path | None = None  # a file outside of the project that is this archive where it exists

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


def digest(path: Path, kind: str = "sha256") -> str:
    """Checksum of a file of any size."""
    checksum = hashlib.new(kind)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum.update(block)
    return checksum.hexdigest()


def check(path: Path, archive: Archive) -> dict[str, Any]:
    """Make sure that a file is the right one.

    Returns:
        Facts for the manifest: name, url, bytes, sha256.

    Raises:
        RecipeError: its size or checksum is wrong, or, with no checksum known, it is a web page.
    """
    remedy = f"remove it, or fetch it again from {archive.url}"
    size, sha256 = path.stat().st_size, digest(path)
    if archive.bytes is not None and size != archive.bytes:
        raise RecipeError(f"{path} has {size:,} bytes, not {archive.bytes:,}: {remedy}")
    if archive.sha256 is not None and sha256 != archive.sha256:
        raise RecipeError(f"{path} has sha256 {sha256}, not {archive.sha256}: {remedy}")
    if archive.md5 is not None and (md5 := digest(path, "md5")) != archive.md5:
        raise RecipeError(f"{path} has MD5 {md5}, not {archive.md5}: {remedy}")
    with path.open("rb") as file:  # some networks answer everything with a page of theirs
        if archive.sha256 is None and archive.md5 is None and file.read(BLOCK).lstrip()[:1] == b"<":
            raise RecipeError(f"{path} is a web page: {remedy}")
    return {"name": archive.name, "url": archive.url, "bytes": size, "sha256": sha256}


def receive(url: str, part: Path) -> bool:
    """Append what ``part`` lacks, by one request; returns whether the server then has sent all.

    Raises:
        urllib.error.URLError, http.client.HTTPException, OSError: the connection failed; what arrived is in ``part``.
    """
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "fairseq_sru"}  # some hosts refuse urllib's own
    request = urllib.request.Request(url, headers={**headers, "Range": f"bytes={have}-"} if have else headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        have = have if response.status == 206 else 0  # else the server sends the file from its beginning
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        bar = progress(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, part.open("ab" if have else "wb") as file:
            while block := response.read1(BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is None or part.stat().st_size >= total


def download(archive: Archive, folder: Path) -> Path:
    """Download into ``folder``; NAME.part, which a later call goes on with, becomes NAME once it is whole and checked.

    Raises:
        Unreachable: the server does not give the file.
        RecipeError: what it gives is not the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    size = have = part.stat().st_size if part.is_file() else 0
    failures = 0
    while size != archive.bytes:
        try:
            if receive(archive.url, part):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416 and part.is_file():  # the part is no shorter than the file
                part.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                failures = TRIES
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__
        have, size = size, part.stat().st_size if part.is_file() else 0
        failures = 1 if size > have else failures + 1
        if failures >= TRIES:
            raise Unreachable(f"{archive.url} cannot be downloaded ({reason})")
        time.sleep(PAUSE * 2 ** (failures - 1))
    try:
        check(part, archive)
    except RecipeError as error:
        part.unlink()
        raise RecipeError(f"{str(error).replace(str(part), 'the download')}\n{instructions([archive])}") from None
    part.replace(path)
    return path


def find(archive: Archive, places: Iterable[Path]) -> Path | None:
    """The archive's file in the first of some folders that has it, or where it is cached."""
    paths = [*(place / archive.name for place in places), *([archive.cached] if archive.cached else [])]
    return next((path for path in paths if path.is_file()), None)


def fetch(
    archives: list[Archive], local_dir: Path | None, folder: Path
) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """Find each archive in ``local_dir``, in ``folder`` or in its cache, or download it into ``folder``.

    Returns:
        The paths by name, and the facts for the manifest.

    Raises:
        RecipeError: one is wrong, or cannot be had; the message names the files that are needed and where to put them.
    """
    places = [local_dir, folder] if local_dir else [folder]
    paths: dict[str, Path] = {}
    facts = []
    for archive in archives:
        try:
            path = find(archive, places) or download(archive, folder)
        except Unreachable as error:
            missing = [other for other in archives if find(other, places) is None]
            raise Unreachable(f"{error}\n{instructions(missing)}") from None
        facts.append(check(path, archive))
        if archive.sha256 is None and archive.md5 is None:
            print(f"{archive.name}: no checksum is published; sha256 of this one: {facts[-1]['sha256']}", flush=True)
        paths[archive.name] = path
    return paths, facts


def instructions(missing: Iterable[Archive]) -> str:
    lines = ["Where there is internet, fetch the following, put it into one folder, and name that with --local-dir:"]
    for archive in missing:
        known = {"bytes": archive.bytes, "sha256": archive.sha256, "MD5": archive.md5}
        facts = ", ".join(f"{kind} {value}" for kind, value in known.items() if value)
        lines.append(f"  {archive.url}" + (f" ({facts})" if facts else ""))
    return "\n".join(lines)


def cut_off(path: Path, error: Exception) -> RecipeError:
    return RecipeError(f"{path} is cut off or damaged ({error}): fetch it again")


def unpack(archive: Path, members: Iterable[str], folder: Path) -> list[Path]:
    """Write some files of a .tgz flat into ``folder``, reading no further than needed.

    Raises:
        RecipeError: one is missing, or the archive can't be read.
    """
    wanted = {member: folder / Path(member).name for member in members}
    missing = set(wanted)
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for item in tar:
                name = item.name.removeprefix("./")
                if name in missing and (content := tar.extractfile(item)):
                    with wanted[name].open("wb") as file:
                        shutil.copyfileobj(content, file, BLOCK)
                    missing.remove(name)
                    if not missing:
                        break
    except DAMAGED as error:
        raise cut_off(archive, error) from None
    if missing:
        names = ", ".join(sorted(missing))
        raise RecipeError(f"{archive} has no {names}: it is another archive than this recipe knows")
    return list(wanted.values())


def unpack_all(archive: Path, folder: Path) -> Path:
    """Write all files of a .zip or .tar into ``folder``.

    Raises:
        RecipeError: the archive can't be read, or would write elsewhere.
    """
    safe: dict[str, Any] = {} if archive.suffix == ".zip" else {"filter": "data"}
    try:
        shutil.unpack_archive(archive, folder, **safe)
    except DAMAGED as error:
        raise cut_off(archive, error) from None
    return folder


def gunzip(archive: Path, folder: Path) -> Path:
    """Write what a .gz file holds into ``folder``.

    Raises:
        RecipeError: the archive can't be read.
    """
    path = folder / archive.stem
    try:
        with gzip.open(archive) as content, path.open("wb") as file:
            shutil.copyfileobj(content, file)
    except DAMAGED as error:
        raise cut_off(archive, error) from None
    return path
