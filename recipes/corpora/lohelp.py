"""English-German sentence pairs from the help of LibreOffice, as the Debian packages carry it.

    cd recipes
    python -m corpora.lohelp --out data/lohelp-en-de                # fetches 5 MB into DIR.packages; installs nothing
    python -m corpora.lohelp --out data/lohelp-en-de --deb-dir DIR  # the two .deb files are already in DIR

Paragraphs are aligned exactly, by help page and element id. Whole pages are held out, by a hash of their path; what is
a near-copy of a held-out pair leaves the training text. The same packages give the same bytes. Needs dpkg-deb.
manifest.json also has the BLEU on test of copying, which must stay low.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from common.errors import RecipeError

from .debian import Domain, Recipe, fetch, make
from .debian_readers import HELP, facts, office_help, texts
from .pairs import Rules

MPL = Path("/usr/share/common-licenses/MPL-2.0")
LOHELP = Recipe(
    made_by="fairseq_sru recipes/corpora/lohelp.py",
    domains={"lohelp": Domain(office_help, tuple(HELP.values()), (0.06, 0.04), "MPL-2.0")},
    rules=Rules(
        hole="code or image",
        min_words=(4, 4),
        max_words=20,
        plain=re.compile(r"[\w \"'(),.:;!?%&/+§°€™×·„“”‚‘’«»…–—-]+"),
        foreign=re.compile(r"[^\W\d_A-Za-zÀ-ſẞ]|_"),
        markup={
            "address, placeholder or name in code": re.compile(
                r"//|::|\(\)|\bwww\.|\w\.\w+\.\w|\b[a-z]+[A-Z]|%[A-Za-z(]|[a-z]\([a-z]"
            ),
            "menu path": re.compile(r"\s[–—-]\s"),
        },
        max_ratio=2.0,
        max_word_ratio=2.0,
        max_shared=0.6,
    ),
    one_of_source=True,
    sizes={"test": 1_000, "valid": 500, "train": 10_000},
)
NOTICE = """\
English-German sentence pairs from the help of LibreOffice {upstream}

Taken from the Debian packages libreoffice-help-en-us and libreoffice-help-de, version {version}, by
recipes/corpora/lohelp.py of fairseq_sru. manifest.json has the checksums of the packages and the rules of the
selection.

The text was modified: paragraphs were extracted from the help pages, freed of markup, paired by page and element id,
partly split into sentences, filtered, stripped of duplicates, sampled, and split into train, valid and test. The
sentences themselves are as LibreOffice has them, but for spaces, hyphens and invisible characters.

This text is subject to the terms of the Mozilla Public License, v. 2.0. The file LICENSE has a copy of it; one is
also at https://mozilla.org/MPL/2.0/. The copyright file of the packages says:

{stanza}
Source of the help pages: https://download.documentfoundation.org/libreoffice/src (helpcontent2 and translations), or,
as Debian built them, `apt-get source libreoffice={version}`.
"""


def notice(deb: Path) -> str:
    """Origin and copyright of the text.

    Raises:
        RecipeError: the package isn't under the licence.
    """
    (copyright_file,) = texts([deb], "/copyright$").values()
    stanza = re.search(
        r"^Files: \*\n(?:.+\n)*License: MPL-2.0\n(?:.+\n)*", copyright_file.decode("utf-8", "replace"), re.MULTILINE
    )
    if not stanza:
        raise RecipeError(f"{deb} is not under MPL-2.0: fetch it again (25.2.3 is known to work)")
    version = facts(deb)["version"]
    return NOTICE.format(version=version, upstream=version.split(":")[-1].split("-")[0], stanza=stanza[0])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    whence = "folder with the two .deb files (default: apt-get download into OUT.packages)"
    parser.add_argument("--deb-dir", "--local-dir", type=Path, metavar="DIR", help=whence)
    args = parser.parse_args(argv)
    try:
        out = args.out.resolve()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RecipeError(f"argument --out: {args.out} must be a new or empty folder")
        if not MPL.is_file():
            raise RecipeError(f"{MPL} is missing, the licence that goes with the text: apt-get install base-files")
        files = fetch(LOHELP.files, out.with_name(f"{out.name}.packages"), args.deb_dir)
        licence = MPL.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temp:
            more = {"NOTICE": notice(files[HELP["en"]]).splitlines(), "LICENSE": licence}
            manifest = make(LOHELP, files, Path(temp, "made"), more)
            Path(temp, "made").rename(out)
    except (RecipeError, OSError) as error:
        print(f"lohelp: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({key: manifest[key] for key in ("counts", "test_bleu")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
