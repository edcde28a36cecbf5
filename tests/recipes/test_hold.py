"""Nothing of the user's is removed or changed, whatever is killed and whatever runs at once; one run holds a folder."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import compare
import pytest
from common import arguments, hold, machine
from common.files import write_text
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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
    with hold.held(out) as first:
        first.work.mkdir()
        before = tree(tmp_path)
        message = rf"out is in use since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d, by process {os.getpid()} or one that"
        for _ in range(2):
            with pytest.raises(hold.FolderError, match=message), hold.held(out):
                pass
        assert tree(tmp_path) == before
    with hold.held(out) as second:
        assert second.left == [first.work]
        assert second.work != first.work and not second.work.exists()


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


@pytest.mark.parametrize("text", ["mine", "{}", "[]", '{"held_by": "me"}', "\0", " \n"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_foreign_file_of_the_locks_name(text: str, mixed: bool, tmp_path: Path) -> None:
    (tmp_path / hold.NAME).write_text(text)
    with pytest.raises(hold.FolderError, match="is not of these recipes"), hold.held(tmp_path, mixed):
        pass
    assert (tmp_path / hold.NAME).read_text() == text


def test_a_link_of_the_locks_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").touch()
    (tmp_path / "out" / hold.NAME).symlink_to("../mine")
    with pytest.raises(hold.FolderError, match="can't be held"), hold.held(tmp_path / "out"):
        pass
    assert (tmp_path / "mine").read_bytes() == b""


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(hold, "lock_descriptor", refuse)
    remedy = "its file system has no locks: name a folder on another"
    with pytest.raises(hold.FolderError, match=f"out can't be held .{remedy}"), hold.held(tmp_path / "out"):
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


@pytest.mark.parametrize("name", ["../mine", "/etc", "mine", ".work-../../mine", f".work-{'0' * 32}/..", ""])
def test_a_record_names_folders_of_work_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "mine").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "out" / hold.NAME).write_text(json.dumps({"held_by": hold.HELD_BY, "work": [name]}))
    with hold.held(tmp_path / "out") as now:
        assert now.left == []


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
    with hold.held(out) as other:
        other.work.mkdir()
        assert f"error: out: {out} is in use since " in refused()


# --- preparing data ---------------------------------------------------------------------------------------------------

# prepare.py as a user runs it, but that fairseq-preprocess, which takes seconds, is left out where it says so, and that
# it is killed at the n-th time that it writes, makes, moves or removes something. It tells how often it did.
PREPARE = """
import os, signal, sys
sys.path.insert(0, "recipes")
from common import hold
from corpora import building
import prepare
stub, last, count = sys.argv[1] == "stub", int(sys.argv[2]), 0
hold.PATIENCE = 600.0

def binarise(languages, prefixes, to, *words):
    to.mkdir()
    for language in languages:
        (to / f"dict.{language}.txt").write_text(language)

def watch(event, arguments):
    global count
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate") or (
        event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        count += 1
        if count == last:
            os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":
    if stub:
        building.binarise = binarise
    sys.dont_write_bytecode = True
    sys.addaudithook(watch)
    prepare.main(sys.argv[3:])
    print("writes:", count)
"""

OURS = ["bin", "spm.model", "spm.vocab", "train.sp.en", "test.de", "manifest.json", "manifest.json.part", "archives"]
NAMES = [*OURS, "work-thesis", f".work-{secrets.token_hex(16)}", ".lock", "run.lock", ".fairseq_sru.lock", ".w.part"]
NAMES += ["text", "made", "thesis.tex", ".made_by_prepare"]
CONTENT = st.one_of(st.binary(min_size=1, max_size=20), st.just(b"{}"), st.just(b'{"held_by": "me", "work": ["mine"]}'))
INSIDE = st.dictionaries(st.sampled_from(NAMES), CONTENT, max_size=2)
FOREIGN = st.dictionaries(st.sampled_from(NAMES), CONTENT | INSIDE, max_size=4)


def put(folder: Path, things: dict[str, Any]) -> Tree:
    """Write things that aren't there yet; returns those that were written."""
    folder.mkdir(exist_ok=True)
    before = tree(folder)
    for name, thing in things.items():
        path = folder / name
        if isinstance(thing, dict):
            if not path.is_file():
                put(path, thing)
        elif not path.exists():
            path.write_bytes(thing)
    return {name: thing for name, thing in tree(folder).items() if name not in before}


