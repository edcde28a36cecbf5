"""Text for language models, and comparisons of language and speech models."""

from __future__ import annotations

import json
import random
import re
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import compare
import prepare
import pytest
from comparison import settings, uses
from comparison.commands import Commands
from comparison.report import score_rows
from conftest import ROOT
from corpora import archives, texts
from fairseq import options, tasks
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from support.small_models import size
from support.speech import digits

CONFIGS = ROOT / "recipes" / "configs"


def text(count: int, seed: int) -> list[str]:
    """Lines in which each word tells the next."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        at = rng.randrange(20)
        lines.append(" ".join(f"w{(at + 3 * k) % 20}" for k in range(rng.randint(3, 9))))
    return lines


def write(folder: Path, names: dict[str, str]) -> dict[str, list[str]]:
    folder.mkdir(parents=True)
    written = {}
    for split, name in names.items():
        written[split] = text(300 if split == "train" else 40, len(split))
        (folder / name).write_text("".join(f" {line} \n" for line in written[split]))
    return written


PTB = {split: f"ptb.{split}.txt" for split in ("train", "valid", "test")}
WIKI = {split: f"wiki.{split}.tokens" for split in ("train", "valid", "test")}


@pytest.mark.parametrize("name, names, form", [("ptb", PTB, "tgz"), ("wikitext-2", WIKI, "zip"), ("ptb", PTB, "files")])
def test_text_is_what_fairseq_reads_of_it(name, names, form, tmp_path, monkeypatch):
    if form == "tgz":  # has another checksum than the original
        monkeypatch.setitem(texts.TEXTS, name, texts.TEXTS[name]._replace(archive=archives.Archive(texts.PTB.url)))
    written = write(tmp_path / "text" / "data", names)
    local = tmp_path / "archives"
    local.mkdir()
    if form == "tgz":
        with tarfile.open(local / "simple-examples.tgz", "w:gz") as tar:
            tar.add(tmp_path / "text", "./simple-examples")
    elif form == "zip":
        with zipfile.ZipFile(local / "wikitext-2-v1.zip", "w") as pack:
            for file in names.values():
                pack.write(tmp_path / "text" / "data" / file, f"wikitext-2/{file}")
    else:
        local = tmp_path / "text"
    prepare.main([name, "--local-dir", str(local), "--out", str(tmp_path / "out")])
    folder = tmp_path / "out" / "bin"
    words = Dictionary.load(str(folder / "dict.txt"))
    for split, lines in written.items():
        data = data_utils.load_indexed_dataset(str(folder / split), words)
        assert [words.string(data[i]) for i in range(len(data))] == lines
        assert all(data[i][-1] == words.eos() for i in range(len(data)))


def test_german_is_split_into_subwords(tmp_path, monkeypatch):
    written = write(tmp_path / "text", {split: f"{split}.de" for split in PTB})
    monkeypatch.setitem(texts.TEXTS, "debian-de", texts.TEXTS["debian-de"]._replace(vocab_size=22))
    prepare.main(["debian-de", "--local-dir", str(tmp_path / "text"), "--out", str(tmp_path / "out")])
    words = Dictionary.load(str(tmp_path / "out" / "bin" / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(tmp_path / "out" / "bin" / "test"), words)
    found = ["".join(words.symbols[i] for i in line[:-1]).replace("\u2581", " ").strip() for line in data]
    assert found == written["test"]


def test_text_that_cannot_be_used_is_named_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(texts.TEXTS, "ptb", texts.TEXTS["ptb"]._replace(archive=archives.Archive(texts.PTB.url)))
    write(tmp_path / "text", PTB)
    write(tmp_path / "part", {"train": PTB["train"]})
    write(tmp_path / "old", PTB)
    for name in ("wikitext-103", "wikitext-2"):
        write(tmp_path / "both" / name, PTB)
    (tmp_path / "old" / "ptb.test.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "text" / "ptb.valid.txt").write_text("")
    write(tmp_path / "raw", {split: f"{split}.raw" for split in PTB})
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / "simple-examples.tgz", "w:gz") as tar:
        tar.add(tmp_path / "text" / "ptb.train.txt", "ptb.train.txt")
    for local, more, message in (
        (tmp_path / "text", [], f"{tmp_path / 'text' / 'ptb.valid.txt'} is empty"),
        (tmp_path / "old", [], f"{tmp_path / 'old' / 'ptb.test.txt'} is not UTF-8"),
        (tmp_path / "part", [], f"{tmp_path / 'part'} has no ptb.valid.txt and no ptb.test.txt"),
        (
            tmp_path / "archives",
            [],
            "has no ptb.valid.txt and no ptb.test.txt",
        ),
        (
            tmp_path / "raw",
            [],
            "argument --local-dir: must have simple-examples.tgz, or ptb.train.txt, ptb.valid.txt, ptb.test.txt; "
            f"got {tmp_path / 'raw'}",
        ),
        (tmp_path / "both", [], "wikitext-103 and {}/wikitext-2 both have files of ptb".format(tmp_path / "both")),
        (tmp_path / "text", ["--embeddings", __file__], "argument --embeddings: is not for ptb"),
    ):
        with pytest.raises(SystemExit):
            prepare.main(["ptb", "--local-dir", str(local), "--out", str(tmp_path / "out"), *more])
        assert message in capsys.readouterr().err.splitlines()[-1]
    write(tmp_path / "german", {split: f"{split}.de" for split in PTB})
    with pytest.raises(SystemExit):
        prepare.main(["debian-de", "--local-dir", str(tmp_path / "german"), "--out", str(tmp_path / "out")])
    assert "error: a vocabulary of 8000 subwords: " in capsys.readouterr().err.splitlines()[-1]


def test_a_kind_has_its_data(tmp_path):
    given = settings.load(CONFIGS / "sentences.yaml", ["data=mr", "prepare.embeddings=vectors.txt", "out=x"])
    assert uses.Sentences.completed(given).train["num-classes"] == 2
    assert uses.Sentences.completed(given).train["encoder-embed-path"] == "x/data/embeddings.txt"
    with pytest.raises(ValueError, match=r"^data: must be one of cr, mr, .*; got lohelp-en-de$"):
        uses.Sentences.completed(settings.load(CONFIGS / "sentences.yaml", ["data=lohelp-en-de"]))
    for use, data, known in (
        (uses.Language, "trec", "ptb, wikitext-2, debian-de"),
        (uses.Speech, "must-c", "spoken-digits"),
    ):
        with pytest.raises(ValueError, match=rf"^data: must be one of {known}; got {data}$"):
            use.completed(settings.load(CONFIGS / "language.yaml", [f"data={data}"]))
    with pytest.raises(ValueError, match=r"^kind: must be one of translation, sentences, language, speech; got 'x'$"):
        settings.load(CONFIGS / "sentences.yaml", ["kind=x"])
    for override in ("average=2", "speed.rounds=1", "curve.beam=5", "split_compounds=true"):
        key = re.split(r"[.=]", override)[0]
        with pytest.raises(ValueError, match=rf"^{key}: is for the kind translation only; this is sentences$"):
            settings.load(CONFIGS / "sentences.yaml", [override])
    with pytest.raises(ValueError, match=r"^generate: is not for the kind sentences, which generates nothing$"):
        settings.load(CONFIGS / "sentences.yaml", ["generate.beam=5"])


def test_language_models_are_evaluated_one_at_a_time_after_all_training(tmp_path, monkeypatch):
    found = uses.Language(settings.load(CONFIGS / "language.yaml", [f"out={tmp_path}"]))
    found.jobs = 2
    done: list[str] = []
    monkeypatch.setattr(found, "updates", lambda system: 10)
    monkeypatch.setattr(found, "train", lambda run: done.append(f"train {run.system}"))
    under_way: list[int] = []

    def test(run: Any) -> None:
        under_way.append(1)
        time.sleep(0.1)
        assert sum(under_way) == 1
        under_way.append(-1)
        done.append(f"test {run.system}")

    monkeypatch.setattr(found, "test", test)
    found.train_and_test()
    found.time_decoding()
    assert sorted(done[:3]) == ["train lstm", "train sru", "train transformer"]
    assert done[3:] == ["test sru", "test lstm", "test transformer"]


def test_vectors_that_are_not_made_yet_stop_no_dry_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [
        "prepare.embeddings=vectors.txt",
        f"out={tmp_path}",
        "systems.sru=null",
        "systems.lstm=null",
        "baseline=cnn",
    ]
    given = uses.Sentences.completed(settings.load(CONFIGS / "sentences.yaml", words))
    compare.check_flags(compare.comparison_of(given), print)
    assert f"--encoder-embed-path {tmp_path}/data/embeddings.txt" in capsys.readouterr().out


@pytest.mark.parametrize("words", [8000, 10_000])
def test_language_models_have_as_many_parameters(words, tmp_path):
    """Build models from the recipe's own flags, as fairseq-train does."""
    text = "".join(f"w{n} 1\n" for n in range(words - Dictionary().nspecial))
    (tmp_path / "dict.txt").write_text(text)
    for split in ("train", "valid"):
        (tmp_path / f"{split}.idx").touch()
    given, sizes = settings.load(CONFIGS / "language.yaml", ["out=x"]), {}
    for system in given.systems:
        flags = Commands(given).train(system, 1, 10, 5, tmp_path / "save")[4:]  # what follows the plugin
        cfg = convert_namespace_to_omegaconf(
            options.parse_args_and_arch(options.get_training_parser(), [str(tmp_path), *flags])
        )
        sizes[system] = size(tasks.setup_task(cfg.task).build_model(cfg.model))
    assert sizes == pytest.approx(dict.fromkeys(sizes, sizes["sru"]), rel=0.01)


