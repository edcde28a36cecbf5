"""Readers of the English-German texts in Debian's packages: help, handbooks, manual pages, lists, messages.

A reader takes the files by package or list name and yields ``Pair(document, en, de)`` in the order of the documents,
whatever the order in the archive. Where the two sides of a document or paragraph are not built alike, it is left out
and counted. Needs dpkg-deb; nothing is unpacked to disk.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from common.errors import RecipeError

from .archives import digest
from .pairs import HOLE, Pair, clean

Files = dict[str, Path]  # packages and lists by name
Blocks = list[tuple[str, str]]  # kind of each block of a document, and its text
Texts = dict[str, bytes]  # file of a document by its name

LISTS = ("Translation-en", "Translation-de")
HELP = {"en": "libreoffice-help-en-us", "de": "libreoffice-help-de"}
HANDBOOKS = ("debian-reference-en", "debian-reference-de", "developers-reference", "developers-reference-de")
MANPAGES = ("manpages", "manpages-dev", "manpages-de", "manpages-de-dev")
TWINS = (tuple(HELP.values()), HANDBOOKS[:2], HANDBOOKS[2:], MANPAGES[:2], MANPAGES[2:])  # of one version
# what reading a damaged file ends in
DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, KeyError, struct.error)


def run(*command: str, cwd: Path | None = None) -> str:
    """Return the output of a command.

    Raises:
        RecipeError: it is missing, or fails.
    """
    try:
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)
    except FileNotFoundError:
        raise RecipeError(f"{command[0]} is missing: run this on Debian or Ubuntu, or in a container of one") from None
    if done.returncode:
        raise RecipeError(f"{' '.join(command[:2])} failed: {done.stderr.strip() or 'no message'}")
    return done.stdout


def facts(deb: Path) -> dict[str, str]:
    version = run("dpkg-deb", "--field", str(deb), "Version").strip()
    return {"package": deb.name.split("_")[0], "version": version, "sha256": digest(deb)}


def texts(debs: Iterable[Path], wanted: str) -> Texts:
    """Return the files whose path matches, by what the groups of the pattern catch.

    Raises:
        RecipeError: a package can't be read to its end, or has no such file.
    """
    every: Texts = {}
    for deb in debs:
        here: Texts = {}
        command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tar,
        ):
            for item in tar:
                match = re.search(wanted, item.name) if item.isfile() else None
                if match and (content := tar.extractfile(item)):
                    here["/".join(match.groups())] = content.read()
        if process.returncode:
            raise RecipeError(f"{deb} can't be read to its end")
        if not here:
            raise RecipeError(f"{deb} has no file {wanted}: it is another package, or of a version built otherwise")
        every |= here
    return every


def zipped(document: str, en: Blocks, de: Blocks, counts: Counter[str]) -> Iterator[Pair]:
    """The texts of two sides with the same blocks; nothing where one block differs in kind."""
    if [kind for kind, _ in en] != [kind for kind, _ in de]:
        counts["built differently"] += 1
        return
    yield from (Pair(document, a, b) for (_, a), (_, b) in zip(en, de, strict=True) if a and b)


def each(en: Texts, de: Texts, blocks: Callable[[str], Blocks], counts: Counter[str]) -> Iterator[Pair]:
    """Pairs of every document that both sides have."""
    for document in sorted(en.keys() & de.keys()):
        counts["documents"] += 1
        sides = [blocks(side[document].decode("utf-8", "replace")) for side in (en, de)]
        yield from zipped(document, sides[0], sides[1], counts)


# --- LibreOffice help -------------------------------------------------------------------------------------------------

PAGE = r"/help/(?:en-US|de)/text/(.+\.html)$"
BLOCK = re.compile(r"(p|h[1-6])$")
CODE = re.compile(r"code(?<!keycode)|literal|input|switch|image")  # in the class of an element


class Paragraphs(HTMLParser):
    """Collects ``texts[id]``, the text of every p and h1-h6 with an id; "" for an id that the page has twice."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, str] = {}
        self._tag = self._id = ""  # the open paragraph
        self._parts: list[str] = []
        self._code: list[bool] = []  # for the paragraph and each open span of it: is it one that CODE names?

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = {name: value or "" for name, value in attrs}
        code = tag == "code" or bool(CODE.search(at.get("class", "")))
        if BLOCK.match(tag):
            self._finish()
            self._tag, self._id, self._parts, self._code = tag, at.get("id", ""), [], [code]
        elif tag in ("span", "code"):
            self._code.append(code)
        elif tag in ("br", "img"):
            self._parts.append(HOLE)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("span", "code") and len(self._code) > 1:
            self._code.pop()
        elif tag == self._tag:
            self._finish()

    def handle_data(self, data: str) -> None:
        self._parts.append(HOLE if any(self._code) else data)

    def _finish(self) -> None:
        if self._id:
            self.texts[self._id] = "" if self._id in self.texts else clean("".join(self._parts))
        self._tag = self._id = ""


