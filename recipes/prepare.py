"""Prepare a data set for fairseq: fetch it, clean it, split it into subwords, binarise it.

    python recipes/prepare.py lohelp-en-de --out runs/quickstart/data
    python recipes/prepare.py wmt14-en-de --out runs/wmt14/data --local-dir ARCHIVES
    python recipes/prepare.py --train-prefix my/train --valid-prefix my/valid --test-prefix my/test \\
        --source-lang en --target-lang de --out runs/mine/data

Writes to --out: ``spm.model`` (a joint sentencepiece BPE vocabulary) or, with --tokenizer moses-bpe, ``bpe.codes``; the
text in subwords, ``{train,valid,test}.{sp,bpe}.LANGUAGE``; the plain text to score with, ``{valid,test}.LANGUAGE``,
line for line what is binarised; ``{valid,test}.domains`` where the data set has labels; fairseq's ``bin/``;
``archives/``, what was downloaded; and at last ``manifest.json``, what it was made of, what was dropped, and the
checksum of each file. Where --out holds the same data set, made with the same options, and all its files are as they
were made, nothing is done; an interrupted run is begun anew, but for its downloads. Else --out must be new or empty.
One run at a time holds it, and removes or replaces only what this script made.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import RecipeError
from common.files import write_text
from common.hold import NAME, FolderError, Hold, held
from corpora.archives import Archive, digest, fetch, find
from corpora.cleaning import Tally, all_pairs, plain, train_pairs
from corpora.registry import CORPORA, DATA, SPLITS, Corpus, Parallel, Texts, sacrebleu_archive, sacrebleu_text
from corpora.subwords import (
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
MANIFEST = "manifest.json"
MARK = ".made_by_prepare"  # in a folder of downloads; one without it is somebody else's


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
        from corpora import debian

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


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def binarise(languages: Pair, prefixes: list[Path], large: bool, to: Path) -> None:
    """Run fairseq-preprocess on the files ``{prefix}.{language}`` of the splits.

    Raises:
        RecipeError: it failed; the message has its last lines.
    """
    command = [str(Path(sys.executable).with_name("fairseq-preprocess")), "-s", languages[0], "-t", languages[1]]
    command += [
        word for split, prefix in zip(SPLITS, prefixes, strict=True) for word in (f"--{split}pref", str(prefix))
    ]
    command += ["--joined-dictionary", "--destdir", str(to), *(["--workers", str(cores())] if large else [])]
    print("+", shlex.join(command), flush=True)
    news: deque[str] = deque(maxlen=30)
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}
    how |= {"preexec_fn": _end_with_parent} if sys.platform == "linux" else {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how) as process:
        assert process.stdout
        for line in process.stdout:
            news.append(line)
            if re.search(r"\| \[\w+\] .*tokens", line):  # fairseq tells of each file that is done
                print(line.split(" | ")[-1], end="", flush=True)
    if process.returncode:
        raise RecipeError(f"fairseq-preprocess failed:\n{''.join(news)}")


def make(task: Task, work: Path, archives: Path) -> Path:
    """Prepare a data set in ``work``.

    Returns:
        The folder in it that has what goes to --out and nothing else.

    Raises:
        RecipeError: the data can't be had or used; the message says what to do.
        BrokenProcessPool: a process was killed.
    """
    corpus, languages = task.corpus, task.corpus.languages
    text, unpacked, made = work / "text", work / "unpacked", work / "made"
    for folder in (text, unpacked, made):
        folder.mkdir()
    texts, domains, sources = gather(task, archives, unpacked)
    encoder = Encoder(task.tokenizer, languages, corpus.lower, corpus.normalise, made / MODELS[task.tokenizer])
    tallies = clean(corpus, texts, encoder, text)
    shutil.rmtree(unpacked)
    pairs = tallies["train"].last
    try:
        encoder.learn(*paths_of(text, "train", languages), pairs, task.vocab_size)
    except BrokenProcessPool:
        raise
    except (RuntimeError, ValueError) as error:  # its words name the sizes that the text allows
        raise RecipeError(f"argument --vocab-size: {task.vocab_size}: {error}") from None
    for split, tally in tallies.items():
        encode(corpus, encoder, split, tally, text)
        print(f"{split}: {tally}", flush=True)
    ending = ENDINGS[task.tokenizer]
    for split in SPLITS:
        plain_text, subwords = paths_of(text, split, languages), paths_of(text, split, languages, f".{ending}")
        if split != "train" and corpus.lower:
            pairs_in_lower_case = ((a.lower(), b.lower()) for a, b in read(*plain_text))
            write(pairs_in_lower_case, paths_of(made, split, languages), f"lower {split}")
        for path in [*subwords, *(plain_text if split != "train" and not corpus.lower else ())]:
            path.rename(made / path.name)
        if split in domains:
            labels(domains[split], tallies[split].last, made / f"{split}.domains")
    lines = {path.name: count_lines(path) for path in made.iterdir() if path != encoder.model}
    binarise(languages, [made / f"{split}.{ending}" for split in SPLITS], pairs > FEW, made / "bin")
    manifest = task.options() | {
        "sources": sources,
        "counts": {split: tally.pairs for split, tally in tallies.items()},
        "dropped": {split: tally.dropped for split, tally in tallies.items()},
        "edited": {split: tally.edited for split, tally in tallies.items()},
        "odd": {split: tally.odd for split, tally in tallies.items()},
        "files": {
            name: ({"lines": lines[name]} if name in lines else {}) | {"sha256": digest(made / name)}
            for name in sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
            if not name.endswith(".log")  # has the time in it
        },
    }
    write_text(made / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(text)
    return made


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


def some(what: list[str]) -> str:
    """The first of many."""
    return "; ".join(what if len(what) < 5 else [*what[:3], f"{len(what) - 3} more"])


def already_made(task: Task, out: Path) -> bool:
    """Whether ``out`` holds what is to be made; says so.

    Raises:
        RecipeError: it holds something else, or not all of it.
    """
    if not (out / MANIFEST).is_file():
        return False
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        files, tokenizer = manifest["files"], manifest["tokenizer"]
    except (ValueError, KeyError, TypeError):
        raise FolderError(f"{out / MANIFEST} is not of this script: name a new or empty folder") from None
    if other := differences(manifest, task):
        raise FolderError(
            f"{out} was made of other data or with other options ({some(other)}); remove it or name another"
        )
    model = MODELS[tokenizer]
    wrong = [f"{name} is missing" for name in (model, "bin") if name not in files and not (out / name).exists()]
    for name, facts in files.items():
        if not (out / name).is_file():
            wrong.append(f"{name} is missing")
        elif digest(out / name) != facts["sha256"]:
            wrong.append(f"{name} has changed")
    if wrong:
        raise FolderError(f"{out} is not as it was made ({some(wrong)}): put that right, or remove it or name another")
    earlier = "" if model in files else f", by an earlier version: {model} and bin are there, but have no checksums"
    print(f"{out}: already made{earlier}")
    return True


def publish(made: Path, out: Path) -> None:
    """Move what is made to ``out``, the manifest last. A killed run is taken up where it was killed.

    Raises:
        FolderError: ``out`` has a file of that name; nothing was moved.
    """
    names = sorted(path.name for path in made.iterdir())
    if there := [name for name in names if os.path.lexists(out / name)]:
        raise FolderError(f"{out / there[0]} is not of this script: move it and run this again")
    for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
        (made / name).rename(out / name)


def drop_if_empty(archives: Path, work: Path) -> None:
    """Drop a folder of downloads without any, by way of ``work``: no half of it is ever seen."""
    if archives.is_dir() and [path.name for path in archives.iterdir()] == [MARK]:
        archives.rename(work / "archives")
        shutil.rmtree(work / "archives")


def prepare(task: Task, out: Path, hold: Hold) -> None:
    """Make what is not made yet.

    Raises:
        RecipeError: ``out`` holds something else, or the data can't be had or used.
        BrokenProcessPool: a process was killed.
    """
    archives = out / "archives"
    hold.work.mkdir()
    try:
        drop_if_empty(archives, hold.work)
        for folder in hold.left:
            if (folder / "made" / MANIFEST).is_file():
                publish(folder / "made", out)
            shutil.rmtree(folder, ignore_errors=True)  # the killed run's children may be at work for a moment longer
        if already_made(task, out):
            return
        ours = {NAME, hold.work.name, *(folder.name for folder in hold.left)}
        ours |= {"archives"} if (archives / MARK).is_file() else set()
        if strange := sorted({path.name for path in out.iterdir()} - ours):
            raise FolderError(f"{out} holds {strange[0]}, which is not of this script: move it, or name another folder")
        if not archives.exists():
            (hold.work / "archives").mkdir()
            (hold.work / "archives" / MARK).touch()
            (hold.work / "archives").rename(archives)
        try:
            made = make(task, hold.work, archives)
        finally:
            drop_if_empty(archives, hold.work)
        publish(made, out)
    finally:
        if not (hold.work / "made" / MANIFEST).exists():  # else it only has to be moved
            shutil.rmtree(hold.work, ignore_errors=True)
    print(f"{out}: made")


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
    try:
        if not already_made(task, args.out):
            with held(args.out) as hold:
                prepare(task, args.out, hold)
    except FolderError as error:
        parser.error(f"argument --out: {error}")
    except (RecipeError, OSError, BrokenProcessPool) as error:
        parser.error(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        print("\nstopped; run the same command to begin anew", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
