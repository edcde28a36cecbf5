"""What the patch mends of fairseq, where users of the plugin meet it: repeated n-grams, one line for a bad argument, no
noise."""

from __future__ import annotations

import copy
import gc
import io
import json
import re
import shutil
import subprocess
import sys
import weakref
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, run_cli
from fairseq import checkpoint_utils, options, trainer, utils
from fairseq.data import Dictionary, ListDataset, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder
from fairseq.data.iterators import CountingIterator, EpochBatchIterator, GroupedIterator
from fairseq.dataclass.configs import CheckpointConfig, EMAConfig, FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics, progress_bar
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.ema import EMA
from fairseq.modules import MultiheadAttention
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.optim import adam
from fairseq.optim.adam import Adam
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.options import get_generation_parser, get_training_parser, parse_args_and_arch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator, SequenceGeneratorWithAlignment
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq_cli import interactive
from fairseq_cli.train import should_stop_early
from omegaconf import OmegaConf
from support.commands import PLUGIN, SMOOTHED, hydra_words, train
from support.lines import DECODED, OUTPUT, START, TRAINED, unexpected
from support.processes import python
from support.small_models import FIXED, SIZES, made, sources
from torch import nn

from fairseq_sru.models.config import SRUConfig, SRULanguageModelConfig, TransformerSRUConfig
from fairseq_sru.models.lm import SRULanguageModel
from fairseq_sru.models.options import ALIGNED
from fairseq_sru.models.sru import SRUModel
from fairseq_sru.models.transformer_sru import TransformerSRUModel

