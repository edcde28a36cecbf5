"""tune.py: what its trials are, and a search that is stopped and gone on with."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import tune
from common.machine import parameters
from comparison import plots
from comparison.settings import Settings, load
from comparison.stages import StageError
from comparison.trials import at_edge, drawn, finals, trials
from conftest import ROOT
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from support.small_models import FIXED, numbered
from tune import Search, begin_finals, begun, of_trials

SPACE: dict[str, Any] = {
    "lr": {"low": 0.001, "high": 0.016},
    "dropout": [0.1, 0.2],
    "shape": [{"encoder-layers": 1}, {"encoder-layers": 2}, {"encoder-layers": 3, "decoder-layers": 3}],
}
RECIPE: dict[str, Any] = {
    "data": "lohelp-en-de",
    "prepare": {"vocab-size": 1000},
    "systems": {
        "sru": {"arch": "sru_tiny", "encoder-layers": 1, "decoder-layers": 2, "lr": 0.002},
        "lstm": {"arch": "lstm"},
    },
    "baseline": "lstm",
    "budget": {"updates": 20},
    "cpu": True,
    "train": {
        "optimizer": "adam",
        "criterion": "label_smoothed_cross_entropy",  # which tells the nll_loss
        "lr": 0.001,
        "max-tokens": 200,
        "num-workers": 0,
        "best-checkpoint-metric": "nll_loss",
    },
    "tune": {
        "trials": 2,
        "budget": 0.2,
        "space": {"lr": {"low": 0.001, "high": 0.01}},
        "systems": {"sru": {"rnn-dropout": [0.1]}},
        "finals": {"dropout": [0.0, 0.3]},
    },
}


def test_each_stratum_is_drawn_once() -> None:
    found = drawn(SPACE, 12, "1 sru")
    assert found == drawn(SPACE, 12, "1 sru") != drawn(SPACE, 12, "2 sru")
    strata = sorted(int(12 * math.log(trial["lr"] / 0.001, 16)) for trial in found)
    assert strata == list(range(12))
    assert [trial["dropout"] for trial in found].count(0.1) == 6
    assert (
        [trial["encoder-layers"] for trial in found].count(3) == sum("decoder-layers" in trial for trial in found) == 4
    )
    assert "shape" not in found[0]


def test_a_flag_is_drawn_alike_whatever_else_varies() -> None:
    alone = drawn({"lr": SPACE["lr"]}, 12, "1 sru")
    assert [trial["lr"] for trial in drawn(SPACE, 12, "1 sru")] == [trial["lr"] for trial in alone]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(RECIPE))
    return path


def short(given: Settings) -> Settings:
    """The recipe with its first trials."""
    return of_trials(given, {system: trials(given, system) for system in given.systems}, given.tune.budget)


def test_the_finals_are_the_best_trial_with_each_value_and_the_recipes_own(recipe: Path) -> None:
    given, own, other = load(recipe, ["out=x"]), {"lr": 1}, {"lr": 2, "dropout": 0.3}
    with_each = [{"lr": 2, "dropout": value} for value in (0.0, 0.3)]
    assert finals(given, [own, other], 1) == [own, *with_each]
    assert finals(given, [other, own], 0) == [other, with_each[0]]  # once is enough
    given.tune.finals = {}
    assert finals(given, [own, other], 1) == []
    whole = of_trials(given, {"sru-whole": with_each}, 1.0)
    assert whole.systems == {"sru-whole-0": with_each[0], "sru-whole-1": with_each[1]} and whole.budget == given.budget


def test_other_finals_than_those_of_the_file_are_refused(recipe: Path) -> None:
    report = {"systems": {"sru": {"trials": [{"flags": {"lr": 1}}, {"flags": {"lr": 2}}], "best": 1}}}
    begin_finals(load(recipe, ["out=x"]), report)
    report["systems"]["sru"]["finals"][0]["loss"] = 1.0
    begin_finals(load(recipe, ["out=x"]), report)
    assert [each["flags"].get("dropout") for each in report["systems"]["sru"]["finals"]] == [None, 0.0, 0.3]
    with pytest.raises(ValueError, match="is of a search with other finals; remove `finals` from it, or name"):
        begin_finals(load(recipe, ["out=x", "tune.finals.dropout=[0.1]"]), report)


def test_a_flag_of_the_space_that_fairseq_does_not_take_is_told_at_once(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "prepare", None)  # what is first run
    for place in ("space", "finals"):
        words = [str(recipe), f"out={recipe.parent / 'out'}", f"tune.{place}.dropuot=[0.1,0.2]"]
        with pytest.raises(SystemExit):
            tune.main([*words, "--output", str(recipe.parent / "found.json")])
        assert "unrecognized arguments: --dropuot 0." in capsys.readouterr().err


def test_the_first_trial_is_the_recipes_own(recipe: Path) -> None:
    given = load(recipe, [f"out={recipe.parent / 'out'}", "tune.trials=5"])
    for system in given.systems:
        first, *others = trials(given, system)
        assert first == given.systems[system]
        assert len(others) == 4 and all(trial.keys() >= first.keys() for trial in others)
        assert all(trial.get("rnn-dropout") == (0.1 if system == "sru" else None) for trial in others)


def test_between_whole_numbers_lie_whole_ones() -> None:
    made = drawn({"max-tokens": {"low": 500, "high": 2000}, "lr": {"low": 1, "high": 2.5}}, 8, "seed")
    assert all(type(trial["max-tokens"]) is int and 500 <= trial["max-tokens"] <= 2000 for trial in made)
    assert all(type(trial["lr"]) is float for trial in made)


def test_a_range_gives_way_to_a_list_and_finals_can_be_left_out(recipe: Path) -> None:
    given = load(recipe, ["out=x", "tune.space.lr=[1e-3,2e-3]", "tune.finals.dropout=null"])
    assert given.tune.space_of("sru") == {"lr": [1e-3, 2e-3], "rnn-dropout": [0.1]} and given.tune.finals == {}
    given = load(recipe, ["out=x", "tune.systems.sru.rnn-dropout={low: 0.1, high: 0.3}"])
    assert given.tune.systems["sru"]["rnn-dropout"] == {"low": 0.1, "high": 0.3}
    with pytest.raises(ValueError, match=r"tune\.finals\.dropout: must be a list of values, or null; got \[\]"):
        load(recipe, ["out=x", "tune.finals.dropout=[]"])


def test_each_system_has_a_plot_of_its_own_range() -> None:
    """One that is far behind the others is in it, too."""
    systems = {
        name: {"trials": [{"flags": {"lr": lr}, "loss": loss + lr} for lr in (0.1, 0.2, 4.0)], "best": 0}
        for name, loss in (("sru", 3.0), ("transformer", 7.0))
    }
    for axis, lowest in zip(plots.trials({"systems": systems}, {}).axes, (3.1, 7.1), strict=True):
        low, high = axis.get_ylim()
        assert low < lowest and lowest + 0.1 < high < lowest + 3.9  # what is far above isn't shown


def test_an_edge_is_told() -> None:
    found = [{"lr": lr, "dropout": 0.1} for lr in (0.1, 0.2, 0.4)]
    assert at_edge(found, found[1], SPACE) == []
    assert at_edge(found, found[0], SPACE) == at_edge(found, found[2], SPACE) == ["lr"]
    assert at_edge(found, found[0], {"lr": [0.1, 0.2, 0.4], "dropout": [0.1]}) == ["lr"]
    assert at_edge([{"lr": [0.1, 0.05]}, *found], found[0], {"lr": [0.1, 0.2, 0.4]}) == []  # one an epoch
    for none in ({}, {"lr": None}):  # fairseq's default
        assert at_edge([none, *found], found[1], SPACE) == at_edge([none, *found], none, SPACE) == []


@pytest.mark.parametrize("shared", [{}, {"lr": None}, {"lr": 0.001}, {"lr": [0.001]}])
def test_the_plot_knows_learning_rates_that_all_share(shared: dict[str, Any]) -> None:
    tried = [{"flags": {}, "loss": 3.0}, {"flags": {"lr": 0.002}, "loss": 2.0}]
    points = plots.trials({"systems": {"sru": {"trials": tried, "best": 1}}}, shared).axes[0].collections[0]
    assert [x for x, _ in points.get_offsets().tolist()] == [0.001 if shared.get("lr") else None, 0.002]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune={trials: 2}", "tune.space: must have a flag that varies in sru, lstm"),
        ("kind=sentences", "kind: must be translation; got sentences"),
        ("systems.sru.lr=[5e-4]", "systems.sru.lr: must be a number to be searched; got [0.0005]"),
    ],
)
def test_what_cannot_be_searched_is_named(
    override: str, message: str, recipe: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(ROOT)
    text = {**RECIPE, "tune": {}} if override.startswith("tune") else RECIPE
    recipe.write_text(json.dumps(text))
    with pytest.raises(SystemExit) as ended:
        tune.main(
            [str(recipe), f"out={recipe.parent / 'out'}", override, "--output", str(recipe.parent / "found.json")]
        )
    assert ended.value.code == 2 and capsys.readouterr().err.endswith(f"{recipe}: {message}\n")
    assert not (recipe.parent / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("tune-0.1", "must end with .json; got "), ("found.json", "the plot would replace ")],
)
def test_an_output_that_would_cost_a_file_is_refused(
    name: str, message: str, recipe: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(ROOT)
    (recipe.parent / "found.svg").write_text("mine, by matplotlib")
    with pytest.raises(SystemExit) as ended:
        tune.main([str(recipe), f"out={recipe.parent / 'out'}", "--output", str(recipe.parent / name)])
    assert ended.value.code == 2 and f"argument --output: {message}" in capsys.readouterr().err
    assert (recipe.parent / "found.svg").read_text() == "mine, by matplotlib"


def test_a_system_whose_own_settings_have_no_loss_ends_the_search(recipe: Path, monkeypatch: Any) -> None:
    work = Search(short(load(recipe, [f"out={recipe.parent / 'out'}"])), {})
    monkeypatch.setattr(work, "train_once", lambda run: {"loss": None})
    assert work.trial("sru-1") == {"loss": None}
    with pytest.raises(StageError, match="sru-0: fairseq-train told no finite loss on the validation set"):
        work.trial("sru-0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.trials=0", r"^tune.trials: must be above 0; got 0$"),
        ("tune.budget=-1", r"^tune.budget: must be above 0; got -1.0$"),
        ("tune.systems.other.lr=[1]", r"^tune.systems.other: must be one of sru, lstm$"),
        ("tune.space.lr=3", r"^tune.space.lr: must be a list or \{low, high\}, 0 < low < high; got 3$"),
        ("tune.systems.sru.lr={low: 2, high: 1}", r"^tune.systems.sru.lr: must be a list or \{low, high\}"),
    ],
)
def test_a_bad_space_is_named(override: str, message: str, recipe: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(recipe, ["out=x", override])


def test_a_system_that_is_left_out_may_have_a_space(recipe: Path) -> None:
    assert list(load(recipe, ["out=x", "systems.sru=null"]).systems) == ["lstm"]


def sized(flags: dict[str, Any], words: int) -> int:
    """Parameters of a system of a recipe."""
    named = {name.replace("-", "_"): value for name, value in flags.items() if name != "lr"}
    args = Namespace(**{**FIXED, "share_all_embeddings": True, **named})
    ARCH_CONFIG_REGISTRY[args.arch](args)
    dictionary = numbered(words - Dictionary().nspecial)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return parameters(ARCH_MODEL_REGISTRY[args.arch].build_model(args, task).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lohelp", "debian", "multi30k", "iwslt14", "wmt14"])
def test_all_shapes_have_as_many_parameters(name: str) -> None:
    given = load(ROOT / "recipes" / "configs" / f"{name}.yaml")
    words = given.prepare["vocab-size"]
    own = {system: sized(flags, words) for system, flags in given.systems.items()}
    assert own == pytest.approx(dict.fromkeys(own, own["sru"]), rel=0.01)
    found = own | {
        f"{system} {shape}": sized({**flags, **shape}, words)
        for system, flags in given.systems.items()
        for shape in given.tune.space_of(system).get("shape", [])
    }
    mean = statistics.fmean(found.values())
    assert not {name: size for name, size in found.items() if abs(size / mean - 1) > 0.01}


@pytest.mark.slow
def test_a_search_goes_on_and_tells_the_best(recipe: Path, tmp_path: Path) -> None:
    def searched(*words: str, code: int = 0) -> str:
        command = [sys.executable, "recipes/tune.py", str(recipe), f"out={tmp_path / 'out'}", "--jobs", "2", *words]
        command += ["--output", str(tmp_path / "found.json")]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout if code == 0 else done.stderr

    first = searched()
    found = json.loads((tmp_path / "found.json").read_text())
    assert first.count("\ntrial ") == 4 + 6 and not list((tmp_path / "out" / "checkpoints").glob("*"))
    for system, tried in found["systems"].items():
        assert len(tried["trials"]) == 2 and tried["trials"][0]["flags"] == RECIPE["systems"][system]
        assert all(trial["updates"] == 4 and trial["parameters"] > 0 for trial in tried["trials"])
        losses = [trial["loss"] for trial in tried["trials"]]
        assert losses[tried["best"]] == min(losses)
        whole = [trial["loss"] for trial in tried["finals"]]
        assert all(trial["updates"] == 20 for trial in tried["finals"]) and whole[tried["best_final"]] == min(whole)
        assert f"{system}: loss {min(whole):.3f}" in first
    assert (tmp_path / "found.svg").read_text().startswith("<?xml")
    before = (tmp_path / "found.json").read_bytes()
    assert "\ntrial " not in searched() and (tmp_path / "found.json").read_bytes() == before

    # another file from what is there: it was trained where it was, whatever this machine has now
    for stamp in (tmp_path / "out" / "stamps").glob("trial-*.json"):
        stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "torch": "2.6"}))
    (tmp_path / "found.json").unlink()
    (tmp_path / "found.svg").unlink()
    assert "\ntrial " not in searched()
    other = json.loads((tmp_path / "found.json").read_text())
    made = [trial["machine"] for tried in other["systems"].values() for trial in tried["trials"]]
    assert {machine["torch"] for machine in made} == {"2.6"} and all("source" in one["fairseq_sru"] for one in made)
    assert not any("made" in trial for tried in other["systems"].values() for trial in tried["trials"])

    # as if it had been stopped before this one, and gone on with on another machine
    stopped = json.loads(json.dumps(found))
    stopped["systems"]["sru"]["trials"][1] = {"flags": stopped["systems"]["sru"]["trials"][1]["flags"]}
    stopped["systems"]["lstm"]["finals"][1]["loss"] = 1.0  # what is there is believed
    (tmp_path / "found.json").write_text(json.dumps(stopped))
    shutil.rmtree(tmp_path / "out")
    again = searched()
    assert again.count("\ntrial ") == 1 and "lstm: loss 1.000" in again
    later = json.loads((tmp_path / "found.json").read_text())
    assert later["systems"]["sru"]["trials"][1]["loss"] == found["systems"]["sru"]["trials"][1]["loss"]

    other = searched("tune.budget=0.1", code=2)
    assert f"argument --output: {tmp_path / 'found.json'} is of a search with other overrides" in other


def test_a_failed_trial_is_tried_once_more_before_it_counts_as_failed(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And losses of other data are not gone on with, nor is what another program wrote lost."""
    files, tried = {"train.en": "one"}, []

    def prepare(search: Search) -> None:
        search.data = {"files": dict(files)}

    def trial(search: Search, name: str) -> dict[str, Any]:
        tried.append(name)
        if name == "sru-1":
            return {"loss": None, "failure": "trial sru-1 1: exit status -9"}
        if name == "lstm-1":  # it has no loss, and would have none again
            return {"loss": None}
        return {"loss": 1.0, "updates": 1, "parameters": 1, "train_seconds": 1.0}

    monkeypatch.setattr(Search, "prepare", prepare)
    monkeypatch.setattr(Search, "trial", trial)
    output = recipe.parent / "found.json"
    words = [str(recipe), f"out={recipe.parent / 'out'}", "--output", str(output)]
    with pytest.raises(SystemExit, match=r"1 trials failed \(trial sru-1 1: exit status -9\): run the same command"):
        tune.main(words)
    first = len(tried)
    files["train.en"] = "another"
    with pytest.raises(SystemExit, match=r"found.json has losses of other data than \S+out/data: give the name of a"):
        tune.main(words)
    files["train.en"] = "one"
    tune.main(words)
    assert first == 4 and [name for name in tried[first:] if "-whole-" not in name] == ["sru-1"]
    assert json.loads(output.read_text())["systems"]["sru"]["best"] == 0
    second = len(tried)
    tune.main(words)
    assert len(tried) == second

    def of_another(search: Search, name: str) -> dict[str, Any]:
        output.write_text("of another")
        return trial(search, name)

    output.unlink()
    output.with_suffix(".svg").unlink()
    monkeypatch.setattr(Search, "trial", of_another)
    with pytest.raises(SystemExit, match=r"found.json was changed by another program meanwhile, and stays as it is"):
        tune.main(words)
    assert output.read_text() == "of another"


