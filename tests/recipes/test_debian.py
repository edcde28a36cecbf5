"""recipes/debian.py and its readers, on small packages of the real layout that the tests make."""

from __future__ import annotations

import gettext
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from common.errors import RecipeError
from conftest import ROOT
from corpora import debian
from corpora import debian_readers as readers
from corpora.pairs import HOLE, Pair, reject_reason
from support.debian_packages import HELD_OUT, Files, catalog_debs, lines, mallard, man, mo, pack, stanza
from support.pages import contents, near_copies, page

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed: no .deb can be made")


# --- packages ---------------------------------------------------------------------------------------------------------


def read(reader: Callable, files: dict[str, Path]) -> tuple[list[tuple[str, str, str]], Counter[str]]:
    counts: Counter[str] = Counter()
    return [tuple(pair[:3]) for pair in reader(files, counts)], counts


# --- the readers ------------------------------------------------------------------------------------------------------


def test_lohelp_pairs_by_page_and_id(tmp_path: Path):
    path = "libreoffice/help/{}/text/shared/{}.html"
    en = {"a": page('<p id="p1">One window</p><p id="p2">Only here</p>'), "b": page('<p id="p1">No twin</p>')}
    de = {"a": page('<p id="p3">Nur hier</p><p id="p1">Ein Fenster</p>'), "c": page('<p id="p1">Allein</p>')}
    debs = {
        package: pack(tmp_path, package, {path.format(lang, name): html for name, html in pages.items()})
        for package, lang, pages in zip(readers.HELP.values(), ("en-US", "de"), (en, de), strict=True)
    }
    pairs, counts = read(readers.office_help, debs)
    assert pairs == [("shared/a.html", "One window", "Ein Fenster")]
    assert counts == {"documents": 1}


def test_handbooks_pair_elements_in_order(tmp_path: Path):
    def html(text: str) -> str:
        return f"<html><head><title>T</title></head><body>{text}</body></html>"

    reference, developers = "doc/debian-reference-common/docs/{}.{}.html", "developers-reference/{}{}.html"
    en = html("<h2>1.2. The shell</h2><p>Type <code>ls</code> now.</p><pre>$ ls</pre><ul><li>One<br/>two</li></ul>")
    de = html("<h2>1.2. Die Shell</h2><p>Tippen Sie <code>ls</code>.</p><pre>$ ls</pre><ul><li>Eins<br/>2</li></ul>")
    sphinx = '<h1><span class="section-number">5. </span>{}<a class="headerlink">\uf0c1</a></h1><p>{}</p>'
    files: dict[str, Files] = {
        "debian-reference-en": {reference.format("ch01", "en"): en, reference.format("index", "en"): en},
        "debian-reference-de": {reference.format("ch01", "de"): de, reference.format("index", "de"): de},
        "developers-reference": {
            developers.format("", "pkgs"): html(sphinx.format("New packages", "Look here")),
            developers.format("", "developers-reference"): html(sphinx.format("New packages", "Look here")),
            developers.format("", "tools"): html("<p>One</p>"),
        },
        "developers-reference-de": {
            developers.format("de/", "pkgs"): html(sphinx.format("Neue Pakete", "Schau her")),
            developers.format("de/", "developers-reference"): html(sphinx.format("Neue Pakete", "Schau her")),
            developers.format("de/", "tools"): html("<p>Eins</p><p>Zwei</p>"),
        },
    }
    pairs, counts = read(readers.handbooks, {name: pack(tmp_path, name, f) for name, f in files.items()})
    texts = [pair for pair in pairs if HOLE not in "".join(pair)]
    assert texts == [
        ("debian-reference/ch01", "The shell", "Die Shell"),
        ("debian-reference/ch01", "Type ls now.", "Tippen Sie ls."),
        ("developers-reference/pkgs", "New packages", "Neue Pakete"),
        ("developers-reference/pkgs", "Look here", "Schau her"),
    ]
    assert counts == {"documents": 3, "built differently": 1}