SMALL = ["--arch", "sru", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--cpu", "--optimizer", "adam"]
SMALL += ["--lr", 5e-3, "--max-tokens", 400, "--num-workers", 0]

# --no-repeat-ngram-size


def repeats(words: list[int], n: int, seen: int = 0) -> list[tuple[int, ...]]:
    """The n-grams that were there before, of those that end after the first ``seen`` words."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return [gram for i, gram in enumerate(grams) if gram in grams[:i] and i + n > seen]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_words_that_would_repeat_an_ngram_are_banned_and_no_others(n: int) -> None:
    """On buffers as the search has them: what begins a sentence, the words so far, padding."""
    pad, eos, vocabulary, bsz, beam, longest = 1, 2, 9, 3, 4, 15
    for step in range(longest):
        tokens = torch.full((bsz * beam, longest + 2), pad)
        tokens[:, 0] = eos
        tokens[:, 1 : step + 1] = torch.randint(4, vocabulary, (bsz * beam, step))
        before = torch.randn(bsz * beam, vocabulary)
        after = NGramRepeatBlock(n)(tokens, before.clone(), bsz, beam, step)
        for row, old, new in zip(tokens[:, 1 : step + 1].tolist(), before, after, strict=True):
            for word in range(vocabulary):
                allowed = word == eos or not repeats([*row, word], n, seen=step)
                assert new[word] == (old[word] if allowed else -torch.inf), (row, word)


def search(model: Any, dictionary: Dictionary, beam: int, n: int, prefix: torch.Tensor | None = None) -> list[Any]:
    generator = SequenceGenerator([model], dictionary, beam_size=beam, max_len_b=18, no_repeat_ngram_size=n)
    tokens = sources(dictionary, [5, 9, 3, 7])
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": tokens.ne(dictionary.pad()).sum(1)}}
    return generator.generate([model], sample, prefix_tokens=prefix)


def words(hypothesis: Any) -> list[int]:
    *before, last = hypothesis["tokens"].tolist()
    assert last == 2  # eos
    return before


@pytest.fixture(params=["sru", "transformer_sru"])
def stutterer(request: pytest.FixtureRequest, dictionary: Dictionary) -> Any:
    """A model that likes the word before to come again and hardly ever ends: it is untrained, with tied embeddings."""
    model = made(request.param, dictionary, share_all_embeddings=True, encoder_layers=1, decoder_layers=1).eval()
    with torch.no_grad():
        model.decoder.embed_tokens.weight[dictionary.eos()] = 0
    return model


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_hypothesis_repeats_an_ngram(n: int, stutterer: Any, dictionary: Dictionary) -> None:
    for beam in (1, 2, 5):
        assert any(repeats(words(h), n) for hypotheses in search(stutterer, dictionary, beam, 0) for h in hypotheses)
        found = search(stutterer, dictionary, beam, n)
        assert [len(hypotheses) for hypotheses in found] == [beam] * 4
        assert not any(repeats(words(h), n) for hypotheses in found for h in hypotheses)


@pytest.mark.parametrize("n", [2, 3])
def test_greedy_search_takes_the_best_word_that_repeats_nothing(n: int, stutterer: Any, dictionary: Dictionary) -> None:
    for i, source in enumerate(sources(dictionary, [5, 9, 3, 7])):
        source = source[source.ne(dictionary.pad())][None]
        expected: list[int] = []
        while len(expected) < 18:
            so_far = torch.tensor([[dictionary.eos(), *expected]])
            scores = stutterer(source, torch.tensor([source.size(1)]), so_far)[0][0, -1].tolist()
            scores[dictionary.pad()] = -torch.inf
            order = sorted(range(len(scores)), key=lambda word: -scores[word])
            best = next(w for w in order if w == dictionary.eos() or not repeats([*expected, w], n, len(expected)))
            if best == dictionary.eos():
                break
            expected.append(best)
        assert words(search(stutterer, dictionary, 1, n)[i][0]) == expected


def test_an_ensembles_alignment_is_that_of_the_models_that_have_one(dictionary: Dictionary) -> None:
    models = [made("sru", dictionary, decoder_attention=given).eval() for given in ("True", "False", "True")]
    for model in models:
        model.make_generation_fast_(need_attn=True)
    tokens = sources(dictionary, [5, 9])
    given = {"src_tokens": tokens, "src_lengths": tokens.ne(dictionary.pad()).sum(1)}
    found = SequenceGenerator(models, dictionary, beam_size=2, max_len_b=9).generate(models, {"net_input": given})
    target = torch.tensor([[5, 6, 2], [7, 8, 2]])
    asked = {"net_input": {**given, "prev_output_tokens": target.roll(1, 1)}, "target": target}
    scored = SequenceScorer(dictionary).generate(models, asked)
    for hypotheses, source in ((found, 0), (scored, 1)):  # the dimension of its words
        for best, *_ in hypotheses:
            weights = best["attention"].sum(source)
            torch.testing.assert_close(weights, torch.ones_like(weights))


def test_a_prefix_that_ends_is_one_hypothesis(stutterer: Any, dictionary: Dictionary) -> None:
    """fairseq went on for ever to look for others, which don't exist, and failed."""
    eos, pad = dictionary.eos(), dictionary.pad()
    prefix = torch.tensor([[eos, pad], [7, 8], [7, eos], [9, pad]])
    for beam in (1, 5):
        found = search(stutterer, dictionary, beam, 0, prefix)
        assert [len(hypotheses) for hypotheses in found] == [1, beam, beam, beam]  # the third's have scores to sort by
        assert [words(hypotheses[0])[:2] for hypotheses in found[:3]] == [[], [7, 8], [7]]
        assert words(found[3][0])[0] == 9


def test_a_prefix_that_ends_has_an_alignment(dictionary: Dictionary) -> None:
    eos = dictionary.eos()
    model, tokens = made("sru", dictionary).eval(), sources(dictionary, [5, 9])
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": tokens.ne(dictionary.pad()).sum(1)}}
    generator = SequenceGeneratorWithAlignment([model], dictionary, beam_size=3, max_len_b=9)
    ended, other = generator.generate([model], sample, prefix_tokens=torch.tensor([[eos], [7]]))
    assert [len(ended), len(other)] == [1, 3]
    assert all("alignment" in hypothesis for hypothesis in (*ended, *other))
    assert all(len(hypothesis["alignment"]) > 0 for hypothesis in other)


def test_a_prefix_may_repeat_what_follows_may_not(stutterer: Any, dictionary: Dictionary) -> None:
    pad = dictionary.pad()
    prefix = torch.tensor([[7, 8, 7, 8, 7, 8], [9, 9, 9, 9, 9, 9], [7, 8, 9, pad, pad, pad], [5, 5, 5, pad, pad, pad]])
    for beam in (1, 5):
        for given, hypotheses in zip(prefix.tolist(), search(stutterer, dictionary, beam, 2, prefix), strict=True):
            given = [word for word in given if word != pad]
            assert hypotheses
            for hypothesis in hypotheses:
                assert words(hypothesis)[: len(given)] == given
                assert not repeats(words(hypothesis), 2, seen=len(given))


# Options that the command line would have filled in


@pytest.mark.parametrize(
    "model, options", [(SRUModel, SRUConfig), (TransformerSRUModel, TransformerSRUConfig)], ids=["sru", "transformer"]
)
def test_a_bare_namespace_has_no_longest_sentence(model: Any, options: Any, dictionary: Dictionary) -> None:
    """fairseq's dataclasses have ``${task.max_target_positions}`` there, which only its command line resolves."""
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    sizes = SIZES["sru" if options is SRUConfig else "transformer_sru"]
    for given in (Namespace(**sizes), Namespace(**{**vars(options()), **sizes})):
        built = model.build_model(given, task).eval()
        assert built.max_positions() == (10**6, 10**6)
        assert EnsembleModel([built]).max_decoder_positions() == 10**6
        assert len(search(built, dictionary, 2, 0)) == 4


def test_a_bare_namespace_has_no_longest_text(dictionary: Dictionary) -> None:
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    for given in (Namespace(decoder_embed_dim=8), Namespace(**{**vars(SRULanguageModelConfig()), "dropout": 0.0})):
        assert SRULanguageModel.build_model(given, task).max_positions() == 10**6


# One line where an argument is bad

slow = pytest.mark.slow
BAD = [
    (["generate", "bin", "--path", "cut.pt"], "argument --path: truncated, or no checkpoint: cut.pt"),
    (
        ["train", "bin", "--arch", "sru_lm"],
        "--arch sru_lm is a language model: it goes with --task language_modeling; got --task translation",
    ),
    (
        ["train", "bin", "--task", "language_modeling", "--arch", "lstm_tiny"],
        "--arch lstm_tiny is a translation model: it goes with --task translation; got --task language_modeling",
    ),
    (
        ["train", "bin", "--arch", "cnn_classifier"],
        "--arch cnn_classifier is a classifier: it goes with --task sentence_prediction; got --task translation",
    ),
    (
        ["train", "bin", "--arch", "s2t_sru"],
        "--arch s2t_sru is a speech model: it goes with --task speech_to_text; got --task translation",
    ),
    (["generate", "bin", "--path", "text:none.pt"], "argument --path: truncated, or no checkpoint: text"),
    (["generate", "none", "--path", "whole.pt"], "argument data: no such folder: none"),
    (["eval-lm", "none", "--path", "whole.pt"], "argument data: no such folder: none"),
    (
        ["validate", "none", "--task", "sentence_prediction", "--path", "whole.pt"],
        "argument data: no such folder: none",
    ),
    (["generate", "none", "--task", "speech_to_text", "--path", "whole.pt"], "argument data: no such folder: none"),
    (["generate", "sub", "--path", "whole.pt"], "argument data: no data of a pair of languages in sub;"),
    (["interactive", "sub", "-s", "a", "-t", "b", "--path", "whole.pt"], "error: no such file: sub/dict.a.txt"),
    (["eval-lm", "sub", "--path", "whole.pt"], "error: no such file: sub/dict.txt"),
    (["generate", "sub", "--task", "speech_to_text", "--path", "whole.pt"], "data: sub/config.yaml not found"),
    (
        ["interactive", "moved", "--task", "speech_to_text", "--path", "whole.pt"],
        "argument data: config.yaml names /none/gcmvn.npz, which is not there; was the folder moved?",
    ),
    (
        ["train", "sub", "--arch", "lstm", "-s", "a", "-t", "b", "--batch-size", 2, "--save-dir", "sub"],
        "error: no such file: sub/dict.a.txt",
    ),
    (["generate", "bin", "--path", "none.pt"], "argument --path: no such file: none.pt"),
    (["validate", "bin", "--task", "translation", "--path", "empty.pt"], "truncated, or no checkpoint: empty.pt"),
    (["interactive", "bin", "--path", "sub/none.pt"], "argument --path: no such file: sub/none.pt"),
    (["eval-lm", "bin", "--path", "none.pt"], "argument --path: no such file: none.pt"),
    (["train", "bin", "--arch", "sru", "--user-dir", "none"], "argument --user-dir: no such folder: none"),
    (["preprocess", "--user-dir", "none"], "argument --user-dir: no such folder: none"),
    (["train", "bin", *SMALL, "--restore-file", "none.pt"], "argument --restore-file: no such file: none.pt"),
    (["train", "bin", *SMALL, "--finetune-from-model", "none.pt"], "--finetune-from-model: no such file: none.pt"),
    (["train", "bin", *SMALL, "--continue-once", "none.pt"], "argument --continue-once: no such file: none.pt"),
    (
        ["train", "bin", *SMALL, "--finetune-from-model", "whole.pt", "--reset-optimizer"],
        "argument --finetune-from-model: not allowed with argument --reset-optimizer",
    ),
    (
        ["train", "bin", *SMALL, "--finetune-from-model", "whole.pt", "--restore-file", "text"],
        "argument --finetune-from-model: not allowed with argument --restore-file",
    ),
    (
        ["train", "bin", *SMALL, "--finetune-from-model", "checkpoint_last.pt", "--save-dir", "."],
        "argument --finetune-from-model: checkpoint_last.pt is in --save-dir, where it would be overwritten",
    ),
    (
        ["train", "bin", *SMALL, "--save-dir", "."],
        "--save-dir: truncated, or no checkpoint: ./checkpoint_last",
    ),
    *(
        (["interactive", "bin", "--path", "whole.pt", flag, *value], f"argument {flag}: is for fairseq-generate")
        for flag, *value in (
            *(("--lm-path", "whole.pt"), ("--prefix-size", 1), ("--score-reference",)),
            *(("--results-path", "out"), ("--quiet",)),
        )
    ),
    (
        ["interactive", "bin", "--path", "whole.pt", "--batch-size", 64],
        "argument --buffer-size: must be at least --batch-size; got 0 and 64",
    ),
    (
        ["interactive", "bin", "--path", "whole.pt", "--constraints", "--diversity-rate", 0.5],
        "arguments --diversity-rate and --constraints: exclude each other",
    ),
    *(
        (["generate", "bin", "--path", "whole.pt", *words], f"argument {words[0]}: {message}")
        for words, message in (
            (["--constraints"], "is for fairseq-interactive"),
            (["--print-step"], "is for --task translation_lev"),
            (["--retain-iter-history"], "is for --task translation_lev"),
            (["--iter-decode-max-iter", 5], "is for --task translation_lev"),
            (["--replace-unk"], "requires --dataset-impl raw"),
            (["--sampling-topk", 5], "requires --sampling"),
            (["--sampling-topp", 0.5], "requires --sampling"),
            (["--lm-path", "whole.pt"], "requires --lm-weight"),
            (["--lm-weight", 0.5], "requires --lm-path"),
            (["--retain-dropout-modules", "SRUEncoder"], "requires --retain-dropout"),
            (["--nbest", 2, "--sampling"], "must be --beam with --sampling; got 2 and 5"),
            (["--diverse-beam-groups", 2], "must divide --beam; got 2 and 5"),
        )
    ),
    (
        ["generate", "bin", "--task", "translation_multi_simple_epoch", "--path", "whole.pt", "--print-step"],
        "argument --print-step: is for --task translation_lev",
    ),
    (
        ["interactive", "bin", "--task", "language_modeling", "--path", "whole.pt", "--constraints"],
        "argument --constraints: can't be had with --task language_modeling",
    ),
    (
        ["interactive", "bin", "--task", "translation_multi_simple_epoch", "--path", "whole.pt", "--constraints"],
        "argument --constraints: can't be had with --task translation_multi_simple_epoch",
    ),
    (
        ["train", "bin", *SMALL, "--criterion", ALIGNED],
        f"--criterion {ALIGNED} goes with --load-alignments",
    ),
    (["train", "bin:none", *SMALL], "argument data: no such folder: none"),
    (["train", "bin", *SMALL, "--fp16", "--amp"], "argument --fp16: not allowed with argument --amp"),
    (
        ["train", "bin", *SMALL, "--memory-efficient-fp16", "--amp"],
        "argument --memory-efficient-fp16: not allowed with argument --amp",
    ),
    (
        ["train", "bin", *SMALL, "--distributed-world-size", 99],
        "argument --distributed-world-size: on a CPU torchrun starts the processes; got 99",
    ),
    (
        ["train", "bin", *SMALL, "--distributed-world-size", 2, "--distributed-init-method", "tcp://localhost:1"],
        "argument --distributed-world-size: on a CPU torchrun starts the processes; got 2",
    ),
    (
        ["eval-lm", "bin", "--path", "whole.pt", "--context-window", 64, "--tokens-per-sample", 64],
        "argument --context-window: must be below --tokens-per-sample; got 64 and 64",
    ),
    (["validate", "bin", "--task", "translation"], "argument --path: is required"),
    (["generate", "bin"], "argument --path: is required"),
    (
        ["eval-lm", "bin", "--path", "whole.pt:whole.pt"],
        "argument --path: must be one checkpoint; got whole.pt:whole.pt",
    ),
]


@pytest.fixture(scope="module")
def folder(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be in: data, the plugin, and files that aren't checkpoints, though one was."""
    made = tmp_path_factory.mktemp("here")
    (made / "bin").symlink_to(toy_data)
    (made / "fairseq_sru").symlink_to(ROOT / "fairseq_sru")
    torch.save({"args": None, "cfg": {}, "model": {"weight": torch.zeros(1000)}}, made / "whole.pt")
    for name in ("cut.pt", "checkpoint_last.pt"):
        (made / name).write_bytes((made / "whole.pt").read_bytes()[:-50])
    (made / "sub").mkdir()
    (made / "moved").mkdir()
    (made / "moved" / "dict.txt").touch()
    (made / "moved" / "config.yaml").write_text(
        "transforms: {'*': [global_cmvn]}\nglobal_cmvn: {stats_npz_path: /none/gcmvn.npz}\n"
    )
    (made / "empty.pt").touch()
    (made / "text").write_text("not weights\n")
    return made


@pytest.mark.parametrize("command, message", BAD)
def test_a_bad_argument_is_one_line(command: list[Any], message: str, folder: Path) -> None:
    user_dir = [] if "--user-dir" in command else PLUGIN
    before = sorted(folder.iterdir())
    done = run_cli(*command, *user_dir, check=False, cwd=folder)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"fairseq-{command[0]}: error: ")
    assert message in line
    assert sorted(folder.iterdir()) == before


def test_a_refusal_that_names_no_flag_says_how_to_see_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fairseq-train"])
    for said, more in (("--lr must be 1", ""), ("could not convert string to float", " (LOGLEVEL=DEBUG shows where)")):
        with pytest.raises(SystemExit) as ended, options.refusals(" (LOGLEVEL=DEBUG shows where)"):
            raise ValueError(said)
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"fairseq-train: error: {said}{more}\n"


def test_a_checkpoint_of_a_model_without_a_dataclass_is_read_by_any_plugin(tmp_path: Path) -> None:
    torch.save({"args": Namespace(arch="lstm")}, tmp_path / "model.pt")
    code = "import fairseq.checkpoint_utils, sys, torch; read = torch.load(sys.argv[1], weights_only=True); "
    code += "print(read['args'].arch); assert 'fairseq_sru' not in sys.modules"
    assert python("-c", code, tmp_path / "model.pt").stdout == "lstm\n"


@slow
def test_gradients_of_nan_are_one_line(folder: Path) -> None:
    for arch in ("sru", "transformer_sru", "transformer"):
        more = ["--lr", 1e30, "--arch", arch, "--encoder-layers", 1, "--decoder-layers", 1, "--save-dir", "nan"]
        done = run_cli("train", "bin", *PLUGIN, *SMALL, *more, check=False, cwd=folder)
        assert done.returncode == 1
        said = done.stderr.partition("nanobind: leaked")[0]  # triton 3.9's complaint of itself, with torch 2.15
        assert said == "fairseq-train: error: gradients are Nan/Inf: try a lower --lr, or --clip-norm\n"
        assert "NaN detected in output of encoder.layers.0" in done.stdout.splitlines()[-1]
        shutil.rmtree(folder / "nan")


# What the commands print


@slow
def test_commands_print_what_users_read(folder: Path) -> None:
    """Each line of fairseq-train, -generate, -interactive and -validate is a known one."""
    save = ["--save-dir", "save", "--share-all-embeddings", "--log-interval", 5, "--max-update", 10]
    started = {"OMP_NUM_THREADS": "2"}  # anew, so that what imports print is seen
    trained = run_cli("train", "bin", *PLUGIN, *SMALL, *save, cwd=folder, **started)
    assert unexpected(trained.stdout + trained.stderr, START + TRAINED, []) == []
    for statistics in ("train_inner | epoch 001:      5 / ", "train | epoch 001 | ", "valid | epoch 001 | "):
        assert f"INFO | {statistics}" in trained.stdout
    path = [*PLUGIN, "--cpu", "--path", "save/checkpoint_last.pt", "--no-progress-bar"]
    for command, more, text_in in (
        ("generate", ["--max-len-b", 9], None),
        ("interactive", ["--max-len-b", 9], "a b c\n\nd\n"),
        ("validate", ["--task", "translation", "--max-tokens", 400], None),
    ):
        done = run_cli(command, "bin", *path, *more, text_in=text_in, cwd=folder, **started)
        assert unexpected(done.stdout + done.stderr, START + DECODED, OUTPUT) == []
        if command == "generate":
            for letter in "STHDP":
                assert len(re.findall(rf"^{letter}-\d+\t", done.stdout, re.M)) == 53


@slow
def test_all_options_and_the_layers_are_told_when_asked(folder: Path) -> None:
    short = ["--max-update", 1, "--no-save"]
    done = run_cli("train", "bin", *PLUGIN, *SMALL, *short, cwd=folder, LOGLEVEL="DEBUG")
    assert "(encoder): SRUEncoder(" in done.stdout
    assert "'max_tokens': 400" in done.stdout


@slow
def test_hydra_prints_no_warnings(folder: Path) -> None:
    options = ["criterion=cross_entropy", "optimization.max_update=1", "dataset.max_tokens=400"]
    words = hydra_words(folder / "bin", folder / "hydra", "sru/sru_tiny", *options, "checkpoint.no_save=true")
    done = run_cli("hydra-train", *words, cwd=folder, OMP_NUM_THREADS="2")  # started anew
    assert done.stderr == ""
    assert "done training" in done.stdout
    assert all(re.match(r"\[\S+ \S+\]\[\w+(\.\w+)*\]\[INFO\] - ", line) for line in done.stdout.splitlines())


# Faults of its own


def test_a_second_attempt_to_save_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    file, save = io.BytesIO(), torch.save

    def fails_once(state: Any, to: Any) -> None:
        monkeypatch.setattr(torch, "save", save)
        to.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fails_once)
    checkpoint_utils._torch_persistent_save({"a": 1}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == {"a": 1}


class Trainer:
    """What save_checkpoint asks of one; ``saved`` has what was given with each file."""

    data_parallel_rank, checkpoint_suffix, should_save_checkpoint_on_current_rank = 0, "", True

    def __init__(self) -> None:
        self.saved: dict[str, dict[str, Any]] = {}

    def get_num_updates(self) -> int:
        return len(self.saved)

    def consolidate_optimizer(self) -> None: ...

    def save_checkpoint(self, path: str, extra: dict[str, Any]) -> None:
        self.saved[Path(path).name] = extra
        Path(path).touch()


def saves(folder: Path, losses: list[float], **options: Any) -> Trainer:
    """One epoch for each loss."""
    trainer = Trainer()
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(folder), **options))
    for epoch, loss in enumerate(losses, 1):
        state = SimpleNamespace(epoch=epoch, end_of_epoch=lambda: True, state_dict=dict)
        checkpoint_utils.save_checkpoint(cfg, trainer, state, loss)
    return trainer


