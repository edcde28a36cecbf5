"""Classifiers of sentences: what they compute, padding, options, and fairseq's own commands with them."""

from __future__ import annotations

import random
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from support.sentences import SMALL, prepared
from support.small_models import size, sources

HEAD = "sentence_classification_head"
KINDS = {
    **{
        f"{unit}, {pooling}": {"recurrent_unit": unit, "pooling": pooling, "encoder_kernel_size": 3}
        for unit in ("sru", "lstm")
        for pooling in ("max", "mean", "last")
    },
    "plain": {"no_residual": True, "pooling": "last"},
    "cnn": {"filter_widths": "2,3,5", "filters": 4},
}
PRESETS = ("sru_classifier", "lstm_classifier", "cnn_classifier")
each_kind = pytest.mark.parametrize("kind", KINDS)


def built(arch, dictionary, **options):
    args = Namespace(**options)
    ARCH_CONFIG_REGISTRY[arch](args)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, Namespace(source_dictionary=dictionary))
    model.register_classification_head(HEAD, num_classes=3)
    return model


def small(kind, dictionary, **more):
    sizes = {"encoder_embed_dim": 6, "dropout": 0.0}
    if kind != "cnn":
        sizes |= {"encoder_hidden_size": 5, "encoder_layers": 2, "encoder_bidirectional": True}
    arch = "cnn_classifier" if kind == "cnn" else "sru_classifier"
    return built(arch, dictionary, **{**sizes, **KINDS[kind], **more}).double()


@each_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sentence_has_its_class_whatever_stands_beside_it(kind, side, dictionary):
    model = small(kind, dictionary).eval()
    lengths = [7, 1, 3, 12]
    batch = sources(dictionary, lengths, side)
    together, _ = model(batch, classification_head_name=HEAD)
    assert together.shape == (4, 3)
    for row, n, logits in zip(batch, lengths, together, strict=True):
        alone = row[-n:] if side == "left" else row[:n]
        torch.testing.assert_close(model(alone[None], classification_head_name=HEAD)[0][0], logits)


@each_kind
def test_gradients_are_those_of_finite_differences(kind, dictionary):
    model = small(kind, dictionary).eval()
    batch = sources(dictionary, [4, 6], "right")
    weights = [w for name, w in model.named_parameters() if "embed_tokens" not in name]

    def logits(*_):
        return model(batch, classification_head_name=HEAD)[0]

    assert torch.autograd.gradcheck(logits, weights, fast_mode=True)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_pooling_is_over_the_real_positions(pooling, dictionary):
    model = small(f"sru, {pooling}", dictionary).eval()
    batch = sources(dictionary, [5, 9], "left")
    outputs = model.encoder(batch)["encoder_out"][0]
    for row, n in enumerate([5, 9]):
        real = outputs[-n:, row]
        expected = real.max(dim=0).values if pooling == "max" else real.mean(dim=0)
        torch.testing.assert_close(model.encode(batch)[row], expected)


def test_the_filters_are_those_of_the_paper(dictionary):
    """Each filter at each window that has a word, by hand: w . x + b, ReLU, the largest."""
    model = small("cnn", dictionary).eval()
    (tokens,) = sources(dictionary, [4])
    x = model.embed_tokens(tokens)
    expected = []
    for convolution in model.convolutions:
        for weight, bias in zip(convolution.weight, convolution.bias, strict=True):
            width = weight.size(1)
            found = []
            for start in range(1 - width, len(x)):
                seen = [x[t] if 0 <= t < len(x) else torch.zeros_like(x[0]) for t in range(start, start + width)]
                found.append((torch.stack(seen, dim=1) * weight).sum() + bias)
            expected.append(max(*found, torch.zeros_like(bias)))
    torch.testing.assert_close(model.encode(tokens[None])[0], torch.stack(expected))


def test_presets_have_as_many_parameters_beside_the_embedding(dictionary):
    models = [built(name, dictionary) for name in PRESETS]
    sizes = [size(m) - sum(w.numel() for n, w in m.named_parameters() if "embed_tokens" in n) for m in models]
    assert sizes == [pytest.approx(sizes[0], rel=0.015)] * 3


def test_a_model_is_fine_tuned_for_other_classes(dictionary, caplog):
    """By --finetune-from-model: the encoder is the checkpoint's; a head of other classes or another name is new."""
    before, after = small("sru, max", dictionary), small("sru, max", dictionary)
    before.register_classification_head(HEAD, num_classes=5)
    before.register_classification_head("another", num_classes=3)
    head = after.classification_heads[HEAD].weight.clone()
    after.load_state_dict(before.state_dict())
    torch.testing.assert_close(after.encoder.state_dict(), before.encoder.state_dict())
    assert torch.equal(after.classification_heads[HEAD].weight, head)
    assert list(after.classification_heads) == [HEAD]
    assert "is for other classes: this model's is untrained" in caplog.text
    same = small("sru, max", dictionary)
    same.load_state_dict(after.state_dict())
    assert torch.equal(same.classification_heads[HEAD].weight, head)


