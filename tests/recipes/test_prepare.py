"""Preparing data sets: each from archives of its real layout to binarised files; odd text; memory; interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import prepare
import pytest
import sentencepiece
from common import hold
from common.hold import held
from conftest import ROOT, ended
from corpora import archives, building, registry, subwords
from fairseq.data import Dictionary, data_utils
from sacrebleu.dataset import DATASETS
from support.archives import (
    iwslt_archive,
    lohelp,
    multi30k_archives,
    text_of,
    tgz,
    wmt14_archives,
)
from support.processes import LONG

BIN = Path(sys.executable).parent  # of the commands of packages


def binarised(out: Path, split: str, language: str) -> list[str]:
    """The lines that fairseq will read, in subwords."""
    dictionary = Dictionary.load(str(out / "bin" / f"dict.{language}.txt"))
    (index,) = (out / "bin").glob(f"{split}.*.{language}.idx")
    data = data_utils.load_indexed_dataset(str(index.with_suffix("")), dictionary)
    return [dictionary.string(tokens) for tokens in data]


def plain_text(out: Path, split: str, language: str) -> list[str]:
    """The binarised lines without sentencepiece's marks."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    return [model.decode(line.split()) for line in binarised(out, split, language)]


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def bin_sums(out: Path) -> dict[str, str]:
    """Checksums of the binarised files; the log has times and paths."""
    paths = sorted((out / "bin").iterdir())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what happens before fairseq-preprocess, which takes seconds."""

    def binarise(languages: subwords.Pair, prefixes: list[Path], to: Path, *words: Any) -> None:
        to.mkdir()
        for language in languages:
            (to / f"dict.{language}.txt").write_text(f"stands for {language}")

    monkeypatch.setattr(building, "binarise", binarise)


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """``know(name, folder)``: the archives in ``folder`` are those of the data set, by checksum."""

    def change(name: str, folder: Path) -> None:
        def known(archive: archives.Archive) -> archives.Archive:
            content = (folder / archive.name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            return replace(archive, bytes=len(content), sha256=digest) if archive.sha256 else archive

        corpus = registry.CORPORA[name]
        changed = replace(corpus, archives=tuple(known(archive) for archive in corpus.archives))
        monkeypatch.setitem(registry.CORPORA, name, changed)
        if corpus.sacrebleu:
            test_set = folder / registry.sacrebleu_archive(corpus.sacrebleu).name
            monkeypatch.setattr(DATASETS[corpus.sacrebleu], "md5", [hashlib.md5(test_set.read_bytes()).hexdigest()])

    return change


class Own:
    """A user's own text, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for split, count in (("train", 400), ("valid", 30), ("test", 40)):
            for language in ("en", "de"):
                self.write(f"{split}.{language}", lohelp(split, language, count=count))

    def write(self, name: str, lines: list[str] | list[bytes]) -> None:
        (self.folder / name).write_bytes(text_of(lines))

    def lines(self, name: str) -> list[bytes]:
        return (self.folder / name).read_bytes().split(b"\n")[:-1]

    def words(self, out: Path, *options: str) -> list[str]:
        prefixes = [w for s in registry.SPLITS for w in (f"--{s}-prefix", str(self.folder / s))]
        size = [] if "--vocab-size" in options else ["--vocab-size", "300"]
        return [*prefixes, "--source-lang", "en", "--target-lang", "de", "--out", str(out), *size, *options]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    (tmp_path / "own").mkdir()
    return Own(tmp_path / "own")


Fails = Callable[[list[str]], str]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """The message of a run that has to fail."""

    def run(words: list[str]) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as error:
            prepare.main(words)
        assert error.value.code == 2
        return capfd.readouterr().err.split("prepare.py: error: ")[-1].split("pytest: error: ")[-1]

    return run


# --- the data sets ----------------------------------------------------------------------------------------------------


