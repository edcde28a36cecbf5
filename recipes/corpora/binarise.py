"""Dictionaries and binarised text by fairseq's library, as fairseq-preprocess writes them."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from common.machine import cores
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary
from fairseq.tokenizer import tokenize_line

from .registry import SPLITS
from .subwords import Pair


def dictionary(files: list[Path], processes: int, known: Container[str] | None = None) -> Dictionary:
    """Return the dictionary of some text, padded to a multiple of 8; only of ``known`` words, if these are given."""
    every = Dictionary()
    for path in files:
        Dictionary.add_file_to_dictionary(str(path), every, tokenize_line, processes)
    words = Dictionary()
    for word, count in zip(every.symbols[every.nspecial :], every.count[every.nspecial :], strict=True):
        if known is None or word in known:
            words.add_symbol(word, count)
    words.finalize(padding_factor=8)
    return words


def number(path: Path, words: Dictionary, processes: int, to: Path) -> str:
    """Write a file in numbers, ``to``.bin and ``to``.idx; returns its counts as text."""
    binarizer = VocabularyDatasetBinarizer(words, append_eos=True)
    summary = FileBinarizer.multiprocess_dataset(str(path), "mmap", binarizer, str(to), len(words), processes)
    unknown = 100 * summary.num_replaced / max(summary.num_tok, 1)
    return f"{summary.num_seq} sents, {summary.num_tok} tokens, {unknown:.3}% replaced (by <unk>)"


def binarise(
    languages: Pair,
    prefixes: list[Path],
    large: bool,
    to: Path,
    words: Path | None = None,
    known: Container[str] | None = None,
) -> None:
    """Write a joint dictionary, and all text by its numbers, as fairseq reads them.

    Args:
        prefixes: of train, valid and test; ``{prefix}.{language}`` are files of words with spaces between them.
        large: all cores work on the training text.
        words: the dictionary; without it that of the training text is made.
        known: words that it may have; all if None.
    """
    to.mkdir()
    text = [[prefix.with_name(f"{prefix.name}.{language}") for language in languages] for prefix in prefixes]
    processes = cores() if large else 1
    joint = Dictionary.load(str(words)) if words else dictionary(text[0], processes, known)
    for side, language in enumerate(languages):
        joint.save(str(to / f"dict.{language}.txt"))
        for split, files in zip(SPLITS, text, strict=True):
            numbers = to / f"{split}.{languages[0]}-{languages[1]}.{language}"
            summary = number(files[side], joint, processes if split == "train" else 1, numbers)
            print(f"[{language}] {files[side]}: {summary}", flush=True)
