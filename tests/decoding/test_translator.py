"""The translator finds what fairseq's own search finds, whatever the batch and the threads."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from corpora import cleaning
from corpora.subwords import moses
from fairseq.sequence_generator import SequenceGenerator
from subword_nmt.learn_bpe import learn_bpe
from support.exported import LINES, exported, subword_model, torch_alone, words
from support.processes import LONG, python

from fairseq_sru import Translator
from fairseq_sru.decoding.search import Found
from fairseq_sru.decoding.text import CONTROL, MosesBPE, TextOptions, subwords
from fairseq_sru.decoding.translator import NoScores, TooLong

KINDS = [
    "sru, defaults",
    "sru, bidirectional",
    "sru, sizes differ",
    "sru, coverage",
    "sru, tied",
    "sru, convolution",
    "sru, identity",
    "sru, sru_tiny",
    "transformer_sru, ssru",
    "transformer_sru, sru",
    "transformer_sru, sizes differ",
    "transformer_sru, ssru, coverage",
]
TEXT = [*LINES, "", "window", "  ", "the file the file the file", "new " * 30]


def by_fairseq(model: Any, lines: list[list[int]], beam: int, **options: Any) -> list[list[tuple[list[int], float]]]:
    search = SequenceGenerator([model], words(), beam_size=beam, **options)
    found = []
    for line in lines:
        src = torch.tensor([line])
        sample = {"net_input": {"src_tokens": src, "src_lengths": torch.tensor([len(line)])}}
        with torch.no_grad(), torch_alone(model):
            found.append([(h["tokens"].tolist()[:-1], float(h["score"])) for h in search.generate([model], sample)[0]])
    return found


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("beam", [1, 5])
def test_hypotheses_are_those_of_fairseq(name: str, beam: int, tmp_path: Path) -> None:
    model = exported(tmp_path / "model", name)
    translator = Translator(tmp_path / "model", threads=1)
    lines = [line for line in TEXT if line.strip()]
    found = translator.hypotheses(lines, beam=beam, nbest=beam, max_length=12)
    expected = by_fairseq(model, translator.encode(lines), beam, max_len_b=12)
    for got, wanted in zip(found, expected, strict=True):
        assert [h.tokens for h in got] == [[words().symbols[n] for n in tokens] for tokens, _ in wanted]
        for (_, score), h in zip(wanted, got, strict=True):
            assert h.score == pytest.approx(score, abs=1e-4)
    assert len({h.text for got in found for h in got}) > 4
    assert translator.translate(lines, beam=beam, max_length=12) == [got[0].text for got in found]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ngrams_are_not_repeated_just_as_by_fairseq(size: int, tmp_path: Path) -> None:
    model = exported(tmp_path / "model", "sru, coverage")
    translator = Translator(tmp_path / "model")
    free = translator.hypotheses(LINES, beam=3, max_length=20)
    found = translator.hypotheses(LINES, beam=3, max_length=20, no_repeat_ngram_size=size)
    expected = by_fairseq(model, translator.encode(LINES), 3, max_len_b=20, no_repeat_ngram_size=size)
    assert [h[0].tokens for h in found] == [[words().symbols[n] for n in h[0][0]] for h in expected]
    assert [h[0].tokens for h in found] != [h[0].tokens for h in free]


@pytest.mark.parametrize("lenpen", [0, 0.6, 2])
def test_the_length_penalty_is_fairseqs(lenpen: float, tmp_path: Path) -> None:
    model = exported(tmp_path / "model", "sru, sru_tiny")
    translator = Translator(tmp_path / "model")
    found = translator.hypotheses(LINES, beam=4, max_length=12, lenpen=lenpen)
    expected = by_fairseq(model, translator.encode(LINES), 4, max_len_b=12, len_penalty=lenpen)
    for (got,), wanted in zip(found, expected, strict=True):
        assert got.tokens == [words().symbols[n] for n in wanted[0][0]]
        assert got.score == pytest.approx(wanted[0][1], abs=1e-4)
    assert [h[0].score for h in found] != [h[0].score for h in translator.hypotheses(LINES, beam=4, max_length=12)]


@pytest.mark.parametrize("int8", [False, True])
def test_a_translation_depends_on_its_line_alone(int8: bool, tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, sru_tiny", int8)
    lines = [" ".join(LINES[(i * j) % 6] for j in range(1 + i % 4)) for i in range(70)]
    alone = [h for line in lines for h in Translator(tmp_path / "model", 1).hypotheses([line], max_length=15)]
    for threads in (1, 3):
        for batch_size in (1, 7, 64):
            translator = Translator(tmp_path / "model", threads)
            assert translator.hypotheses(lines, max_length=15, batch_size=batch_size) == alone
    greedy = [Translator(tmp_path / "model", 1).translate([line], beam=1, max_length=15)[0] for line in lines]
    assert Translator(tmp_path / "model", 1).translate(lines, beam=1, max_length=15) == greedy


def test_empty_lines_stay_and_order_is_kept(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model")
    found = translator.translate(TEXT, max_length=9)
    assert [bool(text) for text in found] == [bool(line.strip()) for line in TEXT]
    assert translator.translate(TEXT[::-1], max_length=9) == found[::-1]
    assert translator.translate([]) == []
    assert [h.text for h in translator.hypotheses([""], nbest=3)[0]] == [""] * 3


def test_white_space_is_made_plain(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model")
    (expected,) = translator.encode(["close the window now"])
    for line in ("\ufeffclose the window now", "close\tthe\u00a0window  now \r", " close the\u2028window\0now\x1b"):
        assert translator.encode([line]) == [expected]


@pytest.mark.parametrize("kind", ["sentencepiece", "moses-bpe"])
def test_lower_case(kind: str) -> None:
    model = subword_model() if kind == "sentencepiece" else b"#version: 0.2\nw o\n"
    lower, as_it_is = (subwords(TextOptions(kind, "en", "de", low), model) for low in (True, False))
    assert lower.encode(["The WINDOW"]) == as_it_is.encode(["the window"]) != as_it_is.encode(["The WINDOW"])


@pytest.mark.parametrize("normalise", [True, False])
def test_moses_splits_as_prepare_does(normalise: bool) -> None:
    made = subwords(TextOptions("moses-bpe", "en", "de", False, normalise), b"#version: 0.2\nw o\n")
    line = "It’s a look-up."
    assert " ".join(made.encode([line])[0]).replace("@@ ", "") == moses("en", False, normalise)(line)


def test_bytes_of_a_subword_model_become_characters() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=280, byte_fallback=True, minloglevel=2
    )
    made = subwords(TextOptions("sentencepiece", "", ""), model.getvalue())
    (tokens,) = made.encode(["Gar\u00e7on, the window"])
    assert "<0xC3>" in tokens and made.decode(tokens) == "Gar\u00e7on, the window"
    the, window = made.encode(["the", "window"])
    assert made.decode([*the, "<0x0A>", *window]) == "the window"  # one line stays one


def test_what_moses_cannot_join_is_joined_by_spaces() -> None:
    made = subwords(TextOptions("moses-bpe", "en", "cs"), b"#version: 0.2\nw o\n")
    assert made.decode(["d@@", "'", "-", "li", "&amp;"]) == "d' - li &"


def test_a_copy_of_a_translator_is_another(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, coverage")
    translator = Translator(tmp_path / "model", threads=3)
    expected = translator.translate(LINES, max_length=9)
    for other in (copy.deepcopy(translator), pickle.loads(pickle.dumps(translator))):
        assert other.threads == 3 and other.translate(LINES, max_length=9) == expected
    with pytest.raises(TypeError, match="can't be copied: it has addresses"):
        copy.deepcopy(translator._beam_search)


@pytest.mark.parametrize(
    ("lines", "options", "error", "message"),
    [
        ("door", {}, TypeError, "lines must be a list of lines; got one str"),
        (["door", b"window"], {}, TypeError, "lines must be str; got b'window'"),
        (["window", "caf\udce9"], {}, ValueError, r"lines\[1\] is not Unicode text: '\\udce9' at 3"),
        (["door"], {"beam": 0}, ValueError, "beam .* got 0"),
        (["door"], {"batch_size": 0}, ValueError, "batch_size .* got 0"),
        (["door"], {"max_length": 0}, ValueError, "max_length .* got 0"),
        (["door"], {"nbest": 6}, ValueError, "nbest .* got 6"),
        (["door"], {"no_repeat_ngram_size": 2.5}, ValueError, "no_repeat_ngram_size .* got 2.5"),
        (["door"], {"lenpen": float("inf")}, ValueError, "lenpen .* got inf"),
    ],
)
def test_bad_arguments_are_named(
    lines: Any, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    exported(tmp_path / "model", "sru, defaults")
    with pytest.raises(error, match=f"^{message}"):
        Translator(tmp_path / "model").hypotheses(lines, **options)


FORKED = """
import multiprocessing, sys, torch
from fairseq_sru import Translator
torch.set_num_threads(2)
one = Translator(sys.argv[1])
torch.randn(1000, 1000).add_(1)
child = multiprocessing.get_context("fork").Process(target=Translator, args=[sys.argv[1]])
child.start()
child.join({limit})
print(child.exitcode)
child.kill()
"""


def test_a_forked_process_makes_one_of_its_own(tmp_path: Path) -> None:
    """Where torch's threads are its parent's; matrices are large enough for several."""
    exported(tmp_path / "model", "sru, defaults", decoder_hidden_size=512, encoder_hidden_size=256)
    assert python("-c", FORKED.format(limit=LONG), tmp_path / "model").stdout == "0\n"


def test_long_lines_are_few_in_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model", threads=1)
    sizes: list[int] = []
    lines = ["the window " * n for n in (1, 20, 3, 20, 20)]
    expected = translator.translate(lines, max_length=5)
    run = translator._beam_search._run

    def seen(*arguments: Any) -> Any:
        sizes.append(len(arguments[-1]))
        return run(*arguments)

    monkeypatch.setattr(translator._beam_search, "_run", seen)
    monkeypatch.setattr("fairseq_sru.decoding.translator.TOKENS", 2 * max(map(len, translator.encode(lines))))
    assert translator.translate(lines, max_length=5) == expected
    assert sizes == [3, 2]


def test_a_batch_that_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model")
    monkeypatch.setattr("fairseq_sru.decoding.search.library", lambda: SimpleNamespace(translate=lambda _: 0))
    remedy = "smaller batches, a smaller beam or shorter translations take less"
    with pytest.raises(MemoryError, match=rf"a beam of 5 doesn't fit: {remedy}$"):
        translator.translate(LINES)


def test_control_characters_are_those_that_prepare_knows() -> None:
    """Written twice, since prepare.py does without torch."""
    assert CONTROL.pattern == cleaning.CONTROL.pattern


def test_moses_gets_plain_text_and_forgets_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = subwords(TextOptions("moses-bpe", "en", "de"), b"#version: 0.2\nw o\nwo r\n")
    assert isinstance(made, MosesBPE)
    (expected,) = made.encode(["Hello word , x d"])
    for line in ("\ufeffHello  word , x\rd", "Hello\tword , x\0d"):
        assert made.encode([line]) == [expected]
    monkeypatch.setattr("fairseq_sru.decoding.text.REMEMBERED", 1)
    before = made.bpe.cache
    made.encode(["Hello", "word", "x"])
    assert made.bpe.cache is not before and len(made.bpe.cache) <= 2  # within a call, too
    assert len(before) == 3  # another thread may still read it


def test_subwords_of_codes_are_known() -> None:
    codes = io.StringIO()
    learn_bpe(LINES * 4, codes, 60)
    made = subwords(TextOptions("moses-bpe", "en", "de"), codes.getvalue().encode())
    found = {token for line in made.encode([*LINES, "windowopen thefile"]) for token in line}
    assert any(token.endswith("@@") for token in found) and all(map(made.makes, found))
    assert not any(map(made.makes, ("\u2581window", "window@@", "Morgen")))
    for header in (b"#version: 0.3\nw o\n", b"the 20\nwindow 7 x\n"):
        with pytest.raises(ValueError, match=r"^bpe\.codes are not codes of subword-nmt$"):
            subwords(TextOptions("moses-bpe", "en", "de"), header)


def test_what_a_search_returns_holds_no_memory_of_its_batch(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, defaults")
    search = Translator(tmp_path / "model")._beam_search
    assert all(one.totals.base is None for (one,) in search.run([[9, 2], [8, 9, 2]], 1, 1, 1, 50))


def test_lines_may_come_from_a_file_and_length_is_what_the_model_allows(tmp_path: Path) -> None:
    model = exported(tmp_path / "model", "sru, defaults", max_target_positions=9)
    translator = Translator(tmp_path / "model")
    (tmp_path / "text").write_text("\n".join(LINES), "utf-8")
    with (tmp_path / "text").open(encoding="utf-8") as file:
        found = translator.hypotheses(file, max_length=2000)
    assert found == translator.hypotheses(LINES) and max(len(one[0].tokens) for one in found) <= 8
    expected = by_fairseq(model, translator.encode(LINES), 5, max_len_b=2000)
    assert [one[0].tokens for one in found] == [[words().symbols[n] for n in one[0][0]] for one in expected]


def test_there_are_as_many_hypotheses_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model")
    one = Found([9, 2], -1.0, np.zeros(2, np.float32))
    monkeypatch.setattr(translator._beam_search, "run", lambda lines, *_: [[one] for _ in lines])
    assert [h.score for h in translator.hypotheses(["window"], nbest=3)[0]] == [-1.0, -math.inf, -math.inf]


@pytest.mark.parametrize("int8", [False, True])
def test_what_gives_no_numbers_is_told(tmp_path: Path, int8: bool) -> None:
    """After a training that diverged sums overflow; fairseq says so, too."""
    exported(tmp_path / "model", "sru, defaults", int8=int8, norm=3e38)
    with pytest.raises(NoScores, match="the model gives no finite scores") as raised:
        Translator(tmp_path / "model").translate(["", "window"])
    assert raised.value.index == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_batches_that_are_begun(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model", threads)
    search, whole = translator._beam_search, translator._beam_search._run
    found: list[Any] = []
    once = iter([signal.SIGINT])

    def interrupted(*given: Any) -> Any:
        for number in once:
            os.kill(os.getpid(), number)
        found.append(whole(*given))
        return found[-1]

    monkeypatch.setattr(search, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        translator.translate(LINES * 2000, batch_size=100_000)
    until = time.monotonic() + LONG
    while not found and time.monotonic() < until:  # of a thread whose start was interrupted nobody waits for the end
        time.sleep(0.01)
    assert found and not all(map(all, found))


def test_a_begin_of_sentence_is_no_text(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model")
    found = translator._hypothesis(Found([0, 9, 0, 2], 0.0, np.zeros(4, np.float32)))
    assert found.tokens == ["<s>", words().symbols[9], "<s>"] and "<s>" not in found.text


def test_words_that_training_did_not_have_are_unknown(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, defaults")
    translator = Translator(tmp_path / "model")
    unknown = words().unk()
    assert unknown in translator.encode(["窓"])[0]
    assert translator.translate(["窓"], max_length=5)[0]


def test_int8_is_near_float32(tmp_path: Path) -> None:
    exported(tmp_path / "float32", "sru, sru_tiny", encoder_embed_dim=64, decoder_embed_dim=64)
    exported(tmp_path / "int8", "sru, sru_tiny", int8=True, encoder_embed_dim=64, decoder_embed_dim=64)
    found = [
        Translator(tmp_path / kind).hypotheses(LINES, beam=4, nbest=4, max_length=8) for kind in ("float32", "int8")
    ]
    scores = [[h[0].score for h in one] for one in found]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    sizes = [(tmp_path / kind / "weights.safetensors").stat().st_size for kind in ("float32", "int8")]
    assert sizes[1] < 0.5 * sizes[0]


def test_lines_that_are_too_long_are_named(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, defaults", max_source_positions=20)
    with pytest.raises(TooLong, match=r"^lines\[1\]: it has [\d,]+ subwords, the model takes 19: split it$") as raised:
        Translator(tmp_path / "model").translate(["window", " ".join(LINES)])
    copied = pickle.loads(pickle.dumps(raised.value))  # as a pool of processes sends it
    assert raised.value.index == copied.index == 1 and str(copied) == str(raised.value)


def test_moses_is_not_asked_about_a_line_that_is_far_too_long(tmp_path: Path) -> None:
    """It would take minutes for a hundred thousand dots."""
    exported(tmp_path / "model", "sru, defaults", max_source_positions=20)
    translator = Translator(tmp_path / "model")
    translator.subwords = subwords(TextOptions("moses-bpe", "en", "de"), b"#version: 0.2\nw o\n")
    assert len(translator.encode(["w" * 15, "window"])[0]) == 16
    message = r"^lines\[1\]: it has 100,000 characters, the model takes 380: split it$"
    with pytest.raises(TooLong, match=message):
        translator.encode(["window", "." * 100_000])


MILLION = """  # in a process of its own: here, what earlier tests have freed would hide a leak
import random, re, sys
from pathlib import Path
from fairseq_sru import Translator

translator, rng, words = Translator(sys.argv[1], 1), random.Random(1), sys.argv[2:]
for _ in range(500):
    translator.translate([" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(2000)], 2, max_length=4)
    print(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_memory_stays_over_a_million_lines(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, coverage", int8=True)
    after = list(map(int, python("-c", MILLION, tmp_path / "model", *" ".join(LINES).split()).stdout.split()))
    assert len(after) == 500 and after[-1] - after[20] < 4_000, "a few kB a chunk would be more"


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({}, 8),
    ],
)
def test_threads_are_within_a_quota(
    files: dict[str, str], share: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions 2 and 1 of control groups have other files."""
    for name, said in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{said}\n")
    monkeypatch.setattr("fairseq_sru.decoding.translator.CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda of: set(range(8)))
    exported(tmp_path / "model", "sru, defaults")
    assert Translator(tmp_path / "model").threads == share
