"""Steps of training and decoding: how long they take, beside fairseq's own models, and where SRU's time goes.

    python recipes/steps.py [--out DIR] [--threads N] [--turns N] [--vocabulary N] [--preset NAME] [--pairs N]
        [--updates] [--quick] [--resume]

Models of equal size, untrained, on random tokens: the preset ``sru_iwslt_de_en``, or ``sru_wmt``; its counterpart with
LSTM as the unit; fairseq's ``lstm`` (2 + 2 layers) and ``transformer`` (the shape of ``transformer_iwslt_de_en`` or
``transformer_wmt_en_de``, 6 + 6 layers), made narrower or wider until they have as many parameters.

``train`` is one update on 40 pairs of 25 tokens: forward, label-smoothed loss, backward, clipping, Adam; on a GPU also
in bfloat16 by autocast. ``step`` is a step of the decoder without search: the mean of 40 from the sentence's
beginning, with the state reordered after each where there is a beam, and with whatever the decoder makes of the source
at its first. ``decode`` is all of fairseq's own search over 25 source tokens, each hypothesis forced to 40. The
systems take turns, in rotating order; figures are medians. Shares are of the time in torch's profiler, which makes
small operators look longer than they are. On a GPU an update of SRU, and a step, are also recorded as a CUDA graph and
replayed.

File in DIR (runs/steps): steps.json, written after each case. With --resume it goes on with it; that
of another machine or source ends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from benchmarks import models as made
from benchmarks.models import CASES, DECODING, KINDS, OTHER, SRU, STEPS
from benchmarks.timing import (
    DRY,
    ON_GPU,
    TITLE,
    Attempts,
    Function,
    Spread,
    demand_kernels,
    failed,
    going_on_without,
    graphed,
    machine,
    measure,
    refuse_overwriting,
    resumable,
    resumed,
    save,
    short,
    table,
)
from common.arguments import at_least_one, folder
from common.errors import end_with_reader
from tqdm import tqdm

from fairseq_sru import __version__

Maker = Callable[[Any], Function]  # of what is measured, of a model


def only(models: dict[str, Any]) -> dict[str, Any]:
    return {SRU: models[SRU]}


def shares(function: Function) -> dict[str, float] | None:
    """As :func:`benchmarks.models.shares`; None where torch's profiler fails, as a GPU's may."""
    try:
        return made.shares(function)
    except RuntimeError as error:
        going_on_without("the profiler", str(error) or "RuntimeError")
        return None


def cases_of(args: argparse.Namespace, words: Any, models: dict[str, Any]) -> dict[str, tuple[Maker, dict[str, Any]]]:
    """By the case's name: its maker, and the models that take part."""
    cases: dict[str, tuple[Maker, dict[str, Any]]] = {}
    for dtype in (torch.float32, torch.bfloat16) if ON_GPU or DRY else (torch.float32,):
        name = "train" if dtype == torch.float32 else "train, bfloat16"
        cases[name] = partial(made.trainer, words=words, pairs=args.pairs, dtype=dtype), models
    decoding = {} if args.updates else {name: made.for_decoding(model) for name, model in models.items()}
    sizes_of_search = (CASES[:1] if args.quick else CASES) if decoding else ()
    for what, maker in DECODING.items():
        for sentences, beam in sizes_of_search:
            name = f"{what}, batch {sentences}, beam {beam}"
            cases[name] = partial(maker, words=words, sentences=sentences, beam=beam), decoding
    # What waits for the GPU can't be recorded, as packing for nn.LSTM does, and fairseq's own models. At the end, since
    # a capture that fails may spoil what follows.
    if ON_GPU or DRY:
        cases["train, bfloat16, CUDA graph"] = (lambda model: graphed(cases["train, bfloat16"][0](model))), only(models)
        for sentences, beam in sizes_of_search:
            of_step = partial(made.graphed_stepper, words=words, sentences=sentences, beam=beam)
            cases[f"step, CUDA graph, batch {sentences}, beam {beam}"] = of_step, only(decoding)
    return cases


