"""Tables of the results of ../gpu.sh, for its report and for docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.layer import CONV, GEMM, GRU, LSTM, OURS, PACKAGE, RATIOS
from benchmarks.registry import CONTESTANTS, Case
from benchmarks.timing import place, short
from comparison.report import number, table

TESTED = ("tests", "sanitizer", "precisions", "variants")


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def ended(folder: Path) -> str:
    """Table of how each part ended; of tests, with pytest's last line."""
    report, rows = read(folder / "report.json"), []
    for name, part in report["parts"].items() if report else ():
        log = folder / f"{name}.txt"
        lines = log.read_text(encoding="utf-8").splitlines() if name in TESTED and log.is_file() else []
        rows.append([name, part["state"], f"{part['seconds']}", part["why"], lines[-1].strip("= ") if lines else ""])
    return table(["part", "", "seconds", "why", "tests"], rows)


def calls(report: dict[str, Any] | None, part: str, columns: Sequence[str], what: str) -> str:
    """Table of a part of the reports of ``speed.py layer``."""
    if not report or not report[part]:
        return ""
    ratios, rows = list(RATIOS) if part == "cases" else [], []
    for entry in report[part]:
        medians = (entry["ms"].get(name, {}).get("median") for name in columns)
        over = (number(entry["ratios"].get(ratio), ".2f") for ratio in ratios)
        rows.append([str(Case.of(entry)), *map(short, medians), *over])
    return place(report, what) + table(["ms", *columns, *ratios], rows)


def layers(folder: Path) -> str:
    """Table of one layer. The operators of nn.LSTM show whether it ran in cuDNN: torch's own loop is no rival."""
    report = read(folder / "layer.json")
    notes = report["contestants"] if report else {}
    operators = [f"{name}: {note}" for name, note in notes.items() if name.startswith(LSTM)]
    return calls(report, "cases", (CONV, LSTM, GRU, OURS, GEMM), "; ".join(["Milliseconds of a call", *operators]))


def others(folder: Path) -> str:
    """Tables of others' kernels."""
    report = read(folder / "others.json")
    recurrences = calls(report, "other_kernels", list(CONTESTANTS["recurrence"]), "Milliseconds of a recurrence")
    return "\n".join(filter(None, [recurrences, calls(report, "cases", (OURS, PACKAGE), "Milliseconds of a layer")]))


def recurrence(folder: Path) -> str:
    """Table of the recurrence's memory traffic, as a share of copying."""
    report = read(folder / "layer.json")
    if report is None or not report["recurrence"]:
        return ""
    rows = []
    for entry in report["recurrence"]:
        ms = entry["ms"]["median"]
        rows.append([str(Case.of(entry)), short(ms), f"{entry['bytes'] / ms / 1e6:,.0f}", f"{entry['share']:.0%}"])
    where = place(report, f"A large copy reads and writes {report['copy_gb_per_s']:,.0f} GB/s")
    return where + table(["recurrence", "ms", "GB/s", "of copying as many bytes"], rows)


def models(folder: Path) -> str:
    """Tables of updates and decoding."""
    texts = []
    for report in filter(None, (read(folder / f"{name}.json") for name in ("updates", "model"))):
        rows = [["parameters", *(f"{count / 1e6:.1f} M" for count in report["parameters"].values())]]
        for case, entry in report["cases"].items():
            medians = (entry["ms"].get(system, {}).get("median") for system in report["parameters"])
            rows.append([f"{case}, ms", *map(short, medians)])
        what = f"As large as {report['preset']}, updates of {report['tokens']:,} target tokens"
        what += "; in bfloat16, torch's autocast gives cuDNN's LSTM float16"
        texts.append(place(report, what) + table(["", *report["parameters"]], rows))
    return "\n".join(texts)


def training(folder: Path) -> str:
    """Table of training for equal minutes."""
    rows, where = [], ""
    for path in sorted(folder.glob("training*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        device, minutes = report["machine"]["gpu"] or report["machine"]["cpu"], report["budget"]["minutes"]
        where = f"{report['data']['data_set']}, {minutes:g} minutes each. {device}, {(report['date'] or '')[:10]}.\n\n"
        for name, system in report["systems"].items():
            speed = number(system.get("training_tokens_per_second"), ",.0f")
            for run in system["runs"]:
                batch = int(run["commands"][0].partition(" --max-tokens ")[2].split()[0])
                bleu = number(run["scores"]["BLEU"]["score"])
                rows.append([f"{batch:,} tokens a batch", name, speed, f"{run['updates']:,}", bleu])
    return where + table(["", "system", "target tokens/s", "updates", "BLEU"], rows) if rows else ""


TABLES: dict[str, Callable[[Path], str]] = {
    "How each part ended": ended,
    "The recurrence, and the memory traffic that it must have, next to copying": recurrence,
    "Others' kernels; their recurrences compute less: only the cell state, from gates that are given": others,
    "One layer. A CUDA graph replays a recorded call, without Python's part of it": layers,
    "Whole models": models,
    "Training on the text that ships, with its batches of 1,000 tokens and with those of Multi30k, of 4,096": training,
}


def page(*folders: Path) -> str:
    """Each table of these cards, under its heading."""
    sections = []
    for heading, make in TABLES.items():
        if texts := [text for folder in folders if (text := make(folder))]:
            sections.append("\n".join([f"{heading}:\n", *texts]))
    return "\n".join(sections)


def published(results: Path) -> str:
    """The tables of all cards that were measured, and the plot of a layer on each."""
    cards = [path.parent for path in sorted(results.glob("*/report.json"))]
    plots = [card.name for card in cards if (card / "layer.svg").is_file()]
    lines = [f"![one layer, {name}](../recipes/results/gpu/{name}/layer.svg)\n" for name in plots]
    return "\n".join([page(*cards), *lines]) if cards else "None yet: no GPU has been measured.\n"
