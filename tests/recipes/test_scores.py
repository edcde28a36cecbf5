"""Scores against the sacreBLEU command, and the share of translations that get stuck."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from comparison import scores
from support.paired import check_paired

REFERENCES = [
    "Die Katze sitzt auf der Matte .",
    "Python-Skripte aus Basic aufrufen",
    "Mit dem nächsten Absatz verschmelzen",
    "Wählen Sie das Gerät aus der Liste aus, dann drücken Sie die Taste.",
    "Zulässig sind Werte von -100 % (nur Schwarz) bis +100 % (nur Weiß).",
] * 8


def spoilt(share: float, seed: int) -> list[str]:
    """The references without some of their words."""
    draw = random.Random(seed)
    return [" ".join(word for word in line.split() if draw.random() > share) or "." for line in REFERENCES]


def sacrebleu(folder: Path, *options: str, **texts: list[str]) -> float:
    """BLEU of the text "a" by the ``sacrebleu`` command."""
    for name, text in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "a", "-b", "-w", "10", *options]
    return float(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def test_scores_and_p_values_are_those_of_the_command(tmp_path):
    texts = {"base": spoilt(0.3, 1), "near": spoilt(0.3, 2), "better": spoilt(0.1, 3)}
    for name, text in {"ref": REFERENCES, **texts}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    found = scores.compare(REFERENCES, {name: texts[name] for name in ("better", "base", "near")}, "base", "de")
    check_paired(found["systems"], tmp_path / "ref", [tmp_path / name for name in texts])
    assert found["systems"]["better"]["BLEU"]["p_value"] < 0.01 < 0.05 < found["systems"]["near"]["BLEU"]["p_value"]
    assert "bs:1000" in found["signatures"]["BLEU"]


def test_bleu_is_that_of_the_command(tmp_path):
    output = spoilt(0.2, 4)
    assert scores.bleu(REFERENCES, output, "de") == pytest.approx(sacrebleu(tmp_path, ref=REFERENCES, a=output))


def test_words_of_chinese_are_found(tmp_path):
    """Its sentences have no spaces: without that, each would be a word."""
    references = ["\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002"] * 3
    output = [line[:-3] + "\u5bb6\u3002" for line in references]
    expected = sacrebleu(tmp_path, "-tok", "zh", ref=references, a=output)
    assert scores.bleu(references, output, "zh") == pytest.approx(expected) and expected > 40
    for code in ("zh", "zh_CN", "zho_Hans", "cmn"):
        found = scores.compare(references, {"a": output}, "a", code)
        assert "tok:zh" in found["signatures"]["BLEU"] and found["systems"]["a"]["TER"]["score"] < 60
        assert scores.bleu(references, output, code) == pytest.approx(expected)


def test_bleu_of_thai_is_of_characters(tmp_path):
    references = ["วันนี้อากาศดี"] * 3
    output = [line[:-2] for line in references]
    expected = sacrebleu(tmp_path, "-tok", "char", ref=references, a=output)
    for code in ("th", "tha_Thai"):
        assert scores.bleu(references, output, code) == pytest.approx(expected) and expected > 40
        found = scores.compare(references, {"a": output}, "a", code)
        ter = found["systems"]["a"]["TER"]["score"]
        assert ter == pytest.approx(100 * 2 / len(references[0])) and "tok:char" in found["signatures"]["TER"]


def test_equal_outputs_do_not_differ():
    output = spoilt(0.3, 1)
    found = scores.compare(REFERENCES, {"a": output, "b": output}, "a", "de")["systems"]["b"]
    assert {found[metric]["p_value"] for metric in scores.METRICS} == {1.0}


def test_equal_scores_of_unlike_outputs_do_not_differ():
    found = scores.compare(REFERENCES, {name: [name] * len(REFERENCES) for name in "xy"}, "x", "de")["systems"]["y"]
    assert found["BLEU"] == {"score": 0.0, "mean": 0.0, "ci": 0.0, "p_value": 1.0}


def test_nothing_is_compared_without_the_baseline():
    found = scores.compare(REFERENCES, {"a": spoilt(0.3, 1), "b": spoilt(0.1, 2)}, "failed", "de")["systems"]
    assert {found[name][metric]["p_value"] for name in "ab" for metric in scores.METRICS} == {None}


def test_each_domain_is_scored_by_itself(tmp_path):
    output = spoilt(0.2, 4)
    labels = ["long" if len(line) > 40 else "short" for line in REFERENCES]
    found = scores.bleu_by_domain(REFERENCES, output, labels, "de")
    assert list(found) == ["long", "short"]
    for domain, score in found.items():
        texts = {
            name: [line for line, label in zip(text, labels, strict=True) if label == domain]
            for name, text in (("ref", REFERENCES), ("a", output))
        }
        assert score == pytest.approx(sacrebleu(tmp_path, **texts))


def test_compounds_are_split_in_tokens(tmp_path):
    reference, output = ["Die Python-Skripte (x-y) sind da."] * 2, ["Das Python-Skripte (x-y) ist da."] * 2
    by_hand = {  # tokens of 13a, then s/(\S)-(\S)/$1 ##AT##-##AT## $2/g
        "ref": ["Die Python ##AT##-##AT## Skripte ( x ##AT##-##AT## y ) sind da ."] * 2,
        "a": ["Das Python ##AT##-##AT## Skripte ( x ##AT##-##AT## y ) ist da ."] * 2,
    }
    expected = sacrebleu(tmp_path, "-tok", "none", "--force", **by_hand)
    assert scores.bleu_compounds_split(reference, output) == pytest.approx(expected)
    assert scores.bleu(reference, output, "de") != pytest.approx(expected)


@pytest.mark.parametrize(
    ("sentence", "n"),
    [
        ("", 0),
        ("a a", 0),
        ("a b a b", 0),
        ("a a a", 1),
        ("x a a a y", 1),
        ("a b a b a b", 2),
        ("the end of the end of the end of it", 3),
        ("a b c d a b c d a b c d", 4),
        ("a b c d e " * 3, 0),
        ("a a b a a b a a b", 3),
        ("a a a a a a", 1),
        ("aaa", 0),
    ],
)
def test_repeated_finds_the_shortest_n_gram(sentence, n):
    assert scores.repeated(sentence) == n


def test_repetition_is_a_share_of_the_sentences():
    found = scores.repetition(["a a a", "b b b b", "a b a b a b", "c"], "de")
    assert found == {"1": 0.5, "2": 0.25, "3": 0.0, "4": 0.0, "any": 0.75}


def test_repetition_without_spaces_is_one_of_characters():
    sentences = ["我们我们 我们走", "好", "我们走", "很很很"]
    assert scores.repetition(sentences, "zh_CN") == {"1": 0.25, "2": 0.25, "3": 0.0, "4": 0.0, "any": 0.5}
    assert scores.repetition(["价格为1000元", "在www.example.org上"], "zh")["any"] == 0
    assert scores.repetition(sentences, "de")["any"] == 0
