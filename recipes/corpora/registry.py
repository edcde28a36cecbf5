"""The data sets that prepare.py knows: where their archives are, what is in them, and how they are cleaned.

``lay_out`` of each brings it to one form: parallel text files for each split.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import debian
from .archives import Archive, gunzip, unpack

DATA = Path(__file__).resolve().parent.parent / "data"
SPLITS = ("train", "valid", "test")

Parallel = tuple[Path, Path]  # source and target file, with as many lines
Texts = dict[str, list[Parallel]]  # of each split

MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
MULTI30K_FILES = {  # with their sha256
    "train.en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "val.en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
}
IWSLT_TEST = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")


@dataclass(frozen=True)
class Corpus:
    """A data set."""

    languages: tuple[str, str]  # of source and target
    vocab_size: int  # subwords in the joint vocabulary unless the user says otherwise
    about: str  # pairs for training, room on disk with archives, licence
    archives: tuple[Archive, ...] = ()
    # given the archives by name and a folder to write to, makes the text files of each split
    lay_out: Callable[[dict[str, Path], Path], Texts] | None = None
    sacrebleu: str | None = None  # sacreBLEU's name of the test set, where the test set is sacreBLEU's
    longest: int | None = 250  # subwords on a side of a training pair, at most; None where all stay
    ratio: float | None = None  # of the longer to the shorter side, in subwords, at most; None where all stay
    deduplicate: bool = True  # drop a training pair that was there before
    lower: bool = False
    normalise: bool = True  # Moses normalises punctuation and splits at hyphens, as was usual for WMT
    valid_every: int | None = None  # every so many-th training pair is for validation
    labelled: bool = False  # pairs for validation and test have a domain
    # in place of archives: given a folder and --local-dir, builds {train,valid,test}.LANGUAGE and {valid,test}.domains
    # there, and returns a manifest
    build: Callable[[Path, Path | None], dict[str, Any]] | None = None


# --- test sets of sacreBLEU -------------------------------------------------------------------------------------------


def sacrebleu_archive(test_set: str) -> Archive:
    """The archive of a test set as sacreBLEU knows it; taken from sacreBLEU's own cache where that has it."""
    from sacrebleu.dataset import DATASETS

    known = DATASETS[test_set]
    assert known.data and known.md5
    url = known.data[0]
    home = Path(os.environ.get("SACREBLEU") or os.path.expanduser("~/.sacrebleu"))
    cached = home / test_set / "raw" / f"{test_set.replace('/', '_')}.{url.rsplit('/', 1)[1]}"
    return Archive(url, md5=known.md5[0], cached=cached)


def sacrebleu_text(test_set: str, languages: tuple[str, str], archive: Path, folder: Path) -> Parallel:
    """Write a test set as sacreBLEU reads it."""
    from sacrebleu.dataset import DATASETS

    paths = []
    for path in unpack(archive, DATASETS[test_set].langpairs["-".join(languages)], folder):
        paths.append(folder / f"{path.name}.txt")
        with path.open(encoding="utf-8") as lines, paths[-1].open("w", encoding="utf-8", newline="\n") as text:
            for line in lines:
                if path.suffix != ".sgm":
                    text.write(f"{line.rstrip()}\n")
                elif line.startswith("<seg "):
                    segment = re.sub(r"<seg.*?>(.*)</seg>.*?", r"\1", line)
                    text.write(f"{' '.join(segment.split())}\n")
    return paths[0], paths[1]


# --- the data sets ----------------------------------------------------------------------------------------------------


def multi30k(archives: dict[str, Path], folder: Path) -> Texts:
    def part(name: str) -> list[Parallel]:
        return [(gunzip(archives[f"{name}.en.gz"], folder), gunzip(archives[f"{name}.de.gz"], folder))]

    return {"train": part("train"), "valid": part("val")}


def wmt14(archives: dict[str, Path], folder: Path) -> Texts:
    def part(archive: str, stem: str) -> Parallel:
        en, de = unpack(archives[archive], [f"{stem}.en", f"{stem}.de"], folder)
        return en, de

    return {
        "train": [
            part("training-parallel-europarl-v7.tgz", "training/europarl-v7.de-en"),
            part("training-parallel-commoncrawl.tgz", "commoncrawl.de-en"),
            part("training-parallel-nc-v9.tgz", "training/news-commentary-v9.de-en"),
        ],
        "valid": [part("dev.tgz", "dev/newstest2013")],
    }


