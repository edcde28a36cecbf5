"""Speech to text: padding, options, and fairseq's commands with features made here."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.speech_to_text.s2t_transformer import Conv1dSubsampler
from support.small_models import prefixes, size

from fairseq_sru.models.speech import Subsampler

SMALL = {"encoder_embed_dim": 8, "decoder_embed_dim": 8, "conv_channels": 12, "decoder_attention_heads": 2}
SMALL |= {"input_feat_per_channel": 5, "encoder_bidirectional": True, "dropout": 0.0}
KINDS = {
    "sru": {"encoder_kernel_size": 3},
    "lstm": {"recurrent_unit": "lstm"},
    "no attention": {"decoder_attention": "False"},
    "coverage": {"decoder_coverage": "True", "decoder_layers": 3},
    "three convolutions": {"conv_kernel_sizes": "3,5,1"},
}


def built(arch, dictionary, **options):
    args = Namespace(**options)
    ARCH_CONFIG_REGISTRY[arch](args)
    task = Namespace(source_dictionary=None, target_dictionary=dictionary)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task)


def frames(lengths: list[int], fill: float) -> torch.Tensor:
    """Random frames; padding holds ``fill``."""
    rng = torch.Generator().manual_seed(3)
    x = torch.full((len(lengths), max(lengths), 5), fill, dtype=torch.float64)
    for row, n in zip(x, lengths, strict=True):
        row[:n] = torch.randn(n, 5, generator=rng, dtype=torch.float64)
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0.0, 100.0, float("nan")])
def test_padding_never_changes_a_real_frame(kind, fill, dictionary):
    """Outputs, logits, and the gradients of the weights are those of each utterance alone."""
    model = built("s2t_sru", dictionary, **SMALL, **KINDS[kind]).double()
    lengths, target = [23, 1, 40, 6], prefixes(dictionary, 4, 7)
    x = frames(lengths, fill)
    together, _ = model(x, torch.tensor(lengths), target)
    together.square().sum().backward()
    grads = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    encoded = model.encoder(x, torch.tensor(lengths))
    model.zero_grad()
    for row, n in enumerate(lengths):
        alone = model.encoder(x[row : row + 1, :n], torch.tensor([n]))["encoder_out"][0]
        torch.testing.assert_close(encoded["encoder_out"][0][: len(alone), row], alone[:, 0])
        assert (~encoded["encoder_padding_mask"][0][row]).sum() == len(alone)
        logits, _ = model(x[row : row + 1, :n], torch.tensor([n]), target[row : row + 1])
        torch.testing.assert_close(logits[0], together[row])
        logits.square().sum().backward()
    for name, w in model.named_parameters():
        if w.grad is not None:
            torch.testing.assert_close(grads[name], w.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_on_a_cpu_rounds_products_alone(kind, dictionary):
    """The sum from layer to layer is not rounded, whether a projection comes before the layers or not."""
    model = built("s2t_sru", dictionary, **SMALL, **KINDS[kind])
    inputs: list[torch.dtype] = []
    for norm in model.modules():
        if isinstance(norm, torch.nn.LayerNorm):
            norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(frames([23, 9], 0.0).float(), torch.tensor([23, 9]), prefixes(dictionary, 2, 7))
    assert set(inputs) == {torch.float32}


def test_weights_of_16_bits_take_frames_of_32(dictionary):
    """fairseq-generate --fp16 leaves frames as they are."""
    model, lengths = built("s2t_sru", dictionary, **SMALL).eval(), torch.tensor([23, 9])
    exact = model.encoder(frames([23, 9], 0.0).float(), lengths)["encoder_out"][0]
    found = model.bfloat16().encoder(frames([23, 9], 0.0).float(), lengths)["encoder_out"][0]
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("length", [1, 2, 3, 8, 33])
def test_without_padding_the_convolutions_are_those_of_fairseq(length):
    ours, theirs = Subsampler(5, 12, 8, [5, 3]), Conv1dSubsampler(5, 12, 8, [5, 3])
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, length, 5)
    found, mask = ours(x, torch.zeros(2, length).bool())
    expected, lengths = theirs(x, torch.tensor([length, length]))
    torch.testing.assert_close(found.transpose(0, 1), expected)
    assert (~mask).sum(1).tolist() == lengths.tolist()


def test_lstm_has_the_parameters_of_sru(dictionary):
    sizes = [size(built(name, dictionary)) for name in ("s2t_sru", "s2t_lstm")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


WORDS = ("ah", "oh", "ee")


def write_speech(folder: Path, split: str, count: int) -> None:
    """Utterances of features in which each word is some frames that are high in channels of its own."""
    (folder / "features").mkdir(exist_ok=True)  # fairseq takes files named valid... for data sets
    rng = np.random.default_rng(["train", "valid", "test"].index(split))
    rows = ["id\taudio\tn_frames\ttgt_text\tspeaker"]
    for n in range(count):
        said = rng.integers(0, len(WORDS), rng.integers(1, 4))
        x = rng.normal(0, 0.3, (12 * len(said) + 4, 6)).astype("f4")
        for at, word in enumerate(said):
            x[12 * at + 2 : 12 * at + 10, 2 * word : 2 * word + 2] += 2
        np.save(folder / "features" / f"{split}{n}.npy", x)
        text = " ".join(WORDS[word] for word in said)
        rows.append(f"{split}{n}\t{folder / 'features' / f'{split}{n}.npy'}\t{len(x)}\t{text}\tsomeone")
    (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for split, count in (("train", 300), ("valid", 20), ("test", 30)):
        write_speech(folder, split, count)
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
    lines = ["input_feat_per_channel: 6", "vocab_filename: dict.txt", "transforms: {'*': [utterance_cmvn]}"]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    return folder


TASK = ["--user-dir", "fairseq_sru", "--task", "speech_to_text", "--cpu", "--max-tokens", 1000]
OPTIMIZER = ["--optimizer", "adam", "--lr", 5e-3, "--clip-norm", 1.0, "--criterion", "label_smoothed_cross_entropy"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["s2t_sru", "s2t_lstm"])
def test_it_learns_to_write_down_what_it_hears(arch, speech, tmp_path):
    narrow = ["--encoder-embed-dim", 16, "--encoder-hidden-size", 8, "--encoder-layers", 2, "--conv-channels", 32]
    narrow += ["--decoder-embed-dim", 16, "--decoder-hidden-size", 16, "--dropout", 0.0]
    flags = ["--arch", arch, *narrow, *OPTIMIZER, "--max-epoch", 30, "--no-epoch-checkpoints", "--save-dir", tmp_path]
    run_cli("train", speech, *TASK, *flags)
    done = run_cli("generate", speech, *TASK, "--gen-subset", "test", "--path", tmp_path / "checkpoint_best.pt")
    said = {int(n): text for n, text in re.findall(r"^D-(\d+)\t[^\t]*\t(.*)$", done.stdout, re.M)}
    truth = [line.split("\t")[3] for line in (speech / "test.tsv").read_text().splitlines()[1:]]
    assert sum(said[n] == text for n, text in enumerate(truth)) >= 0.8 * len(truth)
    words = [speech, *TASK, "--path", tmp_path / "checkpoint_best.pt"]
    named = "".join(f"{speech}/features/test{n}.npy\n" for n in range(5))
    again = run_cli("interactive", *words, text_in=named)
    assert re.findall(r"^D-\d+\t[^\t]*\t(.*)$", again.stdout, re.M) == [said[n] for n in range(5)]