def paragraphs(html: str) -> dict[str, str]:
    """The text of a help page by element id, in page order; ids that are not unique are left out."""
    parser = Paragraphs()
    parser.feed(html[max(html.find('id="DisplayArea"'), 0) :].partition('id="DonationFrame"')[0])
    parser.close()
    return {key: text for key, text in parser.texts.items() if text}


def office_help(debs: Files, counts: Counter[str]) -> Iterator[Pair]:
    """Paragraphs of the help pages by page and element id."""
    sides = []
    for package in HELP.values():
        pages = texts([debs[package]], PAGE)
        sides.append({name: paragraphs(html.decode("utf-8", "replace")) for name, html in pages.items()})
    en, de = sides
    for page in sorted(en.keys() & de.keys()):
        counts["documents"] += 1
        yield from (Pair(page, en[page][key], de[page][key]) for key in en[page] if key in de[page])


# --- handbooks in HTML ------------------------------------------------------------------------------------------------

NUMBER = re.compile(
    r"^(?:(?:Table|Tabelle|Figure|Abbildung|Example|Beispiel|Chapter|Kapitel|Appendix|Anhang)\s)?"
    r"(?:\d+|[A-Z])\.(?:\d+\.)*\s+(?=\S)"
)
LINK_SIGN = "\uf0c1"  # at the end of headings


