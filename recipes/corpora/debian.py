"""English-German sentence pairs from Debian packages: manuals, help, descriptions, a dictionary, messages.

``build`` writes {train,valid,test}.{en,de}, {train,valid,test}.domains with a label for each line, and manifest.json.
Whole documents are held out, by a hash of their name; what is a near-copy of a held-out pair leaves the training
text. The same packages give the same bytes. Needs dpkg-deb and, to fetch, apt-get; root is not needed. The licences
of the sources are mixed and named in the manifest: the result is for those who build it, not for handing on.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import RecipeError
from common.progress import progress

from . import debian_readers as readers
from .archives import digest
from .debian_readers import LISTS, Files, facts, run
from .pairs import Pair, Rules, fraction, leakage, part_of, reject_reason, segments, without_copies, words

PARTS = ("test", "valid", "train")  # each without near-copies of those before it


class Domain(NamedTuple):
    """Source of the pairs of one label."""

    reader: Callable[[Files, Counter[str]], Iterator[Pair]]
    files: tuple[str, ...]  # packages and lists
    held_out: tuple[float, float]  # shares of the documents that are for test and for valid
    licence: str


class Recipe(NamedTuple):
    """Sources and rules of a corpus."""

    made_by: str
    domains: dict[str, Domain]
    rules: Rules
    one_of_source: bool = False  # of pairs with one source only the first stays, else of equal pairs
    sizes: Mapping[str, int] = {}  # pairs of a part, at most

    @property
    def files(self) -> list[str]:
        return [name for domain in self.domains.values() for name in domain.files]

    def part_of(self, pair: Pair) -> str:
        """The part that a pair's document belongs to, whatever other documents there are."""
        document = pair.page if len(self.domains) == 1 else f"{pair.domain}/{pair.page}"
        return part_of(document, *self.domains[pair.domain].held_out)


DEBIAN = Recipe(
    made_by="fairseq_sru recipes/debian.py",
    domains={
        "ddtp": Domain(readers.packages, LISTS, (0.018, 0.012), "unclear"),
        "ding": Domain(readers.ding, ("trans-de-en",), (0.012, 0.008), "GPL-2+"),
        "doc": Domain(readers.handbooks, readers.HANDBOOKS, (0.0, 0.0), "GPL-2+"),
        "gnome": Domain(readers.gnome, ("gnome-user-docs",), (0.08, 0.05), "CC-BY-SA-3.0"),
        "lohelp": Domain(readers.office_help, tuple(readers.HELP.values()), (0.02, 0.014), "MPL-2.0"),
        "man": Domain(readers.manpages, readers.MANPAGES, (0.03, 0.02), "English: mixed; German: GPL-3+"),
        "ui": Domain(
            readers.catalogs, tuple(readers.CATALOGS), (0.0, 0.0), "MPL-2.0 (LibreOffice), GPL-2, GPL-2+, GPL-3+"
        ),
    },
    rules=Rules(
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
    ),
)


# --- fetching ---------------------------------------------------------------------------------------------------------


def find(name: str, folders: Iterable[Path]) -> Path | None:
    """The file of a package or list in the first folder that has it."""
    for folder in folders:
        patterns = (f"*{name}", f"*{name}.xz") if name in LISTS else (f"{name}_*.deb",)
        paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
        if len(paths) > 1:
            raise RecipeError(f"{folder} has {' and '.join(p.name for p in paths)}: keep one of them there")
        if paths:
            return paths[0]
    return None


def download(missing: list[str], cache: Path) -> None:
    """Fetch packages and lists into ``cache``, one by one and each whole, with an apt state of our own."""
    state = cache / "apt"
    shutil.rmtree(state, ignore_errors=True)  # of a run that was killed
    (state / "lists" / "partial").mkdir(parents=True)
    options = [f"Dir::State::lists={state / 'lists'}", f"Dir::Cache={state}", "Acquire::Languages=en,de"]
    options += ["Acquire::GzipIndexes=false", "APT::Update::Error-Mode=any"]
    flags = [word for option in options for word in ("-o", option)]
    run("apt-get", "update", *flags)
    for name in progress(missing, desc="fetch", unit="file"):
        if name in LISTS:
            lists = sorted((state / "lists").glob(f"*{name}"), key=lambda path: path.name.partition("_dists_")[2])
            (state / name).write_bytes(b"\n".join(path.read_bytes() for path in lists))
        else:
            run("apt-get", "download", name, *flags, cwd=state)
        if (whole := find(name, [state])) is None:
            raise RecipeError(f"apt-get brought no {name}")
        whole.rename(cache / whole.name)
    shutil.rmtree(state)


def fetch(names: list[str], cache: Path, local_dir: Path | None) -> Files:
    """The file of every package and list, from ``local_dir`` or ``cache``; what neither has is fetched into ``cache``.

    Raises:
        RecipeError: one can't be had; the message says which are needed and where to put them.
    """
    if local_dir is not None and not local_dir.is_dir():
        raise RecipeError(f"argument --local-dir: {local_dir} is not a folder")
    folders = [folder for folder in (local_dir, cache) if folder is not None]
    missing = [name for name in names if find(name, folders) is None]
    if missing:
        try:
            download(missing, cache)
        except RecipeError as error:
            debs = " ".join(name for name in missing if name not in LISTS)
            steps = [f"  apt-get download {debs}"] if debs else []
            steps += [f"  {name}.xz: of a Debian mirror, dists/trixie/main/i18n/" for name in missing if name in LISTS]
            how = f"Fetch elsewhere, and put into {cache}, or into a folder to be named with --local-dir:"
            raise RecipeError("\n".join([f"{error}", how, *steps])) from None
    return {name: path for name in names if (path := find(name, folders))}


