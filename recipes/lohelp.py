#!/usr/bin/env python3
"""English-German sentence pairs from the help of LibreOffice, as the Debian packages carry it.

    python recipes/lohelp.py --out recipes/data/lohelp-en-de                # apt-get download of 5 MB; installs nothing
    python recipes/lohelp.py --out recipes/data/lohelp-en-de --deb-dir DIR  # the two .deb files are already in DIR

Paragraphs are aligned exactly, by help page and element id. Whole pages are held out, by a hash of their path; what is
a near-copy of a held-out pair leaves the training text. The same packages give the same bytes. Needs dpkg-deb; with
sacrebleu installed, manifest.json also has the BLEU on test of copying, which must stay low.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

MADE_BY = "fairseq_sru recipes/lohelp.py"
PACKAGES = {"en": "libreoffice-help-en-us", "de": "libreoffice-help-de"}
MPL = Path("/usr/share/common-licenses/MPL-2.0")
MIN_WORDS, MAX_WORDS = 4, 20
MIN_LETTERS = 0.65  # of the characters that are not spaces
MAX_RATIO = 2.0  # of the lengths of the two sides, in words and in characters
MAX_SHARED = 0.6  # of the shorter side's words that the other side has too: more was not translated
NEAR_COPY = 0.5  # Jaccard of word trigrams, on either side
SHARES = {"test": 0.06, "valid": 0.04}  # of the help pages; the others are for training
SIZES = {"test": 1_000, "valid": 500, "train": 10_000}  # at most so many pairs

HOLE = "\ue000"  # stands in a text for code, an image, or a reading that depends on the reader's machine
PAGE = re.compile(r"/help/(?:en-US|de)/text/(.+\.html)$")
BLOCK = re.compile(r"(p|h[1-6])$")
CODE = re.compile(r"code(?<!keycode)|literal|input|switch|image")  # in the class of an element
PLAIN = re.compile(r"[\w \"'(),.:;!?%&/+§°€™×·„“”‚‘’«»…–—-]+")
FOREIGN = re.compile(r"[^\W\d_A-Za-zÀ-ſẞ]|_")
ODD = re.compile(r"//|::|\(\)|\bwww\.|\w\.\w+\.\w|\b[a-z]+[A-Z]|%[A-Za-z(]|[a-z]\([a-z]")  # addresses, names, calls
MENU = re.compile(r"\s[–—-]\s")
SENTENCE_END = re.compile(r"[.!?][\"“”»)]*$")
SENTENCE_START = re.compile(r"[\"„“«(]*[A-ZÄÖÜ]")
NOT_AN_END = re.compile(
    r"\W*([^\W\d_]|\d+|([^\W\d_]\.)+[^\W\d_]|abb|allg|approx|bspw|bzw|ca|dr|engl|etc|evtl|exkl|fig|ggf|incl|inkl|max|min"
    r"|mio|mr|mrs|no|nr|resp|sog|st|tel|usw|vgl|vs)\.\W*$",
    re.IGNORECASE,
)
NOTICE = """\
English-German sentence pairs from the help of LibreOffice {upstream}

Taken from the Debian packages libreoffice-help-en-us and libreoffice-help-de, version {version}, by
recipes/lohelp.py of fairseq_sru. manifest.json has the checksums of the packages and the rules of the selection.

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


class RecipeError(Exception):
    """What the user can mend; the message says how."""


class Pair(NamedTuple):
    page: str
    en: str
    de: str


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


def clean(text: str) -> str:
    """NFC, single plain spaces, no invisible characters, no space before closing punctuation."""
    text = re.sub("[\u00ad\u200b-\u200f\u2060\ufeff]", "", unicodedata.normalize("NFC", text)).replace("\u2011", "-")
    return re.sub(r" (?=[,.;:!?)](?:\s|$))", "", " ".join(text.split())).replace("( ", "(")


def words(text: str) -> tuple[str, ...]:
    """The text as it is compared: its words without case, punctuation and digits."""
    return tuple(re.findall(r"[^\W\d_]+", text.casefold()))


def sentences(text: str) -> list[str]:
    """Splits where a sentence surely ends: never after an abbreviation, an initial or a number."""
    out: list[list[str]] = [[]]
    tokens = text.split()
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        out[-1].append(token)
        if SENTENCE_END.search(token) and SENTENCE_START.match(after) and not NOT_AN_END.match(token):
            out.append([])
    return [" ".join(s) for s in out]


def ratio(a: int, b: int) -> float:
    return max(a, b) / max(min(a, b), 1)


