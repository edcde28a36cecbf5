"""Time one SRU layer, whole models, or translation, next to others.

    python recipes/speed.py layer [--quick] [--others]
    python recipes/speed.py model [--preset NAME] [--quick]
    python recipes/speed.py translate --data DIR --sru CHECKPOINT [--lstm CHECKPOINT] [--transformer CHECKPOINT]

Contestants are timed in interleaved runs, in rotating order, so that other work slows all alike. Figures are medians.
recipes/benchmarks/registry.py has the shapes.

``layer``: nn.LSTM, nn.GRU, a convolution, the package ``sru``, our layer and its matrix product (GEMM), as many
features out as in, without dropout. ``forward`` is without gradients; ``forward+backward`` has those of weights and
input. A second table has the recurrence next to copying the bytes that it must move. On a GPU all this is in float32
(without TF32) and bfloat16, call by call and as a CUDA graph. It also draws a plot.

``model``: untrained models of one size on random tokens. ``train`` is one update, on a GPU also in bfloat16 by
autocast; ``step`` is a step of the decoder without search, the mean of 40; ``decode`` is fairseq's search over 25
source tokens, with outputs forced to 40.

``translate``: trained models on a CPU, text in and text out, each system in a process of its own: fairseq's search, the
translator, fairseq's lstm, and a Transformer in CTranslate2 where that is installed. The test set is translated with
beams of 1 and 5, by batches of 64 and, some of it, one by one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from operator import eq
from pathlib import Path
from typing import Any

import torch
from benchmarks import decoding, layer
from benchmarks.registry import BOTH, CELLS, CONTESTANTS, FORWARD, PRESETS, SOURCE, Preset
from benchmarks.timing import DEVICE, DRY, ON_GPU, TITLE, going_on_without, machine, prepare, save, short
from common.arguments import at_least_one, file, new_file
from common.errors import end_with_reader
from common.files import write_text
from common.machine import ROOT
from comparison import scores
from comparison.report import number, table
from comparison.stages import evenly
from tqdm import tqdm

from fairseq_sru.recurrence.dispatch import choose

SMALL = Preset("transformer_iwslt_de_en", 2, 4, vocabulary=500, pairs=1, decoding=[(1, 1)])  # of --quick


def time_layers(args: argparse.Namespace) -> None:
    prepare(args.threads)
    backend = choose("auto", DEVICE.type)
    packages = {layer.PACKAGE, layer.SCRIPTED}
    names = list(CONTESTANTS["layer"])
    if args.others:
        names = [name for name in names if name in {layer.OURS, *packages}]
    elif args.quick or ON_GPU:
        names = [name for name in names if name not in packages]
    here = {**machine(), "backend": backend.name if backend else "reference"}
    report: dict[str, Any] = {"machine": here, "turns": args.turns, "copy_gb_per_s": layer.copy_speed(args.turns)}
    report["l2_bytes"] = torch.cuda.get_device_properties(DEVICE).L2_cache_size if ON_GPU else None
    report |= {"contestants": {}, "recurrence": [], "other_kernels": [], "cases": []}
    copied = f"copying reads and writes {report['copy_gb_per_s']:,.0f} GB/s"
    print(f"{TITLE.format(**here)}; medians of {args.turns}; {copied}")

    def keep(part: str, entry: dict[str, Any]) -> None:
        report[part].append(entry)
        save(args.output, report)

    if args.others:
        cases = layer.recurrence_cases(args.quick, FORWARD, BOTH)
        layer.time_group("recurrence", cases, list(CONTESTANTS["recurrence"]), args.turns, keep)
    else:
        if backend:
            layer.time_passes(backend, layer.recurrence_cases(args.quick, FORWARD), args.turns, keep)
        report["contestants"] = layer.notes(names, "float32")
        if ON_GPU or DRY:
            narrow = layer.notes(names, "bfloat16")
            report["contestants"] |= {f"{name}, bfloat16": note for name, note in narrow.items()}
    layer.time_group("layer", layer.layer_cases(args.quick), names, args.turns, keep)
    plot = args.output.with_suffix(".svg")
    layer.draw(report, plot)
    print(f"\nwrote {args.output}\nwrote {plot}")


def time_models(args: argparse.Namespace) -> None:
    from benchmarks import models  # loads fairseq

    prepare(args.threads)
    preset = SMALL if args.quick else PRESETS[args.preset]
    torch.manual_seed(1)
    words, systems = models.systems(args.preset, preset)
    sizes = {name: models.size(model) for name, model in systems.items()}
    report: dict[str, Any] = {"machine": machine(), "turns": args.turns, "vocabulary": preset.vocabulary}
    report |= {"preset": args.preset, "tokens": preset.pairs * SOURCE, "parameters": sizes, "cases": {}}
    print(TITLE.format(**report["machine"]), f"medians of {args.turns}", sep="; ")
    print("parameters:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    for case, (maker, taking_part) in tqdm(models.cases_of(preset, words, systems).items(), disable=None, leave=False):
        entry = models.time_case(case, maker, taking_part, args.turns)
        if entry:
            report["cases"][case] = entry
            save(args.output, report)
    others = [name for name in systems if name != models.SRU]
    rows = []
    for case, entry in report["cases"].items():
        medians = (short(entry["ms"].get(name, {}).get("median")) for name in systems)
        rows.append([case, *medians, *(short(entry["ratios"].get(name)) for name in others)])
    print(f"\n{table(['ms', *systems, *(f'{name} / {models.SRU}' for name in others)], rows)}")
    print(f"\nwrote {args.output}")


# ---------------------------------------------------------------- translation


def run(command: list[str], what: str) -> str:
    """Last line that a command prints; end the program with that of its errors where it fails."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return (done.stdout.splitlines() or [""])[-1]


