"""A data set from its sources to fairseq's binarised files."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import RecipeError
from common.machine import cores
from common.progress import progress

from .archives import fetch
from .binarise import binarise
from .cleaning import Tally, all_pairs, plain, train_pairs
from .dataset import Dataset, Folders, described
from .registry import SPLITS, Corpus, Parallel, Texts, sacrebleu_archive, sacrebleu_text
from .subwords import ENDINGS, MODELS, Encoder, Limited, Limits, Pair, chunks, in_order, processes_for, read

IWSLT = Limits(175, 1.5)  # of fairseq's prepare-iwslt14.sh, in Moses' tokens


@dataclass(frozen=True)
class ParallelText(Dataset):
    """Text in two languages that is to be prepared."""

    corpus: Corpus
    texts: Texts  # text files of each split, and domains label files, where they are not made of archives
    domains: dict[str, Path]
    tokenizer: str
    vocab_size: int
    vocabulary: Path | None = None  # a folder that was prepared, whose subwords and dictionary are taken

    def files(self) -> dict[str, Path]:
        """Files of the user's by their names in the manifest."""
        named = {
            f"{split}.{language}": path
            for split, parallel in self.texts.items()
            for language, path in zip(self.corpus.languages, parallel[0], strict=True)
        }
        named |= {f"{split}.domains": path for split, path in self.domains.items()}
        return named | self.taken()

    def taken(self) -> dict[str, Path]:
        """The files of the vocabulary that is taken, if one is; both languages have one dictionary in common."""
        if self.vocabulary is None:
            return {}
        dictionary = self.vocabulary / "bin" / f"dict.{self.corpus.languages[0]}.txt"
        return {"vocabulary": self.vocabulary / MODELS[self.tokenizer], "dictionary": dictionary}

    def options(self) -> dict[str, Any]:
        learned_by = {"sentencepiece": {"sentencepiece"}, "moses-bpe": {"sacremoses", "subword-nmt"}}
        tools = learned_by[self.tokenizer]
        tools |= {"sacrebleu"} if self.corpus.sacrebleu else set()
        tools |= {"sacremoses"} if self.corpus.valid_every else set()
        return {
            "data_set": self.name,
            "source": self.corpus.languages[0],
            "target": self.corpus.languages[1],
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "domains": self.corpus.labelled,
            "versions": {package: version(package) for package in sorted(tools)},
        }

    def make(self, folders: Folders) -> dict[str, Any]:
        corpus, languages, made = self.corpus, self.corpus.languages, folders.made
        text, unpacked = folders.work / "text", folders.work / "unpacked"
        text.mkdir()
        unpacked.mkdir()
        texts, domains, sources = gather(self, folders.archives, unpacked)
        encoder = Encoder(self.tokenizer, languages, corpus.lower, corpus.normalise, made / MODELS[self.tokenizer])
        tallies = clean(corpus, texts, encoder, text)
        shutil.rmtree(unpacked)
        pairs = tallies["train"].last
        for split, path in domains.items():
            labels(path, tallies[split].last, made / f"{split}.domains")
        try:
            if taken := self.taken():
                shutil.copyfile(taken["vocabulary"], encoder.model)
            else:
                encoder.learn(*paths_of(text, "train", languages), pairs, self.vocab_size)
        except BrokenProcessPool:
            raise
        except (RuntimeError, ValueError) as error:  # its words name the sizes that the text allows
            raise RecipeError(f"argument --vocab-size: {self.vocab_size}: {error}") from None
        for split, tally in tallies.items():
            encode(corpus, encoder, split, tally, text)
            print(f"{split}: {tally}", flush=True)
        ending = ENDINGS[self.tokenizer]
        for split in SPLITS:
            plain_text, encoded = paths_of(text, split, languages), paths_of(text, split, languages, f".{ending}")
            if split != "train" and corpus.lower:
                pairs_in_lower_case = ((a.lower(), b.lower()) for a, b in read(*plain_text))
                write(pairs_in_lower_case, paths_of(made, split, languages), f"lower {split}")
            for path in [*encoded, *(plain_text if split != "train" and not corpus.lower else ())]:
                path.rename(made / path.name)
        prefixes = [made / f"{split}.{ending}" for split in SPLITS]
        binarise(languages, prefixes, made / "bin", taken.get("dictionary"), encoder.pieces())
        return {
            **({"lower": True} if corpus.lower else {}),
            **({} if corpus.normalise else {"normalise": False}),
            "sources": sources,
            "counts": {split: tally.pairs for split, tally in tallies.items()},
            "dropped": {split: tally.dropped for split, tally in tallies.items()},
        }


