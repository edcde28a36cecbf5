"""Comparisons: settings, commands, training; and one whole, killed at each stage and gone on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from common.files import write_text
from common.hold import FolderError
from common.progress import progress
from comparison import (
    commands,
    fairseq_output,
    processes,
    settings,
    stages,
    translation,
)
from comparison.fairseq_output import Trained
from comparison.training import Run
from conftest import ROOT, write_pairs
from support.paired import check_paired
from test_stages import python, wait_for

RECIPES = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
MINIMAL = "{out: runs/x, systems: {a: {arch: sru}, b: {arch: lstm}}, baseline: b, budget: {updates: 100}}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.fixture
def make(recipe: Path, tmp_path: Path) -> Callable[..., translation.Comparison]:
    """Makes a comparison in the folder ``out``, with overrides."""
    return lambda *words: translation.Comparison(settings.load(recipe, [f"out={tmp_path / 'out'}", *words]))


@pytest.fixture
def line(recipe: Path) -> Callable[..., str]:
    """Makes the command that trains a system, with overrides."""

    def train(system: str, *words: str) -> str:
        return " ".join(commands.Commands(settings.load(recipe, words)).train(system, 7, 70, 5, Path("x"))) + " "

    return train


# Settings and commands


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=3", r"^lr: unknown key; allowed: average, baseline, budget, .*, train, user_dir$"),
        ("budget.hours=3", r"^budget.hours: unknown key; allowed: minutes, updates$"),
        ("checkpoints", r"^checkpoints: must be key=value$"),
        ("seeds=[1,2", r"^\S+recipe.yaml and seeds=\[1,2 are not YAML: while parsing a flow sequence"),
        ("checkpoints=0", r"^checkpoints: must be above 0; got 0$"),
        ("speed.beams=[]", r"^speed.beams: must have a number at least$"),
        ("data=trec", r"^data: must be one of lohelp-en-de, .*, or null for text of your own; got trec$"),
        ("baseline=c", r"^baseline: must be one of a, b; got c$"),
        ("budget.minutes=3", r"^budget: must have either updates or minutes; got 100 and 3.0$"),
        ("budget.updates=5", r"^budget.updates: must be at least checkpoints, 10; got 5$"),
        ("average=11", r"^average: must be at most checkpoints, 10; got 11$"),
        ("seeds=[1,1]", r"^seeds: must be different numbers, one at least; got \[1, 1\]$"),
        ("cpu=maybe", r"^cpu: must be true, false or auto; got 'maybe'$"),
        ("systems.c.lr=1", r"^systems.c: must be flags of fairseq-train, 'arch' among them"),
        ("systems.a.seed=3", r"^systems.a.seed: is set by the comparison itself$"),
        ("train.patience=3", r"^train.patience: can't be given: the budget ends a run$"),
        ("systems.a.reset-optimizer=true", r"^systems.a.reset-optimizer: can't be given: a run that was stopped"),
        ("prepare.out=2024", r"^prepare.out: must be text; .* got 2024$"),
        ("systems={a/b: {arch: sru}}", r"^systems.a/b: a system's name is of letters"),
        ("systems=null", r"^systems: "),
        ("average=3", r"^budget.updates: must be a multiple of checkpoints, 10; got 101$"),
    ],
)
def test_wrong_settings_are_named(recipe, override, message, capsys):
    more = ["budget.updates=101"] if override == "average=3" else []
    with pytest.raises(ValueError, match=message):
        settings.load(recipe, [override, *more])
    with pytest.raises(SystemExit):
        compare.main([str(recipe), override, *more])
    assert f"error: {recipe}: " in capsys.readouterr().err
    settings.load(recipe, ["train.patience=null", "systems.a.reset-optimizer=false"])  # none is not wrong


@pytest.mark.parametrize("words", ["RECIPE --dry-run out=x", "--dry-run RECIPE out=x", "RECIPE out=x --dry-run"])
def test_flags_and_values_come_in_any_order(words, recipe, monkeypatch):
    seen: list[settings.Settings] = []
    monkeypatch.setattr(compare, "check_flags", lambda comparison, _: seen.append(comparison.settings))
    monkeypatch.chdir(ROOT)
    assert compare.main(words.replace("RECIPE", str(recipe)).split()) == 0
    assert seen[0].out == "x"


def test_values_of_the_command_line_go_before_the_recipe(recipe):
    given = settings.load(recipe, ["systems.a.lr=4e-3", "systems.c={arch: transformer}", "seeds=[3,4]", "out=o"])
    assert given.systems == {"a": {"arch": "sru", "lr": 0.004}, "b": {"arch": "lstm"}, "c": {"arch": "transformer"}}
    assert (given.seeds, given.out, given.budget.updates, given.checkpoints) == ([3, 4], "o", 100, 10)


def test_subwords_are_joined_as_they_were_made(recipe, tmp_path):
    overrides = ["prepare.tokenizer=moses-bpe", "generate.remove-bpe=sentencepiece"]
    with pytest.raises(ValueError, match=r"^generate.remove-bpe: must be subword_nmt where subwords are of moses"):
        settings.load(recipe, overrides)
    for word in ("target-lang=no", "test-speakers=01"):
        with pytest.raises(ValueError, match=rf"^prepare.{word[:-3]}: must be text; YAML reads no as false, 01 as 1"):
            settings.load(recipe, [f"prepare.{word}"])
    assert settings.load(recipe, ['prepare.test-speakers="01"']).prepare["test-speakers"] == "01"

    def flags(*overrides: str) -> str:
        return " ".join(commands.Commands(settings.load(recipe, overrides)).generate(Path("x"), "test", Path("y")))

    assert "--remove-bpe sentencepiece" in flags()
    assert flags("generate.remove-bpe=sentencepiece").count("--remove-bpe") == 1
    moses = "--remove-bpe subword_nmt --tokenizer moses --source-lang {} --target-lang {}"
    assert moses.format("de", "en") in flags("prepare.tokenizer=moses-bpe", "data=iwslt14-de-en")
    own = ["prepare.source-lang=fr", "prepare.target-lang=it"]
    assert moses.format("fr", "it") in flags("prepare.tokenizer=moses-bpe", *own)
    assert "bpe" not in flags("kind=language")
    taken = ["data=null", f"prepare.vocabulary={tmp_path}", *own]
    write_text(tmp_path / "manifest.json", json.dumps({"tokenizer": "moses-bpe"}))
    assert moses.format("fr", "it") in flags(*taken)
    write_text(tmp_path / "manifest.json", "{}")
    with pytest.raises(ValueError, match=r"^prepare.vocabulary: must be a folder of parallel text that prepare.py has"):
        flags(*taken)


def test_a_comparison_that_goes_on_trains_in_the_precision_that_it_began_with(recipe, tmp_path, monkeypatch):
    given = settings.load(recipe, [f"out={tmp_path}", "cpu=true"])
    for measured in (True, False):  # the second while something else runs
        monkeypatch.setattr(commands, "bfloat16_pays", lambda measured=measured: measured)
        comparison = translation.Comparison(given)
        monkeypatch.setattr(comparison.stages, "always", lambda *words, **more: None)
        with pytest.raises(FileNotFoundError, match="manifest"):  # nothing was prepared
            comparison.prepare()
        assert comparison.commands.options("a")["amp"] is True
        assert commands.Commands(given, "folds/1").options("a")["amp"] is True
    assert commands.Commands(settings.load(recipe, ["out=none", "cpu=true"])).options("a")["amp"] is False
    assert commands.Commands(settings.load(recipe, [f"out={tmp_path}", "cpu=false"])).options("a")["amp"] is False


def test_a_run_outlives_the_model_that_it_began_with(make, tmp_path):
    """Move a checkpoint away, as one does with the base of a fine-tuning."""
    base = tmp_path / "base.pt"
    base.write_text("general")
    comparison, run = make(f"train.finetune-from-model={base}"), Run("a", 1)
    finished(comparison, run)
    [stage] = comparison.trainings(run)
    assert base in stage.inputs and comparison.has_changed(stage)
    comparison.stages._once(stage.name, stage.command, lambda stamp: {}, stage.inputs, [stage.result])
    write_text(stage.result, "")
    assert not comparison.has_changed(stage)
    base.unlink()
    assert not comparison.has_changed(stage)
    base.write_text("better")
    assert comparison.has_changed(stage)


def test_flags_are_words():
    flags = {"arch": "sru", "share-all-embeddings": True, "fp16": False, "lr": [1e-3, 5e-4], "clip-norm": None}
    assert commands.words(flags) == ["--arch", "sru", "--share-all-embeddings", "--lr", "0.001", "0.0005"]
    assert commands.words({"decoder-coverage": False, "decoder-attention": True, "left-pad-source": None}) == [
        "--decoder-coverage",
        "False",
        "--decoder-attention",
        "True",
    ]


def test_a_system_goes_before_what_all_share(line):
    shared = ["train.lr=1", "train.fp16=true", "systems.a.lr=2", "systems.b.fp16=false", "cpu=true"]
    assert "--lr 2 " in line("a", *shared) and "--fp16 " in line("a", *shared)
    assert "--lr 1 " in line("b", *shared) and "--fp16 " not in line("b", *shared)
    assert "--seed 7 --max-update 70 --save-dir x --save-interval-updates 5 " in line("a", *shared)


@pytest.mark.parametrize(
    ("pays", "overrides", "expected"),
    [
        (True, ["cpu=true"], [True, True]),
        (False, ["cpu=true"], [False, False]),
        (True, ["cpu=false"], [False, False]),
        (True, ["cpu=true", "train.amp=false"], [False, False]),
        (True, ["cpu=true", "train.fp16=true"], [False, False]),
        (False, ["cpu=true", "systems.a.amp=true"], [True, False]),
    ],
)
def test_on_a_cpu_systems_train_in_bfloat16_where_it_pays(pays, overrides, expected, line, monkeypatch):
    monkeypatch.setattr(commands, "bfloat16_pays", lambda: pays)
    assert ["--amp " in line(system, *overrides) for system in "ab"] == expected


def test_the_learning_rate_ends_with_the_updates(line):
    command = line("a", "train.lr-scheduler=polynomial_decay", "train.warmup-updates=0.1")
    assert "--max-update 70 --total-num-update 70 " in command
    assert "--warmup-updates 7 " in command  # a share of them


def test_several_processes_go_through_torchrun(line):
    one = line("a", "cpu=false", "torchrun=[--nnodes=2]")  # on each of two machines
    assert one.startswith("torchrun --nnodes=2 --nproc-per-node=1 ")
    several = line("a", "processes=4", "cpu=false", "torchrun=[--nnodes=2,--rdzv-endpoint=host:29500]")
    start = "torchrun --nnodes=2 --rdzv-endpoint=host:29500 --nproc-per-node=4 -m fairseq_cli.train "
    assert several.startswith(start)
    plain = line("a", "cpu=false")
    assert plain.startswith("fairseq-train ") and "--distributed-world-size 1 " in plain  # else it takes all GPUs


@pytest.mark.parametrize(
    ("visible", "each", "gpus"),
    [
        (None, 1, ["0", "1", "2", "4", "5"]),
        (None, 2, ["0,1", "2,4"]),
        (None, 8, []),
        ("3,1", 1, ["3", "1"]),
        ("3,1", 2, ["3,1"]),
    ],
)
def test_runs_at_a_time_have_gpus_of_their_own(visible, each, gpus, recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    kinds = ["A", "A"] if visible else ["A", "A", "A", "B", "A", "A"]  # the fourth is another card
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: kinds[device])
    parallel = commands.Commands(settings.load(recipe, ["cpu=false", f"processes={each}"]))
    assert parallel.gpus == gpus
    assert commands.Commands(settings.load(recipe, ["cpu=true"])).gpus == []
    code = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES')); time.sleep(0.2)"
    seen: list[str] = []
    work = [partial(processes.execute, python(code), tmp_path / str(n), False, seen.append) for n in range(6)]
    processes.side_by_side(3, work, gpus=parallel.gpus)
    assert {line.strip() for line in seen} == set(parallel.gpus[:3] or [str(visible)])
    seen.clear()
    processes.side_by_side(1, work[:1], gpus=parallel.gpus)
    assert seen == [f"{visible}\n"], "a run alone sees what there is"


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    for _ in progress(range(3), desc="short"):
        now += 10
    assert capsys.readouterr().err == ""
    for _ in progress(range(30), desc="long"):
        now += 10
    lines = capsys.readouterr().err.replace("\r", "\n").split()
    assert 3 <= lines.count("long:") <= 7, lines


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_have_flags_that_fairseq_takes(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert path.read_text().startswith(f"# python recipes/compare.py recipes/configs/{path.name}\n")
    given = settings.load(path)
    compare.check_flags(compare.comparison_of(given), print)
    out = capsys.readouterr().out
    assert out.count("--save-dir") == len(given.systems)
    assert out.startswith("# Each system's updates will be") == (given.budget.minutes is not None)


@pytest.mark.parametrize("group", ["systems.sru", "train", "generate"])
def test_flags_that_fairseq_refuses_are_named_before_anything_is_run(group, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        compare.main(["recipes/configs/lohelp.yaml", f"out={tmp_path / 'out'}", f"{group}.no-such-flag=1"])
    assert not (tmp_path / "out").exists()
    assert "unrecognized arguments: --no-such-flag 1" in capsys.readouterr().err


# Training and translation


def with_text(comparison: translation.Comparison) -> translation.Comparison:
    comparison.source, comparison.target = "en", "de"
    comparison.text = {"test": {"en": ["a house"], "de": ["ein Haus"]}, "valid": {"de": ["ein Satz"]}}
    comparison.chosen = {"valid": [0], "test": [0]}
    return comparison


def translated(comparison: translation.Comparison, monkeypatch: pytest.MonkeyPatch, **data: Any) -> list[list[str]]:
    """The commands of the translator for a comparison."""
    with_text(comparison).data = {"tokenizer": "sentencepiece", **data}
    ran: list[list[str]] = []

    def command(name: str, line: list[str], **_: Any) -> None:
        ran.append(line)
        (comparison.out / "models" / "a-1-int8").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(comparison.stages, "command", command)
    comparison.translate(Run("a", 1), "int8")
    return ran


def test_the_translator_searches_as_fairseq_generate(make, monkeypatch):
    words = ["cpu=true", "generate.lenpen=0.6", "generate.max-len-b=50", "speed.beams=[3]"]
    _, command = translated(make(*words), monkeypatch)
    task = json.loads(Path(command[-1]).read_text())
    assert (task["options"], task["cells"]) == ({"lenpen": 0.6, "max_length": 50}, [[3, 64]])
    comparison = make("cpu=true", "generate.sampling=true")
    assert not translated(comparison, monkeypatch)
    assert comparison.missing == {"a": "it doesn't know --sampling, which fairseq-generate has here"}


def test_a_translator_that_fails_fails_no_run(make):
    def fail() -> None:
        raise stages.StageError("export a 1 float32: exit status 1\nno room")

    comparison = make("cpu=true")
    for _ in range(2):
        comparison.attempt_translator("a", fail)
    assert comparison.missing == {"a": "no room"} and not comparison.failures


def test_models_are_exported_as_their_text_was_prepared(make, monkeypatch):
    data: dict[str, Any] = {"tokenizer": "moses-bpe", "lower": True, "normalise": False}
    codes, *_ = translated(make("cpu=true"), monkeypatch, **data)
    assert codes[codes.index("--subword-nmt-codes") + 1].endswith("/bpe.codes")
    assert {"--lowercase", "--no-normalise", "--int8"} <= set(codes)
    pieces, *_ = translated(make("cpu=true"), monkeypatch, **{**data, "tokenizer": "sentencepiece"})
    assert pieces[pieces.index("--sentencepiece-model") + 1].endswith("/spm.model")
    assert "--lowercase" in pieces and "--no-normalise" not in pieces


def test_memory_of_a_gpu_is_what_was_used_at_most():
    printed = 'total memory = 16.000 GB ; name\n{"gb_free": "9.0"}\n{"gb_free": "8"}\n{"train_gb_free": "7.5"}\n'
    assert fairseq_output.gpu_memory(printed) == 8.5 * 2**30
    assert fairseq_output.gpu_memory("no GPU") is None


def test_a_model_that_decodes_beside_is_an_input(make, tmp_path, monkeypatch):
    beside = tmp_path / "lm.pt"
    beside.write_bytes(b"one")
    comparison, seen = with_text(make(f"generate.lm-path={beside}")), []
    monkeypatch.setattr(comparison.stages, "command", lambda *_, inputs, **__: seen.append(inputs))
    comparison.generate(comparison.runs[0])
    comparison.time_generate(comparison.runs[0], "speed", 1, 1)
    assert len(seen) == 2 and all(beside in inputs for inputs in seen)


def test_equal_time_gives_updates_by_speed():
    assert settings.updates_in(10, 7.0, 10) == 4200
    assert settings.updates_in(10, 3.5, 10) == 2100
    assert settings.updates_in(1, 0.333, 10) == 20  # 19.98, to a multiple of the checkpoints
    assert settings.updates_in(0.001, 1.0, 10) == 10


def test_speed_is_the_median_of_the_slices(make):
    comparison = make("budget={updates: null, minutes: 2}")
    for number, speed in enumerate((5.0, 1.0, 4.0), 1):
        write_text(comparison.out / "stamps" / f"slice-a-{number}.json", json.dumps({"updates_per_second": speed}))
    assert comparison.training_speed("a", "updates_per_second") == 4.0
    assert comparison.updates("a") == 480


def finished(comparison: translation.Comparison, run: Run) -> None:
    """Mark a run as trained to the end, with a stamp that has no settings."""
    comparison.last(run).parent.mkdir(parents=True)
    comparison.last(run).touch()
    stamp = {"key": "", "done": True, "outputs": [stages.digest(comparison.last(run))]}
    for name in (f"slice {run.system} 1", run.stage("train")):
        write_text(comparison.out / "stamps" / f"{name.replace(' ', '-')}.json", json.dumps(stamp))


@pytest.mark.parametrize("done", [True, False])
def test_a_run_that_has_a_checkpoint_is_not_trained_again(done, make):
    comparison = make()
    finished(comparison, Run("a", 1))
    path = comparison.out / "stamps" / "train-a-1.json"
    write_text(path, json.dumps({**json.loads(path.read_text()), "done": done}))
    finished(comparison, Run("b", 1))
    with pytest.raises(
        FolderError, match=r"/a-1, \S+/checkpoints/b-1: trained with other settings or moved; remove that, or "
    ):
        comparison.train_and_test()
    assert comparison.last(Run("a", 1)).is_file()


def test_a_speed_is_not_measured_again_of_what_has_trained(make):
    """Or an override that was tried once would change the updates of the settings before, too."""
    comparison, measured = make("slices.rounds=1"), []
    comparison.slice = lambda system, number: measured.append(system)
    for system in "ab":
        finished(comparison, Run(system, 1))
    comparison.time_training()
    assert not measured
    shutil.rmtree(comparison.folder(Run("a", 1)))
    comparison.time_training()
    assert measured == ["a"]


def test_what_was_made_of_checkpoints_outlives_them(make, tmp_path, monkeypatch):
    """Remove checkpoints, as users do to free the disk."""
    comparison, run, done = with_text(make("average=2")), Run("a", 1), []
    finished(comparison, run)
    comparison.subset = tmp_path
    names = {"checkpoint_1_25.pt": 25, "checkpoint_1_50.pt": 50, "checkpoint_2_100.pt": 100}
    for name in names:
        (comparison.folder(run) / name).write_text(name)
    for file in comparison.subset_files("valid"):
        file.touch()
    stamp = comparison.stages.stamp("train a 1")
    write_text(
        tmp_path / "out" / "stamps" / "train-a-1.json", json.dumps({**stamp, "updates": 100, "checkpoints": names})
    )

    def always(name: str, command: list[str], log: Path, **_: Any) -> dict[str, Any]:
        done.append(name)
        if name.startswith("average"):
            comparison.final(run).write_text("average")
        write_text(log, "D-0\t0\tein Satz\n")
        return {}

    monkeypatch.setattr(comparison.stages, "always", always)
    monkeypatch.setattr(translation, "trained", lambda path: Trained(1, 50, 1.0, 1.0, 9, None, False))

    def work() -> list[str]:
        done.clear()
        comparison.average(run)
        comparison.curve(run)
        return done

    curve = [f"curve a 1 {updates}" for updates in names.values()]
    assert work() == ["average a 1", *curve] and work() == []
    (comparison.folder(run) / "checkpoint_1_50.pt").unlink()
    assert work() == [] and comparison.final(run).read_text() == "average"
    assert [number for number, _ in comparison.checkpoints(run)] == [25, 50, 100]


@pytest.mark.parametrize(
    "flags, cpu, expected",
    [
        ({}, False, "float32"),
        ({"amp": False}, True, "float32"),
        ({"amp": True}, True, "bfloat16"),
        ({"amp": True}, False, "float16"),
        ({"bf16": True}, False, "bfloat16"),
        ({"fp16": True}, False, "float16"),
        ({"memory-efficient-fp16": True}, True, "float16"),
    ],
)
def test_a_report_names_the_precision(flags, cpu, expected, recipe):
    given = settings.load(recipe, [f"cpu={json.dumps(cpu)}"])
    given.systems["a"] |= flags
    assert translation.Comparison(given).precision("a") == expected


def test_time_is_carried_over_an_epochs_end():
    now = fairseq_output.Trained(1, updates=50, seconds=7.0, clock=9.0, tokens=70, loss=None, at_epoch_end=False)
    assert fairseq_output.carry(now, []) == now
    carried = [[20, 2.0, 20], [40, 4.0, 40], [50, 100.0, 100]]  # at 50 itself fairseq had not begun again
    assert fairseq_output.carry(now, carried)[1:5] == (50, 11.0, 9.0, 110)
    assert fairseq_output.carry(now._replace(updates=15), carried)[1:5] == (15, 7.0, 9.0, 70)


def test_a_system_with_a_failed_run_is_timed_with_another(make):
    comparison = make("seeds=[1,2]", "speed.rounds=1", "cpu=false")
    comparison.failures = {Run("a", 1): "no memory", Run("b", 1): "no memory", Run("b", 2): "no memory"}
    timed = []

    def time_generate(run: Run, *_: object) -> None:
        timed.append(run)
        if len(timed) > 4:
            raise stages.StageError("no memory")

    comparison.time_generate = time_generate
    comparison.time_decoding()
    assert timed == [Run("a", 2)] * 4
    comparison.time_decoding()
    assert not comparison.good()  # or the report would miss its speed


def test_time_to_the_baselines_best():
    curve = [{"train_seconds": t, "BLEU": b} for t, b in ((1.0, 5.0), (2.0, 9.0), (3.0, 8.0))]
    assert [translation.seconds_to(bleu, curve) for bleu in (5.0, 6.0, 9.0, 9.1)] == [1.0, 2.0, 2.0, None]


# All of it

STAGES = (
    "prepare",
    "slice two 1",
    "train one 1",
    "average one 1",
    "export one 1 int8",
    "curve one 1 60",
    "generate two 1",
    "translator two 1 float32",
    "speed",
    "score",
)


def small(folder: Path, out: str) -> list[str]:
    """The command of a small comparison: models that learn to copy."""
    recipe = folder / "small.yaml"
    if not recipe.exists():
        text = folder / "text"
        text.mkdir()
        import random

        draw = random.Random(1)
        for split, count in (("train", 1500), ("valid", 60), ("test", 80)):
            lines = [[draw.choice("abcdefghij") for _ in range(draw.randint(3, 8))] for _ in range(count)]
            write_pairs(text, split, [(line, line) for line in lines])
            (text / f"{split}.domains").write_text("".join("long\n" if len(s) > 5 else "short\n" for s in lines))
        prefixes = {f"{split}-prefix": str(text / split) for split in ("train", "valid", "test")}
        recipe.write_text(
            json.dumps(
                {
                    "data": None,
                    "prepare": {
                        **prefixes, "source-lang": "en", "target-lang": "de", "vocab-size": 24, "domains": True
                    },
                    "systems": {"one": {}, "two": {"decoder-layers": 2}},
                    "baseline": "one",
                    "budget": {"updates": 120},
                    "checkpoints": 2,
                    "average": 2,
                    "cpu": True,
                    "slices": {"updates": 3, "rounds": 1},
                    "curve": {"sentences": 30},
                    "speed": {"sentences": 20, "rounds": 1, "beams": [2], "batches": [16]},
                    "split_compounds": True,
                    "train": {
                        "arch": "sru_tiny", "encoder-layers": 1, "decoder-layers": 1, "encoder-embed-dim": 64,
                        "encoder-hidden-size": 32, "decoder-embed-dim": 64, "share-all-embeddings": True,
                        "optimizer": "adam", "lr": 1e-2, "lr-scheduler": "polynomial_decay", "warmup-updates": 20,
                        "criterion": "label_smoothed_cross_entropy", "label-smoothing": 0.1, "max-tokens": 500,
                        "best-checkpoint-metric": "nll_loss", "num-workers": 0, "amp": False,
                    },
                    "generate": {"beam": 2, "max-tokens": 4000, "max-len-b": 20, "remove-bpe": "sentencepiece"},
                }
            )
        )  # fmt: skip
    return [sys.executable, str(ROOT / "recipes" / "compare.py"), str(recipe), f"out={folder / out}"]


def run_small(folder: Path, out: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*small(folder, out), *overrides], env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    done = run_small(folder, "whole")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def facts(out: Path) -> dict[str, Any]:
    """Return the parts of a report that don't depend on time."""
    found = json.loads((out / "report.json").read_text())
    runs = {name: system["runs"] for name, system in found["systems"].items()}
    curves = {name: [(p["updates"], p["loss"], p["BLEU"]) for p in run["curve"]] for name, (run,) in runs.items()}
    texts = {path.name: path.read_text() for path in (out / "translations").glob("[!.]*")}
    return {"curves": curves, "texts": texts, "scores": json.loads((out / "scores.json").read_text())}


