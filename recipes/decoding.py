"""Time translation on a CPU, text in and text out: fairseq's search, the translator, fairseq's lstm and CTranslate2.

    python recipes/decoding.py --data runs/lohelp/data --sru runs/lohelp/checkpoints/sru-1/checkpoint_last.pt \\
        --lstm runs/lohelp/checkpoints/fairseq-lstm-1/checkpoint_last.pt \\
        --transformer runs/lohelp/checkpoints/transformer-1/checkpoint_last.pt \\
        --output recipes/results/decoding/lohelp.json

It trains nothing: the models are a comparison's, and data the folder that recipes/prepare.py wrote for them. The test
set is translated with beams of 1 and 5, by batches of 64 sentences and, --sentences of it, one by one. Each system runs
in a process of its own, the systems in turns; figures are medians. CTranslate2 takes part where it is installed (pip
install ctranslate2), with the Transformer converted by its own converter.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from operator import eq
from pathlib import Path
from typing import Any

from benchmarks import decoding
from benchmarks.decoding import CELLS, CT2_FLOAT32, CT2_INT8, FLOAT32, INT8, MODELS
from benchmarks.timing import machine, short, table
from common.arguments import at_least_one, file, output_file
from common.files import write_text
from comparison.report import number
from sacrebleu.metrics import BLEU
from tqdm import tqdm

RECIPES = Path(__file__).resolve().parent


def convert(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The model of each system that takes part."""
    models = {name: str(path.absolute()) for name, kind in MODELS.items() if (path := vars(args)[kind])}
    for name, more in ((FLOAT32, []), (INT8, ["--int8"])):
        words = ["--path", args.sru, "--sentencepiece-model", args.data / "spm.model", "--data", args.data / "bin"]
        command = [sys.executable, "-m", "fairseq_sru.export", *words, "--out", folder / name, *more]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            sys.exit(f"{name} can't take part: {said.splitlines()[-1]}")
        models[name] = str(folder / name)
    if args.transformer and importlib.util.find_spec("ctranslate2"):
        import ctranslate2

        from fairseq_sru.models.checkpoints import allow_fairseq_checkpoints

        allow_fairseq_checkpoints()
        converter = ctranslate2.converters.FairseqConverter(str(args.transformer), str(args.data / "bin"))
        converter.convert(str(folder / "ct2"))
        models[CT2_FLOAT32] = models[CT2_INT8] = str(folder / "ct2")
    else:
        for name in (CT2_FLOAT32, CT2_INT8):
            models.pop(name, None)
    return models


def measured(task: dict[str, Any], folder: Path, turns: int) -> dict[str, list[dict[str, Any]]]:
    """What each system says of each turn."""
    file, names = folder / "task.json", list(task["models"])
    file.write_text(json.dumps(task))
    env = {**os.environ, "OMP_NUM_THREADS": str(task["threads"])}
    env["PYTHONPATH"] = os.pathsep.join([str(RECIPES), str(RECIPES.parent), os.environ.get("PYTHONPATH", "")])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    order = [names[(turn + i) % len(names)] for turn in range(turns) for i in range(len(names))]
    for name in tqdm(order, disable=None):
        command = [sys.executable, "-m", decoding.__name__, name, str(file)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def summed(runs: list[dict[str, Any]], references: list[str], plain: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Medians of a system, the scores of what it wrote, and the share of its lines that plain torch writes, too.

    Args:
        runs: of the system.
        references: of the test set.
        plain: the cells of fairseq's search in plain torch with the same model; None where there are none.
    """
    cells = []
    for i, (beam, size) in enumerate(CELLS):
        cell = runs[0]["cells"][i]
        seconds = statistics.median(run["cells"][i]["seconds"] for run in runs)
        words = sum(len(line.split()) for line in cell["text"])
        whole = len(cell["text"]) == len(references)
        cells.append(
            {
                "beam": beam,
                "batch": size,
                "sentences_per_second": round(cell["sentences"] / seconds, 1),
                "words_per_second": round(words / seconds),
                "bleu": round(BLEU().corpus_score(cell["text"], [references]).score, 2) if whole else None,
                "same": None if plain is None else round(statistics.fmean(map(eq, cell["text"], plain[i]["text"])), 4),
            }
        )
    megabytes = [run["megabytes"] for run in runs if run["megabytes"] is not None]  # what the system doesn't tell
    return {"cells": cells, "megabytes": statistics.median(megabytes) if megabytes else None}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the prepared data, by sentencepiece")
    for kind in ("sru", "lstm", "transformer"):
        parser.add_argument(f"--{kind}", type=file, required=kind == "sru", metavar="CHECKPOINT")
    parser.add_argument("--output", type=output_file, required=True, metavar="FILE.json", help="written at the end")
    parser.add_argument("--threads", type=at_least_one, default=1, help="of each system (%(default)s)")
    parser.add_argument("--turns", type=at_least_one, default=3, help="runs of each system (%(default)s)")
    parser.add_argument("--sentences", type=at_least_one, default=200, help="that go one by one (%(default)s)")
    args = parser.parse_args(argv)
    for name in ("spm.model", "manifest.json"):
        if not (args.data / name).is_file():
            parser.error(f"argument --data: no such file: {args.data / name}")
    manifest = json.loads((args.data / "manifest.json").read_text())
    source, references = (
        (args.data / f"test.{manifest[side]}").read_text("utf-8").splitlines() for side in ("source", "target")
    )
    with tempfile.TemporaryDirectory() as made:
        models = convert(args, Path(made))
        task = {"data": str(args.data.absolute()), "threads": args.threads, "sentences": args.sentences, "cells": CELLS}
        found = measured({**task, "lines": source, "models": models}, Path(made), args.turns)
    plain = found[decoding.PLAIN][0]["cells"]
    systems = {
        name: summed(runs, references, plain if MODELS[name] == MODELS[decoding.PLAIN] else None)
        for name, runs in found.items()
    }
    versions = {"fairseq": version("fairseq")}
    if CT2_INT8 in systems:
        versions["ctranslate2"] = version("ctranslate2")
    report = {
        "machine": {**machine(), "threads": args.threads},
        "versions": versions,
        "data_set": manifest["data_set"],
        "turns": args.turns,
        "sentences": {"1": min(args.sentences, len(source)), "64": len(source)},
        "systems": systems,
    }
    write_text(args.output, json.dumps(report, indent=1) + "\n")
    heads = ["sentences a second", *(f"beam {beam}, batch {size}" for beam, size in CELLS), "BLEU, beam 5", "MB"]
    rows = (
        [
            name,
            *(short(cell["sentences_per_second"]) for cell in one["cells"]),
            f"{one['cells'][-1]['bleu']:.1f}",
            number(one["megabytes"], ",.0f"),
        ]
        for name, one in systems.items()
    )
    table(f"{manifest['data_set']}, threads: {args.threads}", heads, rows)


if __name__ == "__main__":
    main()
