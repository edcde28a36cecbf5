"""What the stages of a comparison noted, as report.json has it."""

from __future__ import annotations

import itertools
import json
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from common.machine import cores, processor

from . import report
from .report import spread, verdict
from .runs import Comparison
from .stages import evenly, lines
from .training import Run, Training

SAMPLES = 10  # translations that a report shows


def seconds_to(bleu: float, curve: Sequence[dict[str, Any]]) -> float | None:
    """Training time of the first checkpoint with that BLEU; None if there is none."""
    return next((point["train_seconds"] for point in curve if point["BLEU"] >= bleu), None)


def machine(cpu: bool) -> dict[str, Any]:
    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": None if cpu else torch.cuda.get_device_name(),
        "system": platform.platform(),
    }


def noted(c: Training, fact: str) -> str:
    """A fact of where the stages ran; more than one where a comparison went on elsewhere."""
    return ", then ".join(map(str, c.stages.noted(fact))) or str(c.here[fact])


def versions(c: Training, *packages: str) -> dict[str, str]:
    """Those that the stages ran with."""
    return {name: noted(c, name) for name in packages}


def where(c: Training) -> dict[str, Any]:
    """Where and when the stages ran."""
    cpu = c.commands.cpu
    facts = {"cpu": noted(c, "processor"), "gpu": None if cpu else noted(c, "gpu")}
    facts |= {"backend": noted(c, "backend")} if cpu else {}
    return {"date": max(c.stages.noted("finished"), default=None), "machine": {**machine(cpu), **facts}}


def of_all(c: Training, *packages: str) -> dict[str, Any]:
    """What the report of every comparison has; ``packages`` are those whose versions it tells, too."""
    here = where(c)
    return {
        "name": c.out.name,
        "budget": {key: value for key, value in vars(c.settings.budget).items() if value is not None},
        "baseline": c.settings.baseline,
        "date": here["date"],
        "machine": {**here["machine"], "jobs": max(c.stages.noted("jobs"), default=c.jobs)},
        "versions": {
            "python": platform.python_version(),
            **versions(c, "fairseq_sru", "torch", "fairseq"),
            **{name: version(name) for name in packages},
        },
    }


def precision(c: Training, system: str) -> str:
    """Of the products in training."""
    on = {flag for flag, value in c.commands.options(system).items() if value}
    if on & {"bf16", "memory-efficient-bf16"} or ("amp" in on and c.commands.cpu):
        return "bfloat16"
    return "float16" if on & {"fp16", "memory-efficient-fp16", "amp"} else "float32"


def curve(c: Comparison, run: Run) -> list[dict[str, Any]]:
    if c.settings.curve is None:
        return []
    return [c.stages.stamp(f"{run.stage('curve')} {updates}")["point"] for updates, _ in c.checkpoints(run)]


def collected_run(c: Comparison, run: Run, scored: dict[str, Any]) -> dict[str, Any]:
    """``scored``: of all runs, as score() has them."""
    stamp, trained, points = c.stages.stamp, c.stages.stamp(run.stage("train")), curve(c, run)
    baseline = Run(c.settings.baseline, run.seed)
    best = max((point["BLEU"] for point in curve(c, baseline)), default=None) if baseline in c.good() else None
    keys = ("updates", "train_seconds", "clock_seconds", "parameters", "peak_memory", "peak_gpu_memory")
    stages = ["train", *(["average"] if c.settings.average > 1 else []), "generate"]
    return {
        "seed": run.seed,
        **{key: trained.get(key) for key in keys},
        **scored[f"{run.system} {run.seed}"],
        "seconds_to_baseline": None if best is None else seconds_to(best, points),
        "curve": points,
        "commands": [shlex.join(stamp(run.stage(stage))["command"]) for stage in stages],
    }


def collected_system(c: Comparison, system: str, scored: dict[str, Any]) -> dict[str, Any]:
    failures = list(dict.fromkeys(text for run, text in c.failures.items() if run.system == system))
    runs = [collected_run(c, run, scored) for run in c.good(system)]
    found: dict[str, Any] = {"failures": failures, "precision": precision(c, system), "runs": runs}
    if runs:
        speed = c.settings.speed
        found["scores"] = {m: spread(r["scores"][m]["score"] for r in runs) for m in runs[0]["scores"]}
        found["training_tokens_per_second"] = c.training_speed(system, "tokens_per_second")
        found["decoding"] = [
            {"beam": beam, "batch": batch, "sentences_per_second": c.decoding_speed(system, beam, batch)}
            for beam, batch in (itertools.product(speed.beams, speed.batches) if speed else ())
        ]
        if system in c.translators.systems():
            found["translator"] = c.translators.found(system)
    return found


def collected(c: Comparison) -> dict[str, Any]:
    s, scored = c.settings, json.loads((c.out / "scores.json").read_text(encoding="utf-8"))
    made = {
        **of_all(c, "sacrebleu"),
        "data": {
            **{key: c.data[key] for key in ("data_set", "source", "target", "tokenizer", "lower") if key in c.data},
            "test_sentences": len(c.text["test"][c.source]),
            "curve_sentences": len(c.chosen["valid"]),
            "speed_sentences": len(c.chosen["test"]),
        },
        "curve_beam": s.curve.beam if s.curve else None,
        "loss": s.train.get("best-checkpoint-metric", "loss"),
        "prepare": shlex.join(c.commands.prepare()),
        **{key: scored[key] for key in ("signatures", "copied_source", "references_repetition")},
        "systems": {system: collected_system(c, system, scored["runs"]) for system in s.systems},
        "samples": samples(c),
    }
    return {"verdict": verdict(made), **made}


def samples(c: Comparison) -> list[dict[str, Any]]:
    """Sentences from all of the test set, with each system's translation by its first run."""
    outputs = {system: lines(c.output(run)) for system, run in c.first().items()}
    source, reference = c.text["test"][c.source], c.text["test"][c.target]
    return [
        {"source": source[i], "reference": reference[i], "systems": {name: text[i] for name, text in outputs.items()}}
        for i in evenly(SAMPLES, len(source))
    ]


def report_on(c: Comparison) -> None:
    """The last stage: report.json, report.md and the plots; prints the verdict."""
    write_report(c, collected(c))


def write_report(c: Training, facts: report.Report) -> None:
    files = [c.out / name for name in report.files(facts)]
    c.stages.function("report", facts, lambda: report.write(facts, c.out), inputs=[], outputs=files)
    print(f"\n{report.in_short(facts)}\n\n{c.out / 'report.md'}")
