"""What prepare.py does for large data sets does the same as the tools that it replaces; the script that measures it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, preprocess
from corpora import binarise, learn_bpe, moses
from hypothesis import given, settings
from hypothesis import strategies as st
from sacremoses import MosesPunctNormalizer, MosesTokenizer
from subword_nmt import learn_bpe as subword_nmt

LOHELP = ROOT / "recipes" / "data" / "lohelp-en-de"

# --- Moses ------------------------------------------------------------------------------------------------------------

WORDS = [
    *("Haus", "a", "I", "3", "17", "5,000", "1.000,5", "U.S.", "z.B.", "usw.", "etc.", "No.", "Nr.", "Art.", "_x_"),
    *("it's", "'s", "'so'", "don't", "„Wort“", "“so”", "‘x’", "x’s", "«x»", "»x«", "a-b", "3-4", "-", "--", "–", "—"),
    *("(a", "b)", "()", "(a)", ")", "(", "...", "..", ".", ",", ";", ":", "?", "!", "%", "&", "|", "<x>", "[y]", "…"),
    *("´", "`", "``x''", "''", '"a,"', '"a".', '"."', '"', "a,b,c", "a;b", "x@y.org", "http://x.org/a?b=c#d", "$5"),
    *("é", "ß", "日本", "。", "a\u0301", "Σ", "Σ'", "nº", "²", "½", "€", ".'", "x.'"),
    *("DOTMULTI", "DOTDOTMULTI", "xDOTMULTI."),  # sacremoses has them for full stops
]
TEXT = st.lists(
    st.tuples(st.sampled_from(WORDS) | st.text("aZ9.,;:!?()\"'-%ßé价 ", max_size=4), st.sampled_from(["", " ", " "])),
    max_size=12,
).map(lambda parts: " ".join("".join(a + b for a, b in parts).split()))


def by_sacremoses(language: str, normalise: bool, text: str) -> str:
    if normalise:
        text = MosesPunctNormalizer(language).normalize(text)
    return str(TOKENIZERS[language].tokenize(text, aggressive_dash_splits=normalise, return_str=True))


TOKENIZERS = {language: MosesTokenizer(language) for language in ("en", "de", "fr", "zh")}
LINES = {
    (language, normalise): moses.tokens(language, normalise, str) for language in TOKENIZERS for normalise in (0, 1)
}


@settings(max_examples=150)
@given(TEXT, st.sampled_from(list(LINES)))
def test_pieces_have_the_tokens_of_the_line(text: str, kind: tuple[str, bool]) -> None:
    assert LINES[kind](text) == by_sacremoses(*kind, text)


@pytest.mark.parametrize("language", ["en", "de"])
def test_lohelps_tokens_are_those_of_sacremoses(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moses, "CACHE", 100)
    tokens = moses.tokens(language, True, str)
    for line in (LOHELP / f"test.{language}").read_text("utf-8").split("\n"):
        assert tokens(line) == by_sacremoses(language, True, line)


def test_what_follows_is_done_to_tokens() -> None:
    tokens = moses.tokens("en", True, lambda text: text.upper().replace(" ", "_ "))
    assert tokens("he said: yes.") == "HE SAID_ : YES_ ."


# --- subword-nmt ------------------------------------------------------------------------------------------------------


def by_subword_nmt(words: dict[str, int], size: int) -> list[tuple[str, ...]]:
    codes = io.StringIO()
    subword_nmt.learn_bpe((f"{word} {count}" for word, count in words.items()), codes, size, is_dict=True)
    return [tuple(line.split(" ")) for line in codes.getvalue().split("\n")[1:-1]]


@settings(max_examples=100)
@given(st.dictionaries(st.text("abcé", min_size=2, max_size=9), st.integers(1, 20), min_size=1), st.integers(1, 40))
def test_merges_are_those_of_subword_nmt(words: dict[str, int], size: int) -> None:
    assert list(learn_bpe.merges(words, size)) == by_subword_nmt(words, size)


def test_lohelps_merges_are_those_of_subword_nmt() -> None:
    words = Counter((LOHELP / "train.de").read_text("utf-8").split())
    merges = list(learn_bpe.merges(words, 300))
    assert len(merges) == 300
    assert merges == by_subword_nmt(words, 300)


# --- fairseq-preprocess -----------------------------------------------------------------------------------------------


def test_what_is_binarised_is_that_of_fairseq_preprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Special and made-up words in the text, empty lines, unknown words; by several processes, block by block."""
    odd = ["", "<unk> <s> x </s> <pad> <unk>", "madeupword0000 madeupword0002", "ein Wort", "  two   spaces ", "é ﬁ"]
    for split, count in (("train", 400), ("valid", 30), ("test", 30)):
        for language in ("en", "de"):
            lines = (LOHELP / f"{split}.{language}").read_text("utf-8").split("\n")[:count]
            (tmp_path / f"{split}.{language}").write_text("".join(f"{line}\n" for line in odd + lines), "utf-8")
    known = preprocess(tmp_path)
    monkeypatch.setattr(binarise, "BLOCK", 5_000)
    monkeypatch.setattr(binarise, "cores", lambda: 2)
    for large in (False, True):
        made = tmp_path / str(large)
        binarise.binarise(("en", "de"), [tmp_path / split for split in ("train", "valid", "test")], large, made)
        files = {path.name: path.read_bytes() for path in made.iterdir()}
        assert files == {path.name: path.read_bytes() for path in known.iterdir() if path.suffix != ".log"}


