"""One run holds a folder; files that are named and written; the machine."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import compare
import pytest
from common import arguments, hold, machine
from common.files import write_text
from conftest import ROOT

TEXT = ROOT / "recipes" / "data" / "lohelp-en-de"
Tree = dict[str, bytes | None]  # what files hold; None for a folder


def tree(folder: Path) -> Tree:
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


# --- files that are named and written ---------------------------------------------------------------------------------


@contextmanager
def without_privileges() -> Iterator[None]:
    """Folders that nobody may enter are closed to root, too."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("kind", [arguments.file, arguments.new_file, arguments.output_file])
def test_what_may_not_be_entered_is_told_under_the_arguments_name(kind: Callable[[str], Path], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with without_privileges(), pytest.raises(argparse.ArgumentTypeError, match=str(closed)):
        kind(str(closed / "model.pt"))


def test_a_link_is_written_through(tmp_path: Path) -> None:
    there, link = tmp_path / "shared" / "trials.json", tmp_path / "trials.json"
    link.symlink_to(there)
    assert arguments.output_file(str(link)) == link  # and the folder is there
    for text in ("new", "again"):
        write_text(link, text)
        assert link.is_symlink() and there.read_text() == text and list(there.parent.iterdir()) == [there]


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_the_second_is_told_who_holds_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "PATIENCE", 0.1)
    out = tmp_path / "out"
    with hold.held(out):
        (out / "begun").touch()
        before = tree(tmp_path)
        message = rf"out is in use since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d, by process {os.getpid()} or one that"
        with pytest.raises(hold.FolderError, match=message), hold.held(out):
            pass
        assert tree(tmp_path) == before
    with hold.held(out):  # which is the recipes', with what a killed run left
        assert (out / "begun").exists()


def test_a_lock_whose_file_is_gone_holds_nothing(tmp_path: Path) -> None:
    """Who held it until now has removed it, and the next one locks a new file."""
    with (tmp_path / hold.NAME).open("w+") as file:
        (tmp_path / hold.NAME).unlink()
        with pytest.raises(hold.FolderError, match="was in use until now: run this again"):
            hold.take(tmp_path, file.fileno(), os.getpid())


def test_no_trace_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    for out in (tmp_path / "new", tmp_path):
        with hold.held(out):
            assert (out / hold.NAME).is_file()
        assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(hold, "lock_descriptor", refuse)
    with pytest.raises(hold.FolderError, match=r"out can't be held .*another file system"), hold.held(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "aarch64 implementer 0x41 part 0xd0c"),
        ("", "aarch64"),
    ],
)
def test_processors_are_told_apart(info: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / Path(path).name)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.processor() == name


def test_cores_are_those_that_a_process_may_use() -> None:
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    show = "from common.machine import cores; print(cores())"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "recipes")}
    for first, count in (("", len(os.sched_getaffinity(0))), (one, 1)):
        done = subprocess.run([sys.executable, "-c", first + show], env=env, capture_output=True, text=True, check=True)
        assert (int(done.stdout), done.stderr) == (count, "")


SHELL = """
exec 9<>"$1/.fairseq_sru.lock"
PYTHONPATH=recipes "$2" -m common.hold "$1" 9 || exit
bash -c 'echo held $$; exec sleep 600'
true
"""


def test_a_shell_holds_a_folder_while_one_of_its_processes_lives(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = ["bash", "-c", SHELL, "shell", str(tmp_path), sys.executable]
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **how)

    first = start()
    assert first.stdout
    child = int(first.stdout.readline().split()[1])
    with start() as second:
        said = second.communicate()[0]
    assert second.returncode == 2
    by = f"by process {first.pid} or one that it started"
    assert re.fullmatch(rf"{tmp_path} is in use since [-\d]+ [:\d]+, {by}\n", said)
    first.kill()
    first.wait()
    with pytest.raises(hold.FolderError, match=by), hold.held(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    with hold.held(tmp_path):
        pass
    for number in (signal.SIGINT, signal.SIGKILL):
        with start() as third:
            assert third.stdout and third.stdout.readline().startswith("held")
            os.killpg(third.pid, number)
        with hold.held(tmp_path):
            pass


# --- comparisons ------------------------------------------------------------------------------------------------------

RECIPE = "systems: {a: {arch: sru_tiny}}\nbaseline: a\nbudget: {updates: 10}\ndata: lohelp-en-de\n"


def test_a_comparison_writes_into_its_own_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = tmp_path / "out"
    words = [str(tmp_path / "recipe.yaml"), f"out={out}"]

    def refused() -> str:
        before = tree(tmp_path)
        with pytest.raises(SystemExit) as error:
            compare.main(words)
        assert error.value.code == 2
        assert tree(tmp_path) == before
        return capsys.readouterr().err.splitlines()[-1]

    out.write_text("mine")
    assert refused().endswith(f"error: out: {out} is a file, not a folder")
    out.unlink()
    (out / "checkpoints" / "a-1").mkdir(parents=True)
    (out / "checkpoints" / "a-1" / "checkpoint_best.pt").write_text("mine")
    assert f"error: out: {out} holds checkpoints, and no recipe has written there" in refused()
    shutil.rmtree(out)
    with hold.held(out):
        (out / "begun").touch()
        assert f"error: out: {out} is in use since " in refused()
