"""Models as folders: what is written is read again, and what is damaged is one clear line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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


def test_a_model_that_could_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 20)
    with pytest.raises(ModelError, match=r"^a dictionary and layers of \d+ are too large: at most 20 together$"):
        exported(tmp_path / "model", "sru, defaults")
    assert not (tmp_path / "model").exists()


def test_others_may_read_all_of_a_model(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        exported(tmp_path / "model", "sru, defaults")
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}


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


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be another file system's, or the one that work is done in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inode = Path().stat().st_ino
    Path(".fairseq_sru-export-12").mkdir()  # of one that was killed
    exported(tmp_path / "other", "sru, defaults")
    save(load(tmp_path / "other")[0], tmp_path / "other.spm", Path())
    assert Path().stat().st_ino == inode
    made = {path.name for path in (tmp_path / "other").iterdir()}
    assert {path.name for path in Path().iterdir()} == made | {".fairseq_sru-export-12"}
    assert Translator(".").translate(["window"], max_length=3)


def test_the_file_that_is_no_subword_model_is_named_as_it_was_given(tmp_path: Path) -> None:
    exported(tmp_path / "good", "sru, defaults")
    (wrong := tmp_path / "en.vocab").write_text("a\t-1\n")
    with pytest.raises(ModelError, match=rf"^{re.escape(str(wrong))} is not a sentencepiece model$"):
        save(load(tmp_path / "good")[0], wrong, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_weights_of_a_training_that_failed_are_refused(tmp_path: Path) -> None:
    exported(tmp_path / "good", "sru, defaults")
    model = load(tmp_path / "good")[0]
    model.decoder.calls[-1][1]["weight"][3, 1] = float("nan")
    with pytest.raises(
        ModelError, match=r"^decoder\.\d+\.weight has numbers that are not finite: training has failed$"
    ):
        save(model, tmp_path / "good.spm", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "good", "sru, defaults")

    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"made: weights.safetensors can't be written: No space left on device$"):
        save(load(tmp_path / "good")[0], tmp_path / "good.spm", tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


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


def test_a_number_that_changed_on_the_way_is_damage(copied: Path) -> None:
    text = (copied / "config.json").read_text()
    assert text.count('"eps": 1e-05') > 1
    unsealed = json.loads(text)
    del unsealed["sha256"]["config.json"]
    for changed in (text.replace('"eps": 1e-05', '"eps": 1e-04', 1), json.dumps(unsealed)):
        (copied / "config.json").write_text(changed)
        with pytest.raises(ModelError, match=r"config\.json is damaged: copy or export it again$"):
            Translator(copied)


@pytest.mark.parametrize("given", [2, "1", None])
def test_an_unknown_version_is_refused(given: Any, copied: Path) -> None:
    change(copied, format=given)
    with pytest.raises(ModelError, match=rf"format {given!r} is unknown, this one reads 1: export it again"):
        Translator(copied)
    with pytest.raises(ModelError, match=r"no such folder; python -m fairseq_sru\.export makes one"):
        Translator(copied / "none")


def test_weights_of_other_shapes_and_types_are_refused_or_run(copied: Path) -> None:
    """Fewer rows than a slot has room for are no danger to memory; a checksum tells of damage."""
    tensors = load_file(copied / "weights.safetensors")

    def runs(name: str, wrong: torch.Tensor) -> bool:
        save_file({**tensors, name: wrong.contiguous()}, copied / "weights.safetensors")
        files = [path for path in copied.iterdir() if path.name != "config.json"]
        change(copied, sha256={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
        try:
            Translator(copied, 1).translate(LINES, beam=2, max_length=5)
        except ModelError:
            return False
        return True

    for name, tensor in tensors.items():
        assert runs(name, tensor)
        assert not any(runs(name, wrong) for wrong in (tensor[None], tensor.half(), tensor.to(torch.int8)))
    assert sum(runs(name, tensor[:-1]) for name, tensor in tensors.items()) < len(tensors) / 2


def test_int8_is_for_the_matrices_of_products_and_embeddings_alone(copied: Path) -> None:
    """Compiled code would read others as float32, four times as far."""
    config, tensors = json.loads((copied / "config.json").read_text()), load_file(copied / "weights.safetensors")
    used = {
        call[key]: (call["op"], key)
        for side in ("encoder", "decoder")
        for call in config[side]["ops"]
        for key in call
        if isinstance(call[key], str) and call[key] in tensors
    }
    assert {("convolve", "weight"), ("attend", "coverage"), ("norm", "bias")} <= set(used.values())
    for name, place in used.items():
        tensor = tensors[name]
        small = {name: tensor.to(torch.int8), f"{name}.scale": torch.ones(len(tensor))}
        save_file({**tensors, **small}, copied / "weights.safetensors")
        read = (copied / "weights.safetensors").read_bytes()
        change(copied, sha256={**config["sha256"], "weights.safetensors": hashlib.sha256(read).hexdigest()})
        if place in {("linear", "weight"), ("embed", "weight")}:
            load(copied)
        else:
            with pytest.raises(ModelError, match=rf"{place[1]} must be float32; got int8$"):
                load(copied)


def test_what_would_break_lines_or_exhaust_memory_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    change(copied, encoder={**config["encoder"], "slots": [*config["encoder"]["slots"], 2**20]})
    with pytest.raises(ModelError, match=r"slots must have 1048576 numbers together at most; got \d+$"):
        load(copied)
    words = json.loads((copied / "vocabulary.json").read_text())
    words["target"][-1] += "\n"
    (copied / "vocabulary.json").write_text(json.dumps(words))
    read = (copied / "vocabulary.json").read_bytes()
    config["sha256"]["vocabulary.json"] = hashlib.sha256(read).hexdigest()
    change(copied, **config)
    with pytest.raises(ModelError, match=r"no word with the end of a line in it; got '.+\\n'$"):
        load(copied)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_a_config_with_something_else_in_it_is_refused_or_runs(seed: int, copied: Path) -> None:
    """Whatever is let through reaches compiled code; test_sanitized.py does this under sanitizers."""
    assert fuzzed(copied, seed, 50) > 15
