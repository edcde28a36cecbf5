"""Small packages and lists in the layout of Debian's."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from corpora import debian_readers as readers

from .pages import page

Files = dict[str, str | bytes]


HELD_OUT = ("ddtp", "ding", "gnome", "lohelp", "man")


def pack(folder: Path, package: str, files: Files, version: str = "1.0-1") -> Path:
    """A real .deb with these files under usr/share."""
    tree = folder / f"{package}.tree"
    control = f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: N <n@example.org>\n"
    inside: Files = {f"usr/share/{name}": text for name, text in files.items()}
    for name, text in {"DEBIAN/control": f"{control}Description: x\n", **inside}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(text.encode() if isinstance(text, str) else text)
    target = folder / f"{package}_{version.replace(':', '%3a')}_all.deb"
    command = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)
    return target


def mo(messages: dict[str, str], order: str = "<") -> bytes:
    """A catalog as gettext's manual describes it."""
    header = {"": "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n"}
    pairs = sorted((k.encode(), v.encode()) for k, v in {**header, **messages}.items())
    tables, body, start = b"", b"", 28 + 16 * len(pairs)
    for side in (0, 1):
        for pair in pairs:
            tables += struct.pack(f"{order}2I", len(pair[side]), start + len(body))
            body += pair[side] + b"\0"
    return struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0) + tables + body


def catalog_debs(folder: Path, content: bytes) -> dict[str, Path]:
    names = {package: re.sub(r"\\w\+", "any", path) for package, (path, _) in readers.CATALOGS.items()}
    paths = {package: f"locale{re.sub(r'[$()]', '', name).replace(chr(92), '')}" for package, name in names.items()}
    return {package: pack(folder, package, {path: content}) for package, path in paths.items()}


def stanza(package: str, language: str, text: str, md5: str | None = None) -> str:
    md5 = md5 or hashlib.md5(package.encode()).hexdigest()
    return f"Package: {package}\nDescription-md5: {md5}\nDescription-{language}: {text}\n\n"


def man(body: str) -> bytes:
    return gzip.compress(f'.\\" a comment\n.TH TEST 1 2024-01-01 "Linux"\n{body}'.encode(), mtime=0)


def mallard(body: str) -> str:
    return f'<page xmlns="http://projectmallard.org/1.0/" type="topic" id="x">{body}</page>'


def made_up(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences that share many trigrams with each other, a part of them the same for every seed."""
    rng = random.Random(seed)
    heads = [["open", "close", "show"], ["the", "a"], ["new", "old", "blue"], ["dialog", "window", "page"]]
    tail = ["red", "wide", "tall", "flat", "soft", "late"]
    words = [[rng.choice(h) for h in heads] + rng.choices(tail, k=rng.randint(0, 5)) for _ in range(count)]
    words += [["some", *rng.sample([a + b for a in "bdfgk" for b in ("al", "on", "ut")], k=6)] for _ in range(count)]
    return [(" ".join(w).capitalize() + ".", " ".join(x[::-1] + "ä" for x in w).capitalize() + ".") for w in words]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages and lists, small, in their real layout."""
    folder = tmp_path_factory.mktemp("repository")
    sides: tuple[dict[str, Files], dict[str, Files]] = ({}, {})
    docs = {name: [made_up(4, 100 * seed + i) for i in range(60)] for seed, name in enumerate(HELD_OUT, 1)}
    for lang, side in enumerate(sides):
        text = {name: [[pair[lang] for pair in doc] for doc in docs[name]] for name in docs}
        help_, short = ("en-US", "de")[lang], ("C", "de")[lang]
        side["lohelp"] = {
            f"libreoffice/help/{help_}/text/{i:02}.html": page(
                "".join(f'<p id="p{k}">{t}</p>' for k, t in enumerate(doc))
            )
            for i, doc in enumerate(text["lohelp"])
        }
        side["gnome"] = {
            f"help/{short}/gnome-help/{i:02}.page": mallard("".join(f"<p>{t}</p>" for t in doc))
            for i, doc in enumerate(text["gnome"])
        }
        side["man"] = {
            f"man/{('', 'de/')[lang]}man{1 + i % 2}/{i:02}.{1 + i % 2}.gz": man("".join(f".P\n{t}\n" for t in doc))
            for i, doc in enumerate(text["man"])
        }
        code = ("en", "de")[lang]
        names = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("sk", "lm", "rn")]
        blocks = ["{}\n {}".format(doc[0], "\n .\n ".join(doc[1:])) for doc in text["ddtp"]]
        listed = "".join(stanza(name, code, block) for name, block in zip(names, blocks, strict=False))
        (folder / f"mirror.example_dists_x_main_i18n_Translation-{code}").write_text(listed, encoding="utf-8")
        chapter = "<html><body>{}</body></html>".format("".join(f"<p>{pair[lang]}</p>" for pair in made_up(20, 7)))
        reference = {f"doc/debian-reference-common/docs/ch01.{code}.html": chapter}
        pack(folder, readers.HANDBOOKS[lang], reference)
        pack(folder, readers.HANDBOOKS[2 + lang], {f"developers-reference/{('', 'de/')[lang]}pkgs.html": chapter})
        pack(folder, list(readers.HELP.values())[lang], side["lohelp"])
        for k in (0, 1):
            pages = {name: text for name, text in side["man"].items() if f"man{1 + k}/" in name}
            pack(folder, readers.MANPAGES[2 * lang + k], pages)
    pack(folder, "gnome-user-docs", sides[0]["gnome"] | sides[1]["gnome"])
    lines = [" :: ".join(" | ".join(p[s].rstrip(".") for p in doc) for s in (1, 0)) for doc in docs["ding"]]
    pack(folder, "trans-de-en", {"trans/de-en": "\n".join(lines)})
    catalog_debs(folder, mo(dict(made_up(20, 9))))
    return folder


def lines(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8")
    assert (not text or text.endswith("\n")) and "\r" not in text
    return text.split("\n")[:-1]
