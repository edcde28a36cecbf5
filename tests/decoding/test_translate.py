"""export and translate as a user types them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_cli
from support import forks
from support.commands import hypotheses
from support.exported import LINES, exported, trained
from support.processes import LONG, alone

from fairseq_sru import Translator, export
from fairseq_sru.models.sru import SRUModel
from fairseq_sru.translate import chunks, main

TRANSLATE = ("-m", "fairseq_sru.translate")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    exported(folder, "sru, coverage")
    return folder


def by_process(model: Path, text: bytes, *words: str) -> tuple[int, bytes, str]:
    command = [sys.executable, *TRANSLATE, str(model), "--max-length", "9", *words]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, timeout=600)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture
def translate(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., tuple[int, bytes, str]]:
    """Return a function that does the same as by_process, but in this one."""

    def run(model: Path, text: bytes, *words: str) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        code: Any = 0
        try:
            main([str(model), "--max-length", "9", *words])
        except SystemExit as end:
            code = end.code
        out, errors = capfdbinary.readouterr()
        said = errors.decode()
        return (1, out, f"{said}{code}\n") if isinstance(code, str) else (code, out, said)

    return run


def test_lines_in_are_lines_out(model: Path, translate: Any) -> None:
    lines = [*LINES, "", "last"]
    expected = Translator(model).translate(lines, max_length=9)
    written = "".join(f"{line}\n" for line in expected).encode()
    assert by_process(model, "\n".join(lines).encode()) == (0, written, "")
    assert translate(model, ("\r\n".join(lines) + "\r\n").encode()) == (0, written, "")
    assert translate(model, b"") == (0, b"", "")


def test_scores_and_several_translations(model: Path, translate: Any) -> None:
    code, out, _ = translate(
        model, f"{LINES[0]}\n\n".encode(), "--nbest", "3", "--scores", "--beam", "4", "--lenpen", "0.5"
    )
    found = Translator(model).hypotheses([LINES[0]], beam=4, nbest=3, max_length=9, lenpen=0.5)[0]
    assert code == 0 and out.decode().splitlines() == [f"{h.score:.4f}\t{h.text}" for h in found] + ["0.0000\t"] * 3


@pytest.mark.parametrize(
    "line, said",
    [
        (b"caf\xe9", "translate: line 3 is not UTF-8: byte 4 is 0xe9\n"),
        (
            b"word " * 10_000,
            r"translate: line 3 is too long: it has [\d,]+ subwords, the model takes 1,023: split it\n",
        ),
    ],
)
def test_an_error_is_one_line_after_what_was_before_it(line: bytes, said: str, model: Path, translate: Any) -> None:
    code, out, errors = translate(model, b"the window\nis open\n" + line + b"\nnever read\n")
    assert code == 1 and re.fullmatch(said, errors), errors
    assert out.decode().splitlines() == Translator(model).translate(["the window", "is open"], max_length=9)


def test_a_line_without_scores_is_named(tmp_path: Path, translate: Any) -> None:
    exported(tmp_path / "model", "sru, defaults", norm=3e38)
    for more in (b"", b"word " * 10_000 + b"\n"):  # too long
        code, out, errors = translate(tmp_path / "model", b"\n\nwindow\n" + more)
        assert code == 1 and out == b"\n\n"
        assert errors.startswith("translate: line 3: the model gives no finite scores: it is damaged")


def test_lines_are_translated_as_they_come(model: Path) -> None:
    """A program may wait for one before it writes the next."""
    command = [sys.executable, *TRANSLATE, str(model), "--max-length", "9"]
    read, write = os.pipe()
    with subprocess.Popen(command, cwd=ROOT, stdin=read, stdout=subprocess.PIPE, text=True) as process:
        os.close(read)
        assert process.stdout is not None
        late = threading.Timer(LONG, process.kill)  # one that waits for the end of its input
        late.daemon = True
        late.start()
        try:
            for line in LINES[:2]:
                os.write(write, f"{line}\n".encode())
                assert process.stdout.readline() == f"{Translator(model).translate([line], max_length=9)[0]}\n"
        finally:
            os.close(write)
        assert process.wait(LONG) == 0
        late.cancel()


@pytest.mark.parametrize("read", [1, 3, 5, 100])
def test_lines_are_whole_however_they_are_read(read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairseq_sru.translate.READ", read)
    for text in (b"", b"\n", b"a", b"ab\n\ncdefghij\nk", b"abcdefghijkl\nm\n"):
        found = [line for chunk in chunks(io.BytesIO(text)) for line in chunk]
        assert found == (text.removesuffix(b"\n").split(b"\n") if text else [])


def test_lines_are_counted_over_chunks(model: Path, translate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairseq_sru.translate.CHUNK", 2)
    code, out, errors = translate(model, b"a\nb\nc\nd\ncaf\xe9\n")
    assert (code, out.count(b"\n"), errors) == (1, 4, "translate: line 5 is not UTF-8: byte 4 is 0xe9\n")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--beam", "0"], "translate: beam must be an integer of at least 1; got 0"),
        (["--beam", "9" * 30, "--nbest", "9" * 30], "translate: "),
        (["--threads", "0"], "translate: threads must be an integer of at least 1; got 0"),
        (["--no-repeat-ngram-size", "-1"], "translate: no_repeat_ngram_size must be an integer of at least 0; got -1"),
        (["--nbest", "6"], "translate: nbest must be at most beam, 5; got 6"),
        (["--lenpen", "nan"], "translate: lenpen must be a finite number; got nan"),
        (["--batch-size", "x"], "argument --batch-size: invalid int value: 'x'"),
    ],
)
def test_bad_arguments_are_named(words: list[str], said: str, model: Path, translate: Any) -> None:
    code, out, errors = translate(model, b"window\n", *words)
    assert code in (1, 2) and out == b"" and said in errors.splitlines()[-1]


def test_no_ngram_is_longer_than_a_translation(model: Path, translate: Any) -> None:
    assert translate(model, b"the window\n", "--no-repeat-ngram-size", "9" * 20) == translate(model, b"the window\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_line(model: Path) -> None:
    command = [sys.executable, *TRANSLATE, str(model), "--max-length", "9"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, cwd=ROOT, input=b"the window\n", stdout=full, stderr=subprocess.PIPE, timeout=600
        )
    assert done.returncode == 1
    assert re.fullmatch(r"translate: .*No space left on device\n", done.stderr.decode().rpartition("\r")[2])


def test_no_model_is_one_line(tmp_path: Path, translate: Any) -> None:
    code, out, errors = translate(tmp_path / "none", b"window\n")
    assert (code, out) == (1, b"")
    assert errors == f"translate: {tmp_path}/none: no such folder; python -m fairseq_sru.export makes one\n"


def test_it_needs_no_more_than_the_page_says(model: Path) -> None:
    blocked = f"{alone('safetensors', 'sentencepiece', 'tqdm')}from fairseq_sru.translate import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", blocked, str(model)], cwd=ROOT, input=b"window\n", capture_output=True, timeout=600
    )
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize("how", [pytest.param("closed pipe", marks=pytest.mark.slow), "Ctrl-C"])
def test_stopped_it_says_so_in_a_line(how: str, model: Path, tmp_path: Path) -> None:
    """Many chunks; the first has been written when it is stopped."""
    (tmp_path / "text").write_text("".join(f"{LINES[n % len(LINES)]}\n" for n in range(40_000)))
    command = [sys.executable, *TRANSLATE, str(model), "--threads", "2"]
    with (tmp_path / "text").open("rb") as text, (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdin=text, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        first = process.stdout.readline()
        if how == "Ctrl-C":
            process.send_signal(signal.SIGINT)
            assert first + process.stdout.read()
        process.stdout.close()
        code = process.wait(timeout=120)
    said = {"Ctrl-C": "translate: stopped\n", "closed pipe": "translate: nobody reads the output any more\n"}
    assert (code, (tmp_path / "errors").read_text()) == (130 if how == "Ctrl-C" else 1, said[how])


@pytest.fixture(scope="module", params=["sentencepiece", "moses-bpe"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    return trained(tmp_path_factory.mktemp("prepared"), request.param)


WATCHED = """
import sys
import fairseq_sru
from fairseq_sru.decoding.search import Search
run = Search.run
Search.run = lambda self, *rest, **options: print("compiled", file=sys.stderr) or run(self, *rest, **options)
"""


def exports(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``python -m fairseq_sru.export``."""
    done = forks.run(["-m", "fairseq_sru.export", *map(str, words)], cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def test_an_exported_model_gives_fairseq_generates_tokens(prepared: tuple[Path, list[str]]) -> None:
    """Which searches in compiled code, too."""
    folder, words = prepared
    done = exports(*words, "--out", folder / "model")
    assert done.stdout.startswith(f"{folder / 'model'}: ") and done.stdout.endswith(" MB, float32\n")
    translator = Translator(folder / "model")
    lines = (folder / "test.en").read_text().splitlines()
    found = translator.hypotheses(lines)
    (folder / "watched").mkdir()
    (folder / "watched" / "__init__.py").write_text(WATCHED)
    generated = run_cli(
        "generate", folder / "data" / "bin", "--user-dir", "watched", "--cpu", "--beam", "5",
        "--path", folder / "save" / "checkpoint_last.pt", cwd=folder, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert "compiled" in generated.stderr
    expected = hypotheses(generated.stdout)
    assert [" ".join(h[0].tokens) for h in found] == [expected[i] for i in range(len(lines))]
    assert len(set(expected.values())) > 5
    for h in found:  # moses-bpe: what was split is joined, and what Moses escapes is what it was
        assert not any(mark in h[0].text for mark in ("@@", "&apos;", "&quot;", "\u2581"))
    if "--sentencepiece-model" in words:
        model = str(folder / "data" / "spm.model")
        more = {"tokenizer": "space", "bpe": "sentencepiece", "sentencepiece_model": model}
        hub = SRUModel.from_pretrained(str(folder / "save"), "checkpoint_last.pt", str(folder / "data" / "bin"), **more)
        assert hub.translate(lines) == [h[0].text for h in found]
        odd = [line.replace(" ", "\u00a0", 1) for line in lines]  # a no-break space
        assert hub.translate(odd) == translator.translate(odd) == [h[0].text for h in found]
    done = exports(*words, "--int8", "--out", folder / "int8")
    assert done.stdout.endswith(" MB, int8\n")
    sizes = [(folder / name / "weights.safetensors").stat().st_size for name in ("int8", "model")]
    assert sizes[0] < 0.5 * sizes[1]


def test_how_text_is_treated_is_exported(prepared: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, words = prepared
    more = ("--lowercase", "--no-normalise", "--data", folder / "data" / "bin", "--out", tmp_path / "model")
    done = exports(*words, *more, check=False)
    if "--sentencepiece-model" in words:
        assert "argument --no-normalise: is for --subword-nmt-codes" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    text = json.loads((tmp_path / "model" / "config.json").read_text())["text"]
    assert (text["lowercase"], text["normalise"]) == (True, False)
    exports(*words, "--out", tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "config.json").read_text())["text"]
    assert (plain["lowercase"], plain["normalise"]) == (False, True)


def test_text_in_lower_case_is_noticed(
    prepared: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    export.main([*prepared[1], "--out", str(tmp_path / "as it is")])
    assert "--lowercase" not in caplog.text
    monkeypatch.setattr(export, "of_text", lambda words: ["the", "\u2581\u00fc", "\u7a93"])
    export.main([*prepared[1], "--out", str(tmp_path / "small")])
    assert "That is --lowercase" in caplog.text


def test_what_training_read_may_be_gone(prepared: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Files of embeddings, whose vectors are in the checkpoint, and data, whose place is given."""
    state = torch.load(prepared[1][1], weights_only=False)
    data = state["cfg"]["task"]["data"]
    for side in ("encoder", "decoder"):
        state["cfg"]["model"][f"{side}_embed_path"] = str(tmp_path / "gone.txt")
    state["cfg"]["task"]["data"] = str(tmp_path / "gone")
    torch.save(state, tmp_path / "moved.pt")
    moved = ["--path", str(tmp_path / "moved.pt"), *prepared[1][2:], "--data", str(data)]
    for words, out in ((moved, "model"), (prepared[1], "as it was")):
        export.main([*words, "--out", str(tmp_path / out)])
    for name in ("config.json", "vocabulary.json", "weights.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "as it was" / name).read_bytes()


def test_of_a_strangers_checkpoint_no_other_model_is_built(
    prepared: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some of fairseq's evaluate an option."""
    path, *rest = prepared[1][1:]
    state = torch.load(path, weights_only=False)
    mark = tmp_path / "ran"
    layers = f"[(8, 3, 1)] + (__import__('pathlib').Path({str(mark)!r}).touch() or [])"
    state["cfg"]["model"] = {"_name": "wav2vec2", "conv_feature_layers": layers}
    state["cfg"]["task"] = {"_name": "audio_pretraining", "data": str(tmp_path)}
    torch.save(state, tmp_path / "strange.pt")
    with pytest.raises(SystemExit):
        export.main(["--path", str(tmp_path / "strange.pt"), *rest, "--out", str(tmp_path / "m")])
    assert "the translator can't run this model, only --arch sru with" in capsys.readouterr().err
    assert not mark.exists()


def test_what_cannot_be_exported_is_said(
    prepared: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = prepared
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "no checkpoint").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "other").mkdir()
    for language in ("en", "de"):
        (tmp_path / "other" / f"dict.{language}.txt").write_text("word 1\n")
        (tmp_path / "other" / f"test.en-de.{language}.idx").touch()  # tells the languages
    path, *rest = words[1:]
    for given, said in (
        ([*words, "--out", tmp_path / "full"], "full is there already"),
        (["--path", tmp_path / "none", *rest, "--out", tmp_path / "m"], "argument --path: no such file:"),
        (
            ["--path", tmp_path / "no checkpoint", *rest, "--out", tmp_path / "m"],
            "no checkpoint can't be read, or not with its dictionaries",
        ),
        ([*words, "--data", tmp_path, "--out", tmp_path / "m"], "(--data names their folder): "),
        ([*words, "--data", tmp_path / "other", "--out", tmp_path / "m"], "(--data names their folder): "),
    ):
        with pytest.raises(SystemExit) as ended:
            export.main([str(word) for word in given])
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "m").exists() and [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]
