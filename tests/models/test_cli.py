"""The plugin by hand, as the README shows it: every command of fairseq on a toy corpus."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_cli, write_pairs
from support.commands import PLUGIN, SMALL, SMOOTHED, generate, hydra_words, hypotheses, reverses, train
from support.processes import alone


@pytest.fixture(scope="module")
def trained(toy_data, tmp_path_factory) -> Path:
    """Two epochs, then two more on top of the saved state, with --eval-bleu."""
    save = tmp_path_factory.mktemp("checkpoints")
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 12}', "--best-checkpoint-metric", "bleu"]
    bleu += ["--maximize-best-checkpoint-metric", "--patience", 3]
    first = train(toy_data, save, *SMOOTHED, *bleu, "--max-epoch", 2, "--update-freq", 2)
    assert "valid_bleu" in first.stdout + first.stderr or "| bleu " in first.stdout + first.stderr
    second = train(toy_data, save, *SMOOTHED, *bleu, "--max-epoch", 4, "--update-freq", 2)
    log = second.stdout + second.stderr
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch 3 @", log)
    assert "begin training epoch 2" not in log
    return save


def test_trained_checkpoints_are_read_with_the_safety_on(trained):
    state = torch.load(trained / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["model"]["encoder_embed_dim"] == 32
    assert state["cfg"]["model"]["_name"] == "sru_tiny"


def test_a_checkpoint_of_before_an_option_is_read(toy_data, tmp_path):
    before = ["--sru-activation", "tanh", "--encoder-kernel-size", 1, "--decoder-coverage", "False"]
    train(toy_data, tmp_path, *SMOOTHED, "--max-epoch", 1, *before)
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
    for option in ("recurrent_unit", "no_residual", "sru_activation", "encoder_kernel_size", "decoder_coverage"):
        del state["cfg"]["model"][option]
    torch.save(state, tmp_path / "older.pt")
    found = [hypotheses(generate(toy_data, path)) for path in (tmp_path / "checkpoint_last.pt", tmp_path / "older.pt")]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "beam, batch",
    [
        (5, ["--batch-size", 7]),
        *(
            pytest.param(beam, batch, marks=pytest.mark.slow)
            for beam, batch in ((1, ["--batch-size", 7]), (1, ["--max-tokens", 100]), (5, ["--batch-size", 1]))
        ),
    ],
)
def test_generate_covers_every_sentence(trained, toy_data, batch, beam):
    text = generate(toy_data, trained / "checkpoint_best.pt", "--beam", beam, *batch)
    assert sorted(hypotheses(text)) == list(range(53))  # the 21st is empty


def test_generate_needs_no_training_data(trained, toy_data, tmp_path):
    """Nor with the flag --arch, which it has and doesn't need."""
    for file in (*toy_data.glob("dict.*"), *toy_data.glob("test.*")):
        (tmp_path / file.name).symlink_to(file)
    text = generate(tmp_path, trained / "checkpoint_best.pt", "--arch", "sru_tiny")
    assert len(hypotheses(text)) == 53


def test_interactive_answers_line_by_line_empty_ones_too(trained, toy_data):
    lines = "a b c d\n\nj i\n"
    done = run_cli(
        "interactive", toy_data, *PLUGIN, "--path", trained / "checkpoint_best.pt", "--cpu", "--beam", 2, text_in=lines
    )
    assert sorted(hypotheses(done.stdout)) == [0, 1, 2]


def test_validate(trained, toy_data):
    words = ["--task", "translation", "--path", trained / "checkpoint_best.pt", "--cpu", "--max-tokens", 400]
    done = run_cli("validate", toy_data, *PLUGIN, *words)
    assert "valid on 'valid' subset" in done.stdout + done.stderr