FEW = ["checkpoints=2", "slices={updates: 3, rounds: 1}", "seeds=[1]"]


@pytest.mark.slow
def test_language_models_are_compared_and_the_perplexity_is_fairseqs(tmp_path):
    write(tmp_path / "text", PTB)
    out = tmp_path / "out"
    words = [str(CONFIGS / "language.yaml"), f"out={out}", "data=ptb", f"prepare.local-dir={tmp_path / 'text'}", *FEW]
    words += ["budget={minutes: null, updates: 30}", "train.max-tokens=512", "train.decoder-embed-dim=16"]
    words += ["systems.sru.decoder-out-embed-dim=16", "systems.lstm.decoder-out-embed-dim=16"]
    words += [f"systems.transformer.decoder-{name}-dim=16" for name in ("embed", "input", "output", "ffn-embed")]
    assert compare.main(words) == 0
    report = json.loads((out / "report.json").read_text())
    for name in ("sru", "lstm", "transformer"):
        printed = (out / "logs" / f"test-{name}-1.log").read_text()
        (stated,) = re.findall(r"Perplexity: ([\d.]+)", printed)
        assert report["systems"][name]["scores"] == [pytest.approx(float(stated), abs=0.01)]
        speeds = ["training, min", "training, tokens/s", "evaluation, tokens/s"]
        assert list(report["systems"][name]["speeds"]) == speeds
        assert report["systems"][name]["failures"] == []
    text = (out / "report.md").read_text()
    assert "Budget: 30 updates for each system. Seeds: 1." in text
    assert "| system | parameters | perplexity | runs | training, min | training, tokens/s |" in text
    assert " p is" not in text


