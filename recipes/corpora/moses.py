"""Moses' tokens by sacremoses for text of any size: pieces of lines are done once, and then known.

A line is cut at spaces between two letters or digits, with at most one of ``,;:!?)`` before the space and one ``(``
after it. No rule of sacremoses looks over such a space, so the tokens of the pieces are those of the line, and most
pieces are single words.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sacremoses import MosesPunctNormalizer, MosesTokenizer

CACHE = 500_000  # pieces that are remembered, in about 100 MB
SHORT = 40  # characters of one at most: text without spaces has pieces of whole lines, which never come again
LETTERS = MosesTokenizer.IsAlnum  # and digits
CUT = re.compile(rf" (?:(?<=[{LETTERS}] )|(?<=[{LETTERS}][,;:!?)] ))(?=\(?[{LETTERS}])")
WORD = re.compile(f"[{LETTERS}]+")  # is a token
NORMAL = re.compile(f"[{LETTERS},.;:!?/-]+(?: [{LETTERS}][{LETTERS},.;:!?/-]*)*")  # no rule for punctuation applies


class Tokenizer(MosesTokenizer):
    """sacremoses' tokenizer, without a new set of all the world's letters for each full stop."""

    LOWER = frozenset(MosesTokenizer.IsLower)

    def __init__(self, lang: str) -> None:
        super().__init__(lang)
        self.ALPHA = frozenset(self.IsAlpha)  # of Chinese, Japanese and Korean it has more letters

    def islower(self, text: str) -> bool:
        return self.LOWER.issuperset(text)

    def isanyalpha(self, text: str) -> bool:
        return not self.ALPHA.isdisjoint(text)


def tokens(language: str, normalise: bool, then: Callable[[str], str]) -> Callable[[str], str]:
    """Makes a function that turns a line of plain text into tokens with a space between two.

    ``normalise`` normalises punctuation first, and splits at hyphens; ``then`` is done to tokens one by one.
    """
    tokenizer, normalizer = Tokenizer(language), MosesPunctNormalizer(language)
    normalizer.substitutions = [(re.compile(rule), to) for rule, to in normalizer.substitutions]

    def moses(text: str) -> str:
        if WORD.fullmatch(text) and "DOTMULTI" not in text:  # which stands for full stops in sacremoses
            return text
        if normalise and not NORMAL.fullmatch(text):
            text = normalizer.normalize(text)
        return tokenizer.tokenize(text, aggressive_dash_splits=normalise, return_str=True)

    known: dict[str, str] = {}

    def line(text: str) -> str:
        made = []
        for piece in CUT.split(text):
            if (done := known.get(piece)) is None:
                if len(known) >= CACHE:
                    known.clear()
                done = then(moses(piece))
                if len(piece) < SHORT:
                    known[piece] = done
            made.append(done)
        return " ".join(made)

    return line