@pytest.mark.slow
def test_alignment_and_scoring_and_ensemble(trained, toy_data):
    text = generate(toy_data, trained / "checkpoint4.pt", "--beam", 2, "--print-alignment", "--scoring", "sacrebleu")
    aligned = dict(re.findall(r"^A-(\d+)\t(.*)$", text, re.M))
    assert len(aligned) == 53
    for number, hypothesis in hypotheses(text).items():
        targets = {int(pair.split("-")[1]) for pair in aligned[str(number)].split()}
        assert targets <= set(range(len(hypothesis.split()) + 1))
    assert re.search(r"BLEU = [\d.]+ .*\n?", text)
    one = hypotheses(generate(toy_data, trained / "checkpoint4.pt", "--beam", 2))
    same_twice = f"{trained / 'checkpoint4.pt'}:{trained / 'checkpoint4.pt'}"
    assert hypotheses(generate(toy_data, same_twice, "--beam", 2)) == one


@pytest.mark.slow
def test_other_ways_to_search(trained, toy_data):
    path = trained / "checkpoint_best.pt"
    for options in (
        ["--sampling", "--beam", 2, "--nbest", 2],
        ["--diverse-beam-groups", 2, "--beam", 4],
        ["--prefix-size", 2, "--beam", 2],
        ["--nbest", 2, "--beam", 3],
        ["--retain-dropout", "--beam", 1],
        ["--diversity-rate", 0.5, "--beam", 2],
        ["--fp16", "--print-alignment", "soft", "--beam", 2],
    ):
        assert len(hypotheses(generate(toy_data, path, *options))) == 53, options


def test_average(trained, toy_data, tmp_path):
    import average

    inputs = [trained / "checkpoint3.pt", trained / "checkpoint4.pt"]
    average.main(["--inputs", str(trained), "--num-epoch-checkpoints", "2", "--output", str(tmp_path / "average.pt")])
    states = [torch.load(path, weights_only=True)["model"] for path in inputs]
    averaged = torch.load(tmp_path / "average.pt", weights_only=True)["model"]
    assert averaged.keys() == states[0].keys()
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, (states[0][name] + states[1][name]) / 2)
    assert len(hypotheses(generate(toy_data, tmp_path / "average.pt", "--beam", 2))) == 53
    average.main(["--inputs", str(trained), "--num-epoch-checkpoints", "2", "--output", str(tmp_path / "average")])
    assert {path.name for path in tmp_path.iterdir()} == {"average", "average.pt"}


