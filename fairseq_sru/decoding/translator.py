"""Text in, text out: beam search in compiled code (kernels/translator.cpp) with a model of files.py."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from ..layers.arguments import number, positive, whole
from .files import load
from .program import library, mind_fork
from .search import EOS, UNK, Found, Search
from .text import MosesBPE

CHARACTERS = 20  # of a subword of Moses' tokens, on average over a line at most
TOKENS = 8192  # of the sentences of a batch, whose keys and values are kept, or a few more
CGROUP = Path("/sys/fs/cgroup")
QUOTA = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of a container, by cgroups 2 and 1
LONGEST = 200  # tokens of a translation unless told otherwise, as in fairseq-generate


def cores() -> int:
    """Return the CPU cores that this process may use, within a container's quota, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in QUOTA:
        with suppress(OSError, ValueError):  # the latter where the quota is "max"
            quota, period = (int(word) for name in names for word in (CGROUP / name).read_text().split())
            if quota > 0:
                count = min(count, math.ceil(quota / period))
    return count


class Hypothesis(NamedTuple):
    """A translation; ``score`` is the mean natural log probability of its tokens, the end of sentence among them (with
    another ``lenpen`` than 1 not the mean). ``tokens`` are its subwords. Where the search finds fewer hypotheses than
    asked for, the rest are empty, with a score of -inf."""

    text: str
    score: float
    tokens: list[str]


class SearchOptions(TypedDict, total=False):
    """Options of a search, without the beam.

    Attributes:
        nbest: how many hypotheses of the beam are returned (1).
        batch_size: sentences that a thread takes at a time (64).
        max_length: tokens of a translation, or what the model was trained for where that is less (200).
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in a translation; 0: any may (0).
        lenpen: log probabilities are divided by the length to this power, so a lower one prefers shorter translations
            (1).
    """

    nbest: int
    batch_size: int
    max_length: int
    no_repeat_ngram_size: int
    lenpen: float


