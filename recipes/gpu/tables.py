"""Tables of what ../gpu.sh found, for its report and for docs/performance.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.layer import BOTH, CONV, GEMM, GRU, LSTM, OURS, PACKAGE, WIDE, Case, measured
from benchmarks.scans import NAMES
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
    """How each part ended."""
    report = read(folder / "report.json")
    assert report is not None
    rows = [
        [name, p["state"], number(p.get("seconds")), p["why"].partition("\n")[0]] for name, p in report["parts"].items()
    ]
    return table(["part", "", "seconds", "why"], rows)


def outcomes(folder: Path, name: str) -> dict[str, str]:
    """PASSED, FAILED, ERROR or SKIPPED by the name of a test."""
    path, said = folder / f"{name}.xml", folder / f"{name}.txt"
    if path.is_file():
        tags = {"failure": "FAILED", "error": "ERROR", "skipped": "SKIPPED"}
        return {
            case.get("name", ""): next((tags[sub.tag] for sub in case if sub.tag in tags), "PASSED")
            for case in ElementTree.parse(path).iter("testcase")
        }
    if not said.is_file():
        return {}
    # it was stopped before its end, where pytest writes the XML; a line of xdist's, or one without
    lines = (OUTCOME.match(line) for line in said.read_text(encoding="utf-8").splitlines())
    return {line["a"] or line["b"]: line["x"] or line["y"] for line in lines if line}


def tests(folder: Path) -> str:
    """Outcomes of the tests on the GPU."""
    rows = []
    for name in TESTED:
        found = outcomes(folder, name)
        if not found and not (folder / f"{name}.xml").is_file():
            continue
        failed = [test for test, outcome in found.items() if outcome in ("FAILED", "ERROR")]
        passed, skipped = (list(found.values()).count(outcome) for outcome in ("PASSED", "SKIPPED"))
        rows.append([name, str(passed), str(len(failed)), str(skipped), ", ".join(failed)])
    return table(["tests", "passed", "failed", "skipped", "which failed"], rows) if rows else ""


def by_cudnn(report: dict[str, Any], case: Case) -> bool:
    """Whether nn.LSTM ran in cuDNN; a loop of torch's own is no rival."""
    dtype = "" if case.dtype == "float32" else f", {case.dtype}"
    return "cuDNN" in report["contestants"].get(LSTM + dtype, "")


def layers(folder: Path) -> str:
    """One layer beside what else one would take."""
    report = read(folder / "speed" / "speed.json")
    if report is None or not report["cases"]:
        return ""
    rivals = read(folder / "rivals" / "speed.json")
    beside = measured(rivals) if rivals else {}
    columns, rows = (CONV, LSTM, GRU, OURS, GEMM), []

    def ratio(ms: dict[str, float], over: str, under: str) -> str:
        return f"{ms[over] / ms[under]:.2f}" if {over, under} <= ms.keys() else "–"

    for case, took in measured(report).items():
        ms, other = ({name: spread.median for name, spread in one.items()} for one in (took, beside.get(case, {})))
        beaten = ratio(ms, LSTM, OURS) if by_cudnn(report, case) else "–"
        ratios = [beaten, ratio(ms, OURS, GEMM), ratio(other, PACKAGE, OURS)]
        rows.append([str(case), *(short(ms.get(name)) for name in columns), *ratios])
    head = ["ms", *columns, f"{LSTM} / {OURS}", f"{OURS} / {GEMM}", f"{PACKAGE} / {OURS}"]
    return place(report, "Milliseconds of a call") + table(head, rows)


def gb_per_s(found: dict[str, Any]) -> float:
    """Of a pass of the recurrence."""
    return float(found["bytes"] / found["ms"]["median"] / 1e6)


def recurrence(folder: Path) -> str:
    """The recurrence's memory traffic, as a share of what copying reaches."""
    report = read(folder / "speed" / "speed.json")
    if report is None or not report["recurrence"]:
        return ""
    rows = []
    for found in report["recurrence"]:
        ms, speed = found["ms"]["median"], gb_per_s(found)
        # what stays in the second cache is not what a large copy moves
        far = found["bytes"] > 2 * (report.get("l2_bytes") or 0)
        of_large = f"{speed / report['copy_gb_per_s']:.0%}" if far else "–"
        rows.append([str(Case.of(found)), short(ms), f"{speed:,.0f}", of_large, f"{found['share']:.0%}"])
    head = ["recurrence alone", "ms", "GB/s", "of the speed of a large copy", "of copying as many bytes"]
    where = place(report, f"A large copy reads and writes {report['copy_gb_per_s']:,.0f} GB/s")
    return where + table(head, rows)


