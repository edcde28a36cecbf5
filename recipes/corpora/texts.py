"""Text of one language, as a folder that fairseq's language_modeling reads."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
from common.errors import RecipeError

from . import debian
from .archives import Archive, cut_off, fetch
from .binarise import Numbering, dictionary, number, save
from .building import described, seal
from .registry import SPLITS
from .speech import subwords


class TextSet(NamedTuple):
    """A data set.

    Attributes:
        about: words, licence.
        files: the file of each split.
        archive: that has the files; None where Debian's packages do.
        vocab_size: subwords; None where the text is words already.
    """

    about: str
    files: tuple[str, ...]
    archive: Archive | None
    vocab_size: int | None = None


TEXTS = {
    "ptb": TextSet(
        "Penn Treebank, 930,000 words; licence of the LDC",
        tuple(f"ptb.{split}.txt" for split in SPLITS),
        Archive("http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"),
    ),
    "wikitext-2": TextSet(
        "2 million words of Wikipedia; CC BY-SA 3.0",
        tuple(f"wiki.{split}.tokens" for split in SPLITS),
        Archive("https://wikitext.smerity.com/wikitext-2-v1.zip"),
    ),
    "debian-de": TextSet(
        "the German side of debian-en-de, in 8,000 subwords", tuple(f"{split}.de" for split in SPLITS), None, 8000
    ),
}


class Text(NamedTuple):
    """Text that is to be prepared, as a :class:`~corpora.publishing.Preparation`."""

    name: str
    local_dir: Path | None

    def at_hand(self) -> dict[str, Path]:
        """The files below --local-dir by their names, if all are there."""
        names = TEXTS[self.name].files
        found = (
            {path.name: path for path in sorted(self.local_dir.rglob("*")) if path.is_file()} if self.local_dir else {}
        )
        return {name: found[name] for name in names} if found.keys() >= set(names) else {}

    @property
    def archives(self) -> list[Archive]:
        archive = TEXTS[self.name].archive
        return [archive] if archive and not self.at_hand() else []

    def files(self) -> dict[str, Path]:
        return self.at_hand()

    def options(self) -> dict[str, Any]:
        return {"data_set": self.name, "versions": {"fairseq": version("fairseq")}}

    def gather(self, archives: Path, work: Path) -> tuple[dict[str, Path], list[dict[str, Any]]]:
        """The text files by their names, and facts of the sources."""
        if found := self.at_hand():
            return found, [described(path, name) for name, path in found.items()]
        names = TEXTS[self.name].files
        if not self.archives:
            manifest = debian.build(archives / "debian-en-de", self.local_dir)
            return {name: archives / "debian-en-de" / name for name in names}, [manifest]
        paths, sources = fetch(self.archives, self.local_dir, archives)
        (archive,) = paths.values()
        try:
            with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as pack:
                inside = pack.namelist() if isinstance(pack, zipfile.ZipFile) else pack.getnames()
                members = {Path(member).name: member for member in inside}
                if missing := [name for name in names if name not in members]:
                    raise RecipeError(f"{archive} has no {missing[0]}: it is another archive than this recipe knows")
                for name in names:
                    member = members[name]
                    file = pack.open(member) if isinstance(pack, zipfile.ZipFile) else pack.extractfile(member)
                    assert file
                    with file, (work / name).open("wb") as made:
                        shutil.copyfileobj(file, made)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise cut_off(archive, error) from None
        return {name: work / name for name in names}, sources

    def make(self, work: Path, archives: Path) -> Path:
        known, made, folder = TEXTS[self.name], work / "made", work / "made" / "bin"
        folder.mkdir(parents=True)
        paths, sources = self.gather(archives, work)
        texts = [paths[name] for name in known.files]
        for path in texts:
            if not path.read_text(encoding="utf-8").strip():
                raise RecipeError(f"{path} is empty")
        if known.vocab_size:
            with texts[0].open(encoding="utf-8") as lines:
                subwords((line.rstrip("\n") for line in lines), known.vocab_size, made)
            model = sentencepiece.SentencePieceProcessor(model_file=str(made / "spm.model"))
            for at, path in enumerate(texts):
                texts[at] = work / f"{SPLITS[at]}.sp"
                encoded = model.encode(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), out_type=str)
                texts[at].write_text("".join(f"{' '.join(line)}\n" for line in encoded), "utf-8", newline="\n")
        counts = dictionary(texts[:1], 1)
        save(counts, folder / "dict.txt")
        numbering = Numbering({word: n for n, word in enumerate(counts)}, "<u2" if len(counts) < 65_500 else "<u4")
        for split, path in zip(SPLITS, texts, strict=True):
            print(f"{split}: {number(path, numbering, 1, folder / split)}", flush=True)
        seal(made, self.options() | {"sources": sources})
        return made
