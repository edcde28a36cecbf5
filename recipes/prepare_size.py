"""Measure prepare.py at the size of WMT'14: memory of all its processes and time of each step, for both tokenizers.

    python recipes/prepare_size.py TEXT --work DIR [--results FILE] [--tokenizer NAME ...] [--percent 1 --vocab-size N]

TEXT.en and TEXT.de are parallel text, such as ``runs/debian/data/archives/debian-en-de/train``. From its sentences are
made archives with WMT'14's names, layout and counts (4.5 million pairs): sentences are joined and cut to WMT's lengths,
25 words on average, and one word in fifty gives way to an invented one, so that words go on to be new, millions in all.
Then runs what a user types, ``prepare.py wmt14-en-de --local-dir``, but for the checksums, which are those of the made
archives. Linux only: memory is the proportional set size (PSS) of the process and all below it, read twice a second.
DIR takes 15 GB, and what is made there stays.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import prepare
from common.files import write_text
from common.machine import processor
from corpora import building
from corpora.archives import Archive, digest
from corpora.registry import CORPORA, sacrebleu_archive
from corpora.subwords import MODELS, Pair, cores
from sacrebleu.dataset import DATASETS
from tqdm import tqdm

COUNTS = {  # pairs of WMT'14, and the mean of their English words
    "training-parallel-europarl-v7.tgz": ("training/europarl-v7.de-en", 1_920_209, 25),
    "training-parallel-commoncrawl.tgz": ("commoncrawl.de-en", 2_399_123, 25),
    "training-parallel-nc-v9.tgz": ("training/news-commentary-v9.de-en", 201_288, 25),
    "dev.tgz": ("dev/newstest2013", 3_000, 22),
}
TEST = 3_003
INVENTED = 0.02  # of the words
TWICE = 0.02  # of the pairs are there a second time
UNEVEN = 0.05  # of the pairs lack half of a side
EVERY = 0.5  # seconds between two looks at the memory


def invent(words: list[str], rng: random.Random) -> Pair:
    """A number, a name or a compound, as both languages have it."""
    kind = rng.random()
    if kind < 0.2:
        number = str(int(10 ** rng.uniform(1, 7)))
        return number, number
    a, b = rng.choice(words), rng.choice(words)
    if kind < 0.6:
        name = (a[: len(a) // 2 + 1] + b[len(b) // 2 :]).title()
        return name, name
    return f"{a}-{b}", f"{a}{b.lower()}".title()


def recombine(pairs: list[tuple[list[str], list[str]]], words: list[str], mean: int, seed: str) -> Iterator[Pair]:
    """Sentence pairs without end; English lengths are gamma distributed, with at most 200 words."""
    rng = random.Random(seed)
    while True:
        size = min(200, 1 + int(rng.gammavariate(2.2, (mean - 0.5) / 2.2)))
        left: list[str] = []
        right: list[str] = []
        while len(left) < size:
            a, b = rng.choice(pairs)
            left += a
            right += b
        right = right[: max(1, round(len(right) * size / len(left)))]
        left = left[:size]
        for _ in range(int(size * INVENTED + rng.random())):
            place = rng.random()
            left[int(place * len(left))], right[int(place * len(right))] = invent(words, rng)
        if rng.random() < UNEVEN:
            right = right[: len(right) // 2 + 1]
        pair = " ".join(left) + ".", " ".join(right) + "."
        yield pair
        if rng.random() < TWICE:
            yield pair


def tgz(path: Path, members: dict[str, Path | bytes]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            if isinstance(content, Path):
                tar.add(content, name)
                content.unlink()
            else:
                item = tarfile.TarInfo(name)
                item.size = len(content)
                tar.addfile(item, io.BytesIO(content))


def make_archives(text: Path, folder: Path, percent: float) -> None:
    """Write WMT'14's archives, and that of its test set, made of ``text``.en and ``text``.de."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = [Path(f"{text}.{language}").read_text("utf-8").split("\n")[:-1] for language in ("en", "de")]
    pairs = [(a.removesuffix(".").split(), b.removesuffix(".").split()) for a, b in zip(*sides, strict=True)]
    pairs = [(a, b) for a, b in pairs if a and b]
    words = sorted({word for a, b in pairs for word in a + b if word.isalpha()})
    for archive, (stem, count, mean) in COUNTS.items():
        sentences = recombine(pairs, words, mean, archive)
        paths = folder / "en", folder / "de"
        count = max(1, round(count * percent / 100)) if archive != "dev.tgz" else count
        building.write(islice(sentences, count), paths, f"make {archive}")
        tgz(folder / archive, {f"{stem}.{path.name}": path for path in reversed(paths)})
    test = list(islice(recombine(pairs, words, 22, "test"), TEST))
    sgm: dict[str, Path | bytes] = {}
    for side, (kind, language) in enumerate((("src", "en"), ("ref", "de"))):
        lines = [f'<{kind}set setid="newstest2014" srclang="any">', '<doc sysid="ref" docid="1" origlang="de">', "<p>"]
        lines += [f'<seg id="{number}">{pair[side]}</seg>' for number, pair in enumerate(test, 1)]
        content = "\n".join([*lines, "</p>", "</doc>", ""])
        sgm[f"test-full/newstest2014-deen-{kind}.{language}.sgm"] = content.encode()
    tgz(folder / sacrebleu_archive("wmt14/full").name, sgm)


