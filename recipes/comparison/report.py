"""The report of a comparison: report.json (see report.schema.json), report.md and plots."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compare_plots
import stages
import torch
from common import processor, write_text

from fairseq_sru.versions import __version__

if TYPE_CHECKING:
    from compare import Comparison

FILES = ("report.json", "report.md", *(f"{plot}.{kind}" for plot in ("curves", "speed") for kind in ("svg", "png")))
SAMPLES = 10
LEVEL = 0.05  # of significance


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for one value) and number."""
    found = list(values)
    std = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.fmean(found), "std": std, "n": len(found)}


def seconds_to(bleu: float, curve: Sequence[dict[str, Any]]) -> float | None:
    """Training time of the first checkpoint with that BLEU; None if there is none."""
    return next((point["train_seconds"] for point in curve if point["BLEU"] >= bleu), None)


def machine(cpu: bool) -> dict[str, Any]:
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None if cpu else torch.cuda.get_device_name(),
        "system": platform.platform(),
    }


def build(c: Comparison) -> dict[str, Any]:
    """All that the report says, from what the stages noted."""
    s, stamp, good = c.settings, c.stages.stamp, c.good()
    found = json.loads((c.out / "scores.json").read_text(encoding="utf-8"))
    curves = {run: [stamp(f"curve {run[0]} {run[1]} {n}")["point"] for n, _ in c.checkpoints(run)] for run in good}
    stage_names = ["train", *(["average"] if s.average > 1 else []), "generate"]
    systems: dict[str, Any] = {}
    for system in s.systems:
        failures = [text for run, text in c.failures.items() if run[0] == system]
        entry: dict[str, Any] = {"failures": list(dict.fromkeys(failures)), "runs": []}
        systems[system] = entry
        for run in (run for run in good if run[0] == system):
            trained = stamp(f"train {run[0]} {run[1]}")
            best = max((point["BLEU"] for point in curves.get((s.baseline, run[1]), [])), default=None)
            keys = ("updates", "train_seconds", "clock_seconds", "parameters", "peak_memory", "peak_gpu_memory")
            entry["runs"].append(
                {
                    "seed": run[1],
                    **{key: trained.get(key) for key in keys},
                    **found["runs"][f"{run[0]} {run[1]}"],
                    "seconds_to_baseline": None if best is None else seconds_to(best, curves[run]),
                    "curve": curves[run],
                    "commands": [shlex.join(stamp(f"{name} {run[0]} {run[1]}")["command"]) for name in stage_names],
                }
            )
        if runs := entry["runs"]:
            entry["scores"] = {m: spread(run["scores"][m]["score"] for run in runs) for m in runs[0]["scores"]}
            entry["training_tokens_per_second"] = c.training_speed(system, "tokens_per_second")
            entry["decoding"] = [
                {"beam": beam, "batch": batch, "sentences_per_second": c.decoding_speed(system, beam, batch)}
                for beam in s.speed.beams
                for batch in s.speed.batches
            ]
    report = {
        "name": c.out.name,
        "date": max((stamp(f"generate {run[0]} {run[1]}")["finished"] for run in good), default=None),
        "data": {
            **{key: c.data[key] for key in ("data_set", "source", "target", "tokenizer")},
            "test_sentences": len(c.text["test"][c.source]),
            "curve_sentences": len(c.chosen["valid"]),
            "speed_sentences": len(c.chosen["test"]),
        },
        "budget": {key: value for key, value in vars(s.budget).items() if value is not None},
        "baseline": s.baseline,
        "curve_beam": s.curve.beam,
        "loss": s.train.get("best-checkpoint-metric", "loss"),
        "machine": machine(c.commands.cpu),
        "versions": {
            "python": platform.python_version(),
            "fairseq_sru": __version__,
            **{name: version(name) for name in ("torch", "fairseq", "sacrebleu")},
        },
        "prepare": shlex.join(c.commands.prepare()),
        "signatures": found["signatures"],
        "references_repetition": found["references_repetition"],
        "systems": systems,
        "samples": samples(c),
    }
    return {"verdict": verdict(report), **report}


def samples(c: Comparison) -> list[dict[str, Any]]:
    """Sentences from all of the test set, with each system's translation by its first run."""
    outputs = {system: stages.lines(c.output(run)) for system, run in c.first().items()}
    source, reference = c.text["test"][c.source], c.text["test"][c.target]
    return [
        {"source": source[i], "reference": reference[i], "systems": {name: text[i] for name, text in outputs.items()}}
        for i in stages.evenly(SAMPLES, len(source))
    ]


