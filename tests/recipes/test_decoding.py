"""The report on translation: its systems and its file. No time decides."""

from __future__ import annotations

import json
from pathlib import Path

import decoding
import pytest
from benchmarks.decoding import CELLS, FLOAT32, GENERATE, INT8, PLAIN, STEP
from support.exported import trained


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoding, "ROOT", tmp_path)
    return tmp_path / "runs" / "decoding-report"


@pytest.mark.slow
def test_the_report(tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = trained(tmp_path, "sentencepiece")
    words = ["--data", folder / "data", "--sru", folder / "save" / "checkpoint_last.pt"]
    command = [*map(str, words), "--output", str(tmp_path / "report.json"), "--turns", "1", "--sentences", "5"]
    decoding.main(command)
    report = json.loads((tmp_path / "report.json").read_text())
    stamps = {path.name: path.read_text() for path in (work / "stamps").iterdir()}
    assert len(stamps) == 7  # two exports and a turn of each system
    again = next(path for path in (work / "stamps").iterdir() if "compiled-search" in path.name)
    again.unlink()  # as if it had been stopped there
    (tmp_path / "report.json").unlink()
    decoding.main(command)
    assert {path.name: path.read_text() for path in (work / "stamps").iterdir() if path != again} == {
        name: text for name, text in stamps.items() if name != again.name
    }
    assert again.is_file() and (tmp_path / "report.json").is_file()
    assert list(report["systems"]) == [PLAIN, STEP, GENERATE, FLOAT32, INT8]
    scores = {name: [cell["bleu"] for cell in one["cells"]] for name, one in report["systems"].items()}
    assert scores[PLAIN] == scores[STEP] == scores[GENERATE] == scores[FLOAT32]  # the same translations
    same = {name: [cell["same"] for cell in one["cells"]] for name, one in report["systems"].items()}
    del same[INT8]
    assert set(map(tuple, same.values())) == {(1.0,) * len(CELLS)}
    assert [(cell["beam"], cell["batch"]) for cell in report["systems"][INT8]["cells"]] == CELLS
    assert INT8 in capsys.readouterr().out
    with pytest.raises(SystemExit):
        decoding.main([*map(str, words), "--lstm", "none.pt", "--output", str(tmp_path / "report.json")])
    assert "argument --lstm: no such file: none.pt" in capsys.readouterr().err


def test_a_model_that_cannot_be_exported_ends_it_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("spm.model", "last.pt"):
        (tmp_path / name).write_text("no model")
    manifest = {"source": "en", "target": "de", "data_set": "own"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for language in ("en", "de"):
        (tmp_path / f"test.{language}").write_text("a\n")
    words = ["--data", tmp_path, "--sru", tmp_path / "last.pt", "--output", tmp_path / "report.json"]
    with pytest.raises(SystemExit) as ended:
        decoding.main(list(map(str, words)))
    said = str(ended.value.code)
    assert said.partition(": ")[2].startswith(f"{FLOAT32} can't take part: ")
    assert "last.pt can't be read, or not with its dictionaries" in said
    assert "\n" not in said and not (tmp_path / "report.json").exists()
    with pytest.raises(SystemExit):
        decoding.main([*map(str, words[:-1]), str(tmp_path)])
    assert f"argument --output: {tmp_path} can't be written" in capsys.readouterr().err
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        decoding.main([*map(str, words[:-1]), str(tmp_path / "mine")])
    assert f"argument --output: {tmp_path / 'mine'} is there already: remove it" in capsys.readouterr().err
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(SystemExit):
        decoding.main(list(map(str, words)))
    assert f"argument --data: {tmp_path} is not a folder of parallel text" in capsys.readouterr().err
