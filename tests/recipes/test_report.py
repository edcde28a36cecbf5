"""Reports: the verdict, the text, and those that are published."""

from __future__ import annotations

import json
from typing import Any

import pytest
from comparison import report
from conftest import ROOT


def run_of(seed: int, bleu: float, p_value: float | None) -> dict[str, Any]:
    score = lambda value: {"score": value, "mean": value, "ci": 0.5, "p_value": p_value}  # noqa: E731
    point = lambda n: {"updates": n, "train_seconds": n / 5, "clock_seconds": n / 4, "loss": 9 - n / 200}  # noqa: E731
    return {
        "seed": seed,
        "updates": 1000,
        "train_seconds": 200.0,
        "clock_seconds": 250.0,
        "parameters": 2_790_000,
        "peak_memory": 2**30,
        "peak_gpu_memory": None,
        "scores": {"BLEU": score(bleu), "chrF2": score(30 + bleu), "TER": score(80 - bleu)},
        "repetition": {"1": 0.01, "2": 0.0, "3": 0.0, "4": 0.0, "any": 0.01},
        "domains": {"help": bleu, "web": bleu - 1},
        "seconds_to_baseline": 100.0,
        "curve": [{**point(n), "BLEU": n / 1000 * bleu} for n in (500, 1000)],
        "commands": ["fairseq-train a|b", "fairseq-generate"],
    }


def canned(**systems: list[tuple[float, float | None]]) -> dict[str, Any]:
    """A report of systems with BLEU and p for each seed."""
    made = {}
    for speed, (name, seeds) in enumerate(systems.items(), 2):
        runs = [run_of(seed, *scores) for seed, scores in enumerate(seeds, 1)]
        made[name] = {"failures": [] if runs else [f"train {name} 1: no such thing"], "runs": runs}
        if runs:
            metrics = ("BLEU", "chrF2", "TER")
            made[name]["scores"] = {m: report.spread(run["scores"][m]["score"] for run in runs) for m in metrics}
            made[name]["training_tokens_per_second"] = 1000.0 * speed
            made[name]["decoding"] = [
                {"beam": beam, "batch": batch, "sentences_per_second": 10.0 * speed * batch / beam}
                for beam in (1, 5)
                for batch in (1, 64)
            ]
    found = {
        "name": "canned",
        "date": "2026-11-25 09:10",
        "data": {"data_set": "d", "source": "en", "target": "de", "tokenizer": "sentencepiece", "test_sentences": 1000,
                 "curve_sentences": 500, "speed_sentences": 100},
        "budget": {"minutes": 10.0},
        "baseline": "lstm",
        "curve_beam": 1,
        "loss": "nll_loss",
        "machine": {"cpu": "c", "cores": 2, "threads": 2, "gpu": None, "system": "s"},
        "versions": {"python": "3"},
        "prepare": "python recipes/prepare.py",
        "signatures": {"BLEU": "nrefs:1|bs:1000"},
        "references_repetition": {"1": 0.0, "2": 0.0, "3": 0.0, "4": 0.0, "any": 0.0},
        "systems": made,
        "samples": [{"source": "a | b", "reference": "r", "systems": dict.fromkeys(made, "t")}],
    }  # fmt: skip
    return {"verdict": report.verdict(found), **found}


@pytest.mark.parametrize(
    ("systems", "words"),
    [
        ({"lstm": [(20.0, None)], "sru": [(21.2, 0.001)]},
         "sru has 21.2 BLEU, the baseline lstm 20.0. Significant (paired bootstrap, p < 0.05): BLEU yes (p = 0.001), "
         "chrF2 yes (p = 0.001), TER yes (p = 0.001). One seed: another may change the result. It trains 1.50 times "
         "as fast as the baseline. It decodes 1.50 (beam 1, batch 1), 1.50 (beam 1, batch 64), 1.50 (beam 5, batch 1) "
         "and 1.50 (beam 5, batch 64) times as fast."),
        ({"lstm": [(20.0, None)], "sru": [(19.9, 0.4)]},
         "sru has 19.9 BLEU, the baseline lstm 20.0. Significant (paired bootstrap, p < 0.05): BLEU no (p = 0.400), "),
        ({"lstm": [(20.0, None), (20.4, None)], "sru": [(21.0, 0.01), (21.4, 0.02)]},
         "sru has 21.2 BLEU, the baseline lstm 20.2 (means of 2 seeds). Significant (paired bootstrap, p < 0.05): "
         "BLEU in 2 of 2 seeds, chrF2 in 2 of 2, TER in 2 of 2. It trains"),
        ({"lstm": [(20.0, None), (20.4, None)], "sru": [(21.0, 0.01), (20.5, 0.4)]}, "BLEU in 1 of 2 seeds, "),
        ({"lstm": [(20.0, None), (23.0, None)], "sru": [(24.0, 0.01), (21.0, 0.01)]},  # one up, one down
         "BLEU in 1 of 2 seeds (1 the other way), "),
        ({"lstm": [(20.0, None)], "sru": [(21.0, 0.01)], "sru2": [(22.0, 0.01)], "sru4": [(21.5, 0.01)], "sru3": []},
         "sru2, the best of the 3 beside the baseline, has 22.0 BLEU, the baseline lstm 20.0. The rest: sru4 21.5, "
         "sru 21.0. Significant"),
        ({"lstm": [(20.0, None)], "sru": [(22.0, 0.01)], "slow": [(21.0, 0.01)]},  # which is made the faster
         "slow decodes faster than sru in 4 of 4 settings."),
        ({"lstm": [(20.0, None)], "sru": [(21.0, 0.01)], "sru3": []}, "Failed: sru3; see the end."),
        ({"lstm": [], "sru": [(21.0, None)]}, "No verdict: the baseline lstm failed. Failed: lstm"),
        ({"lstm": [(20.0, None)]}, "lstm has 20.0 BLEU. Nothing to compare it with, "),
    ],
)  # fmt: skip
def test_the_verdict_says_no_more_than_the_numbers(systems, words):
    assert words in canned(**systems)["verdict"]


