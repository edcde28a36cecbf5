"""Plots of a comparison's report, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from common.figures import write_figure
from matplotlib.figure import Figure

matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
matplotlib.rcParams.update({"grid.alpha": 0.3, "font.size": 10})


def draw(report: dict[str, Any], systems: dict[str, Any], settings: list[str], folder: Path) -> None:
    """Write curves.svg and speed.svg.

    Args:
        report: a comparison's.
        systems: those of its systems that have a run.
        settings: in which decoding was timed.
        folder: takes the files.
    """
    write_figure(folder / "curves.svg", curves(report, systems))
    write_figure(folder / "speed.svg", speed(systems, settings))


def curves(report: dict[str, Any], systems: dict[str, Any]) -> Figure:
    """BLEU and loss against training time and updates: a colour and a mark a system, a line a seed."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    longest = max((p["train_seconds"] for s in systems.values() for r in s["runs"] for p in r["curve"]), default=0)
    unit, seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 120 else ("seconds", 1)
    for i, (name, system) in enumerate(systems.items()):
        mark = "osD^vP"[i % 6]
        for j, run in enumerate(system["runs"]):
            points = run["curve"]
            x = [[point["train_seconds"] / seconds for point in points], [point["updates"] for point in points]]
            for column in (0, 1):
                for row, key in enumerate(("BLEU", "loss")):
                    y = [float("nan") if point[key] is None else point[key] for point in points]
                    line = axes[row, column].plot(x[column], y, color=f"C{i}", marker=mark, markersize=4, linewidth=1.5)
                    line[0].set_alpha(1 if j == 0 else 0.6)
                    if j == row == column == 0:
                        line[0].set_label(name)
    axes[0, 0].set_ylabel(f"BLEU, validation, beam {report['curve_beam']}")
    axes[1, 0].set_ylabel(f"loss, validation ({report['loss']})")
    axes[1, 0].set_xlabel(f"training time, {unit}")
    axes[1, 1].set_xlabel("updates")
    if systems:
        figure.legend(loc="outside upper center", ncols=min(len(systems), 6), frameon=False)
    return figure


def speed(systems: dict[str, Any], settings: list[str]) -> Figure:
    """Bars: speed of training, and of decoding in each setting."""
    titles = ["training\ntarget tokens/s", *(f"decoding, sentences/s\n{setting}" for setting in settings)]
    values = [[system["training_tokens_per_second"] for system in systems.values()]]
    values += [[s["decoding"][i]["sentences_per_second"] for s in systems.values()] for i in range(len(settings))]
    height = 1.2 + 0.35 * max(len(systems), 2)
    figure, places = Figure(figsize=(2.6 * len(titles), height), layout="constrained"), range(len(systems))
    axes = figure.subplots(1, len(titles), squeeze=False)
    for axis, title, speeds in zip(axes[0], titles, values, strict=True):
        bars = axis.barh(places, speeds, color=[f"C{i}" for i in places], height=0.7)
        axis.bar_label(
            bars, labels=[f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in speeds], padding=3
        )
        axis.set_title(title, fontsize=10)
        axis.set_yticks(places, list(systems) if axis is axes[0, 0] else [""] * len(systems))
        axis.invert_yaxis()
        axis.grid(False)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
        axis.set_xlim(0, max(speeds, default=1) * 1.45)  # room for the numbers
    return figure