class Handbook(HTMLParser):
    """Cuts a page into ``blocks`` at the start and end of every element that is not inline."""

    BLOCK = re.compile(r"(?:p|li|t[dh]|h[1-6]|d[td]|caption|div|section|nav|footer|body|pre)$")
    CODE = frozenset(("pre", "script", "style", "title"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: Blocks = []
        self._parts: list[str] = []
        self._code = ""

    def _cut(self, kind: str) -> None:
        text = clean("".join(self._parts).replace(LINK_SIGN, ""))
        self.blocks.append((kind, NUMBER.sub("", text)))
        self._parts = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.CODE:
            self._code = tag
        if self.BLOCK.match(tag):
            self._cut(f"before {tag}")
        elif tag in ("br", "img"):
            self._parts.append(HOLE)

    def handle_endtag(self, tag: str) -> None:
        if self.BLOCK.match(tag):
            self._cut(tag)
        if tag == self._code:
            self._code = ""

    def handle_data(self, data: str) -> None:
        self._parts.append(HOLE if self._code else data)


def handbook_blocks(html: str) -> Blocks:
    parser = Handbook()
    parser.feed(html)
    parser.close()
    return parser.blocks


def handbooks(debs: Files, counts: Counter[str]) -> Iterator[Pair]:
    """Debian reference and developer's reference: their chapters have the same elements in the same order."""
    reference = r"/(debian-reference)-common/docs/(?!index)(\w+)\.{}\.html$"
    en = texts([debs["debian-reference-en"]], reference.format("en"))
    de = texts([debs["debian-reference-de"]], reference.format("de"))
    developers = r"/share/(developers-reference)/{}(?!index|search|developers-reference)([\w-]+)\.html$"
    en |= texts([debs["developers-reference"]], developers.format(""))
    de |= texts([debs["developers-reference-de"]], developers.format("de/"))
    yield from each(en, de, handbook_blocks, counts)


# --- GNOME help -------------------------------------------------------------------------------------------------------


def mallard_text(element: ElementTree.Element) -> str:
    """The text of an element and those in it; keys pressed together get a plus, menu paths and pictures a hole."""
    tag = element.tag.rpartition("}")[2]
    if tag in ("guiseq", "media", "code", "screen") or (tag == "link" and not element.text and not len(element)):
        return HOLE
    if tag == "keyseq":
        return "+".join(mallard_text(key) for key in element)
    parts = [element.text or ""]
    for child in element:
        parts += [mallard_text(child), child.tail or ""]
    return "".join(parts)


def mallard_blocks(page: str) -> Blocks:
    """Titles, descriptions and paragraphs of a page, less credits and writers' comments, which differ by language."""
    blocks: Blocks = []

    def walk(element: ElementTree.Element) -> None:
        tag = element.tag.rpartition("}")[2]
        if tag in ("title", "desc", "p"):
            blocks.append((tag, clean(mallard_text(element))))
        elif tag not in ("credit", "comment"):
            blocks.append((tag, ""))
            for child in element:
                walk(child)

    try:
        walk(ElementTree.fromstring(page))
    except ElementTree.ParseError:
        return [("broken", "")]
    return blocks


def gnome(debs: Files, counts: Counter[str]) -> Iterator[Pair]:
    """Pages of GNOME's help, which itstool translates element by element."""
    deb = [debs["gnome-user-docs"]]
    en, de = (texts(deb, rf"/share/help/{lang}/([\w-]+)/([\w.-]+\.page)$") for lang in ("C", "de"))
    yield from each(en, de, mallard_blocks, counts)


# --- manual pages -----------------------------------------------------------------------------------------------------

ROFF_MACRO = re.compile(r"^[.']\s*(\S+)\s*(.*)$")
ROFF_ARGUMENT = re.compile(r'"((?:""|[^"])*)"?|((?:\\.|[^\s\\])+)')
ROFF_SPECIAL = re.compile(r"\\(?:\[([^\]]+)\]|\((..)|([-&e %~|/,:^0'`.]))")
ROFF_FONT = re.compile(r"\\[fFm](?:\[[^\]]*\]|\(..|.)|\\s[-+]?\d|\\c$")
ROFF_CHARACTERS = {
    **dict.fromkeys(("&", "%", "|", "/", ",", ":", "^"), ""),
    **dict.fromkeys((" ", "~", "0"), " "),
    **dict.fromkeys(("aq", "'", "cq", "oq"), "'"),
    **{"-": "-", ".": ".", "`": "`", "hy": "-", "en": "–", "em": "—", "dq": '"', "lq": "“", "rq": "”", "bu": "•"},
    **{"at": "@", "ha": "^", "ti": "~", "rs": "\\", "e": "\\", "co": "©", "de": "°", "+-": "±", "ss": "ß"},
    **{"Fo": "«", "Fc": "»", "Bq": "„", ":a": "ä", ":o": "ö", ":u": "ü", ":A": "Ä", ":O": "Ö", ":U": "Ü"},
}
ROFF_FONTS = {"B", "I", "SM", "SB", "BR", "BI", "IB", "IR", "RB", "RI"}
ROFF_CUTS = {"SH", "SS", "P", "PP", "LP", "IP", "TP", "TQ", "HP", "RS", "RE", "sp"}
ROFF_CODE = {"nf": "fi", "EX": "EE", "TS": "TE", "SY": "YS"}
ROFF_LAYOUT = {"TH", "in", "ad", "nh", "hy", "ne", "PD", "ft", "na", "ti", "ta", "po", "ll"}


def roff_text(text: str) -> str:
    """Without escapes; what is not known becomes a hole."""
    text = ROFF_SPECIAL.sub(lambda m: ROFF_CHARACTERS.get(m[1] or m[2] or m[3], HOLE), ROFF_FONT.sub("", text))
    return clean(text.replace("\\\\", "\\"))


class Manual:
    """Cuts a manual page into ``blocks`` at its macros."""

    def __init__(self) -> None:
        self.blocks: Blocks = []
        self._kind, self._lines = "start", list[str]()
        self._until = ""  # the macro that ends the code we are in
        self._tag = False  # is the next line one by itself: a heading, or the term that a paragraph explains?

    def cut(self, kind: str) -> None:
        text = "".join(line if line.endswith("\\c") else f"{line} " for line in self._lines)
        self.blocks.append((self._kind, roff_text(text.replace("\\c", ""))))
        self._kind, self._lines = kind, []

    def line(self, line: str) -> None:
        macro = ROFF_MACRO.match(line)
        if self._until:
            if macro and macro[1] == self._until:
                self._until = ""
            return
        if macro and macro[1] in ROFF_CUTS | ROFF_CODE.keys():
            self.cut(macro[1])
            self._until = ROFF_CODE.get(macro[1], "")
            self._tag = macro[1] in ("TP", "TQ") or (macro[1] in ("SH", "SS") and not macro[2])
            if macro[1] in ("SH", "SS", "IP") and macro[2]:
                self.add(" ".join(self.arguments(macro[2])))
                self.cut("text")
            return
        if macro and macro[1] in ROFF_LAYOUT:
            return
        if macro and macro[1] in ROFF_FONTS:
            alternating = len(macro[1]) == 2 and macro[1] not in ("SM", "SB")
            self.add(("" if alternating else " ").join(self.arguments(macro[2])))
        elif macro and macro[1] == "MR":
            name, section, *rest = [*self.arguments(macro[2]), "", ""]
            self.add(f"{name}({section}){''.join(rest)}")
        elif macro:  # a link, a condition, a line break: not plain text
            self.add(HOLE)
        elif line.strip():
            self.add(line)
        else:
            self.cut("blank")

    def add(self, text: str) -> None:
        self._lines.append(text)
        if self._tag:
            self._tag = False
            self.cut("text")

    @staticmethod
    def arguments(text: str) -> list[str]:
        return [quoted.replace('""', '"') if quoted else bare for quoted, bare in ROFF_ARGUMENT.findall(text)]


def manual_blocks(page: str) -> Blocks:
    """The blocks of a page of the man macros; the translators' section at the end of a German page is left off."""
    page = page.partition("\n.SH ÜBERSETZUNG\n")[0].removesuffix("\n.PP")
    manual = Manual()
    for line in page.splitlines():
        if not re.match(r"[.']\s*(\\\"|$)", line):
            manual.line(line.partition('\\"')[0])
    manual.cut("end")
    return manual.blocks


def manpages(debs: Files, counts: Counter[str]) -> Iterator[Pair]:
    """Manual pages that po4a translated: the same macros in the same order."""
    page = r"/share/man/{}(man\w+)/([^/]+)\.gz$"
    sides = []
    for lang, names in (("", MANPAGES[:2]), ("de/", MANPAGES[2:])):
        pages = texts([debs[name] for name in names], page.format(lang))
        whole = {name: gzip.decompress(content) for name, content in pages.items()}
        sides.append({name: t for name, t in whole.items() if b"\n.Dd " not in t and b".so man" not in t})
    yield from each(sides[0], sides[1], manual_blocks, counts)


# --- package descriptions ---------------------------------------------------------------------------------------------

STANZA = re.compile(
    r"^Package: (?P<package>.+)\nDescription-md5: (?P<md5>.+)\n"
    r"Description-(?:en|de): (?P<short>.*)\n(?P<long>(?: .*\n)*)",
    re.MULTILINE,
)
ITEM = re.compile(r"\s+[-*+o•·]\s+(?=\S)")
FAMILY = re.compile(r"(?:lib|python3?-|r-cran-|golang-|ruby-|node-|fonts-|gnome-|kde-|texlive-|php-|perl-)?([a-z]+)")


def descriptions(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """md5, package and groups of lines of each description; the first group is the short description."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        text = file.read().decode("utf-8", "replace")
    for stanza in STANZA.finditer(f"{text}\n"):
        yield stanza["md5"], stanza["package"], [stanza["short"], *re.split(r"^ \.\n", stanza["long"], flags=re.M)]


def description_blocks(group: str) -> Blocks:
    """Paragraphs and list items of a group of lines."""
    blocks: list[tuple[str, list[str]]] = []
    for line in group.splitlines():
        item = ITEM.match(line)
        if item or not blocks:
            blocks.append(("item" if item else "text", []))
        blocks[-1][1].append(line[item.end() :] if item else line)
    return [(kind, clean(" ".join(lines))) for kind, lines in blocks]


def family(package: str) -> str:
    """libfoo2, libfoo-dev and foo-data are of one family: their descriptions share sentences."""
    match = FAMILY.match(package)
    return match[1] if match else package


def packages(lists: Files, counts: Counter[str]) -> Iterator[Pair]:
    """Descriptions with the same checksum of the English one, group by group."""
    german = {md5: groups for md5, _, groups in descriptions(lists["Translation-de"])}
    for md5, package, en in descriptions(lists["Translation-en"]):
        de = german.pop(md5, None)
        if de is None:
            continue
        counts["documents"] += 1
        if len(en) != len(de):
            counts["built differently"] += 1
            continue
        for a, b in zip(en, de, strict=True):
            yield from zipped(family(package), description_blocks(a), description_blocks(b), counts)


# --- the Ding dictionary ----------------------------------------------------------------------------------------------

DING_NOTE = re.compile(r"\s*(?:\{[^}]*\}|\[[^\]]*\]|<[^>]*>|\([^()]*\))")
DING_BLANK = re.compile(r"\b(?:sth|sb|so|etw|jdn|jdm|jds|jd|jmd|jmdn|jmdm)\b|[/…~]|\.\.\.")  # words to be filled in


def ding(debs: Files, counts: Counter[str]) -> Iterator[Pair]:
    """The first wording of each sense and phrase of an entry, without notes on grammar and use."""
    for content in texts([debs["trans-de-en"]], r"/trans/(de-en)$").values():
        for line in content.decode("utf-8", "replace").splitlines():
            de, _, en = line.partition(" :: ")
            if line.startswith("#") or not en:
                continue
            counts["documents"] += 1
            sides = [[ding_text(phrase) for phrase in side.split(" | ")] for side in (en, de)]
            if len(sides[0]) != len(sides[1]):
                counts["built differently"] += 1
                continue
            for a, b in zip(*sides, strict=True):
                yield Pair(line, HOLE if DING_BLANK.search(a + b) else a, b)


def ding_text(phrase: str) -> str:
    return clean(DING_NOTE.sub("", phrase).split(";")[0])


# --- catalogs of messages ---------------------------------------------------------------------------------------------

CATALOGS = {  # package: path of its catalogs, marks of a shortcut key
    "libreoffice-l10n-de": (r"/de/LC_MESSAGES/(\w+)\.mo$", "~_"),
    "gnucash-common": (r"/de/LC_MESSAGES/(gnucash)\.mo$", "_"),
    "vlc-l10n": (r"/de/LC_MESSAGES/(vlc)\.mo$", "&"),
    "audacity-data": (r"/de/LC_MESSAGES/(audacity)\.mo$", "&"),
    "darktable": (r"/de/LC_MESSAGES/(darktable)\.mo$", "_"),
    "git": (r"/de/LC_MESSAGES/(git)\.mo$", ""),
}


def catalog(content: bytes) -> Iterator[tuple[str, str]]:
    """Messages and translations of a .mo file of gettext, without contexts; plural forms one by one."""
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}[content[:4]]
    count, *tables = struct.unpack(f"{order}3I", content[8:20])
    for i in range(count):
        strings = []
        for table in tables:
            size, start = struct.unpack_from(f"{order}2I", content, table + 8 * i)
            (string,) = struct.unpack_from(f"{size}s", content, start)
            strings.append(string.decode("utf-8", "replace"))
        if strings[0]:  # the empty message has the header
            forms = zip(strings[0].rpartition("\x04")[2].split("\0"), strings[1].split("\0"), strict=False)
            yield from forms


def message(text: str, marks: str) -> str:
    """Without the mark of the shortcut key, where it has one."""
    if marks and len(places := re.findall(rf"[{marks}](?=\w)", text)) == 1:
        text = text.replace(places[0], "", 1)
    return text


def catalogs(debs: Files, counts: Counter[str]) -> Iterator[Pair]:
    """Messages of programs by paragraph, where both sides have as many paragraphs."""
    for package, (path, marks) in CATALOGS.items():
        for name, content in sorted(texts([debs[package]], path).items()):
            counts["documents"] += 1
            for message_en, message_de in catalog(content):
                en, de = ([clean(p) for p in message(m, marks).split("\n\n")] for m in (message_en, message_de))
                if len(en) != len(de):
                    counts["built differently"] += 1
                    continue
                yield from (Pair(f"{package}/{name}", a, b) for a, b in zip(en, de, strict=True))
