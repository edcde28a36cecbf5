"""Reads parallel text as plain, aligned lines; what is dropped, edited or odd is counted, and nothing is silent."""

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
SEPARATOR = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # str.splitlines begins a line there
BYTE_ORDER_MARK = "\ufeff"


@dataclass
class Tally:
    """What happened to a split."""

    pairs: dict[str, int] = field(default_factory=dict)  # how many were there after each step
    dropped: Counter[str] = field(default_factory=Counter)  # pairs by reason; of the training text only
    edited: Counter[str] = field(default_factory=Counter)  # lines by what was made plain in them
    odd: Counter[str] = field(default_factory=Counter)  # pairs of validation and test text, kept, by what is odd

    @property
    def last(self) -> int:
        return list(self.pairs.values())[-1]

    def __str__(self) -> str:
        facts = [f"{count:,} {step}" for step, count in self.pairs.items()]
        for name in ("dropped", "edited", "odd"):
            counter = getattr(self, name)
            facts += [f"{name}: " + ", ".join(f"{n:,} {what}" for what, n in counter.items())] if counter else []
        return "; ".join(facts)


def plain(line: bytes, edited: Counter[str]) -> str:
    """A line as text without line end and byte order mark, with single plain spaces.

    Raises:
        UnicodeDecodeError: it isn't UTF-8.
    """
    text = line.removesuffix(b"\n").decode("utf-8")
    if text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " ":
        return text
    if text.startswith(BYTE_ORDER_MARK):
        edited["byte order mark"] += 1
        text = text.lstrip(BYTE_ORDER_MARK)
    if text.endswith("\r"):
        edited["CRLF line end"] += 1
        text = text[:-1]
    if SEPARATOR.search(text):
        edited["line separator inside"] += 1
    single = " ".join(text.split())
    if single != text:
        edited["white space"] += 1
    return single


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
    """What a pair is known by: 8 bytes of a hash, which take about 80 bytes of memory in a set."""
    return int.from_bytes(hashlib.blake2b(f"{left}\n{right}".encode(), digest_size=8).digest(), "little")


def train_pairs(
    files: Iterable[tuple[Path, Path]], deduplicate: bool, tally: Tally, seen: set[int], drop_control: bool = True
) -> Iterator[tuple[str, str]]:
    """Pairs fit for training, without copies where that is wanted; ``seen`` takes the :func:`mark` of each.

    Raises:
        RecipeError: the two sides don't match.
    """
    tally.pairs |= {"read": 0, "not odd": 0}
    for source, target in files:
        for _, a, b in lines(source, target):
            tally.pairs["read"] += 1
            try:
                left, right = plain(a, tally.edited), plain(b, tally.edited)
            except UnicodeDecodeError:
                tally.dropped["not UTF-8"] += 1
                continue
            if drop_control and (CONTROL.search(left) or CONTROL.search(right)):
                tally.dropped["control character"] += 1
            elif not left or not right:
                tally.dropped["empty"] += 1
            else:
                tally.pairs["not odd"] += 1
                known = len(seen)
                seen.add(mark(left, right))
                if deduplicate and len(seen) == known:
                    tally.dropped["duplicate"] += 1
                    continue
                yield left, right
    if deduplicate:
        tally.pairs["without duplicates"] = len(seen)


def all_pairs(files: Iterable[tuple[Path, Path]], tally: Tally, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Every pair, for validation or test; what was seen before is counted as odd.

    Raises:
        RecipeError: the two sides don't match, or a line isn't UTF-8.
    """

    def text(path: Path, number: int, line: bytes) -> str:
        try:
            found = plain(line, tally.edited)
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None
        if CONTROL.search(found):
            tally.edited["control character"] += 1
            found = " ".join(CONTROL.sub(" ", found).split())
        return found

    tally.pairs["read"] = 0
    for source, target in files:
        for number, a, b in lines(source, target):
            tally.pairs["read"] += 1
            left, right = text(source, number, a), text(target, number, b)
            if mark(left, right) in seen:
                tally.odd["in the training text, too"] += 1
            yield left, right