def test_gnome_pairs_elements_in_order(tmp_path: Path):
    body = (
        "<info><credit><name>A</name></credit>{credit}<desc>{0}</desc></info><title>{1}</title>"
        "<p>{2} <gui>{3}</gui> <keyseq><key>A</key><key>B</key></keyseq>.</p><p><guiseq><gui>x</gui></guiseq></p>"
    )
    more = "<credit><name>B</name></credit>"
    files: Files = {
        "help/C/gnome-help/a.page": mallard(body.format("Short", "Sort files", "Press", "Sort", credit="")),
        "help/de/gnome-help/a.page": mallard(body.format("Kurz", "Sortieren", "Drücke", "Ordne", credit=more)),
        "help/C/gnome-help/b.page": mallard("<p>One</p>"),
        "help/de/gnome-help/b.page": mallard("<title>Eins</title>"),
        "help/C/gnome-help/c.page": mallard("<p>One</p>"),
        "help/de/gnome-help/c.page": "<page><p>Eins</page>",
        "help/C/gnome-help/d.page": mallard("<p>One</p>"),
        "help/fr/gnome-help/d.page": mallard("<p>Un</p>"),
    }
    pairs, counts = read(readers.gnome, {"gnome-user-docs": pack(tmp_path, "gnome-user-docs", files)})
    assert [pair[1:] for pair in pairs] == [
        ("Short", "Kurz"),
        ("Sort files", "Sortieren"),
        ("Press Sort A+B.", "Drücke Ordne A+B."),
        (HOLE, HOLE),
    ]
    assert counts == {"documents": 3, "built differently": 2}


def manuals(folder: Path, en: dict[str, bytes], de: dict[str, bytes]) -> dict[str, Path]:
    sides = (en, {"man1/other.1": man(".SH NAME\nonly - here\n")}, de, {"man3/x.3": man("")})
    return {
        package: pack(folder, package, {f"man/{lang}{name}.gz": text for name, text in pages.items()})
        for package, lang, pages in zip(readers.MANPAGES, ("", "", "de/", "de/"), sides, strict=True)
    }


def test_manuals_pair_blocks_between_macros(tmp_path: Path):
    en = """\
.SH "SEE ALSO"
open \\- open
.BR a_file .
.P
The
.I name
may\\ be long.
.nf
int x;
.fi
.TP
.B \\-v
Be loud
"""
    de = """\
.SH SIEHE AUCH
open \\- \\fBeine\\fP Datei öffnen.
.P
Der \\fIName\\fP darf lang sein.
.nf
int y;
.fi
.TP
\\fB\\-v\\fP
Sei laut
.SH ÜBERSETZUNG
Von jemandem.
"""
    pages = {"man2/a.2": (en, de), "man2/b.2": (".P\nOne\n", ".P\nEins\n.P\nZwei\n")}
    pages["man2/link.2"] = (".so man2/a.2\n", ".so man2/a.2\n")
    debs = manuals(tmp_path, *({name: man(text[side]) for name, text in pages.items()} for side in (0, 1)))
    pairs, counts = read(readers.manpages, debs)
    assert pairs == [
        ("man2/a.2", "SEE ALSO", "SIEHE AUCH"),
        ("man2/a.2", "open - open a_file.", "open - eine Datei öffnen."),
        ("man2/a.2", "The name may be long.", "Der Name darf lang sein."),
        ("man2/a.2", "-v", "-v"),
        ("man2/a.2", "Be loud", "Sei laut"),
    ]
    assert counts == {"documents": 2, "built differently": 1}


@pytest.mark.parametrize(("ending", "pack_"), [("", bytes), (".xz", lzma.compress)])
def test_descriptions_are_joined_on_their_checksum(ending: str, pack_: Callable[[bytes], bytes], tmp_path: Path):
    long_en = "fast tool\n This tool\n is fast.\n .\n It has:\n  * speed\n  * more\n    speed"
    long_de = "Flinkes Werkzeug\n Dieses Werkzeug ist\n flink.\n .\n Es hat:\n  * Tempo\n  * mehr Tempo"
    en = (
        stanza("libtool2", "en", long_en)
        + stanza("b", "en", "x\n One")
        + stanza("c", "en", "y")
        + stanza("d", "en", "z")
    )
    de = stanza("d", "de", "Z\n Mehr\n .\n Noch mehr") + stanza("libtool2", "de", long_de)
    de += stanza("b", "de", "X\n  * Eins") + stanza("c", "de", "Y", md5="0" * 32)
    lists = {}
    for name, text in zip(readers.LISTS, (en, de), strict=True):
        lists[name] = tmp_path / f"mirror.example_dists_{name}{ending}"
        lists[name].write_bytes(pack_(text.encode()))
    pairs, counts = read(readers.packages, lists)
    assert pairs == [
        ("tool", "fast tool", "Flinkes Werkzeug"),
        ("tool", "This tool is fast.", "Dieses Werkzeug ist flink."),
        ("tool", "It has:", "Es hat:"),
        ("tool", "speed", "Tempo"),
        ("tool", "more speed", "mehr Tempo"),
        ("b", "x", "X"),
    ]
    assert counts == {"documents": 3, "built differently": 2}