def test_multi30k(tmp_path: Path, know: Callable[[str, Path], None]) -> None:
    local, out = tmp_path / "archives", tmp_path / "out"
    multi30k_archives(local)
    know("multi30k-en-de", local)
    prepare.main(["multi30k-en-de", "--out", str(out), "--local-dir", str(local), "--vocab-size", "300"])
    for language in ("en", "de"):
        assert plain_text(out, "train", language) == lohelp("train", language, count=300)
        for split, count in (("valid", 300), ("test", 100)):
            text = lohelp(split, language, count=count)
            assert (out / f"{split}.{language}").read_bytes() == text_of(text)
            assert (out / f"{split}.sp.{language}").read_text().splitlines()[0].startswith("▁")
        assert len(binarised(out, "test", language)) == 100
    manifest = manifest_of(out)
    assert {source["name"]: source["sha256"] for source in manifest["sources"]} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in local.iterdir()
    }
    text = {f"{split}.{language}" for split in ("valid", "test") for language in ("en", "de")}
    text |= {f"{split}.sp.{language}" for split in registry.SPLITS for language in ("en", "de")}
    assert {path.name for path in out.iterdir()} == text | {"spm.model", "bin", "manifest.json", hold.NAME}


def shell(command: str, content: bytes = b"", **env: str) -> bytes:
    done = subprocess.run(["bash", "-c", command], input=content, capture_output=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


# as in fairseq's prepare-iwslt14.sh
GREP_TRAIN = (
    "grep -v '<url>' | grep -v '<talkid>' | grep -v '<keywords>' | sed -e 's/<title>//g' | sed -e 's/<\\/title>//g' | "
    "sed -e 's/<description>//g' | sed -e 's/<\\/description>//g'"
)
GREP_TEST = (
    "grep '<seg id' | sed -e 's/<seg id=\"[0-9]*\">\\s*//g' | sed -e 's/\\s*<\\/seg>\\s*//g' | sed -e \"s/’/'/g\""
)


def test_iwslt14_is_split_and_in_lower_case(tmp_path: Path, quick: None) -> None:
    local, out = tmp_path / "archives", tmp_path / "out"
    iwslt_archive(local)
    prepare.main(["iwslt14-de-en", "--out", str(out), "--local-dir", str(local), "--vocab-size", "200"])
    steps = manifest_of(out)["counts"]["train"]
    assert steps["read"] == 1000 + 2 * 20
    for language in ("de", "en"):
        lower = {line.lower() for line in lohelp("train", language, count=1000)}
        lower |= {f"ted talk: {line}" for line in lower}
        valid = (out / f"valid.{language}").read_text().splitlines()
        assert len(valid) == steps["selected"] // 23 and set(valid) <= lower
        wanted = []
        for number in range(len(registry.IWSLT_TEST)):
            wanted += [*(line.lower() for line in lohelp("test", language, number * 20, 20)), "it's a test"]
        assert (out / f"test.{language}").read_text().split("\n")[:-1] == wanted


@pytest.mark.slow
def test_iwslt14_is_what_fairseqs_script_makes(tmp_path: Path) -> None:
    """With the commands of the script, and the command lines of sacremoses and subword-nmt, as the truth."""
    local, out = tmp_path / "archives", tmp_path / "out"
    iwslt_archive(local)
    with tarfile.open(local / "de-en.tgz") as tar:
        content = {item.name: tar.extractfile(item).read() for item in tar}  # type: ignore[union-attr]
    size = ["--tokenizer", "moses-bpe", "--vocab-size", "200"]
    prepare.main(["iwslt14-de-en", "--out", str(out), "--local-dir", str(local), *size])

    tokens: dict[str, list[list[str]]] = {"train": [], "test": []}
    for language in ("de", "en"):
        names = [f"de-en/IWSLT14.{name}.de-en.{language}.xml" for name in registry.IWSLT_TEST]
        train = shell(GREP_TRAIN, content[f"de-en/train.tags.de-en.{language}"])
        test = b"".join(shell(GREP_TEST, content[name]) for name in names)
        for split, text in (("train", train), ("test", test)):
            done = shell(f"{BIN}/sacremoses -q -l {language} tokenize", text).decode().lower()
            tokens[split].append([line.strip() for line in done.split("\n")[:-1]])
    pairs = []
    dropped: Counter[str] = Counter()
    for de, en in zip(*tokens["train"], strict=True):
        a, b = len(de.split()), len(en.split())
        if not a or not b:
            dropped["empty"] += 1
        elif max(a, b) > 175:
            dropped["longer than 175 tokens"] += 1
        elif a / b > 1.5 or b / a > 1.5:
            dropped["length ratio over 1.5"] += 1
        else:
            pairs.append((de, en))
    splits = {"train": [pair for number, pair in enumerate(pairs, 1) if number % 23], "valid": pairs[22::23]}
    splits["test"] = list(zip(*tokens["test"], strict=True))
    for name, wanted in splits.items():
        for side, language in enumerate(("de", "en")):
            (tmp_path / f"{name}.{language}").write_bytes(text_of([pair[side] for pair in wanted]))
    manifest = manifest_of(out)
    assert dropped.keys() == {"empty", "longer than 175 tokens", "length ratio over 1.5"}
    assert manifest["dropped"]["train"] == dropped

    joint = (tmp_path / "train.de").read_bytes() + (tmp_path / "train.en").read_bytes()
    codes = shell(f"{BIN}/subword-nmt learn-bpe -s 200", joint)
    (tmp_path / "codes").write_bytes(codes)
    assert (out / "bpe.codes").read_bytes() == codes
    for language in ("de", "en"):
        for name in registry.SPLITS:
            text = (tmp_path / f"{name}.{language}").read_bytes()
            assert (out / f"{name}.bpe.{language}").read_bytes() == shell(
                f"{BIN}/subword-nmt apply-bpe -c {tmp_path}/codes", text
            )
        lines = (out / f"test.bpe.{language}").read_text().split("\n")[:-1]
        dictionary = Dictionary.load(str(out / "bin" / f"dict.{language}.txt"))
        known = [" ".join(w if w in dictionary else "<unk>" for w in line.split()) for line in lines]
        assert binarised(out, "test", language) == known


def test_wmt14(tmp_path: Path, know: Callable[[str, Path], None]) -> None:
    local, out = tmp_path / "archives", tmp_path / "out"
    pairs = wmt14_archives(local)
    know("wmt14-en-de", local)
    prepare.main(["wmt14-en-de", "--out", str(out), "--local-dir", str(local), "--vocab-size", "400"])
    manifest = manifest_of(out)

    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    kept, dropped = [], {"not UTF-8": 3, "control character": 3, "empty": 2, "duplicate": 3}
    dropped |= {"longer than 250 tokens": 0, "length ratio over 1.5": 0}
    for pair in pairs["train"]:
        a, b = (len(model.encode(text.decode())) for text in pair)
        if max(a, b) > 250:
            dropped["longer than 250 tokens"] += 1
        elif max(a, b) / min(a, b) > 1.5:
            dropped["length ratio over 1.5"] += 1
        else:
            kept.append(tuple(text.decode() for text in pair))
    assert min(dropped.values()) > 0
    assert manifest["dropped"] == {"train": dropped, "valid": {}, "test": {}}
    assert list(zip(plain_text(out, "train", "en"), plain_text(out, "train", "de"), strict=True)) == kept
    fit = len(pairs["train"])
    assert list(manifest["counts"]["train"].values()) == [fit + 11, fit, len(kept)]
    for split in ("valid", "test"):
        for side, language in enumerate(("en", "de")):
            wanted = [pair[side] for pair in pairs[split]]
            assert (out / f"{split}.{language}").read_bytes() == text_of(wanted)
            assert len(binarised(out, split, language)) == len(wanted)
    with tarfile.open(local / "test-full.tgz") as tar:
        tar.extractall(tmp_path, filter="data")
    dataset = DATASETS["wmt14/full"]
    for name, language in zip(dataset.langpairs["en-de"], ("en", "de"), strict=True):
        dataset._convert_format(str(tmp_path / name), str(tmp_path / "by sacrebleu"))
        assert (out / f"test.{language}").read_bytes() == (tmp_path / "by sacrebleu").read_bytes()


def test_debian_keeps_its_labels(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:

    def build(out: Path, local_dir: Path | None) -> dict[str, Any]:
        assert local_dir == tmp_path
        out.mkdir(parents=True)
        for split in registry.SPLITS:
            for language in ("en", "de"):
                (out / f"{split}.{language}").write_bytes(text_of(lohelp(split, language, count=100)))
            (out / f"{split}.domains").write_text("help\ntext\n" * 50)
        return {"packages": [{"package": "text", "sha256": "0"}]}

    monkeypatch.setitem(registry.CORPORA, "debian-en-de", replace(registry.CORPORA["debian-en-de"], build=build))
    words = ["debian-en-de", "--out", str(tmp_path / "out"), "--local-dir", str(tmp_path), "--vocab-size", "200"]
    prepare.main(words)
    assert (tmp_path / "out" / "test.domains").read_text() == "help\ntext\n" * 50
    assert (tmp_path / "out" / "valid.de").read_bytes() == text_of(lohelp("valid", "de", count=100))
    assert manifest_of(tmp_path / "out")["domains"] is True
    assert manifest_of(tmp_path / "out")["sources"] == [{"packages": [{"package": "text", "sha256": "0"}]}]
    before = files(tmp_path / "out")
    prepare.main(words)
    assert files(tmp_path / "out") == before


# --- archives that can't be had or used -------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise urllib.error.URLError("no internet")

    monkeypatch.setattr(archives.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(archives, "PAUSE", 0.0)
    monkeypatch.setenv("SACREBLEU", str(tmp_path / "sacrebleu"))


@pytest.mark.parametrize("name", [name for name, corpus in registry.CORPORA.items() if corpus.archives])
def test_without_internet_every_file_is_named(name: str, offline: None, tmp_path: Path, fails: Fails) -> None:
    message = fails([name, "--out", str(tmp_path / "out")])
    corpus = registry.CORPORA[name]
    for archive in corpus.archives:
        assert f"{archive.url} (" in message or (not archive.sha256 and archive.url in message)
        assert not archive.sha256 or f"sha256 {archive.sha256}" in message
    if corpus.sacrebleu:
        assert f"{DATASETS[corpus.sacrebleu].data[0]} (MD5 {DATASETS[corpus.sacrebleu].md5[0]})" in message
    assert "--local-dir" in message
    assert not list(tmp_path.iterdir())


def test_a_test_set_is_taken_from_sacrebleus_cache(
    offline: None, quick: None, tmp_path: Path, know: Callable[[str, Path], None]
) -> None:
    local = tmp_path / "archives"
    multi30k_archives(local)
    know("multi30k-en-de", local)
    raw = tmp_path / "sacrebleu" / "multi30k" / "2016" / "raw"  # where sacreBLEU puts it
    raw.mkdir(parents=True)
    name = "multi30k_test_sets_d3ec2a38.tar.gz"
    (local / name).rename(raw / f"multi30k_2016.{name}")
    prepare.main(["multi30k-en-de", "--out", str(tmp_path / "out"), "--local-dir", str(local), "--vocab-size", "300"])
    assert (tmp_path / "out" / "test.de").read_bytes() == text_of(lohelp("test", "de", count=100))


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"cut off": content[:-2000], "changed": content[:-2000] + b"x" + content[-1999:]}[how])


@pytest.mark.parametrize("how", ["cut off", "changed"])
@pytest.mark.parametrize("archive", ["dev.tgz", "test-full.tgz"])
def test_damaged_archives_are_refused(
    how: str,
    archive: str,
    offline: None,
    tmp_path: Path,
    know: Callable[[str, Path], None],
    fails: Fails,
) -> None:
    local = tmp_path / "archives"
    wmt14_archives(local)
    know("wmt14-en-de", local)
    damaged(local / archive, how)
    message = fails(["wmt14-en-de", "--out", str(tmp_path / "out"), "--local-dir", str(local)])
    assert str(local / archive) in message
    assert re.search(r"bytes, not|sha256 \w+, not|MD5 \w+, not|cut off or damaged", message)
    assert "fetch it again from https://" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["without a member", "cut off", "with unequal sides"])
