"""What the scripts that measure a recipe's systems, beside compare.py, have in common on their command lines."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.arguments import at_least_one, file, output_file
from common.machine import ROOT

from .settings import Settings, load

FOLDERS = ("out", "prepare.out", "prepare.local-dir")


def portable(overrides: Sequence[str]) -> list[str]:
    """Without folders, which are of one machine."""
    return [word for word in overrides if word.partition("=")[0] not in FOLDERS]


def portable_flags(prepare: Mapping[str, Any]) -> dict[str, Any]:
    """Those of recipes/prepare.py, likewise."""
    return {flag: value for flag, value in prepare.items() if f"prepare.{flag}" not in FOLDERS}


def recipe_parser(
    about: str | None,
    *,
    jobs: str | None = None,
    output: str | None = None,
    as_output: Callable[[str], Path] = output_file,
) -> argparse.ArgumentParser:
    """A parser with a recipe and ``key=value``.

    Args:
        about: the script's docstring.
        jobs: what ``--jobs`` counts; without it, there is none.
        output: help of ``--output``; likewise.
        as_output: its type.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("recipe", type=file, metavar="RECIPE.yaml", help="such as those in recipes/configs")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="goes before the recipe's value")
    if jobs:
        parser.add_argument("--jobs", type=at_least_one, default=1, metavar="N", help=f"{jobs} at a time (%(default)s)")
    if output:
        parser.add_argument("--output", type=as_output, required=True, metavar="FILE.json", help=output)
    return parser


def read_recipe(parser: argparse.ArgumentParser, args: argparse.Namespace, out: str, *fixed: str) -> Settings:
    """Read the recipe, and go on in the project's folder, where its paths begin; ``args.output`` is absolute then.

    Args:
        parser: of :func:`recipe_parser`; what is wrong with the recipe ends the program with its message.
        args: parsed.
        out: the work is in ``runs/OUT-NAME``, where the command line doesn't say otherwise.
        fixed: further ``key=value``, which those of the command line go before.
    """
    overrides: Sequence[str] = [f"out=runs/{out}-{args.recipe.stem}", *fixed, *args.overrides]
    try:
        given = load(args.recipe, overrides)
    except ValueError as error:
        parser.error(f"{args.recipe}: {error}")
    if given.kind != "translation":
        parser.error(f"{args.recipe}: kind: must be translation; got {given.kind}")
    args.output = args.output.absolute()
    logging.disable(logging.INFO)  # of fairseq and sacreBLEU, in this process
    os.chdir(ROOT)
    return given