def others(folder: Path) -> str:
    """Others' kernels for linear recurrences."""
    report = read(folder / "rivals" / "speed.json")
    if report is None or not report["other_kernels"]:
        return ""
    rows = []
    for found in report["other_kernels"]:
        ms = [found["ms"].get(name, {}).get("median") for name in NAMES]
        rows.append([str(Case.of(found)), *map(short, ms)])
    return place(report, "Milliseconds") + table(["recurrences alone", *NAMES], rows)


def models(folder: Path) -> str:
    """Whole models: updates and decoding."""
    parts = []
    for name in ("updates", "steps"):
        report = read(folder / name / "steps.json")
        if report is None:
            continue
        systems = list(report["parameters"])
        rows = [["parameters", *(f"{count / 1e6:.1f} M" for count in report["parameters"].values())]]
        for case, found in report["cases"].items():
            medians = [found["ms"].get(system, {}).get("median") for system in systems]
            rows.append([f"{case}, ms", *map(short, medians)])
            if case.startswith("train"):
                speeds = (number(ms and 1000 * report["tokens"] / ms, ",.0f") for ms in medians)
                rows.append([f"{case}, tokens/s", *speeds])
            if len(found["ms"]) > 1:
                ratios = (number(ms and ms / medians[0], ".2f") for ms in medians)
                rows.append([f"{case}: system / {systems[0]}", *ratios])
        what = f"As large as {report['preset']}, updates of {report['tokens']:,} target tokens"
        what += "; in bfloat16, torch's autocast gives cuDNN's LSTM float16"
        parts.append(place(report, what) + table(["", *systems], rows))
    return "\n".join(parts)


def training(folder: Path) -> str:
    """Training for equal minutes."""
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


def aims(folder: Path) -> str:
    """What was aimed at, and whether it is reached."""
    rows: list[list[str]] = []

    def row(what: str, aim: str, got: float, least: float, form: str) -> None:
        rows.append([what, aim, format(got, form), "yes" if got >= least else "no"])

    speed = read(folder / "speed" / "speed.json") or {"recurrence": [], "cases": [], "contestants": {}}
    for found in speed["recurrence"]:
        case = Case.of(found)
        if (least := {WIDE: 0.85, (32, 32, 512): 0.5}.get(case[1:4])) is not None:
            share = gb_per_s(found) / speed["copy_gb_per_s"]
            row(f"recurrence alone, {case}", f"{least:.0%} of a large copy's speed", share, least, ".0%")
    for case, took in measured(speed).items():
        if case[:4] == (BOTH, 128, 32, 512) and {LSTM, OURS} <= took.keys() and by_cudnn(speed, case):
            row(f"{LSTM} / {OURS}, {case}", "10", took[LSTM].median / took[OURS].median, 10, ".1f")
    for name, found in (read(folder / "updates" / "steps.json") or {"cases": {}})["cases"].items():
        if (ratio := found["ratios"].get("lstm unit")) is not None:
            row(f"lstm_wmt / sru_wmt, {name}", "3", ratio, 3, ".2f")
    return table(["", "aim", "measured", "reached"], rows) if rows else ""


TABLES: dict[str, Callable[[Path], str]] = {
    "Outcomes of the tests, on the card": tests,
    "What was aimed at": aims,
    "The recurrence alone, and the memory traffic that it must have, beside copying": recurrence,
    "Recurrences of others, which compute less: the cell state alone, from gates that are given": others,
    "One layer. A CUDA graph replays a recorded call, without Python's part of it": layers,
    "Whole models": models,
    "Training on the text that ships, with its batches of 1,000 tokens and with those of Multi30k, of 4,096": training,
}


def page(folder: Path) -> str:
    """The report."""
    return "\n".join(["# GPU\n", ended(folder), *headed([folder])])


def headed(folders: list[Path]) -> list[str]:
    """What each table says of these cards, under its heading."""
    found = {head: [text for folder in folders if (text := make(folder))] for head, make in TABLES.items()}
    return ["\n".join([f"{head}:\n", *texts]) for head, texts in found.items() if texts]


def published(results: Path) -> str:
    """The tables of all cards that were measured, and the plot of a layer on each."""
    cards = [path.parent for path in sorted(results.glob("*/report.json"))]
    plots = [card for card in cards if (card / "speed" / "speed.svg").is_file()]
    lines = [f"![one layer, {card.name}](../recipes/results/gpu/{card.name}/speed/speed.svg)\n" for card in plots]
    return "\n".join([*headed(cards), *lines]) or NONE