def test_iwslt_archives_that_cannot_be_used(how: str, offline: None, tmp_path: Path, fails: Fails) -> None:
    local = tmp_path / "archives"
    iwslt_archive(local)
    path = local / "de-en.tgz"
    with tarfile.open(path) as tar:
        members = {item.name: tar.extractfile(item).read() for item in tar}  # type: ignore[union-attr]
    if how == "without a member":
        del members["de-en/IWSLT14.TEDX.dev2012.de-en.en.xml"]
    if how == "with unequal sides":
        members["de-en/train.tags.de-en.de"] += b"another\n"
    tgz(path, members)
    if how == "cut off":
        damaged(path, how)
    message = fails(["iwslt14-de-en", "--out", str(tmp_path / "out"), "--local-dir", str(local)])
    wanted = {
        "without a member": "has no de-en/IWSLT14.TEDX.dev2012.de-en.en.xml",
        "cut off": "is cut off or damaged",
        "with unequal sides": "has 1,041 lines and .* 1,040",
    }
    assert re.search(wanted[how], message)
    assert not (tmp_path / "out").exists()


# --- one's own text ---------------------------------------------------------------------------------------------------


def test_own_text_with_labels(own: Own, quick: None, tmp_path: Path) -> None:
    own.write("valid.domains", ["help", "über"] * 15)
    own.write("test.domains", ["help\r"] * 40)
    prepare.main(own.words(tmp_path / "out", "--domains"))
    assert (tmp_path / "out" / "valid.domains").read_text() == "help\nüber\n" * 15
    assert (tmp_path / "out" / "test.domains").read_text() == "help\n" * 40
    manifest = manifest_of(tmp_path / "out")
    assert [manifest[key] for key in ("data_set", "source", "target")] == ["own", "en", "de"]


