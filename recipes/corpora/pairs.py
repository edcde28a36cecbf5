"""Sentence pairs of documents in two languages: segments, which of them are fit for training, near-copies, leakage."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU

HOLE = "\ue000"  # stands in a text for code, an image, or a reading that depends on the reader's machine
MIN_LETTERS = 0.65  # of the characters that are not spaces
NEAR_COPY = 0.5  # Jaccard of word trigrams, on either side
SEGMENT_RATIO = 2.0  # of the lengths of two sentences in characters, up to which a paragraph is cut between them

SENTENCE_END = re.compile(r"[.!?][\"“”»)]*$")
SENTENCE_START = re.compile(r"[\"„“«(]*[A-ZÄÖÜ]")
NOT_AN_END = re.compile(
    r"\W*([^\W\d_]|\d+|([^\W\d_]\.)+[^\W\d_]|abb|allg|approx|bspw|bzw|ca|dr|engl|etc|evtl|exkl|fig|ggf|incl|inkl|max|min"
    r"|mio|mr|mrs|no|nr|resp|sog|st|tel|usw|vgl|vs)\.\W*$",
    re.IGNORECASE,
)


class Pair(NamedTuple):
    """A paragraph or sentence in both languages, the document that it is from, and that document's domain."""

    page: str
    en: str
    de: str
    domain: str = ""


class Rules(NamedTuple):
    """Which pairs are fit for training."""

    hole: str  # what HOLE stands for, as the manifest has it
    min_words: tuple[int, int]  # of English and German; words without a letter or digit don't count
    max_words: int  # of each side
    plain: re.Pattern[str]  # what all of both sides may consist of
    foreign: re.Pattern[str]  # what neither side may have
    markup: dict[str, re.Pattern[str]]  # what neither side may have, by reason
    max_ratio: float  # of the lengths of the two sides in characters
    max_word_ratio: float  # of the lengths in words
    max_shared: float  # of the shorter side's words that the other has too; with more, it was not translated

    def described(self) -> dict[str, Any]:
        """Return what the manifest has of these."""
        lengths = {language: [n, self.max_words] for language, n in zip(("en", "de"), self.min_words, strict=True)}
        ratios = {"max_length_ratio": self.max_ratio, "max_shared_words": self.max_shared}
        return {"words": lengths, "min_letters": MIN_LETTERS, **ratios, "near_copy": NEAR_COPY}


def clean(text: str) -> str:
    """NFC, single plain spaces, no invisible characters, no space before closing punctuation."""
    text = re.sub("[\u00ad\u200b-\u200f\u2060\ufeff]", "", unicodedata.normalize("NFC", text)).replace("\u2011", "-")
    return re.sub(r" (?=[,.;:!?)](?:\s|$))", "", " ".join(text.split())).replace("( ", "(")


def words(text: str) -> tuple[str, ...]:
    """The text as it is compared: its words without case, punctuation and digits."""
    return tuple(re.findall(r"[^\W\d_]+", text.casefold()))


def sentences(text: str) -> list[str]:
    """Splits where a sentence surely ends: never after an abbreviation, an initial or a number."""
    out: list[list[str]] = [[]]
    tokens = text.split()
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        out[-1].append(token)
        if SENTENCE_END.search(token) and SENTENCE_START.match(after) and not NOT_AN_END.match(token):
            out.append([])
    return [" ".join(s) for s in out]


def ratio(a: int, b: int) -> float:
    """Ratio of the longer to the shorter."""
    return max(a, b) / max(min(a, b), 1)


def segments(en: str, de: str) -> list[tuple[str, str]]:
    """Sentence pairs of a paragraph where both sides have as many, each alike in length; else the paragraph itself."""
    en_sentences, de_sentences = sentences(en), sentences(de)
    pairs = list(zip(en_sentences, de_sentences, strict=False))
    alike = all(ratio(len(a), len(b)) <= SEGMENT_RATIO for a, b in pairs)
    return pairs if alike and len(en_sentences) == len(de_sentences) else [(en, de)]