def test_the_best_checkpoints_are_kept_from_the_first_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_utils.save_checkpoint, "best", 3.0, raising=False)
    saves(tmp_path, [3.0, 3.3, 3.1, 3.2], keep_best_checkpoints=3, no_epoch_checkpoints=True)
    kept = sorted(path.name[:-4] for path in tmp_path.glob("checkpoint.best_*"))  # a random digit each
    assert kept == [f"checkpoint.best_loss_{loss}00" for loss in ("3.0", "3.1", "3.2")]


def test_patience_is_a_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_utils.save_checkpoint, "early_stop", {})
    monkeypatch.setattr(checkpoint_utils.save_checkpoint, "best", 3.0, raising=False)
    assert "early_stop" not in saves(tmp_path, [3.0]).saved["checkpoint1.pt"]
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.checkpoint.patience = 2
    assert not should_stop_early(cfg, 3.0) and not should_stop_early(cfg, 3.5)
    assert saves(tmp_path, [3.5]).saved["checkpoint1.pt"]["early_stop"] == {"best": 3.0, "num_runs": 1}
    assert should_stop_early(cfg, 3.2)


@slow
def test_patience_counts_on_after_a_restart(folder: Path) -> None:
    words = [*PLUGIN, *SMALL, "--lr", 0, "--max-update", 1000, "--save-dir", "patient", "--patience", 2]
    run_cli("train", "bin", *words, "--max-epoch", 2, cwd=folder)
    done = run_cli("train", "bin", *words, "--max-epoch", 9, cwd=folder)
    assert "hasn't improved for last 2 runs" in done.stdout + done.stderr
    state = torch.load(folder / "patient" / "checkpoint_last.pt", weights_only=True)["extra_state"]
    assert state["train_iterator"]["epoch"] == 4 and state["early_stop"]["num_runs"] == 2
    before = (folder / "patient" / "checkpoint_last.pt").read_bytes()
    made = state["previous_training_time"]
    for more, told in (
        ([], "--patience 2 is at its end"),
        (["--patience", 9, "--max-update", 4], "--max-update 4 is"),
        (["--max-epoch", 3], "all of --max-epoch 3 is done: the checkpoint has 3 epochs (--reset-dataloader counts"),
    ):
        again = run_cli("train", "bin", *words, *more, cwd=folder)
        assert told in again.stdout + again.stderr
        assert (folder / "patient" / "checkpoint_last.pt").read_bytes() == before, "what is done trains no further"
    tuned = ["--finetune-from-model", "patient/checkpoint_last.pt", "--max-update", 1, "--save-dir", "tuned"]
    run_cli("train", "bin", *PLUGIN, *SMALL, *tuned, "--stop-time-hours", made / 3600, cwd=folder)
    state = torch.load(folder / "tuned" / "checkpoint_last.pt", weights_only=True)["extra_state"]
    assert state["previous_training_time"] < made, "the time of another training is not this one's"


