"""Reports on the speed of layers, models and translation: contestants, figures, files and plot. No time decides."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import speed
import torch
from benchmarks import decoding, layer, models, registry, timing
from benchmarks.layer import GEMM, OURS, PACKAGE, SCRIPTED
from benchmarks.registry import BACKWARD, BOTH, CELLS, EAGER, FORWARD, GRAPH, PLOTTED, Case
from benchmarks.timing import Spread
from support.exported import trained
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_sru.recurrence.build import kernel_text
from fairseq_sru.recurrence.dispatch import choose
from fairseq_sru.recurrence.kernels import Kernels
from fairseq_sru.recurrence.reference import Options, Tensors

NAMES = list(registry.CONTESTANTS["layer"])


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of torch are as before at a test's end."""
    for library in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(library, "allow_tf32", library.allow_tf32)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    timing.going_on_without.cache_clear()


# ---------------------------------------------------------------- one layer


def test_report_of_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a new" / "folder" / "layer.json"
    speed.main(["layer", "--quick", "--threads", "1", "--turns", "2", "--output", str(path)])
    assert sorted(file.name for file in path.parent.iterdir()) == ["layer.json", "layer.svg"]
    assert "</svg>" in path.with_suffix(".svg").read_text()
    report = json.loads(path.read_text())
    shape, step = (32, 32, 256), (1, 5, 512)
    plans = [Case(what, *s) for s, what in ((shape, FORWARD), (shape, BOTH), (step, FORWARD))]
    cases = [Case.of(entry) for entry in report["cases"]]
    expected = [plan._replace(dtype=dtype, mode=mode) for dtype, mode in layer.VARIANTS for plan in plans]
    assert sorted(cases) == sorted(expected)
    for case, entry in zip(cases, report["cases"], strict=True):
        absent = {PACKAGE, SCRIPTED} | ({layer.CONV} if case.length == 1 else set())
        ms = {name: spread["median"] for name, spread in entry["ms"].items()}
        if case.mode != GRAPH:  # some may not be captured
            assert list(ms) == [name for name in NAMES if name not in absent]
            assert entry["ratios"]["LSTM / SRU"] == ms["LSTM"] / ms["SRU"]
        assert entry["ratios"]["SRU / GEMM"] == ms["SRU"] / ms["GEMM"]
    spreads = [ms for entry in report["cases"] for ms in entry["ms"].values()]
    spreads += [entry[key] for entry in report["recurrence"] for key in ("ms", "copy_ms")]
    assert len(spreads) > 15
    assert all(0 < spread["low"] <= spread["median"] <= spread["high"] < math.inf for spread in spreads)
    backend = choose(report["machine"]["backend"], timing.DEVICE.type)
    for entry in report["recurrence"]:
        assert entry["share"] == entry["copy_ms"]["median"] / entry["ms"]["median"]
        count = entry["length"] * entry["batch"] * entry["size"]
        moved = layer.traffic(layer.DTYPES[entry["dtype"]].itemsize, backend)[entry["what"]]
        assert entry["bytes"] == moved * count
    if not timing.ON_GPU:
        assert report["contestants"]["GRU"] == "nn.GRU (addmm, mm)"
    printed = capsys.readouterr().out
    assert printed.startswith(f"{report['machine']['device']}, threads: ")
    assert all(f"\n| {case} " in printed for case in cases)


@pytest.mark.parametrize("dtype", layer.DTYPES.values(), ids=str)
@pytest.mark.parametrize("backend", [choose("torch", "cpu"), choose("native", "cpu")], ids=lambda b: b.name)
def test_traffic_is_the_size_of_what_is_read_and_written(dtype, backend):
    length, batch, size = 5, 2, 8
    u, x, grad_h = torch.ones(length, batch, 3, size, dtype=dtype), *torch.ones(2, length, batch, size, dtype=dtype)
    tensors, options = Tensors(u, x, torch.zeros(2, size)), Options("tanh", False, 1.0)
    h, c_n, saved = backend.forward(tensors, None, options, True)
    grad_u, grad_x, *_ = backend.backward(tensors, None, options, saved, grad_h, None, (True,) * 3 + (False,) * 3)
    c = c_n.new_empty(length, batch, size)
    for what, moved in ((FORWARD, (u, x, h, c)), (BACKWARD, (u, x, c, grad_h, grad_u, grad_x))):
        assert layer.traffic(dtype.itemsize, backend)[what] * length * batch * size == sum(t.nbytes for t in moved)


