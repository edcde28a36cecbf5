"""Comparisons: settings, commands, stages, report; and one whole, killed at each stage and gone on with."""

from __future__ import annotations

import argparse
import errno
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
from common.errors import RecipeError
from common.files import write_text
from common.hold import FolderError
from common.progress import progress
from comparison import (
    commands,
    fairseq_output,
    processes,
    report,
    settings,
    stages,
    translation,
)
from comparison.fairseq_output import Trained
from comparison.training import Run
from conftest import ROOT, ended, write_pairs
from support.paired import check_paired

RECIPES = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
MINIMAL = "{out: runs/x, systems: {a: {arch: sru}, b: {arch: lstm}}, baseline: b, budget: {updates: 100}}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.fixture
def made(recipe: Path, tmp_path: Path) -> Callable[..., translation.Comparison]:
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
        ("checkpoints=many", r"^checkpoints: Value 'many' of type 'str' could not be converted to Integer$"),
        ("checkpoints", r"^checkpoints: must be key=value$"),
        ("seeds=[1,2", r"^\S+recipe.yaml and seeds=\[1,2 are not YAML: while parsing a flow sequence"),
        ("checkpoints=0", r"^checkpoints: must be above 0; got 0$"),
        ("speed.beams=[1,0]", r"^speed.beams: must be above 0; got 0$"),
        ("speed.beams=[]", r"^speed.beams: must have a number at least$"),
        ("train.distributed-world-size=4", r"^train.distributed-world-size: is set by the comparison itself$"),
        ("data=trec", r"^data: must be one of lohelp-en-de, .*, or null for text of your own; got trec$"),
        ("baseline=c", r"^baseline: must be one of a, b; got c$"),
        ("systems.b=null", r"^baseline: must be one of a; got b$"),
        ("budget.minutes=3", r"^budget: must have either updates or minutes; got 100 and 3.0$"),
        ("budget.updates=null", r"^budget: must have either updates or minutes; got None and None$"),
        ("budget.updates=5", r"^budget.updates: must be at least checkpoints, 10; got 5$"),
        ("average=11", r"^average: must be at most checkpoints, 10; got 11$"),
        ("seeds=[1,1]", r"^seeds: must be different numbers, one at least; got \[1, 1\]$"),
        ("cpu=maybe", r"^cpu: must be true, false or auto; got 'maybe'$"),
        ("systems.c.lr=1", r"^systems.c: must be flags of fairseq-train, 'arch' among them"),
        ("systems.a.seed=3", r"^systems.a.seed: is set by the comparison itself$"),
        ("train.save-dir=x", r"^train.save-dir: is set by the comparison itself$"),
        ("train.patience=3", r"^train.patience: can't be given: the budget ends a run$"),
        ("systems.a.reset-optimizer=true", r"^systems.a.reset-optimizer: can't be given: a run that was stopped"),
        ("prepare.out=2024", r"^prepare.out: must be text; .* got 2024$"),
        ("systems={a/b: {arch: sru}}", r"^systems.a/b: a system's name is of letters"),
        ("systems.c=null", r"^systems.c: is null, but the recipe has only a, b$"),
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


