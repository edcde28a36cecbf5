"""Prepare a data set for fairseq: fetch it, clean it, split it into subwords, binarise it.

    python recipes/prepare.py lohelp-en-de --out runs/quickstart/data
    python recipes/prepare.py wmt14-en-de --out runs/wmt14/data --local-dir ARCHIVES
    python recipes/prepare.py --train-prefix my/train --valid-prefix my/valid --test-prefix my/test \\
        --source-lang en --target-lang de --out runs/mine/data

Writes to --out: ``spm.model`` (a joint sentencepiece BPE vocabulary) or, with --tokenizer moses-bpe, ``bpe.codes``; the
text in subwords, ``{train,valid,test}.{sp,bpe}.LANGUAGE``; the plain text to score with, ``{valid,test}.LANGUAGE``,
line for line what is binarised; ``{valid,test}.domains`` where the data set has labels; fairseq's ``bin/``;
``archives/``, what was downloaded; and at last ``manifest.json``, what it was made of and what was dropped. Where --out
holds the same data set made with the same options, nothing is done; an interrupted run is begun anew, but for its
downloads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from binarise import binarise
from clean import Tally, all_pairs, plain, train_pairs
from corpora import CORPORA, DATA, SPLITS, Corpus, Parallel, Texts, sacrebleu_archive, sacrebleu_text
from fetch import Archive, digest, fetch, find
from lohelp import RecipeError
from subwords import (
    ENDINGS,
    FEW,
    MODELS,
    Encoder,
    Encoding,
    Limits,
    Pair,
    Selection,
    chunks,
    cores,
    in_order,
    processes_for,
    read,
)
from tqdm import tqdm

DATA_SETS = {name: corpus.languages for name, corpus in CORPORA.items() if (DATA / name).is_dir()}  # that ship
IWSLT = Limits(175, 1.5)  # of fairseq's prepare-iwslt14.sh, in Moses' tokens
OURS = re.compile(  # what an interrupted run may have left
    r"(train|valid|test)\.(sp|bpe)\..+|(valid|test)\.[^.]+|spm\.(model|vocab)|bpe\.codes|bin|work-.+|manifest\.json\.part"
)
KEPT = re.compile("archives|work-.+")  # a killed run's children may be at work for a moment longer


class Task(NamedTuple):
    """What is to be prepared.

    Attributes:
        texts: text files of each split, and ``domains`` label files, where they are not made of archives.
    """

    name: str
    corpus: Corpus
    texts: Texts
    domains: dict[str, Path]
    tokenizer: str
    vocab_size: int
    local_dir: Path | None

    @property
    def archives(self) -> list[Archive]:
        """What is fetched."""
        test_set = self.corpus.sacrebleu
        return [*self.corpus.archives, *([sacrebleu_archive(test_set)] if test_set else [])]

    def files(self) -> dict[str, Path]:
        """The text and label files by their names in the manifest."""
        named = {
            f"{split}.{language}": path
            for split, parallel in self.texts.items()
            for language, path in zip(self.corpus.languages, parallel[0], strict=True)
        }
        return named | {f"{split}.domains": path for split, path in self.domains.items()}

    def options(self) -> dict[str, Any]:
        """What the result depends on beside its sources, as the manifest has it."""
        tools = [
            "fairseq",
            *{"sentencepiece": ["sentencepiece"], "moses-bpe": ["sacremoses", "subword-nmt"]}[self.tokenizer],
        ]
        tools += ["sacrebleu"] if self.corpus.sacrebleu else []
        tools += ["sacremoses"] if self.corpus.valid_every else []
        return {
            "data_set": self.name,
            "source": self.corpus.languages[0],
            "target": self.corpus.languages[1],
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "domains": self.corpus.labelled,
            "versions": {package: version(package) for package in sorted(set(tools))},
        }


def described(path: Path, name: str) -> dict[str, Any]:
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest(path)}


def gather(task: Task, archives: Path, work: Path) -> tuple[Texts, dict[str, Path], list[dict[str, Any]]]:
    """Fetch and unpack a data set.

    Returns:
        Text files of each split, label files of splits, and the sources for the manifest.

    Raises:
        RecipeError: something can't be had or is damaged.
    """
    corpus = task.corpus
    if task.name == "debian-en-de":
        import debian

        folder = archives / task.name
        manifest = debian.build(folder, task.local_dir)
        texts: Texts = {split: [(folder / f"{split}.en", folder / f"{split}.de")] for split in SPLITS}
        return texts, {split: folder / f"{split}.domains" for split in SPLITS[1:]}, [manifest]
    if corpus.lay_out is None:
        return task.texts, task.domains, [described(path, name) for name, path in task.files().items()]
    paths, sources = fetch(task.archives, task.local_dir, archives)
    texts = corpus.lay_out(paths, work)
    if corpus.sacrebleu:
        archive = paths[sacrebleu_archive(corpus.sacrebleu).name]
        texts["test"] = [sacrebleu_text(corpus.sacrebleu, *corpus.languages, archive, work)]
    return texts, {}, sources


def paths_of(folder: Path, split: str, languages: Pair, ending: str = "") -> Parallel:
    return folder / f"{split}{ending}.{languages[0]}", folder / f"{split}{ending}.{languages[1]}"


def write(pairs: Iterable[Pair], paths: Parallel, what: str) -> int:
    """Write pairs in lines, with a progress bar; returns how many."""
    count = 0
    with (
        paths[0].open("w", encoding="utf-8", newline="\n") as left,
        paths[1].open("w", encoding="utf-8", newline="\n") as right,
    ):
        for a, b in tqdm(pairs, desc=what, unit="pair", unit_scale=True, disable=None):
            left.write(f"{a}\n")
            right.write(f"{b}\n")
            count += 1
    return count


def select(pairs: Iterable[Pair], encoder: Encoder, tally: Tally) -> Iterator[Pair]:
    """The pairs that keep to fairseq's limits for IWSLT."""
    for kept, faults in in_order(Selection(encoder, IWSLT), chunks(pairs), cores()):
        tally.dropped.update(faults)
        yield from kept