def verdict(report: dict[str, Any]) -> str:
    """Who won, by how much, whether that is significant, and at what cost: only what the numbers allow to say."""
    systems = {name: system for name, system in report["systems"].items() if system["runs"]}
    failed = [name for name, system in report["systems"].items() if system["failures"]]
    ending = f" Failed: {', '.join(failed)}; see the end." if failed else ""
    baseline = report["baseline"]
    others = [name for name in systems if name != baseline]
    if baseline not in systems:
        return f"No verdict: the baseline {baseline} failed.{ending}"
    if not others:
        return f"{baseline} has {_mean(systems[baseline]['scores']['BLEU'])} BLEU: nothing to compare it with.{ending}"
    best = max(others, key=lambda name: systems[name]["scores"]["BLEU"]["mean"])
    theirs = {run["seed"]: run["scores"]["BLEU"]["score"] for run in systems[baseline]["runs"]}
    pairs = [(run["scores"]["BLEU"], theirs[run["seed"]]) for run in systems[best]["runs"] if run["seed"] in theirs]
    if not pairs:
        return f"No verdict: no seed with which both {best} and the baseline {baseline} were trained.{ending}"
    own, base = (statistics.fmean(side) for side in ([ours["score"] for ours, _ in pairs], [b for _, b in pairs]))
    gap = own - base
    direction = "above" if gap > 0 else "below"
    among = f", the best of {len(others)} systems beside the baseline," if len(others) > 1 else ""
    text = f"{best}{among} has {own:.1f} BLEU, "
    text += f"{abs(gap):.1f} {direction} the baseline {baseline} ({base:.1f})"
    significant = [ours["p_value"] < LEVEL and (ours["score"] - other) * gap > 0 for ours, other in pairs]
    if len(pairs) == 1:
        word = "significant" if significant[0] else "not significant"
        text += f": {word} on this test set (paired bootstrap, p = {pairs[0][0]['p_value']:.3f}). "
        text += "One seed: no claim, since runs with other seeds may differ by as much."
    else:
        word = "significant" if all(significant) else "not significant"
        text += f", mean of {len(pairs)} seeds: {word}, in this direction with p < {LEVEL} for {sum(significant)} "
        text += f"of {len(pairs)} seeds (paired bootstrap)."
    mine, other = systems[best], systems[baseline]
    training = mine["training_tokens_per_second"] / other["training_tokens_per_second"]
    last = mine["decoding"][-1]
    decoding = last["sentences_per_second"] / other["decoding"][-1]["sentences_per_second"]
    text += f" It trains {training:.2f} times as fast as the baseline and decodes {decoding:.2f} times as fast "
    return text + f"(beam {last['beam']}, batch {last['batch']}).{ending}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *escaped])


def _number(value: float | None, form: str = ".1f", scale: float = 1.0) -> str:
    return "–" if value is None else format(value / scale, form)


def _mean(score: dict[str, Any]) -> str:
    return f"{score['mean']:.1f}" + (f" ± {score['std']:.1f}" if score["std"] is not None else "")


