"""Small sets of labelled sentences, in the forms of Kim's files."""

from __future__ import annotations

import random
from pathlib import Path

SMALL = ["--user-dir", "fairseq_sru", "--task", "sentence_prediction", "--criterion", "sentence_prediction", "--cpu"]
SMALL += [
    "--num-classes",
    2,
    "--optimizer",
    "adam",
    "--lr",
    5e-3,
    "--batch-size",
    20,
    "--max-epoch",
    8,
    "--dropout",
    0.1,
]
SMALL += ["--no-epoch-checkpoints", "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"]


def labelled(count: int, seed: int) -> list[str]:
    """Lines ``label text``: the label is 1 where "not" stands before "good"."""
    rng = random.Random(seed)
    lines = []
    for n in range(count):
        words = [rng.choice("abcdefgh") for _ in range(rng.randint(2, 6))]
        at = sorted(rng.sample(range(len(words) + 2), 2))
        for place, word in zip(at, ("not", "good") if n % 2 else ("good", "not"), strict=True):
            words.insert(place, word)
        lines.append(f"{n % 2} {' '.join(words)}")
    return lines


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def stanford(folder: Path, count: int = 400) -> None:
    """Files of SST-2, in Kim's form."""
    write(folder / "stsa.binary.phrases.train", labelled(count, 1))
    write(folder / "stsa.binary.dev", labelled(60, 2))
    write(folder / "stsa.binary.test", labelled(80, 3))


def prepared(folder: Path, *more: str) -> Path:
    """A folder that fairseq reads."""
    import prepare

    stanford(folder / "archives")
    prepare.main(["sst2", "--out", str(folder / "data"), "--local-dir", str(folder / "archives"), *more])
    return folder / "data" / "folds" / "0"
