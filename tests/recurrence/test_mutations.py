"""Planted mistakes are caught, and the script that plants them tells those that are not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT
from support.mutations import MUTATIONS, planted

from fairseq_sru.recurrence.build import kernel_text

QUICK = "gates_far_from_zero"  # a test that takes no time


def test_each_mistake_is_in_the_text_as_it_is_now():
    assert len({m.what for m in MUTATIONS}) == len(MUTATIONS) >= 15
    for mutation in MUTATIONS:
        text = planted(mutation)
        assert [name for name in text if text[name] != kernel_text()[name]] == [mutation.file]


@pytest.mark.slow
def test_every_mistake_is_caught():
    done = subprocess.run(
        [sys.executable, "-m", "support.mutations"], cwd=ROOT / "tests", capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    caught = [line for line in lines for m in MUTATIONS if line.startswith(m.what + " ") and " test_" in line]
    assert (done.returncode, len(caught)) == (0, len(MUTATIONS)), done.stdout + done.stderr
