"""Fixtures of several test files: a toy corpus, models built without a command line, commands run as users run them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import forks

# A loaded machine has no deadline. What --all looks for at random, each change needn't fail by.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, derandomize=False)
hypothesis.settings.load_profile("tests")

os.environ.pop("FAIRSEQ_SRU_BACKEND", None)  # a user's own would decide what is tested
os.environ["LC_ALL"] = "C.UTF-8"  # a user's own may be of a language, or unknown to bash
for name in ("no_proxy", "NO_PROXY"):  # servers of tests are asked without one
    os.environ[name] = f"127.0.0.1,{os.environ.get(name, '')}"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as jobs in the background do; what they start would, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["support.debian_packages"]  # fixtures of several files

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".pytest_cache"  # what is compiled for tests alone is no part of the user's caches
if any(path.stat().st_mode & 0o1002 == 0o002 for path in (ROOT, *ROOT.parents)):  # kernels must be safe there
    KEPT = Path(tempfile.gettempdir()) / f"fairseq_sru_tests_{os.getuid()}"
    KEPT.mkdir(mode=0o700, exist_ok=True)
os.environ.setdefault("FAIRSEQ_SRU_CACHE", str(KEPT / "kernels"))
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(KEPT / "inductor"))
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(KEPT / "torch_extensions" / str(sys.implementation.cache_tag)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_walks.py")  # half an hour of --all: begun last, it ends alone


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test's random numbers don't depend on which tests the same process ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def run_cli(*words: Any, check: bool = True, cwd: Path | None = None, text_in: str | None = None, **env: str) -> Any:
    """Run ``fairseq-<first word>`` of the Python that runs the tests; the result holds stdout and stderr. Checkpoints
    that it writes can then be read here, as with --user-dir."""
    from fairseq_sru.models.checkpoints import allow_options  # not needed by tests that keep fairseq out

    allow_options()
    program = Path(sys.executable).with_name(f"fairseq-{words[0]}")
    found = program if program.is_file() else shutil.which(program.name)  # gpu.sh has fairseq in a folder of its own
    command = [str(found), *map(str, words[1:])]
    done = forks.run(command, cwd=cwd or ROOT, given=text_in or "", **env)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture
def refuses(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refuses(main, *words)``: the last line on stderr of a command line that must end with status 2."""

    def last_line(main: Callable[[list[str]], Any], *words: Any) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        error = capfd.readouterr().err
        assert stopped.value.code == 2, error
        return error.splitlines()[-1]

    return last_line


def ended(pid: str) -> bool:
    """Return True if a process has ended; a zombie has, too, whose parent may not ask."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def write_pairs(folder: Path, split: str, pairs: list[tuple[list[str], list[str]]]) -> None:
    for side, language in enumerate(("en", "de")):
        (folder / f"{split}.{language}").write_text("".join(" ".join(pair[side]) + "\n" for pair in pairs))


def reversed_pairs(count: int, seed: int, shortest: int = 2, longest: int = 7) -> list[tuple[list[str], list[str]]]:
    """The toy task: the target is the source backward."""
    rng = random.Random(seed)
    sources = [[rng.choice("abcdefghij") for _ in range(rng.randint(shortest, longest))] for _ in range(count)]
    return [(s, s[::-1]) for s in sources]


def preprocess(folder: Path, name: str = "bin") -> Path:
    """Binarise ``{train,valid,test}.{en,de}`` with a joint dictionary."""
    prefixes = [word for s in ("train", "valid", "test") for word in (f"--{s}pref", folder / s)]
    run_cli("preprocess", "-s", "en", "-t", "de", *prefixes, "--joined-dictionary", "--destdir", folder / name)
    return folder / name


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A binarised toy corpus; ``..`` of it holds the text. The test set has 53 lines, one of them empty."""
    folder = tmp_path_factory.mktemp("toy")
    write_pairs(folder, "train", reversed_pairs(1500, 1))
    write_pairs(folder, "valid", reversed_pairs(50, 2))
    test = reversed_pairs(53, 3)
    test[20] = ([], test[20][1])
    write_pairs(folder, "test", test)
    return preprocess(folder)


@pytest.fixture(scope="session")
def dictionary() -> Any:
    from support.small_models import numbered  # not needed by tests that keep fairseq out

    return numbered(40)


@pytest.fixture
def build(dictionary: Any) -> Callable[..., Any]:
    """``build(encoder_layers=3, ...)``: a small model in float64, its options as on the command line."""
    from support.small_models import made

    return partial(made, "sru", dictionary)
