"""Write the tables of README.md and docs/ from the files that hold their figures.

    python recipes/tables.py [--check]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. ``--check`` writes nothing; its
exit status is 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.layer import GRU, LSTM, OURS, PACKAGE, SCRIPTED
from benchmarks.registry import BOTH, FORWARD, Case
from benchmarks.timing import place, short
from common.files import write_text
from common.machine import ROOT
from comparison import settings
from comparison.report import compared, decoding_ratios, mean_and_std, number, published, setting, spread, table, tested
from comparison.uses import USES
from gpu import tables as gpu

RESULTS = ROOT / "recipes" / "results"
COMPARISONS = ("lohelp", "debian")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def where_made(name: str, report: dict[str, Any]) -> str:
    """Machine and date of a comparison."""
    here = report["machine"]
    return f"{name}: {here['cpu']}, threads: {here['threads']}, {report['date'][:10]}."


# ---------------------------------------------------------------- one layer


def layer_cases() -> dict[Case, dict[str, float]]:
    """Milliseconds of each contestant by case; of the sru package's two ways to call it, the faster."""
    cases = {}
    for case in result("speed/speed.json")["cases"]:
        ms = {name: times["median"] for name, times in case["ms"].items()}
        cases[Case.of(case)] = ms | {PACKAGE: min(ms[PACKAGE], ms.get(SCRIPTED, ms[PACKAGE]))}
    return cases


def layer_in_short() -> str:
    cases, rows = layer_cases(), []
    for what, case in {
        "inference, 32 sequences of 32 steps": Case(FORWARD, 32, 32, 512),
        "training, 32 sequences of 32 steps": Case(BOTH, 32, 32, 512),
        "training, one sequence of 1,000 steps": Case(BOTH, 1000, 1, 512),
        "one decoding step, one sequence": Case(FORWARD, 1, 1, 512),
        "one decoding step, 64 sequences": Case(FORWARD, 1, 64, 512),
    }.items():
        ms = cases[case]
        rows.append([what, short(ms[OURS]), *(f"{ms[other] / ms[OURS]:.2f}" for other in (LSTM, GRU, PACKAGE))])
    head = ["one layer of 512 features", "SRU, ms", "nn.LSTM / SRU", "nn.GRU / SRU", "`sru` package / SRU"]
    return place(result("speed/speed.json"), "Time of a layer") + table(head, rows)


# ---------------------------------------------------------------- whole models


def models() -> str:
    made = []
    for path in sorted((RESULTS / "steps").glob("*.json")):
        report = result(f"steps/{path.name}")
        names = list(report["parameters"])
        others = names[1:]
        counts = (f"{count / 1e6:.1f} M" for count in report["parameters"].values())
        rows = [["parameters", *counts, *["" for _ in others]]]
        for case, found in report["cases"].items():
            medians = [short(found["ms"].get(name, {}).get("median")) for name in names]
            rows.append([case, *medians, *(number(found["ratios"].get(name), ".2f") for name in others)])
        head = ["ms", *names, *(f"{name} / sru" for name in others)]
        made.append(place(report, "Milliseconds") + table(head, rows))
    return "\n".join(made)


def decoding() -> str:
    """Trained models: sentences a second of SRU divided by those of the others."""
    rows, where = [], []
    for name in COMPARISONS:
        report = result(f"{name}/report.json")
        where.append(where_made(name, report))
        for other in tested(report):
            if other != "sru":
                ratios = decoding_ratios(report, "sru", other)
                rows.append([name, other, *(f"{ratio:.2f}" for ratio in ratios.values())])
    return f"{' '.join(where)}\n\n" + table(["comparison", "SRU against", *ratios], rows)


def translating() -> str:
    """Whole systems, text in and text out, by recipes/speed.py."""
    made = ""
    for data in COMPARISONS:
        report, rows = result(f"decoding/{data}.json"), []
        for name, found in report["systems"].items():
            cells, last = found["cells"], found["cells"][-1]
            speeds, same = [f"{cell['words_per_second']:,}" for cell in cells], number(last["same"], ".1f", 0.01)
            rows.append([name, *speeds, f"{last['bleu']:.1f}", same, number(found["megabytes"], ".0f")])
        heads = [*map(setting, cells), "BLEU", "same, %", "MiB"]
        made += place(report, report["data_set"]) + table(["words a second", *heads], rows) + "\n"
    return made.removesuffix("\n")