def test_a_log_file_has_each_line_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", progress_bar.logger.name)
    path = tmp_path / "log"
    try:
        for epoch in (1, 2):
            bar = progress_bar.progress_bar([], log_format="json", log_file=str(path), epoch=epoch)
            bar.print({"loss": f"{epoch}"}, tag="train")
        assert [json.loads(line[line.index("{") :])["epoch"] for line in path.open()] == [1, 2]
    finally:
        for handler in [h for h in progress_bar.logger.handlers if getattr(h, "baseFilename", "") == str(path)]:
            progress_bar.logger.removeHandler(handler)
            handler.close()


@pytest.fixture
def two_parts(toy_data: Path, tmp_path: Path) -> Path:
    """Data whose training set has a second part of 50."""
    data = shutil.copytree(toy_data, tmp_path / "bin")
    for path in list(data.glob("valid.*")):
        shutil.copyfile(path, data / path.name.replace("valid", "train1"))
    return data


def sentences(data: Path, **options: Any) -> int:
    """How many the training set has."""
    languages = {"source_lang": "en", "target_lang": "de"}
    task = TranslationTask.setup_task(TranslationConfig(data=str(data), dataset_impl="mmap", **languages, **options))
    task.load_dataset("train", combine=True)
    return len(task.dataset("train"))


def test_a_training_set_may_have_several_parts(two_parts: Path) -> None:
    assert sentences(two_parts) == 1500 + 50