def test_fewer_gpus_than_processes_are_told_before_anything_begins(made, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(stages.StageError, match=r"^processes: is 8, and torch sees 4 GPUs: give processes=4$"):
        made("cpu=false", "processes=8").prepare()


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
    given = settings.load(
        recipe, ["prepare.local-dir=~/text", "out=~/o", "systems.a.note=x=~/b", "systems.b=~", "baseline=a"]
    )
    assert (given.prepare["local-dir"], given.out) == (str(Path.home() / "text"), str(Path.home() / "o"))
    assert given.systems == {"a": {"arch": "sru", "note": "x=~/b"}}
    more = ", prepare: {local-dir: ~/text, train-prefix: [~/a, b~/c]}}"
    recipe.write_text(MINIMAL.rstrip().removesuffix("}") + more)
    given = settings.load(recipe)
    assert given.prepare == {"local-dir": str(Path.home() / "text"), "train-prefix": [str(Path.home() / "a"), "b~/c"]}


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


def test_a_run_outlives_the_model_that_it_began_with(made, tmp_path):
    """As the base of a fine-tuning is put away."""
    base = tmp_path / "base.pt"
    base.write_text("general")
    comparison, run = made(f"train.finetune-from-model={base}"), Run("a", 1)
    finished(comparison, run)
    [stage] = comparison.trainings(run)
    assert base in stage.inputs and comparison.has_changed(stage)
    digests = list(map(stages.digest, stage.inputs))
    stamp = {"key": comparison.stages._key(stages.essence(stage.command), digests), "inputs": digests}
    comparison.stages._end(stage.name, stamp, [stage.result], {})
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
    made = commands.Commands(settings.load(recipe, ["cpu=false", f"processes={each}"]))
    assert made.gpus == gpus
    assert commands.Commands(settings.load(recipe, ["cpu=true"])).gpus == []
    code = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES')); time.sleep(0.2)"
    seen: list[str] = []
    work = [partial(processes.execute, python(code), tmp_path / str(n), False, seen.append) for n in range(6)]
    processes.side_by_side(3, work, gpus=made.gpus)
    assert {line.strip() for line in seen} == set(made.gpus[:3] or [str(visible)])
    seen.clear()
    processes.side_by_side(1, work[:1], gpus=made.gpus)
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
    comparison.translate("int8", Run("a", 1))
    return ran


def test_the_translator_searches_as_fairseq_generate(made, monkeypatch):
    words = ["cpu=true", "generate.lenpen=0.6", "generate.max-len-b=50", "speed.beams=[3]"]
    _, command = translated(made(*words), monkeypatch)
    task = json.loads(Path(command[-1]).read_text())
    assert (task["options"], task["cells"]) == ({"lenpen": 0.6, "max_length": 50}, [[3, 64]])
    comparison = made("cpu=true", "generate.sampling=true")
    assert not translated(comparison, monkeypatch)
    assert comparison.missing == {"a": "it doesn't know --sampling, which fairseq-generate has here"}


def test_a_translator_that_fails_fails_no_run(made):
    def fail() -> None:
        raise stages.StageError("export a 1 float32: exit status 1\nno room")

    comparison = made("cpu=true")
    for _ in range(2):
        comparison.attempt_translator("a", fail)
    assert comparison.missing == {"a": "no room"} and not comparison.failures


def test_models_are_exported_as_their_text_was_prepared(made, monkeypatch):
    data: dict[str, Any] = {"tokenizer": "moses-bpe", "lower": True, "normalise": False}
    codes, *_ = translated(made("cpu=true"), monkeypatch, **data)
    assert codes[codes.index("--subword-nmt-codes") + 1].endswith("/bpe.codes")
    assert {"--lowercase", "--no-normalise", "--int8"} <= set(codes)
    pieces, *_ = translated(made("cpu=true"), monkeypatch, **{**data, "tokenizer": "sentencepiece"})
    assert pieces[pieces.index("--sentencepiece-model") + 1].endswith("/spm.model")
    assert "--lowercase" in pieces and "--no-normalise" not in pieces


def test_memory_of_a_gpu_is_what_was_used_at_most():
    printed = 'total memory = 16.000 GB ; name\n{"gb_free": "9.0"}\n{"gb_free": "8"}\n{"train_gb_free": "7.5"}\n'
    assert fairseq_output.gpu_memory(printed) == 8.5 * 2**30
    assert fairseq_output.gpu_memory("no GPU") is None


def test_a_model_that_decodes_beside_is_an_input(made, tmp_path, monkeypatch):
    beside = tmp_path / "lm.pt"
    beside.write_bytes(b"one")
    comparison, seen = with_text(made(f"generate.lm-path={beside}")), []
    monkeypatch.setattr(comparison.stages, "command", lambda *_, inputs, **__: seen.append(inputs))
    comparison.generate(comparison.runs[0])
    comparison.time_generate(comparison.runs[0], "speed", 1, 1)
    assert len(seen) == 2 and all(beside in inputs for inputs in seen)


def test_equal_time_gives_updates_by_speed():
    assert settings.updates_in(10, 7.0, 10) == 4200
    assert settings.updates_in(10, 3.5, 10) == 2100
    assert settings.updates_in(1, 0.333, 10) == 20  # 19.98, to a multiple of the checkpoints
    assert settings.updates_in(0.001, 1.0, 10) == 10


def test_speed_is_the_median_of_the_slices(made):
    comparison = made("budget={updates: null, minutes: 2}")
    for number, speed in enumerate((5.0, 1.0, 4.0), 1):
        write_text(comparison.out / "stamps" / f"slice-a-{number}.json", json.dumps({"updates_per_second": speed}))
    assert comparison.training_speed("a", "updates_per_second") == 4.0
    assert comparison.updates("a") == 480


def finished(comparison: translation.Comparison, run: Run) -> None:
    """As if it had been trained to the end, with the settings of a stamp that knows none."""
    comparison.last(run).parent.mkdir(parents=True)
    comparison.last(run).touch()
    stamp = {"key": "", "done": True, "outputs": [stages.digest(comparison.last(run))]}
    for name in (f"slice {run.system} 1", run.stage("train")):
        write_text(comparison.out / "stamps" / f"{name.replace(' ', '-')}.json", json.dumps(stamp))


@pytest.mark.parametrize("done", [True, False])
def test_a_run_that_has_a_checkpoint_is_not_trained_again(done, made):
    comparison = made()
    finished(comparison, Run("a", 1))
    path = comparison.out / "stamps" / "train-a-1.json"
    write_text(path, json.dumps({**json.loads(path.read_text()), "done": done}))
    finished(comparison, Run("b", 1))
    with pytest.raises(
        FolderError, match=r"/a-1, \S+/checkpoints/b-1: trained with other settings or moved; remove that, or "
    ):
        comparison.train_and_test()
    assert comparison.last(Run("a", 1)).is_file()


def test_a_speed_is_not_measured_again_of_what_has_trained(made):
    """Or an override that was tried once would change the updates of the settings before, too."""
    comparison = made("budget={updates: null, minutes: 2}")
    for system in "ab":
        finished(comparison, Run(system, 1))
    before = comparison.stages.stamp("slice a 1")
    with pytest.raises(FolderError, match=r"/a-1, \S+/checkpoints/b-1: trained with other settings or moved; remove"):
        comparison.time_training()
    assert comparison.stages.stamp("slice a 1") == before
    shutil.rmtree(comparison.folder(Run("a", 1)))
    assert comparison.has_trained(Run("a", 1)) == []


def test_what_was_made_of_checkpoints_outlives_them(made, tmp_path, monkeypatch):
    """As they may be removed to free the disk."""
    comparison, run, done = with_text(made("average=2")), Run("a", 1), []
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


def test_commands_print_alike_in_any_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # where Python would look at the locale
    code = "import os, sys; print(sys.flags.utf8_mode, os.environ['GLIBC_TUNABLES'], "
    code += "os.environ['NVIDIA_TF32_OVERRIDE'])"
    code += "; print('warning', file=sys.stderr); print('line')"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    for given, expected in ((None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.perturb=1", "glibc.malloc.perturb=1")):
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if given:
            monkeypatch.setenv("GLIBC_TUNABLES", given)
        processes.execute(["python", "-c", code], tmp_path / "log", False, print)
        printed = (tmp_path / "log").read_text()
        assert printed == f"1 {expected} 0\nwarning\nline\n", "in the order in which they were printed"


def test_time_is_carried_over_an_epochs_end():
    now = fairseq_output.Trained(1, updates=50, seconds=7.0, clock=9.0, tokens=70, loss=None, at_epoch_end=False)
    assert fairseq_output.carry(now, []) == now
    carried = [[20, 2.0, 20], [40, 4.0, 40], [50, 100.0, 100]]  # at 50 itself fairseq had not begun again
    assert fairseq_output.carry(now, carried)[1:5] == (50, 11.0, 9.0, 110)
    assert fairseq_output.carry(now._replace(updates=15), carried)[1:5] == (15, 7.0, 9.0, 70)


# Stages


def python(code: str) -> list[str]:
    return ["python", "-c", code]


class Counter:
    """Runs a stage that writes what it reads, and counts."""

    def __init__(self, folder: Path) -> None:
        self.shown: list[str] = []
        self.stages = stages.Stages(folder / "stamps", self.shown.append)
        self.input, self.output, self.log = folder / "in", folder / "out", folder / "logs" / "log"
        self.input.write_text("x")

    def __call__(self, flag: str = "a", **more: Any) -> int:
        before = len(self.shown)
        code = f"print({flag!r}); open({str(self.output)!r}, 'w').write(open({str(self.input)!r}).read())"
        self.stages.command("one two", python(code), inputs=[self.input], outputs=[self.output], log=self.log, **more)
        return len(self.shown) - before


def test_a_stage_is_done_again_when_something_changed(tmp_path):
    run = Counter(tmp_path)
    assert (run(), run()) == (1, 0)
    assert run.log.read_text() == "a\n"
    assert (run("b"), run("b")) == (1, 0)  # the command
    run.input.write_text("y")
    assert (run("b"), run("b")) == (1, 0)  # the contents of an input
    assert run.output.read_text() == "y"
    run.input.write_text("y")
    os.utime(run.input, (1, 1))
    assert run("b") == 0  # nothing but the time of change
    run.output.unlink()
    assert (run("b"), run.output.read_text()) == (1, "y")


def test_a_command_is_known_however_it_is_spelled(tmp_path, monkeypatch):
    done: list[Any] = []
    monkeypatch.setattr(stages, "execute", lambda command, log, *more: done.append(command) or log.touch() or {})
    monkeypatch.chdir(tmp_path)
    work = stages.Stages(tmp_path, lambda text: None)

    def run(*command: str) -> int:
        work.command("train", command, inputs=[], outputs=[], log=tmp_path / "log")
        return len(done)

    assert [run("train", folder) for folder in ("runs/x", str(tmp_path / "runs/x"), "/other/runs/x")] == [1, 1, 2]
    rest = ("--nproc-per-node=8", "-m", "fairseq_cli.train", "data")
    first = ["--standalone"], ["--master-port=1", "--master_addr=a"], ["--rdzv_endpoint=b:1", "--node-rank=1"]
    assert [run("torchrun", *meet, *rest) for meet in first] == [3, 3, 3]
    assert run("torchrun", "--nnodes=2", "--master-port=1", *rest) == 4
    assert run("torchrun", "--nproc-per-node=4", *rest[1:]) == 5


def test_other_threads_than_at_the_begin_are_refused(made, monkeypatch):
    """Times would be of both."""
    for threads in (1, 77):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        comparison = made("cpu=true")
        comparison.stages.always = lambda *words, **more: {}
        with pytest.raises((FileNotFoundError, stages.StageError)) as raised:
            comparison.prepare()
        assert ("manifest" in str(raised.value)) == (threads == 1)  # the first has no data and goes no further
        work = stages.Stages(comparison.out / "stamps", lambda text: None, comparison.here)
        work.command("slice a 1", python(""), inputs=[], outputs=[], log=comparison.out / "log")
    assert " was begun with 1 threads, here are 77: set OMP_NUM_THREADS=1, or name another" in str(raised.value)


def test_a_system_with_a_failed_run_is_timed_with_another(made):
    comparison = made("seeds=[1,2]", "speed.rounds=1")
    comparison.failures = {Run("a", 1): "no memory", Run("b", 1): "no memory", Run("b", 2): "no memory"}
    timed = []

    def time_generate(run: Run, *_: object) -> None:
        timed.append(run)
        if len(timed) > 4:
            raise stages.StageError("no memory")

    comparison.decoders = [comparison.decoders[0]._replace(time=time_generate)]
    comparison.time_decoding()
    assert timed == [Run("a", 2)] * 4
    comparison.time_decoding()
    assert not comparison.good()  # or the report would miss its speed


def test_a_stage_that_was_killed_begins_anew_or_goes_on(tmp_path):
    run = Counter(tmp_path)
    run()
    stamp = run.stages.stamp("one two")
    (tmp_path / "stamps" / "one-two.json").write_text(json.dumps({**stamp, "done": False}))
    run.output.write_text("half")
    told: list[dict[str, Any]] = []
    assert run(resume=lambda stamp: told.append(stamp)) == 0  # None: nothing is left to do
    assert told[0]["key"] == stamp["key"]
    assert run.output.read_text() == "half"  # what a command goes on from is kept
    (tmp_path / "stamps" / "one-two.json").write_text(json.dumps({**stamp, "done": False}))
    assert run() == 1
    assert run.output.read_text() == "x"
    (tmp_path / "stamps" / "one-two.json").write_text(json.dumps({**stamp, "done": False}))
    run.output.write_text("of another command")
    assert run("b", resume=lambda stamp: {} if not run.output.exists() else None) == 1


def test_a_failed_command_is_told_with_its_last_lines(tmp_path):
    run = stages.Stages(tmp_path, lambda text: None)
    code = "import sys; print(*range(100), sep='\\n'); sys.exit('the reason')"
    for _ in range(2):  # not taken for done
        with pytest.raises(stages.StageError, match=r"(?s)^bad: exit status 1\n81\n.*\n99\nthe reason$"):
            run.command("bad", python(code), inputs=[], outputs=[], log=tmp_path / "log")
    with pytest.raises(stages.StageError, match=r"^none: .*no-such-program"):
        run.command("none", ["no-such-program"], inputs=[], outputs=[], log=tmp_path / "log")


@pytest.mark.parametrize("error", [ValueError, RecipeError])
def test_what_facts_refuses_is_a_failure(error, tmp_path):
    def facts() -> dict[str, Any]:
        raise error("3 translations of 4 sentences")

    with pytest.raises(stages.StageError, match=r"^one two: 3 translations of 4"):
        Counter(tmp_path)(facts=facts)
    assert Counter(tmp_path)() == 1


def test_a_damaged_checkpoint_and_a_full_disk_are_told_in_a_line(tmp_path, capsys):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(ValueError, match=r"^\S+checkpoint_last.pt is damaged: put a whole"):
        fairseq_output.trained(tmp_path / "checkpoint_last.pt")
    with (
        pytest.raises(SystemExit, match=r"^compare: .*No space left on device"),
        stages.working_in(tmp_path / "out", argparse.ArgumentParser("compare")),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_memory_is_that_of_the_command_alone(tmp_path):
    def peak(megabytes: int) -> float:
        # It must live when its line is read, as a training run does at each of its own.
        code = f"import os, time; x = b'x' * ({megabytes} << 20); del x; print(flush=True)\n"
        code += f"while not os.path.exists({str(tmp_path / 'read')!r}): time.sleep(0.01)"
        (tmp_path / "read").unlink(missing_ok=True)
        read: Callable[[str], Any] = lambda line: (tmp_path / "read").touch()  # noqa: E731
        return processes.execute(python(code), tmp_path / "log", False, read)["peak_memory"] / 2**20

    ours = b"x" * (400 << 20)  # of zeros none would be resident
    large, small = peak(300), peak(1)
    assert len(ours) and 300 < large < 360
    assert small < 60


@pytest.mark.parametrize(
    ("jobs", "threads", "said"),
    [
        (2, 8, "2 at a time of 8 threads, on 8 cores, wait: set OMP_NUM_THREADS=4\n"),
        (2, 4, ""),
        (1, 9, "1 at a time of 9 threads, on 8 cores, wait: set OMP_NUM_THREADS=8\n"),
        (1, 8, ""),
    ],
)
def test_more_threads_than_cores_are_told_of_once(jobs, threads, said, monkeypatch, capsys):
    """Slices that wait for one another give a run too few updates."""
    processes.say_if_crowded.cache_clear()
    monkeypatch.setattr(processes, "cores", lambda: 8)
    monkeypatch.setattr(processes.torch, "get_num_threads", lambda: threads)
    for _ in range(2):
        processes.side_by_side(jobs, [lambda: None] * 3)
    assert capsys.readouterr().out == said
    processes.say_if_crowded.cache_clear()
    processes.side_by_side(jobs, [lambda: None], gpus=["0", "1"])
    assert capsys.readouterr().out == ""


def test_work_is_done_side_by_side(tmp_path):
    def piece(own: int, other: int) -> int:
        # ends when the other has begun
        code = f"import os, time; open('{own}', 'w')\nwhile not os.path.exists('{other}'): time.sleep(0.01)"
        processes.execute(
            python(f"import os; os.chdir({str(tmp_path)!r}); {code}"), tmp_path / f"log {own}", False, print
        )
        return own

    found: list[int] = []
    processes.side_by_side(2, [partial(piece, 1, 2), partial(piece, 2, 1), partial(piece, 3, 1)], found.append)
    assert sorted(found) == [1, 2, 3]
    processes.side_by_side(1, [partial(piece, n, 1) for n in (1, 2)], found.append)
    assert found[3:] == [1, 2]


@pytest.mark.parametrize("failure", [stages.StageError, KeyboardInterrupt])
def test_what_runs_beside_a_failure_is_stopped(failure, tmp_path):
    run = stages.Stages(tmp_path / "stamps", lambda text: None)
    begun = tmp_path / "begun"
    outcomes: list[str] = []

    def long() -> None:
        code = f"import time; open({str(begun)!r}, 'w'); time.sleep(600)"
        try:
            run.command("long", python(code), inputs=[], outputs=[], log=tmp_path / "long.log")
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise
        raise AssertionError

    def short() -> None:
        wait_for(begun.exists)

    def then(_: object) -> None:
        raise failure("as Ctrl-C while the result is noted")

    with pytest.raises(failure):
        processes.side_by_side(2, [long, short, lambda: outcomes.append("a further one")], then)
    assert outcomes[-1] == "KeyboardInterrupt", "it was stopped, and no further one began"
    assert not run.stamp("long")["done"]
    run.command("long", python("print(1)"), inputs=[], outputs=[], log=tmp_path / "long.log")  # works on afterwards


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends the children of a killed process on demand")
def test_no_command_outlives_a_killed_comparison(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    code = "import pathlib; from comparison import processes; "
    code += f"processes.execute({['python', '-c', child]!r}, pathlib.Path('log'), False, print)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "recipes")}
    )
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = (tmp_path / "pid").read_text()
    parent.kill()
    parent.wait()
    wait_for(lambda: ended(pid))


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Report


def run_of(seed: int, bleu: float, p_value: float | None) -> dict[str, Any]:
    score = lambda value: {"score": value, "mean": value, "ci": 0.5, "p_value": p_value}  # noqa: E731
    point = lambda n: {"updates": n, "train_seconds": n / 5, "clock_seconds": n / 4, "loss": 9 - n / 200}  # noqa: E731
    return {
        "seed": seed,
        "updates": 1000,
        "train_seconds": 200.0,
        "clock_seconds": 250.0,
        "parameters": 2_790_000,
        "peak_memory": 2**30,
        "peak_gpu_memory": None,
        "scores": {"BLEU": score(bleu), "chrF2": score(30 + bleu), "TER": score(80 - bleu)},
        "repetition": {"1": 0.01, "2": 0.0, "3": 0.0, "4": 0.0, "any": 0.01},
        "domains": {"help": bleu, "web": bleu - 1},
        "seconds_to_baseline": 100.0,
        "curve": [{**point(n), "BLEU": n / 1000 * bleu} for n in (500, 1000)],
        "commands": ["fairseq-train a|b", "fairseq-generate"],
    }


def canned(**systems: list[tuple[float, float | None]]) -> dict[str, Any]:
    """A report of systems with BLEU and p for each seed."""
    made = {}
    for speed, (name, seeds) in enumerate(systems.items(), 2):
        runs = [run_of(seed, *scores) for seed, scores in enumerate(seeds, 1)]
        made[name] = {"failures": [] if runs else [f"train {name} 1: no such thing"], "runs": runs}
        if runs:
            metrics = ("BLEU", "chrF2", "TER")
            made[name]["scores"] = {m: report.spread(run["scores"][m]["score"] for run in runs) for m in metrics}
            made[name]["training_tokens_per_second"] = 1000.0 * speed
            made[name]["decoding"] = [
                {"beam": beam, "batch": batch, "sentences_per_second": 10.0 * speed * batch / beam}
                for beam in (1, 5)
                for batch in (1, 64)
            ]
    found = {
        "name": "canned",
        "date": "2026-11-25 09:10",
        "data": {"data_set": "d", "source": "en", "target": "de", "tokenizer": "sentencepiece", "test_sentences": 1000,
                 "curve_sentences": 500, "speed_sentences": 100},
        "budget": {"minutes": 10.0},
        "baseline": "lstm",
        "curve_beam": 1,
        "loss": "nll_loss",
        "machine": {"cpu": "c", "cores": 2, "threads": 2, "gpu": None, "system": "s"},
        "versions": {"python": "3"},
        "prepare": "python recipes/prepare.py",
        "signatures": {"BLEU": "nrefs:1|bs:1000"},
        "references_repetition": {"1": 0.0, "2": 0.0, "3": 0.0, "4": 0.0, "any": 0.0},
        "systems": made,
        "samples": [{"source": "a | b", "reference": "r", "systems": dict.fromkeys(made, "t")}],
    }  # fmt: skip
    return {"verdict": report.verdict(found), **found}


@pytest.mark.parametrize(
    ("systems", "words"),
    [
        ({"lstm": [(20.0, None)], "sru": [(21.2, 0.001)]},
         "sru has 21.2 BLEU, the baseline lstm 20.0. Significant (paired bootstrap, p < 0.05): BLEU yes (p = 0.001), "
         "chrF2 yes (p = 0.001), TER yes (p = 0.001). One seed: another may change the result. It trains 1.50 times "
         "as fast as the baseline. It decodes 1.50 (beam 1, batch 1), 1.50 (beam 1, batch 64), 1.50 (beam 5, batch 1) "
         "and 1.50 (beam 5, batch 64) times as fast."),
        ({"lstm": [(20.0, None)], "sru": [(19.9, 0.4)]},
         "sru has 19.9 BLEU, the baseline lstm 20.0. Significant (paired bootstrap, p < 0.05): BLEU no (p = 0.400), "),
        ({"lstm": [(20.0, None), (20.4, None)], "sru": [(21.0, 0.01), (21.4, 0.02)]},
         "sru has 21.2 BLEU, the baseline lstm 20.2 (means of 2 seeds). Significant (paired bootstrap, p < 0.05): "
         "BLEU in 2 of 2 seeds, chrF2 in 2 of 2, TER in 2 of 2. It trains"),
        ({"lstm": [(20.0, None), (20.4, None)], "sru": [(21.0, 0.01), (20.5, 0.4)]}, "BLEU in 1 of 2 seeds, "),
        ({"lstm": [(20.0, None), (23.0, None)], "sru": [(24.0, 0.01), (21.0, 0.01)]},  # one up, one down
         "BLEU in 1 of 2 seeds (1 the other way), "),
        ({"lstm": [(20.0, None)], "sru": [(21.0, 0.01)], "sru2": [(22.0, 0.01)], "sru4": [(21.5, 0.01)], "sru3": []},
         "sru2, the best of the 3 beside the baseline, has 22.0 BLEU, the baseline lstm 20.0. The rest: sru4 21.5, "
         "sru 21.0. Significant"),
        ({"lstm": [(20.0, None)], "sru": [(22.0, 0.01)], "slow": [(21.0, 0.01)]},  # which is made the faster
         "slow decodes faster than sru in 4 of 4 settings."),
        ({"lstm": [(20.0, None)], "sru": [(21.0, 0.01)], "sru3": []}, "Failed: sru3; see the end."),
        ({"lstm": [], "sru": [(21.0, None)]}, "No verdict: the baseline lstm failed. Failed: lstm"),
        ({"lstm": [(20.0, None)]}, "lstm has 20.0 BLEU. Nothing to compare it with."),
    ],
)  # fmt: skip
def test_the_verdict_says_no_more_than_the_numbers(systems, words):
    assert words in canned(**systems)["verdict"]


def test_each_score_is_tested_by_itself():
    found = canned(lstm=[(20.0, None)], sru=[(21.0, 0.01)])
    scores = found["systems"]["sru"]["runs"][0]["scores"]
    scores["chrF2"] |= {"score": 50.5, "p_value": 0.2}
    for ter, said in ((59.0, "yes"), (61.0, "the other way")):
        scores["TER"] |= {"score": ter, "p_value": 0.03}
        said_of_all = report.verdict(found)
        assert f"BLEU yes (p = 0.010), chrF2 no (p = 0.200), TER {said} (p = 0.030)." in said_of_all


@pytest.mark.parametrize(
    ("lstm", "sru", "copied", "words"),
    [
        (0.06, 0.02, None, "No verdict: sru has 0.0 BLEU and the baseline lstm 0.1; below 1.0 no difference counts."),
        (0.06, 0.02, 0.9, "No verdict: sru has 0.0 BLEU and the baseline lstm 0.1; below 1.0 no difference counts."),
        (5.0, 4.0, 6.6, "No verdict: sru has 4.0 BLEU and the baseline lstm 5.0; copying the source has 6.6."),
        (7.0, 4.0, 6.6, "sru has 4.0 BLEU, the baseline lstm 7.0."),
        (0.5, 4.0, 0.9, "sru has 4.0 BLEU, the baseline lstm 0.5."),
    ],
)
def test_scores_that_mean_nothing_have_no_verdict(lstm, sru, copied, words):
    """However sure the bootstrap is."""
    found = canned(lstm=[(lstm, None)], sru=[(sru, 0.001)])
    found |= {} if copied is None else {"copied_source": copied}
    said = report.verdict(found)
    assert said.startswith(words)
    assert ("Significant" in said) == (not words.startswith("No verdict"))


def test_only_runs_with_the_same_seed_are_compared():
    found = canned(lstm=[(20.0, None), (30.0, None)], sru=[(21.0, 0.01), (22.0, 0.01)])
    found["systems"]["lstm"]["runs"].pop()
    assert "sru has 21.0 BLEU, the baseline lstm 20.0. " in report.verdict(found)
    found["systems"]["lstm"]["runs"][0]["seed"] = 9
    assert report.verdict(found).startswith("No verdict: sru and the baseline lstm have no seed in common.")


def test_the_best_and_the_rest_are_of_the_seeds_that_the_baseline_has():
    both = [(20.0, None), (21.0, None)]
    found = canned(lstm=both, sru=[(22.0, 0.01), (23.0, 0.01)], deep=[(30.0, 0.01)], wide=[(20.5, 0.01)])
    found["systems"]["deep"]["runs"][0]["seed"] = 4
    assert report.verdict(found).startswith(
        "sru, the best of the 2 beside the baseline, has 22.5 BLEU, the baseline lstm 20.5 (means of 2 seeds). "
        "The rest: wide 20.5 (of 1). Without a seed of the baseline's: deep. Significant"
    )
    found["systems"]["lstm"]["runs"].pop()  # it failed
    assert "has 22.0 BLEU, the baseline lstm 20.0. The rest: wide 20.5. " in report.verdict(found)


@pytest.mark.parametrize("systems", [
    {"lstm": [(20.0, None), (20.4, None)], "sru": [(21.0, 0.01), (20.5, 0.4)], "bad": []},
    {"lstm": []},
])  # fmt: skip
def test_the_report_is_whole(systems, tmp_path):
    found = canned(**systems)
    for name, system in found["systems"].items():
        system["precision"] = "float32" if name == "lstm" else "bfloat16"
    if "sru" in found["systems"]:
        sru, bleu = found["systems"]["sru"], [{"beam": beam, **report.spread([20.0, 20.0 + beam])} for beam in (1, 5)]
        shares = [{"beam": beam, **report.spread([0.001 * beam, 0.003 * beam])} for beam in (1, 5)]
        of_weights = {"BLEU": bleu, "repetition": shares, "decoding": sru["decoding"]}
        sru["translator"] = {weights: of_weights for weights in ("float32", "int8")}
        found["systems"]["lstm"]["translator"] = {"missing": "it can't"}
    report.write(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report.FILES)
    assert json.loads((tmp_path / "report.json").read_text()) == found
    text = (tmp_path / "report.md").read_text()
    assert text.split("\n")[2] == found["verdict"]
    for name, seeds in systems.items():
        row = re.search(rf"^\| {name}(?: \(baseline\))? \| ([\d.]+) ± ([\d.]+) \|", text, re.MULTILINE)
        assert bool(row) == bool(seeds)
        assert seeds or f"## Failed: {name}\n\n    train {name} 1: no such thing" in text
    assert ("Trained with products in bfloat16 (--amp): sru." in text) == ("sru" in systems)
    if "sru" in systems:
        p = "0.010, 0.400"
        assert f"| sru | 20.8 ± 0.4 | {p} | 50.8 ± 0.4 | {p} | 59.2 ± 0.4 | {p} |\n" in text
        assert "| sru | 2.79 M | 3.3 | 1.7 | 3,000 | 1.00 |\n" in text
        assert "| sru | 30.0 | 1,920.0 | 6.0 | 384.0 |\n" in text
        assert "| sru, int8 | 20.5 ± 0.7 | 22.5 ± 3.5 | 0.20% | 1.00% | 30.0 | 1,920.0 | 6.0 | 384.0 |\n" in text
        assert "The translator does not run lstm: it can't\n" in text
        assert "| web | 19.2 ± 0.3 | 19.8 ± 0.4 |" in text
        assert "| source | a \\| b |" in text
        svg = (tmp_path / "curves.svg").read_text()
        assert svg.count('id="line2d_') > 0 and "<svg" in svg


def test_sentences_are_taken_from_all_of_the_text():
    assert stages.evenly(4, 10) == [0, 2, 5, 7]
    assert stages.evenly(10, 3) == [0, 1, 2]


def test_time_to_the_baselines_best():
    curve = [{"train_seconds": t, "BLEU": b} for t, b in ((1.0, 5.0), (2.0, 9.0), (3.0, 8.0))]
    assert [translation.seconds_to(bleu, curve) for bleu in (5.0, 6.0, 9.0, 9.1)] == [1.0, 2.0, 2.0, None]


PUBLISHED = [
    path
    for path in sorted((ROOT / "recipes" / "results").rglob("report.json"))
    if path.with_name("report.md").is_file() and "gpu" not in path.parts
]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_what_is_published_is_what_the_command_writes(path):
    found = json.loads(path.read_text())
    assert "verdict" not in found or report.verdict(found) == found["verdict"]
    assert report.render(found) == path.with_name("report.md").read_text()


@pytest.mark.parametrize("text", [None, "half", '{"systems": {}}'])
def test_what_is_no_report_is_named_and_left_alone(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path / "report.json")])
    assert ended.value.code == 2
    assert f"{tmp_path / 'report.json'}" in capsys.readouterr().err.splitlines()[-1]
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if text is None else [text])


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
    """What does not depend on time."""
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
