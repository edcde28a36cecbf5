"""Who won, by how much, whether that is significant, and at what cost: only what the numbers allow to say."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

METRICS = ("BLEU", "chrF2", "TER")
LEVEL = 0.05  # of significance
FLOOR = 1.0  # BLEU; below it, differences say nothing of translations

Report = dict[str, Any]


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for one value) and number."""
    found = list(values)
    std = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.fmean(found), "std": std, "n": len(found)}


def mean_and_std(score: dict[str, Any], digits: int = 1) -> str:
    return f"{score['mean']:.{digits}f}" + (f" ± {score['std']:.{digits}f}" if score["std"] is not None else "")


def tested(report: Report) -> dict[str, Any]:
    """The systems that have a run."""
    return {name: system for name, system in report["systems"].items() if system.get("scores")}


def runs(report: Report) -> list[tuple[str, dict[str, Any]]]:
    return [(name, run) for name, system in tested(report).items() for run in system["runs"]]


def setting(decoding: dict[str, Any]) -> str:
    return f"beam {decoding['beam']}, batch {decoding['batch']}"


def decoding_ratios(report: Report, system: str, other: str) -> dict[str, float]:
    """How many times as fast as the other the system decodes, by setting."""
    ours, theirs = (report["systems"][name]["decoding"] for name in (system, other))
    key = "sentences_per_second"
    return {setting(a): a[key] / b[key] for a, b in zip(ours, theirs, strict=True)}


def joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def verdict(report: Report) -> str:
    """The best system beside the baseline: by how much, how sure, at what cost. No more than the numbers allow."""
    sentences = _sentences(report)
    if failed := [name for name, system in report["systems"].items() if system["failures"]]:
        sentences.append(f"Failed: {', '.join(failed)}; see the end.")
    return " ".join(sentences)


def _sentences(report: Report) -> list[str]:
    systems, baseline = tested(report), report["baseline"]
    others = [name for name in systems if name != baseline]
    if baseline not in systems:
        return [f"No verdict: the baseline {baseline} failed."]
    if not others:
        return [f"{baseline} has {mean_and_std(systems[baseline]['scores']['BLEU'])} BLEU. Nothing to compare it with."]
    theirs = {run["seed"]: run["scores"] for run in systems[baseline]["runs"]}
    every = {name: _pairs(systems[name]["runs"], theirs) for name in others}
    scores = {
        name: statistics.fmean(ours["BLEU"]["score"] for ours, _ in every[name]) for name in others if every[name]
    }
    if not scores:
        return [f"No verdict: {joined(others)} and the baseline {baseline} have no seed in common."]
    best, *rest = sorted(scores, key=lambda name: -scores[name])
    pairs, own = every[best], scores[best]
    base = statistics.fmean(other["BLEU"]["score"] for _, other in pairs)
    copied = report.get("copied_source", 0.0)
    if max(own, base) <= max(copied, FLOOR):
        why = f"copying the source has {copied:.1f}" if copied > FLOOR else f"below {FLOOR} no difference counts"
        return [f"No verdict: {best} has {own:.1f} BLEU and the baseline {baseline} {base:.1f}; {why}."]
    among = f", the best of the {len(scores)} beside the baseline," if rest else ""
    seeds = f" (means of {len(pairs)} seeds)" if len(pairs) > 1 else ""
    fewer = {name: f" (of {len(every[name])})" if len(every[name]) != len(pairs) else "" for name in rest}
    told = [f"{name} {scores[name]:.1f}{fewer[name]}" for name in rest]
    apart = [name for name in others if name not in scores]
    return [
        f"{best}{among} has {own:.1f} BLEU, the baseline {baseline} {base:.1f}{seeds}.",
        *([f"The rest: {', '.join(told)}."] if told else []),
        *([f"Without a seed of the baseline's: {', '.join(apart)}."] if apart else []),
        _significance(pairs, 1 if own >= base else -1),
        *(["One seed: another may change the result."] if len(pairs) == 1 else []),
        *_speed(report, best),
    ]


def _pairs(made: Sequence[dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> list[tuple[dict[str, Any], ...]]:
    """The scores of runs, each beside the baseline's of the same seed."""
    return [(run["scores"], theirs[run["seed"]]) for run in made if run["seed"] in theirs]


def _significance(pairs: Sequence[tuple[dict[str, Any], ...]], direction: int) -> str:
    """For each score, whether it tells the two apart, in the direction that BLEU has: 1 where the first is better."""
    found = []
    for metric in METRICS:
        better = -1 if metric == "TER" else 1
        sure = [ours[metric]["p_value"] < LEVEL for ours, _ in pairs]
        same = [(ours[metric]["score"] - other[metric]["score"]) * better * direction > 0 for ours, other in pairs]
        yes = sum(s and d for s, d in zip(sure, same, strict=True))
        opposite = sum(sure) - yes
        if len(pairs) == 1:
            word = "yes" if yes else "the other way" if opposite else "no"
            found.append(f"{metric} {word} (p = {pairs[0][0][metric]['p_value']:.3f})")
        else:
            seeds = "" if found else " seeds"
            other = f" ({opposite} the other way)" if opposite else ""
            found.append(f"{metric} in {yes} of {len(pairs)}{seeds}{other}")
    return f"Significant (paired bootstrap, p < {LEVEL}): {', '.join(found)}."


def _speed(report: Report, best: str) -> list[str]:
    systems, baseline = tested(report), report["baseline"]
    key = "training_tokens_per_second"
    ratios = decoding_ratios(report, best, baseline)
    found = [f"It trains {systems[best][key] / systems[baseline][key]:.2f} times as fast as the baseline."]
    if ratios:
        said = joined([f"{ratio:.2f} ({where})" for where, ratio in ratios.items()])
        found.append(f"It decodes {said} times as fast.")
    for name in systems:
        if name not in (best, baseline):
            count = sum(round(ratio, 2) > 1 for ratio in decoding_ratios(report, name, best).values())
            found += [f"{name} decodes faster than {best} in {count} of {len(ratios)} settings."] if count else []
    return found
