"""Whether fairseq takes the flags of a recipe, asked before anything is run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from unittest import mock

from corpora.sentences import VECTORS

from .commands import Commands
from .training import Run, Training


def takes(commands: Commands, command: list[str], parser: argparse.ArgumentParser) -> None:
    """Check a command of fairseq's.

    Raises:
        SystemExit: it doesn't take a flag; its parser says which.
    """
    from fairseq import options

    flags = command[command.index("--user-dir") :]
    if (vectors := str(commands.data / VECTORS)) in flags:  # that aren't there yet
        at = flags.index(vectors)
        del flags[at - 1 : at + 1]
    checks = (
        "fairseq_sru.models.architectures.check_data",
        "fairseq.options.check_files",
    )  # the second is the patches'
    with mock.patch(checks[0]), mock.patch(checks[1], create=True):  # the data may not be there yet
        options.parse_args_and_arch(parser, input_args=[str(commands.data), *flags])


def check_training(of: Training, show: Callable[[str], object] = lambda _: None) -> None:
    """Check the training commands of all systems.

    Args:
        of: the comparison.
        show: is given the commands, of each system's first seed.

    Raises:
        SystemExit: see :func:`takes`.
    """
    from fairseq import options

    given = of.settings
    updates = given.budget.updates or given.checkpoints  # under an equal-time budget, what stands for the measured ones
    for system in given.systems:
        run = Run(system, given.seeds[0])
        train = of.commands.train(*run, updates, updates // given.checkpoints, of.folder(run))
        show(shlex.join(train))
        takes(of.commands, train, options.get_training_parser())
