"""Labelled sentences: their files, folds, vectors, and a comparison on them."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from pathlib import Path

import compare
import numpy as np
import prepare
import pytest
from comparison.uses import paired_p
from corpora import sentences
from corpora.sentences import tokens
from fairseq.data import Dictionary, data_utils
from support.sentences import labelled, stanford, write


def run(name: str, folder: Path, *more: str) -> Path:
    out = folder / "out"
    prepare.main([name, "--out", str(out), "--local-dir", str(folder / "archives"), *more])
    return out


def refused(capsys: pytest.CaptureFixture[str], name: str, folder: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(name, folder, *more)
    assert ended.value.code == 2
    assert not (folder / "out").exists()
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("It's good, isn't it?", "it 's good , is n't it ?"),
        ("they 've n't seen 1.5 of the-best ( `` films '' ) !", None),
        ("do n't I 'd we 'll", "do n't i 'd we 'll"),
        ("cliché\x96d'être", None),
    ],
)
def test_what_is_tokenised_stays_as_it_is(text, expected):
    found = " ".join(tokens(text))
    assert tokens(found) == tokens(text)
    assert expected is None or found == expected


def read(folder: Path, split: str) -> list[str]:
    """Return the sentences that fairseq reads, as ``label text``."""
    columns = []
    for name in ("label", "input0"):
        words = Dictionary.load(str(folder / name / "dict.txt"))
        data = data_utils.load_indexed_dataset(str(folder / name / split), words)
        columns.append([words.string(data[i]) for i in range(len(data))])
    return [f"{label} {text}" for label, text in zip(*columns, strict=True)]


def test_folds_cover_all_sentences_and_share_none(tmp_path):
    lines = [f"{n % 2} number n{n} of all of them all" for n in range(203)]
    write(tmp_path / "archives" / "subj.all", lines)
    out = run("subj", tmp_path)
    tests = [(out / "folds" / str(k) / "labelled-test.txt").read_text().splitlines() for k in range(10)]
    assert sorted(itertools.chain(*tests)) == sorted(lines)
    assert {len(test) for test in tests} == {20, 21}
    manifest = json.loads((out / "manifest.json").read_text())
    for k in range(10):
        parts = [read(out / "folds" / str(k), split) for split in ("train", "valid", "test")]
        assert [len(part) for part in parts] == [manifest["counts"][s][k] for s in ("train", "valid", "test")]
        assert sum(map(len, parts)) == 203
        assert len(parts[1]) == pytest.approx(20, abs=1)
        labels = [sum(line.startswith("1") for line in part) / len(part) for part in parts]
        assert labels == [pytest.approx(0.5, abs=0.35)] * 3
        # a word that stands once in the training text is unknown, and so is one of the test set alone
        assert all(line[1:] == " number <unk> of all of them all" for part in parts for line in part)


@pytest.mark.parametrize(
    "name, files",
    [
        ("subj", {"subj.subjective": 0, "subj.objective": 1}),  # as subj.all has them
        ("subj", {"quote.tok.gt9.5000": 0, "plot.tok.gt9.5000": 1}),
        ("mr", {"rt-polarity.neg": 0, "rt-polarity.pos": 1}),
        ("cr", {"custrev.neg": 0, "custrev.pos": 1}),
    ],
)
def test_a_file_may_hold_one_class(name, files, tmp_path):
    for file, label in files.items():
        lines = [line[2:] for line in labelled(60, 4) if int(line[0]) == label]
        write(tmp_path / "archives" / file, lines)
    out = run(name, tmp_path)
    found = [
        line for k in range(10) for line in (out / "folds" / str(k) / "labelled-test.txt").read_text().splitlines()
    ]
    assert sorted(found) == sorted(labelled(60, 4))


def test_a_set_with_a_test_set_is_one_folder(tmp_path):
    stanford(tmp_path / "archives")
    out = run("sst2", tmp_path)
    assert [path.name for path in (out / "folds").iterdir()] == ["0"]
    assert read(out / "folds" / "0", "test") == labelled(80, 3)
    assert read(out / "folds" / "0", "valid") == labelled(60, 2)
    assert sorted(read(out / "folds" / "0", "train")) == sorted(labelled(400, 1))


def test_of_questions_a_tenth_is_held_out_of_training(tmp_path, monkeypatch):
    """TREC has six labels, a test file and none for validation."""
    monkeypatch.setattr(sentences, "SHA256", {})
    train = [f"{n % 6} question {n % 7} about {n % 5} ?" for n in range(300)]
    test = [f"{n % 6} about {n % 5} question {n % 7} ?" for n in range(60)]
    write(tmp_path / "archives" / "TREC.train.all", train)
    write(tmp_path / "archives" / "TREC.test.all", test)
    (fold,) = (run("trec", tmp_path) / "folds").iterdir()
    found = {split: read(fold, split) for split in ("train", "valid", "test")}
    assert found["test"] == test
    assert len(found["valid"]) == 30 and sorted(found["train"] + found["valid"]) == sorted(train)


def test_text_of_before_unicode_is_read(tmp_path, capsys):
    lines = [f"{n % 2} un cliché … {n % 5}" for n in range(100)]
    write(tmp_path / "archives" / "subj.all", lines, "cp1252")
    out = run("subj", tmp_path)
    assert "subj.all: is not UTF-8; read as cp1252\n" in capsys.readouterr().out
    assert set(read(out / "folds" / "3", "train")) == set(lines)


def test_what_windows_adds_to_a_text_is_no_part_of_it(tmp_path):
    write(tmp_path / "archives" / "subj.all", [f"{n % 2} a film {n % 5}\r" for n in range(100)], "utf-8-sig")
    out = run("subj", tmp_path)
    assert set(read(out / "folds" / "3", "train")) == {f"{n % 2} a film {n % 5}" for n in range(100)}


def test_an_empty_line_of_a_file_of_one_class_counts_as_one_without_words(tmp_path, capsys):
    write(tmp_path / "archives" / "mpqa.neg", ["proclaimed himself", "", "would care very little"] * 10)
    write(tmp_path / "archives" / "mpqa.pos", ["with the best of intentions"] * 30 + [""])
    out = run("mpqa", tmp_path)
    told = capsys.readouterr().out
    assert "mpqa.neg: 10 lines have no words" in told and "mpqa.pos: 1 lines have no words" in told
    found = [
        line for k in range(10) for line in (out / "folds" / str(k) / "labelled-test.txt").read_text().splitlines()
    ]
    assert (len(found), found.count("0"), found.count("1")) == (61, 10, 1)


@pytest.mark.parametrize(
    "name, file, lines, message",
    [
        ("subj", "subj.all", [*labelled(20, 1), "", *labelled(20, 2)], "subj.all, line 21: is empty"),
        ("subj", "subj.all", ["good film", "bad film", "odd film"], "subj.all: must have 2 labels.* bad, good, odd"),
        ("subj", "subj.all", labelled(8, 1), "subj: 8 sentences are too few for 10 folds"),
        ("mpqa", "mpqa.neg", ["one half"], "--local-dir: .* must have mpqa.all, or mpqa.neg and mpqa.pos"),
        ("sst2", "stsa.binary.test", ["7 a film"], "sst2: the label 7 of test is not in the training sentences"),
        ("cr", "custrev.all", labelled(20, 1), "custrev.all has sha256"),
    ],
)
def test_sentences_that_cannot_be_used_are_named(name, file, lines, message, tmp_path, capsys):
    stanford(tmp_path / "archives")
    write(tmp_path / "archives" / file, lines)
    assert re.search(message, refused(capsys, name, tmp_path))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("vectors", b"good 0.1 0.2\nfilm 0.3\n", "is no file of GloVe or word2vec, or is cut off"),
        ("vectors", gzip.compress(b"good 0.1 0.2\n", mtime=0), "is no file of GloVe or word2vec, or is cut off"),
        ("vectors", b"buon 0.1 0.2\n", "has a vector for none of the 3 words of the text"),
        ("vectors.bin", b"3 2\ngood " + bytes(8) + b"film \0\0\0\0", "is no file of GloVe or word2vec, or is cut off"),
    ],
)
def test_vectors_that_cannot_be_used_are_named(name, content, message, tmp_path, capsys):
    write(tmp_path / "archives" / "subj.all", ["0 good film", "1 bad film"] * 20)
    (tmp_path / name).write_bytes(content)
    said = refused(capsys, "subj", tmp_path, "--embeddings", str(tmp_path / name))
    assert f"argument --embeddings: {tmp_path / name} {message}" in said


def test_files_that_are_nowhere_are_listed(tmp_path, capsys, monkeypatch):
    from corpora import archives

    def unreachable(archive, folder):
        raise archives.Unreachable(f"{archive.url} cannot be downloaded")

    monkeypatch.setattr(archives, "download", unreachable)
    with pytest.raises(SystemExit):
        prepare.main(["sst2", "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert all(f"data/stsa.binary.{name}" in told for name in ("phrases.train", "dev", "test"))
    assert "--local-dir" in told


@pytest.mark.parametrize("form", ["glove", "text", "binary"])
def test_vectors_of_each_form_are_read_and_rare_words_with_one_are_known(form, tmp_path):
    write(tmp_path / "archives" / "subj.all", [f"{n % 2} word w{n} here" for n in range(100)])
    vectors = {f"w{n}": np.array([n, 0.5, -n], "f4") for n in range(0, 200, 3)}
    path = tmp_path / ("vectors.bin" if form == "binary" else "vectors.txt")
    header = b"" if form == "glove" else b"%d 3\n" % len(vectors)
    rows = {
        word: vector.tobytes() if form == "binary" else " ".join(map(str, vector)).encode()
        for word, vector in vectors.items()
    }
    path.write_bytes(header + b"".join(word.encode() + b" " + row + b"\n" for word, row in rows.items()))
    out = run("subj", tmp_path, "--embeddings", str(path))
    head, *lines = (out / "embeddings.txt").read_text().splitlines()
    assert head == "34 3"
    found = {word: [float(x) for x in numbers] for word, *numbers in map(str.split, lines)}
    assert found == {f"w{n}": [n, 0.5, -n] for n in range(0, 100, 3)}
    words = Dictionary.load(str(out / "folds" / "0" / "input0" / "dict.txt"))
    assert {word for word in words.symbols if word.startswith("w")} == {"word", *found}


def test_what_is_made_is_known_again(tmp_path, capsys):
    stanford(tmp_path / "archives")
    run("sst2", tmp_path)
    run("sst2", tmp_path)
    assert "already made" in capsys.readouterr().out
    for path in (tmp_path / "archives").iterdir():
        path.unlink()
    run("sst2", tmp_path)
    assert "already made" in capsys.readouterr().out


def test_significance_is_that_of_all_signs():
    """Against the exact test, which goes through all of them."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(10) + 0.15, rng.random(10)
    differences = ours - theirs
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean([s >= abs(differences.sum()) - 1e-9 for s in sums])
    assert paired_p(ours, theirs) == pytest.approx(exact, abs=0.015)  # 3 standard deviations of 10,000 draws
    assert paired_p(ours, ours) == 1.0


