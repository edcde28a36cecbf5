"""Steps of training and decoding: how long they take, beside fairseq's own models, and where SRU's time goes.

    python recipes/steps.py [--out DIR] [--threads N] [--turns N] [--vocabulary N] [--quick]

Models of equal size, untrained, on random tokens: the preset ``sru_iwslt_de_en``; its counterpart with LSTM as the
unit; fairseq's ``lstm`` (2 + 2 layers) and ``transformer`` (the shape of ``transformer_iwslt_de_en``, 6 + 6 layers),
made narrower until they have as many parameters.

``train`` is one update on 40 pairs of 25 tokens: forward, label-smoothed loss, backward, clipping, Adam. ``step`` is a
step of the decoder without search: the mean of 40 from the sentence's beginning, with the state reordered after each
where there is a beam, and with whatever the decoder makes of the source at its first. ``decode``
is all of fairseq-generate's search over 25 source tokens, each hypothesis forced to 40. The systems take turns, in
rotating order; figures are medians. Shares are of the time in torch's profiler, which makes small operators look longer
than they are.

File in DIR (runs/steps): steps.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.models import CASES, DECODING, KINDS, OTHER, SRU, STEPS, for_decoding, shares, size, systems, trainer
from benchmarks.timing import TITLE, Function, Spread, at_least_one, folder, machine, measure, short, table
from common.files import write_text
from tqdm import tqdm

from fairseq_sru import __version__


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, default="runs/steps", help="folder for the file (%(default)s)")
    parser.add_argument("--threads", type=at_least_one, help="threads on the CPU (torch's own number)")
    parser.add_argument("--turns", type=at_least_one, default=7, help="runs of each system (%(default)s)")
    parser.add_argument("--vocabulary", type=at_least_one, default=8000, help="tokens (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one sentence alone")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    words, models = systems(args.vocabulary)
    decoding = {name: for_decoding(model) for name, model in models.items()}
    others = [name for name in models if name != SRU]
    here = machine(fairseq_sru=__version__)
    print(TITLE.format(**here), f"medians of {args.turns}", sep="; ")
    sizes = {name: size(model) for name, model in models.items()}
    print("parameters:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))

    cases: dict[str, tuple[Callable[[Any], Function], dict[str, Any]]] = {}
    cases["train"] = partial(trainer, words=words), models
    for what, maker in DECODING.items():
        for sentences, beam in CASES[:1] if args.quick else CASES:
            name = f"{what}, batch {sentences}, beam {beam}"
            cases[name] = partial(maker, words=words, sentences=sentences, beam=beam), decoding
    found: dict[str, dict[str, dict[str, Any]]] = {}

    def rows() -> Iterator[list[str]]:
        for case, (maker, taking_part) in tqdm(cases.items(), disable=None, leave=False):
            functions = {name: maker(model) for name, model in taking_part.items()}
            per = STEPS if case.startswith("step") else 1
            took = {name: Spread(*(ms / per for ms in s)) for name, s in measure(functions, args.turns).items()}
            ratios = {name: took[name].median / took[SRU].median for name in others}
            found[case] = {
                "ms": {name: spread._asdict() for name, spread in took.items()},
                "ratios": ratios,
                "shares": shares(functions[SRU]),
            }
            yield [case, *(short(spread.median) for spread in took.values()), *map(short, ratios.values())]

    table("Milliseconds:", ["case", *models, *(f"{name} / {SRU}" for name in others)], rows())
    percent = ([case, *(f"{100 * s:.0f}" for s in now["shares"].values())] for case, now in found.items())
    table("Of the time of SRU, in %:", ["case", *KINDS, OTHER], percent)
    report = {"machine": here, "turns": args.turns, "vocabulary": args.vocabulary, "parameters": sizes, "cases": found}
    path = args.out / "steps.json"
    write_text(path, json.dumps(report, indent=1) + "\n")
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
