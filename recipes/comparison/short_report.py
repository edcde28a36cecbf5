"""The report of a comparison on another task than translation: report.json and report.md."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from common.files import write_text

from .collecting import of_all
from .report import conditions, failures, machine, number, table, title
from .verdict import mean_and_std, spread, tested

if TYPE_CHECKING:
    from .uses import Use


PUBLISHED: dict[bool, dict[str, dict[str, float]]] = {  # accuracies, by whether they are with vectors of other text
    # table 2, CNN-rand
    False: {"CNN of Kim (2014)": {"mr": 76.1, "sst2": 82.7, "subj": 89.6, "trec": 91.2, "cr": 79.8, "mpqa": 83.4}},
    # table 2, CNN-static; table 1, the best SRU
    True: {
        "CNN of Kim (2014), word2vec": {"mr": 81.0, "sst2": 86.8, "subj": 93.0, "trec": 92.8, "cr": 84.7, "mpqa": 89.6},
        "SRU of Lei et al. (2018), word2vec, best depth": {
            "mr": 83.1,
            "sst2": 89.6,
            "subj": 93.8,
            "trec": 94.8,
            "cr": 86.4,
        },
    },
}


def published(report: dict[str, Any]) -> dict[str, float]:
    """Accuracies that others published on the data, by their names."""
    every = PUBLISHED["vectors" in report]
    return {name: found[report["data"]] for name, found in every.items() if report["data"] in found}


def compared(report: dict[str, Any]) -> bool:
    """Whether there is a p: language models have no items that could be paired."""
    return any(system["p_value"] is not None for system in report["systems"].values())


def rows(report: dict[str, Any]) -> str:
    """The table."""
    found, head = [], ["system", report["counted"], report["score"], "runs"]
    for name, system in tested(report).items():
        columns = {"p": number(system["p_value"], ".4f")} if compared(report) else {}
        columns |= {
            unit: f"{speed:,.0f}" if speed >= 1000 else f"{speed:.4g}" for unit, speed in system["speeds"].items()
        }
        score, runs = mean_and_std(spread(system["scores"]), 2), str(len(system["scores"]))
        found.append([title(report, name), f"{system['parameters']:,}", score, runs, *columns.values()])
        head[4:] = columns
    for name, accuracy in published(report).items():
        found.append([name, "–", f"{accuracy}", *["–"] * (len(head) - 3)])
    return table(head, found)


def render(report: dict[str, Any]) -> str:
    p = (
        " p is that of the difference from the baseline: paired randomisation over the items of the test set, each "
        "with its mean over seeds. It is about the choice of these items, not of the seeds, and not corrected for the "
        "number of systems."
    )
    if pairs := [f"{names} {value:.4f}" for names, value in report.get("pairs", {}).items()]:
        p += f" That of other pairs: {', '.join(pairs)}."
    seeds = {name: system["seeds"] for name, system in report["systems"].items()}
    others = " What has no parameters here was published by others." if published(report) else ""
    vectors = f" Vectors of words: {report['vectors']}." if "vectors" in report else ""
    parts = [
        f"# {report['name']}\n\nData: {report['data']}.{vectors} {conditions(report, seeds)}\n",
        rows(report),
        f"± is the standard deviation over runs.{p if compared(report) else ''}{others}\n",
        machine(report),
        "## Commands\n\n" + "".join(f"    {command}\n" for command in report["commands"]),
        failures(report),
    ]
    return "\n".join(filter(None, parts))


def write(use: Use, systems: dict[str, Any], pairs: dict[str, float], commands: list[str]) -> None:
    """Write the report of a comparison whose systems came to this, and pairs of them to this p, by these commands, and
    print its table."""
    report = {
        **of_all(use),
        **use.about_data(),
        "score": use.score,
        "counted": use.counted,
        "commands": commands,
        "systems": systems,
        "pairs": pairs,
    }
    texts = {"report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n", "report.md": render(report)}
    files = [use.out / name for name in texts]

    def to_files() -> None:
        for path, text in zip(files, texts.values(), strict=True):
            write_text(path, text)

    use.stages.function("report", report, to_files, inputs=[], outputs=files)
    print(f"\n{rows(report)}\n{use.out / 'report.md'}")
