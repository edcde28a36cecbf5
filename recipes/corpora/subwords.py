"""Text to subwords: a joint vocabulary learned from the training text, then applied by all cores in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sentencepiece
from common.machine import cores
from common.progress import progress

MODELS = {"sentencepiece": "spm.model", "moses-bpe": "bpe.codes"}  # the file that each tokenizer learns
ENDINGS = {"sentencepiece": "sp", "moses-bpe": "bpe"}  # of the text in subwords
CHUNK = 2_000  # pairs that a process takes at a time
FEW = 20_000  # pairs up to which one process does it all
CACHE = 500_000  # words whose subwords are remembered
SAMPLE = 1_000_000  # lines that a vocabulary is learned from, drawn evenly where there are more

Pair = tuple[str, str]
Pairs = list[Pair]
Item = TypeVar("Item")
Result = TypeVar("Result")
_work: Callable[[Any], Any]  # of a worker process


def train_sentencepiece(**options: Any) -> None:
    """Train sentencepiece.

    Raises:
        RuntimeError: the text doesn't allow it; in sentencepiece's words, but for those that name its own options.
    """
    try:
        sentencepiece.SentencePieceTrainer.train(**options)
    except RuntimeError as error:
        raise RuntimeError(str(error).partition(" Increase vocab_size or")[0]) from None


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    """Get a worker process ready; it ends with the process that started it, however that ends."""
    global _work
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
    _work = make()


def _run(item: Any) -> Any:
    return _work(item)


def in_order(make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """Yield ``map(make(), items)`` by several processes, with few items under way at a time.

    Raises:
        BrokenProcessPool: a process was killed, perhaps for want of memory.
    """
    if processes == 1:
        yield from map(make(), items)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (make,)) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(_run, item))
                if len(under_way) > 2 * processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def processes_for(pairs: int) -> int:
    """Processes for so many pairs: starting several takes longer than a small text."""
    return 1 if pairs <= FEW else cores()


def chunks(pairs: Iterable[Pair]) -> Iterator[Pairs]:
    rest = iter(pairs)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def read(source: Path, target: Path) -> Iterator[Pair]:
    """Pairs of lines of text that was made plain."""
    with source.open(encoding="utf-8", newline="\n") as left, target.open(encoding="utf-8", newline="\n") as right:
        for a, b in zip(left, right, strict=True):
            yield a.rstrip("\n"), b.rstrip("\n")


def moses(language: str, lower: bool, normalise: bool) -> Callable[[str], str]:
    """Return a function that makes Moses' tokens of a line, with a space between two.

    ``normalise``: normalise punctuation first, and split at hyphens.
    """
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normalizer, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)

    def tokens(line: str) -> str:
        line = normalizer.normalize(line) if normalise else line
        line = tokenizer.tokenize(line, aggressive_dash_splits=normalise, return_str=True)
        return line.lower() if lower else line

    return tokens


@dataclass(frozen=True)
class Encoder:
    """Tokenizer and subwords of a data set's text."""

    tokenizer: str  # one of MODELS
    languages: Pair  # of source and target
    lower: bool
    normalise: bool  # Moses normalises punctuation and splits at hyphens
    model: Path  # the file that learn() writes

    def moses(self, then: Callable[[str], str] = str) -> Callable[[Pairs], Pairs]:
        """Return a function that tokenises pairs; ``then`` splits tokens further."""
        source, target = (moses(language, self.lower, self.normalise) for language in self.languages)
        return lambda pairs: [(then(source(a)), then(target(b))) for a, b in pairs]

    def words(self) -> Callable[[Pairs], Pairs]:
        """Return a function that turns pairs into what subwords are learned from."""
        if self.tokenizer == "moses-bpe":
            return self.moses()
        return lambda pairs: [(a.lower(), b.lower()) for a, b in pairs] if self.lower else pairs

    def subwords(self) -> Callable[[Pairs], Pairs]:
        """Return a function that turns pairs into subwords with a space between two."""
        words = self.words()
        if self.tokenizer == "sentencepiece":
            model = sentencepiece.SentencePieceProcessor(model_file=str(self.model))

            def encode(texts: Iterable[str]) -> list[str]:
                return [" ".join(line) for line in model.encode(list(texts), out_type=str, num_threads=1)]

            return lambda pairs: list(zip(*map(encode, zip(*words(pairs), strict=True)), strict=True))
        from subword_nmt.apply_bpe import BPE

        with self.model.open(encoding="utf-8") as codes:
            bpe = BPE(codes)

        def split(tokens: str) -> str:
            if len(bpe.cache) > CACHE:
                bpe.cache.clear()
            return bpe.process_line(tokens)

        return self.moses(split)

    def pieces(self) -> set[str] | None:
        """The subwords of the model; None for moses-bpe, whose codes don't list single letters. sentencepiece gives a
        run of letters that it doesn't know as one subword, so text beyond its sample has any number of them."""
        if self.tokenizer != "sentencepiece":
            return None
        model = sentencepiece.SentencePieceProcessor(model_file=str(self.model))
        return {model.id_to_piece(i) for i in range(model.vocab_size())}

    def counts(self) -> Callable[[Pairs], Counter[str]]:
        """Return a function that counts the words of pairs."""
        words = self.words()
        return lambda pairs: Counter(word for pair in words(pairs) for text in pair for word in text.split(" ") if word)

    def learn(self, source: Path, target: Path, pairs: int, vocab_size: int) -> None:
        """Learn a joint vocabulary of ``vocab_size`` subwords (moses-bpe: merge operations) from ``pairs`` lines.

        Raises:
            RuntimeError, ValueError: the text doesn't allow a vocabulary of that size.
        """
        step = -(-2 * pairs // SAMPLE)
        drawn = islice(read(source, target), 0, None, step)
        bar = progress(drawn, total=-(-pairs // step), desc="learn from", unit="pair", unit_scale=True)
        if self.tokenizer == "sentencepiece":
            words = self.words()
            lines = (text for chunk in chunks(bar) for pair in words(chunk) for text in pair)
            with self.model.open("wb") as file:
                train_sentencepiece(
                    sentence_iterator=lines,
                    model_writer=file,  # model_prefix would be in the model, which then differs from run to run
                    vocab_size=vocab_size,
                    model_type="bpe",
                    character_coverage=1.0,
                    normalization_rule_name="identity",  # else an ellipsis becomes three stops; references have theirs
                    minloglevel=2,
                )
        else:
            from subword_nmt.learn_bpe import learn_bpe

            counts: Counter[str] = Counter()
            for found in in_order(self.counts, chunks(bar), processes_for(pairs // step)):
                counts.update(found)
            with self.model.open("w", encoding="utf-8", newline="\n") as codes:
                learn_bpe([f"{word} {count}" for word, count in counts.items()], codes, vocab_size, is_dict=True)


@dataclass(frozen=True)
class Limits:
    """Limits of a training pair, in tokens; None for none."""

    longest: int | None  # of a side, at most
    ratio: float | None  # of the longer to the shorter side, at most

    def fault(self, a: str, b: str) -> str | None:
        shorter, longer = sorted((len(a.split()), len(b.split())))
        if not shorter:
            return "empty"
        if self.longest and longer > self.longest:
            return f"longer than {self.longest} tokens"
        if self.ratio and longer > self.ratio * shorter:
            return f"length ratio over {self.ratio}"
        return None


@dataclass(frozen=True)
class Limited:
    """The work of one process on a list of pairs: subwords, and what exceeds the limits."""

    encoder: Encoder
    limits: Limits
    drop: bool = True  # whether pairs that exceed them leave, or are only counted
    select: bool = False  # the pairs themselves instead of subwords; the limits are of Moses' tokens

    def __call__(self) -> Callable[[Pairs], tuple[Pairs, Counter[str]]]:
        split = self.encoder.moses() if self.select else self.encoder.subwords()

        def work(pairs: Pairs) -> tuple[Pairs, Counter[str]]:
            tokens = list(split(pairs))
            faults = [self.limits.fault(a, b) for a, b in tokens]
            both = zip(pairs if self.select else tokens, faults, strict=True)
            return [pair for pair, fault in both if not fault or not self.drop], Counter(filter(None, faults))

        return work
