"""Reads machine code for NVIDIA GPUs (SASS, sm_80 and later) as NVRTC gives it: the loop over the steps of a kernel,
how many instructions it has, and how long what it reads is on its way before something waits for it.

    PYTHONPATH=.:tests python -m support.sass [TARGET ...]

prints a table for the forms that matter most; targets: sm_80, sm_90, sm_100 if not given.

An instruction has 16 bytes. Its lowest 12 bits say what it does. Bits 105 and up are the scheduler's: the scoreboard
that it sets (bits 110 to 112, 7 for none) and those that it waits for (bits 116 to 121).
"""

from __future__ import annotations

import itertools
import re
import struct
import sys
from typing import NamedTuple

from fairseq_sru.recurrence import nvrtc
from fairseq_sru.recurrence.cuda import steps_ahead
from fairseq_sru.recurrence.kernels import DEFAULT_VARIANT, KERNELS

LOAD, COPY, STORE, SPECIAL, BRANCH = 0x981, 0xFAE, 0x986, 0x308, 0x947  # LDG, LDGSTS, STG, MUFU, BRA
END_BATCH, WAIT = 0x9AF, 0x91A  # LDGDEPBAR ends a batch of copies; DEPBAR waits for all but the newest so many
TARGETS = ("sm_80", "sm_90", "sm_100")
FORMS = ((0, 1), (0, 4), (2, 1), (2, 8))  # VALUE and VEC: float and bfloat16, scalar and as wide as can be


class Instruction(NamedTuple):
    """sets: a scoreboard, None for none. waits: for which. all_but: of WAIT. to: of BRANCH, which instruction."""

    operation: int
    sets: int | None
    waits: list[int]
    all_but: int
    to: int | None


def section(elf: bytes, name: str) -> bytes:
    """Return the content of a section of a 64-bit ELF file.

    Raises:
        KeyError: there is none of this name.
    """
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    for header in headers:
        start = headers[names][4] + header[0]
        if elf[start : elf.index(b"\0", start)].decode() == name:
            return elf[header[4] : header[4] + header[5]]
    raise KeyError(name)


def instructions(cubin: bytes, kernel: str, target: str) -> list[Instruction]:
    """Instructions of a kernel, in the order of their addresses; target: sm_XX, which the code is for."""
    found = []
    for number, (low, high) in enumerate(struct.iter_unpack("<QQ", section(cubin, f".text.{kernel}"))):
        operation, control = low & 0xFFF, high >> 41
        offset = (low | high << 64) >> 34 & (1 << 48) - 1  # of a branch, in words, from the next instruction
        offset -= offset >> 47 << 48
        if int(target[3:]) >= 90:
            offset = offset << 8 | low >> 16 & 255
        sets = control >> 5 & 7
        waits = [s for s in range(6) if control >> 11 >> s & 1]
        to = number + 1 + offset // 4 if operation == BRANCH else None
        found.append(Instruction(operation, None if sets == 7 else sets, waits, low >> 38 & 63, to))
    return found


class Loop(NamedTuple):
    """The loop over the steps, a batch of them a round.

    Args:
        instructions, loads, stores: how many; loads without copies to shared memory.
        rounds: of work between the end of a batch of copies and the wait for it, the least of all waits.
        others: instructions that wait for copies and should not.
    """

    instructions: int
    loads: int
    stores: int
    rounds: float
    others: int


def step_loop(code: list[Instruction]) -> Loop:
    """The loop with most copies."""
    loops = [code[i.to : n + 1] for n, i in enumerate(code) if i.to is not None and i.to <= n]
    body = max(loops, key=lambda part: sum(i.operation == COPY for i in part))
    count = {o: sum(i.operation == o for i in body) for o in (LOAD, STORE, SPECIAL, END_BATCH, WAIT)}
    assert count[END_BATCH] and count[WAIT] and count[SPECIAL]
    (scoreboard,) = {i.sets for i in body if i.operation == END_BATCH}
    done, ends, rounds = 0, [], []
    for round_ in range(9):  # in the last the waits are as in any later one
        for one in body:
            done += one.operation == SPECIAL  # work is measured by its exponentials and reciprocals
            if one.operation == END_BATCH:
                ends.append(done)
            elif one.operation == WAIT and round_ == 8:
                rounds.append((done - ends[-1 - one.all_but]) / count[SPECIAL])
    others = sum(scoreboard in i.waits for i in body)
    return Loop(len(body), count[LOAD], count[STORE], min(rounds), others)


def compiler() -> nvrtc.Compiler:
    from cuda import pathfinder

    return nvrtc.Compiler(str(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path))


def main(targets: list[str]) -> None:
    print("target  PAD VALUE VEC AHEAD  kernel        registers  instructions an element  steps on the way")
    made = compiler()
    for target in targets:
        for pad, (value, vec) in itertools.product((1, 0), FORMS):
            variant = DEFAULT_VARIANT._replace(value=value, pad=pad)
            ahead = steps_ahead(variant, vec)
            code, log = made.compile((*variant.defines(vec=vec, ahead=ahead), "--ptxas-options=-v"), target)
            used = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", log, re.S))
            for kernel in KERNELS:
                loop = step_loop(instructions(code, kernel, target))
                each = loop.instructions / (vec * ahead)
                line = f"{target:7} {pad:3} {value:5} {vec:3} {ahead:5}  {kernel:12} {used[kernel]:>10} {each:24.1f}"
                print(f"{line} {loop.rounds * ahead:17.1f}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(TARGETS))
