"""Models as folders: what is written is read again, and what is damaged is one clear line."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from safetensors.torch import load as of_bytes
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from support.exported import LINES, exported, fuzzed

from fairseq_sru import Translator
from fairseq_sru.decoding import files
from fairseq_sru.decoding.files import ModelError, load, save
from fairseq_sru.decoding.text import TextOptions
from fairseq_sru.export import model_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    exported(folder, "sru, coverage", share_all_embeddings=True, encoder_kernel_size=3)
    return folder


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def change(folder: Path, **entries: Any) -> None:
    """Other entries, as an export would have written them."""
    config = {**json.loads((folder / "config.json").read_text()), **entries}
    config["sha256"]["config.json"] = files._sum_of(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_tied_embedding_is_written_once(model: Path) -> None:
    tensors = load_file(model / "weights.safetensors").values()
    words = json.loads((model / "vocabulary.json").read_text())["source"]
    assert sum(len(tensor) == len(words) for tensor in tensors) == 1


def test_a_subword_model_of_other_text_is_named(model: Path, tmp_path: Path) -> None:
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Guten Morgen", "bis Mittag", "Klick hier"] * 9), model_writer=other, vocab_size=40,
        model_type="bpe", minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spm.model").write_bytes(other.getvalue())
    (tmp_path / "bpe.codes").write_text("#version: 0.2\nt h\nth e</w>\n")
    moses = load(model)[0]._replace(text=TextOptions("moses-bpe", "en", "de"))
    with pytest.raises(
        ModelError, match=r"^\S+bpe.codes is of other text than the model: \d+ of 57 words .* are no subw"
    ):
        save(moses, tmp_path / "bpe.codes", tmp_path / "out")
    with pytest.raises(
        ModelError, match=r"^\S+spm.model is of other text than the model: \d+ of 57 words .* are no subw"
    ):
        save(load(model)[0], tmp_path / "spm.model", tmp_path / "made")
    assert not list(tmp_path.glob("made*"))


def test_nothing_of_the_users_is_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(ModelError, match="model is there already"):
        exported(tmp_path / "model", "sru, defaults")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "name",
    [
        "sru, lstm",
        "sru, no residual",
        "sru, global attention",
        "sru, no attention",
        "sru, adaptive softmax",
        "transformer_sru, transformer",
        "transformer_sru, ssru, feed-forward sru",
        "transformer_sru, adaptive softmax",
        "sru_lm, defaults",
    ],
)
def test_models_that_the_translator_does_not_run_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^the translator can't run this model, only --arch sru with SRU units"):
        exported(tmp_path / "model", name)
    assert not (tmp_path / "model").exists()


def test_a_model_in_memory_does_not_change_with_its_file(tmp_path: Path) -> None:
    exported(tmp_path / "model", "sru, defaults")
    model, _ = load(tmp_path / "model")
    (embedding,) = (call["weight"] for op, call in model.encoder.calls if op == "embed")
    before = embedding.clone()
    file = tmp_path / "model" / "weights.safetensors"
    with file.open("r+b") as there:  # in place, as cp does
        there.write(bytes(file.stat().st_size))
    assert torch.equal(embedding, before)


def test_a_model_of_sentences_with_tokens_of_their_own_is_refused(tmp_path: Path) -> None:
    model, text = exported(tmp_path / "model", "sru, defaults"), TextOptions("sentencepiece", "", "")
    task = object.__new__(TranslationMultiSimpleEpochTask)
    with pytest.raises(ModelError, match=r"^the model was trained with TranslationMultiSimpleEpochTask, whose sent"):
        model_of(model, task, text)


def test_an_empty_folder_is_filled(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the one that work is done in."""
    monkeypatch.chdir(tmp_path)
    save(load(model)[0], model.with_name("model.spm"), Path())
    for path in model.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert Translator(".").translate(["window"], max_length=3)


