"""The plugin with another fairseq than ours: fairseq-fixed, in an environment of its own. It has fairseq's main."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT
from support.network import NETWORK
from support.processes import LONG

pytestmark = pytest.mark.slow

MODELS = [f"tests/models/test_{name}.py" for name in ("equalities", "search", "lm", "transformer_sru", "checkpoints")]


def run(home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(home / "bin"), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PIP_USER": "0"}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LONG)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with fairseq-fixed; all but fairseq is lent to it."""
    folder = tmp_path_factory.mktemp("any")
    home, lent = folder / "environment", folder / "lent"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    lent.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("fairseq", "__", "pip", "setuptools")):
            (lent / path.name).symlink_to(path)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    pip = [home / "bin" / "python", "-m", "pip", "install"]
    for words in (["setuptools", "wheel", "cython"], ["--no-build-isolation", "fairseq-fixed"]):
        done = run(home, *pip, *words)  # in isolation it would be built with a torch that is fetched for that
        if done.returncode and re.search(NETWORK, done.stderr, re.M):
            pytest.skip("fairseq-fixed, or what builds it, cannot be downloaded here")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home


def test_models_are_right(home: Path) -> None:
    words = ["-q", "-p", "no:cacheprovider", "-m", "not slow", *MODELS]
    done = run(home, home / "bin" / "python", "-m", "pytest", *words)
    assert re.search(r"^\d{3} passed, \d+ skipped", done.stdout, re.M), done.stdout[-5000:]  # those of our patches
    assert done.returncode == 0


def test_commands_of_the_readme_train_and_lose_no_sentence(home: Path, tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Train on your own text\n")[2].partition("\n## ")[0]
    text = "recipes/data/lohelp-en-de/test"
    for language in ("en", "de"):  # 101 sentences are no multiple of 8, of which fairseq's main makes batches
        lines = (ROOT / f"{text}.{language}").read_text().splitlines(keepends=True)
        (tmp_path / f"test.{language}").write_text("".join(lines[:101]))
    script = "\n".join(re.findall(r"^    (.*)$", section, re.M)) + "\n"
    changes = {"runs/mine": f"{tmp_path}/mine", text: f"{tmp_path}/test"}
    for old, new in (changes | {"--no-epoch-checkpoints": "--no-epoch-checkpoints --max-update 20"}).items():
        assert old in script
        script = script.replace(old, new)
    done = run(home, "bash", "-e", "-o", "pipefail", "-c", script)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "\nGenerate test with beam=5: BLEU = " in done.stdout
    assert len(set(re.findall(r"^D-(\d+)\t", done.stdout, re.M))) == 101