def reject_reason(en: str, de: str, rules: Rules) -> str | None:
    """Why a pair is not fit for training, or None."""
    lengths = [sum(any(map(str.isalnum, word)) for word in text.split()) for text in (en, de)]
    en_words, de_words = words(en), words(de)
    if HOLE in en + de:
        return rules.hole
    short = any(n < least for n, least in zip(lengths, rules.min_words, strict=True))
    if short or max(lengths) > rules.max_words or not en_words or not de_words:
        return "length"
    if not rules.plain.fullmatch(en + de) or rules.foreign.search(en + de):
        return "character"
    for reason, pattern in rules.markup.items():
        if pattern.search(en) or pattern.search(de):
            return reason
    if any(sum(map(str.isalpha, text)) < MIN_LETTERS * len(text.replace(" ", "")) for text in (en, de)):
        return "few letters"
    if ratio(*lengths) > rules.max_word_ratio or ratio(len(en), len(de)) > rules.max_ratio:
        return "length ratio"
    if any(text.count("(") != text.count(")") or text.count('"') % 2 for text in (en, de)):
        return "bracket or quote left open"
    if sorted(re.findall(r"\d+", en)) != sorted(re.findall(r"\d+", de)):
        return "numbers differ"
    if len({*en_words} & {*de_words}) > rules.max_shared * min(len({*en_words}), len({*de_words})):
        return "not translated"
    return None


def fraction(text: str) -> float:
    """A number in [0, 1) that depends only on the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def part_of(page: str, test: float, valid: float) -> str:
    """The split that a document belongs to, whatever other documents there are; test and valid have those shares."""
    at = fraction(page)
    return "test" if at < test else "valid" if at < test + valid else "train"


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """Word trigrams; a text of one or two words is one item of its own."""
    w = words(text)
    return frozenset(w[i : i + 3] for i in range(max(len(w) - 2, 1)))


class NearCopies:
    """``text in NearCopies(texts)``: does its Jaccard with one of them reach NEAR_COPY? Equal wordings have 1."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.grams = [trigrams(t) for t in texts]
        self.having: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, grams in enumerate(self.grams):
            for gram in grams:
                self.having[gram].append(i)

    def __contains__(self, text: str) -> bool:
        grams = trigrams(text)
        common = Counter(i for gram in grams for i in self.having.get(gram, ()))
        return any(n >= NEAR_COPY * (len(grams) + len(self.grams[i]) - n) for i, n in common.items())


def without_copies(pairs: list[Pair], held_out: list[Pair]) -> list[Pair]:
    """The pairs that are no near-copy of a held-out pair on either side."""
    en, de = NearCopies(p.en for p in held_out), NearCopies(p.de for p in held_out)
    return [p for p in pairs if p.en not in en and p.de not in de]


def nearest(texts: list[str], queries: list[str]) -> list[int]:
    """For each query the text with the largest cosine of idf-weighted words; the first of equals."""
    bags = [sorted({*words(t)}) for t in texts]
    having: dict[str, list[int]] = {}
    for i, bag in enumerate(bags):
        for word in bag:
            having.setdefault(word, []).append(i)
    weight = {word: np.log(len(bags) / len(at) + 1) ** 2 for word, at in having.items()}
    norms = np.sqrt([sum(weight[word] for word in bag) or 1.0 for bag in bags])
    index = {word: np.array(at) for word, at in having.items()}
    best = []
    for query in queries:
        scores = np.zeros(len(bags))
        for word in sorted({*words(query)} & index.keys()):
            scores[index[word]] += weight[word]
        best.append(int(np.argmax(scores / norms)))
    return best


def leakage(parts: dict[str, list[Pair]]) -> dict[str, float | str]:
    """BLEU on test of two ways to copy."""
    bleu, train, test = BLEU(), parts["train"], parts["test"]
    near = [train[i].de for i in nearest([p.en for p in train], [p.en for p in test])]
    outputs = {"the source": [p.en for p in test], "the target of the nearest training source": near}
    scores = {f"copy of {what}": bleu.corpus_score(out, [[p.de for p in test]]).score for what, out in outputs.items()}
    return {**{what: round(score, 2) for what, score in scores.items()}, "signature": str(bleu.get_signature())}
