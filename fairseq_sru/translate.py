"""Translate lines of text with a model of python -m fairseq_sru.export.

    python -m fairseq_sru.translate model --beam 5 < source.txt > translation.txt

It translates lines as they come, at most 2,048 at a time, and writes them in their order; empty lines stay. A line that
can't be translated, such as one that is not UTF-8, ends it with one line on stderr, after the translations of all lines
before it. With --nbest N each line has N translations, the best first, and with --scores each begins with its score,
the mean log probability of its tokens, and a tab.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .decoding.translator import LONGEST, Hypothesis, NoScores, TooLong, Translator

CHUNK = 2048  # lines
READ = 2**18  # bytes


def chunks(source: IO[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines that are there, without waiting for more: of a pipe, what has been written to it."""
    rest = b""
    while new := source.read1(READ):  # type: ignore[attr-defined]
        *lines, rest = (rest + new).split(b"\n")
        for at in range(0, len(lines), CHUNK):
            yield lines[at : at + CHUNK]
    if rest:
        yield [rest]


def translated(
    translator: Translator, source: IO[bytes], scores: bool, nbest: int, **options: Any
) -> Iterator[tuple[int, str]]:
    """Yield for each chunk of lines how many they are, and what to write.

    Raises:
        ValueError: an option is out of its range, or a line can't be translated; what was before it has been yielded.
    """
    translator.hypotheses([], nbest=nbest, **options)  # says what is wrong before a line is read
    first = 1
    for chunk in chunks(source):
        lines: list[str] = []
        fault: ValueError | None = None
        try:
            for line in chunk:
                lines.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            at = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
            fault = ValueError(f"line {first + len(lines)} is not UTF-8: {at}")
        hypotheses = None
        while hypotheses is None:
            try:
                if scores or nbest > 1:
                    hypotheses = translator.hypotheses(lines, nbest=nbest, **options)
                else:
                    hypotheses = [[Hypothesis(text, 0.0, [])] for text in translator.translate(lines, **options)]
            except (TooLong, NoScores) as error:
                where = f"line {first + error.index}{' is too long' if isinstance(error, TooLong) else ''}"
                fault = ValueError(f"{where}: {error.args[0]}")
                lines = lines[: error.index]  # which may have another one
        texts = (f"{h.score:.4f}\t{h.text}\n" if scores else f"{h.text}\n" for line in hypotheses for h in line)
        yield len(lines), "".join(texts)
        if fault is not None:
            raise fault
        first += len(chunk)


def write(line: bytes) -> None:
    """Write a line to stdout, by a single call where the system takes it whole, as a pipe does up to 4,096 bytes."""
    while line:
        line = line[os.write(sys.stdout.fileno(), line) :]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_sru.translate", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder of python -m fairseq_sru.export")
    parser.add_argument("--beam", type=int, default=5, metavar="N", help="hypotheses that are followed (5)")
    parser.add_argument("--nbest", type=int, default=1, metavar="N", help="translations of each line (1)")
    parser.add_argument(
        "--scores", action="store_true", help="begin each translation with its mean log probability (natural)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="sentences that a thread takes at a time (64)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="batches at a time (as many as there are cores)")
    parser.add_argument("--max-length", type=int, default=LONGEST, metavar="N", help="tokens of a translation (200)")
    parser.add_argument(
        "--no-repeat-ngram-size", type=int, default=0, metavar="N", help="so many tokens never stand twice (0: any may)"
    )
    parser.add_argument(
        "--lenpen", type=float, default=1.0, metavar="X", help="below 1 prefers shorter translations, above longer (1)"
    )
    options = vars(parser.parse_args(argv))
    try:
        from tqdm import tqdm

        translator = Translator(options.pop("model"), options.pop("threads"))
        with tqdm(unit="line", disable=True if sys.stdout.isatty() or not sys.stderr else None) as bar:
            for count, text in translated(translator, sys.stdin.buffer, **options):
                for line in text.encode().splitlines(keepends=True):  # each at once, so that Ctrl-C cuts none
                    write(line)
                bar.update(count)
    except KeyboardInterrupt:
        print("translate: stopped", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else exit writes again what it couldn't
        sys.exit(f"translate: {'nobody reads the output any more' if isinstance(error, BrokenPipeError) else error}")
    except (ValueError, OverflowError, RuntimeError, ImportError, MemoryError) as error:
        sys.exit(f"translate: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
