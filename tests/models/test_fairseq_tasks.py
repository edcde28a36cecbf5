"""What the patch mends of fairseq's other tasks, kinds of data and of training."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_cli
from fairseq import checkpoint_utils
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment as WithAlignment,
)
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import IndexedCachedDataset, IndexedDataset, IndexedDatasetBuilder
from fairseq.dataclass.configs import CheckpointConfig, EMAConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.distributed_fairseq_model import unused_in_training
from fairseq.models.ema import EMA
from fairseq.options import get_validation_parser
from fairseq.tasks.fairseq_task import FairseqTask
from fairseq.tasks.semisupervised_translation import SemisupervisedTranslationTask
from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from support.commands import PLUGIN
from support.processes import python

SMALL = ["--arch", "sru", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--cpu", "--optimizer", "adam"]
SMALL += ["--lr", 5e-3, "--max-tokens", 400]


@pytest.fixture
def transformer(dictionary: Any) -> Any:
    args = Namespace(encoder_embed_dim=8, encoder_layers=2, encoder_ffn_embed_dim=8, encoder_attention_heads=2)
    vars(args).update(decoder_layers=1, encoder_normalize_before=True, decoder_normalize_before=True)
    ARCH_CONFIG_REGISTRY["transformer"](args)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return ARCH_MODEL_REGISTRY["transformer"].build_model(args, task)


@pytest.mark.parametrize("kind", [IndexedDataset, IndexedCachedDataset])
def test_data_that_are_not_mapped_are_read_in_any_order(kind: Any, tmp_path: Path) -> None:
    """Whatever was read ahead of it; an open file would be shared by the processes that prepare batches."""
    rows = [torch.arange(n, n + length) for n, length in enumerate((3, 1, 0, 7))]
    made = IndexedDatasetBuilder(str(tmp_path / "data.bin"), dtype=np.int32)
    for row in rows:
        made.add_item(row.int())
    made.finalize(str(tmp_path / "data.idx"))
    data = kind(str(tmp_path / "data"), fix_lua_indexing=True)
    if data.supports_prefetch:
        assert torch.equal(data[3], rows[3])
        data.prefetch([0, 2])
    for i in (3, 0, 2, 1, 3):
        assert torch.equal(data[i], rows[i])
    assert data.data_file is None


@pytest.mark.slow
def test_lazy_data_are_trained_on(tmp_path: Path) -> None:
    for language in ("en", "de"):
        (tmp_path / f"text.{language}").write_text("a b c\nb c\n" * 20)
    both = ["--trainpref", tmp_path / "text", "--validpref", tmp_path / "text"]
    data = tmp_path / "bin"
    run_cli("preprocess", "-s", "en", "-t", "de", *both, "--destdir", data, "--dataset-impl", "lazy")
    for implementation in ("lazy", "cached"):
        words = ["--dataset-impl", implementation, "--num-workers", 2, "--max-update", 2, "--no-save"]
        run_cli("train", data, *PLUGIN, *SMALL, *words, "--save-dir", tmp_path / "none")


def test_an_average_keeps_the_last_layer_norms(transformer: Any) -> None:
    """A model that says of itself no version is taken for one of before 2019, which has none."""
    averaged = EMA(transformer, EMAConfig(store_ema=True, ema_decay=0.5))
    averaged.step(transformer, updates=1)
    for side in (averaged.get_model().encoder, averaged.get_model().decoder):
        assert side.layer_norm is not None
    assert averaged.get_model().state_dict().keys() == transformer.state_dict().keys()


def test_weights_that_no_training_uses_are_named(transformer: Any, dictionary: Any) -> None:
    src = torch.tensor([[5, 6, dictionary.eos()]])
    transformer.train()(src, torch.tensor([3]), src)[0].sum().backward()
    without = {name for name, weight in transformer.named_parameters() if weight.grad is None}
    assert without == set(unused_in_training(transformer)) and len(without) == 16


@pytest.mark.parametrize("flag", ["restore_file", "continue_once"])
def test_a_missing_checkpoint_is_no_fresh_start(flag: str, tmp_path: Path) -> None:
    """By Hydra and from Python, where no command line is looked at."""
    given = CheckpointConfig(save_dir=str(tmp_path), **{flag: "none.pt"})
    with pytest.raises(FileNotFoundError, match=rf"^checkpoint\.{flag}: no such file: none\.pt$"):
        checkpoint_utils.load_checkpoint(given, SimpleNamespace(checkpoint_suffix=""))


def test_the_best_of_another_training_in_this_process_does_not_count(tmp_path: Path) -> None:
    """As of the jobs of a sweep, by Hydra."""
    checkpoint_utils.save_checkpoint.best = 1.0
    trainer = SimpleNamespace(checkpoint_suffix="", load_checkpoint=lambda *_, **__: None, lr_step=lambda _: None)
    trainer.get_train_iterator = lambda **_: SimpleNamespace(epoch=1)
    checkpoint_utils.load_checkpoint(CheckpointConfig(save_dir=str(tmp_path)), trainer)
    assert not hasattr(checkpoint_utils.save_checkpoint, "best")


def test_a_jobs_own_checkpoint_may_be_missing_at_its_first_launch(toy_data: Path, tmp_path: Path) -> None:
    """As of a command that is given again and again until all is done."""
    for flag, updates in (("--restore-file", 1), ("--restore-file", 2), ("--continue-once", 3)):
        own = [flag, f"{tmp_path}/./checkpoint_last.pt"]
        run_cli("train", toy_data, *PLUGIN, *SMALL, "--save-dir", tmp_path, "--max-update", updates, *own)
        last = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
        assert last["optimizer_history"][-1]["num_updates"] == updates
    assert len(last["optimizer_history"]) == 3  # one of each launch


CLOCK = """
from fairseq.logging import metrics
from fairseq_cli.train import cli_main
cli_main()
print("runs:", metrics.get_meter("default", "wall").start_time is not None)
"""


@pytest.mark.slow
def test_an_epoch_may_have_no_group_left_and_time_goes_on(toy_data: Path, tmp_path: Path) -> None:
    words = [toy_data, *PLUGIN, *SMALL, "--save-dir", tmp_path, "--skip-remainder-batch"]
    run_cli("train", *words, "--max-update", 2)
    assert "runs: True" in python("-c", CLOCK, *words, "--max-update", 3).stdout
    run_cli("train", *words, "--update-freq", 10**6, "--max-epoch", 1)  # of what is left
    done = run_cli("train", *words, "--update-freq", 10**6, check=False)
    told = re.search(r"--update-freq: must be at most (\d+), the batches of an epoch but the last, with", done.stderr)
    assert told
    most = int(told[1])
    for count in (most, most + 1):
        own = ["--save-dir", tmp_path / str(count), "--update-freq", count, "--max-epoch", 1]
        done = run_cli("train", toy_data, *PLUGIN, *SMALL, "--skip-remainder-batch", *own, check=False)
        assert (done.returncode == 0) is (count == most)
    own = ["--save-dir", tmp_path / "one", "--max-epoch", 1, "--max-tokens", 10**7, "--required-batch-size-multiple", 1]
    done = run_cli("train", toy_data, *PLUGIN, *SMALL, "--skip-remainder-batch", *own, check=False)
    assert done.returncode and "--skip-remainder-batch: leaves out an epoch's only batch" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("yes\nÄ\n".encode("latin-1"), r"error: \S+valid.label is not UTF-8: .* can't decode byte 0xc4"),
        (b"yes\n" * 9000 + b"\xff\n", r"error: \S+valid.label is not UTF-8: .* can't decode byte 0xff"),
        (b"", r"error: \S+valid.label is empty"),
        (None, r"error: no such file: \S+valid.label"),
    ],
    ids=["at the beginning", "later", "empty", "missing"],
)
def test_preprocess_names_a_file_that_is_no_text(content: bytes | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.label").write_text("yes\nno\n", "utf-8-sig")
    if content is not None:
        (tmp_path / "valid.label").write_bytes(content)
    words = ["--only-source", "--trainpref", tmp_path / "train.label", "--validpref", tmp_path / "valid.label"]
    done = run_cli("preprocess", *words, "--destdir", tmp_path / "data", check=False)
    assert done.returncode == 2 and re.search(message, done.stderr.splitlines()[-1])
    assert Dictionary.load(str(tmp_path / "data" / "dict.txt")).symbols[4:6] == ["no", "yes"]  # without byte order mark
    done = run_cli("preprocess", *words, "--destdir", tmp_path / "data", check=False)  # again
    assert re.search(r"error: argument --destdir: \S+dict.txt is there already: name", done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_online_backtranslation_scores_its_translations(tmp_path: Path) -> None:
    """They begin with their language. Its checkpoint has no array of numpy: torch reads those with the plugin alone."""
    rows = "".join(f"{a} {b}\n" for a in "abcd" for b in "efgh")
    for split in ("train", "valid"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text(rows)
    both = ["--joined-dictionary", "--validpref", tmp_path / "valid", "--trainpref", tmp_path / "train"]
    run_cli("preprocess", "-s", "en", "-t", "de", *both, "--destdir", tmp_path / "bin")
    dictionary = tmp_path / "bin" / "dict.txt"
    (tmp_path / "bin" / "dict.en.txt").rename(dictionary)
    for language in ("en", "de"):
        own = ["--only-source", "--srcdict", dictionary, "--trainpref", tmp_path / f"train.{language}"]
        run_cli("preprocess", *own, "--destdir", tmp_path / "bin" / language)
    words = ["--task", "online_backtranslation", "--mono-langs", "en,de", "--valid-lang-pairs", "en-de", "--eval-bleu"]
    words += ["--max-update", 2, "--save-dir", tmp_path, "--validate-interval-updates", 1]
    done = run_cli("train", tmp_path / "bin", *PLUGIN, *SMALL, *words, "--log-format", "json")
    assert '"valid_bleu": ' in done.stdout
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
    assert "_bleu_counts_3" in json.dumps(state["extra_state"]["metrics"], default=torch.Tensor.tolist)


def test_an_update_at_the_end_of_an_epoch_is_saved_where_epochs_are_not(toy_data: Path, tmp_path: Path) -> None:
    words = [toy_data, *PLUGIN, *SMALL, "--save-dir", tmp_path, "--max-tokens", 2000, "--max-epoch", 1]
    run_cli("train", *words, "--no-epoch-checkpoints", "--save-interval-updates", 1, "--keep-interval-updates", 2)
    last = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
    updates = last["optimizer_history"][-1]["num_updates"]
    assert last["extra_state"]["train_iterator"]["iterations_in_epoch"] == 0 and updates > 2
    numbered = {path.name for path in tmp_path.glob("checkpoint_1_*.pt")}
    assert numbered == {f"checkpoint_1_{updates - 1}.pt", f"checkpoint_1_{updates}.pt"}


def test_validation_is_of_translation_unless_told() -> None:
    assert get_validation_parser().parse_known_args(["data"])[0].task == "translation"


def test_options_of_a_pretrained_bart_are_at_hand() -> None:
    given, dictionary = Namespace(langs="en,de", source_lang="en", target_lang="de"), Dictionary()  # words are added
    assert TranslationFromPretrainedBARTTask(given, dictionary, dictionary).args is given


def test_a_pretrained_bart_is_searched_as_the_command_line_says(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def build(self: Any, models: Any, args: Any, kind: Any = None, extra: Any = None, **more: Any) -> Any:
        told.update(kind=kind, extra=extra, **more)
        return SimpleNamespace()

    monkeypatch.setattr(FairseqTask, "build_generator", build)
    given, dictionary = Namespace(langs="en,de", source_lang="en", target_lang="de"), Dictionary()
    task = TranslationFromPretrainedBARTTask(given, dictionary, dictionary)
    eos = dictionary.index("[de]")
    task.build_generator([], Namespace(), str, extra_gen_cls_kwargs={"x": 1}, prefix_allowed_tokens_fn=len)
    assert told == {"kind": str, "extra": {"x": 1, "eos": eos}, "prefix_allowed_tokens_fn": len}
    scorer = task.build_generator([], Namespace(score_reference=True))
    assert (scorer.eos, scorer.symbols_to_strip_from_output) == (eos, {eos})


@pytest.mark.parametrize("kind", [TranslationMultiSimpleEpochTask, SpeechToTextTask])
def test_a_hub_may_restrict_words(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(FairseqTask, "build_generator", lambda self, models, args, **more: told.update(more))
    task = object.__new__(kind)
    config = Namespace(prepend_tgt_lang_tag=False, prepend_bos_and_append_tgt_lang_tag=False, config={})
    vars(task).update(args=Namespace(langtoks={"main": (None, None)}), data_cfg=config, tgt_dict=Namespace(indices={}))
    task.build_generator([], Namespace(), prefix_allowed_tokens_fn=len)
    assert told["prefix_allowed_tokens_fn"] is len


def test_semisupervised_losses_are_added_up() -> None:
    task = object.__new__(SemisupervisedTranslationTask)
    vars(task).update(lambda_parallel=1.0, lambda_otf_bt=0.0, lambda_denoising=0.0, lang_pairs=["a-b", "b-a"])
    model = SimpleNamespace(train=lambda: None, models={"a-b": None, "b-a": None})
    optimizer = SimpleNamespace(backward=lambda loss: None)
    sample = {"a-b": {"x": 1}, "b-a": {"x": 1}}
    loss, size, logged = task.train_step(
        sample, model, lambda *_: (torch.tensor(2.0), 3, {"loss": 2.0}), optimizer, update_num=0
    )
    assert (loss, size, dict(logged)) == (4.0, 6, {"loss": 4.0, "a-b": 2.0, "b-a": 2.0})


def test_processes_tell_the_same_losses_whether_a_batch_has_alignments() -> None:
    criterion = object.__new__(WithAlignment)
    vars(criterion).update(sentence_avg=False, compute_loss=lambda *_, **__: (torch.tensor(1.0), torch.tensor(1.0)))
    sample = {"net_input": {}, "ntokens": 3, "target": torch.zeros(2, 3)}
    _, _, logged = WithAlignment.forward(criterion, lambda **_: None, sample)
    assert logged["alignment_loss"] == 0.0


@pytest.mark.slow
def test_unknown_words_of_raw_text_are_replaced_and_words_compared(tmp_path: Path) -> None:
    """With and without references."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.en").write_text("a b@@ c\nb@@ c a\n" * 20)
        (tmp_path / f"{split}.de").write_text("a b@@ c\nb@@ c a\n" * 20)
    both = ["--trainpref", tmp_path / "train", "--validpref", tmp_path / "test", "--testpref", tmp_path / "test"]
    data, save = tmp_path / "bin", tmp_path / "save"
    run_cli("preprocess", "-s", "en", "-t", "de", *both, "--destdir", data, "--dataset-impl", "raw")
    run_cli("train", data, *PLUGIN, *SMALL, "--dataset-impl", "raw", "--max-update", 1, "--save-dir", save)
    words = [data, *PLUGIN, "--path", save / "checkpoint_last.pt", "--cpu", "--beam", 1, "--max-len-b", 5]
    words += ["--max-tokens", 400, "--dataset-impl", "raw", "--replace-unk", "--remove-bpe", "-s", "en", "-t", "de"]
    printed = run_cli("generate", *words).stdout
    assert set(re.findall(r"^[ST]-\d+\t(.*)$", printed, re.MULTILINE)) == {"a bc", "bc a"}
    (data / "test.en-de.de").unlink()
    assert "H-0" in run_cli("generate", *words).stdout