def gather(task: ParallelText, archives: Path, work: Path) -> tuple[Texts, dict[str, Path], list[dict[str, Any]]]:
    """Fetch and unpack a data set.

    Returns:
        Text files of each split, label files of splits, and the sources for the manifest.

    Raises:
        RecipeError: something can't be had or is damaged.
    """
    corpus, own = task.corpus, [described(path, name) for name, path in task.files().items()]
    if corpus.build is not None:
        folder = archives / task.name
        manifest = corpus.build(folder, task.local_dir)
        source, target = corpus.languages
        texts: Texts = {split: [(folder / f"{split}.{source}", folder / f"{split}.{target}")] for split in SPLITS}
        labels = {split: folder / f"{split}.domains" for split in SPLITS[1:]} if corpus.labelled else {}
        return texts, labels, [manifest, *own]
    if corpus.lay_out is None:
        return task.texts, task.domains, own
    test_set = [sacrebleu_archive(corpus.sacrebleu)] if corpus.sacrebleu else []
    paths, sources = fetch([*corpus.archives, *test_set], task.local_dir, archives)
    texts = corpus.lay_out(paths, work)
    if corpus.sacrebleu:
        texts["test"] = [sacrebleu_text(corpus.sacrebleu, corpus.languages, paths[test_set[0].name], work)]
    return texts, {}, [*sources, *own]


def paths_of(folder: Path, split: str, languages: Pair, ending: str = "") -> Parallel:
    return folder / f"{split}{ending}.{languages[0]}", folder / f"{split}{ending}.{languages[1]}"


def write(pairs: Iterable[Pair], paths: Parallel, what: str, total: int | None = None) -> int:
    """Write pairs into two files; returns how many they are. ``total``: as many as may come."""
    count = 0
    with (
        paths[0].open("w", encoding="utf-8", newline="\n") as left,
        paths[1].open("w", encoding="utf-8", newline="\n") as right,
    ):
        for a, b in progress(pairs, desc=what, total=total, unit="pair", unit_scale=True):
            left.write(f"{a}\n")
            right.write(f"{b}\n")
            count += 1
    return count


def within(pairs: Iterable[Pair], limited: Limited, processes: int, faults: Counter[str]) -> Iterator[Pair]:
    """Pairs within limits, made by several processes; adds to the faults."""
    for within_limits, beyond in in_order(limited, chunks(pairs), processes):
        faults.update(beyond)
        yield from within_limits


def clean(corpus: Corpus, texts: Texts, encoder: Encoder, work: Path) -> dict[str, Tally]:
    """Write the text that is to be binarised, as ``{split}.{language}`` into ``work``.

    Raises:
        RecipeError: the text can't be used; the message says where and why.
    """
    tallies = {split: Tally() for split in SPLITS}
    train, valid, test = (paths_of(work, split, corpus.languages) for split in SPLITS)
    steps = tallies["train"].pairs
    every = corpus.valid_every  # of IWSLT, whose split is fairseq's only if the same pairs are left
    pairs = train_pairs(texts["train"], corpus.deduplicate, tallies["train"], drop_control=not every)
    if every:
        both = paths_of(work, "selected", corpus.languages)
        selected = within(pairs, Limited(encoder, IWSLT, select=True), cores(), tallies["train"].dropped)
        steps["selected"] = write(selected, both, "clean")
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
    limited = Limited(encoder, Limits(corpus.longest, corpus.ratio if train else None), drop=train)
    text, paths = (paths_of(work, split, corpus.languages, e) for e in ("", f".{ENDINGS[encoder.tokenizer]}"))
    faults = tally.dropped if train else Counter()  # of the others, overlong pairs stay
    encoded = within(read(*text), limited, processes_for(tally.last), faults)
    pairs = write(encoded, paths, f"encode {split}", tally.last)
    if not pairs:
        raise RecipeError(f"no pair is left for {split} ({tally})")
    tally.pairs["binarised"] = pairs


def labels(path: Path, pairs: int, to: Path) -> None:
    """Copy a file with a label for each pair.

    Raises:
        RecipeError: it has more or fewer lines, or isn't UTF-8.
    """
    try:
        lines = [plain(line) for line in path.read_bytes().splitlines(keepends=True)]
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error})") from None
    if len(lines) != pairs:
        raise RecipeError(f"{path} has {len(lines):,} labels for {pairs:,} sentence pairs")
    to.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
