"""Mistakes that one makes in kernels: planted in the source one at a time, each must be caught by test_kernels.py.

    PYTHONPATH=tests python -m support.mutations

prints a table of the mistakes, the seconds and the test that catches each; the exit status is 1 if one isn't caught, if
one doesn't compile, or if a test fails with nothing planted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

from fairseq_sru.recurrence import build


class Mutation(NamedTuple):
    """A mistake.

    Args:
        what: the mistake in words.
        file: of kernels/.
        old: text that is in the file once.
        new: what is there instead.
        tests: of tests/recurrence/test_kernels.py that should catch it, an expression as for ``pytest -k``.
    """

    what: str
    file: str
    old: str
    new: str
    tests: str


# ---------------------------------------------------------------- the mistakes

# -k of the tests that most mistakes show in: all forms of a GPU with v1 and v2 cells, chunks, memory.
V1 = "gpu_form_equals and k3-input-float32-identity"
V2 = "gpu_form_equals and k3-input-float32-tanh-v"
CHUNKS = "chunks_equal and k3-input-float32-tanh"
SANITIZED = "out_of_bounds and not any_option"

MUTATIONS = [
    # one step's maths, forward
    Mutation("sign in the sigmoid", "sru.cu", "exponential(-x, -y)", "exponential(x, y)", V1),
    Mutation(
        "forget gate and reset gate swapped",
        "sru.cu",
        "return u[1][j]; }\n    DEVICE state_t reset(int j) const { return PLANES > 2 ? u[PLANES > 2 ? 2 : 0][j]",
        "return u[PLANES > 2 ? 2 : 1][j]; }\n    DEVICE state_t reset(int j) const { return PLANES > 2 ? u[1][j]",
        V1,
    ),
    Mutation(
        "reset gate sees the state after the step",
        "sru.cu",
        "reset_gate(p, of.reset(j), before)",
        "reset_gate(p, of.reset(j), after)",
        V2,
    ),
    Mutation(
        "dropout mask on the skip term too",
        "sru.cu",
        "r * (activation(c) * p.mask) + (state_t(1) - r) * skip",
        "(r * activation(c) + (state_t(1) - r) * skip) * p.mask",
        V2,
    ),
    Mutation(
        "relu makes NaN 0",
        "sru.cu",
        "c < state_t(0) ? state_t(0) : c;",
        "c > state_t(0) ? c : state_t(0);",
        "special_numbers_propagate and k3-input-bfloat16-relu",
    ),
    # one step's maths, backward
    Mutation("slope of tanh by c instead of tanh(c)", "sru.cu", "state_t(1) - g * g", "state_t(1) - c * c", V2),
    Mutation(
        "sign of the forget gate's gradient", "sru.cu", "(c_before - candidate) * f;", "(candidate - c_before) * f;", V1
    ),
    Mutation("reset gate's gradient without the dropout mask", "sru.cu", "(g * p.mask - skip)", "(g - skip)", V2),
    Mutation(
        "no gradient through what the reset gate sees of the state",
        "sru.cu",
        "carry += d.forget * p.v_f + d.reset * p.v_r;",
        "carry += d.forget * p.v_f;",
        V2,
    ),
    Mutation(
        "gradient of v with the state after the step",
        "sru.cu",
        "sum_vf[j] += d.forget * before;",
        "sum_vf[j] += d.forget * c[j];",
        V2,
    ),
    Mutation(
        "gradient of the skip term without its scale", "sru.cu", "OWN_SKIP ? d.skip : d.skip * scale", "d.skip", V1
    ),
    Mutation(
        "gradients of the gates swapped",
        "sru.cu",
        "out1.set(j, d.forget);\n                    if (PLANES > 2) out2.set(j, d.reset);",
        "out1.set(j, d.reset);\n                    if (PLANES > 2) out2.set(j, d.forget);",
        V1,
    ),
    # directions, padding
    Mutation(
        "each direction starts at the other's end",
        "sru.cu",
        "reverse = direction == 1;",
        "reverse = direction == 0;",
        V2,
    ),
    Mutation(
        "padding of the backward direction read in forward order",
        "sru.cu",
        "{pad + int64(first) * batch + b, back ? -int64(batch) : int64(batch)}",
        "{pad + int64(begin) * batch + b, int64(batch)}",
        V2,
    ),
    Mutation(
        "h is the state at padding",
        "sru.cu",
        "out.set(j, padded ? state_t(0) : y);",
        "out.set(j, padded ? c[j] : y);",
        V1,
    ),
    # steps
    Mutation(
        "states kept one step too early",
        "sru.cu",
        "me.states(c_all, me.saved_begin + 1, FORWARD);",
        "me.states(c_all, me.saved_begin, FORWARD);",
        V1,
    ),
    Mutation(
        "steps are asked for into the half that comes next",
        "steps.h",
        "take(i, EVERY);\n        ask();\n        ring.turn();",
        "take(i, EVERY);\n        ring.turn();\n        ask();",
        V1,
    ),
    Mutation(
        "prefetch beyond the last step",
        "steps.h",
        "EVERY * i + k < left);",
        "true);",
        SANITIZED,
    ),
    Mutation(
        "steps beyond the last are done",
        "steps.h",
        "++k) if (k < (steps))",
        "++k)",
        SANITIZED,
    ),
    Mutation(
        "steps that fill no batch are forgotten",
        "steps.h",
        "if (EVERY * i < count) take",
        "if (EVERY * i + 1 < count) take",
        SANITIZED,
    ),
    Mutation(
        "two steps are taken where one is left",
        "steps.h",
        "count - EVERY * i < EVERY ? int(count - EVERY * i) : EVERY",
        "EVERY",
        SANITIZED,
    ),
    # states that are made again
    Mutation(
        "a padded step changes the state that is made again",
        "sru.cu",
        "middle[j] = padded ? before : next_state",
        "middle[j] = next_state",
        V1,
    ),
    Mutation(
        "the state between two steps is the one before them",
        "sru.cu",
        "const state_t before = k + 1 < steps ? middle[j] : in.c[j],",
        "const state_t before = in.c[j],",
        V1,
    ),
    Mutation(
        "the state between two steps is the one after them",
        "sru.cu",
        "after = k ? middle[j] : c[j];",
        "after = c[j];",
        V1,
    ),
    Mutation(
        "the summary reads the candidates of the later of two steps",
        "sru.cu",
        "(EVERY - 1) * firsts.stride)",
        "0)",
        CHUNKS,
    ),
    Mutation(
        "the state is saved after the other of two steps",
        "sru.cu",
        "(me.steps() - 1) % EVERY",
        "me.steps() % EVERY",
        V1,
    ),
    Mutation(
        "a number of 16 bits from the wrong half of its word",
        "steps.h",
        "bits += more;",
        "",
        "gpu_form_equals and bfloat16",
    ),
    # chunks
    Mutation(
        "c0 is 0 for all chunks but the first",
        "sru.cu",
        "fill(c, c0, me.at(me.b, 1, 0), me.lanes, 0);",
        "fill(c, me.chunk ? nullptr : c0, me.at(me.b, 1, 0), me.lanes, 0);",
        CHUNKS,
    ),
    Mutation("the chunk before is passed over", "sru.cu", "q < me.chunk; ++q", "q < me.chunk - 1; ++q", CHUNKS),
    Mutation(
        "padding counts in a chunk's summary",
        "sru.cu",
        "constant[j] = padded ? constant[j] : after;",
        "constant[j] = after;",
        CHUNKS,
    ),
    Mutation(
        "gradient of a chunk's last step doesn't see the next chunk's forget gate",
        "sru.cu",
        "before = f * (constant[j] + through)",
        "before = f * constant[j] + through",
        CHUNKS,
    ),
    Mutation(
        "bias gradient of the last chunk lost",
        "sru.cu",
        "if (grad_bias) spill(",
        "if (grad_bias && (me.chunk == 0 || me.end < length)) spill(",
        SANITIZED,
    ),
    Mutation(
        "the last chunk as long as the others",
        "sru.cu",
        "begin + chunk_length < length ? begin + chunk_length : length;",
        "begin + chunk_length;",
        SANITIZED,
    ),
    # threads and lanes
    Mutation(
        "threads beyond the last chunk work", "sru.cu", "any = chunk * chunk_length < length;", "any = true;", SANITIZED
    ),
    Mutation(
        "a last group of channels as wide as the others",
        "sru.cu",
        "lanes = int(half - group * GROUP < GROUP ? half - group * GROUP : GROUP);",
        "lanes = int(GROUP);",
        SANITIZED,
    ),
    Mutation(
        "threads left over where the cores don't divide them",
        "host.h",
        "launch->threads * (i + 1) / n;",
        "launch->threads / n * (i + 1);",
        "number_of_threads and k3-input-float32-tanh",
    ),
    # numbers
    Mutation(
        "bfloat16 cut off instead of rounded",
        "host.h",
        "(b + 0x7fff + (b >> 16 & 1)) >> 16",
        "b >> 16",
        "16_bit_conversions and torch.bfloat16",
    ),
    Mutation(
        "ties of float16 away from zero",
        "host.h",
        "size + 0xc8000fff + (size >> 13 & 1)",
        "size + 0xc8001000",
        "16_bit_conversions and torch.float16",
    ),
    Mutation(
        "tanh cancels near 0",
        "host.h",
        "minus_one = e.p * s + (s - 1.f)",
        "minus_one = (e.p * s + s) - 1.f",
        "functions_are_exact and map_tanh",
    ),
    # what a GPU pays
    Mutation(
        "backward pass reads every state twice",
        "sru.cu",
        "            c = in.c;\n        });\n\n    const int64 part",
        "            c.load(states.rows.next());\n        });\n\n    const int64 part",
        "moves_no_byte_more and k3-input-float32-tanh",
    ),
]

# ---------------------------------------------------------------- planting, and looking


class Outcome(NamedTuple):
    """Result of tests that ran until one failed.

    Args:
        ran: how many did.
        failed: the one that failed, "" if none did.
        said: what it failed with.
        compiled: that isn't the compiler's complaint.
    """

    ran: int = 0
    failed: str = ""
    said: str = ""
    compiled: bool = True


class Looker:
    """A plugin of pytest that notes the outcome."""

    def __init__(self) -> None:
        self.outcome = Outcome()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.skipped:
            self.outcome = self.outcome._replace(ran=self.outcome.ran + 1)

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo[None]) -> None:
        assert call.excinfo is not None
        error = call.excinfo.value
        compilers = (build.Unavailable, subprocess.CalledProcessError)
        compiled = not any(isinstance(e, compilers) for e in (error, error.__cause__))
        self.outcome = self.outcome._replace(failed=node.name, said=str(error), compiled=compiled)


def look(folder: str, tests: str) -> None:
    """Run tests with the kernels of another folder until one fails. The last line printed is the outcome."""
    build.kernel_folder = lambda: Path(folder)  # type: ignore[assignment]
    looker = Looker()
    file = str(ROOT / "tests" / "recurrence" / "test_kernels.py")
    pytest.main([file, "-k", tests, "-x", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"], plugins=[looker])
    print(f"\n{json.dumps(looker.outcome)}")


LOOK = "import sys; from support import mutations; mutations.look(*sys.argv[1:])"


def outcome(text: dict[str, str], tests: str) -> Outcome:
    """Run tests on a text, in the form of :func:`build.kernel_text`. In a process of its own, since compiled
    kernels stay loaded."""
    with tempfile.TemporaryDirectory(prefix="mutation_") as folder:
        for name, content in text.items():
            Path(folder, name).write_text(content)
        environment = {
            **os.environ,
            "FAIRSEQ_SRU_CACHE": f"{folder}/cache",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-c", LOOK, folder, tests]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"tests {tests!r} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return Outcome(*json.loads(done.stdout.splitlines()[-1]))


def planted(mutation: Mutation) -> dict[str, str]:
    """The text with the mistake.

    Raises:
        ValueError: the old text isn't there just once.
    """
    text = dict(build.kernel_text())
    count = text[mutation.file].count(mutation.old)
    if count != 1:
        raise ValueError(f"{mutation.what}: {mutation.file} has {count} times what it must have once: {mutation.old}")
    text[mutation.file] = text[mutation.file].replace(mutation.old, mutation.new)
    return text


class Row(NamedTuple):
    """An entry of the table; good: the source is as it should be."""

    what: str
    seconds: float
    said: str
    good: bool


def nothing_planted() -> Row:
    """The text as it is, under all tests that are to catch something."""
    start = time.monotonic()
    found = outcome(build.kernel_text(), " or ".join(f"({tests})" for tests in sorted({m.tests for m in MUTATIONS})))
    said = f"FAILS: {found.failed}: {found.said}" if found.failed else f"{found.ran} tests pass"
    return Row("(nothing)", time.monotonic() - start, said, found.ran > 0 and not found.failed)


def attempt(mutation: Mutation) -> Row:
    """Plant a mistake and look what catches it."""
    start = time.monotonic()
    found = outcome(planted(mutation), mutation.tests)
    said = found.failed or f"NOT CAUGHT by {found.ran} tests: {mutation.tests}"
    if not found.compiled:
        said = f"DOES NOT COMPILE: {found.said}"
    return Row(mutation.what, time.monotonic() - start, said, bool(found.failed) and found.compiled)


def rows() -> Iterator[Row]:
    """The table, as it comes; as many mistakes at once as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        first = pool.submit(nothing_planted)
        others = pool.map(attempt, MUTATIONS)
        yield first.result()
        yield from others


def main() -> int:
    width = max(len(m.what) for m in MUTATIONS)
    print(f"{'mistake':{width}}  seconds  caught by")
    good = True
    for row in rows():
        print(f"{row.what:{width}}  {row.seconds:7.1f}  {row.said}", flush=True)
        good &= row.good
    print("all are caught" if good else "NOT ALL ARE CAUGHT")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
