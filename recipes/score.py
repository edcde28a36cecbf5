"""Score a run's translations and print a short table.

    python recipes/score.py --data-set lohelp-en-de --checkpoint runs/quickstart/checkpoints/checkpoint_last.pt \
        --generated runs/quickstart/generate-test.txt

Scores come from sacreBLEU, over the data set's own text, with their signatures.
"""

from __future__ import annotations

import argparse

from common.arguments import file
from comparison.fairseq_output import hypotheses, trained
from corpora.registry import DATA, DATA_SETS
from sacrebleu.metrics import BLEU, CHRF

EXAMPLES = 3


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-set", choices=DATA_SETS, required=True, help="that was translated")
    parser.add_argument("--checkpoint", type=file, required=True, metavar="FILE", help="the training run's last")
    parser.add_argument("--generated", type=file, required=True, metavar="FILE", help="what fairseq-generate printed")
    args = parser.parse_args(argv)

    read = lambda language: (DATA / args.data_set / f"test.{language}").read_text("utf-8").splitlines()  # noqa: E731
    source, reference = map(read, DATA_SETS[args.data_set])
    try:
        run = trained(args.checkpoint)
    except (ValueError, LookupError) as error:
        parser.error(f"argument --checkpoint: {args.checkpoint} is no checkpoint of fairseq-train: {error}")
    try:
        output = hypotheses(args.generated.read_text("utf-8"))
    except ValueError as error:
        parser.error(f"argument --generated: {args.generated} is not whole: {error}")
    if len(output) != len(source):
        parser.error(
            f"argument --generated: {args.generated} has {len(output)} translations, test {len(source)} sentences"
        )

    bleu, chrf = BLEU(), CHRF()
    score, copied = bleu.corpus_score(output, [reference]), BLEU().corpus_score(source, [reference])
    characters = chrf.corpus_score(output, [reference])
    rows = [
        ("BLEU", f"{score.score:.1f}", str(bleu.get_signature())),
        ("BLEU of copying the source", f"{copied.score:.1f}", "the same"),
        ("chrF", f"{characters.score:.1f}", str(chrf.get_signature())),
        ("parameters", f"{run.parameters / 1e6:.2f} M", "tied weights counted once"),
        ("training time", f"{run.clock / 60:.1f} min", f"{run.updates} updates"),
        ("training speed", f"{run.tokens / run.seconds:,.0f}", "target tokens a second"),
    ]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    print(f"\n{args.data_set}, test set, {len(source)} sentences\n")
    for name, value, note in rows:
        print(f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {note}")
    for i in range(0, len(source), -(-len(source) // EXAMPLES)):
        print(f"\n  source      {source[i]}\n  translation {output[i]}\n  reference   {reference[i]}")


if __name__ == "__main__":
    main()
