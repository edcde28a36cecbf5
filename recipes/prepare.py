"""Prepare a data set for fairseq: subwords, then binarised files.

    python recipes/prepare.py lohelp-en-de --out runs/quickstart/data --vocab-size 2000

Writes ``spm.model`` (a joint sentencepiece BPE vocabulary), the text in subwords ``{train,valid,test}.sp.{en,de}``,
fairseq's ``bin/`` and at last ``manifest.json``, what it was made of, to --out. Where --out holds the same data set
made with the same options, nothing is done; an interrupted run is begun anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sentencepiece

SPLITS = ("train", "valid", "test")
DATA = Path(__file__).resolve().parent / "data"
DATA_SETS = {"lohelp-en-de": ("en", "de")}  # source and target language


def wanted_manifest(name: str, vocab_size: int) -> dict[str, Any]:
    """What the result depends on."""
    files = [DATA / name / f"{split}.{language}" for split in SPLITS for language in DATA_SETS[name]]
    return {
        "data_set": name,
        "vocab_size": vocab_size,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "lines": {path.name: path.read_bytes().count(b"\n") for path in files},
        "versions": {package: version(package) for package in ("sentencepiece", "fairseq")},
    }


def subwords(name: str, vocab_size: int, out: Path) -> None:
    """Learn a joint vocabulary from the training text and apply it to all of it.

    Raises:
        RuntimeError: sentencepiece can't make a vocabulary of that size.
    """
    source = DATA / name
    sentencepiece.SentencePieceTrainer.train(
        input=[str(source / f"train.{language}") for language in DATA_SETS[name]],
        model_prefix=str(out / "spm.part"),
        vocab_size=vocab_size,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",  # else it writes ... for an ellipsis, and the references keep theirs
        minloglevel=2,
    )
    for ending in ("vocab", "model"):
        (out / f"spm.part.{ending}").replace(out / f"spm.{ending}")
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    for split in SPLITS:
        for language in DATA_SETS[name]:
            lines = (source / f"{split}.{language}").read_text(encoding="utf-8").splitlines()
            pieces = model.encode(lines, out_type=str)
            text = "".join(" ".join(line) + "\n" for line in pieces)
            (out / f"{split}.sp.{language}").write_text(text, encoding="utf-8")


def binarise(name: str, out: Path) -> None:
    """Run fairseq-preprocess.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    source, target = DATA_SETS[name]
    prefixes = [word for split in SPLITS for word in (f"--{split}pref", str(out / f"{split}.sp"))]
    command = [str(Path(sys.executable).with_name("fairseq-preprocess")), "-s", source, "-t", target, *prefixes]
    command += ["--joined-dictionary", "--destdir", str(out / "bin.part")]
    print("+", shlex.join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
        sys.exit("prepare.py: fairseq-preprocess failed for the reason above")
    (out / "bin.part").replace(out / "bin")


def remove(name: str, out: Path) -> None:
    """Remove what an interrupted run left, and nothing else."""
    for ending in ("model", "vocab"):
        for stem in ("spm", "spm.part"):
            (out / f"{stem}.{ending}").unlink(missing_ok=True)
    for split in SPLITS:
        for language in DATA_SETS[name]:
            (out / f"{split}.sp.{language}").unlink(missing_ok=True)
    for folder in ("bin", "bin.part"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "manifest.json.part").unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=DATA_SETS, help="the data set")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--vocab-size", type=int, default=2000, metavar="N", help="subwords in the joint vocabulary")
    args = parser.parse_args(argv)

    manifest = json.dumps(wanted_manifest(args.name, args.vocab_size), indent=1) + "\n"
    done, begun = args.out / "manifest.json", args.out / "manifest.json.part"
    if done.is_file():
        if done.read_text() == manifest:
            print(f"{args.out}: already made")
            return
        parser.error(
            f"argument --out: {args.out} was made of other data or with other options; remove it or name another"
        )
    if begun.is_file():  # interrupted: anew
        remove(args.name, args.out)
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"argument --out: {args.out} is not empty and was not made by this script")

    args.out.mkdir(parents=True, exist_ok=True)
    begun.write_text(manifest)
    try:
        subwords(args.name, args.vocab_size, args.out)
    except RuntimeError as error:  # its words name the sizes that the text allows
        remove(args.name, args.out)
        parser.error(f"argument --vocab-size: {args.vocab_size}: {error}")
    binarise(args.name, args.out)
    begun.replace(done)
    print(f"{args.out}: made")


if __name__ == "__main__":
    main()
