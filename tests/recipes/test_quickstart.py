"""The recipes: preparing the text, the quick start whole (with few updates), interrupted and run again, and its
table."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import prepare
import pytest
import score
import sentencepiece
from common import hold
from comparison import fairseq_output
from conftest import ROOT
from corpora import registry

TEXT = ROOT / "recipes" / "data" / "lohelp-en-de"
SMALL = ["--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "64", "--decoder-embed-dim", "64"]
SMALL += ["--encoder-hidden-size", "32"]


@functools.cache
def set_up() -> None:
    """Fail where recipes/setup.sh would install something: it is the user's environment."""
    ready = 'eval "$(grep -v "^_sru_setup$" "$2/recipes/setup.sh")"; _sru_is_ready "$1" "$2"'
    done = subprocess.run(["bash", "-c", ready, "bash", sys.prefix, str(ROOT)], capture_output=True)
    assert done.returncode == 0, f"{sys.prefix} is not set up for {ROOT}: bash tests/run.sh does it"


def quickstart(out: Path, *options: str, **how) -> subprocess.Popen:
    """Start recipes/quickstart.sh in the environment that runs the tests."""
    set_up()
    env = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "recipes" / "quickstart.sh"), str(out), *SMALL, *options]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)


def files(folder: Path) -> dict[str, int]:
    """Return the files that hold data, and when each was written."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != hold.NAME]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def test_prepare_keeps_every_line_and_does_nothing_twice(tmp_path, capsys):
    out = tmp_path / "a folder"
    prepare.main(["lohelp-en-de", "--out", str(out), "--vocab-size", "1000"])
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    assert model.vocab_size() == 1000
    for split in registry.SPLITS:
        for language in ("en", "de"):
            pieces = (out / f"{split}.sp.{language}").read_text().splitlines()
            assert [model.decode(line.split()) for line in pieces] == (
                TEXT / f"{split}.{language}"
            ).read_text().splitlines()
        assert (out / "bin" / f"{split}.en-de.en.bin").is_file()
    before = files(out)
    capsys.readouterr()
    prepare.main(["lohelp-en-de", "--out", str(out), "--vocab-size", "1000"])
    assert "already made" in capsys.readouterr().out
    assert files(out) == before
    with pytest.raises(SystemExit):
        prepare.main(["lohelp-en-de", "--out", str(out), "--vocab-size", "500"])
    assert "was made of other data or with other options" in capsys.readouterr().err
    assert files(out) == before


@pytest.mark.parametrize("size", ["9999999", "1"])
def test_prepare_names_an_impossible_vocabulary(size, tmp_path, capfd):
    with pytest.raises(SystemExit):
        prepare.main(["lohelp-en-de", "--out", str(tmp_path / "out"), "--vocab-size", size])
    assert f"argument --vocab-size: {size}" in capfd.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_hypotheses_are_put_in_order_and_must_be_whole():
    text = "S-1\tx\nH-1\t-0.5\tzwei\nD-1\t-0.5\tzwei\nH-0\t-0.1\teins\nH-2\t-0.3\t\n"
    assert fairseq_output.hypotheses(text) == ["eins", "zwei", ""]
    for broken in (text.replace("H-0", "H-1"), text.replace("H-0", "X-0")):
        with pytest.raises(ValueError, match="translations of"):
            fairseq_output.hypotheses(broken)


OPTIONS = ["--max-update", "40", "--save-interval-updates", "10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str, str]:
    """A quick start that is killed at its first checkpoint and started again: its folder and what both runs printed.
    While the first one lives, another that wants its folder is refused."""
    out = tmp_path_factory.mktemp("quick start") / "out"
    first = quickstart(out, *OPTIONS, start_new_session=True)
    deadline = time.monotonic() + 300
    printed = ""
    while "Saved checkpoint" not in printed:
        line = first.stdout.readline()
        assert line and time.monotonic() < deadline, printed
        printed += line
    os.killpg(first.pid, signal.SIGSTOP)  # else it may be done before it is killed
    try:
        other = quickstart(out, *OPTIONS)
        refusal = other.communicate()[0]
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert other.returncode == 2
    by = f"by process {first.pid} or one that it started"
    assert re.search(rf"{re.escape(str(out))} is in use since [-\d]+ [:\d]+, {by}$", refusal.strip())
    assert "fairseq" not in refusal and "prepare.py" not in refusal
    second = quickstart(out, *OPTIONS)
    again = second.communicate()[0]
    assert second.returncode == 0, again[-3000:]
    return out, printed, again


def test_quickstart_goes_on_where_it_was_killed(run):
    out, first, second = run
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch \d+ @ \d+ updates\)", second)
    assert "num_updates 40" in second
    assert f"{out}/data: already made" in second.replace("\\", "")


def test_quickstart_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint_last.pt").write_text("mine")
    process = quickstart(tmp_path)
    said = process.communicate()[0]
    assert process.returncode == 2
    assert said == f"{tmp_path} holds checkpoints, and no recipe has written there: name a new or empty folder\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints", "checkpoint_last.pt"]


def test_quickstart_tells_how_it_is_called():
    for out, *options in [[Path("--help")], [Path("out"), "--help"], [Path("out"), "-h"]]:
        process = quickstart(out, *options)
        said = process.communicate()[0]
        assert process.returncode == 2 and "bash recipes/quickstart.sh [OUT [options of fairseq-train]]\n" in said


@pytest.mark.slow
def test_what_trained_nothing_spoils_no_folder(run, tmp_path):
    """A mistyped option, and one after which there is no model where it is looked for."""
    shutil.copytree(run[0] / "data", tmp_path / "data")
    shutil.copyfile(run[0] / hold.NAME, tmp_path / hold.NAME)
    for options, code, words in [
        (["--dropuot", "0.3"], 2, "unrecognized arguments: --dropuot 0.3"),
        (["--no-save", "--max-update", "2"], 1, f"{tmp_path}/checkpoints holds no checkpoint_last.pt"),
        (["--max-update", "2"], 0, "BLEU"),
    ]:
        process = quickstart(tmp_path, *options)
        said = process.communicate()[0]
        assert process.returncode == code and words in said, said[-3000:]


def test_quickstart_prints_commands_that_can_be_copied(run):
    out, _, text = run
    commands = [line[2:] for line in text.splitlines() if line.startswith("+ ")]
    assert [c.split()[0] for c in commands] == ["python", "fairseq-train", "fairseq-generate", "python"]
    assert ("--amp" in commands[1].split()) == ((out / "amp").read_text().strip() == "--amp")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    copied = subprocess.run(["bash", "-c", commands[-1]], capture_output=True, text=True, cwd=ROOT, env=env)
    assert copied.returncode == 0, copied.stderr
    assert copied.stdout.strip() in text


def test_quickstart_repeats_nothing(run):
    out = run[0]
    before = files(out)
    again = quickstart(Path(out.name), *OPTIONS, cwd=out.parent)  # as it is typed there
    text = again.communicate()[0]
    assert again.returncode == 0, text
    assert files(out) == before
    assert "fairseq-train" not in text
    assert "fairseq-generate" not in text.replace("generate-test", "")
    assert (out / "amp").read_text().strip() in ("", "--amp")  # for a run that goes on elsewhere
    other = quickstart(out, "--dropout", "0.3")  # another model than is there
    said = other.communicate()[0].splitlines()[-1]
    assert other.returncode == 2 and files(out) == before
    assert said.startswith(f"{out} was begun with the options ") and said.endswith(": name another OUT")


def sacrebleu(output: Path, *options: str) -> str:
    """The score that the command prints, as a pattern."""
    command = [sys.executable, "-m", "sacrebleu", str(TEXT / "test.de"), "-i", str(output), *options, "-b", "-w", "1"]
    return re.escape(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def test_scores_are_those_of_the_sacrebleu_command(run, tmp_path):
    out, _, text = run
    sentences = fairseq_output.hypotheses((out / "generate-test.txt").read_text())
    assert len(sentences) == 1000
    (tmp_path / "output").write_text("\n".join(sentences) + "\n")
    for metric, row in (("bleu", "BLEU  "), ("chrf", "chrF  ")):
        assert re.search(rf"^  {row} +{sacrebleu(tmp_path / 'output', '-m', metric)} ", text, re.MULTILINE), text[
            -2000:
        ]
    assert re.search(rf"BLEU of copying the source +{sacrebleu(TEXT / 'test.en')} ", text)


def test_translations_that_are_not_whole_are_refused(run, tmp_path, capsys):
    out = run[0]
    cut = tmp_path / "generate-test.txt"
    cut.write_text(re.sub(r"^H-999\t.*\n", "", (out / "generate-test.txt").read_text(), flags=re.MULTILINE))
    last = str(out / "checkpoints" / "checkpoint_last.pt")
    for path, message in ((cut, "has 999 translations, test 1000 sentences"), ("none", "no such file: none")):
        with pytest.raises(SystemExit):
            score.main(["--data-set", "lohelp-en-de", "--checkpoint", last, "--generated", str(path)])
        assert message in capsys.readouterr().err


def test_the_parameters_are_those_of_the_model(run):
    import torch

    state = torch.load(run[0] / "checkpoints" / "checkpoint_last.pt", weights_only=True)["model"]
    state.pop("decoder.embed_tokens.weight")  # tied to the encoder's
    assert fairseq_output.trained(run[0] / "checkpoints" / "checkpoint_last.pt")[0] == sum(
        w.numel() for w in state.values()
    )


@pytest.mark.slow
def test_quickstart_reaches_its_score(tmp_path):
    """The main job. The bound is below what it reached by what seeds and machines differ."""
    out = tmp_path / "out"
    script = ROOT / "recipes" / "quickstart.sh"
    done = subprocess.run(
        ["bash", str(script), str(out)], env={**os.environ, "VIRTUAL_ENV": sys.prefix}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    score = float(re.search(r"^  BLEU  +([\d.]+) ", done.stdout, re.MULTILINE)[1])
    assert score > 26, done.stdout[-3000:]
    shutil.rmtree(out)


@pytest.mark.slow
def test_the_readmes_own_words_train_on_text_of_your_own(tmp_path: Path) -> None:
    """Its blocks by bash, with relative paths, as they stand but for the number of updates."""
    for name in ("fairseq_sru", "kernels", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    section = (ROOT / "README.md").read_text().partition("## Train on your own text\n")[2].partition("\n## ")[0]
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n)+", section, re.MULTILINE)]
    assert sum("--max-update 4000" in block for block in blocks) == 1
    pipe = re.search(r"replace `--scoring sacrebleu` by `(\|.*?)`", section)
    assert pipe is not None
    blocks.append(blocks[-1].replace(" --scoring sacrebleu", f" {pipe[1]}"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = [
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.replace("--max-update 4000", "--max-update 40")],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for block in blocks
    ]
    assert len(said) == 6
    assert "\nD-0\t" in said[2]
    assert said[3].splitlines()[0].startswith("runs/mine/model: ") and len(said[3].splitlines()) == 2
    assert "Generate test with beam=5: BLEU" in said[4]
    assert json.loads(said[5])["name"] == "BLEU"
    assert {path.name for path in tmp_path.iterdir()} == {"fairseq_sru", "kernels", "recipes", "runs"}