# --- in a process of its own: what a user types, with the times of its steps ------------------------------------------


def cpu() -> float:
    """CPU seconds of this process and of those below it that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def run(archives: Path, steps: Path, words: list[str]) -> None:
    """Run prepare.py with the checksums of other archives; write a line to ``steps`` for each step."""

    def known(archive: Archive) -> Archive:
        path = archives / archive.name
        return replace(archive, bytes=path.stat().st_size, sha256=digest(path))

    corpus = CORPORA["wmt14-en-de"]
    CORPORA["wmt14-en-de"] = replace(corpus, archives=tuple(map(known, corpus.archives)))
    test_set = DATASETS["wmt14/full"]
    content = (archives / sacrebleu_archive("wmt14/full").name).read_bytes()
    test_set.md5 = [hashlib.md5(content).hexdigest()]

    @contextmanager
    def step(name: str) -> Iterator[None]:
        begun, used = time.time(), cpu()
        yield
        line = {"step": name, "begin": begun, "end": time.time(), "cpu": cpu() - used}
        with steps.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def timed(owner: Any, function: str, name: str) -> None:
        inner = getattr(owner, function)

        def outer(*args: Any, **options: Any) -> Any:
            with step(name):
                return inner(*args, **options)

        setattr(owner, function, outer)

    timed(building, "gather", "check and unpack")
    timed(building, "clean", "clean")
    timed(building.Encoder, "learn", "learn subwords")
    timed(building, "encode", "split into subwords")
    timed(building, "binarise", "binarise")
    with step("all"):
        prepare.main(words)


# --- in this process: memory ------------------------------------------------------------------------------------------


def tree(pid: int) -> Iterator[int]:
    """A process and those below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from tree(int(child))


def memory(pid: int) -> tuple[int, int]:
    """PSS in bytes of a process and of those below it, and how many they are; one that ends meanwhile has none."""
    sizes = []
    try:
        for process in tree(pid):
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            sizes.append(1024 * int(rollup.split("\nPss:")[1].split()[0]))
    except (OSError, IndexError):
        pass
    return sum(sizes), len(sizes)