def test_ding_takes_the_first_wording_of_each_phrase(tmp_path: Path):
    text = (
        "# comment :: comment\nHaus {n}; Gebäude {n} [arch.] | im Haus (drinnen) :: house; building | in the house\n"
        "jdm. etw. geben :: to give sb. sth.\nEins | zwei :: one\nallein\n"
    )
    pairs, counts = read(readers.ding, {"trans-de-en": pack(tmp_path, "trans-de-en", {"trans/de-en": text})})
    assert [pair[1:] for pair in pairs] == [
        ("house", "Haus"),
        ("in the house", "im Haus"),
        (HOLE, "jdm. etw. geben"),
    ]
    assert len({pair[0] for pair in pairs}) == 2 and counts == {"documents": 3, "built differently": 1}


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalog_is_read_as_gettext_reads_it(order: str):
    messages = {"Open": "Öffnen", "menu\x04Close": "Schließen", "one file\0many files": "eine Datei\0viele Dateien"}
    content = mo(messages, order)
    truth = gettext.GNUTranslations(io.BytesIO(content))
    pairs = dict(readers.catalog(content))
    assert pairs.keys() == {"Open", "Close", "one file", "many files"}
    assert pairs["Open"] == truth.gettext("Open") and pairs["Close"] == truth.pgettext("menu", "Close")
    assert [pairs["one file"], pairs["many files"]] == [truth.ngettext("one file", "many files", n) for n in (1, 2)]


def test_catalogs_lose_shortcut_marks_and_keep_paragraphs_apart(tmp_path: Path):
    content = mo({"_Open the ~file": "Die _Datei", "First.\n\nLast": "Eins.\n\nZwei", "a\n\nb": "nur a", "": ""})
    pairs, counts = read(readers.catalogs, catalog_debs(tmp_path, content))
    by_program = {name: [p[1:] for p in pairs if p[0].startswith(name)] for name in readers.CATALOGS}
    assert by_program["gnucash-common"] == [("First.", "Eins."), ("Last", "Zwei"), ("Open the ~file", "Die Datei")]
    assert by_program["git"][2] == ("_Open the ~file", "Die _Datei")
    assert counts == {"documents": 6, "built differently": 6}


# --- what cannot be read ----------------------------------------------------------------------------------------------


def recipe_of(reader: Callable, files: dict[str, Path]) -> debian.Recipe:
    return debian.DEBIAN._replace(domains={"x": debian.Domain(reader, tuple(files), (0.0, 0.0), "")})


def test_damaged_files_are_errors_that_name_the_file(tmp_path: Path):
    def refused(reader: Callable, files: dict[str, Path], name: str) -> None:
        with pytest.raises(RecipeError, match=name):
            list(debian.read(recipe_of(reader, files), files, {"x": Counter()}))

    deb = pack(tmp_path, "trans-de-en", {"trans/de-en": "Haus :: house\n" * 500})
    whole = deb.read_bytes()
    for broken in (whole[:-3000], whole[:50], b"no package", b""):
        deb.write_bytes(broken)
        refused(readers.ding, {"trans-de-en": deb}, "trans-de-en_1.0-1_all.deb")
    refused(readers.ding, {"trans-de-en": pack(tmp_path, "trans-de-en", {"trans/en-fr": "x"})}, "another package")
    whole = man(".P\nSome text that is long enough\n")
    for broken in (whole[:-12], whole[:20], b"plain text"):
        refused(readers.manpages, manuals(tmp_path, {"man2/a.2": whole}, {"man2/a.2": broken}), "manpages-de.* damaged")
    for broken in (mo({"Open": "Öffnen"})[:-9], b"\xde\x12\x04\x95", b"no catalog", b""):
        refused(readers.catalogs, catalog_debs(tmp_path, broken), "libreoffice-l10n-de_.* damaged")
    lists = {name: tmp_path / f"{name}.xz" for name in readers.LISTS}
    for path in lists.values():
        path.write_bytes(lzma.compress(stanza("a", "en", "b").encode())[:-8])
    refused(readers.packages, lists, r"Translation-de\.xz: damaged")