@pytest.mark.slow
def test_a_comparison_runs_and_goes_on(tmp_path, capsys):
    stanford(tmp_path / "archives", 200)
    write(tmp_path / "archives" / "stsa.binary.test", [*labelled(80, 3), "1"])  # the last has no words
    words = ["recipes/configs/sentences.yaml", f"out={tmp_path / 'out'}", "data=sst2", "seeds=[1,2]"]
    words += [f"prepare.local-dir={tmp_path / 'archives'}", "budget.updates=40", "checkpoints=2"]
    words += ["slices={updates: 4, rounds: 1}", "train.encoder-embed-dim=16", "train.batch-size=20"]
    assert compare.main(words) == 0
    assert "| lstm (baseline) |" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: len(system["scores"]) for name, system in report["systems"].items()} == dict(sru=2, lstm=2, cnn=2)
    p = report["pairs"]["sru and cnn"]  # beside the p of each against the baseline
    assert f"That of other pairs: sru and cnn {p:.4f}." in (tmp_path / "out" / "report.md").read_text()
    assert not list((tmp_path / "out" / "checkpoints").glob("*/*.pt"))
    truth = [*(line[0] for line in labelled(80, 3)), "1"]
    for seed, score in enumerate(report["systems"]["sru"]["scores"], 1):
        labels = (tmp_path / "out" / "labels" / f"sru-{seed}-0.txt").read_text().split()
        assert score == pytest.approx(100 * np.mean([a == b for a, b in zip(labels, truth, strict=True)]))
    train = (tmp_path / "archives" / "stsa.binary.phrases.train").read_text().splitlines()
    tokens = sum(len(line.split()) for line in train)  # a label less, an end more
    speed = json.loads((tmp_path / "out" / "stamps" / "slice-cnn-1.json").read_text())["tokens_per_second"]
    assert report["systems"]["cnn"]["speeds"]["seconds an epoch"] == pytest.approx(tokens / speed)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").iterdir()}
    assert compare.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").iterdir()} == before
    assert "classify" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main([*words, "train.clip-norm=2.0"])
    told = capsys.readouterr().err
    assert re.search(r"labels/sru-1-\?\.txt, .*labels/cnn-2-\?\.txt: trained with other settings or moved", told)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").iterdir()} == before