def described(files: Files) -> dict[str, list[dict[str, str]]]:
    """The packages and lists, for the manifest.

    Raises:
        RecipeError: two packages that are built from one source differ in version.
    """
    packages = {name: facts(path) for name, path in files.items() if name not in LISTS}
    for one, other in readers.TWINS:
        if one in files and packages[one]["version"] != packages[other]["version"]:
            versions = f"{packages[one]['version']} and {packages[other]['version']}"
            raise RecipeError(f"{files[one]} and {files[other]} are of versions {versions}: they must be of one")
    lists = [{"list": name, "file": path.name, "sha256": digest(path)} for name, path in files.items() if name in LISTS]
    return {"packages": list(packages.values()), "lists": lists}


# --- from files to a corpus -------------------------------------------------------------------------------------------


def read(recipe: Recipe, files: Files, counts: dict[str, Counter[str]]) -> Iterator[Pair]:
    """Paragraphs of everything there is to read.

    Raises:
        RecipeError: a file is damaged or of another layout, or the two sides of a domain have no document in common.
    """
    with progress(recipe.domains.items(), desc="read", unit="source") as bar:
        for label, domain in bar:
            bar.set_postfix_str(label)
            names = ", ".join(str(files[name]) for name in domain.files)
            try:
                for pair in domain.reader(files, counts[label]):
                    yield pair._replace(domain=label)
            except readers.DAMAGED as error:
                raise RecipeError(f"{names}: damaged ({error}): fetch again") from None
            if not counts[label]["documents"]:
                raise RecipeError(f"{names}: no document is in both languages; are they of one release?")


def select(recipe: Recipe, paragraphs: Iterable[Pair], counts: dict[str, Counter[str]]) -> list[Pair]:
    """The pairs without fault, of those alike but for case, punctuation and digits the first."""
    chosen: dict[tuple[tuple[str, ...], ...], Pair] = {}
    for paragraph in paragraphs:
        counter = counts[paragraph.domain]
        if not (paragraph.en and paragraph.de):
            counter["one side empty"] += 1
            continue
        for en, de in segments(paragraph.en, paragraph.de):
            counter["segments"] += 1
            key = (words(en),) if recipe.one_of_source else (words(en), words(de))
            reason = reject_reason(en, de, recipe.rules)
            if reason is None and key in chosen:
                reason = "same source" if recipe.one_of_source else "same pair"
            if reason:
                counter[f"dropped: {reason}"] += 1
            else:
                chosen[key] = paragraph._replace(en=en, de=de)
    return list(chosen.values())


def split(recipe: Recipe, pairs: list[Pair], counts: dict[str, Counter[str]]) -> dict[str, list[Pair]]:
    """Whole documents to each part, less near-copies of the parts before it, and of these so many as are to be in it,
    drawn by hash."""
    parts: dict[str, list[Pair]] = {}
    for part in PARTS:
        steps = {"in its documents": [pair for pair in pairs if recipe.part_of(pair) == part]}
        clear = without_copies(steps["in its documents"], [pair for done in parts.values() for pair in done])
        drawn = set(sorted(clear, key=lambda p: fraction(f"{p.en}\t{p.de}"))[: recipe.sizes.get(part)])
        parts[part] = steps["written"] = [pair for pair in clear if pair in drawn]
        for step, left in steps.items():
            for domain, n in sorted(Counter(pair.domain for pair in left).items()):
                counts[domain][f"{part}: {step}"] = n
    return parts


def make(recipe: Recipe, files: Files, out: Path, texts: Mapping[str, Sequence[str]] = {}) -> dict[str, Any]:
    """Write a corpus, with other texts by file name; returns its manifest.

    Raises:
        RecipeError: packages are missing or damaged; the message says what to do.
    """
    rules = recipe.rules
    held_out = {label: dict(zip(PARTS, d.held_out, strict=False)) for label, d in recipe.domains.items()}
    manifest: dict[str, Any] = {
        "made_by": recipe.made_by,
        **described(files),
        "parameters": {**rules.described(), "held_out_documents": held_out},
        "tools": {
            "python": platform.python_version(),
            "unicode": unicodedata.unidata_version,
            "dpkg-deb": run("dpkg-deb", "--version").split("version ")[-1].split()[0],
        },
        "licences": {label: domain.licence for label, domain in recipe.domains.items()},
    }
    counts: dict[str, Counter[str]] = {label: Counter() for label in recipe.domains}
    parts = split(recipe, select(recipe, read(recipe, files, counts), counts), counts)
    manifest |= {"counts": counts, "lines": {part: len(parts[part]) for part in PARTS}, "test_bleu": leakage(parts)}
    columns = ("en", "de", "domain") if len(recipe.domains) > 1 else ("en", "de")
    names = {"domain": "domains"}
    texts = {
        **{
            f"{part}.{names.get(c, c)}": [getattr(p, c) for p in pairs]
            for part, pairs in parts.items()
            for c in columns
        },
        **texts,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in texts.items():
        (out / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    manifest["files"] = {name: digest(out / name) for name in sorted(texts)}
    (out / "manifest.json").write_bytes(f"{json.dumps(manifest, indent=2)}\n".encode())
    return manifest


def build(out: Path, local_dir: Path | None = None) -> dict[str, Any]:
    """Fetch what is missing into ``out``.packages and write debian-en-de to ``out``; returns its manifest."""
    out = out.resolve()
    local_dir = local_dir.resolve() if local_dir else None
    return make(DEBIAN, fetch(DEBIAN.files, out.with_name(f"{out.name}.packages"), local_dir), out)