@pytest.mark.slow
def test_several_processes_train_one_model(recipe, toy_data, tmp_path):
    small = ["encoder", "decoder"]
    size = [f"train.{side}-{what}" for side in small for what in ("embed-dim=32", "layers=1", "hidden-size=32")]
    options = [
        f"prepare.out={toy_data.parent}",
        "cpu=true",
        "processes=2",
        "train.max-tokens=200",
        "train.num-workers=0",
    ]
    given = settings.load(recipe, [*options, *size, "train.optimizer=adam", "train.lr=0.01"])
    command = commands.Commands(given).train("a", 1, 6, 3, tmp_path / "checkpoints")
    processes.execute(command, tmp_path / "log", False, lambda line: None)
    now = fairseq_output.trained(tmp_path / "checkpoints" / "checkpoint_last.pt")
    assert now.updates == 6
    assert now.tokens > 6 * 200  # each update has batches of both
    assert json.dumps(now)


@pytest.mark.slow
def test_the_report_has_the_scores_of_the_command(undisturbed):
    out = undisturbed / "whole"
    found = json.loads((out / "report.json").read_text())
    runs = {name: system["runs"][0] for name, system in found["systems"].items()}
    scores = {f"{name}-1.de": run["scores"] for name, run in runs.items()}
    files = [out / "translations" / name for name in ("one-1.de", "two-1.de")]
    check_paired(scores, undisturbed / "text" / "test.de", files)
    assert runs["one"]["scores"]["BLEU"]["score"] > 5  # it learnt something
    for run in runs.values():
        assert run["updates"] == 120
        assert [point["updates"] for point in run["curve"]] == [60, 120]
        assert 0 < run["curve"][0]["train_seconds"] < run["curve"][1]["train_seconds"] == run["train_seconds"]
        assert run["train_seconds"] < run["clock_seconds"]
        assert 2e8 < run["peak_memory"] < 4e9
        assert set(run["domains"]) == {"long", "short"}
    for name, system in found["systems"].items():
        for weights, (least, most) in {"float32": (-0.5, 0.5), "int8": (-3, 3)}.items():
            keys = ("BLEU", "repetition", "decoding")
            (bleu,), (share,), (speed,) = (system["translator"][weights][key] for key in keys)
            assert abs(share["mean"] - runs[name]["repetition"]["any"]) < {"float32": 0.02, "int8": 0.2}[weights]
            assert least < bleu["mean"] - runs[name]["scores"]["BLEU"]["score"] < most
            assert bleu["beam"] == speed["beam"] == 2
            assert speed["sentences_per_second"] > 0
    import torch

    for name, run in runs.items():
        weights = torch.load(out / "checkpoints" / f"{name}-1" / "checkpoint_last.pt", weights_only=True)["model"]
        weights.pop("decoder.embed_tokens.weight")  # tied to the encoder's
        assert run["parameters"] == sum(weight.numel() for weight in weights.values())
    text = (out / "report.md").read_text()
    assert found["verdict"] in text
    for command in (command for run in runs.values() for command in run["commands"]):
        assert f"    {command}\n" in text