def test_large_dictionaries_take_wider_numbers(tmp_path: Path) -> None:
    from fairseq.data import Dictionary, data_utils

    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.de").write_text("a b\n")
        (tmp_path / f"{split}.en").write_text(" ".join(f"w{n}" for n in range(65_500)) + "\nw65499 new\n")
    prefixes = [tmp_path / split for split in ("train", "valid", "test")]
    binarise.binarise(("en", "de"), prefixes, False, tmp_path / "bin")
    words = Dictionary.load(str(tmp_path / "bin" / "dict.en.txt"))
    data = data_utils.load_indexed_dataset(str(tmp_path / "bin" / "test.en-de.en"), words)
    assert [words.string(line) for line in data] == (tmp_path / "test.en").read_text().split("\n")[:-1]


# --- the measurement --------------------------------------------------------------------------------------------------


def test_the_size_of_wmt_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "recipes/prepare_size.py", "recipes/data/lohelp-en-de/train", "--work", str(tmp_path)]
    command += ["--percent", "0.02", "--tokenizer", "sentencepiece", "--vocab-size", "500"]
    subprocess.run(command, cwd=ROOT, check=True)
    report = json.loads((tmp_path / "size.json").read_text())
    run = report["runs"]["sentencepiece"]
    assert report["text"]["pairs"] == run["counts"]["train"]["read"] == 904
    assert run["counts"]["test"] == {"read": 3003, "binarised": 3003}
    assert 20 < report["text"]["words"]["en"] / 904 < 30
    assert {"duplicate", "length ratio over 1.5"} <= run["dropped"]["train"].keys()
    assert run["peak_gb"] >= max(step["peak_gb"] for step in run["steps"].values()) > 0.02
    assert run["cpu_minutes"] > 0
    assert 0 < sum(step["minutes"] for step in run["steps"].values()) <= run["minutes"] + 0.05
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.stdout == f"sentencepiece is done: {tmp_path}/size.json\n"
    assert json.loads((tmp_path / "size.json").read_text()) == report
    again = subprocess.run([*command[:5], "--percent", "0.01"], cwd=ROOT, capture_output=True, text=True)
    assert f"argument --results: {tmp_path}/size.json is of another size, {run['command']}: " in again.stderr
    (tmp_path / "size.json").write_text(json.dumps({**report, "machine": {**report["machine"], "cores": 999}}))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"argument --results: {tmp_path}/size.json is of another machine" in again.stderr
    (tmp_path / "size.json").unlink()  # as if it had been stopped in between
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"argument --work: {tmp_path}/sentencepiece-0.02 is there" in again.stderr
    (tmp_path / "size.json").write_text("[]")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"argument --results: {tmp_path}/size.json is not of prepare_size.py" in again.stderr