def clean(corpus: Corpus, texts: Texts, encoder: Encoder, work: Path) -> dict[str, Tally]:
    """Write the text that is to be binarised, as ``{split}.{language}`` into ``work``.

    Raises:
        RecipeError: the text can't be used; the message says where and why.
    """
    tallies = {split: Tally() for split in SPLITS}
    train, valid, test = (paths_of(work, split, corpus.languages) for split in SPLITS)
    steps = tallies["train"].pairs
    pairs = train_pairs(texts["train"], corpus.deduplicate, tallies["train"])
    if every := corpus.valid_every:
        both = paths_of(work, "selected", corpus.languages)
        steps["selected"] = write(select(pairs, encoder, tallies["train"]), both, "clean")
        steps["less validation"] = write((p for n, p in enumerate(read(*both), 1) if n % every), train, "train")
        drawn = write((p for n, p in enumerate(read(*both), 1) if n % every == 0), valid, "valid")
        tallies["valid"].pairs["drawn from training"] = drawn
    else:
        write(pairs, train, "clean train")
        write(all_pairs(texts["valid"], tallies["valid"]), valid, "clean valid")
    write(all_pairs(texts["test"], tallies["test"]), test, "clean test")
    for split, tally in tallies.items():
        if not tally.last:
            raise RecipeError(f"no pair is left for {split} ({tally})")
    return tallies


def encode(corpus: Corpus, encoder: Encoder, split: str, tally: Tally, work: Path) -> None:
    """Write the text in subwords into ``work``; pairs of training text that exceed the limits leave."""
    train = split == "train"
    encoding = Encoding(encoder, Limits(corpus.longest, corpus.ratio if train else None), drop=train)
    pairs = tally.last
    source, target = paths_of(work, split, corpus.languages, f".{ENDINGS[encoder.tokenizer]}")
    text = read(*paths_of(work, split, corpus.languages))
    bar = tqdm(text, total=pairs, desc=f"encode {split}", unit="pair", unit_scale=True, disable=None)
    with (
        source.open("w", encoding="utf-8", newline="\n") as left,
        target.open("w", encoding="utf-8", newline="\n") as right,
    ):
        for a, b, faults in in_order(encoding, chunks(bar), processes_for(pairs)):
            left.write(a)
            right.write(b)
            (tally.dropped if train else tally.odd).update(faults)
            pairs -= sum(faults.values()) if train else 0
    tally.pairs["binarised"] = pairs