@pytest.mark.parametrize("freeze", [[], ["--encoder-freeze-embed"]], ids=["trained", "frozen"])
def test_vectors_are_prepared_trained_with_and_then_needed_no_more(freeze, tmp_path, capsys):
    import classify

    rng, path = random.Random(1), tmp_path / "vectors.txt"
    given = {word: [f"{rng.gauss(0, 1):.4f}" for _ in range(6)] for word in ["not", "good", *"abcdefg"]}
    path.write_text("".join(f"{word} {' '.join(numbers)}\n" for word, numbers in given.items()))
    data, vectors = prepared(tmp_path, "--embeddings", str(path)), tmp_path / "data" / "embeddings.txt"
    flags = ["--arch", "cnn_classifier", "--encoder-embed-dim", 6, "--encoder-embed-path", vectors, *freeze]
    run_cli("train", data, *SMALL, *flags, "--max-update", 3, "--save-dir", tmp_path)
    checkpoint = tmp_path / "checkpoint_last.pt"
    weight = torch.load(checkpoint)["model"]["embed_tokens.weight"]
    at = Dictionary.load(str(data / "input0" / "dict.txt")).index("good")
    moved = (weight[at] - torch.tensor(list(map(float, given["good"])))).abs().max()
    assert moved == 0 if freeze else 0 < moved < 0.1
    vectors.write_text("of something else\n")
    words = ["--user-dir", "fairseq_sru", "--cpu", "--path", checkpoint, "--batch-size", 7, "--valid-subset", "test"]
    run_cli("validate", data, *words, *SMALL[2:6], "--num-classes", 2)
    (tmp_path / "text").write_text("not good\n")
    classify.main([str(data), "--path", str(checkpoint), "--input", str(tmp_path / "text")])
    assert re.fullmatch(r"[01]\t[\d.]+", capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("sentences"))


@pytest.mark.parametrize("arch", [pytest.param("sru_classifier", marks=pytest.mark.slow), "cnn_classifier"])
def test_it_learns_and_validate_and_classify_agree(arch, data, tmp_path, capsys, monkeypatch):
    """Sentences that have the word "good" behind "not", or not: for which order matters."""
    import classify

    narrow = ["--encoder-hidden-size", 12, "--encoder-layers", 2] if arch == "sru_classifier" else []
    flags = [*SMALL, "--arch", arch, *narrow, "--encoder-embed-dim", 16, "--save-dir", tmp_path]
    run_cli("train", data, *flags)
    checkpoint = tmp_path / "checkpoint_best.pt"
    words = ["--user-dir", "fairseq_sru", "--cpu", "--path", checkpoint, "--batch-size", 7, "--valid-subset", "test"]
    done = run_cli("validate", data, *words, *SMALL[2:6], "--log-format", "json")
    (stated,) = re.findall(r'"test_accuracy": "([\d.]+)"', done.stdout + done.stderr)
    lines = [line.split(" ", 1) for line in (data / "labelled-test.txt").read_text().splitlines()]
    text = tmp_path / "text"
    text.write_text("".join(f"{sentence.upper()}\r\n" for _, sentence in lines), "utf-8-sig")  # as Windows has it
    classify.main([str(data), "--path", str(checkpoint), "--input", str(text)])
    found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    right = sum(label == truth for (label, _), (truth, _) in zip(found, lines, strict=True))
    assert 100 * right / len(lines) == pytest.approx(float(stated), abs=0.06)
    assert right > 0.9 * len(lines)
    assert all(0.5 <= float(probability) <= 1 for _, probability in found)
    monkeypatch.chdir(data)
    classify.main([".", "--path", str(checkpoint), "--input", str(text)])
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == found
    own = shutil.copytree(data, tmp_path / "own")  # as of fairseq-preprocess, which splits text at spaces alone
    (own / "labelled-test.txt").unlink()
    for sentences, same in ((lines, True), ([(label, sentence.upper()) for label, sentence in lines], False)):
        text.write_text("".join(f"{sentence}\n" for _, sentence in sentences))
        classify.main([str(own), "--path", str(checkpoint), "--input", str(text)])
        assert ([line.split("\t") for line in capsys.readouterr().out.splitlines()] == found) == same
