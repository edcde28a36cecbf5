"""Small models as folders of the translator, and the text that they take."""

from __future__ import annotations

import io
import json
import random
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from conftest import ROOT, run_cli
from fairseq.data import Dictionary

from fairseq_sru import Translator
from fairseq_sru.decoding.files import ModelError, _sum_of, save
from fairseq_sru.decoding.text import TextOptions
from fairseq_sru.decoding.translator import TooLong
from fairseq_sru.export import model_of
from fairseq_sru.models import base_decoder, search, step
from support.commands import SMALL
from support.processes import python
from support.small_models import VARIANTS, made

LINES = [
    "the window is open",
    "close the window now",
    "öffnet das neue Fenster",
    "a new file is opened",
    "then save the file again",
    "das Fenster ist offen",
]
SENTENCEPIECE = TextOptions("sentencepiece", "en", "de")


@cache
def subword_model() -> bytes:
    """A sentencepiece model of LINES."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4), model_writer=model, vocab_size=60, model_type="bpe", minloglevel=2
    )
    return model.getvalue()


@cache
def words() -> Dictionary:
    """Its pieces."""
    model = sentencepiece.SentencePieceProcessor(model_proto=subword_model())
    dictionary = Dictionary()
    for i in range(3, model.vocab_size()):
        dictionary.add_symbol(model.id_to_piece(i))
    return dictionary


@contextmanager
def torch_alone(model: Any) -> Iterator[None]:
    """Neither search nor decoder step of a model is compiled."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (base_decoder, search):
            patched.setattr(module, "available", lambda: False)
        for part in (model, model.decoder):
            step.forget(part, True)
        yield
    for part in (model, model.decoder):
        step.forget(part, True)


def exported(folder: Path, name: str, int8: bool = False, norm: float | None = None, **more: Any) -> Any:
    """Write an untrained model of VARIANTS, whose translations differ from one another; returns the model. norm: the
    weights of the decoder's layer norms."""
    torch.manual_seed(0)
    kind, options = VARIANTS[name]
    model = made(kind, words(), **{**options, **more}).float().eval()
    for parameter in model.decoder.parameters():
        parameter.data.mul_(1.5)  # not near to uniform
    if norm is not None:
        for parameter_name, parameter in model.decoder.named_parameters():
            if "norm" in parameter_name:
                parameter.data.fill_(norm)
    task = Namespace(source_dictionary=words(), target_dictionary=words())
    file = folder.parent / f"{folder.name}.spm"
    folder.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(subword_model())
    save(model_of(model, task, SENTENCEPIECE), file, folder, int8)
    return model


WRONG = [0, -1, 1, 2, 3, 7, 1000, 2**31, 2**70, 0.5, float("nan"), "x", "relu", None, True, [], {}, [1], "weight"]


def damaged(value: Any, rng: random.Random) -> Any:
    """The same with one thing changed somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        return {**value, key: damaged(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.95:
        at = rng.randrange(len(value))
        new = [] if rng.random() < 0.1 else [damaged(value[at], rng)]
        return [*value[:at], *new, *value[at + 1 :]]
    return rng.choice(WRONG)


def fuzzed(folder: Path, seed: int, times: int) -> int:
    """Translate with configs that were damaged; returns how many were refused, by one line. Others run."""
    rng = random.Random(seed)
    config = json.loads((folder / "config.json").read_text())
    refused = 0
    for _ in range(times):
        changed = damaged(config, rng)
        if isinstance(changed, dict) and isinstance(changed.get("sha256"), dict):  # or that is all that is found
            changed["sha256"] = {**changed["sha256"], "config.json": _sum_of(changed)}
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            Translator(folder, 1).translate(LINES, beam=2, max_length=5)
        except TooLong:
            pass
        except ModelError as error:
            assert "\n" not in str(error)
            refused += 1
    return refused


def trained(folder: Path, tokenizer: str) -> tuple[Path, list[str]]:
    """Text that recipes/prepare.py has prepared, a model that saw it for a moment, and how to export it."""
    rng = random.Random(2)
    words = sorted(
        {word for line in LINES for word in line.split()} | {"It's", "(e.g.", "100%", "read-only,", "„Datei“"}
    )
    for split, count in (("train", 400), ("valid", 20), ("test", 30)):
        lines = [" ".join(rng.choices(words, k=rng.randint(2, 9))) for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{split}.de").write_text("".join(f"{' '.join(line.split()[::-1])}\n" for line in lines))
    prefixes = [x for split in ("train", "valid", "test") for x in (f"--{split}-prefix", folder / split)]
    python(
        ROOT / "recipes" / "prepare.py", *prefixes, "-s", "en", "-t", "de", "--vocab-size", "80",
        "--tokenizer", tokenizer, "--out", folder / "data",
    )  # fmt: skip
    training = [*SMALL, "--optimizer", "adam", "--lr", 5e-3, "--max-tokens", 400, "--max-epoch", 3]
    run_cli("train", folder / "data" / "bin", "--user-dir", "fairseq_sru", *training, "--save-dir", folder / "save")
    flag = {"sentencepiece": "--sentencepiece-model", "moses-bpe": "--subword-nmt-codes"}[tokenizer]
    file = {"sentencepiece": "spm.model", "moses-bpe": "bpe.codes"}[tokenizer]
    return folder, ["--path", str(folder / "save" / "checkpoint_last.pt"), flag, str(folder / "data" / file)]