def test_odd_lines_of_validation_and_test_text_are_kept(own: Own, quick: None, tmp_path: Path) -> None:
    lines = own.lines("test.en")
    lines[0] = "\ufeffA mark.\r".encode()
    lines[3] = "Two\u2028parts\rof it.".encode()
    lines[4] = b"A\x00NUL and \x07 a bell."
    lines[5] = b""
    lines[6] = lines[7]  # a duplicate
    own.write("test.en", lines)
    prepare.main(own.words(tmp_path / "out"))
    found = (tmp_path / "out" / "test.en").read_bytes().split(b"\n")
    assert found[:7] == [b"A mark.", *lines[1:3], b"Two parts of it.", b"A NUL and a bell.", b"", lines[7]]
    assert found[7:-1] == lines[7:]
    assert len((tmp_path / "out" / "test.sp.en").read_bytes().split(b"\n")) == len(lines) + 1
    assert manifest_of(tmp_path / "out")["dropped"]["test"] == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.de", b"Eine.\n" * 402, r"train\.en has 400 lines and \S+train\.de 402"),
        ("test.de", b"Eine.\n" * 39, r"test\.en has 40 lines and \S+test\.de 39"),
        ("valid.de", b"Eine.\n" * 29 + b"f\xfcr\n", r"valid\.de, line 30: not UTF-8"),
        ("train.en", b"\xff\xfe\n" * 400, r"no pair is left for train .*dropped: .*not UTF-8"),
        ("valid.en", b"", r"valid\.en has 0 lines and \S+valid\.de 30"),
        ("test.en", None, r"argument --test-prefix: no such file: \S+test\.en"),
        ("test.domains", b"help\n" * 41, r"test\.domains has 41 labels for 40 sentence pairs"),
    ],
)
def test_text_that_cannot_be_used(
    name: str, content: bytes | None, message: str, own: Own, tmp_path: Path, fails: Fails
) -> None:
    own.write("valid.domains", ["help"] * 30)
    own.write("test.domains", ["help"] * 40)
    (own.folder / name).unlink() if content is None else (own.folder / name).write_bytes(content)
    assert re.search(message, fails(own.words(tmp_path / "out", "--domains")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a data set (lohelp-en-de, "),
        (["--train-prefix", "x", "-s", "en"], "with --valid-prefix, --test-prefix, --target-lang"),
        (["lohelp-en-de", "-s", "en"], "argument --source-lang: is not for lohelp-en-de"),
        (["lohelp-en-de", "--vocab-size", "0"], "argument --vocab-size: must be an integer of at least 1; got '0'"),
        (["lohelp-en-de", "--local-dir", "."], "argument --local-dir: is not for lohelp-en-de"),
        (["iwslt14-de-en", "--local-dir", "no/folder"], "argument --local-dir: no/folder is not a folder"),
        (["no-such-set"], "argument NAME: invalid choice: 'no-such-set'"),
        (["@", "-t", "en"], "argument --target-lang: en is the source language, too"),
        (["@", "-t", "../de"], "argument --target-lang: '../de' must be of letters, digits and _: rename the files"),
    ],
)
def test_arguments(words: list[str], message: str, own: Own, tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "out"
    words = own.words(out, *words[1:]) if words[:1] == ["@"] else [*words, "--out", str(out)]
    assert message in fails(words)
    assert not out.exists()


def test_help_tells_of_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S.*; .*[MG]B; ", text, re.MULTILINE) for name in registry.CORPORA)


# --- going on with other text -----------------------------------------------------------------------------------------


def words_of_other_text(folder: Path, out: Path, *options: str) -> list[str]:
    """Words and signs that the first text lacks, without a size (compare :meth:`Own.words`)."""
    folder.mkdir()
    other = Own(folder)
    for language in ("en", "de"):
        other.write(f"train.{language}", [*lohelp("valid", language, count=200), "Ωmega, THE ☃ unheard-of word"])
    words = other.words(out, "--vocab-size", *options)
    words.remove("--vocab-size")
    return words


def test_what_the_sample_has_not_is_unknown(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sentencepiece gives a run of letters that it has never seen as one subword."""
    monkeypatch.setattr(subwords, "SAMPLE", len(own.lines("train.en")))  # every second line
    for language in ("en", "de"):
        lines = own.lines(f"train.{language}")
        lines[1::2] = [f"{line.decode()} {chr(0x0E01 + n % 40) * 3}".encode() for n, line in enumerate(lines[1::2])]
        own.write(f"train.{language}", lines)
    prepare.main(own.words(tmp_path / "out", "--vocab-size", "250"))
    assert len(Dictionary.load(str(tmp_path / "out" / "bin" / "dict.en.txt"))) <= 256
    assert any("<unk>" in line for line in binarised(tmp_path / "out", "train", "en"))


@pytest.mark.parametrize("tokenizer", subwords.MODELS)
def test_other_text_takes_subwords_and_dictionary(
    tokenizer: str, own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare.main(own.words(Path("first"), "--tokenizer", tokenizer, "--vocab-size", "250"))
    words = words_of_other_text(tmp_path / "other", Path("second"), "--vocabulary", "first")
    prepare.main(words)
    for name in (subwords.MODELS[tokenizer], "bin/dict.en.txt", "bin/dict.de.txt"):
        assert Path("second", name).read_bytes() == Path("first", name).read_bytes()
    for split, language in (("train", "en"), ("train", "de"), ("test", "de")):
        known = Dictionary.load(f"first/bin/dict.{language}.txt")
        text = Path(f"second/{split}.{subwords.ENDINGS[tokenizer]}.{language}").read_text().splitlines()
        expected = [" ".join(w if w in known else "<unk>" for w in line.split()) for line in text]
        assert binarised(Path("second"), split, language) == expected
    assert any("<unk>" in line for line in binarised(Path("second"), "train", "en"))
    made = manifest_of(Path("second"))
    assert (made["tokenizer"], made["vocab_size"]) == (tokenizer, 250)
    capfd.readouterr()
    prepare.main(words)
    assert capfd.readouterr().out == "second: already made\n"


def test_other_text_becomes_lower_case_as_the_first(quick: None, tmp_path: Path) -> None:
    iwslt_archive(tmp_path / "archives")
    first, second = tmp_path / "first", tmp_path / "second"
    local = ["--local-dir", str(tmp_path / "archives")]
    prepare.main(["iwslt14-de-en", "--out", str(first), "--vocab-size", "200", "--tokenizer", "moses-bpe", *local])
    prepare.main(words_of_other_text(tmp_path / "other", second, "--vocabulary", str(first)))
    text = (second / "train.bpe.en").read_text().replace("@@ ", "")
    assert "the ☃ unheard-of word" in text  # not split at its hyphen


def test_a_vocabulary_that_cannot_be_taken(own: Own, quick: None, tmp_path: Path, fails: Fails) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    prepare.main(own.words(first))
    words = words_of_other_text(tmp_path / "other", out, "--vocabulary", str(first))
    assert "argument --vocab-size: is that of --vocabulary" in fails([*words, "--vocab-size", "300"])
    assert "argument --vocabulary: is not for trec" in fails(["trec", "--vocabulary", str(first), "--out", str(out)])
    french = ["fr" if word == "en" else word for word in words]
    assert f"argument --vocabulary: {first} has de and en; got text of fr and de" in fails(french)
    prepare.main(words)
    (first / "bin" / "dict.en.txt").write_text("another 1\n")
    assert "dict.en.txt has changed" in fails(words)
    (first / "spm.model").unlink()
    assert "first is not a folder of parallel text" in fails(words)


# --- done, begun, interrupted -----------------------------------------------------------------------------------------


def test_nothing_is_done_twice(
    own: Own,
    quick: None,
    tmp_path: Path,
    fails: Fails,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    prepare.main(own.words(out))
    before = files(out)
    assert not (tmp_path / "out.part").exists()
    monkeypatch.setattr("corpora.building.version", lambda package: "99")  # upgraded since
    prepare.main(own.words(out))
    assert capfd.readouterr().out.endswith(f"{out}: already made\n")
    assert "vocab_size: 300, not 301" in fails(own.words(out, "--vocab-size", "301"))
    assert "tokenizer: sentencepiece, not moses-bpe" in fails(own.words(out, "--tokenizer", "moses-bpe"))
    assert "data_set: own, not lohelp-en-de" in fails(["lohelp-en-de", "--out", str(out)])
    for split, count in (("valid", 30), ("test", 40)):
        own.write(f"{split}.domains", ["help"] * count)
    assert "domains: False, not True" in fails(own.words(out, "--domains"))
    own.write("test.de", own.lines("test.de")[::-1])
    assert f"{own.folder}/test.de has changed" in fails(own.words(out))
    assert files(out) == before


def test_an_interrupted_run_is_repeated_but_for_its_downloads(own: Own, quick: None, tmp_path: Path) -> None:
    fresh, out, part = tmp_path / "fresh", tmp_path / "out", tmp_path / "out.part"
    prepare.main(own.words(fresh))
    with held(part):
        for name in ("work/text/train.en", "bin/dict.en.txt", "archives/text.tgz", "half"):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_text("left")
    out.mkdir()
    prepare.main(own.words(out))
    assert files(out).keys() == files(fresh).keys() | {"archives/text.tgz"}
    assert manifest_of(out) == manifest_of(fresh)
    assert not part.exists()


PLACES = ["out", "out.part", "out/mine", "out.part/mine", "out/manifest.json"]


@pytest.mark.parametrize("name", [*PLACES, "out.part/work/mine"])
@pytest.mark.parametrize("text", ["mine", "{}", '{"sources": []}'])
def test_nothing_of_the_users_is_touched(name: str, text: str, own: Own, tmp_path: Path, fails: Fails) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    before = files(tmp_path)
    assert "argument --out: " in fails(own.words(tmp_path / "out"))
    assert files(tmp_path) == before
    assert (tmp_path / name).read_text() == text


def start(words: list[str], **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "recipes" / "prepare.py"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["work/text/train.en", "spm.model", "test.sp.de", "bin/dict.de.txt"])
def test_a_killed_run_can_be_repeated(moment: str, own: Own, tmp_path: Path) -> None:
    """Killed as soon as a file appears."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    with start(own.words(out)) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "out.part" / moment).exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    prepare.main(own.words(fresh))
    with start(own.words(out)) as process:
        text = process.communicate()[0]
    assert process.returncode == 0, text
    assert bin_sums(out) == bin_sums(fresh)
    assert manifest_of(out) == manifest_of(fresh)
    assert {path.name for path in out.iterdir()} == {path.name for path in fresh.iterdir()}


# --- subwords ---------------------------------------------------------------------------------------------------------


def test_moses_as_for_wmt(own: Own, quick: None, tmp_path: Path) -> None:
    """In the words of Moses: punctuation made plain, split at hyphens, escaped."""
    en, de = own.lines("test.en"), own.lines("test.de")
    en[0], de[0] = b"It\xe2\x80\x99s a look-up & more.", "Der „Such-Dialog“ usw. ist z.B. da.".encode()
    own.write("test.en", en)
    own.write("test.de", de)
    prepare.main(own.words(tmp_path / "out", "--tokenizer", "moses-bpe", "--vocab-size", "100"))
    first = [
        (tmp_path / "out" / f"test.bpe.{language}").read_text().split("\n")[0].replace("@@ ", "")
        for language in ("en", "de")
    ]
    assert first[0] == "It &apos;s a look @-@ up &amp; more ."
    assert first[1] == "Der &quot; Such @-@ Dialog &quot; usw. ist z.B. da ."
    codes = (tmp_path / "out" / "bpe.codes").read_text().split("\n")
    assert len(codes) == 1 + 100 + 1
    assert (tmp_path / "out" / "test.de").read_bytes().startswith(de[0])


@pytest.mark.parametrize("tokenizer", subwords.MODELS)
def test_several_processes_make_the_same(
    tokenizer: str, own: Own, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--tokenizer", tokenizer, "--vocab-size", "250"]
    prepare.main(own.words(tmp_path / "one", *options))
    monkeypatch.setattr(subwords, "FEW", 50)
    monkeypatch.setattr(subwords, "CHUNK", 30)
    monkeypatch.setattr(subwords, "cores", lambda: 2)
    prepare.main(own.words(tmp_path / "two", *options))
    assert manifest_of(tmp_path / "one") == manifest_of(tmp_path / "two")
    name = subwords.MODELS[tokenizer]
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_vocabulary_is_learned_from_an_even_sample(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subwords, "SAMPLE", 200)  # lines, of 800: every fourth pair
    rare = [b"zqzq zqzq" if number % 4 else line for number, line in enumerate(own.lines("train.en"))]
    own.write("train.en", rare)
    encoder = subwords.Encoder("sentencepiece", ("en", "de"), False, True, tmp_path / "spm.model")
    encoder.learn(own.folder / "train.en", own.folder / "train.de", 400, 200)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    assert not any("zq" in model.id_to_piece(piece) for piece in range(model.vocab_size()))


def test_work_is_done_in_order_and_little_is_under_way() -> None:
    encoder = subwords.Encoder("moses-bpe", ("en", "de"), False, True, Path())
    text = list(zip(lohelp("valid", "en"), lohelp("valid", "de"), strict=True))
    chunks = [text[:size] for size in [90, 1, 1, 20, 1] * 4]
    taken: list[int] = []

    def some() -> Iterator[subwords.Pairs]:
        for number, chunk in enumerate(chunks):
            taken.append(number)
            yield chunk

    expected = map(encoder.moses(), chunks)
    for done, result in enumerate(subwords.in_order(encoder.moses, some(), 2), 1):
        assert result == next(expected) and len(taken) <= done + 4
    assert done == len(chunks)


def test_the_death_of_a_process_is_noticed() -> None:
    kill_itself = partial(partial, signal.raise_signal)
    with pytest.raises(BrokenProcessPool):
        list(subwords.in_order(kill_itself, [signal.SIGKILL] * 10, 2))


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom corpora import subwords\n"
        "def make():\n"
        "    open(f'{sys.argv[1]}/{os.getpid()}', 'w')\n"
        "    return time.sleep\n"
        "if __name__ == '__main__':\n"
        "    list(subwords.in_order(make, [60] * 9, 2))\n"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "pids").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "recipes")}
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "pids")]
    deadline = time.monotonic() + LONG
    with subprocess.Popen(command, env=env) as process:
        while len(list((tmp_path / "pids").iterdir())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    while not all(ended(path.name) for path in (tmp_path / "pids").iterdir()):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.01)