def labels(path: Path, pairs: int, to: Path) -> None:
    """Copy a file with a label for each pair.

    Raises:
        RecipeError: it has more or fewer lines, or isn't UTF-8.
    """
    try:
        lines = [plain(line, Counter()) for line in path.read_bytes().splitlines(keepends=True)]
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error})") from None
    if len(lines) != pairs:
        raise RecipeError(f"{path} has {len(lines):,} labels for {pairs:,} sentence pairs")
    to.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make(task: Task, out: Path) -> dict[str, Any]:
    """Prepare a data set in ``out``.

    Returns:
        What the manifest says beside the options.

    Raises:
        RecipeError: the data can't be had or used; the message says what to do.
        BrokenProcessPool: a process was killed.
    """
    corpus, languages = task.corpus, task.corpus.languages
    work = Path(tempfile.mkdtemp(prefix="work-", dir=out))
    unpacked = work / "unpacked"
    unpacked.mkdir()
    texts, domains, sources = gather(task, out / "archives", unpacked)
    encoder = Encoder(task.tokenizer, languages, corpus.lower, corpus.normalise, work / MODELS[task.tokenizer])
    tallies = clean(corpus, texts, encoder, work)
    shutil.rmtree(unpacked)
    pairs = tallies["train"].last
    try:
        encoder.learn(*paths_of(work, "train", languages), pairs, task.vocab_size)
    except BrokenProcessPool:
        raise
    except (RuntimeError, ValueError) as error:  # its words name the sizes that the text allows
        raise RecipeError(f"argument --vocab-size: {task.vocab_size}: {error}") from None
    for split, tally in tallies.items():
        encode(corpus, encoder, split, tally, work)
        print(f"{split}: {tally}", flush=True)
    ending = ENDINGS[task.tokenizer]
    made = [path for split in SPLITS for path in paths_of(work, split, languages, f".{ending}")]
    for split in SPLITS[1:]:
        text = paths_of(work, split, languages)
        if corpus.lower:
            cased = paths_of(work, split, languages, ".cased")
            for path, aside in zip(text, cased, strict=True):
                path.replace(aside)
            write(((a.lower(), b.lower()) for a, b in read(*cased)), text, f"lower {split}")
        made += text
        if split in domains:
            made.append(work / f"{split}.domains")
            labels(domains[split], tallies[split].last, made[-1])
    files = {path.name: {"lines": count_lines(path), "sha256": digest(path)} for path in made}
    for path in [*made, *work.glob("spm.*"), *work.glob("bpe.codes")]:
        path.replace(out / path.name)
    binarise(languages, [out / f"{split}.{ending}" for split in SPLITS], pairs > FEW, work / "bin")
    (work / "bin").replace(out / "bin")
    for folder in out.glob("work-*"):
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "sources": sources,
        "counts": {split: tally.pairs for split, tally in tallies.items()},
        "dropped": {split: tally.dropped for split, tally in tallies.items()},
        "edited": {split: tally.edited for split, tally in tallies.items()},
        "odd": {split: tally.odd for split, tally in tallies.items()},
        "files": files,
    }


def count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def differences(manifest: dict[str, Any], task: Task) -> list[str]:
    """What is otherwise in a manifest than in a task; archives are compared where they are at hand."""
    found = [
        f"{key}: {manifest.get(key)}, not {value}"
        for key, value in task.options().items()
        if manifest.get(key) != value
    ]
    at_hand = task.files()
    if task.local_dir:
        at_hand |= {archive.name: path for archive in task.archives if (path := find(archive, [task.local_dir]))}
    known = {source.get("name"): source["sha256"] for source in manifest.get("sources", []) if "sha256" in source}
    return found + [f"{path} has changed" for name, path in at_hand.items() if digest(path) != known.get(name)]


def remove(out: Path) -> None:
    """Remove what an interrupted run left, but for its downloads, and nothing else."""
    for path in out.iterdir():
        if OURS.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    for folder in (out / "archives", out):
        with contextlib.suppress(OSError):  # it isn't empty
            folder.rmdir()


