#!/usr/bin/env python3
"""English-German sentence pairs from Debian packages: manuals, help, descriptions, a dictionary, messages.

    python recipes/debian.py --out DIR                    # fetches what is missing into DIR.packages; installs nothing
    python recipes/debian.py --out DIR --local-dir DEBS   # .deb files and Translation lists that are already in DEBS

Writes {train,valid,test}.{en,de}, {train,valid,test}.domains with a label for each line, and manifest.json. Whole
documents are held out, by a hash of their name; what is a near-copy of a held-out pair leaves the training text. The
same packages give the same bytes. Needs dpkg-deb and, to fetch, apt-get; root is not needed. The licences of the
sources are mixed and named in the manifest: the result is for those who build it, not for handing on.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import debian_sources as sources
import lohelp
import numpy as np
from debian_sources import LISTS
from hold import FolderError, held
from lohelp import HOLE, MIN_LETTERS, NEAR_COPY, Pair, RecipeError, ratio, run, sha256, words
from tqdm import tqdm

MADE_BY = "fairseq_sru recipes/debian.py"
MIN_WORDS = {"en": 3, "de": 2}  # German has one word where English has two
MAX_WORDS = 60
MAX_RATIO = 2.2  # of the lengths of the two sides in characters
MAX_SHARED = 0.75  # of the shorter side's words that the other side has too: more was not translated
PARTS = ("test", "valid", "train")  # each without near-copies of those before it

PLAIN = re.compile(r"[\w \"'`(),.:;!?%&/+*#=$§°©®€£™×·„“”‚‘’«»›‹…–—-]+")
MARKUP = re.compile(r"%[-#0-9.*(]*[A-Za-z0-9(]|\$[\w(]|#\d|&\w+;|//|\bwww\.|__|\.(?:org|com|net)\b")


class Domain(NamedTuple):
    """Where the pairs of one label come from."""

    reader: Callable[[dict[str, Path], Counter[str]], Iterator[Pair]]
    files: tuple[str, ...]  # packages and lists
    held_out: tuple[float, float]  # shares of the documents that are for test and for valid
    licence: str


DOMAINS = {
    "ddtp": Domain(sources.packages, LISTS, (0.018, 0.012), "unclear"),
    "ding": Domain(sources.ding, ("trans-de-en",), (0.012, 0.008), "GPL-2+"),
    "doc": Domain(sources.handbooks, sources.HANDBOOKS, (0.0, 0.0), "GPL-2+"),
    "gnome": Domain(sources.gnome, ("gnome-user-docs",), (0.08, 0.05), "CC-BY-SA-3.0"),
    "lohelp": Domain(sources.lohelp, sources.LOHELP, (0.02, 0.014), "MPL-2.0"),
    "man": Domain(sources.manpages, sources.MANPAGES, (0.03, 0.02), "English: mixed; German: GPL-3+"),
    "ui": Domain(sources.catalogs, tuple(sources.CATALOGS), (0.0, 0.0), "MPL-2.0 (LibreOffice), GPL-2, GPL-2+, GPL-3+"),
}


def fault(en: str, de: str) -> str | None:
    """Why a pair is not fit for training, or None."""
    sides = {"en": en, "de": de}
    lengths = {lang: sum(any(map(str.isalnum, word)) for word in text.split()) for lang, text in sides.items()}
    en_words, de_words = words(en), words(de)
    if HOLE in en + de:
        return "code, image or blank"
    if any(not MIN_WORDS[lang] <= n <= MAX_WORDS for lang, n in lengths.items()) or not en_words or not de_words:
        return "length"
    if not PLAIN.fullmatch(en + de) or lohelp.FOREIGN.search((en + de).replace("_", "")):
        return "character"
    if MARKUP.search(en) or MARKUP.search(de):
        return "markup, address or placeholder"
    if any(sum(map(str.isalpha, text)) < MIN_LETTERS * len(text.replace(" ", "")) for text in (en, de)):
        return "few letters"
    if ratio(len(en), len(de)) > MAX_RATIO:
        return "length ratio"
    if any(text.count("(") != text.count(")") or text.count('"') % 2 for text in (en, de)):
        return "bracket or quote left open"
    if sorted(re.findall(r"\d+", en)) != sorted(re.findall(r"\d+", de)):
        return "numbers differ"
    if len({*en_words} & {*de_words}) > MAX_SHARED * min(len({*en_words}), len({*de_words})):
        return "not translated"
    return None


def select(paragraphs: Iterable[tuple[str, Pair]], counts: dict[str, Counter[str]]) -> list[Pair]:
    """The pairs without fault, of those alike but for case, punctuation and digits the first; pages get the domain."""
    kept: dict[tuple[tuple[str, ...], tuple[str, ...]], Pair] = {}
    for domain, paragraph in paragraphs:
        if not (paragraph.en and paragraph.de):
            counts[domain]["one side empty"] += 1
            continue
        for en, de in lohelp.segments(paragraph.en, paragraph.de):
            counts[domain]["segments"] += 1
            key = words(en), words(de)
            reason = fault(en, de) or ("same pair" if key in kept else None)
            if reason:
                counts[domain][f"dropped: {reason}"] += 1
            else:
                kept[key] = Pair(f"{domain}/{paragraph.page}", en, de)
    return list(kept.values())


def domain_of(pair: Pair) -> str:
    return pair.page.partition("/")[0]


def part_of(page: str) -> str:
    """The part that a document belongs to, whatever other documents there are."""
    at, (test, valid) = lohelp.fraction(page), DOMAINS[page.partition("/")[0]].held_out
    return "test" if at < test else "valid" if at < test + valid else "train"


def split(pairs: list[Pair], counts: dict[str, Counter[str]]) -> dict[str, list[Pair]]:
    """Whole documents to each part, less near-copies of the parts before it."""
    parts: dict[str, list[Pair]] = {}
    for part in PARTS:
        there = [p for p in pairs if part_of(p.page) == part]
        parts[part] = lohelp.without_copies(there, [p for done in parts.values() for p in done])
        for step, left in (("in its documents", there), ("written", parts[part])):
            for domain, n in sorted(Counter(map(domain_of, left)).items()):
                counts[domain][f"{part}: {step}"] = n
    return parts


def nearest(texts: list[str], queries: list[str]) -> list[int]:
    """For each query the text with the largest cosine of idf-weighted words; the first of equals."""
    bags = [sorted({*words(t)}) for t in texts]
    having: dict[str, list[int]] = {}
    for i, bag in enumerate(bags):
        for word in bag:
            having.setdefault(word, []).append(i)
    weight = {word: np.log(len(bags) / len(at) + 1) ** 2 for word, at in having.items()}
    norms = np.sqrt([sum(weight[word] for word in bag) or 1.0 for bag in bags])
    index = {word: np.array(at) for word, at in having.items()}
    found = []
    for query in queries:
        scores = np.zeros(len(bags))
        for word in sorted({*words(query)} & index.keys()):
            scores[index[word]] += weight[word]
        found.append(int(np.argmax(scores / norms)))
    return found


def find(name: str, folders: Iterable[Path]) -> Path | None:
    """The file of a package or list in the first folder that has it."""
    for folder in folders:
        patterns = (f"*{name}", f"*{name}.*") if name in LISTS else (f"{name}_*.deb",)
        found = sorted(path for pattern in patterns for path in folder.glob(pattern))
        if len(found) > 1:
            raise RecipeError(f"{folder} has {' and '.join(p.name for p in found)}: keep one of them there")
        if found:
            return found[0]
    return None


def download(missing: list[str], cache: Path) -> None:
    """Fetches packages and lists into ``cache``, one by one and each whole, with an apt state of our own."""
    cache.mkdir(parents=True, exist_ok=True)
    with held(cache, mixed=True) as hold:
        for left in hold.left:
            shutil.rmtree(left, ignore_errors=True)
        try:
            with_apt(missing, cache, hold.work)
        finally:
            shutil.rmtree(hold.work, ignore_errors=True)


def with_apt(missing: list[str], cache: Path, state: Path) -> None:
    """:func:`download`, with apt's state in a folder that is not made yet."""
    (state / "lists" / "partial").mkdir(parents=True)
    options = [f"Dir::State::lists={state / 'lists'}", f"Dir::Cache={state}", "Acquire::Languages=en,de"]
    options += ["Acquire::GzipIndexes=false", "APT::Update::Error-Mode=any"]
    flags = [word for option in options for word in ("-o", option)]
    remedy = "is there a network, and does apt work?"
    run("apt-get", "update", *flags, remedy=remedy)
    for name in tqdm(missing, desc="fetch", unit="file", disable=None):
        if name in LISTS:
            lists = sorted((state / "lists").glob(f"*{name}"), key=lambda path: path.name.partition("_dists_")[2])
            if not lists:
                raise RecipeError(f"apt-get update brought no {name}")
            whole = state / name
            whole.write_bytes(b"\n".join(path.read_bytes() for path in lists))
        else:
            run("apt-get", "download", name, *flags, remedy=f"{name}: {remedy}", cwd=state)
            whole = lohelp.find_deb(state, name)
        whole.rename(cache / whole.name)


