"""distil.py: the student's data, and a run that is stopped and gone on with."""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import distil
import pytest
import torch
from comparison.fairseq_output import hypotheses
from conftest import ROOT
from fairseq.data import Dictionary, data_utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from support.exported import trained


def words_of(folder: Path, split: str, language: str) -> list[str]:
    dictionary = Dictionary.load(str(folder / f"dict.{language}.txt"))
    data = data_utils.load_indexed_dataset(str(folder / f"{split}.en-de.{language}"), dictionary)
    return [dictionary.string(sentence) for sentence in data]


@pytest.mark.slow
def test_targets_are_the_teachers(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder, _ = trained(tmp_path, "sentencepiece")
    data, teacher, out = folder / "data", folder / "save" / "checkpoint_last.pt", tmp_path / "student"
    words = [str(data), "--path", f"{teacher}:{teacher}", "--out", str(out), "--beam", "2"]
    state = torch.load(teacher, weights_only=False)
    state["cfg"]["task"] |= {"source_lang": "de", "target_lang": "en"}
    torch.save(state, tmp_path / "other.pt")
    state["cfg"]["task"] = Namespace(**state["cfg"]["task"])  # of a task without a dataclass
    torch.save(state, tmp_path / "namespace.pt")
    wrong = {tmp_path / f"{name}.pt": "it is of de-en" for name in ("other", "namespace")}
    for path, said in (wrong | {Path(__file__): "is not a checkpoint of fairseq"}).items():
        with pytest.raises(SystemExit):
            distil.main([str(data), "--path", f"{teacher}:{path}", "--out", str(out)])
        assert re.search(rf"argument --path: {re.escape(str(path))} .*{said}", capfd.readouterr().err)
    assert not out.exists()
    distil.main(words)
    command = [sys.executable, "-m", "fairseq_cli.generate", str(data / "bin"), "--user-dir", str(ROOT / "fairseq_sru")]
    command += ["--path", str(teacher), "--gen-subset", "train", "--beam", "2", "--cpu", "--max-len-b", "250"]
    expected = hypotheses(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert words_of(out / "bin", "train", "de") == expected != words_of(data / "bin", "train", "de")
    for split, language in [("train", "en"), ("valid", "de"), ("test", "de")]:
        assert words_of(out / "bin", split, language) == words_of(data / "bin", split, language)
    languages = {"source_lang": "en", "target_lang": "de"}
    task = TranslationTask.setup_task(TranslationConfig(data=str(out / "bin"), dataset_impl="mmap", **languages))
    task.load_dataset("train", combine=True)  # as fairseq-train does
    pairs = [
        [task.target_dictionary.string(pair[side]) for side in ("source", "target")] for pair in task.dataset("train")
    ]
    assert [source for source, _ in pairs] == 2 * words_of(data / "bin", "train", "en")
    assert [target for _, target in pairs] == expected + words_of(data / "bin", "train", "de")

    capfd.readouterr()
    distil.main(words)
    assert "+ fairseq-generate" not in capfd.readouterr().out
    assert words_of(out / "bin", "train", "de") == expected
    with pytest.raises(SystemExit):
        distil.main([*words[:-1], "3"])
    assert "is of another teacher or of other options: name another --out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beam", "0"], "argument --beam: must be an integer of at least 1; got '0'"),
        (["--path", "none.pt"], "none.pt"),
        ([], "argument DATA: nowhere is not a folder of parallel text that prepare.py has finished"),
    ],
)
def test_bad_input_is_named(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        distil.main(["nowhere", "--path", __file__, "--out", str(tmp_path / "out"), *words])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_teachers_data_are_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "manifest.json").write_text('{"source": "en", "target": "de"}')
    monkeypatch.setattr(distil.data_utils, "load_indexed_dataset", lambda _: [0])
    with pytest.raises(SystemExit):
        distil.main([str(tmp_path), "--path", __file__, "--out", str(tmp_path)])
    assert f"argument --out: {tmp_path} is a data set already: name another folder" in capsys.readouterr().err
