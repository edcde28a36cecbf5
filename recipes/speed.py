"""The speed report: one SRU layer against what else one would take, as tables, JSON and the plot of the published code.

    python recipes/speed.py [--out DIR] [--threads N] [--turns N] [--quick] [--rivals] [--resume]

Contestants, one layer each, as many features out as in, no dropout, one direction: a word-level convolution
(nn.Conv1d over time, kernel width 3); nn.LSTM; nn.GRU; SRU (ours: v1 cell, tanh); the published package ``sru``, same
cell (also as torch.jit.script, which runs its C++ loop, forward alone); GEMM, our layer's matrix product and no more.
On a CPU in float32, one shape and single steps also without oneDNN; on a GPU, where torch sees one, in float32 (without
TF32, for all) and bfloat16, called one by one and as a CUDA graph, and with --rivals what has to be built there: the
package, and the recurrence alone beside accelerated-scan, flash-linear-attention's HGRN and torch.compile.

``forward`` is eval mode without gradients; ``forward+backward`` is train mode with the gradients of the weights and the
input, from a given gradient of the output. The contestants of a case are measured in turns, in rotating order, so that
what else the machine does falls on all alike. A run is one call, or as many as take 5 ms. Figures are medians of the
runs; JSON has their quartiles. A second table has the recurrence alone next to copying the bytes that it must move.

Files in DIR (runs/speed): speed.json, written after each case, speed.svg. With --resume it goes on
with speed.json; that of another machine or source, or with another package, ends it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from benchmarks import layer
from benchmarks import scans as others
from benchmarks.layer import BOTH, FORWARD, GRAPH, LONG, PLAIN, SCANS, SHAPES, STEPS, VARIANTS, WIDE, Case, Shape
from benchmarks.timing import (
    DEVICE,
    DRY,
    ON_GPU,
    TITLE,
    Attempts,
    demand_kernels,
    machine,
    measure,
    refuse_overwriting,
    resumable,
    resumed,
    save,
    warm_up,
)
from common.arguments import at_least_one, folder
from common.errors import end_with_reader

from fairseq_sru.recurrence.dispatch import choose

AIMS = (WIDE, (128, 32, 512), (32, 32, 512))


def cases_of(shapes: Sequence[Shape], steps: Sequence[Shape], one: Shape) -> list[Case]:
    """Layers to be measured, in this order: at each shape forward, with backward too, and forward at single steps."""
    plans = [(what, *s) for s in shapes for what in (FORWARD, BOTH)] + [(FORWARD, *s) for s in steps]
    cases = [Case(*plan, *variant) for variant in VARIANTS for plan in plans]
    if not (ON_GPU or DRY) and torch.backends.mkldnn.is_available():
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # of Intel's GPUs
        cases += [Case(*plan, mode=PLAIN) for plan in ((FORWARD, *one), (BOTH, *one), *((FORWARD, *s) for s in steps))]
    # What takes long last; of the rest what is aimed at first, and graphs last, as one that fails may spoil the others.
    if ON_GPU:
        cases.sort(key=lambda c: (c[1:4] == LONG, c.mode == GRAPH, c[1:4] not in AIMS))
    return cases


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, default="runs/speed", help="folder for the files (%(default)s)")
    parser.add_argument("--threads", type=at_least_one, help="threads on the CPU (torch's own number)")
    parser.add_argument("--turns", type=at_least_one, default=15, help="runs of each contestant (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two small shapes, and without the package sru")
    parser.add_argument("--rivals", action="store_true", help="on a GPU, what has to be built, and nothing else")
    parser.add_argument("--resume", action="store_true", help="go on with the file that is there")
    args = parser.parse_args(arguments)
    if args.rivals and not (ON_GPU or DRY):
        parser.error("argument --rivals: is for a GPU, and torch sees none")
    path = args.out / "speed.json"
    refuse_overwriting(parser, path, args.resume, args.out / layer.DRAWN)
    if args.threads:
        torch.set_num_threads(args.threads)
    demand_kernels()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # by default cuDNN alone has it

    package = None if args.quick or (ON_GPU and not args.rivals) else layer.published_package()
    backend = choose("auto", DEVICE.type)
    shapes, steps, scans = (SHAPES[:1], STEPS[1:2], SHAPES[:1]) if args.quick else (SHAPES, STEPS, SCANS)
    one = shapes[0] if args.quick else (32, 32, 512)
    here = machine(
        backend=backend.name if backend else "reference", package="there" if package and not args.rivals else "none"
    )
    title = TITLE.format(**here)
    count = 2**30 if ON_GPU else 2**28
    warm_up()
    bandwidth = count / layer.fastest(measure(layer.copying(count), args.turns)).median / 1e6
    print(f"{title}; medians of {args.turns}; copying reads and writes {bandwidth:,.0f} GB/s")

    cases = cases_of(shapes, steps, one)
    scanned = list(dict(VARIANTS).items())  # the last mode
    report: dict[str, Any] = {
        "machine": here,
        "turns": args.turns,
        "copy_gb_per_s": bandwidth,
        "l2_bytes": torch.cuda.get_device_properties(DEVICE).L2_cache_size if ON_GPU else None,
        "contestants": {},
        "recurrence": [],
        "other_kernels": [],
        "cases": [],
    }
    if args.resume:
        report = resumed(path, report, *(report.keys() - {"machine", "turns"}), "tries")

    note = partial(save, path, report)

    def left(part: str, wanted: list[Case]) -> Attempts[Case]:
        """Those that are not in the report."""
        done = {Case.of(entry) for entry in report[part]}
        known = done | {case._replace(mode=GRAPH) for case in done} if part == "recurrence" else done
        return Attempts(part, [case for case in wanted if case not in known], report, note)

    def keep(part: str, entry: dict[str, Any]) -> None:
        report[part].append(entry)
        note()

    with resumable(report, note):
        if args.rivals:
            eager = [case for case in cases if case.mode != GRAPH]
            beside = partial(
                layer.all_cases, package=package, turns=args.turns, keep=partial(keep, "cases"), rivals=True
            )
            if package:
                beside(left("cases", eager))
            wanted = left("other_kernels", others.cases_of(scans, scanned))
            others.all_others(wanted, args.turns, partial(keep, "other_kernels"))
            if package:
                beside(left("cases", cases))
        else:
            if backend:
                all_scans = [Case(FORWARD, *s, *variant) for s in scans for variant in scanned]
                layer.all_scans(backend, left("recurrence", all_scans), args.turns, partial(keep, "recurrence"))
            report["contestants"] = layer.all_notes(package, Case(FORWARD, *one))
            if ON_GPU or DRY:
                narrow = layer.all_notes(package, Case(BOTH, *one, dtype="bfloat16"))
                report["contestants"] |= {f"{name}, bfloat16": note for name, note in narrow.items()}
            layer.all_cases(left("cases", cases), package, args.turns, partial(keep, "cases"))
    print(f"\nwrote {path}")
    if report["cases"]:
        print(f"wrote {layer.draw(report, args.out)}")


if __name__ == "__main__":
    end_with_reader()
    main()
