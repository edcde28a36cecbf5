"""Scores of translations: sacreBLEU's metrics and paired bootstrap, and how often a translation gets stuck.

Texts are lists of sentences, detokenised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest, Result
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from .report import METRICS

WITHOUT_SPACES = ("zh", "ja", "ko")  # whose words sacreBLEU finds
BY_CHARACTER = ("th", "lo", "km", "my", "bo")  # without spaces, too: Thai, Lao, Khmer, Burmese, Tibetan
OF_ISO_639_3 = {  # the codes of these in sets such as FLORES
    **dict.fromkeys(("zho", "cmn", "yue", "wuu", "lzh"), "zh"),
    **{"jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "mya": "my", "bod": "bo"},
}
SPLIT = "BLEU, compounds split"
LONGEST = 4  # words of a repeated n-gram


def language(code: str) -> str:
    """sacreBLEU's code of a language: ``zh`` of ``zh_CN`` and ``zho_Hans``."""
    base = code.partition("_")[0].lower()
    return OF_ISO_639_3.get(base, base)


class CharacterTER(TER):
    """TER of characters, which sacreBLEU hasn't; ``tok:char`` in its signature."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer_signature = "char"

    def _preprocess_segment(self, sent: str) -> str:
        return super()._preprocess_segment(" ".join("".join(sent.split())))


def _bleu(target: str) -> BLEU:
    code = language(target)
    return BLEU(tokenize="char") if code in BY_CHARACTER else BLEU(trg_lang=code)


def metrics(target: str) -> dict[str, Any]:
    """sacreBLEU's metrics for translations into a language.

    Raises:
        RuntimeError: sacreBLEU lacks what finds that language's words; it says what to install.
    """
    code = language(target)
    asian = code in WITHOUT_SPACES
    ter = CharacterTER() if code in BY_CHARACTER else TER(normalized=asian, asian_support=asian)
    return {"BLEU": _bleu(target), "chrF2": CHRF(), "TER": ter}


def compare(
    references: Sequence[str], outputs: Mapping[str, Sequence[str]], baseline: str, target: str
) -> dict[str, Any]:
    """Score systems and test whether they differ from the baseline.

    Args:
        references: one a sentence.
        outputs: each system's translations.
        baseline: the system that the others are compared with; where it has no outputs, nothing is compared.
        target: the language.

    Returns:
        ``{"signatures": {metric: signature}, "systems": {name: {metric: {"score", "mean", "ci", "p_value"}}}}``: score
        of the whole; mean over 1000 bootstrap samples, and half of the width of its 95% interval; p of the
        paired bootstrap, of one tail, None for the baseline.
    """
    names = sorted(outputs, key=lambda name: name != baseline)
    systems: list[tuple[str, Sequence[str]]] = [(name, list(outputs[name])) for name in names]
    test = PairedTest(systems, metrics(target), references=[list(references)], test_type="bs")
    signatures, results = test()
    scores: dict[str, dict[str, Any]] = {name: {} for name in names}
    for metric in METRICS:
        for name, result in zip(names, cast(list[Result], results[metric]), strict=True):
            p_value = None if result.p_value is None or baseline not in outputs else float(result.p_value)
            if p_value is not None and result.score == cast(Result, results[metric][0]).score:  # the baseline's
                p_value = 1.0  # sacreBLEU's has no ties: 1 / 1001
            values = {key: float(getattr(result, key)) for key in ("score", "mean", "ci")}
            scores[name][metric] = {**values, "p_value": p_value}
    return {"signatures": {metric: str(signatures[metric]) for metric in METRICS}, "systems": scores}


def bleu(references: Sequence[str], output: Sequence[str], target: str) -> float:
    """BLEU as the ``sacrebleu`` command gives it for that language."""
    return float(_bleu(target).corpus_score(list(output), [list(references)]).score)


def bleu_by_domain(
    references: Sequence[str], output: Sequence[str], domains: Sequence[str], target: str
) -> dict[str, float]:
    """BLEU of the sentences of each domain; ``domains`` has a label for each sentence."""
    scores = {}
    for domain in sorted(set(domains)):
        of_it = [i for i, label in enumerate(domains) if label == domain]
        scores[domain] = bleu([references[i] for i in of_it], [output[i] for i in of_it], target)
    return scores


def bleu_compounds_split(references: Sequence[str], output: Sequence[str]) -> float:
    """BLEU over tokens (sacreBLEU's 13a) with hyphenated words in their parts, as get_ende_bleu.sh has it: not
    comparable with BLEU."""
    tokenise = Tokenizer13a()
    split = lambda line: re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", tokenise(line))  # noqa: E731
    score = BLEU(tokenize="none", force=True).corpus_score(list(map(split, output)), [list(map(split, references))])
    return float(score.score)


def repeated(sentence: str) -> int:
    """Words of the shortest n-gram, n up to 4, that the sentence has three times in a row; 0 if there is none."""
    text = "".join(f"{word} " for word in sentence.split())
    return next((n for n in range(1, LONGEST + 1) if re.search(rf"(?<!\S)((?:\S+ ){{{n}}})\1\1", text)), 0)


def repetition(sentences: Sequence[str], target: str) -> dict[str, float]:
    """Share of the sentences that have an n-gram three times in a row: by n, and any. Of words; in Chinese,
    Japanese and BY_CHARACTER of characters, numbers and words in ASCII."""
    if language(target) in ("zh", "ja", *BY_CHARACTER):
        sentences = [" ".join(re.findall(r"[!-~]+|\S", sentence)) for sentence in sentences]
    lengths = [repeated(sentence) for sentence in sentences]
    shares = {str(n): lengths.count(n) / len(lengths) for n in range(1, LONGEST + 1)}
    return {**shares, "any": 1 - lengths.count(0) / len(lengths)}
