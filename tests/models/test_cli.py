"""The plugin by hand, as the README shows it: every command of fairseq on a toy corpus."""

from __future__ import annotations

import errno
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_cli, write_pairs
from fairseq.sequence_generator import SequenceGenerator
from support.commands import PLUGIN, SMALL, SMOOTHED, generate, hydra_words, hypotheses, reverses, train
from support.lines import DECODED, OUTPUT, START, unexpected
from support.processes import LONG, alone

from fairseq_sru.models import SRUModel


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


def test_arrays_that_an_unpatched_fairseq_saved_are_read(trained, toy_data, tmp_path):
    state = torch.load(trained / "checkpoint_last.pt", weights_only=False)
    state["extra_state"]["bleu counts"] = [np.array([5, 4, 3, 2]), np.float64(0.5)]
    torch.save(state, tmp_path / "arrays.pt")
    assert hypotheses(generate(toy_data, tmp_path / "arrays.pt"))
    done = train(toy_data, tmp_path / "save", *SMOOTHED, "--restore-file", tmp_path / "arrays.pt", "--max-epoch", 5)
    assert re.search(r"Loaded checkpoint .*arrays.pt \(epoch", done.stdout + done.stderr)


class Foreign:
    def __reduce__(self):
        return (Path.touch, (Path(self.where),))  # a pickle that runs code


@pytest.mark.parametrize(
    "option, message",
    [
        ("decoder_attention", "--decoder-attention must be True, False, global or a number of layers"),
        ("adaptive_softmax_cutoff", "--adaptive-softmax-cutoff must be increasing numbers"),
    ],
)
def test_code_in_a_checkpoints_options_is_not_run(option, message, trained, toy_data, tmp_path):
    state = torch.load(trained / "checkpoint_last.pt", weights_only=False)
    code = f"[5, open({str(tmp_path / 'the code ran')!r}, 'w') and 10]"
    state["cfg"]["model"].update({"criterion": "adaptive_loss", option: code})
    torch.save(state, tmp_path / "options.pt")
    done = run_cli("generate", toy_data, *PLUGIN, "--path", tmp_path / "options.pt", "--cpu", check=False)
    assert done.returncode != 0
    assert f"ValueError: {message}" in done.stderr
    assert not (tmp_path / "the code ran").exists()


def test_a_checkpoint_with_foreign_code_is_refused(trained, toy_data, tmp_path):
    state = torch.load(trained / "checkpoint_last.pt", weights_only=False)
    state["extra_state"]["foreign"] = foreign = Foreign()
    foreign.where = str(tmp_path / "the code ran")
    torch.save(state, tmp_path / "foreign.pt")
    done = run_cli("generate", toy_data, *PLUGIN, "--path", tmp_path / "foreign.pt", "--cpu", check=False)
    assert done.returncode != 0
    assert "Weights only load failed" in done.stderr
    assert not (tmp_path / "the code ran").exists()


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


@pytest.mark.slow
def test_batch_size_does_not_change_the_output(trained, toy_data):
    outputs = [
        hypotheses(generate(toy_data, trained / "checkpoint_best.pt", "--beam", 3, "--batch-size", n, *side))
        for n, side in ((1, []), (16, []), (16, ["--left-pad-source"]))  # the flag switches to the right: a store_false
    ]
    assert outputs[0] == outputs[1] == outputs[2]


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
    assert unexpected(done.stdout + done.stderr, START + DECODED, OUTPUT) == []


def test_interactive_keeps_step_with_a_file(trained, toy_data, tmp_path):
    """Whatever its lines are: a carriage return within one, or more words than the model takes."""
    (tmp_path / "source").write_bytes(b"a b\r c\n" + b"a " * 1100 + b"\nd c b\n")
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--skip-invalid-size-inputs-valid-test"]
    done = run_cli("interactive", toy_data, *PLUGIN, *words, "--input", tmp_path / "source", "--buffer-size", 5)
    found = re.findall(r"^D-(\d+)\t([^\t]*)\t(.*)$", done.stdout, re.M)
    alone = run_cli("interactive", toy_data, *PLUGIN, *words, text_in="a b c\nd c b\n")
    first, last = re.findall(r"^D-\d+\t[^\t]*\t(.*)$", alone.stdout, re.M)
    assert [(n, text) for n, _, text in found] == [("0", first), ("1", ""), ("2", last)]


