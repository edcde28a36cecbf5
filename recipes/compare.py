"""Compare translation systems: train, translate, score, time and report, as a YAML file says.

    python recipes/compare.py recipes/configs/lohelp.yaml [key=value ...]
    python recipes/compare.py recipes/configs/lohelp.yaml out=runs/mine seeds=[1,2,3] systems.sru.dropout=0.2

Stopped and run again, it goes on where it stopped; with other settings, what they concern is done again. ``--dry-run``
prints the commands and checks their flags. The exit status is 1 if a system failed.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import tempfile
from pathlib import Path

from comparison.collecting import report_on
from comparison.commands import Commands
from comparison.runs import Comparison
from comparison.settings import Settings, load
from comparison.stages import working_in

ROOT = Path(__file__).resolve().parent.parent


def dry_run(given: Settings) -> None:
    """Check fairseq's flags and print the commands, of the first seed and the last system's model; under an
    equal-time budget with a number of updates that stands for what will be measured.

    Raises:
        SystemExit: fairseq doesn't take a flag; it says which.
    """
    from fairseq import options

    commands, out = Commands(given), Path(given.out)
    print(shlex.join(commands.prepare()))
    with tempfile.TemporaryDirectory() as no_data:
        for language in ("source", "target"):
            Path(no_data, f"dict.{language}.txt").touch()

        def check(command: list[str], parser: argparse.ArgumentParser) -> None:
            flags = command[command.index(f"{commands.data}/bin") + 1 :]
            options.parse_args_and_arch(parser, input_args=[no_data, *flags])

        for system in given.systems:
            updates = given.budget.updates or given.checkpoints
            seed = given.seeds_of(system)[0]
            folder = out / "checkpoints" / f"{system}-{seed}"
            every = updates // given.checkpoints
            train = commands.train(system, seed, updates, every, folder)
            print(shlex.join(train))
            check(train, options.get_training_parser())
        generate = commands.generate(commands.data / "bin", "test", folder / "checkpoint_last.pt")
        print(shlex.join(generate))
        at = generate.index("--path")
        del generate[at : at + 2]  # the model that isn't there yet
        check(generate, options.get_generation_parser())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="goes before the recipe's value")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and check their flags")
    args = parser.parse_intermixed_args(argv)
    if not args.recipe.is_file():
        parser.error(f"no such file: {args.recipe}")
    try:
        given = load(args.recipe, args.overrides)
    except ValueError as error:
        parser.error(f"{args.recipe}: {error}")
    logging.disable(logging.INFO)  # of fairseq and sacreBLEU, in this process
    os.chdir(ROOT)  # where the commands that are printed can be copied to
    if args.dry_run:
        dry_run(given)
        return 0
    out = Path(given.out)
    comparison = Comparison(given)
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    # made by the first command of a dry run
    ours = inside == {"data"} and (out / "data" / "manifest.json").is_file()
    # stamps: of a version that left no other trace
    with working_in(out, parser, mixed=ours or (out / "stamps" / "subset.json").is_file()):
        comparison.run()
        report_on(comparison)
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