def test_invalid_utf8_costs_its_own_pair_only(tmp_path: Path):
    text = "ein großes Haus | ein kleines Haus :: a big house | a small house\n".encode().replace("ß".encode(), b"\xdf")
    pairs, _ = read(readers.ding, {"trans-de-en": pack(tmp_path, "trans-de-en", {"trans/de-en": text})})
    counts: dict[str, Counter[str]] = {"ding": Counter()}
    kept = debian.select(debian.DEBIAN, [Pair(*pair, "ding") for pair in pairs], counts)
    assert [pair[1:3] for pair in kept] == [("a small house", "ein kleines Haus")]
    assert counts["ding"] == {"segments": 2, "dropped: character": 1}


# --- the filter -------------------------------------------------------------------------------------------------------

GOOD = ("Opens the new window of the program.", "Öffnet das neue Fenster des Programms.")


@pytest.mark.parametrize(
    ("en", "de", "reason"),
    [
        (*GOOD, None),
        ("log analysis library", "Protokollanalyse-Bibliothek", "length"),
        ("log analysis library", "Bibliothek zur Protokollanalyse", None),
        ("web server", "kleiner Webserver", "length"),
        ("word " * 61, "Wort " * 60, "length"),
        ("word " * 60, "Wort " * 60, None),
        ("strdup() returns O_NONBLOCK here.", "strdup() gibt hier O_NONBLOCK zurück.", None),
        ("Opens the <b>new</b> window.", GOOD[1], "character"),
        ("Opens the window \ufffd right now.", GOOD[1], "character"),
        ("Finds the word слово in this text.", GOOD[1], "character"),
        ("Opens the new window of %s now.", GOOD[1], "markup, address or placeholder"),
        ("Opens the new window of %1 now.", GOOD[1], "markup, address or placeholder"),
        ("Opens the new window of $(ARG) now.", GOOD[1], "markup, address or placeholder"),
        ("Look at https://example for more windows.", GOOD[1], "markup, address or placeholder"),
        ("Uses 50 % of the window.", "Nutzt 50 % des Fensters.", None),
        ("1234567 1234567 and 1234567 two", "1234567 1234567 und 1234567 zwei", "few letters"),
        ("Opens the window.", "Öffnet das neue Fenster des Programms ganz weit.", "length ratio"),
        ("Opens the new (old window of it.", GOOD[1], "bracket or quote left open"),
        ("Opens the 2 new windows of it.", "Öffnet die 3 neuen Fenster davon.", "numbers differ"),
        (GOOD[0], GOOD[0].upper(), "not translated"),
        (f"Press the {HOLE} key twice.", GOOD[1], "code, image or blank"),
    ],
)
def test_fault(en: str, de: str, reason: str | None):
    assert reject_reason(en.strip(), de.strip(), debian.DEBIAN.rules) == reason


def test_select_drops_what_differs_in_case_punctuation_and_digits_only():
    pairs = [
        Pair("a", *GOOD, "man"),
        Pair("b", GOOD[0].upper(), GOOD[1].replace(".", "!"), "ui"),
        Pair("b", GOOD[0], "Ein neues Fenster des Programms geht auf.", "ui"),
        Pair("c", "", "Nichts auf der anderen Seite", "ui"),
        Pair("d", "Close it all. Open it all.", "Schließ das alles. Öffne das alles.", "ui"),
    ]
    counts: dict[str, Counter[str]] = {"man": Counter(), "ui": Counter()}
    kept = debian.select(debian.DEBIAN, pairs, counts)
    assert [p.page for p in kept] == ["a", "b", "d", "d"]
    assert [p.en for p in kept[2:]] == ["Close it all.", "Open it all."]
    assert counts["ui"] == {"segments": 4, "dropped: same pair": 1, "one side empty": 1}


