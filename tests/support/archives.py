"""Small archives in the layout of the real ones, made of the text that ships."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

from conftest import ROOT
from corpora import registry

LOHELP = ROOT / "recipes" / "data" / "lohelp-en-de"


def lohelp(split: str, language: str, start: int = 0, count: int | None = None) -> list[str]:
    lines = (LOHELP / f"{split}.{language}").read_text().split("\n")[:-1]
    return lines[start : None if count is None else start + count]


def text_of(lines: list[str] | list[bytes]) -> bytes:
    return b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)


def tgz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return path


def multi30k_archives(folder: Path, tested: int = 100) -> None:
    folder.mkdir()
    for split, name in (("train", "train"), ("valid", "val")):
        for language in ("en", "de"):
            content = text_of(lohelp(split, language, count=300))
            (folder / f"{name}.{language}.gz").write_bytes(gzip.compress(content))
    members = {f"test_2016_flickr.{lang}": text_of(lohelp("test", lang, count=tested)) for lang in ("en", "de")}
    tgz(folder / "multi30k_test_sets_d3ec2a38.tar.gz", {"test_2017_flickr.en": b"another\n", **members})


def tags(lines: list[str]) -> bytes:
    """Lines as a train.tags file has them, with what stands at a talk's head before each 50."""
    out = []
    for at in range(0, len(lines), 50):
        out += [f"<url>http://www.ted.com/talks/{at}.html</url>", "<keywords>talks, text</keywords>"]
        out += [f"<talkid>{at}</talkid>", f"<title>{lines[at]}</title>"]
        out += [f"<description>TED Talk: {lines[at]}</description>", *(f" {line} " for line in lines[at : at + 50])]
    return text_of(out)


def segments(lines: list[str]) -> bytes:
    """Lines as an .xml file has them."""
    head = ['<?xml version="1.0" encoding="UTF-8"?>', "<mteval>", '<srcset setid="iwslt2014" srclang="german">']
    head += ['<doc docid="69" genre="lectures">', "<url>http://www.ted.com</url>", "<title>Title</title>"]
    body = [f'<seg id="{number}"> {line} </seg>' for number, line in enumerate(lines, 1)]
    return text_of([*head, *body, "</doc>", "</srcset>", "</mteval>"])


def iwslt_archive(folder: Path, tested: int = 20) -> None:
    """``tested`` sentences and one more in each of the five test files."""
    folder.mkdir()
    members = {"de-en/README": b"text\n"}
    for language in ("de", "en"):
        lines = lohelp("train", language, count=1000)
        lines[10] = "word " * (176 if language == "de" else 170)  # too long on one side
        lines[30] = "eins zwei drei vier" if language == "de" else "one two three four five six seven"  # ratio > 1.5
        lines[31] = "eins zwei drei vier" if language == "de" else "one two three four five six"  # just 1.5
        lines[32] = "" if language == "de" else "nothing"
        lines[33] += " \x94"  # a control character, which fairseq's script keeps
        members[f"de-en/train.tags.de-en.{language}"] = tags(lines)
        for number, name in enumerate(registry.IWSLT_TEST):
            content = segments([*lohelp("test", language, number * tested, tested), "It’s a Test"])
            members[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = content
    tgz(folder / "de-en.tgz", members)


def wmt14_archives(folder: Path, tested: int = 50) -> dict[str, list[tuple[bytes, bytes]]]:
    """Writes archives with odd text in them; returns the pairs that are fit for training, and those of dev and test."""
    folder.mkdir()
    en, de = (lohelp("train", language, count=1200) for language in ("en", "de"))
    good = [(a.encode(), b.encode()) for a, b in zip(en, de, strict=True)]
    europarl, crawl, news = good[:400], good[400:800], good[800:]
    odd = [
        (b"", b"Nur Deutsch."),  # empty
        (b" \t ", b"Auch nur Deutsch."),  # empty
        (b"One bad byte: \xff", b"Ein schlechtes Byte."),  # not UTF-8
        (b"Latin-1", "für".encode("latin-1")),  # not UTF-8
        (b"A surrogate: \xed\xa0\x80", b"Ein Surrogat."),  # not UTF-8
        (b"A NUL: \x00.", b"Ein NUL."),  # control character
        (b"An escape.", b"Ein \x1b[1mEscape."),  # control character
        ("A C1 control: \x99.".encode(), b"Ein C1."),  # control character
        europarl[3],  # duplicate
        europarl[3],  # duplicate
    ]
    edited = [
        ("One\u2028line only.".encode(), "Nur\u2029eine\x0bZeile\x85hier.".encode()),
        (b"Ends as on DOS.\r", b"Endet wie auf DOS.\r"),
        ("Hard\u00a0space,  two spaces ".encode(), "Festes\u00a0Leerzeichen".encode()),
    ]
    plain = [
        (b"One line only.", b"Nur eine Zeile hier."),
        (b"Ends as on DOS.", b"Endet wie auf DOS."),
        (b"Hard space, two spaces", b"Festes Leerzeichen"),
    ]
    long = b"word " * 300
    uneven = (b"Short.", "Das hier ist nun wirklich ein sehr viel längerer Satz als der andere.".encode())
    bom = "\ufeff".encode()

    def members(stem: str, pairs: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
        return {f"{stem}.de": text_of([b for _, b in pairs]), f"{stem}.en": text_of([a for a, _ in pairs])}

    first = [(bom + europarl[0][0], bom + europarl[0][1]), *europarl[1:], *odd]
    tgz(
        folder / "training-parallel-europarl-v7.tgz",
        {"training/europarl-v7.cs-en.cs": b"x\n"} | members("training/europarl-v7.de-en", first),
    )
    tgz(
        folder / "training-parallel-commoncrawl.tgz",
        {"commoncrawl.cs-en.cs": b"x\n"} | members("commoncrawl.de-en", [*crawl, *edited, (long, long), uneven]),
    )
    nc = "training/news-commentary-v9.de-en"
    tgz(folder / "training-parallel-nc-v9.tgz", members(nc, [*news, europarl[5]]))
    dev = [(a.encode(), b.encode()) for a, b in zip(lohelp("valid", "en"), lohelp("valid", "de"), strict=True)]
    dev[7] = (b"", dev[7][1])
    tgz(folder / "dev.tgz", {"dev/newstest2012.en": b"x\n"} | members("dev/newstest2013", [*dev[:60], (long, b"lang")]))
    test = list(zip(lohelp("test", "en", count=tested), lohelp("test", "de", count=tested), strict=True))
    sgm = {}
    for side, (kind, language) in enumerate((("src", "en"), ("ref", "de"))):
        lines = [f'<{kind}set setid="newstest2014" srclang="any">', '<doc sysid="ref" docid="1" origlang="de">', "<p>"]
        lines += [f'<seg id="{number}">{pair[side]}</seg>' for number, pair in enumerate(test, 1)]
        sgm[f"test-full/newstest2014-deen-{kind}.{language}.sgm"] = text_of([*lines, "</p>", "</doc>"])
    tgz(folder / "test-full.tgz", sgm)
    return {
        "train": [*europarl, *crawl, *plain, (long.strip(), long.strip()), uneven, *news],
        "valid": [*dev[:60], (long.strip(), b"lang")],
        "test": [(a.encode(), b.encode()) for a, b in test],
    }
