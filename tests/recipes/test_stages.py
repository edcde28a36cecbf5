"""Stages and processes: what is done once, and what ends with the comparison."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from common.errors import RecipeError
from comparison import fairseq_output, processes, stages
from conftest import ROOT, ended


def python(code: str) -> list[str]:
    return ["python", "-c", code]


class Counter:
    """Runs a stage that writes what it reads, and counts."""

    def __init__(self, folder: Path) -> None:
        self.shown: list[str] = []
        self.stages = stages.Stages(folder / "stamps", self.shown.append)
        self.input, self.output, self.log = folder / "in", folder / "out", folder / "logs" / "log"
        self.input.write_text("x")

    def __call__(self, flag: str = "a", **more: Any) -> int:
        before = len(self.shown)
        code = f"print({flag!r}); open({str(self.output)!r}, 'w').write(open({str(self.input)!r}).read())"
        self.stages.command("one two", python(code), inputs=[self.input], outputs=[self.output], log=self.log, **more)
        return len(self.shown) - before


def test_a_stage_is_done_again_when_something_changed(tmp_path):
    run = Counter(tmp_path)
    assert (run(), run()) == (1, 0)
    assert run.log.read_text() == "a\n"
    assert (run("b"), run("b")) == (1, 0)  # the command
    run.input.write_text("y")
    assert (run("b"), run("b")) == (1, 0)  # the contents of an input
    assert run.output.read_text() == "y"
    run.input.write_text("y")
    os.utime(run.input, (1, 1))
    assert run("b") == 0  # nothing but the time of change
    run.output.unlink()
    assert (run("b"), run.output.read_text()) == (1, "y")


def test_a_stage_that_was_killed_begins_anew_or_goes_on(tmp_path):
    run = Counter(tmp_path)
    run()
    stamp = run.stages.stamp("one two")
    (tmp_path / "stamps" / "one-two.json").write_text(json.dumps({**stamp, "done": False}))
    run.output.write_text("half")
    told: list[dict[str, Any]] = []
    assert run(resume=lambda stamp: told.append(stamp)) == 0  # None: nothing is left to do
    assert told[0]["key"] == stamp["key"]
    assert run.output.read_text() == "half"  # what a command goes on from is kept
    (tmp_path / "stamps" / "one-two.json").write_text(json.dumps({**stamp, "done": False}))
    assert run() == 1
    assert run.output.read_text() == "x"
    (tmp_path / "stamps" / "one-two.json").write_text(json.dumps({**stamp, "done": False}))
    run.output.write_text("of another command")
    assert run("b", resume=lambda stamp: {} if not run.output.exists() else None) == 1


def test_a_failed_command_is_told_with_its_last_lines(tmp_path):
    run = stages.Stages(tmp_path, lambda text: None)
    code = "import sys; print(*range(100), sep='\\n'); sys.exit('the reason')"
    for _ in range(2):  # not taken for done
        with pytest.raises(stages.StageError, match=r"(?s)^bad: exit status 1\n81\n.*\n99\nthe reason$"):
            run.command("bad", python(code), inputs=[], outputs=[], log=tmp_path / "log")
    with pytest.raises(stages.StageError, match=r"^none: .*no-such-program"):
        run.command("none", ["no-such-program"], inputs=[], outputs=[], log=tmp_path / "log")


@pytest.mark.parametrize("error", [ValueError, RecipeError])
def test_what_facts_refuses_is_a_failure(error, tmp_path):
    def facts() -> dict[str, Any]:
        raise error("3 translations of 4 sentences")

    with pytest.raises(stages.StageError, match=r"^one two: 3 translations of 4"):
        Counter(tmp_path)(facts=facts)
    assert Counter(tmp_path)() == 1


def test_a_damaged_checkpoint_and_a_full_disk_are_told_in_a_line(tmp_path, capsys):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(ValueError, match=r"^\S+checkpoint_last.pt is damaged: put a whole"):
        fairseq_output.trained(tmp_path / "checkpoint_last.pt")
    with (
        pytest.raises(SystemExit, match=r"^compare: .*No space left on device"),
        stages.working_in(tmp_path / "out", argparse.ArgumentParser("compare")),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_memory_is_that_of_the_command_alone(tmp_path):
    def peak(megabytes: int) -> float:
        # It must live when its line is read, as a training run does at each of its own.
        code = f"import os, time; x = b'x' * ({megabytes} << 20); del x; print(flush=True)\n"
        code += f"while not os.path.exists({str(tmp_path / 'read')!r}): time.sleep(0.01)"
        (tmp_path / "read").unlink(missing_ok=True)
        read: Callable[[str], Any] = lambda line: (tmp_path / "read").touch()  # noqa: E731
        return processes.execute(python(code), tmp_path / "log", False, read)["peak_memory"] / 2**20

    ours = b"x" * (400 << 20)  # of zeros none would be resident
    large, small = peak(300), peak(1)
    assert len(ours) and 300 < large < 360
    assert small < 60


def test_work_is_done_side_by_side(tmp_path):
    def piece(own: int, other: int) -> int:
        # ends when the other has begun
        code = f"import os, time; open('{own}', 'w')\nwhile not os.path.exists('{other}'): time.sleep(0.01)"
        processes.execute(
            python(f"import os; os.chdir({str(tmp_path)!r}); {code}"), tmp_path / f"log {own}", False, print
        )
        return own

    found: list[int] = []
    processes.side_by_side(2, [partial(piece, 1, 2), partial(piece, 2, 1), partial(piece, 3, 1)], found.append)
    assert sorted(found) == [1, 2, 3]
    processes.side_by_side(1, [partial(piece, n, 1) for n in (1, 2)], found.append)
    assert found[3:] == [1, 2]


@pytest.mark.parametrize("failure", [stages.StageError, KeyboardInterrupt])
def test_what_runs_beside_a_failure_is_stopped(failure, tmp_path):
    run = stages.Stages(tmp_path / "stamps", lambda text: None)
    begun = tmp_path / "begun"
    outcomes: list[str] = []

    def long() -> None:
        code = f"import time; open({str(begun)!r}, 'w'); time.sleep(600)"
        try:
            run.command("long", python(code), inputs=[], outputs=[], log=tmp_path / "long.log")
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise
        raise AssertionError

    def short() -> None:
        wait_for(begun.exists)

    def then(_: object) -> None:
        raise failure("as Ctrl-C while the result is noted")

    with pytest.raises(failure):
        processes.side_by_side(2, [long, short, lambda: outcomes.append("a further one")], then)
    assert outcomes[-1] == "KeyboardInterrupt", "it was stopped, and no further one began"
    assert not run.stamp("long")["done"]
    run.command("long", python("print(1)"), inputs=[], outputs=[], log=tmp_path / "long.log")  # works on afterwards


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends the children of a killed process on demand")
def test_no_command_outlives_a_killed_comparison(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    code = "import pathlib; from comparison import processes; "
    code += f"processes.execute({['python', '-c', child]!r}, pathlib.Path('log'), False, print)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "recipes")}
    )
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = (tmp_path / "pid").read_text()
    parent.kill()
    parent.wait()
    wait_for(lambda: ended(pid))


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_commands_print_alike_in_any_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # where Python would look at the locale
    code = "import os, sys; print(sys.flags.utf8_mode, os.environ['GLIBC_TUNABLES'], "
    code += "os.environ['NVIDIA_TF32_OVERRIDE'])"
    code += "; print('warning', file=sys.stderr); print('line')"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    for given, expected in ((None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.perturb=1", "glibc.malloc.perturb=1")):
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if given:
            monkeypatch.setenv("GLIBC_TUNABLES", given)
        processes.execute(["python", "-c", code], tmp_path / "log", False, print)
        printed = (tmp_path / "log").read_text()
        assert printed == f"1 {expected} 0\nwarning\nline\n", "in the order in which they were printed"


def test_sentences_are_taken_from_all_of_the_text():
    assert stages.evenly(4, 10) == [0, 2, 5, 7]
    assert stages.evenly(10, 3) == [0, 1, 2]
