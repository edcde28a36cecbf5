"""Score a run's translations and print a short table.

    python recipes/report.py --data-set lohelp-en-de --checkpoint runs/quickstart/checkpoints/checkpoint_last.pt \
        --generated runs/quickstart/generate-test.txt

Scores come from sacreBLEU, over the data set's own text, with their signatures.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from sacrebleu.metrics import BLEU, CHRF

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.machine import parameters
from prepare import DATA, DATA_SETS

from fairseq_sru.models.checkpoints import allow_fairseq_checkpoints

EXAMPLES = 3


def hypotheses(generated: str, kind: str = "H") -> list[str]:
    """The best translation of each sentence, in the order of the data set, from what fairseq-generate printed.

    ``kind`` names its lines: "H" are without subwords, "D" besides without tokenisation.

    Raises:
        ValueError: a sentence is missing or there twice.
    """
    found = re.findall(rf"^{kind}-(\d+)\t[^\t\n]*\t?(.*)$", generated, re.MULTILINE)
    lines = {int(number): text for number, text in found}
    if len(lines) != len(found) or sorted(lines) != list(range(len(lines))):
        raise ValueError(
            f"{len(found)} translations of {len(lines)} sentences, the last of which is {max(lines, default=0)}"
        )
    return [lines[i] for i in range(len(lines))]


class Trained(NamedTuple):
    """What a checkpoint tells of the run so far."""

    parameters: int  # tied weights count once, copies that fairseq keeps not at all
    updates: int
    seconds: float  # in training steps
    clock: float  # seconds of the training process, with validation and saving
    tokens: int  # target tokens
    loss: float | None  # on the validation set, by fairseq's --best-checkpoint-metric
    at_epoch_end: bool


def trained(checkpoint: Path) -> Trained:
    """Read a checkpoint that fairseq-train wrote.

    fairseq counts seconds and tokens from 0 again when it goes on from a checkpoint of an epoch's end.
    """
    allow_fairseq_checkpoints()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    extra = state["extra_state"]
    meters = {name: meter for _, name, _, meter in extra["metrics"]["default"]}
    return Trained(
        parameters=parameters(state["model"]),
        updates=state["optimizer_history"][-1]["num_updates"],
        seconds=float(meters["train_wall"]["sum"]),
        clock=float(extra["previous_training_time"]),  # a tensor where several processes trained
        tokens=int(meters["wpb"]["sum"]),
        loss=extra["val_loss"],
        at_epoch_end=extra["train_iterator"]["iterations_in_epoch"] == 0,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-set", choices=DATA_SETS, required=True)
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="the last checkpoint of the training run"
    )
    parser.add_argument("--generated", type=Path, required=True, metavar="FILE", help="what fairseq-generate printed")
    args = parser.parse_args(argv)

    read = lambda language: (DATA / args.data_set / f"{args.split}.{language}").read_text("utf-8").splitlines()  # noqa: E731
    source, reference = map(read, DATA_SETS[args.data_set])
    try:
        output = hypotheses(args.generated.read_text("utf-8"))
    except ValueError as error:
        parser.error(f"argument --generated: {args.generated} is not whole: {error}")
    if len(output) != len(source):
        parser.error(
            f"argument --generated: {args.generated} has {len(output)} translations, "
            f"{args.split} {len(source)} sentences"
        )

    bleu, chrf = BLEU(), CHRF()
    score, copied = bleu.corpus_score(output, [reference]), BLEU().corpus_score(source, [reference])
    characters = chrf.corpus_score(output, [reference])
    run = trained(args.checkpoint)
    rows = [
        ("BLEU", f"{score.score:.1f}", str(bleu.get_signature())),
        ("BLEU of copying the source", f"{copied.score:.1f}", "the same"),
        ("chrF", f"{characters.score:.1f}", str(chrf.get_signature())),
        ("parameters", f"{run.parameters / 1e6:.2f} M", "tied weights counted once"),
        ("training time", f"{run.clock / 60:.1f} min", f"{run.updates} updates"),
        ("training speed", f"{run.tokens / run.seconds:,.0f}", "target tokens a second"),
    ]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    print(f"\n{args.data_set}, {args.split} set, {len(source)} sentences\n")
    for name, value, note in rows:
        print(f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {note}")
    for i in range(0, len(source), -(-len(source) // EXAMPLES)):
        print(f"\n  source      {source[i]}\n  translation {output[i]}\n  reference   {reference[i]}")


if __name__ == "__main__":
    main()
