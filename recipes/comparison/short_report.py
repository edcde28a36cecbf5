"""The report of a comparison on another task than translation: report.json and report.md."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from common.files import write_text

from fairseq_sru.versions import __version__

from .collecting import machine
from .report import failures, number, table, title
from .report import machine as machine_table
from .verdict import mean, spread

if TYPE_CHECKING:
    from .uses import Use


def rows(report: dict[str, Any]) -> str:
    """The table, a row for a system that has a run."""
    found, speeds = [], []
    for name, system in report["systems"].items():
        if not system["scores"]:
            continue
        score, p_value = mean(spread(system["scores"]), 2), number(system["p_value"], ".4f")
        row = [title(report, name), f"{system['parameters']:,}", score, str(len(system["scores"])), p_value]
        found.append([*row, *(f"{speed:,.4g}" for speed in system["speeds"].values())])
        speeds = list(system["speeds"])
    return table(["system", report["counted"], report["score"], "runs", "p", *speeds], found)


def render(report: dict[str, Any]) -> str:
    parts = [
        f"# {report['name']}\n\nData: {report['data']}. Seeds: {', '.join(map(str, report['seeds']))}.\n",
        rows(report),
        "± is the standard deviation over runs. p is that of the difference from the baseline: paired randomisation "
        "over the items of the test set, each with its mean over seeds.\n",
        machine_table(report),
        "## Commands\n\n" + "".join(f"    {command}\n" for command in report["commands"]),
        failures(report),
    ]
    return "\n".join(filter(None, parts))


def write(use: Use, systems: dict[str, Any], commands: list[str]) -> None:
    """Write the report of a comparison whose systems came to this, by these commands, and print its table."""
    versions = {"python": platform.python_version(), "fairseq_sru": __version__}
    report = {
        "name": use.out.name,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "data": use.data["data_set"],
        "seeds": use.settings.all_seeds(),
        "budget": {key: value for key, value in vars(use.settings.budget).items() if value is not None},
        "baseline": use.settings.baseline,
        "score": use.score,
        "counted": use.counted,
        "machine": machine(use.commands.cpu),
        "versions": versions | {name: version(name) for name in ("torch", "fairseq")},
        "commands": commands,
        "systems": systems,
    }
    write_text(use.out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(use.out / "report.md", render(report))
    print(f"\n{rows(report)}\n{use.out / 'report.md'}")