def test_large_speeds_are_whole_numbers():
    system = {"parameters": 1234, "scores": [5.0], "p_value": None, "seeds": [1]}
    report = {"counted": "parameters", "score": "perplexity", "baseline": "a", "systems": {}, "data": "trec"}
    for name, speed in (("a", 12345.6), ("b", 1.23456)):
        report["systems"][name] = {**system, "speeds": {"tokens/s": speed}}
    lines = score_rows(report).splitlines()[2:]
    assert [line.split(" | ")[-1] for line in lines] == ["12,346 |", "1.235 |", "– |"]
    assert lines[-1] == "| CNN of Kim (2014) | – | 91.2 | – | – |", "and what others published stands beside it"


@pytest.mark.slow
def test_speech_models_are_compared_and_the_error_rate_is_fairseqs(tmp_path, monkeypatch):
    from corpora import speech_sets

    for package in ("kaldi_native_fbank", "editdistance", "soundfile"):
        pytest.importorskip(package)
    monkeypatch.setattr(speech_sets, "STRINGS", {"train": 30, "valid": 5, "test": 12})
    out = tmp_path / "out"
    local = digits(tmp_path / "in", ("ada", "bob"), takes=2)
    # made here, with few strings; the recipe's own command then finds it as it would have made it
    prepare.main(["spoken-digits", "--local-dir", str(local), "--out", str(out / "data"), "--test-speakers", "bob"])
    words = [str(CONFIGS / "spoken-digits.yaml"), f"out={out}", f"prepare.local-dir={local}", *FEW]
    words += [
        "prepare.test-speakers=bob",
        "budget={minutes: null, updates: 6}",
        "train.max-tokens=2000",
        "train.encoder-embed-dim=16",
    ]
    assert compare.main(words) == 0
    report = json.loads((out / "report.json").read_text())
    for name in ("sru", "lstm"):
        printed = (out / "logs" / f"test-{name}-1.log").read_text()
        (stated,) = re.findall(r"WER: ([\d.]+)", printed)
        assert report["systems"][name]["scores"] == [pytest.approx(float(stated), abs=0.01)]
        assert list(report["systems"][name]["speeds"]) == ["training, min", "seconds an epoch"]
        assert report["systems"][name]["speeds"]["seconds an epoch"] > 0
