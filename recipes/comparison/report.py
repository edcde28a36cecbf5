"""The report of a comparison: report.json, report.md and plots.

    cd recipes
    python -m comparison.report ../runs/lohelp/report.json

writes the verdict, report.md and the plots anew from what report.json has measured.
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
from .stages import Stages
from .verdict import METRICS, Report, mean_and_std, runs, setting, spread, tested, verdict

FILES = ("report.json", "report.md", "curves.svg", "speed.svg")
# ---------------------------------------------------------------- tables, each with a row for a system


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *escaped])


def number(value: float | None, form: str = ".1f", scale: float = 1.0) -> str:
    return "–" if value is None else format(value / scale, form)


def title(report: Report, name: str) -> str:
    return name + (" (baseline)" if name == report["baseline"] else "")


def quality_table(report: Report) -> str:
    rows = []
    for name, system in tested(report).items():
        row = [title(report, name)]
        for metric in METRICS:
            p_values = [run["scores"][metric]["p_value"] for run in system["runs"]]
            row += [mean_and_std(system["scores"][metric]), ", ".join(number(p, ".3f") for p in p_values)]
        rows.append(row)
    return table(["system", *(cell for metric in METRICS for cell in (metric, "p"))], rows)


def training_table(report: Report) -> str:
    def known(system: dict[str, Any], key: str) -> list[float]:
        return [run[key] for run in system["runs"] if run[key] is not None]

    compared, rows = {run["seed"] for run in report["systems"][report["baseline"]]["runs"]}, []
    for name, system in tested(report).items():
        reached, count = known(system, "seconds_to_baseline"), sum(run["seed"] in compared for run in system["runs"])
        memory = known(system, "peak_gpu_memory") or known(system, "peak_memory")
        rows.append(
            [
                title(report, name),
                f"{system['runs'][0]['parameters'] / 1e6:.2f} M",
                number(statistics.fmean(known(system, "train_seconds")), ".1f", 60),
                (number(statistics.median(reached), ".1f", 60) if reached else "not reached" if count else "–")
                + (f" ({len(reached)} of {count})" if 0 < len(reached) < count else ""),
                f"{system['training_tokens_per_second']:,.0f}",
                number(max(memory, default=None), ".2f", 2**30),
            ]
        )
    head = ["system", "parameters", "training, min", "to the baseline's best, min", "target tokens/s", "memory, GiB"]
    return table(head, rows)


def decoding_table(report: Report) -> str:
    systems = tested(report)
    settings = [setting(d) for d in next(iter(systems.values()))["decoding"]] if systems else []
    rows = (
        [title(report, name), *(f"{d['sentences_per_second']:,.1f}" for d in system["decoding"])]
        for name, system in systems.items()
    )
    return table(["sentences/s", *settings], rows)


def translator_table(report: Report) -> str:
    """Empty where no system can be run by the translator."""
    systems = {n: system["translator"] for n, system in tested(report).items() if "translator" in system}
    missing = "".join(
        f"The translator does not run {n}: {t['missing']}\n\n" for n, t in systems.items() if "missing" in t
    )
    runs_it = {n: t for n, t in systems.items() if "missing" not in t}
    if not runs_it:
        return missing
    some = next(iter(runs_it.values()))["float32"]
    head = ["translator", *(f"{name}, beam {s['beam']}" for name in ("BLEU", "repetition") for s in some[name])]
    rows = (
        [f"{title(report, name)}, {weights}", *map(mean_and_std, found["BLEU"])]
        + [f"{share['mean']:.2%}" for share in found["repetition"]]
        + [f"{d['sentences_per_second']:,.1f}" for d in found["decoding"]]
        for name, translator in runs_it.items()
        for weights, found in translator.items()
    )
    return f"""{table([*head, *map(setting, some["decoding"])], rows)}
The same sentences by python -m fairseq_sru.translate, sentences/s, with float32 and with int8 weights. It has \
translated a few before and is timed with its subwords; fairseq-generate from its first batch on, without them. BLEU \
and the share of outputs with a repetition are of the whole test set.

