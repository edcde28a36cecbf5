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

OWN = ("train_prefix", "valid_prefix", "test_prefix", "source_lang", "target_lang")  # options of one's own text
OF_SPEECH = {
    "spoken-digits": ("test_speakers",),
    "must-c": ("target_lang", "vocab_size"),
    "librispeech": ("vocab_size",),
}


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


def allowed(name: str | None) -> tuple[str, ...]:
    """Options besides --out that a data set takes; None: one's own text."""
    if name is None:
        return (*OWN, "domains", "tokenizer", "vocab_size", "vocabulary")
    if name in CORPORA:
        return ("tokenizer", "vocab_size", "vocabulary", *(() if name in DATA_SETS else ("local_dir",)))
    if name in SETS:
        return "embeddings", "local_dir"
    if name in TEXTS:
        return ("local_dir",)
    return ("local_dir", *OF_SPEECH[name])


def task_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Dataset:
    """Return what the arguments describe; ends the program where they don't."""
    name, local_dir = args.name, args.local_dir
    if ":" in str(args.out):
        parser.error(f"argument --out: must have no colon, at which fairseq splits paths; got {args.out}")
    for option, value in vars(args).items():
        if value and option not in (*allowed(name), "name", "out"):
            parser.error(f"argument --{option.replace('_', '-')}: is not for {name or 'your own text'}")
    if local_dir and not local_dir.is_dir():
        parser.error(f"argument --local-dir: {local_dir} is not a folder")
    if name in SETS:
        return Sentences(name, local_dir, args.embeddings)
    if name in TEXTS:
        return Text(name, local_dir)
    if name in SPEECH:
        usual = {"test_speakers": TEST_SPEAKERS, "target_lang": "de", "vocab_size": SPEECH[name].vocab_size}
        chosen = {option: getattr(args, option) or usual[option] for option in OF_SPEECH[name]}
        return Speech(
            name, local_dir, SPEECH[name], {k.replace("target_lang", "language"): v for k, v in chosen.items()}
        )
    return parallel_of(parser, args)


def parallel_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> ParallelText:
    """Return the parallel text that the arguments describe."""
    prefixes: list[str] = []
    if args.name:
        corpus = CORPORA[args.name]
        if args.name in DATA_SETS:
            prefixes = [str(DATA / args.name / split) for split in SPLITS]
    else:
        values = {f"--{option.replace('_', '-')}": getattr(args, option) for option in OWN}
        if missing := [flag for flag, value in values.items() if not value]:
            parser.error(f"name a data set ({', '.join(CORPORA)}), or your own text with {', '.join(missing)}")
        for flag, language in list(values.items())[3:]:
            if not re.fullmatch(r"\w+", language):  # fairseq reads a - as that between source and target
                parser.error(f"argument {flag}: {language!r} must be of letters, digits and _: rename the files")
        if args.source_lang == args.target_lang:
            parser.error(f"argument --target-lang: {args.target_lang} is the source language, too")
        corpus = Corpus((args.source_lang, args.target_lang), 8000, "", labelled=args.domains)
        prefixes = [args.train_prefix, args.valid_prefix, args.test_prefix]
    tokenizer = args.tokenizer or "sentencepiece"
    if args.vocabulary:
        corpus, tokenizer = vocabulary_of(parser, args, corpus)
    texts: Texts = {}
    domains: dict[str, Path] = {}
    for split, prefix in zip(SPLITS, prefixes, strict=False):
        source, target = (Path(f"{prefix}.{language}") for language in corpus.languages)
        texts[split] = [(source, target)]
        if args.domains and split != "train":
            domains[split] = Path(f"{prefix}.domains")
        for path in (source, target, domains.get(split, source)):
            if not path.is_file():
                parser.error(f"argument --{split}-prefix: no such file: {path}")
    name, vocab_size = args.name or "own", args.vocab_size or corpus.vocab_size
    return ParallelText(name, args.local_dir, corpus, texts, domains, tokenizer, vocab_size, args.vocabulary)


def vocabulary_of(parser: argparse.ArgumentParser, args: argparse.Namespace, corpus: Corpus) -> tuple[Corpus, str]:
    """Return the corpus, cleaned as that of --vocabulary and with as large a one, and its tokenizer."""
    folder = args.vocabulary
    for option in ("tokenizer", "vocab_size"):
        if getattr(args, option):
            parser.error(f"argument --{option.replace('_', '-')}: is that of --vocabulary")
    try:
        made = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        tokenizer, size, languages = made["tokenizer"], made["vocab_size"], {made["source"], made["target"]}
        if not (folder / MODELS[tokenizer]).is_file():
            raise LookupError
    except (OSError, ValueError, TypeError, LookupError):
        parser.error(f"argument --vocabulary: {folder} is not a folder of parallel text that this script has finished")
    if languages != set(corpus.languages):
        text = " and ".join(corpus.languages)
        parser.error(f"argument --vocabulary: {folder} has {' and '.join(sorted(languages))}; got text of {text}")
    lower, normalise = made.get("lower", False), made.get("normalise", True)
    return replace(corpus, vocab_size=size, lower=lower, normalise=normalise), tokenizer


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
        print("\nstopped; run the same command to begin again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