def fetch(cache: Path, local_dir: Path | None) -> dict[str, Path]:
    """The file of every package and list, from ``local_dir`` or ``cache``; what neither has is fetched into ``cache``.

    Raises:
        RecipeError: one can't be had; the message says which are needed and where to put them.
    """
    if local_dir is not None and not local_dir.is_dir():
        raise RecipeError(f"argument --local-dir: {local_dir} is not a folder")
    folders = [folder for folder in (local_dir, cache) if folder is not None]
    names = [name for domain in DOMAINS.values() for name in domain.files]
    missing = [name for name in names if find(name, folders) is None]
    if missing:
        try:
            download(missing, cache)
        except FolderError:
            raise
        except RecipeError as error:
            debs = " ".join(name for name in missing if name not in LISTS)
            lists = ", ".join(f"{name}.xz" for name in missing if name in LISTS)
            steps = [f"apt-get download {debs}"] if debs else []
            steps += [f"{lists}: of a Debian mirror, dists/trixie/main/i18n/"] if lists else []
            how = f"Fetch elsewhere, and put into {cache}, or into a folder to be named with --local-dir:"
            raise RecipeError("\n  ".join([f"{error}\n{how}", *steps])) from None
    paths = {name: find(name, folders) for name in names}
    return {name: path for name, path in paths.items() if path}


