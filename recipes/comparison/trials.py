"""Trials of a search for settings: which flags of fairseq-train each of them has."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from .settings import Settings


def drawn(space: Mapping[str, Any], count: int, seed: str) -> list[dict[str, Any]]:
    """A Latin hypercube: of each flag's values, every stratum is drawn once, whatever the others are.

    Args:
        space: for each flag either a list of choices, of which a mapping stands for several flags, or ``{low, high}``,
            between which logarithms are uniform; between whole numbers lie whole ones.
        count: trials.
        seed: of the draw.
    """
    trials: list[dict[str, Any]] = [{} for _ in range(count)]
    for flag, values in space.items():
        rng = random.Random(f"{seed} {flag}")
        for trial, stratum in zip(trials, rng.sample(range(count), count), strict=True):
            at = (stratum + rng.random()) / count
            if isinstance(values, Mapping):
                value = float(f"{values['low'] * (values['high'] / values['low']) ** at:.3g}")
                whole = all(isinstance(end, int) for end in values.values())
                trial[flag] = round(value) if whole else value
            else:
                choice = values[int(at * len(values))]
                trial.update(choice if isinstance(choice, Mapping) else {flag: choice})
    return trials


def trials(given: Settings, system: str) -> list[dict[str, Any]]:
    """The flags of each trial of a system: first the recipe's own, then those that are drawn."""
    own, tune = given.systems[system], given.tune
    others = drawn(tune.space_of(system), tune.trials - 1, f"{tune.seed} {system}")
    return [own, *({**own, **trial} for trial in others)]


def finals(given: Settings, tried: list[dict[str, Any]], best: int) -> list[dict[str, Any]]:
    """The flags of what trains for the whole budget: the recipe's own, and those of the best trial with each value of
    ``tune.finals``; none where there are no such values."""
    space = given.tune.finals
    others = [{**tried[best], **dict(zip(space, values, strict=True))} for values in itertools.product(*space.values())]
    return [tried[0], *(flags for flags in others if flags != tried[0])] if space else []


def at_edge(found: list[dict[str, Any]], best: Mapping[str, Any], space: Mapping[str, Any]) -> list[str]:
    """The flags between a low and a high, and the learning rate where it is a number, of which the best trial has the
    lowest or the highest that was tried.

    Args:
        found: the flags of each trial; where fairseq's default holds, one is missing or None.
        best: the flags of the best.
        space: of :func:`drawn`.
    """
    edges = []
    for flag, values in space.items():
        given = [trial[flag] for trial in found if trial.get(flag) is not None]
        numbers = isinstance(values, Mapping) or (flag == "lr" and not any(isinstance(value, list) for value in given))
        if numbers and best.get(flag) is not None:
            tried = list(map(float, given))
            edges += [flag] * (float(best[flag]) in (min(tried), max(tried)))
    return edges


def unfinished(trial: dict[str, Any]) -> bool:
    """Not done yet, or failed once: a full disk or memory may have been to blame."""
    return "loss" not in trial or ("failure" in trial and trial.get("failures", 2) < 2)


def best_of(tried: list[dict[str, Any]]) -> int:
    return min(range(len(tried)), key=lambda i: math.inf if tried[i]["loss"] is None else tried[i]["loss"])
