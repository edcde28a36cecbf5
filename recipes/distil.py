"""Distil: a data set that has a model's, or an ensemble's, translations of its training text next to the references.

    python recipes/distil.py runs/lohelp/data --path A.pt:B.pt:C.pt --out runs/distilled
    fairseq-train runs/distilled/bin --user-dir fairseq_sru --arch sru_tiny --share-all-embeddings ...

Sequence-level distillation (Kim and Rush 2016, section 3.2): a student learns its teacher's own best translations,
which are more alike than people's, so that a smaller model or beam does. In ``bin/`` they are ``train``, and the data's
own pairs ``train1``; fairseq-train reads both as one. Subwords, dictionaries, validation and test set stay those of the
data. Writes also the translations ``train.LANGUAGE`` in subwords, and the output of fairseq-generate.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from common.arguments import at_least_one
from common.errors import RecipeError
from common.files import write_text
from common.hold import held
from common.machine import ROOT
from comparison.fairseq_output import hypotheses
from corpora.binarise import number
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.data import Dictionary, data_utils

from fairseq_sru.models.checkpoints import fairseq_checkpoints

LONGEST = 250  # tokens, as in training text


def languages_of(checkpoint: Path, otherwise: tuple[str, str]) -> tuple[str, str]:
    """Source and target language of a model; ``otherwise``: those of a model that doesn't name them.

    Raises:
        RecipeError: it isn't a checkpoint of fairseq.
    """
    try:
        with fairseq_checkpoints():
            task = load_checkpoint_to_cpu(str(checkpoint))["cfg"]["task"]
    except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, EOFError, OSError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise RecipeError(f"argument --path: {checkpoint} is not a checkpoint of fairseq: {why}") from None
    task = vars(task) if isinstance(task, argparse.Namespace) else task  # of a task without a dataclass
    return task.get("source_lang") or otherwise[0], task.get("target_lang") or otherwise[1]


def translate(command: list[str], log: Path) -> None:
    """Translate the training text to what fairseq-generate prints, unless that was done.

    Raises:
        RecipeError: there are translations of other options, or fairseq-generate fails.
    """
    part, made_by = log.with_suffix(".part"), log.with_suffix(".command")
    if log.exists() and made_by.read_text(encoding="utf-8") != shlex.join(command):
        raise RecipeError(f"{log} is of another teacher or of other options: name another --out")
    if not log.exists():
        print(f"+ {shlex.join(command)}", flush=True)
        write_text(made_by, shlex.join(command))
        with part.open("wb") as file:
            done = subprocess.run([sys.executable, "-m", "fairseq_cli.generate", *command[1:]], stdout=file)
        if done.returncode:
            raise RecipeError(f"fairseq-generate failed with status {done.returncode}")
        part.rename(log)


def binarise(data: Path, pair: str, target: str, targets: Path, to: Path) -> None:
    """Write the data set's ``bin/`` with the translations as ``train``, and its own pairs as ``train1``."""
    to.mkdir(exist_ok=True)
    for path in (data / "bin").iterdir():
        if not path.name.startswith(f"train.{pair}.{target}."):
            shutil.copyfile(path, to / path.name)
        if path.name.startswith("train."):
            shutil.copyfile(path, to / path.name.replace("train.", "train1.", 1))
    dictionary = Dictionary.load(str(to / f"dict.{target}.txt"))
    print(f"[{target}] {targets}: {number(targets, dictionary, to / f'train.{pair}.{target}')}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of prepare.py's")
    parser.add_argument("--path", required=True, metavar="FILE[:FILE...]", help="the teacher: checkpoints, an ensemble")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--beam", type=at_least_one, default=5, metavar="N", help="of the teacher's search (5)")
    parser.add_argument("--max-tokens", type=at_least_one, default=4000, metavar="N", help="of a batch (4000)")
    args = parser.parse_args(argv)
    data, out = args.data.absolute(), args.out.absolute()
    teacher = [Path(path).absolute() for path in args.path.split(":")]
    for path in teacher:
        if not os.path.isfile(path):
            parser.error(f"argument --path: no such file: {path}")
    try:
        manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
        source, target = manifest["source"], manifest["target"]
        pair = f"{source}-{target}"
        total = len(data_utils.load_indexed_dataset(str(data / "bin" / f"train.{pair}.{source}")))
    except (OSError, ValueError, LookupError, TypeError):  # the last without the data set
        parser.error(f"argument DATA: {args.data} is not a folder of parallel text that prepare.py has finished")
    if (out / "manifest.json").exists():
        parser.error(f"argument --out: {args.out} is a data set already: name another folder")
    command = ["fairseq-generate", str(data / "bin"), "--user-dir", str(ROOT / "fairseq_sru"), "--gen-subset", "train"]
    command += ["--path", ":".join(map(str, teacher)), "--beam", str(args.beam), "--max-tokens", str(args.max_tokens)]
    command += ["--max-len-b", str(LONGEST), "--required-batch-size-multiple", "1", "--no-progress-bar"]
    command += [] if torch.cuda.is_available() else ["--cpu"]
    log, targets = out / "translations.txt", out / f"train.{target}"
    try:
        for path in teacher:
            if (of := languages_of(path, (source, target))) != (source, target):  # dictionaries of both are the same
                raise RecipeError(f"argument --path: {path} must translate {pair}, as DATA is; it is of {'-'.join(of)}")
        with held(out):
            translate(command, log)
            best = hypotheses(log.read_text(encoding="utf-8"))
            write_text(targets, "".join(f"{line}\n" for line in best))
            binarise(data, pair, target, targets, out / "bin")
    except (RecipeError, OSError) as error:
        parser.error(str(error))
    print(f"{args.out}: {total:,} translations, and as many references; train with {args.out}/bin")


if __name__ == "__main__":
    main()
