"""The tables of README and docs are those that their files give."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import tables
from conftest import ROOT


def test_every_table_is_up_to_date() -> None:
    command = [sys.executable, "recipes/tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_figures_of_the_readmes_sentences_are_those_of_the_files() -> None:
    results, said = ROOT / "recipes" / "results", " ".join((ROOT / "README.md").read_text().split())

    def mean(report: str, system: str) -> float:
        runs = json.loads((results / report / "report.json").read_text())["systems"][system]["runs"]
        return statistics.mean(run["scores"]["BLEU"]["score"] for run in runs)

    debian, lohelp = (round(mean(of, "sru"), 1) - round(mean(of, "lstm"), 1) for of in ("debian", "lohelp"))
    assert f"SRU had {debian:.1f} BLEU more on `debian`" in said
    assert f"SRU had {lohelp:.1f} BLEU more, significant with no seed" in said
    scored = {path.stem: path.read_text() for path in (results / "quickstart").glob("*.txt")}
    bleu = {name: re.findall(r"^  BLEU +([\d.]+)", text, re.MULTILINE)[0] for name, text in scored.items()}
    assert f"It scores {bleu['bfloat16']} BLEU, without bfloat16 {bleu['float32']}." in said
    models = json.loads((results / "uses" / "debian-de" / "report.json").read_text())["systems"]
    (sru,), (lstm,) = (models[name]["scores"] for name in ("sru", "lstm"))
    assert f"an {100 * (1 - sru / lstm):.0f} % lower perplexity" in said


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two pages and two tables."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n")
    (tmp_path / "docs" / "a.md").write_text("<!-- table: two -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"one": lambda: "| 1 |\n", "two": lambda: "| 2 |\n"})
    return tmp_path


def test_tables_are_written_and_the_rest_is_left(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "README.md").read_text()
    with pytest.raises(
        SystemExit, match=r"^README.md: out of date; run python recipes/tables.py\ndocs/a.md: out of date"
    ):
        tables.main(["--check"])
    assert (project / "README.md").read_text() == before
    tables.main([])
    assert capsys.readouterr().out == "wrote README.md\nwrote docs/a.md\n"
    assert (project / "README.md").read_text() == before.replace("old", "\n| 1 |\n")
    tables.main(["--check"])


def test_figures_are_those_of_the_files() -> None:
    """One cell of each kind, read by hand from the JSON."""
    speed = json.loads((ROOT / "recipes" / "results" / "speed" / "speed.json").read_text())
    case = next(c for c in speed["cases"] if (c["what"], c["length"], c["batch"]) == ("forward", 1, 1))
    ms = {name: spread["median"] for name, spread in case["ms"].items()}
    ratio = min(ms["sru package"], ms["sru scripted"]) / ms["SRU"]
    row = next(line for line in tables.layer_in_short().splitlines() if line.startswith("| one decoding step, one"))
    assert row.endswith(f" {ratio:.2f} |")
    report = json.loads((ROOT / "recipes" / "results" / "debian" / "report.json").read_text())
    sru, lstm = (report["systems"][name]["decoding"] for name in ("sru", "fairseq-lstm"))
    cells = [a["sentences_per_second"] / b["sentences_per_second"] for a, b in zip(sru, lstm, strict=True)]
    assert f"| debian | fairseq-lstm | {' | '.join(f'{cell:.2f}' for cell in cells)} |" in tables.decoding()


def test_sentences_stand_next_to_published_accuracies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    systems = {
        "sru": {"scores": [93.0, 94.0], "p_value": 0.25, "speeds": {"seconds an epoch": 2.5}},
        "lstm": {"scores": [92.0, 92.5], "p_value": None, "speeds": {"seconds an epoch": 5}},
        "cnn": {"scores": [90.0, 90.0], "p_value": None, "speeds": {"seconds an epoch": 4}},
    }
    report = {"score": "accuracy, %", "data": "trec", "systems": systems, "date": "2026-01-02 03:04"}
    report["machine"] = {"cpu": "Abacus", "threads": 1}
    for name, more in {"trec": {}, "trec-glove": {"vectors": "glove.txt"}}.items():
        (tmp_path / "uses" / name).mkdir(parents=True)
        (tmp_path / "uses" / name / "report.json").write_text(json.dumps({**report, **more, "name": name}))
    link, glove = (f"[{name}](../recipes/results/uses/{name}/report.md)" for name in ("trec", "trec-glove"))
    ours = "93.5 ± 0.7 | 92.2 ± 0.4 | 90.0 ± 0.0 | 0.2500 | 0.50"
    assert tables.sentences().splitlines()[0] == (
        "trec: Abacus, threads: 1, 2026-01-02. trec-glove: Abacus, threads: 1, 2026-01-02."
    )
    assert tables.sentences().splitlines()[-2:] == [
        f"| {link} | {ours} | 91.2 | – |",
        f"| {glove} | {ours} | 92.8 | 94.8 |",
    ]
