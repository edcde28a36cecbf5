"""English-German sentence pairs from the help of LibreOffice, as the Debian packages carry it.

    cd recipes
    python -m corpora.lohelp --out data/lohelp-en-de                # apt-get download of 5 MB; installs nothing
    python -m corpora.lohelp --out data/lohelp-en-de --deb-dir DIR  # the two .deb files are already in DIR

Paragraphs are aligned exactly, by help page and element id. Whole pages are held out, by a hash of their path; what is
a near-copy of a held-out pair leaves the training text. The same packages give the same bytes. Needs dpkg-deb.
manifest.json also has the BLEU on test of copying, which must stay low.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from common.errors import RecipeError

from .deb import facts, find_deb, members, run
from .pairs import (
    HOLE,
    Pair,
    Rules,
    clean,
    fraction,
    leakage,
    part_of,
    reject_reason,
    segments,
    without_copies,
    words,
    write_corpus,
)

MADE_BY = "fairseq_sru recipes/lohelp.py"
PACKAGES = {"en": "libreoffice-help-en-us", "de": "libreoffice-help-de"}
MPL = Path("/usr/share/common-licenses/MPL-2.0")
SHARES = {"test": 0.06, "valid": 0.04}  # of the help pages; the others are for training
SIZES = {"test": 1_000, "valid": 500, "train": 10_000}  # at most so many pairs

PAGE = re.compile(r"/help/(?:en-US|de)/text/(.+\.html)$")
BLOCK = re.compile(r"(p|h[1-6])$")
CODE = re.compile(r"code(?<!keycode)|literal|input|switch|image")  # in the class of an element
RULES = Rules(
    hole="code or image",
    min_words=(4, 4),
    max_words=20,
    plain=re.compile(r"[\w \"'(),.:;!?%&/+§°€™×·„“”‚‘’«»…–—-]+"),
    foreign=re.compile(r"[^\W\d_A-Za-zÀ-ſẞ]|_"),
    markup={
        "address, placeholder or name in code": re.compile(
            r"//|::|\(\)|\bwww\.|\w\.\w+\.\w|\b[a-z]+[A-Z]|%[A-Za-z(]|[a-z]\([a-z]"
        ),
        "menu path": re.compile(r"\s[–—-]\s"),
    },
    max_ratio=2.0,
    max_word_ratio=2.0,
    max_shared=0.6,
)
NOTICE = """\
English-German sentence pairs from the help of LibreOffice {upstream}

Taken from the Debian packages libreoffice-help-en-us and libreoffice-help-de, version {version}, by
recipes/corpora/lohelp.py of fairseq_sru. manifest.json has the checksums of the packages and the rules of the
selection.

The text was modified: paragraphs were extracted from the help pages, freed of markup, paired by page and element id,
partly split into sentences, filtered, stripped of duplicates, sampled, and split into train, valid and test. The
sentences themselves are as LibreOffice has them, but for spaces, hyphens and invisible characters.

This text is subject to the terms of the Mozilla Public License, v. 2.0. The file LICENSE has a copy of it; one is
also at https://mozilla.org/MPL/2.0/. The copyright file of the packages says:

{stanza}
Source of the help pages: https://download.documentfoundation.org/libreoffice/src (helpcontent2 and translations), or,
as Debian built them, `apt-get source libreoffice={version}`.
"""

Pages = dict[str, dict[str, str]]  # page path -> element id -> text


class Paragraphs(HTMLParser):
    """Collects ``texts[id]``, the text of every p and h1-h6 with an id; "" for an id that the page has twice."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, str] = {}
        self._tag = self._id = ""  # the open paragraph
        self._parts: list[str] = []
        self._code: list[bool] = []  # for the paragraph and each open span of it: is it one that CODE names?

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = {name: value or "" for name, value in attrs}
        code = tag == "code" or bool(CODE.search(at.get("class", "")))
        if BLOCK.match(tag):
            self._finish()
            self._tag, self._id, self._parts, self._code = tag, at.get("id", ""), [], [code]
        elif tag in ("span", "code"):
            self._code.append(code)
        elif tag in ("br", "img"):
            self._parts.append(HOLE)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("span", "code") and len(self._code) > 1:
            self._code.pop()
        elif tag == self._tag:
            self._finish()

    def handle_data(self, data: str) -> None:
        self._parts.append(HOLE if any(self._code) else data)

    def _finish(self) -> None:
        if self._id:
            self.texts[self._id] = "" if self._id in self.texts else clean("".join(self._parts))
        self._tag = self._id = ""


def paragraphs(html: str) -> dict[str, str]:
    """The text of a help page by element id, in page order; ids that are not unique are left out."""
    parser = Paragraphs()
    parser.feed(html[max(html.find('id="DisplayArea"'), 0) :].partition('id="DonationFrame"')[0])
    parser.close()
    return {key: text for key, text in parser.texts.items() if text}