def measure(archives: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Prepare the data set once, with prepare.py's options.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    words = ["wmt14-en-de", "--out", str(out), "--local-dir", str(archives), *options]
    print("+", shlex.join(["python", "recipes/prepare.py", *words]), flush=True)
    steps = out.with_name(f"{out.name}.steps")
    steps.unlink(missing_ok=True)
    program = "import sys, prepare_size; from pathlib import Path; "
    program += "prepare_size.run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])"
    command = [sys.executable, "-c", program, str(archives), str(steps), *words]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent)}
    samples, loads = [], []
    with subprocess.Popen(command, env=env) as process:
        while process.poll() is None:
            samples.append((time.time(), *memory(process.pid)))
            loads.append(os.getloadavg()[0])
            time.sleep(EVERY)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    rows = [json.loads(line) for line in steps.read_text().splitlines()]
    steps.unlink()

    def row(parts: list[dict[str, Any]]) -> dict[str, float]:
        within = [size for at, size, _ in samples if any(p["begin"] <= at <= p["end"] for p in parts)]
        return {
            "minutes": round(sum(p["end"] - p["begin"] for p in parts) / 60, 2),
            "cpu_minutes": round(sum(p["cpu"] for p in parts) / 60, 2),
            "peak_gb": round(max(within, default=0) / 1e9, 3),
        }

    names = dict.fromkeys(row["step"] for row in rows)
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        **row([r for r in rows if r["step"] == "all"]),
        "most_processes": max(count for *_, count in samples),
        "load": {"mean": round(sum(loads) / len(loads), 2), "max": max(loads)},
        "steps": {name: row([r for r in rows if r["step"] == name]) for name in names if name != "all"},
        "counts": manifest["counts"],
        "dropped": manifest["dropped"],
    }


def statistics(archives: Path) -> dict[str, Any]:
    """Of the text that was made."""
    words: dict[str, set[int]] = {"en": set(), "de": set()}
    count, lines = {"en": 0, "de": 0}, 0
    for archive in COUNTS:
        if archive == "dev.tgz":
            continue
        with tarfile.open(archives / archive) as tar:
            for item in tar:
                text: Iterable[bytes] = tar.extractfile(item) or ()
                language = item.name[-2:]
                for line in tqdm(text, desc=f"count {item.name}", unit_scale=True, disable=None):
                    lines += 1
                    found = line.split()
                    count[language] += len(found)
                    words[language].update(map(hash, found))
    return {
        "pairs": lines // 2,
        "words": count,
        "different_words": {language: len(known) for language, known in words.items()},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path, metavar="TEXT", help="TEXT.en and TEXT.de are parallel text")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="a folder for archives and results")
    parser.add_argument("--results", type=Path, metavar="FILE", help="default: DIR/size.json")
    parser.add_argument("--percent", type=float, default=100, help="of WMT'14's pairs (default: %(default)g)")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="prepare.py's option, for small trials")
    parser.add_argument("--tokenizer", choices=MODELS, nargs="+", default=list(MODELS), help="default: both")
    args = parser.parse_args(argv)
    for language in ("en", "de"):
        if not Path(f"{args.text}.{language}").is_file():
            parser.error(f"argument TEXT: there is no file {args.text}.{language}")
    if not 0 < args.percent <= 100:
        parser.error(f"argument --percent: {args.percent:g} is not above 0 and at most 100")
    archives = args.work / f"archives-{args.percent:g}"
    made = archives / "made.json"
    if not made.is_file():
        make_archives(args.text, archives, args.percent)
        sources = {f"TEXT.{language}": digest(Path(f"{args.text}.{language}")) for language in ("en", "de")}
        write_text(made, json.dumps({"from": sources, **statistics(archives)}))
    results = args.results or args.work / "size.json"
    report = json.loads(results.read_text()) if results.is_file() else {"runs": {}}
    report |= {
        "machine": {"device": processor(), "cores": cores(), "system": sys.platform},
        "versions": {name: version(name) for name in ("fairseq", "sacremoses", "sentencepiece", "subword-nmt")},
        "memory": "PSS of all processes, the greatest of samples at intervals of half a second; GB are 1e9 bytes",
        "load": "the machine's, of which this run has about as many as cores; the rest is others' work beside it",
        "text": json.loads(made.read_text()),
    }
    for tokenizer in args.tokenizer:
        options = ["--tokenizer", tokenizer]
        options += ["--vocab-size", str(args.vocab_size)] if args.vocab_size else []
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        figures = measure(archives, args.work / f"{tokenizer}-{args.percent:g}", options)
        command = f"python recipes/prepare_size.py TEXT --work DIR --percent {args.percent:g} {shlex.join(options)}"
        report["runs"][tokenizer] = {"command": command, "date": date, **figures}
        write_text(results, json.dumps(report, indent=1) + "\n")
        print(f"{tokenizer}: {figures['minutes']} minutes, {figures['cpu_minutes']} of CPU, {figures['peak_gb']} GB")


if __name__ == "__main__":
    main()