def test_the_first_part_alone_is_not_weighted_without_a_word(
    toy_data: Path, two_parts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = "--upsample-primary: there is no train1 beside train in"
    assert sentences(toy_data, upsample_primary=5) == 1500 and told in caplog.text
    caplog.clear()
    assert sentences(two_parts, upsample_primary=5) == 5 * 1500 + 50 and told not in caplog.text


def test_addresses_beyond_two_gigabytes(tmp_path: Path) -> None:
    """What several processes have prepared is joined."""
    parts = []
    for name in ("one", "both"):
        part = MMapIndexedDatasetBuilder(tmp_path / f"{name}.bin", dtype=np.int32)
        part.add_item(torch.ones(1000, dtype=torch.int32))
        parts.append(part)
    parts[0].finalize(tmp_path / "one.idx")
    parts[1].merge_file_(str(tmp_path / "one"))
    index = MMapIndexedDataset.Index.writer(str(tmp_path / "many.idx"), np.int32)
    with index as writer:
        addresses = writer._get_pointers(parts[1]._sizes * 2**19)
    assert addresses[-1] == 4000 * (2**20 - 1)


def test_interactive_keeps_no_batch(toy_data: Path) -> None:
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.dataset.max_tokens = 400
    task = TranslationTask.setup_task(TranslationConfig(data=str(toy_data), source_lang="en", target_lang="de"))
    batches = list(interactive.make_batches(["a b", "c"], cfg, task, 100, lambda line: line))
    assert sum(len(batch.ids) for batch in batches) == 2 and task.dataset_to_epoch_iter == {}


def test_what_the_commands_refuse_scripts_of_fairseqs_examples_may_ask_for() -> None:
    words = ["x", "--task", "audio_finetuning", "--lm-weight", "2"]  # of another decoder, which --lm-path doesn't name
    assert parse_args_and_arch(get_generation_parser(), words).lm_weight == 2


def test_torchs_launcher_names_the_process() -> None:
    for flag in ("--local-rank", "--local_rank"):
        assert parse_args_and_arch(get_training_parser(), ["x", "--arch", "lstm", f"{flag}=1"]).device_id == 1


@pytest.mark.parametrize(
    "alignment",
    [
        [(1, 0), (2, 2)],
        [["0.1", "0.6", "0.2", "0.1"], ["1", "0", "0", "0"], ["0.1", "0.1", "0.2", "0.6"]],  # the last is the end's
        torch.tensor([1, 0, 2]),
    ],
    ids=["hard", "soft", "positions"],
)
def test_unknown_words_are_those_of_the_source(alignment: list[Any]) -> None:
    replaced = partial(utils.replace_unk, "<unk> b <unk>", "x y z", alignment, unk="<unk>")
    assert replaced(align_dict={}) == "y b z"
    assert replaced(align_dict={"z": "Z"}) == "y b Z"


def test_unknown_subwords_are_those_that_are_aligned() -> None:
    dictionary = Dictionary()  # one of its own: words are added to it
    dictionary.add_symbol("ther")
    dictionary.add_symbol("seen")
    unknown = dictionary.unk()
    tokens, alignment = torch.tensor([unknown, 5, unknown]), [(0, 0), (1, 1), (3, 2)]
    done = utils.post_process_prediction(tokens, "o@@ ther x y", alignment, {}, dictionary, remove_bpe="@@ ")
    assert done[1] == f"o{dictionary[5]} y"
    assert utils.post_process_prediction(tokens, "x", None, {}, dictionary)[1] == f"<unk> {dictionary[5]} <unk>"


def test_a_file_of_translations_of_words_may_have_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a ä\n\nb c d\n", encoding="utf-8")
    assert utils.load_align_dict(str(tmp_path / "words")) == {"a": "ä", "b": "c"}
    (tmp_path / "words").write_text("a b\nc\n")
    with pytest.raises(
        ValueError, match=r"--replace-unk: \S+words, line 2: must be a word and its translation; got c$"
    ):
        utils.load_align_dict(str(tmp_path / "words"))


@slow
@pytest.mark.parametrize("more", [[], ["--print-alignment"]])
def test_replace_unk(more: list[str], folder: Path) -> None:
    run_cli("train", "bin", *PLUGIN, *SMALL, "--save-dir", "unknown", "--max-update", 1, cwd=folder)
    words = ["bin", *PLUGIN, "--path", "unknown/checkpoint_last.pt", "--cpu", "--beam", 2, "--unkpen", -1000, *more]
    done = run_cli("interactive", *words, "--replace-unk", "--max-len-b", 4, cwd=folder, text_in="nowhere seen\n")
    found = re.findall(r"^H-0\t[^\t]*\t(.*)$", done.stdout, re.MULTILINE)[0].split()
    assert found and set(found) <= {"nowhere", "seen"}


def test_counts_go_on_where_training_does() -> None:
    metrics.reset()
    metrics.log_scalar("counted", 2.0)
    state = metrics.state_dict()
    metrics.reset()
    try:
        metrics.load_state_dict(state)
        metrics.log_scalar("counted", 4.0)
        assert metrics.get_meter("default", "counted").sum == 6.0
        assert metrics.state_dict()["default"][0][3]["sum"] == 6.0  # what the next checkpoint has
    finally:
        metrics.reset()


def test_batches_are_shuffled_after_a_curriculum() -> None:
    made = EpochBatchIterator(
        ListDataset(list(range(50))), list, [[i] for i in range(50)], seed=1, reuse_dataloader=True
    )
    orders = [[batch[0] for batch in made.next_epoch_itr(shuffle=epoch > 1)] for epoch in (1, 2, 3)]
    assert orders[0] == list(range(50)) and orders[1] != orders[0] != orders[2] != orders[1]
    assert all(sorted(order) == orders[0] for order in orders)


@slow
def test_the_training_set_may_be_validated_on(folder: Path) -> None:
    words = ["--save-dir", "both", "--valid-subset", "valid,train", "--max-epoch", 2]
    run_cli("train", "bin", *PLUGIN, *SMALL, *words, cwd=folder)
    epochs = [folder / "both" / f"checkpoint{epoch}.pt" for epoch in (1, 2)]
    made = [torch.load(path, weights_only=True)["extra_state"]["train_iterator"]["epoch"] for path in epochs]
    assert made == [2, 3]


@slow
def test_generate_scores_by_sacrebleu_where_asked(folder: Path) -> None:
    run_cli("train", "bin", *PLUGIN, *SMALL, "--save-dir", "scored", "--max-update", 1, cwd=folder)
    words = ["bin", *PLUGIN, "--path", "scored/checkpoint_last.pt", "--cpu", "--beam", 1, "--max-len-b", 5]
    for more, said in ((["--sacrebleu"], "BLEU = "), ([], "BLEU4 = ")):
        assert f"beam=1: {said}" in run_cli("generate", *words, *more, cwd=folder).stdout


def test_tied_weights_decay_once_an_update() -> None:
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight = model[0].weight
    ema = EMA(model, EMAConfig(store_ema=True, ema_decay=0.75))
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    ema.step(model, updates=1)
    for layer in ema.get_model():
        torch.testing.assert_close(layer.weight, before + 0.25)


def test_averaged_weights_go_on_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(EMA, "_step_internal", lambda self, model, updates: moved.append(updates))
    for begin, end in ((1, 26), (26, 41)):  # stopped after 25 updates, not all of which move the average
        ema = EMA(nn.Linear(2, 2), EMAConfig(store_ema=True, ema_update_freq=10))
        for updates in range(begin, end):
            ema.step(nn.Linear(2, 2), updates)
    assert moved == [10, 20, 30, 40]


@slow
def test_averaged_weights_begin_at_a_checkpoint_without_them(folder: Path) -> None:
    run_cli("train", "bin", *PLUGIN, *SMALL, "--save-dir", "plain", "--max-update", 1, cwd=folder)
    words = ["--finetune-from-model", "plain/checkpoint_last.pt", "--store-ema", "--max-update", 2]
    done = run_cli("train", "bin", *PLUGIN, *SMALL, *words, "--save-dir", "averaged", cwd=folder)
    assert "EMA is re-initialized from checkpoint" in done.stdout + done.stderr


@slow
def test_going_on_with_other_text(folder: Path, toy_data: Path) -> None:
    """From a checkpoint of words that the data doesn't have, with a state of --amp, and over its own folder."""

    def told(command: str, data: str, *more: Any, check: bool = True) -> str:
        done = run_cli(command, data, *PLUGIN, *more, cwd=folder, check=check)
        return done.stdout + done.stderr

    told("train", "bin", *SMALL, "--save-dir", "general", "--max-update", 1)
    first, second, *rest = (toy_data / "dict.en.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, words in {"swapped": [second, first, *rest], "fewer": rest}.items():
        shutil.copytree(toy_data, folder / name)
        (folder / name / "dict.en.txt").write_text("".join(words), encoding="utf-8")
    tuned = [*SMALL, "--finetune-from-model", "general/checkpoint_last.pt", "--save-dir"]
    warning = "swapped/dict.en.txt has other words than bin/dict.en.txt, with which the checkpoint was trained"
    assert warning in told("train", "swapped", *tuned, "tuned", "--max-update", 1)
    again = told("train", "bin", *tuned, "tuned", "--max-update", 2)
    assert "goes on from tuned/checkpoint_last.pt, not from --finetune-from-model" in again
    path = ["--path", "general/checkpoint_last.pt", "--cpu", "--quiet", "--gen-subset", "valid"]
    assert warning in told("generate", "swapped", *path)
    assert "other words" not in told("generate", "bin", *path)
    failure = told("train", "fewer", *tuned, "other", check=False)
    assert "the architectures and the dictionaries match. size mismatch for encoder.embed_tokens.weight" in failure

    state = torch.load(folder / "general" / "checkpoint_last.pt", weights_only=False)
    state["optimizer_history"][-1]["optimizer_name"] = "AMPOptimizer"  # as it was called
    state["last_optimizer_state"]["loss_scaler"] = {"scale": 128.0}
    torch.save(state, folder / "general" / "amp.pt")
    later = [*SMALL, "--restore-file", "general/amp.pt", "--max-update", 2, "--save-dir"]
    told("train", "bin", *later, "later")
    descent = told("train", "bin", *later, "descent", "--optimizer", "sgd", "--momentum", 0.9, check=False)
    assert "please reset the optimizer (--reset-optimizer)" in descent
    history = torch.load(folder / "later" / "checkpoint_last.pt", weights_only=False)["optimizer_history"]
    assert (history[-1]["optimizer_name"], history[-1]["num_updates"]) == ("FairseqAdam", 2)


def test_float16_overflows_without_a_gpu(folder: Path) -> None:
    words = ["--memory-efficient-fp16", "--fp16-init-scale", 2**30, "--max-update", 1, "--no-save"]
    done = run_cli("train", "bin", *PLUGIN, *SMALL, *words, cwd=folder)
    assert "gradient overflow detected, ignoring gradient" in done.stdout + done.stderr


# Other commands and tasks

READS_ON = """
import torch
from fairseq.data.iterators import BufferedIterator

class Batches:
    def __len__(self):
        return 10**6

    def __iter__(self):
        for i in range(10**6):
            yield [torch.arange(2000).float().sort() for _ in range(50)]

next(BufferedIterator(1000, Batches()))
"""


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_of_batches_end_with_the_epoch(size: int, skip: bool) -> None:
    """Wherever it goes on: with other processes than it stopped with, in the middle of a group."""
    for length in range(1, 9):
        for begun in range(length):
            batches = CountingIterator(list(range(begun, length)), start=begun)
            grouped = GroupedIterator(batches, size, skip_remainder_batch=skip)
            found = [batch for group in grouped for batch in group]
            left = (length - begun) // size * size if skip else length - begun
            assert found == list(range(begun, begun + left))
            assert not batches.has_next() and not grouped.has_next()


def test_what_hands_out_batches_goes_with_its_last_reference(toy_data: Path) -> None:
    """And its workers with it: the garbage collector ends each after five seconds."""
    data = {"data": str(toy_data), "source_lang": "en", "target_lang": "de", "dataset_impl": "mmap"}
    cfg = OmegaConf.structured(TranslationConfig(**data, train_subset="train", required_seq_len_multiple=1))
    OmegaConf.set_struct(cfg, True)
    task = TranslationTask.setup_task(cfg)
    task.load_dataset("valid")
    gc.disable()
    try:
        batches = task.get_batch_iterator(task.dataset("valid"), max_tokens=100, disable_iterator_cache=True)
        assert len(list(batches.next_epoch_itr())) > 1
        kept = weakref.ref(batches)
        del batches
        assert kept() is None
    finally:
        gc.enable()


def test_an_epoch_without_its_last_batch_goes_on_where_it_stopped() -> None:
    """--skip-remainder-batch."""
    epoch = partial(
        EpochBatchIterator,
        dataset=ListDataset(list(range(10))),
        collate_fn=list,
        batch_sampler=[[i] for i in range(10)],
        skip_remainder_batch=True,
    )
    begun = epoch()
    iterator = begun.next_epoch_itr(shuffle=False)
    seen = [next(iterator) for _ in range(6)]
    again = epoch()
    again.load_state_dict(begun.state_dict())
    assert [*seen, *again.next_epoch_itr(shuffle=False)] == [[i] for i in range(9)]
    assert again.end_of_epoch()


def test_validation_of_a_shard(folder: Path) -> None:
    run_cli("train", "bin", *PLUGIN, *SMALL, "--save-dir", "short", "--max-update", 1, cwd=folder)
    words = ["bin", *PLUGIN, "--task", "translation", "--path", "short/checkpoint_last.pt", "--cpu", "--batch-size", 10]
    losses = set()
    for shard in (["0", "1"], ["0", "2"], ["1", "2"]):
        more = ["--shard-id", shard[0], "--num-shards", shard[1], "--log-format", "json"]
        done = run_cli("validate", *words, *more, cwd=folder)
        losses.update(re.findall(r'"valid_loss": "([\d.]+)"', done.stdout + done.stderr))
    assert len(losses) == 3
    none = run_cli("validate", *words, "--shard-id", 999, "--num-shards", 1000, cwd=folder)
    assert "no sentence to validate on" in none.stdout + none.stderr


def test_sentences_fall_into_buckets() -> None:
    assert data_utils.get_buckets(np.arange(1, 101), 4).tolist() == [25, 50, 75, 100]


def test_cpu_is_one_process_whatever_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.common.cpu, cfg.distributed_training.distributed_world_size = True, 2  # fairseq's default with two GPUs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    begun: list[Any] = []
    distributed_utils.call_main(cfg, begun.append)
    assert begun == [cfg]
    assert cfg.distributed_training.distributed_world_size == 1


@slow
def test_python_ends_while_batches_are_prepared(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", READS_ON], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_attention_to_the_source_has_its_products_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq's own, under autocast on a CPU: the projections before and after them are rounded, they are not."""
    torch.manual_seed(0)
    layer = MultiheadAttention(8, 2, kdim=8, vdim=8, encoder_decoder_attention=True)
    query, source = torch.randn(3, 4, 8), torch.randn(5, 4, 8)
    seen = []
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.append((a.dtype, b.dtype)) or product(a, b))
    exact, _ = layer(query, source, source, static_kv=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = layer(query, source, source, static_kv=True)
    assert seen == [(torch.float32, torch.float32)] * 4
    assert rounded.dtype == torch.bfloat16 and not torch.equal(rounded.float(), exact)
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.02)


@slow
def test_fairseqs_transformer_is_validated_in_bfloat16(toy_data: Path, tmp_path: Path) -> None:
    """torch's fast path of such a model is not for autocast."""
    sizes = [f"--{side}-{what}" for side in ("encoder", "decoder") for what in ("embed-dim", "ffn-embed-dim")]
    arch = ["--arch", "transformer", *(word for flag in sizes for word in (flag, 32)), "--encoder-layers", 2, "--cpu"]
    arch += ["--decoder-layers", 1, "--encoder-attention-heads", 4, "--sentence-avg"]  # for losses with more digits
    train(toy_data, tmp_path, "--max-update", 100, arch=arch)
    words = [toy_data, *PLUGIN, "--task", "translation", "--path", tmp_path / "checkpoint_last.pt", "--cpu"]
    words += ["--max-tokens", 400, "--log-format", "json"]
    printed = [run_cli("validate", *words, *more) for more in ([], ["--amp"])]
    plain, rounded = (re.findall(r'"valid_(?:loss|ppl)": "([\d.]+)"', done.stdout + done.stderr) for done in printed)
    assert rounded != plain and [*map(float, rounded)] == pytest.approx([*map(float, plain)], rel=0.02)


@slow
@pytest.mark.parametrize("more", [[], ["--ignore-case"]])
def test_fairseq_score_is_sacrebleu(more: list[str], tmp_path: Path) -> None:
    import sacrebleu

    outputs, references = ["The cat sat on a mat.", "", "What?  Yes, that is right!"], ["The cat sat on the Mat."] * 2
    references += ["what? Yes, that is right!"]
    for name, lines in (("outputs", outputs), ("references", references)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    done = run_cli("score", "--sys", "outputs", "--ref", "references", "--sacrebleu", *more, cwd=tmp_path)
    score = sacrebleu.corpus_bleu(outputs, [references], lowercase=bool(more))
    assert done.stdout.splitlines()[-1] == score.format()
    assert 20 < score.score < 95


@slow
def test_mixture_of_experts(toy_data: Path, tmp_path: Path) -> None:
    """fairseq's task, whose gate reads what the encoder gives; the experts are told apart by the first token."""
    (tmp_path / "both").mkdir()
    task = "import fairseq_sru, fairseq.examples.translation_moe.translation_moe_src"
    (tmp_path / "both" / "__init__.py").write_text(f"{task}  # noqa: F401\n")
    moe = ["--user-dir", "both", "--task", "translation_moe", "--method", "sMoElp", "--num-experts", 3]
    moe += ["--mean-pool-gating-network"]
    options = ["--encoder-bidirectional", "--encoder-hidden-size", 12, "--max-update", 5, "--save-dir", "save"]
    where = {"cwd": tmp_path, "PYTHONPATH": str(ROOT)}
    run_cli("train", toy_data, *moe, *SMALL, *options, *SMOOTHED, **where)
    weights = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=True)["model"]
    assert weights["gating_network.fc1.weight"].shape == (24, 24)  # both directions
    path = ["--path", "save/checkpoint_last.pt", "--cpu", "--max-len-b", 9]
    done = run_cli("generate", toy_data, *moe, *path, "--gen-expert", 1, **where)
    assert len(re.findall(r"^H-", done.stdout, re.M)) == 53


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("left_pad", [False, True])
@pytest.mark.parametrize("more", [{}, {"pad_to_length": 12}, {"pad_to_multiple": 8}, {"pad_to_bsz": 9}], ids=str)
@pytest.mark.parametrize("eos", [2, None])
def test_a_batch_is_put_together_at_once_as_sentence_by_sentence(
    move: bool, left_pad: bool, more: dict[str, int], eos: int | None
) -> None:
    sentences = [torch.randint(4, 99, (n,)) for n in (3, 1, 9, 4, 9)]
    made = data_utils.collate_tokens(sentences, 1, eos, left_pad, move, **more)
    size = max(9, more.get("pad_to_length", 0))
    size = -(-size // more.get("pad_to_multiple", 1)) * more.get("pad_to_multiple", 1)
    expected = []
    for tokens in map(torch.Tensor.tolist, sentences):
        given = [tokens[-1] if eos is None else eos, *tokens[:-1]] if move else tokens
        padding = [1] * (size - len(given))
        expected.append([*padding, *given] if left_pad else [*given, *padding])
    expected += [[1] * size] * (more.get("pad_to_bsz", 0) - len(sentences))
    assert made.tolist() == expected and made.dtype == torch.int64


@pytest.mark.parametrize("together", ["fused", "foreach"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_of_all_weights_at_once_makes_the_same_updates(weight_decay: float, together: str) -> None:
    """What is used on a CPU, and on a GPU; some weights get no gradient at times."""
    start = [torch.randn(7, 5), torch.randn(300), torch.randn(4)]
    made = []
    for how in (None, together):
        weights = [torch.nn.Parameter(w.clone()) for w in start]
        found = Adam(weights, lr=0.01, betas=(0.9, 0.98), eps=1e-4, weight_decay=weight_decay)
        found.together = how
        draws = torch.Generator().manual_seed(1)
        for step in range(20):
            for number, weight in enumerate(weights):
                grad = 1e-3 * torch.randn(weight.shape, generator=draws)
                weight.grad = None if (step + number) % 3 == 0 else grad
            found.step()
        made.append((weights, found.state_dict()["state"]))
    torch.testing.assert_close(made[1][0], made[0][0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(made[1][1], made[0][1], rtol=1e-5, atol=1e-9)
    assert (made[0][0][1] - start[1]).abs().max() > 0.05


def test_adam_goes_on_from_apexs() -> None:
    """Which counts steps for all weights of a group together and has no word of amsgrad."""
    made = []
    for of_apex in (False, True):
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.tensor([1.0, -2.0, 3.0])
        found = Adam([weight], lr=0.1)
        found.step()
        state = found.state_dict()
        if of_apex:
            del state["param_groups"][0]["amsgrad"]
            state["param_groups"][0]["step"] = state["state"][0].pop("step")
        later = Adam([weight], lr=0.1)
        later.load_state_dict(state)
        weight.grad = torch.tensor([-3.0, 2.0, 1.0])
        later.step()
        made.append(weight.detach())
    assert torch.equal(*made)


def test_adam_refuses_what_belongs_to_more_weights() -> None:
    """As where an embedding is frozen later."""
    weights = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(2)]
    with pytest.raises(ValueError, match="of other weights than this model's: give --reset-optimizer"):
        Adam(weights[:1]).load_state_dict(Adam(weights).state_dict())


@pytest.mark.parametrize("together", [None, "fused", "foreach"])
def test_adam_refuses_what_belongs_to_weights_of_other_shapes(together: str | None) -> None:
    """torch's kernels would read and write beyond it."""
    before, after = (torch.nn.Parameter(torch.randn(rows, 4)) for rows in (3, 5))
    before.grad = torch.ones_like(before)
    found = Adam([before])
    found.together = together
    found.step()
    with pytest.raises(ValueError, match="of other weights than this model's: give --reset-optimizer"):
        Adam([after]).load_state_dict(found.state_dict())
    Adam([before]).load_state_dict(found.state_dict())


def test_tied_weights_stay_tied_in_a_checkpoint_of_a_gpu() -> None:
    """Else it is larger, and its parameters are counted twice."""

    class Away(torch.Tensor):
        is_cuda = True

        def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
            return self.as_subclass(torch.Tensor).clone()

    weight = torch.randn(4, 3).as_subclass(Away)
    given = {"a": weight, "b": weight.view(4, 3), "t": weight.t(), "part": weight[:2], "none": weight[:0]}
    moved = utils.move_to_cpu(given)
    assert moved["a"] is moved["b"] and all(type(t) is torch.Tensor for t in moved.values())
    assert len({t.data_ptr() for t in moved.values() if t.numel()}) == 3
    for name, t in given.items():
        assert torch.equal(moved[name], t.as_subclass(torch.Tensor))


@pytest.fixture
def torch_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is one, and no tensor is there, as with --cpu."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("torch_with_a_gpu")
def test_clipping_stays_on_the_cpu() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0)
    assert float(utils.clip_grad_norm_(weights, 1.0)) == pytest.approx(2 * 5**0.5)
    assert torch.cat([w.grad for w in weights if w.grad is not None]).norm() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.usefixtures("torch_with_a_gpu")
def test_apexs_adam_is_not_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "get_fused_adam_class", lambda: pytest.fail)
    cfg = OmegaConf.structured(adam.FairseqAdamConfig(tpu=False, lr=[0.1]))
    assert type(adam.FairseqAdam(cfg, [torch.nn.Parameter(torch.zeros(2))]).optimizer) is Adam


def test_mixed_precision_of_a_gpu_divides_gradients_once_by_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scaler runs on the CPU here. Plain descent shows by how much a gradient was divided."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(_scaler, torch.amp.GradScaler))
    cfg = OmegaConf.create(
        {
            "common": {"amp_init_scale": 1024, "fp16_init_scale": 8, "amp_scale_window": None, "min_loss_scale": 1e-4},
            "optimizer": {"_name": "sgd", "lr": [0.5], "momentum": 0.0, "weight_decay": 0.0},
        }
    )
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = AMPOptimizer.build_optimizer(cfg, [weight])
    assert optimizer.scaler.get_scale() == 1024
    optimizer.backward((weight**2).sum() / 2)
    assert float(optimizer.clip_grad_norm(0.0)) == pytest.approx(5**0.5)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.5, 1.0]))


def _scaler(real: Any, device: str, **options: Any) -> Any:
    assert device == "cuda"
    return real("cpu", **options)


WATCHED = """
import fairseq_sru
from fairseq.optim.adam import Adam
step = Adam.step_together
Adam.step_together = lambda self, group: print("in one pass:", self.together) or step(self, group)
"""


def test_mixed_precision_of_a_gpu_goes_on_with_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scaler runs on the CPU here."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(_scaler, torch.amp.GradScaler))
    common = {"amp_init_scale": 1024, "amp_scale_window": 3, "min_loss_scale": 1e-4}
    descent = {"_name": "sgd", "lr": [0.1], "momentum": 0.5, "weight_decay": 0.0}
    cfg = OmegaConf.create({"common": common, "optimizer": descent})

    def made() -> tuple[AMPOptimizer, nn.Parameter]:
        weight = nn.Parameter(torch.ones(2))
        return AMPOptimizer.build_optimizer(cfg, [weight]), weight

    def updated(optimizer: AMPOptimizer, weight: nn.Parameter, times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad()
            optimizer.backward((weight**2).sum())
            optimizer.step()

    whole, weight = made()
    updated(whole, weight, 5)
    stopped, same = made()
    updated(stopped, same, 4)  # one more than its scale needs to grow
    state = copy.deepcopy(stopped.state_dict())
    resumed, again = made()
    resumed.load_state_dict(state)
    again.data.copy_(same.data)
    updated(resumed, again, 1)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert resumed.scaler.get_scale() == 2048
    torch.testing.assert_close(again, weight)
    plain = made()[0].fp32_optimizer
    plain.load_state_dict(state)  # in what goes on without
    del state["loss_scaler"]  # as of what was trained without
    made()[0].load_state_dict(state)
    assert trainer.Trainer._optimizer_name(SimpleNamespace(optimizer=whole)) == "SGD"  # as without --amp


@pytest.mark.parametrize("more", [[], ["--amp"], ["--fp16"]])
def test_training_on_a_cpu_has_adam_in_one_pass(more: list[str], toy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched" / "__init__.py").write_text(WATCHED)
    options = ["--user-dir", "watched", "--arch", "sru_tiny", "--max-update", 2, "--no-save", *more]
    done = run_cli("train", toy_data, *options, *SMALL, *SMOOTHED, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout.count("in one pass: fused") == 2


FEATURES = """
import fairseq_sru
from fairseq.criterions import FairseqCriterion, register_criterion

@register_criterion("features")
class Features(FairseqCriterion):
    def forward(self, model, sample, reduce=True):
        loss = model(**sample["net_input"], features_only=True)[0].float().square().sum()
        return loss, sample["ntokens"], {"loss": loss.data, "ntokens": sample["ntokens"], "sample_size": 1}

    @staticmethod
    def reduce_metrics(logging_outputs):
        pass

    @staticmethod
    def logging_outputs_can_be_summed():
        return True
"""


def test_a_criterion_may_leave_the_output_layer_out(toy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(FEATURES)
    words = ["--user-dir", "mine", "--arch", "sru", "--criterion", "features", "--share-all-embeddings", "--amp"]
    words += [*SMALL[2:], "--max-update", 2, "--disable-validation", "--save-dir", "save"]
    run_cli("train", toy_data, *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    state = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=False)["last_optimizer_state"]["state"]
    assert all(torch.isfinite(moments["exp_avg_sq"]).all() for moments in state.values()) and state


def test_training_on_a_cpu_leaves_a_gpu_alone(toy_data: Path, tmp_path: Path) -> None:
    """torch says that there is one, which would fail if it were used."""
    (tmp_path / "full").mkdir()
    lines = "import torch, fairseq_sru\ntorch.cuda.is_available = lambda: True\n"
    (tmp_path / "full" / "__init__.py").write_text(lines)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dummy").write_text("mine")
    options = ["--user-dir", "full", "--arch", "sru_tiny", "--max-update", 2, "--save-dir", "saved"]
    hidden = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = run_cli("train", toy_data, *options, *SMALL, *SMOOTHED, cwd=tmp_path, **hidden)
    assert done.returncode == 0 and (tmp_path / "saved" / "checkpoint_last.pt").is_file(), done.stderr
    assert (tmp_path / "saved" / "dummy").read_text() == "mine"


@pytest.mark.parametrize("version", ["2.9.0", "2.9.0a0+50eac811a6.nv25.09", "2.9.0rc2"])
def test_the_transformer_takes_torch_whatever_its_version_looks_like(
    version: str, dictionary: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    args = Namespace(**FIXED, **SIZES["transformer_sru"])
    ARCH_CONFIG_REGISTRY["transformer"](args)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = ARCH_MODEL_REGISTRY["transformer"].build_model(args, task).eval()
    tokens = torch.tensor([[5, 6, dictionary.eos()]])
    with torch.no_grad():
        logits, _ = model(tokens, torch.tensor([3]), tokens)
    assert logits.shape == (1, 3, len(dictionary))
