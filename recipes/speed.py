"""Time SRU layers against nn.LSTM of the same sizes, and the layers' matrix product against torch's own.

    python recipes/speed.py

Each row is measured in turns (one run of each, then again), so that what else the machine does falls on both alike;
medians of 15 turns. Layers: 2, dropout 0, float32, forward and backward or forward alone, on the GPU where there is
one.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fairseq_sru import SRU
from fairseq_sru.linear import linear

SHAPES = [(32, 32, 256), (128, 32, 512), (20, 64, 320), (1000, 1, 512), (1, 5, 512)]  # length, batch, size
TURNS = 15


def medians(*functions: Callable[[], object]) -> list[float]:
    """The median time of each function in ms, taken in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(TURNS + 2):
        for function, taken in zip(functions, times, strict=True):
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if turn >= 2:  # the first are for warming up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) * 1000 for taken in times]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def trained(layers: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A function that runs forward and backward."""

    def run() -> None:
        layers.zero_grad(set_to_none=True)
        layers(x)[0].sum().backward()

    return run


def evaluated(layers: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A function that runs forward alone."""

    def run() -> object:
        with torch.no_grad():
            return layers(x)

    return run


def product(function: Callable[..., object], x: torch.Tensor, w: torch.Tensor) -> None:
    """Five times, for they are short."""
    with torch.no_grad():
        for _ in range(5):
            function(x, w)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {device}: {name}\n")
    print("| length | batch | size | | LSTM ms | SRU ms | ratio |\n|---|---|---|---|---|---|---|")
    for length, batch, size in SHAPES:
        x = torch.randn(length, batch, size, device=device)
        lstm, sru = nn.LSTM(size, size, num_layers=2).to(device), SRU(size, size, num_layers=2).to(device)
        for what, prepare in (("training", trained), ("inference", evaluated)):
            a, b = medians(prepare(lstm, x), prepare(sru, x))
            print(f"| {length} | {batch} | {size} | {what} | {a:.2f} | {b:.2f} | {a / b:.1f} |", flush=True)
    if device == "cuda":
        return
    print("\n| rows | in | out | torch's product ms | ours ms | ratio |\n|---|---|---|---|---|---|")
    for rows, inputs, outputs in ((800, 320, 960), (1024, 512, 1536), (5, 512, 1536)):
        x, w = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        a, b = medians(partial(product, F.linear, x, w), partial(product, linear, x, w))
        print(f"| {rows} | {inputs} | {outputs} | {a / 5:.3f} | {b / 5:.3f} | {a / b:.1f} |", flush=True)


if __name__ == "__main__":
    main()