def test_each_score_is_tested_by_itself():
    found = canned(lstm=[(20.0, None)], sru=[(21.0, 0.01)])
    scores = found["systems"]["sru"]["runs"][0]["scores"]
    scores["chrF2"] |= {"score": 50.5, "p_value": 0.2}
    for ter, said in ((59.0, "yes"), (61.0, "the other way")):
        scores["TER"] |= {"score": ter, "p_value": 0.03}
        said_of_all = report.verdict(found)
        assert f"BLEU yes (p = 0.010), chrF2 no (p = 0.200), TER {said} (p = 0.030)." in said_of_all


@pytest.mark.parametrize(
    ("lstm", "sru", "copied", "words"),
    [
        (0.06, 0.02, None, "No verdict: sru has 0.0 BLEU and the baseline lstm 0.1; below 1.0 no difference counts."),
        (0.06, 0.02, 0.9, "No verdict: sru has 0.0 BLEU and the baseline lstm 0.1; below 1.0 no difference counts."),
        (5.0, 4.0, 6.6, "No verdict: sru has 4.0 BLEU and the baseline lstm 5.0; copying the source has 6.6."),
        (7.0, 4.0, 6.6, "sru has 4.0 BLEU, the baseline lstm 7.0."),
        (0.5, 4.0, 0.9, "sru has 4.0 BLEU, the baseline lstm 0.5."),
    ],
)
def test_scores_that_mean_nothing_have_no_verdict(lstm, sru, copied, words):
    """However sure the bootstrap is."""
    found = canned(lstm=[(lstm, None)], sru=[(sru, 0.001)])
    found |= {} if copied is None else {"copied_source": copied}
    said = report.verdict(found)
    assert said.startswith(words)
    assert ("Significant" in said) == (not words.startswith("No verdict"))


def test_only_runs_with_the_same_seed_are_compared():
    found = canned(lstm=[(20.0, None), (30.0, None)], sru=[(21.0, 0.01), (22.0, 0.01)])
    found["systems"]["lstm"]["runs"].pop()
    assert "sru has 21.0 BLEU, the baseline lstm 20.0. " in report.verdict(found)
    found["systems"]["lstm"]["runs"][0]["seed"] = 9
    assert report.verdict(found).startswith("lstm has 25.0 ± 7.1 BLEU. Nothing to compare it with, on a seed")


def test_the_report_names_failures_and_what_is_missing(tmp_path):
    facts = canned(lstm=[(20.0, None), (20.4, None)], sru=[(21.0, 0.01), (20.5, 0.4)], bad=[])
    facts["systems"]["sru"]["precision"] = "bfloat16"
    facts["systems"]["lstm"]["translator"] = {"missing": "it can't"}
    report.write(facts, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report.FILES)
    assert json.loads((tmp_path / "report.json").read_text()) == facts
    text = (tmp_path / "report.md").read_text()
    assert text.split("\n")[2] == facts["verdict"]
    assert "## Failed: bad\n\n    train bad 1: no such thing" in text
    assert "Trained with products in bfloat16 (--amp): sru." in text
    assert "The translator does not run lstm: it can't\n" in text
    assert "| web | 19.2 ± 0.3 | 19.8 ± 0.4 |" in text
    assert "| source | a \\| b |" in text
    svg = (tmp_path / "curves.svg").read_text()
    assert svg.count('id="line2d_') > 0 and "<svg" in svg


def test_a_report_without_curve_and_timed_decoding(tmp_path):
    facts = canned(lstm=[(20.0, None)], sru=[(21.0, 0.01)]) | {"curve_beam": None}
    for system in facts["systems"].values():
        system["decoding"] = system["runs"][0]["curve"] = []
    assert report.verdict(facts).endswith("It trains 1.50 times as fast as the baseline.")
    report.write(facts, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "curves.svg" not in text and "Decoding" not in text
    assert "| sru | 21.0 | 0.010 |" in text


def test_a_report_without_any_run_is_written(tmp_path):
    report.write(canned(lstm=[]), tmp_path)
    assert "No verdict: the baseline lstm failed." in (tmp_path / "report.md").read_text()


PUBLISHED = [
    path
    for path in sorted((ROOT / "recipes" / "results").rglob("report.json"))
    if path.with_name("report.md").is_file() and "gpu" not in path.parts
]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_what_is_published_is_what_the_command_writes(path):
    found = json.loads(path.read_text())
    assert "verdict" not in found or report.verdict(found) == found["verdict"]
    assert report.render(found) == path.with_name("report.md").read_text()


def test_a_report_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path / "report.json")])
    assert ended.value.code == 2 and f"{tmp_path / 'report.json'}" in capsys.readouterr().err
