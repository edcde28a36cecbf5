"""Reads the English-German passages of Debian packages for debian.py: lists, dictionary, catalogs.

debian_documents.py has the readers of handbooks, help and manual pages.

Every reader takes the files by package or list name and yields ``Pair(document, en, de)`` in the order of the
documents, whatever the order in the archive. Where the two sides of a document or paragraph are not built alike,
nothing is guessed: it is left out and counted. What cannot be read at all is a RecipeError.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import RecipeError

from .deb import members
from .pairs import HOLE, Pair, clean

Blocks = list[tuple[str, str]]  # kind of each block of a document, and its text
Texts = dict[str, bytes]  # file of a document by its name

LISTS = ("Translation-en", "Translation-de")
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
OPENERS: dict[str, Any] = {"": open, ".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}


def texts(debs: Iterable[Path], wanted: str) -> Texts:
    """The files whose path matches, by what the groups of the pattern catch.

    Raises:
        RecipeError: a package cannot be read, or has no such file.
    """
    found: Texts = {}
    for deb in debs:
        here = {"/".join(match.groups()): content for match, content in members(deb, re.compile(wanted))}
        if not here:
            raise RecipeError(f"{deb} has no file {wanted}: it is another package, or of a version built otherwise")
        found |= here
    return found


def zipped(document: str, en: Blocks, de: Blocks, counts: Counter[str]) -> Iterator[Pair]:
    """The texts of two sides with the same blocks; nothing where one block differs in kind."""
    if [kind for kind, _ in en] != [kind for kind, _ in de]:
        counts["built differently"] += 1
        return
    yield from (Pair(document, a, b) for (_, a), (_, b) in zip(en, de, strict=True) if a and b)


def each(en: Texts, de: Texts, blocks: Callable[[str], Blocks], counts: Counter[str]) -> Iterator[Pair]:
    """Pairs of every document that both sides have."""
    for document in sorted(en.keys() & de.keys()):
        counts["documents"] += 1
        sides = [blocks(side[document].decode("utf-8", "replace")) for side in (en, de)]
        yield from zipped(document, sides[0], sides[1], counts)


# --- package descriptions ---------------------------------------------------------------------------------------------

STANZA = re.compile(
    r"^Package: (?P<package>.+)\nDescription-md5: (?P<md5>.+)\n"
    r"Description-(?:en|de): (?P<short>.*)\n(?P<long>(?: .*\n)*)",
    re.MULTILINE,
)
ITEM = re.compile(r"\s+[-*+o•·]\s+(?=\S)")
FAMILY = re.compile(r"(?:lib|python3?-|r-cran-|golang-|ruby-|node-|fonts-|gnome-|kde-|texlive-|php-|perl-)?([a-z]+)")


def descriptions(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """md5, package and groups of lines of each description; the first group is the short description."""
    opener = OPENERS.get("" if path.name.endswith(LISTS) else path.suffix)
    if opener is None:
        raise RecipeError(f"{path}: unpack it, or give it as {', '.join(filter(None, OPENERS))}")
    try:
        with opener(path, "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except DAMAGED as error:
        raise RecipeError(f"{path} is damaged ({error}): fetch it again") from None
    for stanza in STANZA.finditer(f"{text}\n"):
        yield stanza["md5"], stanza["package"], [stanza["short"], *re.split(r"^ \.\n", stanza["long"], flags=re.M)]


def description_blocks(group: str) -> Blocks:
    """Paragraphs and list items of a group of lines."""
    blocks: list[tuple[str, list[str]]] = []
    for line in group.splitlines():
        item = ITEM.match(line)
        if item or not blocks:
            blocks.append(("item" if item else "text", []))
        blocks[-1][1].append(line[item.end() :] if item else line)
    return [(kind, clean(" ".join(lines))) for kind, lines in blocks]


def family(package: str) -> str:
    """libfoo2, libfoo-dev and foo-data are of one family: their descriptions share sentences."""
    match = FAMILY.match(package)
    return match[1] if match else package


def packages(lists: dict[str, Path], counts: Counter[str]) -> Iterator[Pair]:
    """Descriptions with the same checksum of the English one, group by group."""
    german = {md5: groups for md5, _, groups in descriptions(lists["Translation-de"])}
    for md5, package, en in descriptions(lists["Translation-en"]):
        de = german.pop(md5, None)
        if de is None:
            continue
        counts["documents"] += 1
        if len(en) != len(de):
            counts["built differently"] += 1
            continue
        for a, b in zip(en, de, strict=True):
            yield from zipped(family(package), description_blocks(a), description_blocks(b), counts)


# --- the Ding dictionary ----------------------------------------------------------------------------------------------

DING_NOTE = re.compile(r"\s*(?:\{[^}]*\}|\[[^\]]*\]|<[^>]*>|\([^()]*\))")
DING_BLANK = re.compile(r"\b(?:sth|sb|so|etw|jdn|jdm|jds|jd|jmd|jmdn|jmdm)\b|[/…~]|\.\.\.")  # words to be filled in


def ding(debs: dict[str, Path], counts: Counter[str]) -> Iterator[Pair]:
    """The first wording of each sense and phrase of an entry, without notes on grammar and use."""
    for content in texts([debs["trans-de-en"]], r"/trans/(de-en)$").values():
        for line in content.decode("utf-8", "replace").splitlines():
            de, _, en = line.partition(" :: ")
            if line.startswith("#") or not en:
                continue
            counts["documents"] += 1
            sides = [[ding_text(phrase) for phrase in side.split(" | ")] for side in (en, de)]
            if len(sides[0]) != len(sides[1]):
                counts["built differently"] += 1
                continue
            for a, b in zip(*sides, strict=True):
                yield Pair(line, HOLE if DING_BLANK.search(a + b) else a, b)


def ding_text(phrase: str) -> str:
    return clean(DING_NOTE.sub("", phrase).split(";")[0])


# --- catalogs of messages ---------------------------------------------------------------------------------------------

CATALOGS = {  # package: path of its catalogs, marks of a shortcut key
    "libreoffice-l10n-de": (r"/de/LC_MESSAGES/(\w+)\.mo$", "~_"),
    "gnucash-common": (r"/de/LC_MESSAGES/(gnucash)\.mo$", "_"),
    "vlc-l10n": (r"/de/LC_MESSAGES/(vlc)\.mo$", "&"),
    "audacity-data": (r"/de/LC_MESSAGES/(audacity)\.mo$", "&"),
    "darktable": (r"/de/LC_MESSAGES/(darktable)\.mo$", "_"),
    "git": (r"/de/LC_MESSAGES/(git)\.mo$", ""),
}


def catalog(content: bytes) -> Iterator[tuple[str, str]]:
    """Messages and translations of a .mo file of gettext, without contexts; plural forms one by one.

    Raises:
        KeyError, struct.error: it is none, or is cut off.
    """
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}[content[:4]]
    count, *tables = struct.unpack(f"{order}3I", content[8:20])
    for i in range(count):
        strings = []
        for table in tables:
            size, start = struct.unpack_from(f"{order}2I", content, table + 8 * i)
            (string,) = struct.unpack_from(f"{size}s", content, start)
            strings.append(string.decode("utf-8", "replace"))
        if strings[0]:  # the empty message has the header
            forms = zip(strings[0].rpartition("\x04")[2].split("\0"), strings[1].split("\0"), strict=False)
            yield from forms


def message(text: str, marks: str) -> str:
    """Without the mark of the shortcut key, where it has one."""
    if marks and len(found := re.findall(rf"[{marks}](?=\w)", text)) == 1:
        text = text.replace(found[0], "", 1)
    return text


def catalogs(debs: dict[str, Path], counts: Counter[str]) -> Iterator[Pair]:
    """Messages of programs by paragraph, where both sides have as many paragraphs."""
    for package, (path, marks) in CATALOGS.items():
        for name, content in sorted(texts([debs[package]], path).items()):
            counts["documents"] += 1
            try:
                messages = list(catalog(content))
            except (KeyError, struct.error):
                raise RecipeError(f"the catalog {name} of {debs[package]} is damaged: fetch it again") from None
            for message_en, message_de in messages:
                en, de = ([clean(p) for p in message(m, marks).split("\n\n")] for m in (message_en, message_de))
                if len(en) != len(de):
                    counts["built differently"] += 1
                    continue
                yield from (Pair(f"{package}/{name}", a, b) for a, b in zip(en, de, strict=True))
