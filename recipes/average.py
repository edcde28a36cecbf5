"""Average the weights of several fairseq checkpoints.

    python recipes/average.py --inputs checkpoints/checkpoint{8,9,10}.pt --output checkpoints/average.pt
    python recipes/average.py --inputs checkpoints --num-epoch-checkpoints 5 --output checkpoints/average.pt

As fairseq's own script, which its package leaves out. The result has the configuration of the last input and
no optimizer state; fairseq-generate, fairseq-validate and ``fairseq-train --finetune-from-model`` read it.
"""

from __future__ import annotations

import argparse
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.arguments import at_least_one, new_file
from common.files import write
from fairseq.checkpoint_utils import checkpoint_paths

from fairseq_sru.models.checkpoints import fairseq_checkpoints

PATTERNS = {"epoch": r"checkpoint(\d+)\.pt", "update": r"checkpoint_\d+_(\d+)\.pt"}  # of the files' names


def average(paths: list[Path]) -> dict[str, Any]:
    """Return the last checkpoint's state with the mean of all checkpoints' weights.

    Sums are in float64; the result has each weight's own dtype. Tensors of whole numbers are taken from the last
    checkpoint.

    Raises:
        ValueError: a file isn't a checkpoint, or they do not hold the same weights; the message names the difference.
    """
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        try:
            with fairseq_checkpoints():
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            model = state["model"]
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, OSError) as error:
            why = str(error).partition("\n")[0]
            raise ValueError(f"{path} is not a fairseq checkpoint: {type(error).__name__} {why}") from None
        shapes = {name: tuple(weight.shape) for name, weight in model.items()}
        known = {name: tuple(weight.shape) for name, weight in total.items()} or shapes
        for name in sorted(known.keys() | shapes.keys()):
            if known.get(name) != shapes.get(name):
                raise ValueError(f"{path}: {name} has shape {shapes.get(name)}, not {known.get(name)} as in {paths[0]}")
        for name, weight in model.items():
            total[name] = total[name] + weight.double() if name in total else weight.double()
    state["model"] = {
        name: (total[name] / len(paths)).to(weight.dtype) if weight.is_floating_point() else weight
        for name, weight in model.items()
    }
    state.pop("last_optimizer_state", None)
    return state


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, help="checkpoint files, or one folder of them")
    parser.add_argument("--output", type=new_file, required=True, metavar="FILE", help="where to write the average")
    last = parser.add_mutually_exclusive_group()
    last.add_argument("--num-epoch-checkpoints", type=at_least_one, metavar="N", help="the last N checkpointE.pt")
    last.add_argument("--num-update-checkpoints", type=at_least_one, metavar="N", help="the last N checkpoint_E_U.pt")
    args = parser.parse_args(argv)
    paths: list[Path] = args.inputs
    for kind, pattern in PATTERNS.items():
        if count := getattr(args, f"num_{kind}_checkpoints"):
            if len(paths) != 1 or not os.path.isdir(paths[0]):
                parser.error(f"argument --inputs: give one folder with --num-{kind}-checkpoints; got {paths[0]}")
            every = [Path(path) for path in checkpoint_paths(str(paths[0]), pattern)]  # the last one first
            if len(every) < count:
                parser.error(f"{paths[0]} holds {len(every)} {kind} checkpoints; --num-{kind}-checkpoints is {count}")
            paths = every[count - 1 :: -1]
    for path in paths:
        if not os.path.isfile(path):
            what = "a folder, which wants --num-epoch-checkpoints" if os.path.isdir(path) else "no such file"
            parser.error(f"argument --inputs: {path}: {what}")
    try:
        write(args.output, partial(torch.save, average(paths)))
    except ValueError as error:
        parser.error(f"argument --inputs: {error}")
    except (OSError, RuntimeError) as error:  # torch's own is a RuntimeError
        parser.error(f"argument --output: {args.output} can't be written: {error}")
    print(f"{args.output}: average of {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