def render(report: dict[str, Any]) -> str:
    """report.md."""
    systems = {name: system for name, system in report["systems"].items() if system["runs"]}
    runs = [(name, run) for name, system in systems.items() for run in system["runs"]]
    data, budget = report["data"], report["budget"]
    limit = f"{budget['updates']} updates" if "updates" in budget else f"{budget['minutes']:g} minutes of training"
    last = next((system["decoding"][-1] for system in systems.values()), {"beam": "–", "batch": "–"})

    def row(name: str, system: dict[str, Any]) -> list[str]:
        mean = lambda key: [run[key] for run in system["runs"] if run[key] is not None]  # noqa: E731
        reached = mean("seconds_to_baseline")
        p = [run["scores"]["BLEU"]["p_value"] for run in system["runs"]]
        memory = mean("peak_gpu_memory") or mean("peak_memory")
        return [
            name + (" (baseline)" if name == report["baseline"] else ""),
            *(_mean(system["scores"][metric]) for metric in ("BLEU", "chrF2", "TER")),
            ", ".join(_number(value, ".3f") for value in p),
            f"{system['runs'][0]['parameters'] / 1e6:.2f} M",
            _number(statistics.fmean(mean("train_seconds")), ".1f", 60),
            (_number(statistics.median(reached), ".1f", 60) if reached else "not reached")
            + (f" ({len(reached)} of {len(system['runs'])})" if 0 < len(reached) < len(system["runs"]) else ""),
            f"{system['training_tokens_per_second']:,.0f}",
            f"{system['decoding'][-1]['sentences_per_second']:,.1f}",
            _number(max(memory, default=None), ".2f", 2**30),
        ]

    head = ["system", "BLEU", "chrF2", "TER", "p", "parameters", "training, min", "to the baseline's best, min"]
    head += ["target tokens/s", "sentences/s", "memory, GiB"]
    parts = [
        f"# {report['name']}\n",
        report["verdict"] + "\n",
        table(head, (row(name, system) for name, system in systems.items())),
        f"{data['data_set']}, {data['source']}-{data['target']}, test set of {data['test_sentences']} sentences; "
        f"{limit} for each system, seeds: {', '.join(map(str, sorted({run['seed'] for _, run in runs})))}. "
        "± is the standard deviation over seeds; p is of BLEU's difference from the baseline, for each seed (paired "
        "bootstrap, not corrected for the number of systems). Training time is that of the updates, without "
        "validation and saving, the mean over seeds. The time to the baseline's best is the median of the seeds that "
        "reach it; that best is that of its checkpoints on the validation set. Target tokens/s "
        "is the speed of training, measured in short slices of all systems in turns; sentences/s that of decoding "
        f"with beam {last['beam']} and batch {last['batch']}. Memory is the peak in training, of the GPU if there is "
        "one.\n",
        "## Learning curves\n\n![BLEU and loss against time and updates](curves.svg)\n",
        f"Validation set: BLEU of {data['curve_sentences']} sentences, beam {report['curve_beam']}, and the loss "
        f"({report['loss']}) of all.\n",
        "## Speed\n\n![speed of training and decoding](speed.svg)\n",
        table(
            ["sentences/s", *systems],
            (
                [f"beam {d['beam']}, batch {d['batch']}"]
                + [f"{system['decoding'][i]['sentences_per_second']:,.1f}" for system in systems.values()]
                for i, d in enumerate(next(iter(systems.values()))["decoding"] if systems else [])
            ),
        ),
        f"Decoding {data['speed_sentences']} sentences of the test set, without loading; medians, systems in turns.\n",
        "## Scores\n",
        table(
            ["system", "seed", "metric", "score", "95% interval", "p", "signature"],
            (
                [name, str(run["seed"]), metric, f"{score['score']:.2f}"]
                + (
                    [f"{score['mean'] - score['ci']:.2f} to {score['mean'] + score['ci']:.2f}"]
                    if "ci" in score
                    else ["–"]
                )
                + [_number(score.get("p_value"), ".3f"), report["signatures"].get(metric, "no sacreBLEU metric")]
                for name, run in runs
                for metric, score in run["scores"].items()
            ),
        ),
        "Intervals are of the bootstrap over sentences; they don't have the spread over seeds.\n",
    ]
    if runs and "domains" in runs[0][1]:
        domains = list(runs[0][1]["domains"])
        by_domain = lambda system, domain: spread(run["domains"][domain] for run in system["runs"])  # noqa: E731
        parts += [
            "## BLEU by domain\n",
            table(
                ["domain", *systems],
                ([d, *(_mean(by_domain(system, d)) for system in systems.values())] for d in domains),
            ),
        ]
    shares = [("references", report["references_repetition"])]
    shares += [(f"{name}, seed {run['seed']}", run["repetition"]) for name, run in runs]
    keys = list(report["references_repetition"])
    parts += [
        "## Repetitions\n\nShare of the sentences with an n-gram of words three times in a row, by the shortest n:\n",
        table(["", *keys], ([name, *(f"{share[key]:.2%}" for key in keys)] for name, share in shares)),
        "## Cost of training\n",
        table(
            ["system", "seed", "updates", "training, min", "clock, min", "peak memory, GiB", "peak GPU memory, GiB"],
            (
                [name, str(run["seed"]), f"{run['updates']:,}"]
                + [_number(run[key], ".1f", 60) for key in ("train_seconds", "clock_seconds")]
                + [_number(run[key], ".2f", 2**30) for key in ("peak_memory", "peak_gpu_memory")]
                for name, run in runs
            ),
        ),
        "The clock is that of the training process, with validation and saving.\n",
        "## Samples\n",
    ]
    for sample in report["samples"]:
        said = {"reference": sample["reference"], **sample["systems"]}
        parts.append(table(["source", sample["source"].replace("|", "\\|")], said.items()))
    facts = {**report["machine"], **report["versions"], "date": report["date"]}
    parts += ["## Machine\n", table(["", ""], ([key, str(value)] for key, value in facts.items())), "## Commands\n"]
    commands = [report["prepare"], *(command for _, run in runs for command in run["commands"])]
    parts.append("".join(f"    {command}\n" for command in commands))
    for name, system in report["systems"].items():
        if system["failures"]:
            text = "\n".join(system["failures"]).replace("\n", "\n    ")
            parts.append(f"## Failed: {name}\n\n    {text}\n")
    return "\n".join(parts)


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the report's files."""
    write_text(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", render(report))
    compare_plots.draw(report, folder)