def segments(en: str, de: str) -> list[tuple[str, str]]:
    """Sentence pairs of a paragraph where both sides have as many, each alike in length; else the paragraph itself."""
    en_sentences, de_sentences = sentences(en), sentences(de)
    pairs = list(zip(en_sentences, de_sentences, strict=False))
    alike = all(ratio(len(a), len(b)) <= MAX_RATIO for a, b in pairs)
    return pairs if alike and len(en_sentences) == len(de_sentences) else [(en, de)]


def fault(en: str, de: str) -> str | None:
    """Why a pair is not fit for training, or None."""
    lengths = [sum(any(c.isalnum() for c in w) for w in text.split()) for text in (en, de)]
    en_words, de_words = words(en), words(de)
    if HOLE in en + de:
        return "code or image"
    if min(lengths) < MIN_WORDS or max(lengths) > MAX_WORDS or not en_words or not de_words:
        return "length"
    if not PLAIN.fullmatch(en + de) or FOREIGN.search(en + de):
        return "character"
    if ODD.search(en) or ODD.search(de):
        return "address, placeholder or name in code"
    if MENU.search(en) or MENU.search(de):
        return "menu path"
    if any(sum(map(str.isalpha, text)) < MIN_LETTERS * len(text.replace(" ", "")) for text in (en, de)):
        return "few letters"
    if max(ratio(*lengths), ratio(len(en), len(de))) > MAX_RATIO:
        return "length ratio"
    if any(text.count("(") != text.count(")") or text.count('"') % 2 for text in (en, de)):
        return "bracket or quote left open"
    if sorted(re.findall(r"\d+", en)) != sorted(re.findall(r"\d+", de)):
        return "numbers differ"
    if len({*en_words} & {*de_words}) > MAX_SHARED * min(len({*en_words}), len({*de_words})):
        return "not translated"
    return None


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
        reason = fault(pair.en, pair.de)
        if not reason and (twin := kept.get(words(pair.en))):
            reason = "same pair" if words(twin.de) == words(pair.de) else "same source"
        if reason:
            counts[f"dropped: {reason}"] += 1
        else:
            kept[words(pair.en)] = pair
    counts["pairs"] = len(kept)
    return list(kept.values())


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def part_of(page: str) -> str:
    """The part that a help page belongs to, whatever other pages there are."""
    at = fraction(page)
    return "test" if at < SHARES["test"] else "valid" if at < sum(SHARES.values()) else "train"


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """Word trigrams; a text of one or two words is one item of its own."""
    w = words(text)
    return frozenset(w[i : i + 3] for i in range(max(len(w) - 2, 1)))


class NearCopies:
    """``text in NearCopies(texts)``: does its Jaccard with one of them reach NEAR_COPY? Equal wordings have 1."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.grams = [trigrams(t) for t in texts]
        self.having: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, grams in enumerate(self.grams):
            for gram in grams:
                self.having[gram].append(i)

    def __contains__(self, text: str) -> bool:
        grams = trigrams(text)
        common = Counter(i for gram in grams for i in self.having.get(gram, ()))
        return any(n >= NEAR_COPY * (len(grams) + len(self.grams[i]) - n) for i, n in common.items())


def without_copies(pairs: list[Pair], held_out: list[Pair]) -> list[Pair]:
    """The pairs that are no near-copy of a held-out pair on either side."""
    en, de = NearCopies(p.en for p in held_out), NearCopies(p.de for p in held_out)
    return [p for p in pairs if p.en not in en and p.de not in de]


def split(pairs: list[Pair], counts: Counter[str]) -> dict[str, list[Pair]]:
    """Whole pages to each part, less near-copies of the parts before it, and of these SIZES pairs drawn by hash."""
    parts: dict[str, list[Pair]] = {}
    for part, size in SIZES.items():
        there = [p for p in pairs if part_of(p.page) == part]
        clear = without_copies(there, [p for done in parts.values() for p in done])
        drawn = set(sorted(clear, key=lambda p: fraction(f"{p.en}\t{p.de}"))[:size])
        parts[part] = [p for p in clear if p in drawn]
        steps = {"on its pages": there, "less near-copies": clear, "written": parts[part]}
        counts.update({f"{part}: {step}": len(left) for step, left in steps.items()})
    return parts


def nearest(sources: list[str], queries: list[str]) -> list[int]:
    """For each query the source with the largest cosine of idf-weighted words; the first of equals."""
    bags = [frozenset(words(s)) for s in sources]
    weight = {w: math.log(len(bags) / n + 1) ** 2 for w, n in Counter(w for bag in bags for w in bag).items()}
    norms = [math.sqrt(sum(weight[w] for w in sorted(bag))) for bag in bags]
    scores: list[dict[int, float]] = [defaultdict(float, {0: 0.0}) for _ in queries]
    having: dict[str, list[int]] = defaultdict(list)
    for i, bag in enumerate(bags):
        for w in bag:
            having[w].append(i)
    for score, query in zip(scores, queries, strict=True):
        for w in sorted({*words(query)} & having.keys()):
            for i in having[w]:
                score[i] += weight[w] / norms[i]
    return [min(score, key=lambda i: (-score[i], i)) for score in scores]


def leakage(
    parts: dict[str, list[Pair]], nearest: Callable[[list[str], list[str]], list[int]] = nearest
) -> dict[str, float | str] | None:
    """BLEU on test of two ways to copy; None where sacrebleu is not installed."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return None
    bleu, train, test = BLEU(), parts["train"], parts["test"]
    near = [train[i].de for i in nearest([p.en for p in train], [p.en for p in test])]
    outputs = {"the source": [p.en for p in test], "the target of the nearest training source": near}
    scores = {f"copy of {what}": bleu.corpus_score(out, [[p.de for p in test]]).score for what, out in outputs.items()}
    return {**{what: round(score, 2) for what, score in scores.items()}, "signature": str(bleu.get_signature())}


