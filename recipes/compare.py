"""Compare systems: train, translate (or classify), score, time and report, as a YAML file says.

    python recipes/compare.py recipes/configs/lohelp.yaml [key=value ...]
    python recipes/compare.py recipes/configs/lohelp.yaml out=runs/mine seeds=[1,2,3] systems.sru.dropout=0.2

Run again after a stop, it goes on. After a change of settings it does again what depends on them, but it never trains
again what has a checkpoint: it ends and names what to remove. fairseq's flags are checked before anything is run;
``--dry-run`` only does that, and prints the commands. The exit status is 1 if a system failed.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable
from unittest import mock

from common import hold
from common.arguments import at_least_one, file
from common.errors import end_with_reader
from common.machine import ROOT
from comparison.settings import Settings, load
from comparison.stages import working_in
from comparison.training import Run, Training
from comparison.translation import Comparison
from comparison.uses import USES
from corpora.sentences import VECTORS


def comparison_of(given: Settings) -> Training:
    return Comparison(given) if given.kind == "translation" else USES[given.kind](given)


def check_flags(comparison: Training, show: Callable[[str], object]) -> None:
    """Check fairseq's flags.

    Args:
        comparison: the recipe's.
        show: is called with each command: of the first seed, and the test of the last system's model.

    Raises:
        SystemExit: fairseq doesn't take a flag; its parser names it.
    """
    from fairseq import options

    given, commands = comparison.settings, comparison.commands
    if given.budget.updates is None:
        show("# Each system's updates will be those of the budget: the numbers below stand for them.")
    show(shlex.join(commands.prepare()))
    updates = given.budget.updates or given.checkpoints
    for system in given.systems:
        run = Run(system, given.seeds[0])
        train = commands.train(*run, updates, updates // given.checkpoints, comparison.folder(run))
        show(shlex.join(train))
        parse(train, options.get_training_parser(), without=("--encoder-embed-path", str(commands.data / VECTORS)))
    if test := comparison.test_command(comparison.final(run)):
        show(shlex.join(test))
        tests_text = test[0] == "fairseq-eval-lm"
        parser = options.get_eval_lm_parser() if tests_text else options.get_generation_parser()
        parse(test, parser, without=("--path", str(comparison.final(run))))


def parse(command: list[str], parser: argparse.ArgumentParser, without: tuple[str, str]) -> None:
    """Let fairseq parse the flags of a command, but for a flag whose file isn't there yet."""
    from fairseq import options

    flags = command[command.index("--user-dir") :]
    for at in range(len(flags) - 1):
        if tuple(flags[at : at + 2]) == without:
            del flags[at : at + 2]
            break
    data = command[command.index("--user-dir") - 1]
    # the data may not be there yet; the second is a function of our patches only
    no_data = mock.patch("fairseq_sru.models.architectures.check_data")
    with no_data, mock.patch("fairseq.options.check_files", create=True):
        options.parse_args_and_arch(parser, input_args=[data, *flags])


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
    out, comparison.jobs = comparison.out, args.jobs
    # made, or begun, by the first command of a dry run
    begun = os.listdir(out) if out.is_dir() else []
    only_data = set(begun) <= {"data", "data.part"} and all(os.path.isfile(out / name / hold.NAME) for name in begun)
    with working_in(out, parser, mixed=only_data):
        check_flags(comparison, lambda command: None)  # better now than after training
        comparison.prepare()
        comparison.time_training()
        comparison.train_and_test()
        comparison.time_decoding()
        comparison.score()
        comparison.report()
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    end_with_reader()
    sys.exit(main())