def test_average_of_weights_that_differ(tmp_path):
    import average

    models = {
        "a": {"w": torch.tensor([1.0, 2.0]).half(), "n": torch.tensor(3)},
        "b": {"w": torch.tensor([2.0, 4.0]).half(), "n": torch.tensor(5)},
        "shape": {"w": torch.ones(3), "n": torch.tensor(3)},
        "name": {"v": torch.ones(2), "n": torch.tensor(3)},
    }
    for name, model in models.items():
        torch.save({"model": model, "last_optimizer_state": {}}, tmp_path / f"{name}.pt")
    made = average.average([tmp_path / "a.pt", tmp_path / "b.pt"])
    assert made["model"]["w"].tolist() == [1.5, 3.0] and made["model"]["w"].dtype == torch.float16
    assert int(made["model"]["n"]) == 5 and "last_optimizer_state" not in made
    for name, message in (("shape", "w has shape (3,), not (2,)"), ("name", "v has shape (2,), not None")):
        with pytest.raises(ValueError, match=re.escape(message)):
            average.average([tmp_path / "a.pt", tmp_path / f"{name}.pt"])
    (tmp_path / "empty.pt").touch()  # as a full disk leaves it
    with pytest.raises(ValueError, match=r"empty\.pt is not a fairseq checkpoint: EOFError"):
        average.average([tmp_path / "empty.pt"])


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--inputs", "{folder}", "--num-epoch-checkpoints", "9"],
            "holds 4 epoch checkpoints; --num-epoch-checkpoints is 9",
        ),
        (["--inputs", "{folder}/none.pt"], "no such file"),
        (["--inputs", "{folder}"], "a folder, which wants --num-epoch-checkpoints"),
        (["--inputs", str(ROOT / "LICENSE")], "is not a fairseq checkpoint"),
        (["--inputs", "{folder}/checkpoint1.pt", "--output", "{folder}/checkpoint1.pt"], "is there already: remove it"),
    ],
)
def test_average_names_what_is_wrong(trained, words, message, tmp_path, capsys):
    import average

    before = {path: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(SystemExit):
        average.main(["--output", str(tmp_path / "average.pt"), *(w.format(folder=trained) for w in words)])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_the_command_of_the_page_for_hydra_is_taken():
    page = (ROOT / "docs" / "training.md").read_text()
    found = re.search(r"^    fairseq-hydra-train ((?:.*\\\n)*.*)\n", page, re.MULTILINE)
    assert found
    words = shlex.split(found[1].replace("\\\n", " ").replace("$PWD", str(ROOT)))
    config = run_cli("hydra-train", *words, "--cfg", "job").stdout
    assert "  decoder_hidden_size: 768\n" in config and "share_all_embeddings: true\n" in config


def test_hydra_train_with_a_preset(toy_data, tmp_path):
    sizes = ["model.encoder_embed_dim=32", "model.decoder_embed_dim=32", "model.encoder_hidden_size=16"]
    options = [*sizes, "criterion=label_smoothed_cross_entropy", "criterion.label_smoothing=0.1"]
    options += ["optimization.max_epoch=1", "dataset.max_tokens=400"]
    run_cli("hydra-train", *hydra_words(toy_data, tmp_path, "sru/sru_tiny", *options))
    model = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["cfg"]["model"]
    assert model["encoder_bidirectional"] is True  # from the preset
    assert model["encoder_embed_dim"] == 32
    assert len(hypotheses(generate(toy_data, tmp_path / "checkpoint_last.pt", "--beam", 1))) == 53


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["lstm_tiny", "sru_wmt_2017"])
def test_the_presets_for_comparison_learn_a_toy_task(arch, tmp_path):
    """The plain stack, whose encoder runs forward alone, is slower at it."""
    sizes = ["--encoder-embed-dim", 64, "--decoder-embed-dim", 64, "--encoder-hidden-size", 64]
    sizes += ["--decoder-hidden-size", 64, "--dropout", 0.1]
    assert reverses(tmp_path, [arch, *sizes], beam=5, epochs=40) > 0.8


@pytest.mark.slow
def test_adaptive_softmax_and_no_attention_train_and_generate(toy_data, tmp_path):
    adaptive = ["--criterion", "adaptive_loss", "--adaptive-softmax-cutoff", "5,10", "--decoder-attention", "False"]
    adaptive += ["--ddp-backend", "legacy_ddp"]  # fairseq's adaptive loss refuses the other one
    train(toy_data, tmp_path, *adaptive, "--max-epoch", 1)
    assert len(hypotheses(generate(toy_data, tmp_path / "checkpoint_last.pt", "--beam", 2))) == 53


# One of each kind; test_options.py has all.
BAD = [
    (["--encoder-layers", 0], "error: --encoder-layers must be at least 1; got 0"),
    (["--encoder-embed-path", "none.txt"], "error: --encoder-embed-path must be a file that is there; got 'none.txt'"),
    (
        ["--share-all-embeddings", "--encoder-embed-dim", 48],
        "error: --share-all-embeddings requires --encoder-embed-dim to match --decoder-embed-dim; got 48 and 32",
    ),
]


@pytest.mark.parametrize("words, message", BAD)
def test_bad_input_is_one_line_before_training(toy_data, tmp_path, words, message):
    done = train(toy_data, tmp_path / "save", *words, check=False)
    assert done.returncode == 2
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "save").exists()