{missing}"""


# ---------------------------------------------------------------- report.md, a function a section


def conditions(report: Report, seeds: dict[str, list[int]]) -> str:
    """Budget, seeds of each system that has a run, and which trained with products in 16 bits."""
    systems, budget = tested(report), report["budget"]
    limit = f"{budget['updates']} updates" if "updates" in budget else f"{budget['minutes']:g} minutes of training"
    precision = ""
    for kind, how in (("bfloat16", "bfloat16 (--amp)"), ("float16", "float16")):
        if names := [name for name, system in systems.items() if system.get("precision") == kind]:
            precision += f" Trained with products in {how}: {', '.join(names)}."
    alike: dict[str, list[str]] = {}
    for name in systems:
        alike.setdefault(", ".join(map(str, seeds[name])), []).append(name)
    said = alike if len(alike) == 1 else [f"{some} of {', '.join(names)}" for some, names in alike.items()]
    return f"Budget: {limit} for each system. Seeds: {'; '.join(said)}.{precision}"


def summary(report: Report) -> str:
    data = report["data"]
    seeds = {name: [run["seed"] for run in system["runs"]] for name, system in report["systems"].items()}
    lower = ", in lower case" * data.get("lower", False)
    return (
        f"""# {report["name"]}

{report["verdict"]}

Data: {data["data_set"]}, {data["source"]}-{data["target"]}, test set of {data["test_sentences"]} sentences{lower}. \
{conditions(report, seeds)}

{quality_table(report)}
± is the standard deviation over seeds. p is that of the difference from the baseline, for each seed: paired \
bootstrap, one tail, not corrected for the number of systems. For TER, less is better.

{training_table(report)}
Training time is that of the updates, without validation and saving, the mean over seeds. The baseline's best is that \
of its checkpoints on the validation set; the time to it is the median of the seeds that reach it. Target tokens/s are \
measured in short slices of all systems in turns. Memory is the peak in training, of the GPU if there is one.

{decoding_table(report)}
Decoding {data["speed_sentences"]} sentences of the test set by each system's first run, without loading: medians, \
systems in turns.

{translator_table(report)}""".rstrip()
        + "\n"
    )


def plots(report: Report) -> str:
    return f"""## Plots

![BLEU and loss against time and updates](curves.svg)

Validation set: BLEU of {report["data"]["curve_sentences"]} sentences, beam {report["curve_beam"]}, and the loss \
({report["loss"]}) of all.

![speed of training and decoding](speed.svg)
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
        found = (spread(run["domains"][domain] for run in system["runs"]) for system in systems.values())
        rows.append([domain, *map(mean_and_std, found)])
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
    found = []
    for sample in report["samples"]:
        said = {"reference": sample["reference"], **sample["systems"]}
        found.append(table(["source", sample["source"].replace("|", "\\|")], said.items()))
    return "## Samples\n\n" + "\n".join(found)


def machine(report: Report) -> str:
    facts = {**report["machine"], **report["versions"], "date": report["date"]}
    return "## Machine\n\n" + table(["", ""], ([key, str(value)] for key, value in facts.items()))


def commands(report: Report) -> str:
    lines = [report["prepare"], *(command for _, run in runs(report) for command in run["commands"])]
    return "## Commands\n\n" + "".join(f"    {command}\n" for command in lines)


def failures(report: Report) -> str:
    parts = []
    for name, system in report["systems"].items():
        if system["failures"]:
            text = "\n".join(system["failures"]).replace("\n", "\n    ")
            parts.append(f"## Failed: {name}\n\n    {text}\n")
    return "\n".join(parts)


def render(report: Report) -> str:
    sections = (summary, plots, scores, domains, repetitions, cost, samples, machine, commands, failures)
    return "\n".join(filter(None, (section(report) for section in sections)))


def write(report: Report, folder: Path) -> None:
    write_text(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", render(report))
    draw(report, folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("report", type=Path, metavar="report.json", help="of compare.py; its verdict is written anew")
    path = parser.parse_args(argv).report
    if path.name != "report.json" or not path.is_file():
        parser.error(f"argument report.json: must be a file of that name; got {path}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["verdict"] = verdict(report)
        render(report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        parser.error(f"argument report.json: {path} is no report on translation: {type(error).__name__}: {error}")
    stages, made = Stages(path.parent / "stamps"), [path.parent / name for name in FILES]
    if changed := stages.changed("report", [file for file in made if file != path]):
        parser.error(f"argument report.json: {changed[0]} was changed by hand and would be overwritten: move it")
    stages.again("report")  # a kill in between leaves what is made anew
    write(report, path.parent)
    stages.remade("report", made)


if __name__ == "__main__":
    main()
