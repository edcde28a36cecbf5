"""The language model: the state that is carried from block to block against one long forward pass, its preset, and the
commands of fairseq."""

from __future__ import annotations

import math
import random
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_cli
from fairseq import checkpoint_utils, options, tasks
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.sequence_scorer import SequenceScorer
from omegaconf import OmegaConf
from support.builds import patched
from support.commands import PLUGIN, hypotheses
from support.small_models import ADAPTIVE, log_probs, made, prefixes, preset, size


@pytest.fixture
def build(dictionary):
    return partial(made, "sru_lm", dictionary)


def test_the_incremental_state_is_c_alone(build, dictionary):
    model, state = build(decoder_hidden_size=12, decoder_layers=3), {}
    model.decoder(prefixes(dictionary, 5, 4), incremental_state=state)
    (cache,) = state.values()
    assert [c.shape for c in cache.values()] == [(5, 12)] * 3


# The state that is carried: fairseq's own blocks, batches and scorer, against one pass over the whole text.


def write_text(folder: Path, name: str, lines: int, seed: int) -> None:
    """Lines that count on from one line to the next: the first word of a line follows from the last of the line before,
    so a model that carries its state can know it."""
    rng, at, text = random.Random(seed), 0, []
    for _ in range(lines):
        n = rng.randint(1, 5)
        text.append(" ".join("abcdefgh"[(at + i) % 8] for i in range(n)))
        at += n
    (folder / name).write_text("\n".join(text) + "\n")


@pytest.fixture(scope="module")
def text_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for seed, (name, lines) in enumerate((("train", 600), ("valid", 60), ("test", 80))):
        write_text(folder, name, lines, seed)
    prefixes = [word for s in ("train", "valid", "test") for word in (f"--{s}pref", folder / s)]
    run_cli("preprocess", "--only-source", *prefixes, "--destdir", folder / "bin")
    return folder / "bin"


def evaluation(data: Path, window: int, block: int, *more: Any) -> tuple[Any, Any]:
    """The configuration of fairseq-eval-lm, and the task, as the command makes them."""
    torch.save({}, data / "none.pt")  # fairseq looks whether there is a checkpoint
    words = [data, "--path", data / "none.pt", "--gen-subset", "test", "--cpu", "--distributed-world-size", 1]
    words += ["--context-window", window, "--tokens-per-sample", block, "--num-workers", 0, *more]
    args = options.parse_args_and_arch(options.get_eval_lm_parser(), [str(word) for word in words])
    cfg = convert_namespace_to_omegaconf(args)
    cfg.task.tokens_per_sample -= window
    task = tasks.setup_task(cfg.task)
    task.load_dataset("test")
    return cfg, task


def model_for(task: Any, **given: Any) -> Any:
    torch.manual_seed(0)
    return made("sru_lm", task.dictionary, **given).eval()


def scores(model: Any, cfg: Any, task: Any) -> dict[int, torch.Tensor]:
    """log p of each token, by block, as fairseq-eval-lm gets them: its data loader and its scorer."""
    batches = task.eval_lm_dataloader(
        task.dataset("test"),
        max_tokens=cfg.dataset.max_tokens or 36000,
        batch_size=cfg.dataset.batch_size,
        max_positions=model.max_positions(),
        num_workers=cfg.dataset.num_workers,
        context_window=cfg.eval_lm.context_window,
    )
    scorer = SequenceScorer(task.target_dictionary, cfg.eval_lm.softmax_batch)
    found = {}
    for batch in batches:
        for number, (hypothesis,) in zip(batch["id"].tolist(), scorer.generate([model], batch), strict=True):
            found[number] = hypothesis["positional_scores"]
    return found


