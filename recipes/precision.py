"""Time training in float32 and with products in bfloat16: real fairseq-train, a recipe's systems in turns.

    OMP_NUM_THREADS=1 python recipes/precision.py recipes/configs/lohelp.yaml --output FILE.json [key=value ...]

Prepares the recipe's data in runs/precision-NAME where it isn't there, and goes on where it stopped. Medians of
``slices.rounds`` slices of ``slices.updates`` updates, after as many to warm up.
"""

from __future__ import annotations

import json
from pathlib import Path

from common.arguments import new_file
from common.files import write_text
from comparison.collecting import noted, versions, where
from comparison.command_line import read_recipe, recipe_parser
from comparison.commands import Commands
from comparison.stages import StageError, working_in
from comparison.training import Training

from fairseq_sru.layers.linear import bfloat16_gain

PRECISIONS = {"float32": False, "bfloat16": True}


def measured(comparison: Training) -> dict[str, dict[str, float]]:
    """Target tokens a second of each system by precision.

    Raises:
        StageError: the data can't be prepared, or a system doesn't train.
    """
    comparison.prepare()
    comparison.time_training()
    for failure in comparison.failures.values():
        raise StageError(failure)
    found: dict[str, dict[str, float]] = {}
    for system in comparison.settings.systems:
        name, _, precision = system.rpartition("-")
        found.setdefault(name, {})[precision] = round(comparison.training_speed(system, "tokens_per_second"), 1)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = recipe_parser(__doc__, output="written at the end", as_output=new_file)
    args = parser.parse_intermixed_args(argv)
    given = read_recipe(parser, args, "precision")
    if not Commands(given).cpu:
        parser.error(f"{args.recipe}: on a GPU --amp is float16: add cpu=true")
    given.systems = {
        f"{name}-{precision}": {**options, "amp": amp, "fp16": False, "bf16": False}
        for name, options in given.systems.items()
        for precision, amp in PRECISIONS.items()
    }
    with working_in(Path(given.out), parser):
        comparison = Training(given)
        found = measured(comparison)
        here = where(comparison)
        report = {
            "machine": {**here["machine"], "torch": noted(comparison, "torch")},
            "date": here["date"],
            "versions": versions(comparison, "fairseq_sru", "fairseq"),
            "recipe": args.recipe.stem,
            "overrides": args.overrides,
            "slices": vars(given.slices),
            "gain_of_a_product": round(bfloat16_gain(), 2),
            "tokens_per_second": found,
        }
        write_text(args.output, json.dumps(report, indent=1) + "\n")
    for name, speeds in found.items():
        print(f"{name}: {speeds['float32']:,.0f} in float32, {speeds['bfloat16']:,.0f} target tokens/s in bfloat16")


if __name__ == "__main__":
    main()
