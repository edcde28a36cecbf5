"""Train a recipe's systems for equal minutes and no more: tokens a second, and BLEU of the test set.

    python recipes/equal_time.py recipes/configs/lohelp.yaml --output FILE.json [key=value ...]

What compare.py does without its curves and timed decoding, with one checkpoint a run, each system's first seed. Works
in runs/equal-time-NAME. Stopped and run again, it goes on, a run from the end of its last whole epoch. FILE is written
after each measurement and each system, or, where it has results of before, as soon as there are as many; what failed is
named there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from common.files import write_text
from common.machine import processor
from comparison import scores
from comparison.collecting import versions, where
from comparison.command_line import portable, portable_flags, read_recipe, recipe_parser
from comparison.fairseq_output import trained
from comparison.runs import Comparison
from comparison.settings import Settings
from comparison.stages import lines, working_in
from comparison.training import Run

FIXED = ("checkpoints=1", "average=1", "train.validate-interval=1000000")  # validated at the end alone


def found(comparison: Comparison, tested: list[Run]) -> dict[str, Any]:
    """What is known of each system, tokens being target tokens; ``tested``: the runs that are of these settings."""
    given = comparison.settings
    batches = {name: given.flags_of(name).get("max-tokens") for name in given.systems}
    systems: dict[str, dict[str, Any]] = {name: {"max_tokens": batch} for name, batch in batches.items()}
    for run in comparison.good():
        known = systems[run.system]
        slices = (comparison.stages.stamp(f"slice {run.system} {number}") for number in comparison.rounds)
        if all(stamp.get("done") for stamp in slices):
            known["tokens_per_second"] = round(comparison.training_speed(run.system, "tokens_per_second"), 1)
        if run in tested:
            now = trained(comparison.last(run))
            seconds = comparison.stages.stamp(run.stage("train"))["train_seconds"]
            known |= {"parameters": now.parameters, "updates": now.updates, "seconds": seconds, "loss": now.loss}
            truth, target = comparison.text["test"][comparison.target], comparison.target
            known["bleu"] = scores.bleu(truth, lines(comparison.output(run)), target)
    for run, failure in comparison.failures.items():
        systems[run.system]["failure"] = failure
    return systems


def checksum(given: Settings) -> str:
    """Of the settings that decide what is trained and tested."""
    told = {**dataclasses.asdict(given), "prepare": portable_flags(given.prepare)}
    for other in ("out", "curve", "speed"):
        del told[other]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def is_of(path: Path, of: dict[str, Any]) -> bool:
    """Whether a file is of an earlier call for the same recipe and settings on this processor."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        known["overrides"] = portable(known["overrides"])
        return (
            all(known[key] == value for key, value in of.items())
            and known["machine"]["cpu"].split(", then ")[-1] == processor()
        )
    except (OSError, ValueError, LookupError, TypeError):  # none, or another one
        return False


def main(argv: list[str] | None = None) -> int:
    parser = recipe_parser(__doc__, output="written after each measurement of speed, and after each system")
    args = parser.parse_intermixed_args(argv)
    given = read_recipe(parser, args, "equal-time", *FIXED)
    if given.budget.minutes is None:
        parser.error(f"{args.recipe}: budget.minutes must be given; it is {given.budget.minutes}")
    of = {"recipe": args.recipe.stem, "minutes": given.budget.minutes, "overrides": portable(args.overrides)}
    of["settings_sha256"] = checksum(given)
    if (there := args.output.exists()) and not is_of(args.output, of):
        parser.error(f"argument --output: {args.output} is of other settings or another processor; name another file")
    given.seeds = given.seeds[:1]
    with working_in(Path(given.out), parser):
        comparison = Comparison(given)
        comparison.prepare()
        tested: list[Run] = []

        def note() -> None:
            here = {**where(comparison), "versions": versions(comparison, "fairseq_sru", "fairseq")}
            report = {**here, **of, "systems": found(comparison, tested)}
            write_text(args.output, json.dumps(report, indent=1) + "\n")

        # what it has beside speeds stays until there is as much, or until the end
        before = json.loads(args.output.read_text(encoding="utf-8"))["systems"] if there else {}
        had = {name for name, known in before.items() if "bleu" in known}
        note_speeds = note if not had else lambda: None
        comparison.time_training(then=note_speeds)
        comparison.keep()
        note_speeds()
        for run in comparison.runs:
            comparison.attempt([run], partial(comparison.train, run))
            comparison.attempt([run], partial(comparison.translate, run))
            tested += [run] * (run not in comparison.failures)
            if had <= {run.system for run in tested} or run is comparison.runs[-1]:
                note()
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