def parse(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    width = max(map(len, CORPORA))
    known = "\n".join(f"  {name:<{width}}  {corpus.about}" for name, corpus in CORPORA.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=f"data sets (pairs for training, room on disk with archives, licence):\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=CORPORA, metavar="NAME", help="a data set of those below")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--tokenizer", choices=MODELS, default="sentencepiece", help="default: %(default)s")
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="subwords in the joint vocabulary; with moses-bpe, merge operations (default: the data set's; 8000)",
    )
    parser.add_argument(
        "--local-dir", type=Path, metavar="DIR", help="a folder with archives that were already fetched"
    )
    own = parser.add_argument_group("your own text, instead of NAME")
    for split in SPLITS:
        own.add_argument(f"--{split}-prefix", metavar="PREFIX", help=f"PREFIX.LANGUAGE are the files for {split}")
    own.add_argument("-s", "--source-lang", metavar="LANGUAGE")
    own.add_argument("-t", "--target-lang", metavar="LANGUAGE")
    own.add_argument("--domains", action="store_true", help="PREFIX.domains has a label a line, for valid and test")
    return parser, parser.parse_args(argv)


def task_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Task:
    """The task that the arguments describe; ends the program where they don't."""
    flags = ["--train-prefix", "--valid-prefix", "--test-prefix", "--source-lang", "--target-lang"]
    values = [args.train_prefix, args.valid_prefix, args.test_prefix, args.source_lang, args.target_lang]
    given = [flag for flag, value in zip(flags, values, strict=True) if value]
    texts: Texts = {}
    domains: dict[str, Path] = {}
    if args.name:
        if given or args.domains:
            parser.error(f"argument {(given or ['--domains'])[0]}: is for your own text, not for {args.name}")
        name, corpus = args.name, CORPORA[args.name]
        prefixes = [str(DATA / name / split) for split in SPLITS] if name in DATA_SETS else []
    else:
        if missing := [flag for flag in flags if flag not in given]:
            parser.error(f"name a data set ({', '.join(CORPORA)}), or your own text with {', '.join(missing)}")
        for flag, language in zip(flags[3:], values[3:], strict=True):
            if not re.fullmatch(r"[\w-]+", language):
                parser.error(f"argument {flag}: {language!r} is the end of a file name: letters, digits, - and _")
        if args.source_lang == args.target_lang:
            parser.error(f"argument --target-lang: {args.target_lang} is the source language, too")
        name, corpus = "own", Corpus((args.source_lang, args.target_lang), 8000, "", labelled=args.domains)
        prefixes = values[:3]
    for split, prefix in zip(SPLITS, prefixes, strict=False):
        texts[split] = [(Path(f"{prefix}.{corpus.languages[0]}"), Path(f"{prefix}.{corpus.languages[1]}"))]
        if args.domains and split != "train":
            domains[split] = Path(f"{prefix}.domains")
    for split in texts:
        for path in [*texts[split][0], *([domains[split]] if split in domains else [])]:
            if not path.is_file():
                parser.error(f"argument --{split}-prefix: there is no file {path}")
    if args.local_dir and texts:
        parser.error(f"argument --local-dir: {'your own text' if name == 'own' else name} needs no archives")
    if args.local_dir and not args.local_dir.is_dir():
        parser.error(f"argument --local-dir: {args.local_dir} is not a folder")
    vocab_size = corpus.vocab_size if args.vocab_size is None else args.vocab_size
    if vocab_size < 1:
        parser.error(f"argument --vocab-size: {vocab_size} is not a positive number")
    return Task(name, corpus, texts, domains, args.tokenizer, vocab_size, args.local_dir)


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    task = task_of(parser, args)
    done, begun = args.out / "manifest.json", args.out / "manifest.json.part"
    if done.is_file():
        if other := differences(json.loads(done.read_text(encoding="utf-8")), task):
            parser.error(
                f"argument --out: {args.out} was made of other data or with other options ({'; '.join(other)}); "
                "remove it or name another"
            )
        print(f"{args.out}: already made")
        return
    if begun.is_file():  # interrupted: anew
        remove(args.out)
    if args.out.exists() and any(not KEPT.fullmatch(path.name) for path in args.out.iterdir()):
        parser.error(f"argument --out: {args.out} is not empty and was not made by this script")

    args.out.mkdir(parents=True, exist_ok=True)
    begun.touch()
    try:
        manifest = task.options() | make(task, args.out)
        begun.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        begun.replace(done)
    except (RecipeError, OSError, BrokenProcessPool) as error:
        remove(args.out)
        parser.error(str(error) or type(error).__name__)
    print(f"{args.out}: made")


if __name__ == "__main__":
    main()