def test_on_another_machine_a_trial_has_as_many_updates(recipe: Path) -> None:
    given = short(load(recipe, [f"out={recipe.parent / 'out'}", "budget.updates=null", "budget.minutes=4"]))
    for own, expected in (({}, 96), ({"sru": 300}, 600)):
        work = Search(given, own)
        # twice as fast as the system's own settings
        stamps = {"slice sru-0 1": {"updates_per_second": 1.0}, "slice sru-1 1": {"updates_per_second": 2.0}}
        work.stages.stamp = stamps.__getitem__  # type: ignore[method-assign]
        assert work.updates("sru-1") == expected


def test_trials_of_one_model_have_one_speed(recipe: Path) -> None:
    """A slice is short: what is faster by chance would train longer."""
    own = {"arch": "sru_tiny", "encoder-layers": 2}
    # as the preset, the recipe and the class have it
    same = {**own, "decoder-layers": 4, "max-tokens": 200, "attention-dropout": 0.0}
    every = [own, {**same, "lr": 0.1}, {**own, "dropout": 0.3}, {**own, "encoder-layers": 3}]
    given = of_trials(
        load(recipe, [f"out={recipe.parent / 'out'}", "budget={updates: null, minutes: 4}"]), {"sru": every}, 0.5
    )
    work = Search(given, {})
    stamps = {f"slice sru-{i} 1": {"updates_per_second": speed} for i, speed in enumerate((3.0, 1.0, 2.0, 9.0))}
    work.stages.stamp = stamps.__getitem__  # type: ignore[method-assign]
    assert [work.updates(f"sru-{i}") for i in range(4)] == [240, 240, 240, 1080]
    for i, at_a_time in enumerate((1, 2, 2, 2)):  # gone on with another --jobs
        stamps[f"slice sru-{i} 1"]["at_a_time"] = at_a_time
    assert [work.updates(f"sru-{i}") for i in range(4)] == [360, 180, 180, 1080]


