"""Reads the English-German documents of Debian packages for debian.py: help, handbooks, manual pages.

Readers are as those of debian_sources.py.
"""

from __future__ import annotations

import gzip
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from common.errors import RecipeError

from .debian_sources import DAMAGED, Blocks, each, texts
from .lohelp import PAGE, paragraphs
from .pairs import HOLE, Pair, clean

LOHELP = ("libreoffice-help-en-us", "libreoffice-help-de")
HANDBOOKS = ("debian-reference-en", "debian-reference-de", "developers-reference", "developers-reference-de")
MANPAGES = ("manpages", "manpages-dev", "manpages-de", "manpages-de-dev")
TWINS = (LOHELP, HANDBOOKS[:2], HANDBOOKS[2:], MANPAGES[:2], MANPAGES[2:])  # of one version

# --- LibreOffice help -------------------------------------------------------------------------------------------------


def lohelp(debs: dict[str, Path], counts: Counter[str]) -> Iterator[Pair]:
    """Paragraphs of the help pages by page and element id."""
    pages = []
    for package in LOHELP:
        found = texts([debs[package]], PAGE.pattern)
        pages.append({name: paragraphs(html.decode("utf-8", "replace")) for name, html in found.items()})
    en, de = pages
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


def handbooks(debs: dict[str, Path], counts: Counter[str]) -> Iterator[Pair]:
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


def gnome(debs: dict[str, Path], counts: Counter[str]) -> Iterator[Pair]:
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


def manpages(debs: dict[str, Path], counts: Counter[str]) -> Iterator[Pair]:
    """Manual pages that po4a translated: the same macros in the same order."""
    page = r"/share/man/{}(man\w+)/([^/]+)\.gz$"
    sides = []
    for lang, names in (("", MANPAGES[:2]), ("de/", MANPAGES[2:])):
        found = texts([debs[name] for name in names], page.format(lang))
        try:
            whole = {name: gzip.decompress(content) for name, content in found.items()}
        except DAMAGED as error:
            raise RecipeError(f"a page of {' or '.join(names)} is damaged ({error}): fetch them again") from None
        sides.append({name: t for name, t in whole.items() if b"\n.Dd " not in t and b".so man" not in t})
    yield from each(sides[0], sides[1], manual_blocks, counts)
