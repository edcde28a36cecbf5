"""Measure prepare.py at the size of WMT'14: memory of all its processes and time of each step, for both tokenizers.

    python recipes/prepare_size.py TEXT --work DIR [--results FILE] [--tokenizer NAME ...] [--percent 1 --vocab-size N]

Of parallel text, TEXT.en and TEXT.de, such as ``runs/debian/data/archives/debian-en-de/train``, are made archives with
WMT'14's names, layout and counts (4.5 million pairs): sentences are joined and cut to WMT's lengths, and one word in
fifty is invented, so that words go on to be new. Then runs ``prepare.py wmt14-en-de --local-dir``, but for the
checksums, which are those of the made archives. Linux only: memory is the proportional set size (PSS) of the process
and all below it, read twice a second. DIR takes 15 GB, and what is made there stays.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import random
import shlex
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest import mock

import prepare
from common import arguments
from common.files import write_text
from common.machine import cores, processor
from corpora import building
from corpora.archives import digest
from corpora.registry import CORPORA, sacrebleu_archive
from corpora.subwords import MODELS, Pair
from sacrebleu.dataset import DATASETS

SIDES = ("en", "de")
WMT = "wmt14-en-de"
MEASURED = "measured"  # the file of a folder whose figures are in the results
COUNTS = {  # pairs of WMT'14, and the mean of their English words
    "training-parallel-europarl-v7.tgz": ("training/europarl-v7.de-en", 1_920_209, 25),
    "training-parallel-commoncrawl.tgz": ("commoncrawl.de-en", 2_399_123, 25),
    "training-parallel-nc-v9.tgz": ("training/news-commentary-v9.de-en", 201_288, 25),
    "dev.tgz": ("dev/newstest2013", 3_000, 22),
}
STEPS = {"gather": "check and unpack", "clean": "clean", "Encoder.learn": "learn subwords"}
STEPS |= {"encode": "split into subwords", "binarise": "binarise"}  # functions of corpora/building.py


def invent(words: list[str], rng: random.Random) -> Pair:
    """A number, a name or a compound, as both languages have it."""
    kind = rng.random()
    if kind < 0.2:
        return (str(int(10 ** rng.uniform(1, 7))),) * 2
    a, b = rng.choice(words), rng.choice(words)
    if kind < 0.6:
        return ((a[: len(a) // 2 + 1] + b[len(b) // 2 :]).title(),) * 2
    return f"{a}-{b}", f"{a}{b.lower()}".title()


def recombine(pairs: list[tuple[list[str], list[str]]], words: list[str], mean: int, seed: str) -> Iterator[Pair]:
    """Sentence pairs without end; English lengths are gamma distributed, with at most 200 words."""
    rng = random.Random(seed)
    while True:
        size = min(200, 1 + int(rng.gammavariate(2.2, (mean - 0.5) / 2.2)))
        left, right = list[str](), list[str]()
        while len(left) < size:
            a, b = rng.choice(pairs)
            left += a
            right += b
        right = right[: max(1, round(len(right) * size / len(left)))]
        left = left[:size]
        for _ in range(int(size * 0.02 + rng.random())):  # so many words are invented
            place = rng.random()
            left[int(place * len(left))], right[int(place * len(right))] = invent(words, rng)
        if rng.random() < 0.05:  # so many pairs lack half of a side
            right = right[: len(right) // 2 + 1]
        twice = rng.random() < 0.02  # so many are there a second time
        yield from [(" ".join(left) + ".", " ".join(right) + ".")] * (1 + twice)


def make_archives(text: Path, folder: Path, percent: float) -> dict[str, Any]:
    """Write WMT'14's archives, and that of its test set, made of ``text``.en and ``text``.de; facts of the result."""
    sides = [Path(f"{text}.{side}").read_text("utf-8").split("\n")[:-1] for side in SIDES]
    pairs = [(a.removesuffix(".").split(), b.removesuffix(".").split()) for a, b in zip(*sides, strict=True)]
    pairs = [(a, b) for a, b in pairs if a and b]
    words = sorted({word for a, b in pairs for word in a + b if word.isalpha()})
    count: Counter[str] = Counter()
    known: dict[str, set[int]] = {side: set() for side in SIDES}

    def counted(pair: Pair) -> Pair:
        for side, sentence in zip(SIDES, pair, strict=True):
            found = sentence.split()
            count[side] += len(found)
            known[side].update(map(hash, found))
        return pair

    def tgz(name: str, members: Iterable[str]) -> None:
        with tarfile.open(folder / name, "w:gz", compresslevel=1) as tar:
            for member, path in zip(members, paths, strict=True):
                tar.add(path, member)
                path.unlink()

    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "en", folder / "de"
    facts: dict[str, Any] = {"from": {f"TEXT.{side}": digest(Path(f"{text}.{side}")) for side in SIDES}, "pairs": 0}
    for archive, (stem, size, mean) in COUNTS.items():
        made: Iterator[Pair] = recombine(pairs, words, mean, archive)
        if archive != "dev.tgz":
            size = max(1, round(size * percent / 100))
            made = map(counted, made)
            facts["pairs"] += size
        building.write(islice(made, size), paths, f"make {archive}")
        tgz(archive, [f"{stem}.{side}" for side in SIDES])
    test = islice(recombine(pairs, words, 22, "test"), 3_003)
    for path, kind, sentences in zip(paths, ("src", "ref"), zip(*test, strict=True), strict=True):
        lines = (f'<seg id="{number}">{sentence}</seg>\n' for number, sentence in enumerate(sentences, 1))
        head = f'<{kind}set setid="newstest2014" srclang="any">\n<doc sysid="ref" docid="1" origlang="de">\n<p>\n'
        path.write_text(f"{head}{''.join(lines)}</p>\n</doc>\n", "utf-8")
    names = (f"test-full/newstest2014-deen-{end}.sgm" for end in ("src.en", "ref.de"))
    tgz(sacrebleu_archive("wmt14/full").name, names)
    return facts | {"words": count, "different_words": {side: len(hashes) for side, hashes in known.items()}}


def run(archives: Path, steps: Any, words: list[str]) -> None:
    """In a process of its own: run prepare.py with the checksums of other archives.

    Puts name, begin, end and CPU seconds of each step on the queue ``steps``.
    """

    def timed(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any) -> Any:
            begun, used = time.time(), sum(os.times()[:4])
            result = inner(*args)
            steps.put((name, begun, time.time(), sum(os.times()[:4]) - used))
            return result

        return outer

    made = [(archive, archives / archive.name) for archive in CORPORA[WMT].archives]
    own = tuple(replace(known, bytes=path.stat().st_size, sha256=digest(path)) for known, path in made)
    CORPORA[WMT] = replace(CORPORA[WMT], archives=own)
    DATASETS["wmt14/full"].md5 = [digest(archives / sacrebleu_archive("wmt14/full").name, "md5")]
    for function, name in STEPS.items():
        mock.patch(f"corpora.building.{function}", timed(name, attrgetter(function)(building))).start()
    timed("all", prepare.main)(words)


def memory(pid: int) -> list[int]:
    """PSS in bytes of a process and of each below it; one that ends meanwhile has none."""
    sizes = []
    with suppress(OSError, IndexError):
        sizes.append(1024 * int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]))
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                sizes += memory(int(child))
    return sizes


def measure(archives: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Prepare the data set once, with prepare.py's options; ends the program where that fails."""
    words = [WMT, f"--out={out}", f"--local-dir={archives}", *options]
    print("+", shlex.join(["python", "recipes/prepare.py", *words]), flush=True)
    spawn = multiprocessing.get_context("spawn")
    steps = spawn.SimpleQueue()
    process = spawn.Process(target=run, args=(archives, steps, words))
    process.start()
    samples = []
    while process.is_alive():
        samples.append((time.time(), memory(process.pid or 0), os.getloadavg()[0]))
        time.sleep(0.5)
    if process.exitcode:
        sys.exit(process.exitcode)
    found: dict[str, dict[str, float]] = {}
    while not steps.empty():
        name, begin, end, cpu = steps.get()
        peak = max((sum(sizes) for at, sizes, _ in samples if begin <= at <= end), default=0)
        row = found.setdefault(name, dict.fromkeys(("minutes", "cpu_minutes", "peak_gb"), 0.0))
        row["minutes"] = round(row["minutes"] + (end - begin) / 60, 4)
        row["cpu_minutes"] = round(row["cpu_minutes"] + cpu / 60, 4)
        row["peak_gb"] = max(row["peak_gb"], round(peak / 1e9, 3))
    loads = [load for *_, load in samples]
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        **found.pop("all"),
        "most_processes": max(len(sizes) for _, sizes, _ in samples),
        "load": {"mean": round(sum(loads) / len(loads), 2), "max": max(loads)},
        "steps": found,
        **{key: manifest[key] for key in ("counts", "dropped")},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", type=Path, metavar="TEXT", help="TEXT.en and TEXT.de are parallel text")
    parser.add_argument(
        "--work", type=arguments.folder, required=True, metavar="DIR", help="a folder for archives and results"
    )
    parser.add_argument("--results", type=arguments.output_file, metavar="FILE", help="default: DIR/size.json")
    parser.add_argument("--percent", type=float, default=100, help="of WMT'14's pairs (default: %(default)g)")
    parser.add_argument(
        "--vocab-size", type=arguments.at_least_one, metavar="N", help="prepare.py's option, for small trials"
    )
    parser.add_argument("--tokenizer", choices=MODELS, nargs="+", default=list(MODELS), help="default: both")
    args = parser.parse_args(argv)
    for side in SIDES:
        if not os.path.isfile(f"{args.text}.{side}"):
            parser.error(f"argument TEXT: no such file: {args.text}.{side}")
    if not 0 < args.percent <= 100:
        parser.error(f"argument --percent: {args.percent:g} is not above 0 and at most 100")
    folders = {tokenizer: args.work / f"{tokenizer}-{args.percent:g}" for tokenizer in args.tokenizer}
    size = ["--vocab-size", str(args.vocab_size)] if args.vocab_size else []
    options = {tokenizer: ["--tokenizer", tokenizer, *size] for tokenizer in MODELS}
    command = f"python recipes/prepare_size.py TEXT --work DIR --percent {args.percent:g}"
    commands = {tokenizer: f"{command} {shlex.join(words)}" for tokenizer, words in options.items()}
    results = args.results or args.work / "size.json"
    here = {"device": processor(), "cores": cores(), "system": sys.platform}
    try:
        report = json.loads(results.read_text()) if results.is_file() else {"runs": {}}
        done = {tokenizer: run["command"] for tokenizer, run in report["runs"].items()}
        known = report.get("machine", here)
    except (ValueError, LookupError, TypeError, AttributeError):
        parser.error(f"argument --results: {results} is not of prepare_size.py")
    if known != here:
        parser.error(f"argument --results: {results} is of another machine: name another file")
    if others := [made for tokenizer, made in done.items() if made != commands[tokenizer]]:
        parser.error(f"argument --results: {results} is of another size, {others[0]}: name another file")
    for tokenizer, folder in list(folders.items()):
        if not folder.exists():
            continue
        if tokenizer not in done or not (folder / MEASURED).is_file():  # stopped half-way
            parser.error(f"argument --work: {folder} is there, and would not be made again: remove it, or name another")
        print(f"{tokenizer} is done: {results}")
        del folders[tokenizer]
    if not folders:
        return
    archives = args.work / f"archives-{args.percent:g}"
    made = archives / "made.json"
    if not made.is_file():
        try:
            write_text(made, json.dumps(make_archives(args.text, archives, args.percent)))
        except (ValueError, IndexError) as error:  # of unequal lines, not UTF-8, or empty
            parser.error(f"argument TEXT: {args.text}.en and .de are not parallel text: {error}")
    report |= {
        "machine": here,
        "versions": {name: version(name) for name in ("fairseq", "sacremoses", "sentencepiece", "subword-nmt")},
        "memory": "PSS of all processes, the greatest of samples at intervals of half a second; GB are 1e9 bytes",
        "load": "the machine's, of which this run has about as many as cores; the rest is others' work beside it",
        "text": json.loads(made.read_text()),
    }
    for tokenizer, folder in folders.items():
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        figures = measure(archives, folder, options[tokenizer])
        report["runs"][tokenizer] = {"command": commands[tokenizer], "date": date, **figures}
        write_text(results, json.dumps(report, indent=1) + "\n")
        (folder / MEASURED).touch()
        print(f"{tokenizer}: {figures['minutes']} minutes, {figures['cpu_minutes']} of CPU, {figures['peak_gb']} GB")


if __name__ == "__main__":
    main()
