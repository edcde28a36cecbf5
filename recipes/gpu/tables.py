"""Tables of the results of ../gpu.sh, for its report and for docs/performance.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.layer import CONV, GEMM, GRU, LSTM, OURS, PACKAGE, RATIOS
from benchmarks.registry import CONTESTANTS, Case
from benchmarks.timing import place, short
from comparison.report import number, table

NONE = "None yet: no GPU has been measured.\n"
TESTED = ("tests", "sanitizer", "precisions", "graphs", "variants")
KINDS = "PASSED|FAILED|ERROR|SKIPPED"
OUTCOME = re.compile(rf"\[gw\d+\] \[ *\d+%\] (?P<x>{KINDS}) \S+::(?P<a>.*?) *$|\S+::(?P<b>[^:]*?) (?P<y>{KINDS})\b")


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def ended(folder: Path) -> str:
    """Table of how each part ended."""
    report = read(folder / "report.json")
    assert report is not None
    rows = [[name, part["state"], f"{part['seconds']}", part["why"]] for name, part in report["parts"].items()]
    return table(["part", "", "seconds", "why"], rows)


def outcomes(path: Path) -> dict[str, str]:
    """PASSED, FAILED, ERROR or SKIPPED by the name of a test, from pytest's lines or xdist's."""
    lines = (OUTCOME.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {line["a"] or line["b"]: line["x"] or line["y"] for line in lines if line}


def tests(folder: Path) -> str:
    rows = []
    for name in TESTED:
        if not (path := folder / f"{name}.txt").is_file():
            continue
        by_test = outcomes(path)
        failed = [test for test, outcome in by_test.items() if outcome in ("FAILED", "ERROR")]
        passed, skipped = (list(by_test.values()).count(outcome) for outcome in ("PASSED", "SKIPPED"))
        rows.append([name, str(passed), str(len(failed)), str(skipped), ", ".join(failed)])
    return table(["tests", "passed", "failed", "skipped", "which failed"], rows) if rows else ""


def calls(report: dict[str, Any], part: str, columns: Sequence[str], what: str) -> str:
    """Table of a part of the reports of ``speed.py layer``."""
    ratios, rows = list(RATIOS) if part == "cases" else [], []
    for entry in report[part]:
        medians = (entry["ms"].get(name, {}).get("median") for name in columns)
        over = (number(entry["ratios"].get(ratio), ".2f") for ratio in ratios)
        rows.append([str(Case.of(entry)), *map(short, medians), *over])
    return place(report, what) + table(["ms", *columns, *ratios], rows) if rows else ""


def layers(folder: Path) -> str:
    """Table of one layer. The operators of nn.LSTM show whether it ran in cuDNN: torch's own loop is no rival."""
    report = read(folder / "layer.json")
    if report is None:
        return ""
    operators = [f"{name}: {note}" for name, note in report["contestants"].items() if name.startswith(LSTM)]
    what = "; ".join(["Milliseconds of a call", *operators])
    return calls(report, "cases", (CONV, LSTM, GRU, OURS, GEMM), what)


def others(folder: Path) -> str:
    """Tables of others' kernels."""
    report = read(folder / "others.json")
    if report is None:
        return ""
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
        speed = entry["bytes"] / ms / 1e6
        # what stays in the second cache is not what a large copy moves
        far = entry["bytes"] > 2 * (report["l2_bytes"] or 0)
        of_large = f"{speed / report['copy_gb_per_s']:.0%}" if far else "–"
        rows.append([str(Case.of(entry)), short(ms), f"{speed:,.0f}", of_large, f"{entry['share']:.0%}"])
    head = ["recurrence", "ms", "GB/s", "of the speed of a large copy", "of copying as many bytes"]
    where = place(report, f"A large copy reads and writes {report['copy_gb_per_s']:,.0f} GB/s")
    return where + table(head, rows)


def models(folder: Path) -> str:
    """Tables of updates and decoding."""
    texts = []
    for name in ("updates", "model"):
        report = read(folder / f"{name}.json")
        if report is None:
            continue
        systems = list(report["parameters"])
        rows = [["parameters", *(f"{count / 1e6:.1f} M" for count in report["parameters"].values())]]
        for case, entry in report["cases"].items():
            medians = [entry["ms"].get(system, {}).get("median") for system in systems]
            rows.append([f"{case}, ms", *map(short, medians)])
            if case.startswith("train"):
                speeds = (number(ms and 1000 * report["tokens"] / ms, ",.0f") for ms in medians)
                rows.append([f"{case}, tokens/s", *speeds])
        what = f"As large as {report['preset']}, updates of {report['tokens']:,} target tokens"
        what += "; in bfloat16, torch's autocast gives cuDNN's LSTM float16"
        texts.append(place(report, what) + table(["", *systems], rows))
    return "\n".join(texts)


def training(folder: Path) -> str:
    """Table of training for equal minutes."""
    rows, where = [], ""
    for path in sorted(folder.glob("training*.json")):
        report = read(path)
        assert report is not None
        device = report["machine"]["gpu"] or report["machine"]["cpu"]
        data, minutes = report["data"]["data_set"], report["budget"]["minutes"]
        where = f"{data}, {minutes:g} minutes each. {device}, {(report['date'] or '')[:10]}.\n\n"
        for name, system in report["systems"].items():
            speed = number(system.get("training_tokens_per_second"), ",.0f")
            for run in system["runs"]:
                batch = int(run["commands"][0].partition(" --max-tokens ")[2].split()[0])
                bleu = number(run["scores"]["BLEU"]["score"])
                rows.append([f"{batch:,} tokens a batch", name, speed, f"{run['updates']:,}", bleu])
    return where + table(["", "system", "target tokens/s", "updates", "BLEU"], rows) if rows else ""


def translation(folder: Path) -> str:
    """Table of translation on the card's machine, by its CPU."""
    report = read(folder / "translate.json")
    if report is None:
        return ""
    rows = []
    for name, system in report["systems"].items():
        rows.append([name, *(f"{cell['words_per_second']:,}" for cell in system["cells"])])
    heads = (f"beam {cell['beam']}, batch {cell['batch']}" for cell in system["cells"])
    return place(report, report["data_set"]) + table(["words a second", *heads], rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "Outcomes of the tests, on the card": tests,
    "The recurrence, and the memory traffic that it must have, next to copying": recurrence,
    "Others' kernels; their recurrences compute less: only the cell state, from gates that are given": others,
    "One layer. A CUDA graph replays a recorded call, without Python's part of it": layers,
    "Whole models": models,
    "Training on the text that ships, with its batches of 1,000 tokens and with those of Multi30k, of 4,096": training,
    "Translation by the machine's CPU, with the models of that training": translation,
}


def page(folder: Path) -> str:
    """The report."""
    return "\n".join(["# GPU\n", ended(folder), *headed([folder])])


def headed(folders: list[Path]) -> list[str]:
    """Each table of these cards, under its heading."""
    texts = {head: [text for folder in folders if (text := make(folder))] for head, make in TABLES.items()}
    return ["\n".join([f"{head}:\n", *of_head]) for head, of_head in texts.items() if of_head]


def published(results: Path) -> str:
    """The tables of all cards that were measured, and the plot of a layer on each."""
    cards = [path.parent for path in sorted(results.glob("*/report.json"))]
    plots = [card for card in cards if (card / "layer.svg").is_file()]
    lines = [f"![one layer, {card.name}](../recipes/results/gpu/{card.name}/layer.svg)\n" for card in plots]
    return "\n".join([*headed(cards), *lines]) or NONE