# --- the whole data set -----------------------------------------------------------------------------------------------


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HELD_OUT:
        monkeypatch.setitem(debian.DEBIAN.domains, name, debian.DEBIAN.domains[name]._replace(held_out=(0.2, 0.2)))


BUILD = [
    sys.executable,
    "-c",
    "import sys, pathlib; from corpora import debian; debian.build(*map(pathlib.Path, sys.argv[1:]))",
]


def copy(repository: Path, folder: Path) -> Path:
    return Path(shutil.copytree(repository, folder))


def test_build_writes_the_same_bytes_twice_and_an_honest_manifest(repository: Path, tmp_path: Path, shares: None):
    one, two = tmp_path / "deep" / "one", tmp_path / "two"
    manifest = debian.build(one, repository)
    debian.build(two, repository)
    assert contents(one) == contents(two)
    assert [p.name for p in one.parent.iterdir()] == ["one"], "nothing is left beside the data, nothing was fetched"
    assert json.loads((one / "manifest.json").read_text()) == manifest
    assert set(contents(one)) == {f"{s}.{e}" for s in debian.PARTS for e in ("en", "de", "domains")} | {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((one / name).read_bytes()).hexdigest() == digest, name
    assert len(manifest["packages"]) == 18 and len(manifest["lists"]) == 2
    for fact in manifest["packages"] + manifest["lists"]:
        (path,) = repository.glob(f"{fact['package']}_*" if "package" in fact else fact["file"])
        assert fact["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert fact.get("version", "1.0-1") == "1.0-1"
    for part in debian.PARTS:
        domains = lines(one / f"{part}.domains")
        assert (
            len(lines(one / f"{part}.en")) == len(lines(one / f"{part}.de")) == len(domains) == manifest["lines"][part]
        )
        assert Counter(domains) == {
            name: n for name, c in manifest["counts"].items() if (n := c.get(f"{part}: written", 0))
        }
    assert set(lines(one / "train.domains")) == set(debian.DEBIAN.domains)
    assert set(lines(one / "test.domains")) == set(HELD_OUT) == set(lines(one / "valid.domains"))
    assert 0 < manifest["test_bleu"]["copy of the target of the nearest training source"] < 100
    assert manifest["licences"].keys() == debian.DEBIAN.domains.keys()


def test_nothing_depends_on_the_hash_seed_of_the_process(repository: Path, tmp_path: Path):
    made = []
    for seed in ("1", "2"):
        subprocess.run(
            [*BUILD, str(tmp_path / seed), str(repository)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT / "recipes",
            check=True,
            capture_output=True,
        )
        made.append(contents(tmp_path / seed))
    assert made[0] == made[1] and made[0]["train.en"]


def test_no_near_copy_of_a_held_out_pair_is_in_train(repository: Path, tmp_path: Path, shares: None):
    out = tmp_path / "out"
    manifest = debian.build(out, repository)
    texts = {part: {lang: lines(out / f"{part}.{lang}") for lang in ("en", "de")} for part in debian.PARTS}
    for lang in ("en", "de"):
        held_out = texts["test"][lang] + texts["valid"][lang]
        assert held_out and not near_copies(texts["train"][lang], held_out)
        assert not near_copies(texts["valid"][lang], texts["test"][lang])
    counts = manifest["counts"].values()
    lost = sum(counter["train: in its documents"] - counter["train: written"] for counter in counts)
    assert lost > 0, "the made-up text must have near-copies, or nothing is tested"


def test_the_part_of_a_document_depends_on_its_domain_and_name():
    pages = [Pair(f"shared/{i}.html", "", "", "lohelp") for i in range(10_000)]
    seen = Counter(map(debian.DEBIAN.part_of, pages))
    test, valid = debian.DEBIAN.domains["lohelp"].held_out
    assert abs(seen["test"] / 10_000 - test) < 0.005 and abs(seen["valid"] / 10_000 - valid) < 0.005
    page = next(page for page in pages if debian.DEBIAN.part_of(page) == "test")
    assert int(hashlib.sha256(f"lohelp/{page.page}".encode()).hexdigest()[:12], 16) / 16**12 < test


# --- files that are there, and files to fetch -------------------------------------------------------------------------


def error_of(out: Path, local_dir: Path | None = None) -> str:
    with pytest.raises((RecipeError, OSError)) as raised:
        debian.build(out, local_dir)
    return str(raised.value)


def test_local_files_that_do_not_fit_are_named(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, folder = tmp_path / "out", copy(repository, tmp_path / "local")
    args = (out, folder)
    assert "--local-dir" in error_of(out, tmp_path / "nowhere")
    extra = pack(folder, "git", {"x": "y"}, version="2.0-1")
    assert "git_1.0-1_all.deb and git_2.0-1_all.deb" in error_of(*args)
    extra.unlink()
    (twin,) = folder.glob("libreoffice-help-de_*")
    twin.rename(tmp_path / twin.name)
    pack(folder, "libreoffice-help-de", {"x": "y"}, version="2.0-1")
    error = error_of(*args)
    assert "libreoffice-help-en-us_1.0-1" in error and "1.0-1 and 2.0-1" in error
    (folder / "libreoffice-help-de_2.0-1_all.deb").unlink()
    (tmp_path / twin.name).rename(twin)
    (german,) = folder.glob("*Translation-de")
    german.write_text("")
    error = error_of(*args)
    assert str(german) in error and "no document is in both languages" in error
    assert not out.exists()


def test_without_apt_the_message_says_which_files_go_where(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = copy(repository, tmp_path / "local")
    for path in [*folder.glob("git_*"), *folder.glob("*Translation-de")]:
        path.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    error = error_of(tmp_path / "out", folder)
    assert "apt-get is missing" in error and "--local-dir" in error and str(tmp_path / "out.packages") in error
    assert "apt-get download git\n" in error and "Translation-de.xz: of a Debian mirror" in error
    assert "Translation-en" not in error and "vlc" not in error


FAKE_APT = """\
#!/bin/sh
echo "$1 $2" >> "$FAKE_LOG"
for word; do case "$word" in Dir::State::lists=*) lists="${word#*=}" ;; esac; done
case "$1" in
update) cp "$FAKE_REPOSITORY"/*Translation* "$lists" ;;
download)
    if [ "$2" = "$FAKE_KILL" ]; then
        for deb in "$FAKE_REPOSITORY/$2"_*; do head -c 500 "$deb" > "$(basename "$deb")"; done
        kill -9 "$PPID"
    fi
    cp "$FAKE_REPOSITORY/$2"_* . || { echo "E: Unable to locate package $2" >&2; exit 100; } ;;
esac
"""


@pytest.fixture
def fake_apt(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get that copies from the repository, and the log of what it was asked for."""
    fake, log = tmp_path / "bin" / "apt-get", tmp_path / "log"
    fake.parent.mkdir()
    fake.write_text(FAKE_APT)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    for name, value in {"LOG": log, "REPOSITORY": repository, "KILL": ""}.items():
        monkeypatch.setenv(f"FAKE_{name}", str(value))
    return log


def test_a_killed_fetch_goes_on_with_what_is_missing(fake_apt: Path, repository: Path, tmp_path: Path):
    """The script is killed in the middle of a package."""
    log, out = fake_apt, tmp_path / "out"

    def run(kill: str) -> tuple[int, list[str]]:
        log.write_text("")
        done = subprocess.run(
            [*BUILD, str(out)],
            env={**os.environ, "FAKE_KILL": kill},
            cwd=ROOT / "recipes",
            capture_output=True,
            text=True,
        )
        assert kill or done.returncode == 0, done.stderr
        return done.returncode, [
            line.split()[1] for line in log.read_text().splitlines() if line.startswith("download")
        ]

    names = [name for domain in debian.DEBIAN.domains.values() for name in domain.files if name not in readers.LISTS]
    at = names.index("manpages-de")
    code, asked = run(kill="manpages-de")
    assert code == -9 and asked == names[: at + 1] and not out.exists()
    cache = tmp_path / "out.packages"
    whole = {path.name for path in cache.iterdir() if path.is_file()}
    assert whole == {*readers.LISTS} | {f"{name}_1.0-1_all.deb" for name in names[:at]}
    assert run(kill="")[1] == names[at:]
    there = {*readers.LISTS} | {f"{name}_1.0-1_all.deb" for name in names}
    assert {path.name for path in cache.iterdir()} == there
    for path in cache.glob("*.deb"):
        assert path.read_bytes() == (repository / path.name).read_bytes()
    assert run(kill="")[1] == [] and not log.read_text(), "the second build asks for nothing"