def functions_of(case: str, maker: Maker, models: dict[str, Any]) -> dict[str, Function]:
    """What is measured of each model: one that fails must not cost the other figures, unless it is SRU."""
    functions: dict[str, Function] = {}
    for name, model in models.items():
        try:
            functions[name] = maker(model)
            functions[name]()
        except Exception as error:
            if name == SRU and "graph" not in case:
                raise
            functions.pop(name, None)
            failed(f"{name}, {case}", error)
    return functions


def entry_of(case: str, functions: dict[str, Function], turns: int) -> dict[str, Any]:
    """Times of a case for the report; shares are {} before the profiler has run, and of graphs."""
    per = STEPS if case.startswith("step") else 1
    took = {name: Spread(*(ms / per for ms in s)) for name, s in measure(functions, turns).items()}
    ratios = {name: spread.median / took[SRU].median for name, spread in took.items() if name != SRU}
    return {"ms": {name: spread._asdict() for name, spread in took.items()}, "ratios": ratios, "shares": {}}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, default="runs/steps", help="folder for the file (%(default)s)")
    parser.add_argument("--threads", type=at_least_one, help="threads on the CPU (torch's own number)")
    parser.add_argument("--turns", type=at_least_one, default=7, help="runs of each system (%(default)s)")
    parser.add_argument("--vocabulary", type=at_least_one, default=8000, help="tokens (%(default)s)")
    parser.add_argument("--preset", choices=made.PRESETS, default="sru_iwslt_de_en", help="of SRU (%(default)s)")
    parser.add_argument("--pairs", type=at_least_one, default=made.PAIRS, help="of an update (%(default)s)")
    parser.add_argument("--updates", action="store_true", help="nothing but updates")
    parser.add_argument("--quick", action="store_true", help="one sentence alone")
    parser.add_argument("--resume", action="store_true", help="go on with the file that is there")
    args = parser.parse_args(arguments)
    path = args.out / "steps.json"
    refuse_overwriting(parser, path, args.resume)
    if args.threads:
        torch.set_num_threads(args.threads)
    demand_kernels()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # by default cuDNN alone has it
    torch.manual_seed(1)
    words, models = made.systems(args.vocabulary, args.preset)
    others = [name for name in models if name != SRU]
    here = machine(fairseq_sru=__version__)
    print(TITLE.format(**here), f"medians of {args.turns}", sep="; ")
    sizes = {name: made.size(model) for name, model in models.items()}
    print("parameters:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))

    cases = cases_of(args, words, models)
    report: dict[str, Any] = {"machine": here, "turns": args.turns, "vocabulary": args.vocabulary}
    report |= {"preset": args.preset, "tokens": args.pairs * made.SOURCE, "parameters": sizes, "cases": {}}
    report = resumed(path, report, "cases", "tries") if args.resume else report
    found: dict[str, dict[str, Any]] = report["cases"]

    def row(case: str) -> list[str]:
        medians = [found[case]["ms"].get(name, {}).get("median") for name in models]
        return [case, *map(short, medians), *(short(found[case]["ratios"].get(name)) for name in others)]

    note = partial(save, path, report)

    def rows() -> Iterator[list[str]]:
        done = [case for case in cases if case in found and (found[case]["shares"] != {} or "graph" in case)]
        yield from map(row, done)
        left = Attempts("models", [case for case in cases if case not in done], report, note)
        for case in tqdm(left, disable=None, leave=False):
            functions = functions_of(case, *cases[case])
            if not functions:
                continue
            found[case] = entry_of(case, functions, args.turns)
            note()
            if "graph" not in case:  # which has no operators when it is replayed
                found[case]["shares"] = shares(functions[SRU])
                note()
            yield row(case)

    with resumable(report, note):
        table("Milliseconds:", ["case", *models, *(f"{name} / {SRU}" for name in others)], rows())
    percent = (
        [case, *(f"{100 * s:.0f}" for s in now["shares"].values())] for case, now in found.items() if now["shares"]
    )
    table("Of the time of SRU, in %:", ["case", *KINDS, OTHER], percent)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    end_with_reader()
    main()
