"""Beam search of whole batches, by compiled code (kernels/translator.cpp)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from .program import Program, library

PAD, EOS, UNK = 1, 2, 3  # fairseq's first words are <s>, <pad>, </s>, <unk>


class Found(NamedTuple):
    """A hypothesis.

    ``tokens``: with the end of sentence. ``score``: their log probability, divided by the length to the power of the
    penalty. ``totals``: the log probability of all up to each token.
    """

    tokens: list[int]
    score: float
    totals: np.ndarray[Any, np.dtype[np.float32]]


class Search:
    """Beam search with a model.

    Args:
        encoder: it ends with a ``source`` for each attention of the decoder.
        decoder: its last slot are the logits.

    Attributes:
        words: of the source.
        positions: tokens of a source sentence at most; None for any number.

    Raises:
        Unavailable: there is no C++ compiler.
    """

    def __init__(self, encoder: Program, decoder: Program) -> None:
        self._encoder, self._decoder = encoder.packed(), decoder.packed()
        self._sources = np.array(encoder.sources, np.int64)
        self._state_size = decoder.state_size
        self.words, self.positions = encoder.words, encoder.positions

    def run(
        self,
        lines: Sequence[Sequence[int]],
        batches: int,
        threads: int,
        beam: int,
        max_length: int,
        no_repeat: int = 0,
        scored: bool = True,
        penalty: float = 1.0,
        nbest: int | None = None,
    ) -> list[list[Found]]:
        """Return the hypotheses of each sentence, the best first. Ctrl-C, and any other exception, stops it at the next
        step of the search; a single sentence ends first.

        Args:
            lines: sentences, as the numbers of their tokens with the end of sentence.
            batches: so many of them, each with long and short sentences.
            threads: batches that are searched at a time.
            beam: hypotheses that are followed.
            max_length: tokens of a hypothesis, without its end.
            no_repeat: so many tokens never stand twice.
            scored: False, with a beam of 1, leaves the scores out.
            penalty: of the length.
            nbest: so many of the beam's hypotheses; all unless given.

        Raises:
            MemoryError: a batch doesn't fit.
        """
        options = (beam, max_length, no_repeat, scored, PAD, EOS, float(penalty))
        stop = np.zeros(1, np.int64)
        one = partial(self._run, options, (beam, max_length + 1), nbest, stop)
        order = sorted(range(len(lines)), key=lambda i: -len(lines[i]))  # the shortest fill up the end
        shares = [order[i::batches] for i in range(min(batches, len(order)))]
        work = [[lines[i] for i in share] for share in shares]
        if len(lines) < 2:
            results = list(map(one, work))
        else:  # with one thread, too: this one waits in Python, where Ctrl-C is heard
            with ThreadPoolExecutor(threads) as pool:
                try:
                    results = list(pool.map(one, work))  # an exception cancels what has not begun
                except BaseException:
                    stop[0] = 1
                    raise
        of = dict(zip(chain(*shares), chain(*results), strict=True))
        return [of[i] for i in range(len(lines))]

    def _run(
        self,
        options: tuple[Any, ...],
        shape: tuple[int, int],
        nbest: int | None,
        stop: np.ndarray[Any, np.dtype[np.int64]],
        batch: Sequence[Sequence[int]],
    ) -> list[list[Found]]:
        tokens = np.concatenate([np.array(line, np.int64) for line in batch])
        begin = np.zeros(len(batch) + 1, np.int64)
        np.cumsum([len(line) for line in batch], out=begin[1:])
        out = np.empty((len(batch), *shape), np.int32)
        totals = np.empty(out.shape, np.float32)
        lengths, scores = np.zeros(out.shape[:2], np.int64), np.empty(out.shape[:2], np.float32)
        job = (
            *self._encoder.fields,
            *self._decoder.fields,
            len(self._sources),
            self._sources.ctypes.data,
            self._state_size,
            len(batch),
            tokens.ctypes.data,
            begin.ctypes.data,
            *options,
            *(x.ctypes.data for x in (out, totals, lengths, scores, stop)),
        )
        if not library().translate(struct.pack("20qd5q", *job)):
            raise MemoryError(
                f"a batch of {len(batch)} with a beam of {shape[0]} doesn't fit: smaller batches, a smaller beam or "
                "shorter translations take less"
            )
        return [
            [
                Found(out[n, i, :length].tolist(), score, totals[n, i, :length].copy())
                for i, (length, score) in enumerate(zip(*results, strict=True))
                if length
            ]
            for n, results in enumerate(zip(lengths[:, :nbest].tolist(), scores[:, :nbest].tolist(), strict=True))
        ]