class _OfALine(Exception):
    """``index`` is the line's place."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message, index)  # both, or it could not be sent to another process
        self.index = index

    def __str__(self) -> str:
        return f"lines[{self.index}]: {self.args[0]}"


class TooLong(_OfALine, ValueError):
    """A line has more subwords than the model takes; ``index`` is its place."""


class NoScores(_OfALine, RuntimeError):
    """The model gives no finite scores for a line; ``index`` is its place."""


class Translator:
    """Translator with a model that ``python -m fairseq_sru.export`` made.

    Float32 models find what fairseq-generate finds. A line's translation depends on the line only, whatever the batch
    and the threads.

    Args:
        folder: the model.
        threads: batches that are translated at a time; by default the cores that this process may use.

    Raises:
        ModelError: the folder isn't a model that this version can read; a ValueError.
        ValueError: threads isn't an integer of at least 1.
        RuntimeError: there is no C++ compiler.
        ImportError: safetensors, or the package of the subword model, isn't installed.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None) -> None:
        library()  # what is missing is told before the model is read
        mind_fork()
        model, self.subwords = load(Path(folder))
        self._folder = Path(folder).absolute()
        self.threads = cores() if threads is None else positive("threads", threads)
        self._beam_search = Search(model.encoder, model.decoder)
        self._numbers, self._target = {word: i for i, word in enumerate(model.source)}, model.target
        self._max_source, self._max_length = model.max_source, model.max_target - 1

    def __reduce__(self) -> Any:
        return type(self), (self._folder, self.threads)

    def translate(self, lines: Iterable[str], beam: int = 5, **options: Unpack[SearchOptions]) -> list[str]:
        """Return the best translation of each line.

        Args:
            lines: sentences; one without a word stays empty.
            beam: hypotheses that are followed; 1 is greedy search.
            options: of :class:`SearchOptions`.

        Raises:
            ValueError: an option is out of its range, or a line not Unicode text or too long (:class:`TooLong`).
            TypeError: lines is one str or has something other than str, or lenpen is no number.
            RuntimeError: the model gives no finite scores for a line (:class:`NoScores`).
            MemoryError: a batch doesn't fit.
        """
        return [best[0].text for best in self._search(lines, beam, scored=False, **options)]

    def hypotheses(
        self, lines: Iterable[str], beam: int = 5, **options: Unpack[SearchOptions]
    ) -> list[list[Hypothesis]]:
        """Return the ``nbest`` hypotheses of each line, the best first.

        Args:
            lines: sentences; one without a word has empty hypotheses.
            beam: hypotheses that are followed.
            options: of :class:`SearchOptions`.

        Raises:
            ValueError, TypeError, RuntimeError, MemoryError: as in :meth:`translate`.
        """
        return self._search(lines, beam, scored=True, **options)

    def _search(
        self,
        lines: Iterable[str],
        beam: int,
        scored: bool,
        nbest: int = 1,
        batch_size: int = 64,
        max_length: int = LONGEST,
        no_repeat_ngram_size: int = 0,
        lenpen: float = 1.0,
    ) -> list[list[Hypothesis]]:
        if isinstance(lines, str):
            raise TypeError("lines must be a list of lines; got one str")
        longest, lines = min(positive("max_length", max_length), self._max_length), list(lines)
        if strange := [line for line in lines if not isinstance(line, str)]:
            raise TypeError(f"lines must be str; got {strange[0]!r}")
        for i, line in enumerate(lines):
            try:
                line.encode()
            except UnicodeEncodeError as error:  # half of a pair, or a byte that open() could not decode
                raise ValueError(f"lines[{i}] is not Unicode text: {line[error.start]!r} at {error.start}") from None
        nbest, beam = positive("nbest", nbest), positive("beam", beam)
        if nbest > beam:
            raise ValueError(f"nbest must be at most beam, {beam}; got {nbest}")
        beam = min(beam, len(self._target) - 1)  # as in fairseq
        no_repeat = min(whole("no_repeat_ngram_size", no_repeat_ngram_size, 0), longest + 2)  # none is so long
        lenpen = number("lenpen", lenpen)
        numbers = self.encode(lines)
        at = [i for i, line in enumerate(numbers) if len(line) > 1]
        work = [numbers[i] for i in at]
        size = min(positive("batch_size", batch_size), max(1, -(-len(work) // self.threads)))
        batches = max(-(-len(work) // size), -(-sum(map(len, work)) // TOKENS))
        options = (beam, longest, no_repeat, scored or beam > 1, lenpen, nbest)
        results = [[Hypothesis("", 0.0, [])] * nbest for _ in lines]
        for i, hypotheses in zip(at, self._beam_search.run(work, batches, self.threads, *options), strict=True):
            if not hypotheses:
                raise NoScores("the model gives no finite scores: it is damaged, or its training diverged", i)
            results[i] = [self._hypothesis(h) for h in hypotheses]
            results[i] += [Hypothesis("", -math.inf, [])] * (nbest - len(results[i]))  # of a tiny vocabulary
        return results

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return each line's numbers, with the end of sentence.

        Raises:
            TooLong: a line has more than the model takes.
        """
        numbers, most = [], CHARACTERS * (self._max_source - 1)
        for index, line in enumerate(lines if isinstance(self.subwords, MosesBPE) else ()):
            if (letters := sum(map(len, line.split()))) > most:  # Moses' patterns would take minutes
                raise TooLong(f"it has {letters:,} characters, the model takes {most:,}: split it", index)
        for index, tokens in enumerate(self.subwords.encode(lines)):
            if len(tokens) >= self._max_source:
                too_many = f"it has {len(tokens):,} subwords, the model takes {self._max_source - 1:,}: split it"
                raise TooLong(too_many, index)
            numbers.append([*(self._numbers.get(token, UNK) for token in tokens), EOS])
        return numbers

    def _hypothesis(self, found: Found) -> Hypothesis:
        tokens = [self._target[n] for n in found.tokens[:-1]]
        text = self.subwords.decode([token for token in tokens if token != "<s>"])  # fairseq prints none either
        return Hypothesis(text, found.score, tokens)