@pytest.mark.slow
def test_interactive_answers_before_it_is_asked_again(trained, toy_data):
    """Through pipes, as a program asks."""
    words = [toy_data, *PLUGIN, "--path", trained / "checkpoint_best.pt", "--cpu"]
    command = [str(Path(sys.executable).with_name("fairseq-interactive")), *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        patience = threading.Timer(LONG, process.kill)
        patience.start()
        for line in ("a b c", "d c b"):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            assert any(said.startswith("D-") for said in process.stdout)
        process.stdin.close()
        assert process.wait() == 0
        patience.cancel()


def test_interactive_puts_in_the_words_that_are_asked_for(trained, toy_data):
    """Lexical constraints, each after a tab, where an empty one is none; they don't concern the next line."""
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--beam", 5, "--constraints"]
    done = run_cli("interactive", toy_data, *PLUGIN, *words, text_in="a b c d\tj i\t\th\nd c b\n")
    found = {number: f" {words} " for number, words in hypotheses(done.stdout).items()}
    assert " j i " in found[0] and " h " in found[0]
    assert " j i " not in found[1] and " h " not in found[1]


def test_validate(trained, toy_data):
    words = ["--task", "translation", "--path", trained / "checkpoint_best.pt", "--cpu", "--max-tokens", 400]
    done = run_cli("validate", toy_data, *PLUGIN, *words)
    assert "valid on 'valid' subset" in done.stdout + done.stderr
    assert unexpected(done.stdout + done.stderr, START + DECODED, []) == []


@pytest.mark.parametrize("command, flag", [("generate", "--gen-subset"), ("validate", "--valid-subset")])
def test_a_split_that_is_missing_is_told_in_a_line(command, flag, trained, toy_data):
    words = ["--task", "translation", "--path", trained / "checkpoint_best.pt", "--cpu", "--max-tokens", 400]
    done = run_cli(command, toy_data, *PLUGIN, *words, flag, "tset", check=False)
    assert done.returncode == 2
    message = f"argument {flag} tset: Dataset not found: tset ({toy_data})"
    assert done.stderr.splitlines()[-1] == f"fairseq-{command}: error: {message}"


def test_a_metric_that_validation_does_not_tell_costs_no_epoch(toy_data, tmp_path):
    flags = ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
    arch = ["--arch", "sru", *SMALL[2:]]
    for folder, more in (("fresh", flags), ("resumed", []), ("resumed", flags)):
        epochs = len(list((tmp_path / folder).glob("checkpoint?.pt"))) + 1
        done = train(toy_data, tmp_path / folder, *more, "--max-epoch", epochs, arch=arch, check=not more)
        if more:
            assert done.returncode == 2
            said = "argument --best-checkpoint-metric: must be one of loss, ppl, wps, wpb, bsz; got bleu"
            assert done.stderr.splitlines()[-1] == f"fairseq-train: error: {said}"
        state = torch.load(tmp_path / folder / "checkpoint_last.pt", weights_only=True)
        assert state["extra_state"]["train_iterator"]["epoch"] == epochs + 1


@pytest.mark.parametrize("flag", ["--eval-bleu-args", "--eval-bleu-detok-args"])
def test_what_is_no_json_is_named(flag, toy_data, tmp_path):
    done = train(toy_data, tmp_path, "--eval-bleu", flag, "{'beam': 2}", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"argument {flag}: must be JSON, as " in last and "shows where" not in last


def test_validate_by_another_criterion(toy_data, tmp_path):
    """fairseq built the checkpoint's own, and put the other one's options where the model's own name it."""
    train(toy_data, tmp_path, "--max-update", 1, arch=["--arch", "sru", *SMALL[2:]])
    words = ["--task", "translation", "--path", tmp_path / "checkpoint_last.pt", "--cpu", "--max-tokens", 400]
    told = []
    for more in ((), ("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1)):
        done = run_cli("validate", toy_data, *PLUGIN, *words, *more)
        line = re.search(r"valid on 'valid' subset.*", done.stdout + done.stderr)
        assert line
        told.append(dict(re.findall(r"(\w+) ([\d.]+)(?= |$)", line[0])))
    plain, smoothed = told
    assert plain["loss"] == smoothed["nll_loss"] != smoothed["loss"]


@pytest.mark.slow
def test_soft_alignments_have_a_weight_for_each_word_of_the_source(trained, toy_data):
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--print-alignment", "soft", "--max-len-b", 12]
    scored = run_cli("generate", toy_data, *PLUGIN, *words, "--score-reference").stdout
    asked = run_cli("interactive", toy_data, *PLUGIN, *words, text_in="a b c\n").stdout
    for text, count in ((scored, 53), (asked, 1)):
        found = re.findall(r"^A-\d+\t(.*)$", text, re.M)
        assert len(found) == count
        for line in found:
            assert line
            for weights in line.split():
                assert text is scored or weights.count(",") == 3  # of a, b, c and the end
                assert sum(map(float, weights.split(","))) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--beam", 0], "argument --beam: must be at least 1; got 0"),
        (["--beam", -2], "argument --beam: must be at least 1; got -2"),
        (["--temperature", 0], "--temperature must be greater than 0"),
        (
            ["--match-source-len", "--diverse-beam-groups", 5],
            "arguments --diverse-beam-groups and --match-source-len: exclude each other",
        ),
    ],
)
@pytest.mark.parametrize("command", ["generate", "interactive"])
def test_what_cannot_be_searched_for_is_one_line(command, words, message, trained, toy_data):
    where = [toy_data, *PLUGIN, "--path", trained / "checkpoint_best.pt", "--cpu"]
    done = run_cli(command, *where, *words, text_in="a\n", check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"fairseq-{command}: error: {message}"
    assert "Traceback" not in done.stderr


def test_a_line_shorter_than_the_least_length_gets_it(trained, toy_data):
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--max-len-a", 0.8, "--max-len-b", 0, "--min-len"]
    for least in (1, 4):
        found = hypotheses(run_cli("interactive", toy_data, *PLUGIN, *words, least, text_in="\na\na b c\n").stdout)
        assert list(found) == [0, 1, 2] and all(len(line.split()) >= least for line in found.values())


def test_more_subwords_than_there_are_may_be_asked_for(trained, toy_data):
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--sampling", "--sampling-topk", 5000, "--nbest", 5]
    assert run_cli("interactive", toy_data, *PLUGIN, *words, text_in="a b\n").stdout.count("H-0\t") == 5


def test_lines_before_one_that_is_not_utf8_are_translated(trained, toy_data, tmp_path):
    (tmp_path / "text").write_bytes(b"a b\nc\n\xff\nd\n")
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--input", tmp_path / "text", "--buffer-size", 9]
    done = run_cli("interactive", toy_data, *PLUGIN, *words, check=False)
    assert done.returncode == 2
    assert list(hypotheses(done.stdout)) == [0, 1]
    assert done.stderr.splitlines()[-1] == "fairseq-interactive: error: argument --input: line 3 is not UTF-8"


def test_lines_before_one_that_is_too_long_are_translated(trained, toy_data, tmp_path):
    (tmp_path / "text").write_text("a b\nc\n" + "a " * 1100 + "\nd\n")
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--input", tmp_path / "text", "--buffer-size"]
    for size in (1, 3, 9):
        done = run_cli("interactive", toy_data, *PLUGIN, *words, size, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert list(hypotheses(done.stdout)) == [0, 1]
        assert "skipped" not in done.stdout + done.stderr
        said = "argument --input: line 3 is longer than the model takes; with "
        said += "--skip-invalid-size-inputs-valid-test its translation is an empty line"
        assert done.stderr.splitlines()[-1] == f"fairseq-interactive: error: {said}"


def test_an_empty_line_where_translations_are_as_long_as_sources(trained, toy_data):
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--match-source-len"]
    done = run_cli("interactive", toy_data, *PLUGIN, *words, text_in="a b c\n\nj i\n")
    found = hypotheses(done.stdout)
    assert sorted(found) == [0, 1, 2]
    assert [len(found[i].split()) for i in (0, 2)] == [3, 2]


def test_a_shard_without_a_sentence(trained, toy_data):
    words = ["--path", trained / "checkpoint_best.pt", "--cpu", "--max-tokens", 4000]
    done = run_cli("generate", toy_data, *PLUGIN, *words, "--num-shards", 20, "--shard-id", 19)
    assert "no sentence to translate" in done.stdout + done.stderr
    assert hypotheses(done.stdout) == {}


def test_each_shard_has_a_file_of_results_and_an_earlier_one_stays_until_it_is_whole(trained, toy_data, tmp_path):
    where = [toy_data, *PLUGIN, "--path", trained / "checkpoint_best.pt", "--cpu", "--results-path", tmp_path]
    for shard in range(2):
        run_cli("generate", *where, "--num-shards", 2, "--shard-id", shard)
    found = [hypotheses((tmp_path / f"generate-test-{shard}.txt").read_text()) for shard in range(2)]
    assert found[0] and found[1] and not found[0].keys() & found[1].keys()
    (tmp_path / "generate-test.txt").write_text("mine")
    assert run_cli("generate", *where, "--beam", 0, check=False).returncode == 2
    assert (tmp_path / "generate-test.txt").read_text() == "mine"


@pytest.mark.parametrize("arch, attention", [("sru_tiny", "False"), ("lstm", "0")])
def test_alignments_of_models_without_attention_are_refused_in_a_line(arch, attention, toy_data, tmp_path):
    """In a search, and of references."""
    flags = ["--arch", arch, "--cpu", "--decoder-attention", attention, "--max-update", 1]
    train(toy_data, tmp_path, arch=flags)
    where = [toy_data, *PLUGIN, "--path", tmp_path / "checkpoint_last.pt", "--cpu"]
    done = run_cli("generate", *where, "--print-alignment", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = "--print-alignment, --replace-unk: no model of these has attention"
    assert done.stderr.splitlines()[-1] == f"fairseq-generate: error: {said}"
    done = run_cli("generate", *where, "--print-alignment", "--score-reference", check=False)
    said = "--print-alignment: no model of these has attention"
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == f"fairseq-generate: error: {said}"


def test_a_models_hub_gives_alignments(trained, toy_data):
    hub = SRUModel.from_pretrained(str(trained), "checkpoint_best.pt", str(toy_data))
    assert hub.generate(hub.encode("a b c"), beam=2, print_alignment="hard")[0]["alignment"]


def test_a_hub_keeps_step_with_what_it_is_given(trained, toy_data):
    hub = SRUModel.from_pretrained(str(trained), "checkpoint_best.pt", str(toy_data))
    lines = ["a b c", "a " * 1100, "d c b"]
    found = hub.translate(lines, beam=2, skip_invalid_size_inputs=True, verbose=True)
    assert found == [hub.translate(lines[0], beam=2), "", hub.translate(lines[2], beam=2)]


def test_threads_share_a_hub_for_alignments(trained, toy_data, monkeypatch):
    """Each sees attention to the end, and the decoder is left as it was: without, which is faster."""
    hub, seen = SRUModel.from_pretrained(str(trained), "checkpoint_best.pt", str(toy_data)), []
    decoder, generate = hub.models[0].decoder, SequenceGenerator._generate

    def slow(*given, **more):
        time.sleep(0.1)
        seen.append(decoder.need_attn)
        found = generate(*given, **more)
        seen.append(decoder.need_attn)
        return found

    monkeypatch.setattr(SequenceGenerator, "_generate", slow)
    tokens = hub.encode("a b c")
    threads = [
        threading.Thread(target=hub.generate, args=[tokens], kwargs={"print_alignment": "hard"}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(LONG)
    assert seen == [True] * 6
    assert not decoder.need_attn


@pytest.mark.slow
def test_alignment_and_scoring_and_ensemble(trained, toy_data):
    both = f"{trained / 'checkpoint2.pt'}:{trained / 'checkpoint4.pt'}"
    text = generate(toy_data, both, "--beam", 2, "--print-alignment", "--scoring", "sacrebleu")
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
    for name, message in (("shape", "w has shape (3,), not (2,)"), ("name", "v is in one of them only")):
        with pytest.raises(ValueError, match=re.escape(message)):
            average.average([tmp_path / "a.pt", tmp_path / f"{name}.pt"])
    (tmp_path / "empty.pt").touch()  # as a full disk leaves it
    with pytest.raises(ValueError, match=r"empty\.pt is not a fairseq checkpoint: EOFError"):
        average.average([tmp_path / "empty.pt"])


def test_average_on_a_full_disk(trained, tmp_path, monkeypatch, capsys):
    import average

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(average, "write", full)
    with pytest.raises(SystemExit):
        average.main(["--inputs", str(trained / "checkpoint1.pt"), "--output", str(tmp_path / "mean.pt")])
    assert "mean.pt can't be written: [Errno 28] No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--inputs", "{folder}", "--num-epoch-checkpoints", "9"],
            "holds 4 epoch checkpoints; --num-epoch-checkpoints is 9",
        ),
        (["--inputs", "{folder}", "--num-epoch-checkpoints", "-1"], "must be an integer of at least 1; got '-1'"),
        (["--inputs", "{folder}/none.pt"], "no such file"),
        (["--inputs", "{folder}"], "is a folder: --num-epoch-checkpoints or --num-update-checkpoints says how many"),
        (["--inputs", str(ROOT / "LICENSE")], "is not a fairseq checkpoint"),
        (["--inputs", "{folder}/none.pt", "--num-epoch-checkpoints", "2"], "give one folder"),
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


def test_help_tells_the_options_of_the_architecture():
    told = run_cli("train", *PLUGIN, "--arch", "sru", "--help").stdout
    assert "--encoder-kernel-size " in told and "--label-smoothing " not in told


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


SIZES = ["--encoder-embed-dim", 32, "--decoder-embed-dim", 32]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    [
        ["--arch", "lstm_tiny", "--encoder-hidden-size", 16, "--decoder-hidden-size", 32, "--share-all-embeddings"],
        ["--arch", "sru_wmt_2017", "--encoder-layers", 3, "--decoder-layers", 3],
    ],
    ids=lambda words: words[1],
)
def test_the_presets_for_comparison(arch, toy_data, tmp_path):
    train(toy_data, tmp_path, *SMOOTHED, "--max-update", 20, arch=[*arch, *SIZES, "--cpu"])
    found = hypotheses(generate(toy_data, tmp_path / "checkpoint_last.pt", "--beam", 5))
    assert sorted(found) == list(range(53))


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
    (["--encoder-embed-path", "none.txt"], "error: --encoder-embed-path: no such file: none.txt"),
    (
        ["--share-all-embeddings", "--encoder-embed-dim", 48],
        "error: --share-all-embeddings requires --encoder-embed-dim to match --decoder-embed-dim; got 48 and 32",
    ),
    (["--criterion", "adaptive_loss", "--adaptive-softmax-cutoff", "abc"], "error: --adaptive-softmax-cutoff must be"),
    (["--ddp-backend", "carrier-pigeon"], "error: argument --ddp-backend: invalid choice: 'carrier-pigeon'"),
    (["--rnn-dropout", "much"], "error: argument --rnn-dropout: invalid float value: 'much'"),
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
        ("empty", ["-s", "en", "-t", "de"], "holds no dict.en.txt; fairseq-preprocess makes it"),
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
    done = train(tmp_path / "bin", tmp_path / "save", check=False)
    assert done.returncode == 2
    assert "--share-all-embeddings requires a joint dictionary" in done.stderr.strip().splitlines()[-1]
    train(
        tmp_path / "bin", tmp_path / "save", "--max-epoch", 1, arch=[w for w in SMALL if w != "--share-all-embeddings"]
    )


@pytest.mark.slow
def test_pretrained_embeddings_are_loaded_and_frozen(toy_data, tmp_path):
    words = "abcdefghij"
    rows = [f"{w} " + " ".join(f"{i / 10}" for _ in range(32)) for i, w in enumerate(words)]
    (tmp_path / "vectors.txt").write_text(f"{len(words)} 32\n" + "\n".join(rows) + "\n")
    embed = ["--encoder-embed-path", tmp_path / "vectors.txt", "--encoder-freeze-embed"]
    train(toy_data, tmp_path / "save", *embed, "--max-epoch", 1)
    weight = torch.load(tmp_path / "save" / "checkpoint_last.pt")["model"]["encoder.embed_tokens.weight"]
    from fairseq.data import Dictionary

    at = Dictionary.load(str(toy_data / "dict.en.txt")).index("d")
    torch.testing.assert_close(weight[at], torch.full((32,), 0.3))
    (tmp_path / "vectors.txt").unlink()
    assert len(hypotheses(generate(toy_data, tmp_path / "save" / "checkpoint_last.pt"))) == 53


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


@pytest.mark.slow
def test_checkpoint_of_the_lstm_baseline_loads_too(toy_data, tmp_path):
    """fairseq's own LSTM keeps its options in an argparse.Namespace; with the plugin it can be compared under
    today's torch."""
    arch = ["--arch", "lstm", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--decoder-out-embed-dim", 16]
    arch += ["--cpu"]
    train(toy_data, tmp_path, "--max-epoch", 1, arch=arch)
    train(toy_data, tmp_path, "--max-epoch", 2, arch=arch)
    assert len(hypotheses(generate(toy_data, tmp_path / "checkpoint_last.pt", "--beam", 2))) == 53
