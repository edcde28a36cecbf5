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
from tqdm import tqdm

from fairseq_sru.models.checkpoints import fairseq_checkpoints


def average(paths: list[Path]) -> dict[str, Any]:
    """The last checkpoint's state with the mean of all checkpoints' weights.

    Sums are in float64; the result has each weight's own dtype. Tensors of whole numbers are taken from the last
    checkpoint.

    Raises:
        ValueError: the checkpoints do not hold the same weights; the message names the first difference.
    """
    total: dict[str, torch.Tensor] = {}
    state: dict[str, Any] = {}
    for path in tqdm(paths, desc="average", unit="checkpoint", disable=None):
        try:
            with fairseq_checkpoints():
                state = torch.load(path, map_location="cpu", weights_only=True)
            model = state["model"]
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, OSError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{path} is not a fairseq checkpoint: {why}") from None
        if total and model.keys() != total.keys():
            name = sorted(model.keys() ^ total.keys())[0]
            raise ValueError(f"{path} and {paths[0]} do not hold the same weights: {name} is in one of them only")
        for name, weight in model.items():
            if name in total and total[name].shape != weight.shape:
                raise ValueError(f"{path}: {name} has shape {tuple(weight.shape)}, not {tuple(total[name].shape)}")
            if name in total and weight.is_floating_point():
                total[name] += weight.double()
            else:
                total[name] = weight.double() if weight.is_floating_point() else weight
    state["model"] = {
        name: (total[name] / len(paths)).to(weight.dtype) if weight.is_floating_point() else weight
        for name, weight in state["model"].items()
    }
    state.pop("last_optimizer_state", None)
    return state


def last_checkpoints(folder: Path, count: int, kind: str) -> list[Path]:
    """The last ``count`` checkpoints of a folder, oldest first; kind "epoch" (checkpointN.pt) or "update"
    (checkpoint_E_N.pt).

    Raises:
        ValueError: there are fewer.
    """
    pattern = r"checkpoint(\d+)\.pt" if kind == "epoch" else r"checkpoint_\d+_(\d+)\.pt"
    found = checkpoint_paths(str(folder), pattern)
    if len(found) < count:
        raise ValueError(f"{folder} holds {len(found)} {kind} checkpoints; --num-{kind}-checkpoints is {count}")
    return [Path(path) for path in found[count - 1 :: -1]]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, help="checkpoint files, or one folder of them")
    parser.add_argument("--output", type=new_file, required=True, metavar="FILE", help="where to write the average")
    last = parser.add_mutually_exclusive_group()
    last.add_argument("--num-epoch-checkpoints", type=at_least_one, metavar="N", help="the last N checkpointE.pt")
    last.add_argument("--num-update-checkpoints", type=at_least_one, metavar="N", help="the last N checkpoint_E_U.pt")
    args = parser.parse_args(argv)

    count = args.num_epoch_checkpoints or args.num_update_checkpoints
    paths: list[Path] = args.inputs
    if count is not None:
        if len(paths) != 1 or not os.path.isdir(paths[0]):
            parser.error("argument --inputs: give one folder with --num-epoch-checkpoints or --num-update-checkpoints")
        kind = "epoch" if args.num_epoch_checkpoints else "update"
        try:
            paths = last_checkpoints(paths[0], count, kind)
        except ValueError as error:
            parser.error(str(error))
    for path in paths:
        if os.path.isdir(path):
            parser.error(
                f"argument --inputs: {path} is a folder: --num-epoch-checkpoints or --num-update-checkpoints says how "
                "many of its checkpoints"
            )
        if not os.path.isfile(path):
            parser.error(f"argument --inputs: no such file: {path}")
    try:
        state = average(paths)
    except ValueError as error:
        parser.error(str(error))
    try:
        write(args.output, partial(torch.save, state))
    except (OSError, RuntimeError) as error:  # torch's own is a RuntimeError
        parser.error(f"argument --output: {args.output} can't be written: {str(error).splitlines()[0]}")
    print(f"{args.output}: average of {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
