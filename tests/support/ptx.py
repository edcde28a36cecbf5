"""Reads PTX: the loops of a kernel, and what a step of them copies, loads and stores."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from fairseq_sru.recurrence.kernels import Variant

VALUE_SIZES = {0: 4, 1: 2, 2: 2, 3: 8}  # bytes of a value by VALUE


class Access(NamedTuple):
    """An instruction that reads (load) or writes global memory; copy: into shared memory."""

    load: bool
    bytes: int
    copy: bool = False


class Block(NamedTuple):
    """Instructions that run one after the other, and the labels of the blocks that may come next."""

    accesses: list[Access]
    following: list[str]


def flow(ptx: str, kernel: str) -> dict[str, Block]:
    """A kernel's blocks by label, the first one's is ''."""
    body = ptx.split(f".entry {kernel}(")[1].split("\n{")[1].split("\n}")[0]
    label, blocks = "", {"": Block([], [])}

    def begin(name: str) -> str:
        blocks[name] = Block([], [])
        return name

    ended = False  # the last block doesn't run on into the next
    for number, line in enumerate(body.splitlines()):
        found = re.match(r"\s*(\$\w+):|\s*(@!?%p\d+\s+)?([a-z][\w.:]*)\s*([^;]*);", line)
        if not found:
            continue
        named, condition, instruction, operands = found.groups()
        if named or ended:
            if not ended:
                blocks[label].following.append(named)
            label, ended = begin(named or f"after line {number}"), False
        if not instruction:
            continue
        words = instruction.split(".")
        assert words[0] not in ("brx", "call", "atom", "red"), line
        if words[0] == "bra":
            blocks[label].following.append(operands.strip())
            if condition:
                blocks[label].following.append(f"after line {number}")
                label = begin(f"after line {number}")
            else:
                ended = True
        elif words[0] == "ret":
            assert not condition, line
            ended = True
        elif words[:2] == ["cp", "async"]:
            if words[-1] == "global":
                blocks[label].accesses.append(Access(True, int(operands.split(",")[2]), True))
        elif words[0] in ("ld", "st") and words[1] not in ("param", "shared"):
            assert words[1] == "global", line  # nothing on a stack
            lanes = {"v2": 2, "v4": 4}.get(words[-2], 1)
            blocks[label].accesses.append(Access(words[0] == "ld", lanes * int(words[-1][1:]) // 8))
    return blocks


def loops(blocks: dict[str, Block]) -> dict[str, set[str]]:
    """The blocks of each loop by the label it begins with."""
    before: dict[str, list[str]] = {name: [] for name in blocks}
    backward: list[tuple[str, str]] = []
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        done.add(name)
        for after in blocks[name].following:
            before[after].append(name)
            if after in (*above, name):
                backward.append((name, after))
            elif after not in done:
                walk(after, (*above, name))

    walk("", ())
    found: dict[str, set[str]] = {}
    for last, first in backward:
        members = found.setdefault(first, {first})
        waiting = [last]
        while waiting:
            name = waiting.pop()
            if name not in members:
                members.add(name)
                waiting += before[name]
    return found


class Traffic(NamedTuple):
    """Count instructions of one round of a kernel's loop over the steps, by the way through it that has most."""

    loaded: int
    stored: int
    loads: int
    stores: int
    copies: int


def traffic(ptx: str, kernel: str) -> Traffic:
    blocks = flow(ptx, kernel)

    def most(first: str, members: set[str], weigh: Any) -> int:
        @functools.cache
        def rest(name: str) -> int:
            block = blocks[name]
            following = [rest(n) for n in block.following if n in members and n != first]
            return sum(map(weigh, block.accesses)) + max(following, default=0)

        return rest(first)

    def of(first: str, members: set[str]) -> Traffic:
        weights = [
            lambda a: a.bytes * a.load,
            lambda a: a.bytes * (not a.load),
            lambda a: int(a.load),
            lambda a: int(not a.load),
            lambda a: int(a.copy),
        ]
        return Traffic(*(most(first, members, weigh) for weigh in weights))

    return max((of(*loop) for loop in loops(blocks).items()), key=lambda t: t.copies)


def least(variant: Variant, kernel: str) -> tuple[list[int], list[int]]:
    """The sizes of what two steps must load and store."""
    value, state = VALUE_SIZES[variant.value], 8 if variant.value == 3 else 4
    products, skip, grad_h = [value] * variant.planes, [value] * variant.skip, [value]
    if kernel == "sru_forward":
        return 2 * (products + skip), [value, value, state]  # h, and c after one of the steps
    if kernel == "sru_backward":
        return 2 * (products + skip + grad_h) + [state], 2 * (products + skip)
    if kernel == "sru_forward_summary":
        return [value] * 4, []
    gates = [value] * min(2, variant.planes - 1)
    slope = [state, value] * bool(variant.activation)  # c, and what makes the one between the steps of it
    return 2 * (gates + grad_h) + slope, []
