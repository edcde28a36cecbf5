"""English-German sentence pairs from Debian packages: manuals, help, descriptions, a dictionary, messages.

``build`` writes {train,valid,test}.{en,de}, {train,valid,test}.domains with a label for each line, and manifest.json.
Whole documents are held out, by a hash of their name; what is a near-copy of a held-out pair leaves the training
text. The same packages give the same bytes. Needs dpkg-deb and, to fetch, apt-get; root is not needed. The licences
of the sources are mixed and named in the manifest: the result is for those who build it, not for handing on.
"""

from __future__ import annotations

import platform
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import RecipeError
from common.progress import progress

from . import debian_documents as documents
from . import debian_sources as sources
from .archives import digest
from .deb import facts, find_deb, run
from .debian_sources import LISTS
from .pairs import Pair, Rules, leakage, part_of, reject_reason, segments, without_copies, words, write_corpus

MADE_BY = "fairseq_sru recipes/debian.py"
PARTS = ("test", "valid", "train")  # each without near-copies of those before it

RULES = Rules(
    hole="code, image or blank",
    min_words=(3, 2),  # German has one word where English has two
    max_words=60,
    plain=re.compile(r"[\w \"'`(),.:;!?%&/+*#=$§°©®€£™×·„“”‚‘’«»›‹…–—-]+"),
    foreign=re.compile(r"[^\W\d_A-Za-zÀ-ſẞ]"),
    markup={
        "markup, address or placeholder": re.compile(
            r"%[-#0-9.*(]*[A-Za-z0-9(]|\$[\w(]|#\d|&\w+;|//|\bwww\.|__|\.(?:org|com|net)\b"
        )
    },
    max_ratio=2.2,
    max_word_ratio=float("inf"),
    max_shared=0.75,
)


class Domain(NamedTuple):
    """Where the pairs of one label come from."""

    reader: Callable[[dict[str, Path], Counter[str]], Iterator[Pair]]
    files: tuple[str, ...]  # packages and lists
    held_out: tuple[float, float]  # shares of the documents that are for test and for valid
    licence: str


DOMAINS = {
    "ddtp": Domain(sources.packages, LISTS, (0.018, 0.012), "unclear"),
    "ding": Domain(sources.ding, ("trans-de-en",), (0.012, 0.008), "GPL-2+"),
    "doc": Domain(documents.handbooks, documents.HANDBOOKS, (0.0, 0.0), "GPL-2+"),
    "gnome": Domain(documents.gnome, ("gnome-user-docs",), (0.08, 0.05), "CC-BY-SA-3.0"),
    "lohelp": Domain(documents.lohelp, documents.LOHELP, (0.02, 0.014), "MPL-2.0"),
    "man": Domain(documents.manpages, documents.MANPAGES, (0.03, 0.02), "English: mixed; German: GPL-3+"),
    "ui": Domain(sources.catalogs, tuple(sources.CATALOGS), (0.0, 0.0), "MPL-2.0 (LibreOffice), GPL-2, GPL-2+, GPL-3+"),
}


def select(paragraphs: Iterable[tuple[str, Pair]], counts: dict[str, Counter[str]]) -> list[Pair]:
    """The pairs without fault, of those alike but for case, punctuation and digits the first; pages get the domain."""
    kept: dict[tuple[tuple[str, ...], tuple[str, ...]], Pair] = {}
    for domain, paragraph in paragraphs:
        if not (paragraph.en and paragraph.de):
            counts[domain]["one side empty"] += 1
            continue
        for en, de in segments(paragraph.en, paragraph.de):
            counts[domain]["segments"] += 1
            key = words(en), words(de)
            reason = reject_reason(en, de, RULES) or ("same pair" if key in kept else None)
            if reason:
                counts[domain][f"dropped: {reason}"] += 1
            else:
                kept[key] = Pair(f"{domain}/{paragraph.page}", en, de)
    return list(kept.values())


def domain_of(pair: Pair) -> str:
    return pair.page.partition("/")[0]


def split(pairs: list[Pair], counts: dict[str, Counter[str]]) -> dict[str, list[Pair]]:
    """Whole documents to each part, less near-copies of the parts before it."""
    parts: dict[str, list[Pair]] = {}
    for part in PARTS:
        there = [p for p in pairs if part_of(p.page, *DOMAINS[domain_of(p)].held_out) == part]
        parts[part] = without_copies(there, [p for done in parts.values() for p in done])
        for step, left in (("in its documents", there), ("written", parts[part])):
            for domain, n in sorted(Counter(map(domain_of, left)).items()):
                counts[domain][f"{part}: {step}"] = n
    return parts


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
    state = cache / "apt"
    shutil.rmtree(state, ignore_errors=True)  # of a run that was killed
    (state / "lists" / "partial").mkdir(parents=True)
    try:
        with_apt(missing, cache, state)
    finally:
        shutil.rmtree(state)


