"""Writes what ``fairseq-preprocess --joined-dictionary`` writes, byte for byte, by all cores. But subwords that
the model has not are unknown.

fairseq 0.12.2 puts each number into a tensor by itself, and one of its processes begins when the others have ended.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from common.machine import cores
from common.progress import progress

from .registry import SPLITS
from .subwords import Pair, in_order

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's first four numbers
EOS, UNK = 2, 3
BLOCK = 1 << 22  # bytes of text that a process takes at a time


def blocks(path: Path) -> Iterator[bytes]:
    """Whole lines."""
    with (
        path.open("rb") as file,
        progress(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as bar,
    ):
        while block := file.read(BLOCK) + file.readline():
            yield block
            bar.update(len(block))


def count_words() -> Callable[[bytes], Counter[str]]:
    return lambda block: Counter(block.decode().split())


def dictionary(files: list[Path], processes: int, known: Container[str] | None = None) -> dict[str, int]:
    """fairseq's dictionary with the counts: the special words (which aren't counted), then the most frequent first;
    made-up words fill it to a multiple of 8. Words that are not ``known`` are left out, if that is given."""
    counts: Counter[str] = Counter()
    for found in in_order(count_words, chain.from_iterable(map(blocks, files)), processes):
        counts.update(found)
    if known is not None:
        counts = Counter({word: n for word, n in counts.items() if word in known})
    words = dict.fromkeys(SPECIAL, 0)
    words |= {word: n for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if word not in words}
    filler = 0
    while len(words) % 8:
        words.setdefault(f"madeupword{filler:04d}", 0)
        filler += 1
    return words


def save(counts: dict[str, int], path: Path) -> None:
    """Write a dictionary, the special words first, as fairseq reads it."""
    lines = (f"{word} {n}\n" for word, n in islice(counts.items(), len(SPECIAL), None))
    path.write_text("".join(lines), "utf-8", newline="\n")


def load(path: Path) -> dict[str, int]:
    """What :func:`save` wrote."""
    lines = (line.rsplit(" ", 1) for line in path.read_text("utf-8").split("\n")[:-1])
    return dict.fromkeys(SPECIAL, 0) | {word: int(n) for word, n in lines}


@dataclass(frozen=True)
class Numbering:
    """The work of one process on lines of text: their words' numbers, each line's with the end of sentence."""

    words: dict[str, int]
    dtype: str

    def __call__(self) -> Callable[[bytes], tuple[bytes, bytes, int]]:
        number = self.words.get

        def work(block: bytes) -> tuple[bytes, bytes, int]:
            """The numbers; the int32 lengths of the lines; how many words are unknown."""
            sizes, numbers, named = [], [], 0
            for line in block.decode().removesuffix("\n").split("\n"):
                found = line.split()
                numbers += [number(word, UNK) for word in found]
                numbers.append(EOS)
                sizes.append(len(found) + 1)
                named += found.count(SPECIAL[UNK])
            unknown = numbers.count(UNK) - named
            return np.array(numbers, self.dtype).tobytes(), np.array(sizes, "<i4").tobytes(), unknown

        return work


def numbering_of(counts: dict[str, int]) -> Numbering:
    """The numbering by a dictionary, the special words first."""
    dtype = "<u2" if len(counts) < 65_500 else "<u4"  # as fairseq chooses
    return Numbering({word: place for place, word in enumerate(counts)}, dtype)


def number(path: Path, numbering: Numbering, processes: int, to: Path) -> str:
    """Write a file in numbers as fairseq's ``mmap`` has it, ``to``.bin and ``to``.idx; returns counts in words."""
    width = np.dtype(numbering.dtype).itemsize
    parts = [np.zeros(0, "<i4")]
    unknown = 0
    with Path(f"{to}.bin").open("wb") as data:
        for numbers, lengths, faults in in_order(numbering, blocks(path), processes):
            data.write(numbers)
            parts.append(np.frombuffer(lengths, "<i4"))
            unknown += faults
    sizes = np.concatenate(parts)
    ends = np.cumsum(sizes, dtype="<i8") * width
    with Path(f"{to}.idx").open("wb") as index:
        code = {2: 8, 4: 9}[width]  # fairseq's for uint16 and uint32
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, len(sizes)))
        index.write(sizes.tobytes())
        index.write((ends - sizes.astype("<i8") * width).tobytes())
    tokens = int(sizes.sum())
    return f"{len(sizes)} sents, {tokens} tokens, {100 * unknown / max(tokens, 1):.3}% replaced (by <unk>)"


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
    counts = load(words) if words else dictionary(text[0], processes, known)
    numbering = numbering_of(counts)
    for side, language in enumerate(languages):
        save(counts, to / f"dict.{language}.txt")
        for split, files in zip(SPLITS, text, strict=True):
            made = to / f"{split}.{languages[0]}-{languages[1]}.{language}"
            facts = number(files[side], numbering, processes if split == "train" else 1, made)
            print(f"[{language}] {files[side]}: {facts}", flush=True)