def unbroken(model: Any, task: Any, data: Path) -> torch.Tensor:
    """log p of each token of the test set, from the text itself and one forward pass over all of it."""
    lines = (data.parent / "test").read_text().splitlines()
    text = torch.cat([task.dictionary.encode_line(line, add_if_not_exist=False).long() for line in lines])
    read = torch.cat([torch.tensor([task.dictionary.eos()]), text[:-1]])
    log_p = log_probs(model, model(read[None]))[0].detach()
    return log_p.gather(1, text[:, None]).squeeze(1)


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(["--batch-size", 1], marks=pytest.mark.slow),
        ["--batch-size", 3],
        pytest.param(["--max-tokens", 100], marks=pytest.mark.slow),
        pytest.param([], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("window, block", [(1, 16), (5, 16), (15, 16), (1, 2)])
@pytest.mark.parametrize(
    "given", [{}, ADAPTIVE, {"decoder_kernel_size": 4}], ids=["full softmax", "adaptive softmax", "convolution"]
)
def test_carried_state_equals_one_unbroken_forward(given, window, block, batch, text_data):
    cfg, task = evaluation(text_data, window, block, *batch)
    model = model_for(task, **given)
    expected = unbroken(model, task, text_data)
    model.prepare_for_inference_(cfg)
    found = scores(model, cfg, task)
    assert sorted(found) == list(range(math.ceil(len(expected) / (block - window))))
    torch.testing.assert_close(torch.cat([found[number] for number in sorted(found)]), expected)
    # and again: the second time, the text begins again
    again = scores(model, cfg, task)
    torch.testing.assert_close(torch.cat([again[number] for number in sorted(again)]), expected)


def test_a_softmax_in_parts_and_a_loader_of_its_own_give_the_same(text_data):
    cfg, task = evaluation(text_data, 4, 16, "--softmax-batch", 7, "--num-workers", 1)
    model = model_for(task)
    expected = unbroken(model, task, text_data)
    model.prepare_for_inference_(cfg)
    found = scores(model, cfg, task)
    torch.testing.assert_close(torch.cat([found[number] for number in sorted(found)]), expected)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--sample-break-mode", "eos"], marks=patched),
        ["--sample-break-mode", "complete"],
        ["--add-bos-token"],
    ],
)
def test_texts_of_their_own_are_read_with_fairseqs_context_and_no_more(more, text_data):
    cfg, task = evaluation(text_data, 3, 16, *more, "--batch-size", 1)
    model = model_for(task)
    plain = scores(model, cfg, task)
    model.prepare_for_inference_(cfg)
    prepared = scores(model, cfg, task)
    assert plain.keys() == prepared.keys()
    for number in plain:
        torch.testing.assert_close(prepared[number], plain[number], rtol=0, atol=0)


def test_without_a_context_window_each_block_is_a_text_of_its_own(text_data):
    cfg, task = evaluation(text_data, 0, 16)
    model = model_for(task)
    model.prepare_for_inference_(cfg)
    found = scores(model, cfg, task)
    for number, (source, target, _) in enumerate(task.dataset("test").dataset):
        alone = log_probs(model, model(source.long()[None]))[0].gather(1, target.long()[:, None]).squeeze(1)
        torch.testing.assert_close(found[number], alone)


def test_a_row_that_does_not_follow_begins_a_new_text(build, dictionary):
    model = build().eval()
    text, other = prefixes(dictionary, 1, 12, seed=1), prefixes(dictionary, 1, 5, seed=2)
    expected, alone = model(text)[0], model(other)[0]
    model.decoder.follow_blocks(2)
    torch.testing.assert_close(model(text[:, :7])[0], expected[:, :7])
    padded = torch.cat([text[:, 5:], torch.full((1, 2), dictionary.pad())], dim=1)
    torch.testing.assert_close(model(padded)[0][:, 2:7], expected[:, 7:])
    torch.testing.assert_close(model(other)[0], alone)
    model.decoder.follow_blocks(0)
    torch.testing.assert_close(model(text)[0], expected)


def test_the_carried_state_keeps_no_graph(build, dictionary):
    decoder = build().decoder
    decoder.follow_blocks(1)
    assert decoder(prefixes(dictionary, 1, 5))[0].requires_grad
    states = [state["c"] for state in decoder._states]
    assert states[0].any() and not any(c.requires_grad for c in states)


def test_generation_is_not_concerned_by_the_blocks(build, dictionary):
    model = build().eval()
    tokens, state = prefixes(dictionary, 3, 4), {}
    expected = model(tokens)[0][:, -1:]
    model.decoder.follow_blocks(2)
    for t in range(1, 5):
        step = model.decoder(tokens[:, :t], incremental_state=state)[0]
    torch.testing.assert_close(step, expected)
    cfg = OmegaConf.structured(FairseqConfig)  # as fairseq-generate has it
    model.prepare_for_inference_(cfg)
    torch.testing.assert_close(model(tokens)[0][:, -1:], expected)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--num-workers", 2], "--num-workers must be 1 with --context-window: .*; got 2"),
        (["--num-shards", 3], "--num-shards must be 1 with --context-window: .*; got 3"),
        (["--distributed-world-size", 2], "--distributed-world-size must be 1 with --context-window: .*; got 2"),
    ],
)
def test_blocks_out_of_their_order_are_refused(more, message, text_data):
    cfg, task = evaluation(text_data, 3, 16, *more)
    with pytest.raises(ValueError, match=message):
        model_for(task).prepare_for_inference_(cfg)
    cfg.eval_lm.context_window = 0
    model_for(task).prepare_for_inference_(cfg)