def described(files: dict[str, Path]) -> dict[str, list[dict[str, str]]]:
    """The packages and lists, for the manifest.

    Raises:
        RecipeError: two packages that are built from one source differ in version.
    """
    packages = {name: lohelp.facts(path) for name, path in files.items() if name not in LISTS}
    for one, other in sources.TWINS:
        a, b = (packages[name]["version"] for name in (one, other))
        if a != b:
            paths = f"{files[one]} and {files[other]}"
            raise RecipeError(f"{paths} are of versions {a} and {b}: fetch both again, they must be of one")
    lists = [{"list": name, "file": files[name].name, "sha256": sha256(files[name])} for name in LISTS]
    return {"packages": list(packages.values()), "lists": lists}


def read(files: dict[str, Path], counts: dict[str, Counter[str]]) -> Iterator[tuple[str, Pair]]:
    """Domain and paragraph of everything there is to read.

    Raises:
        RecipeError: a file is damaged or of another layout, or the two sides of a domain have no document in common.
    """
    with tqdm(DOMAINS.items(), desc="read", unit="source", disable=None) as bar:
        for label, domain in bar:
            bar.set_postfix_str(label)
            yield from ((label, pair) for pair in domain.reader(files, counts[label]))
            if not counts[label]["documents"]:
                names = ", ".join(str(files[name]) for name in domain.files)
                raise RecipeError(f"{names}: no document is in both languages; are they of one release?")


def write(folder: Path, parts: dict[str, list[Pair]], manifest: dict[str, Any]) -> dict[str, Any]:
    """The data set into an empty folder, the manifest last; returns it with the checksums of the other files."""
    for part, pairs in parts.items():
        columns = {"en": [p.en for p in pairs], "de": [p.de for p in pairs], "domains": [domain_of(p) for p in pairs]}
        for ending, lines in columns.items():
            (folder / f"{part}.{ending}").write_bytes("".join(f"{line}\n" for line in lines).encode())
    manifest |= {"files": {path.name: sha256(path) for path in sorted(folder.iterdir())}}
    (folder / "manifest.json").write_bytes(f"{json.dumps(manifest, indent=2)}\n".encode())
    return manifest


def build(out: Path, local_dir: Path | None = None) -> dict[str, Any]:
    """Fetches what is missing into ``out``.packages, builds the data set aside, and moves it to ``out`` whole.

    Returns:
        The manifest.

    Raises:
        RecipeError: ``out`` has other files, or packages are missing or damaged; the message says what to do.
    """
    out = out.resolve()
    lohelp.check_out(out, MADE_BY)
    files = fetch(out.with_name(f"{out.name}.packages"), local_dir.resolve() if local_dir else None)
    rules = {"words": {lang: [least, MAX_WORDS] for lang, least in MIN_WORDS.items()}, "min_letters": MIN_LETTERS}
    rules |= {"max_length_ratio": MAX_RATIO, "max_shared_words": MAX_SHARED, "near_copy": NEAR_COPY}
    rules |= {"held_out_documents": {label: dict(zip(PARTS, d.held_out, strict=False)) for label, d in DOMAINS.items()}}
    version = run("dpkg-deb", "--version", remedy="install dpkg").split("version ")[-1].split()[0]
    manifest: dict[str, Any] = {"made_by": MADE_BY, **described(files), "parameters": rules}
    manifest["tools"] = {"python": platform.python_version(), "unicode": unicodedata.unidata_version}
    manifest["tools"] |= {"dpkg-deb": version}
    manifest["licences"] = {label: domain.licence for label, domain in DOMAINS.items()}
    counts: dict[str, Counter[str]] = {label: Counter() for label in DOMAINS}
    parts = split(select(read(files, counts), counts), counts)
    manifest |= {"counts": counts, "lines": {part: len(parts[part]) for part in PARTS}}
    manifest["test_bleu"] = lohelp.leakage(parts, nearest)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        fresh = Path(aside, "new")
        fresh.mkdir()
        manifest = write(fresh, parts, manifest)
        lohelp.check_out(out, MADE_BY)
        if out.exists():
            out.rename(Path(aside, "old"))
        fresh.rename(out)
    return manifest


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; replaced if this script made it")
    parser.add_argument("--local-dir", type=Path, help="folder with .deb files and lists already fetched")
    args = parser.parse_args(argv)
    try:
        manifest = build(args.out, args.local_dir)
    except (RecipeError, OSError) as error:
        print(f"debian: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({key: manifest[key] for key in ("counts", "lines", "test_bleu")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
