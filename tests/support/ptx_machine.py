"""Runs PTX, the assembly that NVRTC makes of the kernels, for all threads of a launch at once.

A machine has one memory, in which each buffer lies between gaps. It stops at an access outside of a buffer or of an
address that isn't a multiple of the access's size, at a read of what nobody has written, and at a byte written twice.
Copies to shared memory are made when they are waited for, at the latest moment that a GPU may take. Threads may part:
those that are furthest behind go on. Approximate instructions round correctly here, or are off as they are told.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[Any]
GAP = 256  # bytes between buffers
FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
SIZES = {"8": np.uint8, "16": np.uint16, "32": np.uint32, "64": np.uint64}
ORDERS: dict[str, Callable[..., Any]] = {
    **dict(zip(("lt", "lo"), [np.less] * 2, strict=True)),
    **dict(zip(("le", "ls"), [np.less_equal] * 2, strict=True)),
    **dict(zip(("gt", "hi"), [np.greater] * 2, strict=True)),
    **dict(zip(("ge", "hs"), [np.greater_equal] * 2, strict=True)),
    "eq": np.equal,
    "ne": np.not_equal,
}


def kind(name: str) -> Any:
    """The numpy type of what PTX calls b32, s64, f32."""
    if name in FLOATS:
        return FLOATS[name]
    signed = {"8": np.int8, "16": np.int16, "32": np.int32, "64": np.int64}
    return (signed if name[0] == "s" else SIZES)[name[1:]]


def raw(values: Words) -> Words:
    """The same bits, as an unsigned number."""
    return values.view(SIZES[str(8 * values.dtype.itemsize)]) if values.dtype != bool else values


class Memory:
    """Buffers at made-up addresses."""

    def __init__(self) -> None:
        self.bytes = np.zeros(GAP, np.uint8)
        self.state = np.zeros(GAP, np.uint8)  # of a byte: 0 outside, 1 to be written, 2 to be read, 3 written
        self.base = 1 << 32  # addresses don't fit 32 bits

    def put(self, content: bytes, offset: int = 0, written: bool = False) -> int:
        """A new buffer's address, offset bytes after one that is a multiple of 256; written: for a kernel to write."""
        start = -(-len(self.bytes) // 256) * 256 + offset
        size = start + len(content) + GAP
        self.bytes, self.state = (
            np.resize(np.append(a, np.zeros(size)), size).astype(np.uint8) for a in (self.bytes, self.state)
        )
        self.bytes[start : start + len(content)] = np.frombuffer(content, np.uint8)
        self.state[start : start + len(content)] = 1 if written else 2
        return self.base + start

    def get(self, address: int, size: int) -> bytes:
        start = address - self.base
        return self.bytes[start : start + size].tobytes()

    def check_written(self, address: int, size: int) -> None:
        start = address - self.base
        assert (self.state[start : start + size] == 3).all(), "a kernel left some of its output out"

    def where(self, addresses: Words, size: int) -> Words:
        """Return the numbers of the bytes of each access."""
        assert not (addresses % size).any(), f"an access of {size} bytes isn't aligned"
        start = addresses.astype(np.int64) - self.base
        assert ((start >= 0) & (start + size <= len(self.bytes))).all(), "an access outside of memory"
        places: Words = start[:, None] + np.arange(size)
        return places

    def load(self, addresses: Words, size: int) -> Words:
        places = self.where(addresses, size)
        assert (self.state[places] == 2).all(), "a read outside of what the kernel is to read"
        loaded: Words = self.bytes[places]
        return loaded

    def store(self, addresses: Words, values: Words) -> None:
        places = self.where(addresses, values.shape[1])
        assert (self.state[places] == 1).all(), "a write outside of what the kernel is to write, or for a second time"
        assert len(np.unique(places)) == places.size, "two threads write the same byte"
        self.bytes[places], self.state[places] = values, 3


class Line(NamedTuple):
    """An instruction: its words between the points, its operands, and the predicate that it depends on."""

    words: list[str]
    operands: list[str]
    predicate: str | None
    wanted: bool


def parse(ptx: str, kernel: str) -> tuple[list[Line], dict[str, int], list[str]]:
    """The lines of a kernel, where its labels are, and the names of its parameters."""
    head, _, rest = ptx.split(f".entry {kernel}(")[1].partition(")")
    body = rest.split("\n{", 1)[1].split("\n}")[0]
    lines: list[Line] = []
    labels: dict[str, int] = {}
    for text in body.splitlines():
        text = text.split("//")[0].strip().strip("{}").strip() if "{" not in text.strip("{}") else text.strip()
        label = re.fullmatch(r"(\$\w+):", text)
        if label:
            labels[label[1]] = len(lines)
            continue
        for part in text.split(";"):
            found = re.fullmatch(r"(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", part.strip())
            if found and not part.strip().startswith("."):
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", found[4])
                lines.append(Line(found[3].split("."), operands, found[2], not found[1]))
    return lines, labels, re.findall(r"(\w+)(?=,|\s*$)", re.sub(r"\.\w+", "", head), re.M)


def bfloat16(values: Words) -> Words:
    """float32 rounded to the nearest bfloat16, ties to even, as its bits."""
    b = values.view(np.uint32).astype(np.uint64)
    rounded = np.where(np.isnan(values), 0x7FFF, b + 0x7FFF + (b >> 16 & 1) >> 16)
    return rounded.astype(np.uint16)


def flushed(values: Words) -> Words:
    return np.where(np.abs(values) < np.float32(2**-126), np.copysign(np.float32(0), values), values)


def divided(a: Words, b: Words) -> Words:
    return (
        np.sign(a.astype(object)) * np.sign(b.astype(object)) * (abs(a.astype(object)) // abs(b.astype(object)))
    ).astype(a.dtype)


BINARY: dict[str, Callable[[Words, Words], Words]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.fmin,
    "max": np.fmax,
    "div": lambda a, b: a / b if a.dtype.kind == "f" else divided(a, b),
    "rem": lambda a, b: a - b * divided(a, b),
    "shl": lambda a, b: np.where(b < 8 * a.dtype.itemsize, a << np.minimum(b, 8 * a.dtype.itemsize - 1), 0).astype(
        a.dtype
    ),
    "shr": lambda a, b: np.where(
        b < 8 * a.dtype.itemsize, a >> np.minimum(b, 8 * a.dtype.itemsize - 1), -1 * (a < 0)
    ).astype(a.dtype),
}
UNARY: dict[str, Callable[[Words], Words]] = {
    "mov": lambda a: a,
    "cvta": lambda a: a,
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
    "ex2": lambda a: flushed(np.exp2(flushed(a).astype(np.float64)).astype(np.float32)),
    "rcp": lambda a: flushed((1 / flushed(a).astype(np.float64)).astype(np.float32)),
}


class Machine:
    """A launch of a kernel: run() runs its threads to their end.

    Args:
        ptx: the module's text.
        kernel: the name.
        arguments: numbers, as bytes of what the parameters have.
        grid, block: how many blocks of how many threads.
        off: units in the last place that results of instructions, by name, are off.
    """

    def __init__(
        self,
        ptx: str,
        kernel: str,
        memory: Memory,
        arguments: list[bytes],
        grid: int,
        block: int,
        off: dict[str, int] | None = None,
    ) -> None:
        self.off = off or {}
        self.lines, self.labels, names = parse(ptx, kernel)
        self.memory = memory
        assert len(names) == len(arguments), (names, len(arguments))
        self.parameters = dict(zip(names, arguments, strict=True))
        self.count = grid * block
        number = np.arange(self.count, dtype=np.uint32)
        self.registers: dict[str, Words] = {
            "%tid.x": number % block,
            "%ctaid.x": number // block,
            "%ntid.x": np.full(self.count, block, np.uint32),
        }
        self.places_of: dict[str, int] = {}  # of arrays in shared memory, those of other kernels, too
        size = 0
        for name, length in re.findall(r"\.shared \.align \d+ \.b8 (\w+)\[(\d+)\];", ptx):
            self.places_of[name] = size
            size += int(length)
        self.shared = np.zeros((grid, size), np.uint8)  # of each block
        self.arrived = np.zeros(self.shared.shape, bool)
        self.block = block
        self.copies: list[list[list[tuple[int, int, int]]]] = [
            [[]] for _ in range(self.count)
        ]  # of a thread, in batches

    def run(self) -> None:
        at = np.zeros(self.count, np.int64)  # the next line of each thread
        end = len(self.lines)
        stops = sorted({*self.labels.values(), end})
        with np.errstate(all="ignore"):
            while (first := at.min()) < end:
                self.active = np.flatnonzero(at == first)
                until = next(s for s in stops if s > first)
                number = int(first)
                while number < until:
                    line = self.lines[number]
                    number += 1
                    if line.words[0] in ("bra", "ret"):
                        going = self.active
                        if line.predicate:
                            going = going[self.registers[line.predicate][going] == line.wanted]
                        staying = np.setdiff1d(self.active, going, assume_unique=True)
                        at[going] = end if line.words[0] == "ret" else self.labels[line.operands[-1]]
                        self.active = staying
                        if not len(staying):
                            break
                    else:
                        self.do(line)
                at[self.active] = until

    # ------------------------------------------------------------ operands

    def read(self, operand: str, wanted: Any) -> Words:
        """The active threads' values of an operand, of a numpy type."""
        if operand.startswith(("0f", "0d")):
            bits = np.array(int(operand[2:], 16), np.uint32 if operand[1] == "f" else np.uint64)
            return np.full(len(self.active), bits.view(wanted), wanted)
        if operand[0] in "-0123456789":
            bits = np.array(int(operand, 0) & (1 << 64) - 1, np.uint64)
            narrow = SIZES[str(8 * np.dtype(wanted).itemsize)]
            return np.full(len(self.active), bits.astype(narrow).view(wanted), wanted)
        if operand in self.places_of:
            return np.full(len(self.active), self.places_of[operand], wanted)
        values = self.registers[operand][self.active]
        if values.dtype == bool or wanted is bool:
            return values
        return values.astype(SIZES[str(8 * np.dtype(wanted).itemsize)]).view(wanted)

    def write(self, operand: str, values: Words) -> None:
        values = raw(np.ascontiguousarray(values))
        if operand not in self.registers or self.registers[operand].dtype != values.dtype:
            self.registers[operand] = np.zeros(self.count, values.dtype)
        self.registers[operand][self.active] = values

    def do(self, line: Line) -> None:
        """An instruction of the active threads."""
        active = self.active
        if line.predicate:
            self.active = active[self.registers[line.predicate][active] == line.wanted]
        if len(self.active):
            name, *words = line.words
            getattr(self, f"do_{name}", functools.partial(self.arithmetic, name))(words, line.operands)
        self.active = active

    # ------------------------------------------------------------ memory

    def address(self, operand: str) -> Words:
        name, _, offset = operand.strip("[]").partition("+")
        return self.read(name, np.uint64) + np.uint64(int(offset or 0) & (1 << 64) - 1)

    def places(self, operand: str, size: int) -> tuple[Words, Words]:
        """Return the blocks of an access to shared memory, and the bytes there."""
        address = self.address(operand).astype(np.uint32).astype(np.int64)
        assert not (address % size).any()
        return (self.active // self.block)[:, None], address[:, None] + np.arange(size)

    def do_cp(self, words: list[str], operands: list[str]) -> None:
        if words[1] == "commit_group":
            for thread in self.active:
                self.copies[thread].append([])
        elif words[1] == "wait_group":
            for thread in self.active:
                batches = self.copies[thread]
                done = batches[: max(0, len(batches) - 1 - int(operands[0]))]
                del batches[: len(done)]
                for to, start, size in (copy for batch in done for copy in batch):
                    self.shared[thread // self.block, to : to + size] = self.memory.bytes[start : start + size]
                    self.arrived[thread // self.block, to : to + size] = True
        else:
            size = int(operands[2])
            blocks, places = self.places(operands[0], size)
            source = self.address(operands[1])
            start = self.memory.where(source, size)[:, 0]
            inside = self.memory.state[self.memory.where(source, size)] == 2
            assert inside.any(1).all() and (size == 4 or inside.all()), "a copy from outside of what is to be read"
            self.arrived[blocks, places] = False
            for thread, to, place in zip(self.active, places[:, 0], start, strict=True):
                self.copies[thread][-1].append((int(to), int(place), size))

    def do_ld(self, words: list[str], operands: list[str]) -> None:
        to = operands[0].strip("{}").replace(",", " ").split()
        type_ = kind(words[-1])
        size = np.dtype(type_).itemsize
        if words[0] == "param":
            name, _, offset = operands[1].strip("[]").partition("+")
            value = np.frombuffer(self.parameters[name], type_, 1, int(offset or 0))
            return self.write(to[0], np.repeat(value, len(self.active)))
        if words[0] == "shared":
            blocks, places = self.places(operands[1], size * len(to))
            loaded = np.where(self.arrived[blocks, places], self.shared[blocks, places], 255)  # NaN where nothing came
        else:
            loaded = self.memory.load(self.address(operands[1]), size * len(to))
        for i, register in enumerate(to):
            part = np.ascontiguousarray(loaded[:, i * size : (i + 1) * size]).view(type_)[:, 0]
            self.write(register, part.astype(np.uint16) if size == 1 else part)
        return None

    def do_st(self, words: list[str], operands: list[str]) -> None:
        parts = [self.read(r, kind(words[-1])) for r in operands[1].strip("{}").replace(",", " ").split()]
        self.memory.store(self.address(operands[0]), np.stack(parts, 1).view(np.uint8))

    # ------------------------------------------------------------ numbers

    def do_mov(self, words: list[str], operands: list[str]) -> None:
        to, source = operands
        type_ = bool if words[-1] == "pred" else kind(words[-1])
        if to[0] == "{":
            whole = self.read(source, type_)
            parts = to.strip("{}").replace(",", " ").split()
            split = whole[:, None].view(SIZES[str(8 * whole.dtype.itemsize // len(parts))])
            for i, register in enumerate(parts):
                if register != "_":
                    self.write(register, split[:, i])
        elif source[0] == "{":
            names = source.strip("{}").replace(",", " ").split()
            narrow = SIZES[str(8 * np.dtype(type_).itemsize // len(names))]
            self.write(to, np.stack([self.read(n, narrow) for n in names], 1).view(type_)[:, 0])
        else:
            self.write(to, self.read(source, type_))

    def do_setp(self, words: list[str], operands: list[str]) -> None:
        type_ = kind(words[-1])
        a, b = (self.read(o, type_) for o in operands[1:3])
        order = words[0]
        unordered = order.endswith("u") and order not in ("equ",) and type_ in FLOATS.values()
        got = ORDERS[order[:2]](a, b)
        if type_ in FLOATS.values():
            nan = np.isnan(a) | np.isnan(b)
            got = got | nan if unordered or order == "equ" else got & ~nan
            if order == "num":
                got = ~nan
            if order == "nan":
                got = nan
        if len(operands) > 3:
            other = self.registers[operands[3].lstrip("!")][self.active] != operands[3].startswith("!")
            got = got & other if words[1] == "and" else got | other
        self.write(operands[0], got)

    def do_selp(self, words: list[str], operands: list[str]) -> None:
        a, b = (self.read(o, kind(words[-1])) for o in operands[1:3])
        self.write(operands[0], np.where(self.registers[operands[3]][self.active], a, b))

    def do_cvt(self, words: list[str], operands: list[str]) -> None:
        to, source = words[-2:]
        if to in ("f16x2", "bf16x2"):  # the first one is the upper half
            high, low = (self.read(o, np.float32) for o in operands[1:3])
            halves = [bfloat16(v) if to == "bf16x2" else raw(v.astype(np.float16)) for v in (low, high)]
            return self.write(operands[0], np.stack(halves, 1).view(np.uint32)[:, 0])
        if to == "bf16":
            return self.write(operands[0], bfloat16(self.read(operands[1], np.float32)))
        return self.write(operands[0], self.read(operands[1], kind(source)).astype(kind(to)))

    def do_fma(self, words: list[str], operands: list[str]) -> None:
        type_ = kind(words[-1])
        a, b, c = (self.read(o, type_).astype(np.longdouble) for o in operands[1:])
        self.write(operands[0], (a * b + c).astype(type_))

    def do_shf(self, words: list[str], operands: list[str]) -> None:
        assert words == ["r", "wrap", "b32"]
        low, high, by = (self.read(o, np.uint32).astype(np.uint64) for o in operands[1:])
        self.write(operands[0], ((high << 32 | low) >> by % 32).astype(np.uint32))

    def do_mad(self, words: list[str], operands: list[str]) -> None:
        type_ = kind(words[-1])
        wide = {np.int32: np.int64, np.uint32: np.uint64}[type_] if words[0] == "wide" else type_
        a, b = (self.read(o, type_).astype(wide) for o in operands[1:3])
        self.write(operands[0], a * b + (self.read(operands[3], wide) if len(operands) > 3 else wide(0)))

    def arithmetic(self, name: str, words: list[str], operands: list[str]) -> None:
        type_ = bool if words[-1] == "pred" else kind(words[-1])
        if name == "mul" and words[0] == "wide":
            return self.do_mad(words, operands)
        assert "hi" not in words and "sat" not in words, (name, words)
        values = [self.read(o, type_) for o in operands[1:]]
        if name in ("shl", "shr"):
            values[1] = self.read(operands[2], np.uint32).astype(type_)
        if type_ in FLOATS.values():
            assert name in ("ex2", "rcp") or "ftz" not in words
        function: Any = (UNARY if len(values) == 1 else BINARY)[name]
        result = function(*values).astype(type_)
        if name in self.off:
            step = np.where(np.isfinite(result) & (result != 0), self.off[name], 0).astype(np.int32)
            result = (result.view(np.int32) + step).view(type_)
        return self.write(operands[0], result)
