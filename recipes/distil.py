"""Distil: a data set that has a model's, or an ensemble's, translations of its training text beside the references.

    python recipes/distil.py runs/lohelp/data --path A.pt:B.pt:C.pt --out runs/distilled
    fairseq-train runs/distilled/bin --user-dir fairseq_sru --arch sru_tiny --share-all-embeddings ...

Sequence-level distillation (Kim and Rush 2016, section 3.2): a student learns its teacher's own best translations,
which are more alike than people's, so that a smaller model or beam does. In ``bin/`` they are ``train``, and the data's
own pairs ``train1``; fairseq-train reads both as one. Subwords, dictionaries, validation and test set stay those of the
data. Writes also the translations ``train.LANGUAGE`` in subwords, and what fairseq-generate printed. Stopped and run
again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from common.arguments import at_least_one
from common.files import write_text
from common.machine import ROOT
from common.progress import progress
from comparison.commands import words
from comparison.fairseq_output import hypotheses
from comparison.stages import StageError, Stages, lines, working_in
from corpora.binarise import number
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.data import Dictionary, data_utils
from tqdm import tqdm

from fairseq_sru.models.checkpoints import fairseq_checkpoints

SHARD, SHARDS = 5_000, 200  # sentences between which it can be stopped; parts at most, since each loads the model
LONGEST = 250  # tokens, as in training text


def translate(stages: Stages, data: Path, logs: list[Path], total: int, **flags: Any) -> None:
    """Translate the training text, a shard after the other, to what fairseq-generate prints.

    Raises:
        StageError: fairseq-generate fails, or there are translations of another teacher.
    """
    flags |= {"gen-subset": "train", "num-shards": len(logs), "no-progress-bar": True}
    flags |= {"required-batch-size-multiple": 1, "cpu": not torch.cuda.is_available()}  # as compare.py has it
    inputs = [*map(Path, flags["path"].split(":")), data / "manifest.json"]
    with progress(desc="translate", total=total, unit="sentence", unit_scale=True) as bar:
        for shard, log in enumerate(logs):
            command = ["fairseq-generate", f"{data}/bin", "--user-dir", str(ROOT / "fairseq_sru")]
            command += words({**flags, "shard-id": shard})
            name = f"translate {shard}"
            if stages.stamp(name).get("done") and log.is_file():
                if not stages.is_of(name, command, inputs):
                    raise StageError(
                        f"{log} is by another teacher, of other options, or made with or without a GPU: name another "
                        "--out"
                    )
                bar.update(sum(line.startswith("H-") for line in lines(log)))
            on_line = lambda line: bar.update(line.startswith("H-"))  # noqa: E731
            stages.command(name, command, inputs=inputs, outputs=[log], log=log, on_line=on_line)


def becomes(name: str) -> set[str]:
    """The names that a file of the data set's ``bin/`` has in the student's: of the training text ``train1``, too."""
    return {name, re.sub(r"^train\.", "train1.", name)}


def binarise(data: Path, translated: str, targets: Path, to: Path) -> None:
    """The data set's ``bin/`` with the translations as ``train``, and its own pairs as ``train1``.

    Args:
        translated: the training targets' name, without ``.bin`` and ``.idx``.
    """
    to.mkdir(exist_ok=True)
    for path in (data / "bin").iterdir():
        for name in becomes(path.name):
            if Path(name).stem != translated:
                shutil.copyfile(path, to / name)
    language = translated.rpartition(".")[2]
    words_of_target = Dictionary.load(str(to / f"dict.{language}.txt"))
    print(f"[{language}] {targets}: {number(targets, words_of_target, to / translated)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of prepare.py's")
    parser.add_argument("--path", required=True, metavar="FILE[:FILE...]", help="the teacher: checkpoints, an ensemble")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--beam", type=at_least_one, default=5, metavar="N", help="of the teacher's search (5)")
    parser.add_argument("--max-tokens", type=at_least_one, default=4000, metavar="N", help="of a batch (4000)")
    args = parser.parse_args(argv)
    data, out = args.data.absolute(), args.out.absolute()
    for name, folder in {"DATA": data, "--out": out}.items():
        if ":" in str(folder):
            parser.error(f"argument {name}: must have no colon in its path, at which fairseq splits; got {folder}")
    teacher = [Path(path) for path in args.path.split(":")]
    for path in teacher:
        if not os.path.isfile(path):
            parser.error(f"argument --path: no such file: {path}")
    try:
        manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
        source, target = manifest["source"], manifest["target"]
        pair = f"train.{source}-{target}"
        total = len(data_utils.load_indexed_dataset(str(data / "bin" / f"{pair}.{source}")))
    except (OSError, ValueError, LookupError, TypeError):  # the last without the data set
        parser.error(f"argument DATA: {args.data} is not a folder of parallel text that prepare.py has finished")
    if os.path.exists(args.out / "manifest.json"):
        parser.error(f"argument --out: {args.out} is a data set already: name another folder")
    for path in teacher:
        try:
            with fairseq_checkpoints():
                task = load_checkpoint_to_cpu(str(path))["cfg"]["task"]
            task = vars(task) if isinstance(task, argparse.Namespace) else task  # of a task without a dataclass
        except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, EOFError, OSError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            parser.error(f"argument --path: {path} is not a checkpoint of fairseq: {why}")
        languages = task.get("source_lang") or source, task.get("target_lang") or target  # without: those of its data
        if languages != (source, target):  # both directions have the same dictionaries
            of = "-".join(languages)
            parser.error(f"argument --path: {path} must translate {source}-{target}, as DATA is; it is of {of}")
    ensemble = ":".join(str(path.absolute()).removeprefix(f"{ROOT}/") for path in teacher)
    os.chdir(ROOT)  # so that the command is the same wherever it is given
    targets = out / f"train.{target}"
    logs = [out / "translations" / f"{shard}.txt" for shard in range(min(SHARDS, -(-total // SHARD)))]
    flags = {"path": ensemble, "beam": args.beam, "max-tokens": args.max_tokens, "max-len-b": LONGEST}

    def make() -> None:
        best: list[str] = []
        for log in logs:
            with log.open(encoding="utf-8") as printed:
                best += (line for line in printed if line.startswith("H-"))
        found = hypotheses("".join(best))
        write_text(targets, "".join(f"{line}\n" for line in found))
        binarise(data, f"{pair}.{target}", targets, out / "bin")

    with working_in(out, parser):
        stages = Stages(out / "stamps", tqdm.write)
        translate(stages, data, logs, total, **flags)
        made = (name for path in sorted((data / "bin").iterdir()) for name in sorted(becomes(path.name)))
        outputs = [targets, *(out / "bin" / name for name in made)]
        stages.function("binarise", pair, make, inputs=logs, outputs=outputs)
    print(f"{args.out}: {total:,} translations, and as many references; train with {args.out}/bin")


if __name__ == "__main__":
    main()
