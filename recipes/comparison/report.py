"""Reports of comparisons: the verdict, tables and plots that follow from report.json.

    cd recipes
    python -m comparison.report ../runs/lohelp/report.json

writes the verdict, report.md and the plots again from what report.json has measured.

All functions take the report as a dictionary; sections for which it lacks the facts are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.files import write_text

from .plots import draw

Report = dict[str, Any]

FILES = ("report.json", "report.md", "curves.svg", "speed.svg")  # of translation; others have the first two
METRICS = ("BLEU", "chrF2", "TER")
LEVEL = 0.05  # of significance
FLOOR = 1.0  # BLEU; below it, differences say nothing of translations

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

# ---------------------------------------------------------------- facts


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for one value) and number."""
    numbers = list(values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": std, "n": len(numbers)}


def tested(report: Report) -> dict[str, Any]:
    """The systems that have a run."""
    return {name: system for name, system in report["systems"].items() if system.get("scores")}


def runs(report: Report) -> list[tuple[str, dict[str, Any]]]:
    return [(name, run) for name, system in tested(report).items() for run in system["runs"]]


def decoding_ratios(report: Report, system: str, other: str) -> dict[str, float]:
    """Speed of a system's decoding divided by the other's, by setting."""
    ours, theirs = (report["systems"][name]["decoding"] for name in (system, other))
    key = "sentences_per_second"
    return {setting(a): a[key] / b[key] for a, b in zip(ours, theirs, strict=True)}


def published(report: Report) -> dict[str, float]:
    """Accuracies that others published on the data, by their names."""
    every = PUBLISHED["vectors" in report]
    return {name: accuracies[report["data"]] for name, accuracies in every.items() if report["data"] in accuracies}


def compared(report: Report) -> bool:
    """Return whether there is a p: language models have no items that could be paired."""
    return any(system["p_value"] is not None for system in report["systems"].values())


# ---------------------------------------------------------------- verdict on translation


def verdict(report: Report) -> str:
    """Return the best system other than the baseline: by how much, how sure, at what cost. No more than the numbers
    allow."""
    sentences = _sentences(report)
    if failed := [name for name, system in report["systems"].items() if system["failures"]]:
        sentences.append(f"Failed: {', '.join(failed)}; see the end.")
    return " ".join(sentences)


def _sentences(report: Report) -> list[str]:
    systems, baseline = tested(report), report["baseline"]
    if baseline not in systems:
        return [f"No verdict: the baseline {baseline} failed."]
    theirs = {run["seed"]: run["scores"] for run in systems[baseline]["runs"]}
    pairs_of = {}
    for name, system in systems.items():
        pairs = [(run["scores"], theirs[run["seed"]]) for run in system["runs"] if run["seed"] in theirs]
        if pairs and name != baseline:
            pairs_of[name] = pairs
    if not pairs_of:
        bleu = mean_and_std(systems[baseline]["scores"]["BLEU"])
        return [f"{baseline} has {bleu} BLEU. Nothing to compare it with, on a seed that both have."]
    scores = {name: statistics.fmean(ours["BLEU"]["score"] for ours, _ in pairs) for name, pairs in pairs_of.items()}
    best, *rest = sorted(scores, key=lambda name: -scores[name])
    pairs, own = pairs_of[best], scores[best]
    base = statistics.fmean(other["BLEU"]["score"] for _, other in pairs)
    copied = report.get("copied_source", 0.0)
    if max(own, base) <= max(copied, FLOOR):
        why = f"copying the source has {copied:.1f}" if copied > FLOOR else f"below {FLOOR} no difference counts"
        return [f"No verdict: {best} has {own:.1f} BLEU and the baseline {baseline} {base:.1f}; {why}."]
    among = f", the best of the {len(scores)} beside the baseline," if rest else ""
    seeds = f" (means of {len(pairs)} seeds)" if len(pairs) > 1 else ""
    sentences = [f"{best}{among} has {own:.1f} BLEU, the baseline {baseline} {base:.1f}{seeds}."]
    if rest:
        sentences.append(f"The rest: {', '.join(f'{name} {scores[name]:.1f}' for name in rest)}.")
    sentences.append(_significance(pairs, 1 if own >= base else -1))
    if len(pairs) == 1:
        sentences.append("One seed: another may change the result.")
    return sentences + _speed(report, best)


def _significance(pairs: Sequence[tuple[dict[str, Any], ...]], direction: int) -> str:
    """For each score, whether it tells the two apart, in the direction that BLEU has: 1 where the first is better."""
    parts: list[str] = []
    for metric in METRICS:
        better = -1 if metric == "TER" else 1
        sure = [ours[metric]["p_value"] < LEVEL for ours, _ in pairs]
        same = [(ours[metric]["score"] - other[metric]["score"]) * better * direction > 0 for ours, other in pairs]
        yes = sum(s and d for s, d in zip(sure, same, strict=True))
        opposite = sum(sure) - yes
        if len(pairs) == 1:
            word = "yes" if yes else "the other way" if opposite else "no"
            parts.append(f"{metric} {word} (p = {pairs[0][0][metric]['p_value']:.3f})")
        else:
            seeds = "" if parts else " seeds"
            other_way = f" ({opposite} the other way)" if opposite else ""
            parts.append(f"{metric} in {yes} of {len(pairs)}{seeds}{other_way}")
    return f"Significant (paired bootstrap, p < {LEVEL}): {', '.join(parts)}."


def _speed(report: Report, best: str) -> list[str]:
    systems, baseline = tested(report), report["baseline"]
    key = "training_tokens_per_second"
    ratios = decoding_ratios(report, best, baseline)
    sentences = [f"It trains {systems[best][key] / systems[baseline][key]:.2f} times as fast as the baseline."]
    if ratios:
        speeds = joined([f"{ratio:.2f} ({where})" for where, ratio in ratios.items()])
        sentences.append(f"It decodes {speeds} times as fast.")
    for name in systems:
        if name not in (best, baseline):
            count = sum(round(ratio, 2) > 1 for ratio in decoding_ratios(report, name, best).values())
            if count:
                sentences.append(f"{name} decodes faster than {best} in {count} of {len(ratios)} settings.")
    return sentences


# ---------------------------------------------------------------- text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *escaped])


def number(value: float | None, form: str = ".1f", scale: float = 1.0) -> str:
    return "–" if value is None else format(value / scale, form)


def mean_and_std(score: dict[str, Any], digits: int = 1) -> str:
    return f"{score['mean']:.{digits}f}" + (f" ± {score['std']:.{digits}f}" if score["std"] is not None else "")


def joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def setting(decoding: dict[str, Any]) -> str:
    return f"beam {decoding['beam']}, batch {decoding['batch']}"


def title(report: Report, name: str) -> str:
    return name + (" (baseline)" if name == report["baseline"] else "")


def conditions(report: Report) -> str:
    """Budget, seeds, and which systems trained with products in 16 bits."""
    systems, budget = tested(report), report["budget"]
    limit = f"{budget['updates']} updates" if "updates" in budget else f"{budget['minutes']:g} minutes of training"
    precision = ""
    for kind, how in (("bfloat16", "bfloat16 (--amp)"), ("float16", "float16")):
        if names := [name for name, system in systems.items() if system.get("precision") == kind]:
            precision += f" Trained with products in {how}: {', '.join(names)}."
    seeds = dict.fromkeys(
        seed
        for system in systems.values()
        for seed in (system["seeds"] if "seeds" in system else [run["seed"] for run in system["runs"]])
    )
    return f"Budget: {limit} for each system. Seeds: {', '.join(map(str, seeds))}.{precision}"


# ---------------------------------------------------------------- sections of reports on translation


def quality(report: Report) -> str:
    data = report["data"]
    lower = ", in lower case" * data.get("lower", False)
    rows = []
    for name, system in tested(report).items():
        row = [title(report, name)]
        for metric in METRICS:
            p_values = [run["scores"][metric]["p_value"] for run in system["runs"]]
            row += [mean_and_std(system["scores"][metric]), ", ".join(number(p, ".3f") for p in p_values)]
        rows.append(row)
    return f"""# {report["name"]}

{report["verdict"]}

Data: {data["data_set"]}, {data["source"]}-{data["target"]}, test set of {data["test_sentences"]} sentences{lower}. \
{conditions(report)}

{table(["system", *(cell for metric in METRICS for cell in (metric, "p"))], rows)}
± is the standard deviation over seeds. p is that of the difference from the baseline, for each seed: paired \
bootstrap, one tail, not corrected for the number of systems. For TER, less is better.
"""


def training(report: Report) -> str:
    rows = []
    baseline_seeds = {run["seed"] for run in report["systems"][report["baseline"]]["runs"]}
    for name, system in tested(report).items():
        values = {
            key: [run[key] for run in system["runs"] if run[key] is not None]
            for key in ("train_seconds", "seconds_to_baseline", "peak_memory", "peak_gpu_memory")
        }
        reached = values["seconds_to_baseline"]
        count = sum(run["seed"] in baseline_seeds for run in system["runs"])
        until = number(statistics.median(reached), ".1f", 60) if reached else "not reached" if count else "–"
        if 0 < len(reached) < count:
            until += f" ({len(reached)} of {count})"
        rows.append(
            [
                title(report, name),
                f"{system['runs'][0]['parameters'] / 1e6:.2f} M",
                number(statistics.fmean(values["train_seconds"]), ".1f", 60),
                until,
                f"{system['training_tokens_per_second']:,.0f}",
                number(max(values["peak_gpu_memory"] or values["peak_memory"], default=None), ".2f", 2**30),
            ]
        )
    head = ["system", "parameters", "training, min", "to the baseline's best, min", "target tokens/s", "memory, GiB"]
    return f"""{table(head, rows)}
Training time is that of the updates, without validation and saving, the mean over seeds. The baseline's best is that \
of its checkpoints on the validation set; the time to it is the median of the seeds that reach it. Target tokens/s are \
measured in short slices of all systems in turns. Memory is the peak in training, of the GPU if there is one.
"""


def timed_settings(report: Report) -> list[str]:
    """Settings in which decoding was timed."""
    return [setting(decoding) for system in list(tested(report).values())[:1] for decoding in system["decoding"]]


def decoding(report: Report) -> str:
    if tested(report) and not timed_settings(report):
        return ""
    rows = (
        [title(report, name), *(f"{d['sentences_per_second']:,.1f}" for d in system["decoding"])]
        for name, system in tested(report).items()
    )
    return f"""{table(["sentences/s", *timed_settings(report)], rows)}
Decoding {report["data"]["speed_sentences"]} sentences of the test set by each system's first run, without loading: \
medians, systems in turns.
"""


def translator(report: Report) -> str:
    every = {name: system["translator"] for name, system in tested(report).items() if "translator" in system}
    missing = "".join(
        f"The translator does not run {name}: {facts['missing']}\n\n"
        for name, facts in every.items()
        if "missing" in facts
    )
    translated = {name: facts for name, facts in every.items() if "missing" not in facts}
    if not translated:
        return missing.removesuffix("\n")
    first = next(iter(translated.values()))["float32"]
    head = ["translator", *(f"{name}, beam {cell['beam']}" for name in ("BLEU", "repetition") for cell in first[name])]
    rows = (
        [f"{title(report, name)}, {weights}", *map(mean_and_std, facts["BLEU"])]
        + [f"{share['mean']:.2%}" for share in facts["repetition"]]
        + [f"{cell['sentences_per_second']:,.1f}" for cell in facts["decoding"]]
        for name, by_weights in translated.items()
        for weights, facts in by_weights.items()
    )
    text = f"""{table([*head, *map(setting, first["decoding"])], rows)}
The same sentences by python -m fairseq_sru.translate, sentences/s, with float32 and with int8 weights. It has \
translated a few before and is timed with its subwords; fairseq-generate from its first batch on, without them. BLEU \
and the share of outputs with a repetition are of the whole test set.
"""
    return f"{text}\n{missing}".removesuffix("\n") if missing else text


def plots(report: Report) -> str:
    curves = f"""![BLEU and loss against time and updates](curves.svg)

Validation set: BLEU of {report["data"]["curve_sentences"]} sentences, beam {report["curve_beam"]}, and the loss \
({report["loss"]}) of all.

"""
    return f"""## Plots

{curves if report["curve_beam"] else ""}![speed of training and decoding](speed.svg)
"""


def scores(report: Report) -> str:
    rows = []
    for name, run in runs(report):
        for metric, score in run["scores"].items():
            low, high = (score["mean"] + sign * score["ci"] if "ci" in score else None for sign in (-1, 1))
            interval = "–" if low is None else f"{low:.2f} to {high:.2f}"
            p = number(score.get("p_value"), ".3f")
            signature = report["signatures"].get(metric, "no sacreBLEU metric")
            rows.append([name, str(run["seed"]), metric, f"{score['score']:.2f}", interval, p, signature])
    return f"""## Scores

{table(["system", "seed", "metric", "score", "95% interval", "p", "signature"], rows)}
Intervals are of the bootstrap over sentences. They don't include the spread over seeds.
"""


def domains(report: Report) -> str:
    systems, rows = tested(report), []
    for domain in next((run.get("domains", {}) for _, run in runs(report)), {}):
        means = (spread(run["domains"][domain] for run in system["runs"]) for system in systems.values())
        rows.append([domain, *map(mean_and_std, means)])
    return f"## BLEU by domain\n\n{table(['domain', *systems], rows)}" if rows else ""


def repetitions(report: Report) -> str:
    shares = [("references", report["references_repetition"])]
    shares += [(f"{name}, seed {run['seed']}", run["repetition"]) for name, run in runs(report)]
    keys = list(report["references_repetition"])
    return f"""## Repetitions

Share of the sentences with an n-gram three times in a row, by the shortest n:

{table(["", *keys], ([name, *(f"{share[key]:.2%}" for key in keys)] for name, share in shares))}"""


def cost(report: Report) -> str:
    rows = (
        [name, str(run["seed"]), f"{run['updates']:,}"]
        + [number(run[key], ".1f", 60) for key in ("train_seconds", "clock_seconds")]
        + [number(run[key], ".2f", 2**30) for key in ("peak_memory", "peak_gpu_memory")]
        for name, run in runs(report)
    )
    head = ["system", "seed", "updates", "training, min", "clock, min", "peak memory, GiB", "peak GPU memory, GiB"]
    return f"""## Cost of training

{table(head, rows)}
The clock is that of the training process, with validation and saving.
"""


def samples(report: Report) -> str:
    tables = []
    for sample in report["samples"]:
        texts = {"reference": sample["reference"], **sample["systems"]}
        tables.append(table(["source", sample["source"].replace("|", "\\|")], texts.items()))
    return "## Samples\n\n" + "\n".join(tables)


# ---------------------------------------------------------------- sections of reports on other tasks


def score_rows(report: Report) -> str:
    """The table of a task that has one score."""
    rows, head = [], ["system", report["counted"], report["score"], "runs"]
    for name, system in tested(report).items():
        columns = {"p": number(system["p_value"], ".4f")} if compared(report) else {}
        for unit, speed in system["speeds"].items():
            columns[unit] = f"{speed:,.0f}" if speed >= 1000 else f"{speed:.4g}"
        score, count = mean_and_std(spread(system["scores"]), 2), str(len(system["scores"]))
        rows.append([title(report, name), f"{system['parameters']:,}", score, count, *columns.values()])
        head[4:] = columns
    for name, accuracy in published(report).items():
        rows.append([name, "–", f"{accuracy}", *["–"] * (len(head) - 3)])
    return table(head, rows)


def one_score(report: Report) -> str:
    notes = "± is the standard deviation over runs."
    if compared(report):
        notes += (
            " p is that of the difference from the baseline: paired randomisation over the items of the test set, "
            "each with its mean over seeds. It is about the choice of these items, not of the seeds, and not corrected "
            "for the number of systems."
        )
        if pairs := [f"{names} {value:.4f}" for names, value in report.get("pairs", {}).items()]:
            notes += f" That of other pairs: {', '.join(pairs)}."
    if published(report):
        notes += " What has no parameters here was published by others."
    vectors = f" Vectors of words: {report['vectors']}." if "vectors" in report else ""
    return f"""# {report["name"]}

Data: {report["data"]}.{vectors} {conditions(report)}

{score_rows(report)}
{notes}
"""


# ---------------------------------------------------------------- all reports


def machine(report: Report) -> str:
    facts = {**report["machine"], **report["versions"], "date": report["date"]}
    return "## Machine\n\n" + table(["", ""], ([key, str(value)] for key, value in facts.items()))


def commands(report: Report) -> str:
    lines = report["commands"] if "commands" in report else [report["prepare"]]
    if "commands" not in report:
        lines = [*lines, *(command for _, run in runs(report) for command in run["commands"])]
    return "## Commands\n\n" + "".join(f"    {command}\n" for command in lines)


def failures(report: Report) -> str:
    parts = []
    for name, system in report["systems"].items():
        if system["failures"]:
            text = "\n".join(system["failures"]).replace("\n", "\n    ")
            parts.append(f"## Failed: {name}\n\n    {text}\n")
    return "\n".join(parts)


OF_TRANSLATION = (quality, training, decoding, translator, plots, scores, domains, repetitions, cost, samples)


def is_of_translation(report: Report) -> bool:
    return "score" not in report


def render(report: Report) -> str:
    """Return the text of report.md."""
    own = OF_TRANSLATION if is_of_translation(report) else (one_score,)
    texts = [section(report) for section in (*own, machine, commands, failures)]
    return "\n".join(text for text in texts if text)


def in_short(report: Report) -> str:
    """Return what is printed at the end: the verdict, or the table."""
    return str(report["verdict"]) if is_of_translation(report) else score_rows(report)


def files(report: Report) -> tuple[str, ...]:
    return FILES if is_of_translation(report) else FILES[:2]


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and, of translation, the plots."""
    write_text(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", render(report))
    if is_of_translation(report):
        draw(report, tested(report), timed_settings(report), folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the verdict, report.md and the plots again.")
    parser.add_argument("report", type=Path, metavar="report.json", help="of compare.py")
    path = parser.parse_args(argv).report
    if path.name != "report.json" or not path.is_file():
        parser.error(f"argument report.json: must be a file of that name; got {path}")
    report = json.loads(path.read_text(encoding="utf-8"))
    if is_of_translation(report):
        report["verdict"] = verdict(report)
    write(report, path.parent)


if __name__ == "__main__":
    main()