def run(*command: str, remedy: str, cwd: Path | None = None) -> str:
    """Output of a command; its failure is an error that says what to do."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    """What the manifest says of a package."""
    version = run("dpkg-deb", "--field", str(deb), "Version", remedy="fetch the package again").strip()
    return {"package": deb.name.split("_")[0], "version": version, "sha256": sha256(deb)}


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


def write(folder: Path, parts: dict[str, list[Pair]], manifest: dict[str, object], notice: str) -> None:
    """The data set into an empty folder; the manifest last, with the checksums of the other files."""
    texts = {f"{part}.{lang}": [getattr(p, lang) for p in pairs] for part, pairs in parts.items() for lang in PACKAGES}
    for name, lines in {**texts, "NOTICE": notice.splitlines()}.items():
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    (folder / "LICENSE").write_bytes(MPL.read_bytes())
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"made_by": MADE_BY, **manifest, "files": files}, indent=2)
    (folder / "manifest.json").write_bytes(f"{text}\n".encode())


def check_out(out: Path, made_by: str = MADE_BY) -> None:
    """Only what the script that says ``made_by`` in its manifest wrote may be replaced, and only as it was written."""
    held = {p.name for p in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        if manifest["made_by"] == made_by:
            same = {name for name, made in manifest["files"].items() if name in held and sha256(out / name) == made}
            held -= {"manifest.json", *same}
    if held:
        raise RecipeError(
            f"{out} has files that are not of this script, or were changed ({min(held)}): "
            "move them or name another --out"
        )


def build(deb_dir: Path, out: Path) -> dict[str, object]:
    """Builds the data set aside and moves it to ``out`` whole; returns the manifest."""
    if not MPL.is_file():
        raise RecipeError(f"{MPL} is missing, the licence that goes with the text: apt-get install base-files")
    (en, en_pages, stanza), (de, de_pages, _) = (read_deb(find_deb(deb_dir, package)) for package in PACKAGES.values())
    if en["version"] != de["version"]:
        raise RecipeError(f"versions {en['version']} and {de['version']} differ: fetch both packages of one version")
    counts: Counter[str] = Counter()
    parts = split(select(aligned(en_pages, de_pages, counts), counts), counts)
    rules: dict[str, object] = {
        "words": [MIN_WORDS, MAX_WORDS],
        "min_letters": MIN_LETTERS,
        "max_length_ratio": MAX_RATIO,
    }
    rules |= {"max_shared_words": MAX_SHARED, "near_copy": NEAR_COPY, "page_shares": SHARES, "sizes": SIZES}
    manifest: dict[str, object] = {"packages": [en, de], "parameters": rules, "counts": counts}
    manifest["test_bleu"] = leakage(parts)
    notice = NOTICE.format(version=en["version"], upstream=en["version"].split(":")[-1].split("-")[0], stanza=stanza)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        fresh = Path(aside, "new")
        fresh.mkdir()
        write(fresh, parts, manifest, notice)
        check_out(out)
        if out.exists():
            out.rename(Path(aside, "old"))
        fresh.rename(out)
    return manifest


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; replaced if this script made it")
    parser.add_argument("--deb-dir", type=Path, help="folder with the two .deb files (default: apt-get download)")
    args = parser.parse_args(argv)
    remedy = "run apt-get update, or fetch both packages elsewhere and name their folder with --deb-dir"
    try:
        check_out(args.out.resolve())
        with tempfile.TemporaryDirectory() as temp:
            if args.deb_dir is None:
                run("apt-get", "download", *PACKAGES.values(), remedy=remedy, cwd=Path(temp))
            manifest = build(args.deb_dir or Path(temp), args.out.resolve())
    except (RecipeError, OSError) as error:
        print(f"lohelp: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({key: manifest[key] for key in ("counts", "test_bleu")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