def test_a_smaller_output_dictionary(build, dictionary):
    smaller = Dictionary()
    smaller.add_symbol("w0")
    assert build(smaller)(prefixes(dictionary, 2, 5))[0].shape == (2, 5, len(smaller))
    with pytest.raises(ValueError, match=r"--share-decoder-input-output-embed requires one dictionary.* got 44 and 5"):
        build(smaller, share_decoder_input_output_embed=True)


def test_the_longest_sequence(build):
    assert build().max_positions() == 10**6
    assert build(max_target_positions=512).max_positions() == 512


def test_the_wikitext_preset():
    """Parameters by hand: embedding, projections, 6 layers of SRU with layer norm, adaptive softmax."""
    words, embed, hidden, out = 267744, 400, 2048, 1024
    model = preset("sru_lm_wikitext103", words, criterion="adaptive_loss", max_target_positions=None)
    layer = 3 * hidden * hidden + 2 * hidden + 2 * hidden
    head = (20000 + 2) * out
    tails = out * out // 4 + 40000 * out // 4 + out * out // 16 + (words - 60000) * out // 16
    expected = words * embed + embed * hidden + 6 * layer + 2 * hidden + hidden * out + out + head + tails
    assert size(model) == expected
    assert expected == pytest.approx(230e6, rel=0.02)


# The commands.

SMALL = ["--arch", "sru_lm", "--decoder-embed-dim", 32, "--dropout", 0.0, "--cpu", "--no-progress-bar"]


def train_lm(data: Path, save: Path, *more: Any, check: bool = True) -> Any:
    words = [data, *PLUGIN, "--task", "language_modeling", *SMALL, "--tokens-per-sample", 32, "--max-tokens", 512]
    words += ["--sample-break-mode", "none", "--optimizer", "adam", "--lr", 5e-3, "--save-dir", save, *more]
    return run_cli("train", *words, check=check)


def perplexity(data: Path, path: Path, *more: Any) -> float:
    words = [data, *PLUGIN, "--path", path, "--gen-subset", "test", "--cpu", "--distributed-world-size", 1]
    done = run_cli("eval-lm", *words, *more)
    return float(re.search(r"Perplexity: ([\d.]+)", done.stdout + done.stderr)[1])


@pytest.fixture(scope="module")
def trained(text_data, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("checkpoints")
    train_lm(text_data, save, "--share-decoder-input-output-embed", "--max-epoch", 6, "--no-epoch-checkpoints")
    return save / "checkpoint_best.pt"


def test_eval_lm_carries_the_state(trained, text_data):
    """Blocks of three tokens: the first of each can be known from the block before alone."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(trained)], {"data": str(text_data)})
    truth = math.exp(-float(unbroken(model.double().eval(), task, text_data).mean()))
    block = ["--tokens-per-sample", 4, "--sample-break-mode", "none"]
    assert perplexity(text_data, trained, *block, "--context-window", 1) == pytest.approx(truth, abs=0.01)
    assert perplexity(text_data, trained, *block) > 1.1 * truth


@patched
def test_generate_goes_on_with_a_text(trained, text_data):
    words = [text_data, *PLUGIN, "--task", "language_modeling", "--path", trained, "--cpu", "--gen-subset", "test"]
    words += ["--sample-break-mode", "eos", "--prefix-size", 1, "--beam", 3, "--max-len-b", 8, "--batch-size", 7]
    found = hypotheses(run_cli("generate", *words).stdout)
    lines = (text_data.parent / "test").read_text().splitlines()
    assert sorted(found) == list(range(len(lines)))
    for number, line in enumerate(lines):
        hypothesis = found[number].split()
        assert hypothesis[0] == line.split()[0]
        steps = [("abcdefgh".index(b) - "abcdefgh".index(a)) % 8 for a, b in pairwise(hypothesis)]
        assert set(steps) <= {1}  # it has learned to count


def test_the_small_lstm_preset_has_the_parameters_of_its_sru_counterpart():
    sizes = [size(preset(name, 8000)) for name in ("sru_lm_small", "lstm_lm_small")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
