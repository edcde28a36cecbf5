"""Readers of parallel text as plain, aligned lines; pairs that are dropped are counted."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from common.errors import RecipeError

CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # Unicode's Cc without what str.split takes for space
BYTE_ORDER_MARK = "\ufeff"


@dataclass
class Tally:
    """Numbers of pairs of a split."""

    pairs: dict[str, int] = field(default_factory=dict)  # after each step
    dropped: Counter[str] = field(default_factory=Counter)  # by reason; of the training text only

    @property
    def last(self) -> int:
        return list(self.pairs.values())[-1]

    def __str__(self) -> str:
        dropped = ", ".join(f"{count:,} {why}" for why, count in self.dropped.items())
        steps = ", ".join(f"{count:,} {step}" for step, count in self.pairs.items())
        return f"{steps}; dropped: {dropped}" if dropped else steps


def plain(line: bytes) -> str:
    """A line as text without line end and byte order mark, with single plain spaces.

    Raises:
        UnicodeDecodeError: it isn't UTF-8.
    """
    return " ".join(line.decode("utf-8").removeprefix(BYTE_ORDER_MARK).split())


def lines(source: Path, target: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, source and target of each pair of lines; only a line feed ends a line.

    Raises:
        RecipeError: one file has more lines than the other, or they are empty.
    """
    number = 0
    with source.open("rb") as left, target.open("rb") as right:
        for number, (a, b) in enumerate(zip_longest(left, right), 1):
            if a is None or b is None:
                rest = sum(1 for _ in (left if b is None else right))
                has = {True: number + rest, False: number - 1}
                raise RecipeError(
                    f"{source} has {has[b is None]:,} lines and {target} {has[a is None]:,}: "
                    "parallel text has one line for one"
                )
            yield number, a, b
    if not number:
        raise RecipeError(f"{source} and {target} are empty")


def mark(left: str, right: str) -> int:
    """Mark of a pair: 8 bytes of a hash, which take about 80 bytes of memory in a set."""
    return int.from_bytes(hashlib.blake2b(f"{left}\n{right}".encode(), digest_size=8).digest(), "little")


def train_pairs(
    files: Iterable[tuple[Path, Path]], deduplicate: bool, tally: Tally, drop_control: bool = True
) -> Iterator[tuple[str, str]]:
    """Pairs fit for training, without copies where that is wanted.

    Raises:
        RecipeError: the two sides don't match.
    """
    seen: set[int] = set()
    tally.pairs |= {"read": 0, "clean": 0}
    for source, target in files:
        for _, a, b in lines(source, target):
            tally.pairs["read"] += 1
            try:
                left, right = plain(a), plain(b)
            except UnicodeDecodeError:
                tally.dropped["not UTF-8"] += 1
                continue
            if drop_control and (CONTROL.search(left) or CONTROL.search(right)):
                tally.dropped["control character"] += 1
            elif not left or not right:
                tally.dropped["empty"] += 1
            elif deduplicate and (known := mark(left, right)) in seen:
                tally.dropped["duplicate"] += 1
            else:
                if deduplicate:
                    seen.add(known)
                tally.pairs["clean"] += 1
                yield left, right


def all_pairs(files: Iterable[tuple[Path, Path]], tally: Tally) -> Iterator[tuple[str, str]]:
    """Every pair, for validation or test.

    Raises:
        RecipeError: the two sides don't match, or a line isn't UTF-8.
    """

    def text(path: Path, number: int, line: bytes) -> str:
        try:
            return " ".join(CONTROL.sub(" ", plain(line)).split())
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None

    tally.pairs["read"] = 0
    for source, target in files:
        for number, a, b in lines(source, target):
            tally.pairs["read"] += 1
            yield text(source, number, a), text(target, number, b)
