"""Prepare a data set for fairseq: fetch it, clean it, split it into subwords, binarise it.

    python recipes/prepare.py lohelp-en-de --out runs/quickstart/data
    python recipes/prepare.py wmt14-en-de --out runs/wmt14/data --local-dir ARCHIVES
    python recipes/prepare.py trec --out runs/trec/data --local-dir ARCHIVES
    python recipes/prepare.py --train-prefix my/train --valid-prefix my/valid --test-prefix my/test \\
        --source-lang en --target-lang de --out runs/mine/data

Writes to --out: ``spm.model`` (a joint sentencepiece BPE vocabulary) or, with --tokenizer moses-bpe, ``bpe.codes``; the
text in subwords, ``{train,valid,test}.{sp,bpe}.LANGUAGE``; the plain text to score with, ``{valid,test}.LANGUAGE``,
line for line what is binarised; ``{valid,test}.domains`` where the data set has labels; fairseq's ``bin/``;
``archives/``, what was downloaded; and ``manifest.json``, what it was made of and what was dropped. Labelled sentences
become ``folds/N``, each with what fairseq's sentence_prediction reads, and ``labelled-test.txt``. All is written to
OUT.part, which becomes OUT at the end; a run that was stopped begins again, but for its downloads. Where --out holds
the same data set, made with the same options, nothing is done. Else --out must be new or empty.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.arguments import at_least_one, file
from common.errors import RecipeError
from common.hold import FolderError
from corpora.building import ParallelText
from corpora.dataset import MANIFEST, Dataset, prepare
from corpora.registry import CORPORA, DATA, DATA_SETS, SPLITS, Corpus, Texts
from corpora.sentences import SETS, Sentences
from corpora.speech import Speech
from corpora.speech_sets import SPEECH, TEST_SPEAKERS
from corpora.subwords import MODELS
from corpora.texts import TEXTS, Text

# Its detokenizer leaves spaces within words, or before the language's own punctuation.
NOT_JOINED = ("ar", "bn", "bo", "fa", "hi", "km", "lo", "ml", "my", "si", "th", "ur", "yue", "zh")


def parse(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    every: dict[str, Any] = {**CORPORA, **SETS, **TEXTS, **SPEECH}
    width = max(map(len, every))
    known = "\n".join(f"  {name:<{width}}  {data_set.about}" for name, data_set in every.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"data sets (what is in them; of parallel text, room on disk with archives, and licence):\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=every, metavar="NAME", help="a data set of those below")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--tokenizer", choices=MODELS, help="of parallel text (default: sentencepiece)")
    parser.add_argument(
        "--vocab-size",
        type=at_least_one,
        metavar="N",
        help="subwords in the joint vocabulary; with moses-bpe, merge operations (default: the data set's; 8000)",
    )
    parser.add_argument(
        "--embeddings", type=file, metavar="FILE", help="for labelled sentences: vectors of GloVe or word2vec"
    )
    parser.add_argument(
        "--test-speakers", metavar="NAMES", help=f"of spoken-digits, with commas (default: {TEST_SPEAKERS})"
    )
    parser.add_argument("--local-dir", type=Path, metavar="DIR", help="a folder of archives that were already fetched")
    own = parser.add_argument_group("your own text, instead of NAME")
    for split in SPLITS:
        own.add_argument(f"--{split}-prefix", metavar="PREFIX", help=f"PREFIX.LANGUAGE are the files for {split}")
    own.add_argument("-s", "--source-lang", metavar="LANGUAGE", help="translated from")
    own.add_argument("-t", "--target-lang", metavar="LANGUAGE", help="translated to; also of must-c (de)")
    own.add_argument("--domains", action="store_true", help="PREFIX.domains has a label a line, for valid and test")
    own.add_argument(
        "--vocabulary",
        type=Path,
        metavar="DIR",
        help="a folder that this script made: take its subwords and dictionary, to go on from a model of it",
    )
    return parser, parser.parse_args(argv)


def task_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Dataset:
    """What the arguments describe; ends the program where they don't."""
    if ":" in str(args.out):
        parser.error(f"argument --out: must have no colon, at which fairseq splits paths; got {args.out}")
    if args.local_dir and not os.path.isdir(args.local_dir):
        parser.error(f"argument --local-dir: {args.local_dir} is not a folder")
    return parallel_of(parser, args) if args.name in (None, *CORPORA) else other_of(parser, args)


def other_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Dataset:
    """The data set of another kind that the arguments name."""
    name, local_dir = args.name, args.local_dir
    takes = {"embeddings": name in SETS, "test_speakers": name == "spoken-digits", "target_lang": name == "must-c"}
    takes |= {"vocab_size": name in ("must-c", "librispeech"), "name": True, "out": True, "local_dir": True}
    for option, value in vars(args).items():
        if value and not takes.get(option):
            parser.error(f"argument --{option.replace('_', '-')}: is not for {name}")
    if name in SETS:
        return Sentences(name, local_dir, args.embeddings)
    if name in TEXTS:
        return Text(name, local_dir)
    chosen = {"test_speakers": args.test_speakers or TEST_SPEAKERS} if takes["test_speakers"] else {}
    chosen |= {"language": args.target_lang or "de"} if takes["target_lang"] else {}
    chosen |= {"vocab_size": args.vocab_size or SPEECH[name].vocab_size} if takes["vocab_size"] else {}
    return Speech(name, local_dir, SPEECH[name], chosen)