class Prepare:
    """Commands in ``folder``, which holds a small text."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        (folder / "prepare.py").write_text(PREPARE)
        for split, count in (("train", 60), ("valid", 10), ("test", 10)):
            for language in ("en", "de"):
                lines = (TEXT / f"{split}.{language}").read_text().split("\n")[:count]
                (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
        self.out = folder / "wanted"
        done = self.finish(self.start(folder / "wanted"))
        assert done[0] == 0, done
        self.writes = int(re.search(r"writes: (\d+)", done[1])[1])  # type: ignore[index]
        self.wanted = self.result(folder / "wanted")
        assert len(self.wanted) > 12

    def start(self, out: Path, last: int = 0) -> subprocess.Popen[str]:
        where = Path(os.path.relpath(self.folder, ROOT))  # relative, as users write paths
        words = [w for split in ("train", "valid", "test") for w in (f"--{split}-prefix", str(where / split))]
        words += ["-s", "en", "-t", "de", "--vocab-size", "100", "--out", str(where / out.relative_to(self.folder))]
        command = [sys.executable, str(where / "prepare.py"), self.kind, str(last), *words]
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **how)

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        with process:
            said = process.communicate()[0]
        assert process.returncode in (0, 2, -signal.SIGKILL), said
        assert "Traceback" not in said
        assert process.returncode != 2 or "error: argument --out: " in said.splitlines()[-1]
        return process.returncode, said

    @staticmethod
    def result(out: Path) -> Tree:
        """What was made; the log has times in it, and the lock who held it. A run that is killed when all is done
        leaves its empty folder."""
        found = {name: text for name, text in tree(out).items() if not name.endswith((".log", hold.NAME))}
        left = [
            name for name, text in found.items() if re.fullmatch(rf"{hold.WORK.pattern}(/made)?", name) and not text
        ]
        return {name: text for name, text in found.items() if name not in left}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prepare]:
    made: dict[str, Prepare] = {}

    def of(kind: str) -> Prepare:
        if kind not in made:
            made[kind] = Prepare(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return of


def assert_kept(folder: Path, things: Tree) -> None:
    there = tree(folder)
    assert {name: there.get(name, "gone") for name in things} == things


@contextmanager
def some_place(prepare: Prepare) -> Iterator[Path]:
    place = prepare.folder / secrets.token_hex(4)
    place.mkdir()
    yield place
    shutil.rmtree(place)


def check(prepare: Prepare, before: dict, between: dict, beside: dict, kill: float, other: float | None) -> None:
    """A run is killed, perhaps while another wants the same folder; then things of the user's come into it."""
    with some_place(prepare) as place:
        around = put(place, beside)
        out = place / "w"
        foreign = put(out, before) if before else {}
        first = prepare.start(out, 1 + int(kill * prepare.writes))
        second = None
        if other is not None:
            time.sleep(other)
            second = prepare.start(out)
        codes = {prepare.finish(process)[0] for process in (first, second) if process}
        assert_kept(place, around)
        if before:
            assert codes <= {2, -signal.SIGKILL}
            assert {name: text for name, text in tree(out).items() if name in foreign or text != b""} == foreign
            assert prepare.finish(prepare.start(out))[0] == 2
            assert tree(out) == foreign  # and nothing else is there
            return
        if second:
            assert 2 not in codes  # it waits a while for its turn
        done = (out / "manifest.json").exists()
        foreign = put(out, between)
        outside = {name for name in foreign if not name.startswith("archives/") and name != "archives"}
        code, said = prepare.finish(prepare.start(out))
        assert_kept(out, foreign)
        assert_kept(place, around)
        if code:
            assert outside or "archives" in foreign, said
            assert not done, said
        for name in sorted(foreign, reverse=True):  # the user moves it all away
            (out / name).rmdir() if (out / name).is_dir() else (out / name).unlink()
        code, said = prepare.finish(prepare.start(out))
        assert code == 0, said
        assert prepare.result(out) == prepare.wanted
        assert_kept(place, around)


CASES = {
    "before": st.one_of(st.just({}), FOREIGN),
    "between": st.one_of(st.just({}), FOREIGN),
    "beside": FOREIGN,
    "kill": st.floats(0, 1),
    "other": st.one_of(st.none(), st.floats(0, 1)),
}
HOW: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
HOW["phases"] = (Phase.reuse, Phase.generate)  # making a failure smaller takes too long


@given(**CASES)
@settings(max_examples=3, derandomize=True, database=None, **HOW)
def test_every_foreign_byte_stays(prepared: Callable[[str], Prepare], **case: Any) -> None:
    check(prepared("stub"), **case)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "examples"), [("stub", 100), ("real", 10)])
def test_every_foreign_byte_stays_in_many_cases(kind: str, examples: int, prepared: Callable[[str], Prepare]) -> None:
    @given(**CASES)
    @settings(max_examples=examples, **HOW)
    def test(**case: Any) -> None:
        check(prepared(kind), **case)

    test()


@pytest.mark.slow
def test_killed_at_every_write(prepared: Callable[[str], Prepare]) -> None:
    prepare = prepared("stub")
    for number in range(prepare.writes):
        check(prepare, {}, {}, {}, (number + 0.5) / prepare.writes, None)