def convert(args: argparse.Namespace, work: Path) -> dict[str, str]:
    """Model of each system that takes part; those of the translator and of CTranslate2 are written to a folder."""
    checkpoints = {name: vars(args)[entry.needs] for name, entry in CONTESTANTS["translate"].items()}
    there = {name: str(path.absolute()) for name, path in checkpoints.items() if path}
    data: Path = args.data.absolute()
    for name, more in {decoding.FLOAT32: [], decoding.INT8: ["--int8"]}.items():
        words = ["--path", there[name], "--sentencepiece-model", str(data / "spm.model"), "--data", str(data / "bin")]
        there[name], command = str(work / name), ["-m", "fairseq_sru.export", *words, "--out", str(work / name), *more]
        run(command, f"the export for {name}")
    for name, quantization in {decoding.CT2_FLOAT32: None, decoding.CT2_INT8: "int8"}.items():
        if name in there and importlib.util.find_spec("ctranslate2") is None:
            going_on_without("CTranslate2", "pip install ctranslate2")
            del there[name]
        elif name in there:
            import ctranslate2

            from fairseq_sru.models.checkpoints import fairseq_checkpoints

            with fairseq_checkpoints():
                converter = ctranslate2.converters.FairseqConverter(there[name], str(data / "bin"))
                converter.convert(str(work / name), quantization=quantization)
            there[name] = str(work / name)
    return there


def summed(
    runs: list[dict[str, Any]], references: list[str], target: str, plain: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Medians of a system, BLEU, and the share of its lines that are equal to plain torch's.

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
    megabytes = [run["megabytes"] for run in runs if run["megabytes"] is not None]
    return {"cells": cells, "megabytes": statistics.median(megabytes) if megabytes else None}


def time_translation(args: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(args.threads or 1)  # of the systems' processes
    logging.disable(logging.INFO)  # of fairseq and sacreBLEU
    try:
        manifest = json.loads((args.data / "manifest.json").read_text("utf-8"))
        target = manifest["target"]
        source, references = (
            (args.data / f"test.{language}").read_text("utf-8").splitlines()
            for language in (manifest["source"], target)
        )
        (args.data / "spm.model").read_bytes()
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.exit(f"argument --data: {args.data} is no parallel text that prepare.py made with sentencepiece: {error}")
    task = {"data": str(args.data.absolute()), "threads": args.threads or 1, "cells": CELLS, "lines": source}
    task["some"] = [source[i] for i in evenly(args.sentences, len(source))]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        task["models"] = convert(args, work)
        write_text(work / "task.json", json.dumps(task))
        names = list(task["models"])
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        order = [(turn + i) % len(names) for turn in range(args.turns) for i in range(len(names))]
        for name in tqdm([names[i] for i in order], disable=None):
            line = run([str(Path(decoding.__file__)), name, str(work / "task.json")], name)
            runs[name].append(json.loads(line))
    plain = runs[decoding.PLAIN][0]["cells"]
    systems = {}
    for name, of_system in runs.items():
        same_model = CONTESTANTS["translate"][name].needs == "sru"
        systems[name] = summed(of_system, references, target, plain if same_model else None)
    packages = [package for package in ("fairseq", "ctranslate2") if importlib.util.find_spec(package)]
    report = {
        "machine": {**machine(on_gpu=False), "threads": args.threads or 1},  # a GPU has no part
        "versions": {package: version(package) for package in packages},
        "data_set": manifest["data_set"],
        "turns": args.turns,
        "sentences": {"1": len(task["some"]), "64": len(source)},
        "systems": systems,
    }
    save(args.output, report)
    heads = ["sentences a second", *(f"beam {beam}, batch {size}" for beam, size in CELLS), "BLEU, beam 5", "MiB"]
    rows = []
    for name, one in systems.items():
        speeds = (short(cell["sentences_per_second"]) for cell in one["cells"])
        rows.append([name, *speeds, f"{one['cells'][-1]['bleu']:.1f}", number(one["megabytes"], ",.0f")])
    print(f"\n{manifest['data_set']}, threads: {args.threads or 1}\n\n{table(heads, rows)}")
    print(f"\nwrote {args.output}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="layer|model|translate")

    layers = commands.add_parser("layer")
    layers.set_defaults(work=time_layers, turns=15)
    layers.add_argument("--quick", action="store_true", help="two small shapes, and without the package sru")
    layers.add_argument("--others", action="store_true", help="only SRU and others' kernels, which a GPU builds first")
    whole = commands.add_parser("model")
    whole.set_defaults(work=time_models, turns=7)
    whole.add_argument("--preset", choices=PRESETS, default="sru_iwslt_de_en", help="of SRU (%(default)s)")
    whole.add_argument("--quick", action="store_true", help="one pair, one sentence, and a small vocabulary")
    translate = commands.add_parser("translate")
    translate.set_defaults(work=time_translation, turns=3)
    translate.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data that prepare.py made")
    for kind in ("sru", "lstm", "transformer"):
        text = "a model that was trained on the data"
        translate.add_argument(f"--{kind}", type=file, required=kind == "sru", metavar="CHECKPOINT", help=text)
    translate.add_argument("--sentences", type=at_least_one, default=200, help="that go one by one (%(default)s)")
    for name, command in commands.choices.items():
        output = f"runs/speed/{name}.json"
        command.add_argument("--output", type=new_file, default=output, metavar="FILE", help="report (%(default)s)")
        command.add_argument("--threads", type=at_least_one, help="on the CPU (torch's number; to translate, 1)")
        command.add_argument("--turns", type=at_least_one, help="runs of each contestant (15, 7 or 3)")

    args = parser.parse_args(argv)
    args.work(args)


if __name__ == "__main__":
    end_with_reader()
    main()