@pytest.mark.slow
def test_killed_at_each_stage_it_comes_to_the_same(undisturbed):
    out = undisturbed / "killed"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    for stage in STAGES:
        process = subprocess.Popen(
            small(undisturbed, "killed"), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout
        shown = ""
        while not re.search(rf"^{stage}\b", shown, re.MULTILINE):
            line = process.stdout.readline()
            assert line and "FAILED" not in line and "left out" not in line, shown
            shown += line
        if stage.startswith("train"):
            wait_for((out / "checkpoints" / "one-1" / "checkpoint_last.pt").exists)
        elif stage != "score":
            time.sleep(0.3)  # a stage and the next one may be done in a second
        process.kill()
        process.communicate()
    last = run_small(undisturbed, "killed")
    assert last.returncode == 0, last.stdout[-3000:] + last.stderr[-3000:]
    assert "+ fairseq-train" not in last.stdout  # only what was missing is done
    log = (out / "checkpoints" / "one-1" / "train.log").read_text()
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch \d+ @ (?!120)\d+ updates\)", log)
    assert facts(out) == facts(undisturbed / "whole")


@pytest.mark.slow
def test_runs_side_by_side_come_to_the_same(undisturbed):
    done = run_small(undisturbed, "beside", "--jobs", "2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.index("\ntrain two 1") < done.stdout.index("\ngenerate one 1")
    found = [json.loads((undisturbed / name / "report.json").read_text()) for name in ("whole", "beside")]
    assert [report["machine"]["jobs"] for report in found] == [1, 2]
    assert facts(undisturbed / "beside") == facts(undisturbed / "whole")


@pytest.mark.slow
def test_what_changed_is_done_again_and_a_failure_stops_nothing_else(undisturbed):
    out, kept = undisturbed / "whole", undisturbed / "kept"  # stamps know commands by the folder's path
    shutil.copytree(out, kept)
    try:
        before = facts(out)
        stamps = {path.name: path.read_text() for path in (out / "stamps").iterdir()}
        changed = ["systems.two.dropout=0.5", "systems.bad.train-subset=no_such_subset"]
        refused = run_small(undisturbed, "whole", *changed)
        assert refused.returncode == 2 and facts(out) == before
        assert re.search(r"error: out: \S*two-1: trained with other settings or moved; remove that", refused.stderr)
        shutil.rmtree(out / "checkpoints" / "two-1")
        again = run_small(undisturbed, "whole", *changed)
        assert again.returncode == 1
        done = re.findall(r"^([a-z]+ .*|score|report|subset)$\n\+ |^(score|report|subset)$", again.stdout, re.MULTILINE)
        names = ["".join(pair) for pair in done]
        assert {name.split()[1] for name in names if " " in name and not name.startswith("speed")} == {"two", "bad"}
        assert {name.split()[1] for name in names if name.startswith("speed")} == {"one", "two"}  # in turns
        assert names[-2:] == ["score", "report"]
        for name, text in stamps.items():
            assert ((out / "stamps" / name).read_text() == text) == (
                "two" not in name and not name.startswith("speed-") and name not in ("score.json", "report.json")
            )
        found = json.loads((out / "report.json").read_text())
        assert "no_such_subset" in found["systems"]["bad"]["failures"][0]
        assert found["verdict"].endswith("Failed: bad; see the end.")
        assert (out / "translations" / "one-1.de").read_text() == before["texts"]["one-1.de"]
    finally:
        shutil.rmtree(out)
        kept.rename(out)