def test_the_file_that_is_no_subword_model_is_named_as_it_was_given(model: Path, tmp_path: Path) -> None:
    (wrong := tmp_path / "en.vocab").write_text("a\t-1\n")
    with pytest.raises(ModelError, match=rf"^{re.escape(str(wrong))} is not a sentencepiece model$"):
        save(load(model)[0], wrong, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_write_that_fails_leaves_room_for_the_next_try(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "weights.safetensors":
            write(path, content[:10])
            raise OSError(28, "No space left on device")
        return write(path, content)

    read, subword_model = load(model)[0], model.with_name("model.spm")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(Path, "write_bytes", full)
        save(read, subword_model, tmp_path / "made")
    save(read, subword_model, tmp_path / "made")
    assert Translator(tmp_path / "made")


@pytest.mark.parametrize("file", ["config.json", "vocabulary.json", "weights.safetensors", "spm.model"])
def test_a_file_that_is_missing_or_cut_short_is_named(file: str, copied: Path) -> None:
    content = (copied / file).read_bytes()
    for length in (0, 1, 7, 100, len(content) // 2, len(content) - 1):
        (copied / file).write_bytes(content[:length])
        with pytest.raises(ModelError) as raised:
            Translator(copied)
        assert "\n" not in str(raised.value)
        assert file in str(raised.value)
    (copied / file).unlink()
    with pytest.raises(ModelError, match=rf"{file}: No such file"):
        Translator(copied)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda text: text.replace('"eps": 1e-05', '"eps": 1e-04', 1), "config.json is damaged: copy or export it"),
        (lambda text: text.replace('"config.json":', '"other":'), "config.json is damaged: copy or export it"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2 is unknown, this one reads 1: export it"),
    ],
)
def test_a_config_that_is_another_is_refused(edit: Any, said: str, copied: Path) -> None:
    (copied / "config.json").write_text(edit((copied / "config.json").read_text()))
    with pytest.raises(ModelError, match=said):
        Translator(copied)


def test_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder; python -m fairseq_sru\.export makes one"):
        Translator(tmp_path / "none")


def reseal(folder: Path, name: str, content: bytes) -> None:
    """Write other content of a file, and its checksum."""
    (folder / name).write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    change(folder, sha256={**config["sha256"], name: hashlib.sha256(content).hexdigest()})


def test_weights_of_other_shapes_and_types_are_refused_or_run(copied: Path) -> None:
    """Fewer rows than a slot has room for are no danger to memory; a checksum tells of damage."""
    tensors = of_bytes((copied / "weights.safetensors").read_bytes())

    def runs(name: str, wrong: torch.Tensor) -> bool:
        reseal(copied, "weights.safetensors", as_bytes({**tensors, name: wrong.contiguous()}))
        try:
            Translator(copied, 1).translate(LINES, beam=2, max_length=5)
        except ModelError:
            return False
        return True

    for name, tensor in tensors.items():
        assert runs(name, tensor)
        assert not any(runs(name, wrong) for wrong in (tensor[None], tensor.half(), tensor.to(torch.int8)))
    assert sum(runs(name, tensor[:-1]) for name, tensor in tensors.items()) < len(tensors) / 2


def test_int8_is_for_the_matrices_of_products_and_embeddings_only(copied: Path) -> None:
    """Compiled code would read others as float32, four times as far."""
    config = json.loads((copied / "config.json").read_text())
    tensors = of_bytes((copied / "weights.safetensors").read_bytes())
    used = {
        call[key]: (call["op"], key)
        for side in ("encoder", "decoder")
        for call in config[side]["ops"]
        for key in call
        if isinstance(call[key], str) and call[key] in tensors
    }
    assert {("convolve", "weight"), ("attend", "coverage"), ("norm", "bias")} <= set(used.values())
    for name, place in used.items():
        small = {name: tensors[name].to(torch.int8), f"{name}.scale": torch.ones(len(tensors[name]))}
        reseal(copied, "weights.safetensors", as_bytes({**tensors, **small}))
        if place in {("linear", "weight"), ("embed", "weight")}:
            load(copied)
        else:
            with pytest.raises(ModelError, match=rf"{place[1]} of {place[0]} must be .*Tensor.*; got Quantised$"):
                load(copied)


def test_slots_that_would_exhaust_memory_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    change(copied, encoder={**config["encoder"], "slots": [*config["encoder"]["slots"], 2**20]})
    with pytest.raises(ModelError, match=r"slots must have 1048576 numbers together at most; got \d+$"):
        load(copied)


def test_a_word_that_would_break_lines_is_refused(copied: Path) -> None:
    words = json.loads((copied / "vocabulary.json").read_text())
    words["target"][-1] += "\n"
    reseal(copied, "vocabulary.json", json.dumps(words).encode())
    with pytest.raises(ModelError, match=r"no word with the end of a line in it; got '.+\\n'$"):
        load(copied)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_a_config_with_something_else_in_it_is_refused_or_runs(seed: int, copied: Path) -> None:
    """Whatever is let through reaches compiled code; test_sanitized.py does this under sanitizers."""
    assert fuzzed(copied, seed, 50) > 15
