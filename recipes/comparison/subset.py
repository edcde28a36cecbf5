"""Some sentences of binarised data."""

from __future__ import annotations

from pathlib import Path


def write_subset(bin_data: Path, folder: Path, source: str, target: str, chosen: dict[str, list[int]]) -> None:
    """Copy the chosen sentences of binarised splits, in their order, to a folder that fairseq reads."""
    from fairseq.data import Dictionary, data_utils, indexed_dataset

    folder.mkdir(parents=True, exist_ok=True)
    for language in (source, target):
        dictionary = Dictionary.load(str(bin_data / f"dict.{language}.txt"))
        dictionary.save(str(folder / f"dict.{language}.txt"))
        for split, numbers in chosen.items():
            name = f"{split}.{source}-{target}.{language}"
            sentences = data_utils.load_indexed_dataset(str(bin_data / name), dictionary)
            builder = indexed_dataset.make_builder(str(folder / f"{name}.bin"), "mmap", vocab_size=len(dictionary))
            for i in numbers:
                builder.add_item(sentences[i])
            builder.finalize(str(folder / f"{name}.idx"))
