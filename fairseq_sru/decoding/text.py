"""Plain text to subwords and back, as recipes/prepare.py makes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

FILES = {"sentencepiece": "spm.model", "moses-bpe": "bpe.codes"}
REMEMBERED, LONG = 100_000, 40  # words that subword-nmt keeps, and letters of one that it forgets
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # Unicode's Cc without what str.split takes for space
BYTE = re.compile("<0x[0-9A-F]{2}>")


class TextOptions(NamedTuple):
    """Options by which text was prepared for training.

    ``kind``: of :data:`FILES`. ``source``, ``target``: languages, for Moses. ``lowercase``: of both. ``normalise``:
    Moses normalises punctuation and splits at hyphens.
    """

    kind: str
    source: str
    target: str
    lowercase: bool = False
    normalise: bool = True


def subwords(options: TextOptions, model: bytes) -> Subwords:
    """Return the subword model of a file's content; see :data:`FILES`.

    Raises:
        ValueError: it isn't a subword model.
    """
    return SentencePiece(options, model) if options.kind == "sentencepiece" else MosesBPE(options, model)


def plain(line: str) -> str:
    """Return a line without byte order mark and control characters, with single spaces, as recipes/prepare.py makes
    text."""
    return " ".join(CONTROL.sub(" ", line.lstrip("\ufeff")).split())


class SentencePiece:
    """Subwords by sentencepiece."""

    def __init__(self, options: TextOptions, model: bytes) -> None:
        import sentencepiece

        self.lowercase = options.lowercase
        wrong = ValueError(f"{FILES['sentencepiece']} is not a sentencepiece model")
        if not model:  # which would be loaded without a word
            raise wrong
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise wrong from None

    def makes(self, token: str) -> bool:
        """Return True if text may have this subword."""
        return self.model.id_to_piece(self.model.piece_to_id(token)) == token

    def encode(self, lines: Sequence[str]) -> list[list[str]]:
        """Return the subwords of each line."""
        lines = [plain(line).lower() if self.lowercase else plain(line) for line in lines]
        return self.model.encode(lines, out_type=str, num_threads=1)  # type: ignore[no-any-return]

    def decode(self, tokens: Sequence[str]) -> str:
        """Return the line of a translation."""
        if any(BYTE.fullmatch(token) for token in tokens):  # of a model with byte_fallback
            return " ".join(self.model.decode(list(tokens)).split())  # a byte may be the end of a line
        return "".join(tokens).replace("\u2581", " ").strip()


class MosesBPE:
    """Moses' tokens by sacremoses, split by subword-nmt."""

    def __init__(self, options: TextOptions, codes: bytes) -> None:
        import io

        from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer
        from subword_nmt.apply_bpe import BPE

        self.options = options
        self.normalizer = MosesPunctNormalizer(options.source)
        self.tokenizer = MosesTokenizer(options.source)
        lower, letters = frozenset(self.tokenizer.IsLower), frozenset(self.tokenizer.IsAlpha)
        self.tokenizer.islower = lower.issuperset  # its own make a new set of all the world's letters each time
        self.tokenizer.isanyalpha = lambda text: not letters.isdisjoint(text)
        self.detokenizer = MosesDetokenizer(options.target)
        try:
            self.bpe = BPE(io.StringIO(codes.decode()))
            self.bpe.process_line("ab")  # which fails at codes of another version
        except (ValueError, SystemExit, IndexError, NotImplementedError):
            raise ValueError(f"{FILES['moses-bpe']} are not codes of subword-nmt") from None

    def encode(self, lines: Sequence[str]) -> list[list[str]]:
        """Return the subwords of each line."""
        return [self._tokens(plain(line)).split() for line in lines]

    def makes(self, token: str) -> bool:
        """Return True if text may have this subword."""
        part = token.removesuffix("@@")
        last = part if part != token else f"{part}</w>"
        return len(part) == 1 or last in self.bpe.bpe_codes_reverse

    def _tokens(self, line: str) -> str:
        if len(self.bpe.cache) > REMEMBERED:
            self.bpe.cache = {}  # another thread may read the old one
        line = self.normalizer.normalize(line) if self.options.normalise else line
        line = self.tokenizer.tokenize(line, aggressive_dash_splits=self.options.normalise, return_str=True)
        line = line.lower() if self.options.lowercase else line
        split: str = self.bpe.process_line(line)
        for word in line.split():
            if len(word) > LONG:  # as in text without spaces, it never comes again
                self.bpe.cache.pop(word, None)
        return split

    def decode(self, tokens: Sequence[str]) -> str:
        """Return the line of a translation."""
        words = (" ".join(tokens) + " ").replace("@@ ", "").split()
        try:
            return self.detokenizer.detokenize(words)  # type: ignore[no-any-return]
        except TypeError:  # of sacremoses, at some Czech words
            return " ".join(self.detokenizer.unescape_xml(word) for word in words)


Subwords = SentencePiece | MosesBPE
