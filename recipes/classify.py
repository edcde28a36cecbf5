"""Print the label of each line of a text, and its probability, by a classifier that fairseq-train made.

    python recipes/classify.py runs/trec/data/folds/0 --path runs/mine/checkpoint_best.pt --input questions.txt

Prints a line for each line: label, tab, probability. DATA is the folder that the model was trained on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from common.arguments import file
from common.errors import RecipeError, end_with_reader


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder that the model was trained on")
    parser.add_argument("--path", type=file, required=True, metavar="FILE", help="the model's checkpoint")
    parser.add_argument("--input", type=file, metavar="FILE", help="a sentence a line (default: stdin, all of it)")
    args = parser.parse_args(argv)
    if not os.path.isdir(args.data):
        parser.error(f"argument DATA: no such folder: {args.data}")
    logging.disable(logging.INFO)  # of fairseq
    name = args.input or "standard input"
    try:
        from comparison.classes import Classes

        data = args.input.read_bytes() if args.input else sys.stdin.buffer.read()
        lines = data.decode("utf-8-sig").removesuffix("\n").split("\n") if data else []
        if empty := [at for at, line in enumerate(lines, 1) if not line.strip()]:
            raise RecipeError(f"{name}, line {empty[0]}: is empty; must be a sentence")
        for label, probability in Classes(args.path, args.data)(lines):
            print(f"{label}\t{probability:.4f}")
    except UnicodeDecodeError as error:
        parser.error(f"{name} is not UTF-8 text ({error})")
    except (RecipeError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    end_with_reader()
    main()
