"""Compare systems: train, translate (or classify), score, time and report, as a YAML file says.

    python recipes/compare.py recipes/configs/lohelp.yaml [key=value ...]
    python recipes/compare.py recipes/configs/lohelp.yaml out=runs/mine seeds=[1,2,3] systems.sru.dropout=0.2

Stopped and run again, it goes on where it stopped; with other settings, what they concern is done again, but it ends
before it would train anew what has a checkpoint. fairseq's flags are checked before anything is run;
``--dry-run`` does that alone, and prints the commands. The exit status is 1 if a system failed.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable

from common import hold
from common.arguments import at_least_one, file
from common.errors import end_with_reader
from common.machine import ROOT
from comparison.collecting import report_on
from comparison.flags import check_training, takes
from comparison.runs import Comparison
from comparison.settings import Settings, load
from comparison.stages import working_in
from comparison.training import Run
from comparison.uses import USES, Language, Sentences, Use


def comparison_of(given: Settings) -> Comparison | Use:
    return Comparison(given) if given.kind == "translation" else USES[given.kind](given)


def check_flags(comparison: Comparison | Use, show: Callable[[str], object]) -> None:
    """Check fairseq's flags.

    Args:
        comparison: the recipe's.
        show: is given the commands, of the first seed and the last system's model.

    Raises:
        SystemExit: fairseq doesn't take a flag; it says which.
    """
    from fairseq import options

    given, commands = comparison.settings, comparison.commands
    if given.budget.updates is None:
        show("# Each system's updates will be those of the budget: the numbers below stand for them.")
    show(shlex.join(commands.prepare()))
    check_training(comparison, show)
    if isinstance(comparison, Sentences):  # tests by no command of fairseq's
        return
    last = list(given.systems)[-1]
    run = Run(last, given.seeds[0])
    if isinstance(comparison, Use):
        test = comparison.test_command(comparison.folder(run) / "checkpoint_best.pt")
    else:
        test = commands.generate(commands.data / "bin", "test", comparison.final(run))
    show(shlex.join(test))
    at = test.index("--path")
    del test[at : at + 2]  # the model that isn't there yet
    tests_text = isinstance(comparison, Language)
    takes(commands, test, options.get_eval_lm_parser() if tests_text else options.get_generation_parser())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=file, metavar="RECIPE.yaml", help="such as those in recipes/configs")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="goes before the recipe's value")
    parser.add_argument("--jobs", type=at_least_one, default=1, metavar="N", help="runs at a time (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and check their flags")
    args = parser.parse_intermixed_args(argv)
    try:
        given = load(args.recipe, args.overrides)
        given = given if given.kind == "translation" else USES[given.kind].completed(given)
    except ValueError as error:
        parser.error(f"{args.recipe}: {error}")
    logging.disable(logging.INFO)  # of fairseq and sacreBLEU, in this process
    os.chdir(ROOT)  # where the commands that are printed can be copied to
    comparison = comparison_of(given)
    if args.dry_run:
        check_flags(comparison, print)
        return 0
    out = comparison.out
    comparison.jobs = args.jobs
    # made, or begun, by the first command of a dry run
    ours = os.path.isfile(out / "data" / hold.NAME) and os.listdir(out) == ["data"]
    with working_in(out, parser, mixed=ours):
        check_flags(comparison, lambda _: None)  # better now than after training
        comparison.run()
        report_on(comparison) if isinstance(comparison, Comparison) else comparison.report()
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    end_with_reader()
    sys.exit(main())