def test_traffic_is_what_the_kernels_state():
    stated = re.findall(r"^//\s+(forward|backward)\s+(\d+) bytes: (.*)$", kernel_text()["sru.cu"], re.MULTILINE)
    assert {what: int(count) for what, count, _ in stated} == layer.traffic(4, Kernels())
    for _, count, parts in stated:
        assert sum(map(int, re.findall(r"\w+ (\d+)", parts))) == int(count)


def test_plot_has_a_bar_for_each_contestant():
    cases = [Case(what, *shape, *v) for v in layer.VARIANTS for what in (FORWARD, BOTH) for shape in PLOTTED]
    names = [name for name in NAMES if name != SCRIPTED]
    times = {case: {name: Spread(*3 * [i + j / 8]) for j, name in enumerate(names)} for i, case in enumerate(cases, 1)}
    figure = layer.plot(times, "One layer")
    for i, ax in enumerate(figure.axes):
        of_panel = cases[3 * i : 3 * i + 3]
        shown = [name for name in names if name != GEMM]
        assert [text.get_text() for text in ax.get_legend().get_texts()] == shown
        for name, bars in zip(shown, ax.containers, strict=True):
            assert [bar.get_height() for bar in bars] == [times[case][name].median for case in of_panel]
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["l=32, d=256", "l=32, d=512", "l=128, d=512"]


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("option, value", [("--threads", "0"), ("--turns", "two"), ("--output", "there.json")])
@pytest.mark.parametrize("command", ["layer", "model"])
def test_bad_options_are_named(command, option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("of an hour")
    with pytest.raises(SystemExit) as ended:
        speed.main([command, "--quick", option, value])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"argument {option}: " in said and value in said
    assert (tmp_path / "there.json").read_text() == "of an hour"


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this GPU\nand more")


def test_without_the_published_package_it_goes_on(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sru", None)
    monkeypatch.setenv("PATH", "/usr/bin")
    layer.published_package.cache_clear()
    assert set(layer.callers("layer", Case(FORWARD, 3, 2, 8), NAMES)) == set(NAMES) - {PACKAGE, SCRIPTED}
    layer.published_package.cache_clear()
    assert re.fullmatch(r"going on without the package sru: \w*Error: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["LSTM", OURS])
def test_who_fails_is_left_out_but_ours_is_an_error(name, monkeypatch, capsys):
    case = Case(BOTH, 3, 2, 8)
    entry = registry.CONTESTANTS["layer"][name]
    broken = entry._replace(make=lambda case: (Broken(), [torch.zeros(3, 2, 8)]))
    monkeypatch.setitem(registry.CONTESTANTS["layer"], name, broken)
    if name == OURS:
        with pytest.raises(RuntimeError, match="no kernel"):
            layer.callers("layer", case, [OURS, GEMM])
    else:
        assert set(layer.callers("layer", case, [name, GEMM])) == {GEMM}
        assert capsys.readouterr().err == "going on without LSTM: RuntimeError: no kernel for this GPU\n"


@pytest.mark.parametrize("dead", [False, True])
def test_a_graph_that_cannot_be_captured_costs_no_other_figure(dead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the GPU does nothing more after it: then the program ends."""

    def fails(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(layer, "graphed", fails)
    kept: list[str] = []
    time_passes = partial(layer.time_passes, choose("auto", layer.DEVICE.type))
    both = [Case(FORWARD, 2, 2, 8, mode=mode) for mode in (GRAPH, EAGER)]
    if dead:
        monkeypatch.setattr(timing, "ON_GPU", True)
        monkeypatch.setattr(torch.cuda, "synchronize", fails)
        for run in (partial(layer.time_group, "layer", both[:1], [OURS]), partial(time_passes, both[:1])):
            with pytest.raises(RuntimeError):
                run(1, lambda *_: None)
    else:
        layer.time_group("layer", both, [OURS], 1, lambda part, entry: kept.append(entry["mode"]))
        time_passes(both, 1, lambda part, entry: kept.append(entry["mode"]))
        assert kept == [EAGER] * 3


# ---------------------------------------------------------------- the clock


def test_contestants_take_turns_in_rotating_order(monkeypatch):
    ran: list[str] = []

    class Timer:
        """Timer whose runs take the time that the function returns."""

        def __init__(self, statement: str, globals: dict[str, Any], num_threads: int) -> None:
            self.function = globals["f"]

        def timeit(self, number: int) -> None:
            self.function()

        def blocked_autorange(self, min_run_time: float) -> SimpleNamespace:
            return SimpleNamespace(mean=self.function())

    seconds = {"a": iter([100.0, 3.0, 1.0, 4.0, 1.5]), "b": iter([9.0, 1.0, 1.0, 2.0, 1.0])}  # the first warms up

    def runs(name: str) -> timing.Function:
        return lambda: ran.append(name) or next(seconds[name])

    monkeypatch.setattr(timing, "Timer", Timer)
    spreads = timing.measure({name: runs(name) for name in seconds}, turns=4)
    assert ran == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    low, median, high = statistics.quantiles([3.0, 1.0, 4.0, 1.5], n=4, method="inclusive")
    assert spreads["a"] == pytest.approx((1000 * median, 1000 * low, 1000 * high))


def test_numbers_are_shown_with_three_digits():
    shown = [timing.short(x) for x in (None, 0.004, 0.0567, 0.999, 1, 99.96, 1234.5)]
    assert shown == ["–", "0.0040", "0.0567", "0.999", "1.00", "100.0", "1,234"]


# ---------------------------------------------------------------- models

SIZES = {f"{side}_embed_dim": 32 for side in ("encoder", "decoder")}


def small(*_: Any) -> tuple[Any, dict[str, Any]]:
    """Small models of the kinds that models.systems has."""
    words = models.dictionary(60)
    task = Namespace(source_dictionary=words, target_dictionary=words)
    ffn = {f"{side}_ffn_embed_dim": 32 for side in ("encoder", "decoder")}
    lstm = {**SIZES, "decoder_out_embed_dim": 32, "encoder_hidden_size": 32, "decoder_hidden_size": 32}
    return words, {
        models.SRU: models.built("sru_tiny", task, **SIZES, encoder_hidden_size=16),
        models.UNIT: models.built("lstm_tiny", task, **SIZES, encoder_hidden_size=16, decoder_hidden_size=32),
        models.LSTM: models.built("lstm", task, **lstm, decoder_attention="1"),
        models.TRANSFORMER: models.built("transformer_iwslt_de_en", task, **SIZES, **ffn),
    }


@pytest.mark.slow
def test_report_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "systems", small)
    path = tmp_path / "model.json"
    speed.main(["model", "--threads", "1", "--turns", "1", "--quick", "--output", str(path)])
    report = json.loads(path.read_text())
    expected = ["train", "step, batch 1, beam 1", "decode, batch 1, beam 1"]
    assert [case for case in report["cases"] if "bfloat16" not in case and "graph" not in case] == expected
    assert report["parameters"] == {name: models.size(model) for name, model in small()[1].items()}
    printed = capsys.readouterr().out
    for case in expected:
        entry = report["cases"][case]
        times = {name: spread["median"] for name, spread in entry["ms"].items()}
        assert list(times) == list(report["parameters"])
        assert all(ms > 0 for ms in times.values())
        assert entry["ratios"] == {n: pytest.approx(times[n] / times[models.SRU]) for n in times if n != models.SRU}
        assert f"\n| {case} " in printed


def test_a_step_reads_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The incremental states are used: else each step would be the first."""
    words, systems = small()
    for model in systems.values():
        states = []
        forward = model.decoder.forward

        def seen(tokens: Any, encoder_out: Any, incremental_state: Any, forward: Any = forward, s: Any = states) -> Any:
            s.append((tokens.size(1), len(incremental_state)))
            return forward(tokens, encoder_out=encoder_out, incremental_state=incremental_state)

        monkeypatch.setattr(model.decoder, "forward", seen)
        models.stepper(model.eval(), words, 2, 2)()
        assert [length for length, _ in states] == list(range(1, registry.TARGET + 1))
        assert [entries > 0 for _, entries in states] == [False] + [True] * (registry.TARGET - 1)


def plain_torch(model: Any) -> Any:
    """The model, whose steps are not compiled."""
    model.decoder.register_forward_hook(lambda *_: None)
    return model


class Waits(TorchDispatchMode):
    """Notes operators whose result the host has to know before it goes on, which no CUDA graph can record."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen += [name] * (name in self.names)
        return func(*args, **(kwargs or {}))


def test_an_update_and_a_step_of_sru_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain_descent(parameters: Any, lr: float, capturable: bool) -> Any:
        """On a CPU, Adam's count of updates is read by the host; on a GPU capturable leaves it there."""
        return torch.optim.SGD(parameters, lr)

    monkeypatch.setattr(torch.optim, "Adam", plain_descent)
    monkeypatch.setattr("fairseq_sru.models.dropout.compiled", lambda *_: None)  # torch's dropout, as on a GPU
    monkeypatch.setattr("fairseq_sru.models.units.eager", lambda: False)  # nor is padding looked for there
    words, systems = small()
    functions = {
        "update": models.trainer(systems[models.SRU], words),
        "step": models.stepper(plain_torch(models.for_decoding(systems[models.SRU])), words, 2, 2),
        "update with packed sequences": models.trainer(systems[models.UNIT], words),
    }
    waited = {}
    for name, function in functions.items():
        with Waits() as noted:
            function()
        waited[name] = bool(noted.seen)
    assert waited == {"update": False, "step": False, "update with packed sequences": True}


def test_a_systems_size_is_that_of_what_it_learns() -> None:
    words, systems = small()
    for name, model in systems.items():
        models.trainer(model, words)()
        learnt = sum(p.numel() for p in model.parameters() if p.grad is not None)
        assert models.size(model) == learnt, name


@pytest.mark.slow
@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_systems_are_of_one_size(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with widths that torch's and cuDNN's kernels take."""
    monkeypatch.setattr(models, "ON_GPU", on_gpu)
    name = "sru_iwslt_de_en"
    _, systems = models.systems(name, registry.PRESETS[name])
    sizes = {name: models.size(model) for name, model in systems.items()}
    assert sizes == {name: pytest.approx(sizes[models.SRU], rel=0.02) for name in sizes}
    if on_gpu:
        assert systems[models.TRANSFORMER].encoder.layers[0].self_attn.head_dim % 8 == 0
        assert systems[models.LSTM].encoder.hidden_size % 8 == 0


# ---------------------------------------------------------------- translation


@pytest.mark.slow
def test_report_of_translation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = trained(tmp_path, "sentencepiece")
    words = ["--data", folder / "data", "--sru", folder / "save" / "checkpoint_last.pt"]
    options = ["--output", tmp_path / "report.json", "--turns", "1", "--sentences", "5"]
    speed.main(["translate", *map(str, [*words, *options])])
    report = json.loads((tmp_path / "report.json").read_text())
    ours = [decoding.PLAIN, decoding.STEP, decoding.GENERATE, decoding.FLOAT32]
    assert list(report["systems"]) == [*ours, decoding.INT8]
    scores = [[cell["bleu"] for cell in report["systems"][name]["cells"]] for name in ours]
    assert all(of_system == scores[0] for of_system in scores)  # the same translations
    for name in ours:
        assert {cell["same"] for cell in report["systems"][name]["cells"]} == {1.0}
    assert [(cell["beam"], cell["batch"]) for cell in report["systems"][decoding.INT8]["cells"]] == CELLS
    assert decoding.INT8 in capsys.readouterr().out


def test_models_that_cannot_be_translated_with_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("spm.model", "last.pt"):
        (tmp_path / name).write_text("no model")
    manifest = {"source": "en", "target": "de", "data_set": "own"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for language in ("en", "de"):
        (tmp_path / f"test.{language}").write_text("a\n")
    words = ["translate", "--data", str(tmp_path), "--sru", str(tmp_path / "last.pt")]
    output = tmp_path / "report.json"
    with pytest.raises(SystemExit, match=r"^the export for Translator, float32 failed: .*last.pt can't be read"):
        speed.main([*words, "--output", str(output)])
    with pytest.raises(SystemExit):
        speed.main([*words, "--output", str(output), "--lstm", "none.pt"])
    assert "argument --lstm: no such file: none.pt" in capsys.readouterr().err
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(SystemExit, match=f"^argument --data: {re.escape(str(tmp_path))} is no parallel text"):
        speed.main([*words, "--output", str(output)])
    assert not output.exists()