# ---------------------------------------------------------------- comparisons


def verdict(name: str) -> str:
    return f"> {result(f'{name}/report.json')['verdict']}\n"


def losses() -> str:
    rows = []
    for name in COMPARISONS:
        report = result(f"{name}/report.json")
        for system, found in tested(report).items():
            loss = spread(run["curve"][-1]["loss"] for run in found["runs"])
            repetition = statistics.fmean(run["repetition"]["any"] for run in found["runs"])
            rows.append([name, system, mean_and_std(loss, 2), f"{repetition:.1%}"])
    return table(["comparison", "system", "validation loss", "outputs with repetitions"], rows)


def reports_of(kind: str) -> list[dict[str, Any]]:
    every = (json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / "uses").glob("*/report.json")))
    return [report for report in every if report["score"] == USES[kind].score_name]


def link_to(report: dict[str, Any]) -> str:
    return f"[{report['name']}](../recipes/results/uses/{report['name']}/report.md)"


def sentences() -> str:
    """Accuracies on a data set in a row, with the published ones."""
    rows, reports = [], reports_of("sentences")
    for report in reports:
        ours = {name: system["scores"] for name, system in tested(report).items()}
        papers = published(report)
        seconds = {name: next(iter(system["speeds"].values())) for name, system in tested(report).items()}
        rows.append(
            [
                link_to(report),
                *(mean_and_std(spread(ours[name]), 1) for name in ("sru", "lstm", "cnn")),
                number(report["systems"]["sru"]["p_value"], ".4f"),
                f"{seconds['sru'] / seconds['lstm']:.2f}",
                *(next((f"{papers[name]}" for name in papers if paper in name), "–") for paper in ("Kim", "Lei")),
            ]
        )
    head = ["accuracy, %", "sru", "lstm", "cnn", "p, sru and lstm", "seconds an epoch, sru / lstm"]
    head += ["CNN of Kim (2014)", "SRU of Lei et al. (2018)"]
    return f"{' '.join(where_made(report['name'], report) for report in reports)}\n\n{table(head, rows)}"


def uses(kind: str) -> str:
    """A row for each system of each comparison on another task."""
    rows, reports = [], reports_of(kind)
    paired = any(map(compared, reports))
    for report in reports:
        for system, its in tested(report).items():
            score, p_value = mean_and_std(spread(its["scores"]), 1), number(its["p_value"], ".4f")
            speeds = its["speeds"]
            rows.append([link_to(report), system, score, *([p_value] if paired else []), *map(short, speeds.values())])
    head = ["report", "system", USES[kind].score_name, *(["p"] if paired else []), *speeds]
    return f"{' '.join(where_made(report['name'], report) for report in reports)}\n\n{table(head, rows)}"


def recipes() -> str:
    rows = []
    for path in sorted((ROOT / "recipes" / "configs").glob("*.yaml")):
        given = settings.load(path)
        count = len(given.systems) * len(given.seeds)
        minutes, updates = given.budget.minutes, given.budget.updates
        report = RESULTS / (path.stem if given.kind == "translation" else f"uses/{Path(given.out).name}") / "report.md"
        link = f"[report](../{report.relative_to(ROOT)})" if report.is_file() else "none yet"
        budget = f"{minutes:g} minutes" if minutes else f"{updates:,} updates"
        device = "CPU" if given.cpu is True else "GPU or CPU" if given.processes == 1 else f"{given.processes} GPUs"
        rows.append([f"`{path.stem}`", given.data or "", ", ".join(given.systems), str(count), budget, device, link])
    return table(["recipe", "data", "systems", "runs", "training of each run", "on", "report"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "layer-in-short": layer_in_short,
    "models": models,
    "decoding": decoding,
    "translating": translating,
    **{f"verdict-{name}": partial(verdict, name) for name in COMPARISONS},
    "losses": losses,
    "recipes": recipes,
    "uses-sentences": sentences,
    **{f"uses-{kind}": partial(uses, kind) for kind in USES if kind != "sentences"},
    "gpu": partial(gpu.published, RESULTS / "gpu"),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args(argv).check
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n{block[4]}", text)
        if new != text and check:
            stale.append(f"{page.relative_to(ROOT)}: out of date; run python recipes/tables.py")
        elif new != text:
            write_text(page, new)
            print(f"wrote {page.relative_to(ROOT)}")
    if stale:
        sys.exit("\n".join(stale))


if __name__ == "__main__":
    main()
