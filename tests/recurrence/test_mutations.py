"""Planted mistakes are caught, and the script that plants them tells those that are not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT
from support import mutations
from support.mutations import MUTATIONS, Mutation, attempt, nothing_planted, planted

from fairseq_sru.recurrence.build import kernel_text

QUICK = "gates_far_from_zero"  # a test that takes no time


def test_each_mistake_is_in_the_text_as_it_is_now():
    assert len({m.what for m in MUTATIONS}) == len(MUTATIONS) >= 15
    for mutation in MUTATIONS:
        text = planted(mutation)
        assert [name for name in text if text[name] != kernel_text()[name]] == [mutation.file]


@pytest.mark.parametrize("old, count", [("no such text", 0), ("state_t", None)])
def test_text_that_is_not_there_just_once_is_an_error(old, count):
    count = kernel_text()["lanes.h"].count(old) if count is None else count
    with pytest.raises(ValueError, match=f"^a mistake: lanes.h has {count} times what it must have once: {old}$"):
        planted(Mutation("a mistake", "lanes.h", old, "", ""))


SIGMOID = "DEVICE state_t sigmoid("
COUNTED = {
    f"{SIGMOID} ": f"NOT CAUGHT by 1 tests: {QUICK}",
    f"{SIGMOID}(": "DOES NOT COMPILE: ",
    f"{SIGMOID}state_t, state_t) {{ return 1; }}\nDEVICE state_t other(": "test_gates_far_from_zero_are_0_and_1",
}


@pytest.mark.slow
@pytest.mark.parametrize("new", COUNTED)
def test_what_counts_as_caught(new):
    row = attempt(Mutation("a mistake", "sru.cu", SIGMOID, new, QUICK))
    assert row.said.startswith(COUNTED[new])
    assert row.good == row.said.startswith("test_")


@pytest.mark.slow
def test_no_test_is_no_pass(monkeypatch):
    monkeypatch.setattr(mutations, "MUTATIONS", [Mutation("a mistake", "sru.cu", "", "", "no_such_test")])
    assert nothing_planted()[2:] == ("0 tests pass", False)


@pytest.mark.slow
def test_every_mistake_is_caught():
    done = subprocess.run(
        [sys.executable, "-m", "support.mutations"], cwd=ROOT / "tests", capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    caught = [line for line in lines for m in MUTATIONS if line.startswith(m.what + " ") and " test_" in line]
    assert (done.returncode, len(caught)) == (0, len(MUTATIONS)), done.stdout + done.stderr