def test_a_search_with_other_training_is_another(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "found.json"
    output.write_text(json.dumps(begun(load(recipe, ["out=x"]), "small", [], output)))
    for override, key in (
        ("train.clip-norm=1.0", "train"),
        ("prepare.vocab-size=500", "prepare"),
        ("data=debian-en-de", "data"),
        ("processes=2", "processes"),
    ):
        with pytest.raises(ValueError, match=f"is of a search with other {key}; "):
            begun(load(recipe, ["out=x", override]), "small", [], output)
    base = tmp_path / "base.pt"
    base.write_text("general")
    tuned, other = load(recipe, ["out=x", f"train.finetune-from-model={base}"]), tmp_path / "tuned.json"
    other.write_text(json.dumps(begun(tuned, "small", [], other)))
    assert begun(tuned, "small", [], other)["files"]
    base.write_text("better")
    with pytest.raises(ValueError, match="is of a search with other files; "):
        begun(tuned, "small", [], other)
    words = ["out=y", "prepare.local-dir=z", "prepare.out=w"]
    assert begun(load(recipe, words), "small", words, output)["overrides"] == [], "another machine has other folders"
    (tmp_path / "fairseq_sru" / "config" / "model").mkdir(parents=True)
    for preset in sorted({load(recipe, ["out=x"]).flags_of(system)["arch"] for system in ("sru", "lstm")}):
        (tmp_path / "fairseq_sru" / "config" / "model" / f"{preset}.yaml").write_text("dropout: 0.7\n")
    monkeypatch.setattr("common.machine.ROOT", tmp_path)
    with pytest.raises(ValueError, match="is of a search with other presets; "):
        begun(load(recipe, ["out=x"]), "small", [], output)


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}"])
def test_a_file_of_another_kind_is_left_alone(text: str, recipe: Path) -> None:
    output = recipe.parent / "found.json"
    output.write_text(text)
    with pytest.raises(ValueError, match=r"found\.json is no output of tune.py"):
        begun(load(recipe, ["out=x"]), "small", [], output)
    assert output.read_text() == text
