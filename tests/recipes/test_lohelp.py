"""corpora/lohelp.py and pairs.py: alignment, filter, split, near-copies on made-up pages; and the text that ships."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from corpora import debian, lohelp, pairs
from corpora.debian_readers import HELP, paragraphs
from support.debian_packages import lines, pack
from support.pages import contents, made_up, near_copies, page, plain_words

RECIPES = ROOT / "recipes"
SHIPPED = RECIPES / "data" / "lohelp-en-de"
PARTS = ("train", "valid", "test")
COPYRIGHT = "Format: 1.0\n\nFiles: *\nCopyright: 2000 Somebody\nLicense: MPL-2.0\n\nFiles: debian/*\nLicense: GPL-2\n"
Pair = pairs.Pair


# --- made-up packages ------------------------------------------------------------------------------------------------


def pack_pages(folder: Path, side: str, pages: dict[str, str], version: str = "4:25.2.3-2") -> None:
    """A package in the layout of the help packages."""
    package, language = HELP[side], {"en": "en-US"}.get(side, side)
    files = {f"libreoffice/help/{language}/text/{path}": text for path, text in pages.items()}
    pack(folder, package, {**files, f"doc/{package}/copyright": COPYRIGHT}, version)


@pytest.fixture
def debs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not installed: no .deb can be made or read here")
    licence = tmp_path / "MPL-2.0"
    licence.write_text("Mozilla Public License Version 2.0\n")
    monkeypatch.setattr(lohelp, "MPL", licence)
    domain = lohelp.LOHELP.domains["lohelp"]._replace(held_out=(0.2, 0.2))
    small = lohelp.LOHELP._replace(domains={"lohelp": domain}, sizes={"test": 12, "valid": 8, "train": 30})
    monkeypatch.setattr(lohelp, "LOHELP", small)
    folder = tmp_path / "debs"
    folder.mkdir()
    en, de = made_up()
    pack_pages(folder, "en", en)
    pack_pages(folder, "de", de)
    return folder


# --- reading pages --------------------------------------------------------------------------------------------------


def test_paragraphs_come_by_id_without_markup_and_without_the_frame_of_the_page():
    html = page(
        '<h1 id="hd_1">\n<a id="x"></a>Draw &amp; <span class="emph">paint</span>\n</h1>'
        '<p id="par_2" class="paragraph">One&nbsp;two<a href="y"> three</a> .</p>'
        "<p>no id</p><p id='par_3'>twice</p><p id='par_3'>twice</p><p id='par_4'> </p>"
    )
    assert paragraphs(html) == {"hd_1": "Draw & paint", "par_2": "One two three."}


@pytest.mark.parametrize(
    "inner",
    [
        '<span class="literal">SUM(A1)</span>',
        '<span class="input" data-x="">7</span>',
        "<code>x</code>",
        '<img src="a.svg" alt="Icon">',
        "one<br>two",
        '<span class="switchinline"><span hidden="true" class="MAC">Cmd</span><span hidden="true">Ctrl</span></span>',
    ],
)
def test_code_images_and_choices_leave_a_hole_that_the_filter_sees(inner: str):
    text = paragraphs(page(f'<p id="a">Press the {inner} key now. Then all is well.</p>'))["a"]
    assert "Cmd" not in text and "SUM" not in text
    first, second = pairs.sentences(text)
    assert pairs.reject_reason(first, "Drücken Sie jetzt die Taste.", lohelp.LOHELP.rules) == "code or image"
    assert second == "Then all is well."


def test_key_names_are_text_and_a_paragraph_of_code_is_a_hole():
    html = page('<p id="a">Press <span class="keycode">Enter</span> now</p><p id="b" class="bascode">Print it</p>')
    assert paragraphs(html) == {"a": "Press Enter now", "b": pairs.HOLE}


def test_clean_composes_and_straightens():
    assert pairs.clean("Gro\u0308\u00adße\u00a0 und\u2009\u200bWeite\u2011x ( y ) .\n") == "Größe und Weite-x (y)."


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Open it. Close it.", 2),
        ("Ist das so? Ja! Öffnen Sie es.", 3),
        ("Use e.g. Writer or z. B. Calc.", 1),
        ("Am 1. Januar beginnt Nr. Zwei.", 1),
        ("See etc. Then go.", 1),
        ("Call it “this.” Then go.", 2),
        ("Version 2.5 is here.", 1),
        ("ends here. but not there", 1),
    ],
)
def test_sentences(text: str, count: int):
    parts = pairs.sentences(text)
    assert len(parts) == count
    assert " ".join(parts) == text


def test_segments_split_only_where_both_sides_match():
    assert pairs.segments("Open it. Close it.", "Öffne es. Schließ es.") == [
        ("Open it.", "Öffne es."),
        ("Close it.", "Schließ es."),
    ]
    unequal = ("Open it. Close it.", "Öffne es und schließe es.")
    assert pairs.segments(*unequal) == [unequal]
    crossed = ("Go. Then close the large window there.", "Gehe dann zum großen Fenster dort. Zu.")
    assert pairs.segments(*crossed) == [crossed]


# --- the filter -----------------------------------------------------------------------------------------------------

GOOD = ("Opens the new window of the program.", "Öffnet das neue Fenster des Programms.")


@pytest.mark.parametrize(
    ("en", "de", "reason"),
    [
        (*GOOD, None),
        ("Press Ctrl+S twice (100%).", "Drücken Sie zweimal „Strg+S“ (100 %).", None),
        ("Opens the window.", GOOD[1], "length"),
        ("word " * 21, "Wort " * 20, "length"),
        ("word " * 19 + "end", "Wort " * 19 + "Ende", None),
        ("Opens the new \x07window now.", GOOD[1], "character"),
        ("Opens the new\twindow now.", GOOD[1], "character"),
        ("Opens the $[officename] window now.", GOOD[1], "character"),
        ("Opens the <b> window now.", GOOD[1], "character"),
        ("Opens the window \ufffd right now.", GOOD[1], "character"),
        ("Finds the word كتاب in this text.", GOOD[1], "character"),
        ("Opens %PRODUCTNAME with a new window.", GOOD[1], "address, placeholder or name in code"),
        ("Look at www.example.org for more windows.", GOOD[1], "address, placeholder or name in code"),
        ("Look at https://example for more windows.", GOOD[1], "address, placeholder or name in code"),
        ("Calls the method newWindow of this.", GOOD[1], "address, placeholder or name in code"),
        ("Calls the function Open() of this.", GOOD[1], "address, placeholder or name in code"),
        ("Choose Insert - Window - New now.", GOOD[1], "menu path"),
        (GOOD[0], "Wählen Sie jetzt Einfügen – Fenster.", "menu path"),
        ("12345678 12345678 and 12345678 two", "12345678 12345678 und 12345678 zwei", "few letters"),
        ("Opens the new one.", "Öffnet das neue Fenster des Programms in dem Bereich.", "length ratio"),
        ("Opens the new (old window of it.", GOOD[1], "bracket or quote left open"),
        ('Opens the new "old window of it.', GOOD[1], "bracket or quote left open"),
        ("Opens the 2 new windows of it.", "Öffnet die 3 neuen Fenster davon.", "numbers differ"),
        (GOOD[0], GOOD[0], "not translated"),
        (GOOD[0], "opens the NEW window of the Programm!", "not translated"),
    ],
)
def test_fault(en: str, de: str, reason: str | None):
    assert pairs.reject_reason(en.strip(), de.strip(), lohelp.LOHELP.rules) == reason


def test_select_keeps_the_first_of_each_source():
    en, de = GOOD
    every = [
        Pair("a", en, de, "lohelp"),
        Pair("b", en.upper().replace(".", "!"), de, "lohelp"),
        Pair("c", en, "Ein neues Fenster des Programms öffnet sich.", "lohelp"),
        Pair("d", "too short", "zu kurz", "lohelp"),
        Pair("e", "Closes the new window of the program.", "Schließt das neue Fenster des Programms.", "lohelp"),
    ]
    counts: Counter[str] = Counter()
    assert debian.select(lohelp.LOHELP, every, {"lohelp": counts}) == [every[0], every[4]]
    assert counts == {"segments": 5, "dropped: same source": 2, "dropped: length": 1}


# --- the split ------------------------------------------------------------------------------------------------------


def test_words_ignore_case_punctuation_and_digits():
    assert pairs.words("Die STRASSE, 2. Stück-Zahl!") == pairs.words("die Straße 37 stück zahl") != pairs.words("die")


def test_part_of_is_fixed_by_the_path():
    """The parts of pages must never move between versions: these values are SHA-256 arithmetic."""
    assert pairs.fraction("a") == int(hashlib.sha256(b"a").hexdigest()[:12], 16) / 16**12
    seen = Counter(lohelp.LOHELP.part_of(Pair(f"shared/{i}.html", "", "", "lohelp")) for i in range(5000))
    assert abs(seen["test"] / 5000 - 0.06) < 0.02 and abs(seen["valid"] / 5000 - 0.04) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_near_copies_are_those_of_the_brute_force(seed: int):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abc", k=rng.randint(1, 8))) for _ in range(300)]
    held_out = [" ".join(rng.choices("abcd", k=rng.randint(1, 8))) for _ in range(40)]
    index = pairs.NearCopies(held_out)
    found = [i for i, text in enumerate(texts) if text in index]
    assert found == near_copies(texts, held_out)
    assert 0 < len(found) < len(texts)


def test_a_jaccard_of_exactly_one_half_is_a_near_copy():
    assert "a b c d" in pairs.NearCopies(["a b c"])  # 1 of 2
    assert "a b c d e" not in pairs.NearCopies(["a b c"])  # 1 of 3
    assert "A, b 7" in pairs.NearCopies(["a b"])
    assert "a b" not in pairs.NearCopies(["a b c"])


def test_either_side_counts():
    held = [Pair("t", "one two three four", "eins zwei drei vier")]
    same_source = Pair("a", "one two three four", "ganz etwas anderes hier")
    same_target = Pair("a", "something else is here", "eins zwei drei vier")
    other = Pair("a", "something else is here", "ganz etwas anderes hier")
    assert pairs.without_copies([same_source, same_target, other], held) == [other]


def test_split_holds_out_whole_pages_and_no_near_copy_remains(debs: Path):
    recipe = lohelp.LOHELP
    counts: dict[str, Counter[str]] = {"lohelp": Counter()}
    files = debian.fetch(recipe.files, debs, None)
    every = debian.select(recipe, debian.read(recipe, files, counts), counts)
    parts = debian.split(recipe, every, counts)
    for part, chosen in parts.items():
        assert len(chosen) == recipe.sizes[part]
        assert {recipe.part_of(pair) for pair in chosen} == {part}
        assert chosen == [pair for pair in every if pair in set(chosen)], "document order"
    for part, held in (("valid", ["test"]), ("train", ["test", "valid"])):
        there = [pair for pair in every if recipe.part_of(pair) == part]
        bad = set()
        for side in ("en", "de"):
            held_out = [getattr(pair, side) for h in held for pair in parts[h]]
            assert not near_copies([getattr(pair, side) for pair in parts[part]], held_out)
            bad |= set(near_copies([getattr(pair, side) for pair in there], held_out))
        assert bad, "the made-up pages must have near-copies, or nothing is tested"
    reversed_parts = debian.split(recipe, every[::-1], counts)
    assert reversed_parts == {part: chosen[::-1] for part, chosen in parts.items()}, "the draw is by hash"


# --- the leakage baselines ------------------------------------------------------------------------------------------


def cosines(texts: list[str], query: str) -> list[float]:
    """Those of idf-weighted words, by their definition."""
    bags = [{*plain_words(text)} for text in texts]
    asked = {*plain_words(query)}
    weight = {word: math.log(len(bags) / sum(word in bag for bag in bags) + 1) for bag in bags for word in bag}

    def cosine(bag: set[str]) -> float:
        norm = math.sqrt(sum(weight[word] ** 2 for word in bag))
        return sum(weight[word] ** 2 for word in bag & asked) / (norm or 1.0)

    return list(map(cosine, bags))


def test_nearest_is_the_largest_cosine():
    rng = random.Random(7)
    texts = [" ".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 9))) for _ in range(150)]
    queries = [" ".join(rng.choices("abcdefghijklmnopqr", k=rng.randint(1, 6))) for _ in range(60)] + ["unknown", ""]
    found = pairs.nearest(texts, queries)
    assert len(set(found)) > 20
    for chosen, query in zip(found, queries, strict=True):  # rounding decides ties
        every = cosines(texts, query)
        assert every[chosen] == pytest.approx(max(every), rel=1e-9)


def test_leakage_is_100_where_train_has_the_test():
    test = [
        Pair("t", "alpha beta gamma delta", "eins zwei drei vier"),
        Pair("t", "some other words here", "ganz was anderes da"),
    ]
    scores = pairs.leakage({"train": test[::-1], "test": test})
    assert scores["copy of the target of the nearest training source"] == 100
    assert scores["copy of the source"] < 20


# --- the whole script -----------------------------------------------------------------------------------------------


def test_script_writes_the_same_bytes_twice_into_a_new_or_empty_folder(debs: Path, tmp_path: Path):
    one, two = tmp_path / "deep" / "one", tmp_path / "two"
    two.mkdir()
    for out in (one, two):
        assert lohelp.main(["--out", str(out), "--deb-dir", str(debs)]) == 0
    assert contents(one) == contents(two)
    assert [path.name for path in one.parent.iterdir()] == ["one"], "nothing is left beside the data"
    check_folder(one)
    assert json.loads((one / "manifest.json").read_text())["lines"] == lohelp.LOHELP.sizes
    notice = (one / "NOTICE").read_text()
    assert "Copyright: 2000 Somebody" in notice and "GPL" not in notice and "LibreOffice 25.2.3\n" in notice
    assert "footer" not in (one / "train.en").read_text().lower()
    (one / "mine").touch()
    made = contents(one)
    assert lohelp.main(["--out", str(one), "--deb-dir", str(debs)]) == 2
    assert contents(one) == made


@pytest.mark.parametrize("fault", ["none", "damaged", "cut off", "other version", "full disk"])
def test_what_cannot_be_made_leaves_nothing(
    fault: str, debs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (german,) = debs.glob("libreoffice-help-de_*")
    named = "libreoffice-help-de"
    whole = german.read_bytes()
    german.unlink()
    if fault == "none":
        monkeypatch.setenv("PATH", "/nowhere")
    elif fault == "other version":
        pack_pages(debs, "de", made_up()[1], version="4:24.8.1-1")
    else:
        german.write_bytes({"damaged": b"not a package", "cut off": whole[:-400]}.get(fault, whole))
    if fault == "full disk":
        monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
        named = "no space left"
    assert lohelp.main(["--out", str(tmp_path / "out"), "--deb-dir", str(debs)]) == 2
    error = capsys.readouterr().err
    assert "lohelp: error: " in error and named in error
    assert not [path for path in tmp_path.iterdir() if path.name not in ("MPL-2.0", "debs", "out.packages")]


# --- the text that ships --------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> dict[str, list[str]]:
    """Files, checksums, counts, and no leak from the held-out parts, all by brute force; returns the lines."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    texts = {f"{part}.{lang}": lines(folder / f"{part}.{lang}") for part in PARTS for lang in ("en", "de")}
    assert set(manifest["files"]) == {*texts, "NOTICE", "LICENSE"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    for part in PARTS:
        assert len(texts[f"{part}.en"]) == len(texts[f"{part}.de"]) > 0
    for lang in ("en", "de"):
        assert not near_copies(texts[f"train.{lang}"], texts[f"test.{lang}"] + texts[f"valid.{lang}"])
        assert not near_copies(texts[f"valid.{lang}"], texts[f"test.{lang}"])
        wording = {part: {tuple(plain_words(t)) for t in texts[f"{part}.{lang}"]} for part in PARTS}
        assert not wording["train"] & (wording["valid"] | wording["test"]) and not wording["valid"] & wording["test"]
    sources = [tuple(plain_words(t)) for part in PARTS for t in texts[f"{part}.en"]]
    assert len(sources) == len(set(sources))
    return texts


@pytest.mark.slow
def test_shipped_text():
    texts = check_folder(SHIPPED)
    assert [len(texts[f"{part}.en"]) for part in PARTS] == [10_000, 500, 1_000]
    for part in PARTS:
        for en, de in zip(texts[f"{part}.en"], texts[f"{part}.de"], strict=True):
            assert pairs.reject_reason(en, de, lohelp.LOHELP.rules) is None, (en, de)
            assert pairs.clean(en) == en and pairs.clean(de) == de
            assert not re.search(r"[<>\x00-\x1f\x7f\u00a0\u00ad]|&\w+;|https?:", en + de), (en, de)


def test_shipped_text_keeps_the_leakage_baselines_low():
    scores = json.loads((SHIPPED / "manifest.json").read_text())["test_bleu"]
    assert scores["copy of the source"] < 5
    assert scores["copy of the target of the nearest training source"] < 10


def test_shipped_text_has_its_licence():
    assert "Mozilla Public License Version 2.0" in (SHIPPED / "LICENSE").read_text(encoding="utf-8")
    notice = (SHIPPED / "NOTICE").read_text(encoding="utf-8")
    for needed in ("LibreOffice contributors", "Oracle", "was modified", "apt-get source", "MPL-2.0"):
        assert needed in notice