def test_bad_data_folders_are_one_line_before_training(toy_data, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, languages, message in (
        ("none", [], "argument data: no such folder"),
        ("empty", [], "holds no dict.*.txt; fairseq-preprocess makes it"),
    ):
        done = train(tmp_path / folder, tmp_path / "save", *languages, check=False)
        assert done.returncode == 2
        assert message in done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_separate_dictionaries(tmp_path):
    for split in ("train", "valid", "test"):
        write_pairs(tmp_path, split, [(["a", "b"], ["x", "y", "z"])] * 20)
    prefixes = [word for s in ("train", "valid", "test") for word in (f"--{s}pref", tmp_path / s)]
    run_cli("preprocess", "-s", "en", "-t", "de", *prefixes, "--destdir", tmp_path / "bin")
    train(
        tmp_path / "bin", tmp_path / "save", "--max-epoch", 1, arch=[w for w in SMALL if w != "--share-all-embeddings"]
    )


def run_python(code, first, cwd):
    """A child process that finds modules in the folders ``first`` before others."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {list(map(str, first))!r}\n{code}"],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


LAYERS = """
import logging, sys
before = (logging.root.level, list(logging.root.handlers))
import fairseq_sru, torch
print(fairseq_sru.SRU(3, 4)(torch.zeros(2, 1, 3))[0].shape)
assert "fairseq" not in sys.modules
assert "torch._dynamo" not in sys.modules, "seconds at each start of a command"
assert (logging.root.level, logging.root.handlers) == before
"""


def test_the_layers_load_no_fairseq_and_the_models_say_what_they_lack(tmp_path):
    """fairseq installed, broken as the official one is on Python >= 3.11, and missing."""
    broken = tmp_path / "broken" / "fairseq"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ValueError('mutable default CommonConfig for field common')")
    for without in ("", alone()):  # the latter as after pip install .
        done = run_python(without + LAYERS, [ROOT], tmp_path)
        assert (done.stdout, done.stderr) == ("torch.Size([2, 1, 4])\n", "")

    done = run_python("import fairseq_sru.models", [broken.parent, ROOT], tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "ImportError: fairseq_sru.models needs fairseq, which can't be imported (ValueError: mutable"
    )
    assert last.endswith("Install it with: python -m fairseq_sru.install_fairseq")
    done = run_python("sys.modules['fairseq'] = None\nimport fairseq_sru.models", [ROOT], tmp_path)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: fairseq_sru.models needs fairseq, which is not installed. "
        "Install it with: python -m fairseq_sru.install_fairseq"
    )


USER_DIR = """
import fairseq_sru, torch
from argparse import Namespace
from fairseq import utils
from fairseq.models import ARCH_MODEL_REGISTRY
assert "sru_tiny" not in ARCH_MODEL_REGISTRY
utils.import_user_module(Namespace(user_dir={!r}))
print({{"sru", "sru_tiny", "transformer_sru", "sru_lm"}} <= set(ARCH_MODEL_REGISTRY))
print(Namespace in torch.serialization.get_safe_globals())
"""


def test_a_user_dir_that_was_imported_before_registers_too(tmp_path):
    """fairseq goes no further than to see that it was. It is the first import of all other tests."""
    done = run_python(USER_DIR.format(str(ROOT / "fairseq_sru")), [ROOT], tmp_path)
    assert done.stdout == "True\nTrue\n", done.stderr[-2000:]


def test_imported_after_fairseq_the_models_are_registered(tmp_path):
    code = "import fairseq.models as m, fairseq_sru\nprint('sru_tiny' in m.ARCH_MODEL_REGISTRY)"
    assert run_python(code, [ROOT], tmp_path).stdout == "True\n"


def test_a_toy_task_is_learned(tmp_path):
    sizes = ["--encoder-embed-dim", 64, "--decoder-embed-dim", 64, "--encoder-hidden-size", 32, "--dropout", 0.1]
    small = [*sizes, "--share-all-embeddings", "--encoder-layers", 1, "--decoder-layers", 1]
    assert reverses(tmp_path, ["sru_tiny", *small], beam=1, epochs=14) > 0.95
