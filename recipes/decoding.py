"""Time translation on a CPU, text in and text out: fairseq's search, the translator, fairseq's lstm and CTranslate2.

    python recipes/decoding.py --data runs/lohelp/data --sru runs/lohelp/checkpoints/sru-1/checkpoint_last.pt \\
        --lstm runs/lohelp/checkpoints/fairseq-lstm-1/checkpoint_last.pt \\
        --transformer runs/lohelp/checkpoints/transformer-1/checkpoint_last.pt \\
        --output runs/decoding.json

It trains nothing: the models are a comparison's, and data the folder that recipes/prepare.py wrote for them. The test
set is translated with beams of 1 and 5, by batches of 64 sentences and, --sentences of it, one by one. Each system runs
in a process of its own, the systems in turns; figures are medians. CTranslate2 takes part where it is installed (pip
install ctranslate2), with the Transformer converted by its own converter. Works in runs/decoding-NAME, where FILE is
NAME.json; stopped and run again, it goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
from functools import partial
from importlib.metadata import version
from operator import eq
from pathlib import Path
from typing import Any

from benchmarks import decoding
from benchmarks.decoding import CELLS, CT2_FLOAT32, CT2_INT8, FLOAT32, INT8, MODELS
from benchmarks.timing import going_on_without, machine, short, table
from common.arguments import at_least_one, file, new_file
from common.files import write_text
from common.machine import ROOT, files
from comparison import scores
from comparison.report import number
from comparison.stages import StageError, Stages, evenly, working_in
from comparison.translation import FILES
from tqdm import tqdm


def convert(args: argparse.Namespace, stages: Stages, work: Path) -> dict[str, str]:
    """The model of each system that takes part.

    Raises:
        StageError: one can't be exported or converted.
    """
    models = {name: str(path.absolute()) for name, kind in MODELS.items() if (path := vars(args)[kind])}
    data: Path = args.data.absolute()
    ours = files("kernels/*", "fairseq_sru/**/*.py")
    for name, more in ((FLOAT32, []), (INT8, ["--int8"])):
        folder = work / name.replace(", ", "-")
        words = ["--path", models[name], "--sentencepiece-model", data / "spm.model", "--data", data / "bin"]
        command = ["python", "-m", "fairseq_sru.export", *map(str, words), "--out", str(folder), *more]
        outputs = [folder / file for file in (*FILES, "spm.model")]
        log = work / "logs" / f"{name}.log"
        try:
            stages.command(f"export {name}", command, inputs=[args.sru, *ours], outputs=outputs, log=log)
        except StageError as error:
            raise StageError(f"{name} can't take part: {str(error).splitlines()[-1]}") from None
        models[name] = str(folder)
    for name in (CT2_FLOAT32, CT2_INT8):
        if name not in models:
            continue
        if importlib.util.find_spec("ctranslate2") is None:
            going_on_without("CTranslate2", "pip install ctranslate2")
            del models[name]
            continue
        folder = work / name.replace(", ", "-")
        again = partial(for_ctranslate2, models[name], data / "bin", folder, name == CT2_INT8)
        by, inputs = [name, version("ctranslate2")], [args.transformer, Path(__file__)]
        stages.function(f"convert {name}", by, again, inputs=inputs, outputs=[folder / "model.bin"])
        models[name] = str(folder)
    return models


def for_ctranslate2(checkpoint: str, data: Path, folder: Path, int8: bool) -> None:
    import ctranslate2

    from fairseq_sru.models.checkpoints import fairseq_checkpoints

    try:
        converter = ctranslate2.converters.FairseqConverter(checkpoint, str(data))
        with fairseq_checkpoints():
            converter.convert(str(folder), quantization="int8" if int8 else None, force=True)
    except Exception as error:  # whatever it says of a model that it doesn't know
        raise StageError(f"CTranslate2 can't convert {checkpoint}: {error}") from None


def measured(
    task: dict[str, Any], trained: list[Path], stages: Stages, work: Path, turns: int
) -> dict[str, list[dict[str, Any]]]:
    """What each system says of each turn. ``trained``: the models; where they or the task change, all turns are anew.

    Raises:
        StageError: one fails.
    """
    given, names = work / "task.json", list(task["models"])
    inputs = [given, *trained, Path(__file__), Path(decoding.__file__)]
    write_text(given, json.dumps(task))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    order = [(turn, names[(turn + i) % len(names)]) for turn in range(turns) for i in range(len(names))]
    for turn, name in tqdm(order, disable=None):
        log = work / "logs" / f"{name} {turn}.log"

        def told(log: Path = log) -> dict[str, Any]:
            of_turn: dict[str, Any] = json.loads(log.read_text("utf-8").splitlines()[-1])
            return of_turn

        command = ["python", str(Path(decoding.__file__)), name, str(given)]
        stamp = stages.command(f"{name} {turn}", command, inputs=inputs, outputs=[], log=log, facts=told)
        found[name].append(stamp)
    return found


def summed(
    runs: list[dict[str, Any]], references: list[str], target: str, plain: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Medians of a system, the scores of what it wrote, and the share of its lines that plain torch writes, too.

    Args:
        runs: of the system.
        references: of the test set.
        target: their language.
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
                "bleu": round(scores.bleu(references, cell["text"], target), 2) if whole else None,
                "same": None if plain is None else round(statistics.fmean(map(eq, cell["text"], plain[i]["text"])), 4),
            }
        )
    megabytes = [run["megabytes"] for run in runs if run["megabytes"] is not None]  # what the system doesn't tell
    return {"cells": cells, "megabytes": statistics.median(megabytes) if megabytes else None}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the prepared data, by sentencepiece")
    for kind in ("sru", "lstm", "transformer"):
        parser.add_argument(
            f"--{kind}", type=file, required=kind == "sru", metavar="CHECKPOINT", help="trained on them"
        )
    parser.add_argument("--output", type=new_file, required=True, metavar="FILE.json", help="written at the end")
    parser.add_argument("--threads", type=at_least_one, default=1, help="of each system (%(default)s)")
    parser.add_argument("--turns", type=at_least_one, default=3, help="runs of each system (%(default)s)")
    parser.add_argument("--sentences", type=at_least_one, default=200, help="that go one by one (%(default)s)")
    args = parser.parse_args(argv)
    if not os.path.isfile(args.data / "spm.model"):
        parser.error(f"argument --data: no such file: {args.data / 'spm.model'}")
    try:
        manifest = json.loads((args.data / "manifest.json").read_text("utf-8"))
        target = manifest["target"]
        source, references = (
            (args.data / f"test.{language}").read_text("utf-8").splitlines()
            for language in (manifest["source"], target)
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(
            f"argument --data: {args.data} is not a folder of parallel text that prepare.py has finished: {error}"
        )
    logging.disable(logging.INFO)  # of fairseq and sacreBLEU, in this process
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the systems' processes
    here = machine(on_gpu=False)  # it has no part
    work = ROOT / "runs" / f"decoding-{args.output.stem}"
    with working_in(work, parser):
        stages = Stages(work / "stamps", tqdm.write)
        models = convert(args, stages, work)
        task = {"data": str(args.data.absolute()), "threads": args.threads, "cells": CELLS}
        task["some"] = [source[i] for i in evenly(args.sentences, len(source))]
        versions = {"fairseq": version("fairseq")}
        if CT2_INT8 in models:
            versions["ctranslate2"] = version("ctranslate2")
        task |= {"lines": source, "models": models, "on": {**here, **versions, "threads": args.threads, "date": ""}}
        trained = [path for kind in dict.fromkeys(MODELS.values()) if (path := vars(args)[kind])]
        found = measured(task, trained, stages, work, args.turns)
    plain = found[decoding.PLAIN][0]["cells"]
    systems = {
        name: summed(runs, references, target, plain if MODELS[name] == MODELS[decoding.PLAIN] else None)
        for name, runs in found.items()
    }
    report = {
        "machine": {**here, "threads": args.threads},
        "versions": versions,
        "data_set": manifest["data_set"],
        "turns": args.turns,
        "sentences": {"1": min(args.sentences, len(source)), "64": len(source)},
        "systems": systems,
    }
    write_text(args.output, json.dumps(report, indent=1) + "\n")
    heads = ["sentences a second", *(f"beam {beam}, batch {size}" for beam, size in CELLS), "BLEU, beam 5", "MiB"]
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