def check_language(parser: argparse.ArgumentParser, flag: str, language: str, tokenizer: str) -> None:
    if not re.fullmatch(r"\w+", language):  # fairseq reads a - as that between source and target
        parser.error(f"argument {flag}: {language!r} must be of letters, digits and _: rename the files")
    if tokenizer == "moses-bpe" and not re.fullmatch("[a-z]{2}|mni|tdt|yue", language):
        parser.error(f"argument {flag}: Moses knows languages by two letters, not as {language}: rename the files")
    if tokenizer == "moses-bpe" and flag == "--target-lang" and language in NOT_JOINED:
        parser.error(f"argument {flag}: Moses doesn't undo its tokens of {language}: give --tokenizer sentencepiece")


def parallel_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> ParallelText:
    """The parallel text that the arguments describe."""
    flags = ["--train-prefix", "--valid-prefix", "--test-prefix", "--source-lang", "--target-lang"]
    values = [args.train_prefix, args.valid_prefix, args.test_prefix, args.source_lang, args.target_lang]
    given = [flag for flag, value in zip(flags, values, strict=True) if value]
    texts: Texts = {}
    domains: dict[str, Path] = {}
    tokenizer = args.tokenizer or "sentencepiece"
    if args.name:
        given += ["--domains"] if args.domains else []
        if given:
            parser.error(f"argument {given[0]}: is for your own text, not for {args.name}")
        name, corpus = args.name, CORPORA[args.name]
        prefixes = [str(DATA / name / split) for split in SPLITS] if name in DATA_SETS else []
    else:
        if missing := [flag for flag in flags if flag not in given]:
            parser.error(f"name a data set ({', '.join(CORPORA)}), or your own text with {', '.join(missing)}")
        for flag, language in zip(flags[3:], values[3:], strict=True):
            check_language(parser, flag, language, tokenizer)
        if args.source_lang == args.target_lang:
            parser.error(f"argument --target-lang: {args.target_lang} is the source language, too")
        name, corpus = "own", Corpus((args.source_lang, args.target_lang), 8000, "", labelled=args.domains)
        prefixes = values[:3]
    if args.vocabulary:
        corpus, tokenizer = vocabulary_of(parser, args, corpus)
    for split, prefix in zip(SPLITS, prefixes, strict=False):
        texts[split] = [(Path(f"{prefix}.{corpus.languages[0]}"), Path(f"{prefix}.{corpus.languages[1]}"))]
        if args.domains and split != "train":
            domains[split] = Path(f"{prefix}.domains")
    for split in texts:
        for path in [*texts[split][0], *([domains[split]] if split in domains else [])]:
            if not os.path.isfile(path):
                parser.error(f"argument --{split}-prefix: no such file: {path}")
    if args.local_dir and texts:
        parser.error(f"argument --local-dir: {'your own text' if name == 'own' else name} needs no archives")
    for option in ("embeddings", "test_speakers"):
        if getattr(args, option):
            parser.error(f"argument --{option.replace('_', '-')}: is not for parallel text")
    vocab_size = args.vocab_size or corpus.vocab_size
    return ParallelText(name, args.local_dir, corpus, texts, domains, tokenizer, vocab_size, args.vocabulary)


def vocabulary_of(parser: argparse.ArgumentParser, args: argparse.Namespace, corpus: Corpus) -> tuple[Corpus, str]:
    """The corpus, cleaned as that of --vocabulary and with as large a one; the tokenizer."""
    folder = args.vocabulary
    for option in ("tokenizer", "vocab_size"):
        if getattr(args, option):
            parser.error(f"argument --{option.replace('_', '-')}: is that of --vocabulary")
    try:
        of = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        languages, tokenizer = {of["source"], of["target"]}, of["tokenizer"]
        cleaned = {"lower": of.get("lower", False), "normalise": of.get("normalise", True)}
        corpus = replace(corpus, vocab_size=of["vocab_size"], **cleaned)
        there = [(folder / MODELS[tokenizer]), *(folder / "bin" / f"dict.{language}.txt" for language in languages)]
        complete = all(path.is_file() for path in there)
    except (OSError, ValueError, LookupError, TypeError):
        complete = False
    if not complete:
        parser.error(f"argument --vocabulary: {folder} is not a folder of parallel text that this script has finished")
    if languages != set(corpus.languages):
        parser.error(
            f"argument --vocabulary: {folder} has {' and '.join(sorted(languages))}; got {args.name or 'text'} of "
            f"{' and '.join(corpus.languages)}"
        )
    return corpus, tokenizer


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    task = task_of(parser, args)
    try:
        prepare(task, args.out)
    except FolderError as error:
        parser.error(f"argument --out: {error}")
    except BrokenProcessPool:
        parser.error("a process of this one was killed, perhaps for want of memory")
    except (RecipeError, OSError) as error:
        parser.error(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        print("\nstopped; run the same command to begin anew", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
