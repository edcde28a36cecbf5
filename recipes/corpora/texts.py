"""Text of one language, as a folder that fairseq's language_modeling reads."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import RecipeError
from common.files import read_text

from . import debian
from .archives import Archive, fetch, find, unpack_all
from .binarise import dictionary, number
from .dataset import Dataset, Folders, described
from .registry import SPLITS
from .speech import subwords


class TextSet(NamedTuple):
    """A data set.

    Attributes:
        about: words, licence.
        file: of each split, where {} stands for the split.
        archive: that has the files; None where Debian's packages do.
        vocab_size: subwords; None where the text is words already.
    """

    about: str
    file: str
    archive: Archive | None
    vocab_size: int | None = None

    def files(self) -> dict[str, str]:
        return {split: self.file.format(split) for split in SPLITS}


# The checksum is that of PaddlePaddle, which reads this archive, too.
PTB = Archive("http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz", md5="30177ea32e27c525793142b6bf2c8e2d")
WIKITEXT = Archive("https://wikitext.smerity.com/wikitext-2-v1.zip")
TEXTS = {
    "ptb": TextSet("Penn Treebank, 930,000 words; not tried; licence of the LDC", "ptb.{}.txt", PTB),
    "wikitext-2": TextSet("2 million words of Wikipedia; not tried; CC BY-SA 3.0", "wiki.{}.tokens", WIKITEXT),
    "debian-de": TextSet("the German side of debian-en-de, in 8,000 subwords", "{}.de", None, 8000),
}


@dataclass(frozen=True)
class Text(Dataset):
    """Text of one language that is to be prepared."""

    def below(self, folder: Path) -> dict[str, Path]:
        """The text below a folder by split; empty where none is there.

        Raises:
            RecipeError: it lies in several places, or a file is missing.
        """
        names = TEXTS[self.name].files()
        places = sorted({path.parent for name in names.values() for path in folder.rglob(name)})
        if len(places) > 1:
            raise RecipeError(f"{folder}: {places[0]} and {places[1]} both have files of {self.name}; must be one")
        paths = {split: place / name for place in places for split, name in names.items()}
        if missing := [path.name for path in paths.values() if not path.is_file()]:
            raise RecipeError(f"{folder} has no {' and no '.join(missing)}")
        return paths

    def files(self) -> dict[str, Path]:
        return self.below(self.local_dir) if self.local_dir else {}

    def options(self) -> dict[str, Any]:
        learned = {"versions": {"sentencepiece": version("sentencepiece")}} if TEXTS[self.name].vocab_size else {}
        return {"data_set": self.name, **learned}

    def gather(self, archives: Path, work: Path) -> tuple[dict[str, Path], list[dict[str, Any]]]:
        """The text by split, and facts of the sources."""
        if texts := self.files():
            return texts, [described(path, name) for name, path in texts.items()]
        if (known := TEXTS[self.name].archive) is None:
            manifest = debian.build(archives / "debian-en-de", self.local_dir)
            return self.below(archives / "debian-en-de"), [manifest]
        all_of = ", ".join(TEXTS[self.name].files().values())
        if self.local_dir and find(known, [self.local_dir]) is None:
            raise RecipeError(f"argument --local-dir: must have {known.name}, or {all_of}; got {self.local_dir}")
        paths, sources = fetch([known], self.local_dir, archives)
        texts = self.below(unpack_all(paths[known.name], work / "unpacked"))
        if not texts:
            raise RecipeError(f"{paths[known.name]} has none of {all_of}: it is another archive than this recipe knows")
        return texts, sources

    def make(self, folders: Folders) -> dict[str, Any]:
        folder, vocab_size = folders.made / "bin", TEXTS[self.name].vocab_size
        folder.mkdir()
        texts, sources = self.gather(folders.archives, folders.work)
        lines = {split: read_text(path).removesuffix("\n").split("\n") for split, path in texts.items()}
        for split, path in texts.items():
            if not any(line.strip() for line in lines[split]):
                raise RecipeError(f"{path} is empty")
        if vocab_size:
            model = subwords(lines["train"], vocab_size, folders.made)
            for split, plain in lines.items():
                texts[split] = folders.work / f"{split}.sp"
                encoded = "".join(f"{' '.join(line)}\n" for line in model.encode(plain, out_type=str))
                texts[split].write_text(encoded, "utf-8", newline="\n")
        words = dictionary([texts["train"]])
        words.save(str(folder / "dict.txt"))
        for split, path in texts.items():
            print(f"{split}: {number(path, words, folder / split)}", flush=True)
        return {"sources": sources}
