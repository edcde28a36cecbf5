"""subword-nmt's merge operations, found with a queue of pairs in order of their counts.

subword-nmt itself looks through the frequent pairs for each merge operation, and now and then through all.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from common.progress import progress
from subword_nmt.learn_bpe import get_pair_statistics, replace_pair, update_pair_statistics

Symbols = tuple[str, str]
LEAST = 2  # a pair that is there once isn't merged


class Queue:
    """Pairs by their counts."""

    def __init__(self, counts: Mapping[Symbols, int]) -> None:
        self.counts = Counter(counts)
        self.pairs: dict[int, set[Symbols]] = defaultdict(set)
        for pair, count in counts.items():
            self.pairs[count].add(pair)
        self.order = [-count for count in self.pairs]
        heapq.heapify(self.order)

    def add(self, pair: Symbols, count: int) -> None:
        if (old := self.counts[pair]) in self.pairs:
            self.pairs[old].discard(pair)
        self.counts[pair] += count
        if (count := self.counts[pair]) not in self.pairs:
            heapq.heappush(self.order, -count)
        self.pairs[count].add(pair)

    def first(self) -> Symbols | None:
        """The most frequent pair that is there twice at least; of several, the last in the alphabet."""
        while self.order and (count := -self.order[0]) >= LEAST:
            if pairs := self.pairs[count]:
                return max(pairs)
            del self.pairs[count]
            heapq.heappop(self.order)
        return None


def merges(words: Mapping[str, int], size: int) -> Iterator[Symbols]:
    """At most ``size`` merge operations for words with their counts; fewer where no pair is left."""
    vocabulary = [((*word[:-1], f"{word[-1]}</w>"), count) for word, count in words.items()]
    counts, places = get_pair_statistics(vocabulary)
    queue = Queue(counts)
    del counts
    for _ in progress(range(size), desc="merge", unit="pair"):
        if (pair := queue.first()) is None:
            return
        yield pair
        changed = replace_pair(pair, vocabulary, places)
        changes: dict[Symbols, int] = defaultdict(int)
        update_pair_statistics(pair, changed, changes, places)
        changes[pair] = -queue.counts[pair]
        for other, count in changes.items():
            if count:
                queue.add(other, count)