def aligned(en_pages: Pages, de_pages: Pages, counts: Counter[str]) -> Iterator[Pair]:
    """Every pair of segments with one page and one element id, in page order."""
    for page in sorted(en_pages.keys() & de_pages.keys()):
        counts["pages"] += 1
        for key in (k for k in en_pages[page] if k in de_pages[page]):
            counts["paragraphs"] += 1
            yield from (Pair(page, *pair) for pair in segments(en_pages[page][key], de_pages[page][key]))


def select(pairs: Iterable[Pair], counts: Counter[str]) -> list[Pair]:
    """The pairs without fault; of those with one source, ignoring case, punctuation and digits, the first."""
    kept: dict[tuple[str, ...], Pair] = {}  # by source
    for pair in pairs:
        counts["segments"] += 1
        reason = reject_reason(pair.en, pair.de, RULES)
        if not reason and (twin := kept.get(words(pair.en))):
            reason = "same pair" if words(twin.de) == words(pair.de) else "same source"
        if reason:
            counts[f"dropped: {reason}"] += 1
        else:
            kept[words(pair.en)] = pair
    counts["pairs"] = len(kept)
    return list(kept.values())


def split(pairs: list[Pair], counts: Counter[str]) -> dict[str, list[Pair]]:
    """Whole pages to each part, less near-copies of the parts before it, and of these SIZES pairs drawn by hash."""
    parts: dict[str, list[Pair]] = {}
    for part, size in SIZES.items():
        there = [p for p in pairs if part_of(p.page, SHARES["test"], SHARES["valid"]) == part]
        clear = without_copies(there, [p for done in parts.values() for p in done])
        drawn = set(sorted(clear, key=lambda p: fraction(f"{p.en}\t{p.de}"))[:size])
        parts[part] = [p for p in clear if p in drawn]
        steps = {"on its pages": there, "less near-copies": clear, "written": parts[part]}
        counts.update({f"{part}: {step}": len(left) for step, left in steps.items()})
    return parts


def read_deb(deb: Path) -> tuple[dict[str, str], Pages, str]:
    """Facts for the manifest, the help pages, and the copyright stanza."""
    about = facts(deb)
    pages: Pages = {}
    notice = ""
    for match, content in members(deb, re.compile(f"{PAGE.pattern}|/copyright$")):
        text = content.decode("utf-8", "replace")
        if match[1]:
            pages[match[1]] = paragraphs(text)
        else:
            notice = text
    stanza = re.search(r"^Files: \*\n(?:.+\n)*License: MPL-2.0\n(?:.+\n)*", notice, re.MULTILINE)
    if not pages or not stanza:
        raise RecipeError(f"{deb} has no help pages under MPL-2.0: fetch it again (25.2.3 is known to work)")
    return about, pages, stanza[0]


def build(deb_dir: Path, out: Path) -> dict[str, Any]:
    """Writes the data set to ``out``; returns the manifest."""
    if not MPL.is_file():
        raise RecipeError(f"{MPL} is missing, the licence that goes with the text: apt-get install base-files")
    (en, en_pages, stanza), (de, de_pages, _) = (read_deb(find_deb(deb_dir, package)) for package in PACKAGES.values())
    if en["version"] != de["version"]:
        raise RecipeError(f"versions {en['version']} and {de['version']} differ: fetch both packages of one version")
    counts: Counter[str] = Counter()
    parts = split(select(aligned(en_pages, de_pages, counts), counts), counts)
    rules = RULES.described([RULES.min_words[0], RULES.max_words]) | {"page_shares": SHARES, "sizes": SIZES}
    notice = NOTICE.format(version=en["version"], upstream=en["version"].split(":")[-1].split("-")[0], stanza=stanza)
    texts = {f"{part}.{lang}": [getattr(p, lang) for p in pairs] for part, pairs in parts.items() for lang in PACKAGES}
    licence = MPL.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    manifest: dict[str, Any] = {"made_by": MADE_BY, "packages": [en, de], "parameters": rules, "counts": counts}
    manifest["test_bleu"] = leakage(parts)
    return write_corpus(out, {**texts, "NOTICE": notice.splitlines(), "LICENSE": licence}, manifest)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--deb-dir", type=Path, help="folder with the two .deb files (default: apt-get download)")
    args = parser.parse_args(argv)
    remedy = "run apt-get update, or fetch both packages elsewhere and name their folder with --deb-dir"
    try:
        out = args.out.resolve()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RecipeError(f"argument --out: {args.out} must be a new or empty folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temp:
            if args.deb_dir is None:
                run("apt-get", "download", *PACKAGES.values(), remedy=remedy, cwd=Path(temp))
            manifest = build(args.deb_dir or Path(temp), Path(temp, "made"))
            Path(temp, "made").rename(out)
    except (RecipeError, OSError) as error:
        print(f"lohelp: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({key: manifest[key] for key in ("counts", "test_bleu")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