def with_apt(missing: list[str], cache: Path, state: Path) -> None:
    """:func:`download`, with apt's state in a folder of its own."""
    options = [f"Dir::State::lists={state / 'lists'}", f"Dir::Cache={state}", "Acquire::Languages=en,de"]
    options += ["Acquire::GzipIndexes=false", "APT::Update::Error-Mode=any"]
    flags = [word for option in options for word in ("-o", option)]
    remedy = "is there a network, and does apt work?"
    run("apt-get", "update", *flags, remedy=remedy)
    for name in progress(missing, desc="fetch", unit="file"):
        if name in LISTS:
            lists = sorted((state / "lists").glob(f"*{name}"), key=lambda path: path.name.partition("_dists_")[2])
            if not lists:
                raise RecipeError(f"apt-get update brought no {name}")
            whole = state / name
            whole.write_bytes(b"\n".join(path.read_bytes() for path in lists))
        else:
            run("apt-get", "download", name, *flags, remedy=f"{name}: {remedy}", cwd=state)
            whole = find_deb(state, name)
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
        except RecipeError as error:
            debs = " ".join(name for name in missing if name not in LISTS)
            lists = ", ".join(f"{name}.xz" for name in missing if name in LISTS)
            steps = [f"apt-get download {debs}"] if debs else []
            steps += [f"{lists}: of a Debian mirror, dists/trixie/main/i18n/"] if lists else []
            how = f"Fetch elsewhere, and put into {cache}, or into a folder to be named with --local-dir:"
            raise RecipeError("\n  ".join([f"{error}\n{how}", *steps])) from None
    return {name: path for name in names if (path := find(name, folders))}


def described(files: dict[str, Path]) -> dict[str, list[dict[str, str]]]:
    """The packages and lists, for the manifest.

    Raises:
        RecipeError: two packages that are built from one source differ in version.
    """
    packages = {name: facts(path) for name, path in files.items() if name not in LISTS}
    for one, other in documents.TWINS:
        a, b = (packages[name]["version"] for name in (one, other))
        if a != b:
            paths = f"{files[one]} and {files[other]}"
            raise RecipeError(f"{paths} are of versions {a} and {b}: fetch both again, they must be of one")
    lists = [{"list": name, "file": files[name].name, "sha256": digest(files[name])} for name in LISTS]
    return {"packages": list(packages.values()), "lists": lists}


def read(files: dict[str, Path], counts: dict[str, Counter[str]]) -> Iterator[tuple[str, Pair]]:
    """Domain and paragraph of everything there is to read.

    Raises:
        RecipeError: a file is damaged or of another layout, or the two sides of a domain have no document in common.
    """
    with progress(DOMAINS.items(), desc="read", unit="source") as bar:
        for label, domain in bar:
            bar.set_postfix_str(label)
            yield from ((label, pair) for pair in domain.reader(files, counts[label]))
            if not counts[label]["documents"]:
                names = ", ".join(str(files[name]) for name in domain.files)
                raise RecipeError(f"{names}: no document is in both languages; are they of one release?")


def build(out: Path, local_dir: Path | None = None) -> dict[str, Any]:
    """Fetches what is missing into ``out``.packages, writes the data set to ``out``; returns the manifest.

    Raises:
        RecipeError: packages are missing or damaged; the message says what to do.
    """
    out = out.resolve()
    files = fetch(out.with_name(f"{out.name}.packages"), local_dir.resolve() if local_dir else None)
    least = dict(zip(("en", "de"), RULES.min_words, strict=True))
    rules = RULES.described({lang: [n, RULES.max_words] for lang, n in least.items()})
    rules |= {"held_out_documents": {label: dict(zip(PARTS, d.held_out, strict=False)) for label, d in DOMAINS.items()}}
    version = run("dpkg-deb", "--version", remedy="install dpkg").split("version ")[-1].split()[0]
    manifest: dict[str, Any] = {"made_by": MADE_BY, **described(files), "parameters": rules}
    manifest["tools"] = {"python": platform.python_version(), "unicode": unicodedata.unidata_version}
    manifest["tools"] |= {"dpkg-deb": version}
    manifest["licences"] = {label: domain.licence for label, domain in DOMAINS.items()}
    counts: dict[str, Counter[str]] = {label: Counter() for label in DOMAINS}
    parts = split(select(read(files, counts), counts), counts)
    manifest |= {"counts": counts, "lines": {part: len(parts[part]) for part in PARTS}}
    manifest["test_bleu"] = leakage(parts)
    columns: dict[str, Callable[[Pair], str]] = {"en": lambda p: p.en, "de": lambda p: p.de, "domains": domain_of}
    texts = {f"{part}.{end}": [of(p) for p in pairs] for part, pairs in parts.items() for end, of in columns.items()}
    return write_corpus(out, texts, manifest)