def iwslt14(archives: dict[str, Path], folder: Path) -> Texts:
    """Text as fairseq's prepare-iwslt14.sh reads it; validation pairs are drawn from the training pairs later."""
    texts: dict[str, tuple[Path, Path]] = {}  # train and test of each language
    for language in ("de", "en"):
        files = [f"train.tags.de-en.{language}"]
        files += [f"IWSLT14.{name}.de-en.{language}.xml" for name in IWSLT_TEST]
        tags, *tests = unpack(archives["de-en.tgz"], [f"de-en/{file}" for file in files], folder)
        texts[language] = (folder / f"train.plain.{language}", folder / f"test.plain.{language}")
        texts[language][0].write_bytes(b"".join(iwslt_train(tags)))
        texts[language][1].write_bytes(b"".join(line for test in tests for line in iwslt_test(test)))
    return {split: [(texts["de"][i], texts["en"][i])] for i, split in enumerate(("train", "test"))}


def iwslt_train(path: Path) -> Iterator[bytes]:
    """Lines of a train.tags file: no addresses, numbers and key words; titles and descriptions without their tags."""
    with path.open("rb") as file:
        for line in file:
            if not re.search(rb"<url>|<talkid>|<keywords>", line):
                yield re.sub(rb"</?(title|description)>", b"", line)


def iwslt_test(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if b"<seg id" in line:
                text = re.sub(rb'<seg id="[0-9]*">\s*|\s*</seg>\s*', b"", line).replace("’".encode(), b"'")
                yield text.rstrip(b"\n") + b"\n"


CORPORA = {
    "lohelp-en-de": Corpus(("en", "de"), 2000, "10,000 pairs; 4 MB; MPL-2.0; ships with the project"),
    "debian-en-de": Corpus(
        ("en", "de"),
        8000,
        "170,000 pairs; 200 MB; free licences of many kinds: not for handing on",
        labelled=True,
        build=debian.build,
    ),
    "multi30k-en-de": Corpus(
        ("en", "de"),
        8000,
        "29,000 pairs; not tried: about 20 MB; image captions, terms of github.com/multi30k/dataset",
        archives=tuple(Archive(f"{MULTI30K}{name}.gz", sha256=sha256) for name, sha256 in MULTI30K_FILES.items()),
        lay_out=multi30k,
        sacrebleu="multi30k/2016",
        deduplicate=False,  # what is published is of all 29,000
    ),
    "iwslt14-de-en": Corpus(
        ("de", "en"),
        10_000,
        "160,000 pairs; not tried: about 100 MB; CC BY-NC-ND 3.0, TED Conference LLC",
        archives=(Archive("https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"),),
        lay_out=iwslt14,
        longest=None,  # filtered before validation pairs are drawn, as in fairseq's script
        deduplicate=False,
        lower=True,
        normalise=False,
        valid_every=23,
    ),
    "wmt14-en-de": Corpus(
        ("en", "de"),
        32_000,
        "4.5 million pairs; not tried: about 6 GB; for research, terms of statmt.org/wmt14",
        archives=(
            Archive(
                "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
                657_632_379,
                "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
            ),
            Archive(
                "https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
                918_311_367,
                "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
            ),
            Archive(
                "https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz",
                80_418_416,
                "cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
            ),
            # that of WMT'19, which has newstest2013, too: no checksum of WMT'14's is published. This one's is in
            # url_checksums/wmt14_translate.txt of TensorFlow Datasets
            Archive(
                "https://data.statmt.org/wmt19/translation-task/dev.tgz",
                38_654_961,
                "7a7deccf82ebb05ba508dba5eb21356492224e8f630ec4f992132b029b4b25e7",
            ),
        ),
        lay_out=wmt14,
        sacrebleu="wmt14/full",
        ratio=1.5,
    ),
}

DATA_SETS = {name: corpus.languages for name, corpus in CORPORA.items() if (DATA / name).is_dir()}  # that ship
