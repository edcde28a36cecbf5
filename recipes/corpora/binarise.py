"""Dictionaries and binary files, made by fairseq-preprocess's own functions."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

from common.machine import cores
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary
from fairseq.tokenizer import tokenize_line

from .registry import SPLITS
from .subwords import Pair

LARGE = 1 << 22  # bytes of text from which all cores work on it


def workers_for(path: Path) -> int:
    return cores() if path.stat().st_size > LARGE else 1


def dictionary(files: Iterable[Path], known: Container[str] | None = None) -> Dictionary:
    """Dictionary of the words of text files, as fairseq-preprocess makes it; only of ``known`` words, if given."""
    counted = Dictionary()
    for path in files:
        Dictionary.add_file_to_dictionary(str(path), counted, tokenize_line, workers_for(path))
    words = Dictionary()
    for word, count in zip(counted.symbols[counted.nspecial :], counted.count[counted.nspecial :], strict=True):
        if known is None or word in known:
            words.add_symbol(word, count)
    words.finalize()
    return words


def number(path: Path, words: Dictionary, to: Path) -> str:
    """Write a text file in numbers, ``to``.bin and ``to``.idx; returns counts in words."""
    binarizer = VocabularyDatasetBinarizer(words, append_eos=True)
    summary = FileBinarizer.multiprocess_dataset(
        str(path), "mmap", binarizer, str(to), vocab_size=len(words), num_workers=workers_for(path)
    )
    return f"{summary} (by {words.unk_word})"


def binarise(
    languages: Pair, prefixes: list[Path], to: Path, words: Path | None = None, known: Container[str] | None = None
) -> None:
    """Write a joint dictionary, and all text by its numbers, as ``fairseq-preprocess --joined-dictionary`` does.

    Args:
        prefixes: of train, valid and test; ``{prefix}.{language}`` are files of words with spaces between them.
        words: the dictionary's file; without it that of the training text is made.
        known: words that it may have; all if None.
    """
    to.mkdir()
    train = [prefixes[0].with_name(f"{prefixes[0].name}.{language}") for language in languages]
    joint = Dictionary.load(str(words)) if words else dictionary(train, known)
    for language in languages:
        joint.save(str(to / f"dict.{language}.txt"))
        for split, prefix in zip(SPLITS, prefixes, strict=True):
            text = prefix.with_name(f"{prefix.name}.{language}")
            facts = number(text, joint, to / f"{split}.{languages[0]}-{languages[1]}.{language}")
            print(f"[{language}] {text}: {facts}", flush=True)
