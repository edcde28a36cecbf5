"""The speed report: its files, tables and plot, from a quick run and from times that are made up. No time decides."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import speed
import steps
import torch
from benchmarks import layer, timing
from benchmarks.layer import BACKWARD, BOTH, CONV, FORWARD, GEMM, NAMES, PACKAGE, SCRIPTED, Case
from benchmarks.timing import Spread
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from fairseq_sru.recurrence.build import kernel_text
from fairseq_sru.recurrence.dispatch import choose
from fairseq_sru.recurrence.kernels import Kernels
from fairseq_sru.recurrence.reference import Options, Tensors

BFLOAT16 = ", bfloat16"  # behind the names of what is told of a GPU alone


class Ran(NamedTuple):
    printed: str
    report: dict[str, Any]
    out: Path


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A quick run."""
    out = tmp_path_factory.mktemp("speed") / "a new" / "folder"
    printed = io.StringIO()
    with threads(1), contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        for library in (torch.backends.cuda.matmul, torch.backends.cudnn):  # put back afterwards
            patch.setattr(library, "allow_tf32", library.allow_tf32)
        speed.main(["--quick", "--threads", "1", "--turns", "2", "--out", str(out)])
    return Ran(printed.getvalue(), json.loads((out / "speed.json").read_text()), out)


def assert_shown(cell: str, value: float) -> None:
    """The cell is the value to three digits at least."""
    assert re.fullmatch(r"\d{1,3}(,\d{3})*(\.\d+)?", cell)
    decimals = len(cell.partition(".")[2])
    assert abs(float(cell.replace(",", "")) - value) <= 0.5000001 * 10**-decimals
    assert len(re.sub(r"\D", "", cell).lstrip("0")) >= 3 or value < 0.01


# ---------------------------------------------------------------- a quick run


def test_the_files_are_there_and_no_others(ran):
    assert sorted(path.name for path in ran.out.iterdir()) == ["speed.json", "speed.svg"]
    assert [line for line in ran.printed.splitlines() if line.startswith("wrote ")] == [
        f"wrote {ran.out / f'speed.{suffix}'}" for suffix in ("json", "svg")
    ]
    drawn = ElementTree.parse(ran.out / "speed.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert (drawn.get("height"), drawn.get("width")) == (f"{360 * len(layer.VARIANTS)}pt", "1080pt")


def test_every_contestant_takes_part(ran):
    cases = [Case.of(case) for case in ran.report["cases"]]
    shape, step = (32, 32, 256), (1, 5, 512)
    plans = [Case(what, *s) for s, what in ((shape, FORWARD), (shape, BOTH), (step, FORWARD))]
    expected = [plan._replace(dtype=dtype, mode=mode) for dtype, mode in layer.VARIANTS for plan in plans]
    if not timing.ON_GPU:
        expected += [plan._replace(mode="without oneDNN") for plan in plans]
    assert cases == expected
    for case, entry in zip(cases, ran.report["cases"], strict=True):
        absent = {PACKAGE, SCRIPTED} | ({CONV} if case.length == 1 else set())
        if case.mode == layer.GRAPH:  # some may not be captured
            assert {layer.OURS, GEMM} <= set(entry["ms"]) <= set(NAMES) - absent
        else:
            assert set(entry["ms"]) == set(NAMES) - absent
    eager = set(NAMES) - {PACKAGE, SCRIPTED}
    narrow = {f"{name}{BFLOAT16}" for name in eager} if timing.ON_GPU else set()
    assert set(ran.report["contestants"]) == eager | narrow


def test_figures_are_sensible(ran):
    spreads = [ms for case in ran.report["cases"] for ms in case["ms"].values()]
    spreads += [scan[key] for scan in ran.report["recurrence"] for key in ("ms", "copy_ms")]
    assert len(spreads) > 20
    for spread in spreads:
        assert 0 < spread["low"] <= spread["median"] <= spread["high"] < math.inf
    assert 0 < ran.report["copy_gb_per_s"] < math.inf
    for case in ran.report["cases"]:
        ms = {name: spread["median"] for name, spread in case["ms"].items()}
        assert case["ratios"] == {
            "SRU / GEMM": ms["SRU"] / ms["GEMM"],
            **({"LSTM / SRU": ms["LSTM"] / ms["SRU"]} if "LSTM" in ms else {}),
        }
    backend = choose(ran.report["machine"]["backend"], timing.DEVICE.type)
    for scan in ran.report["recurrence"]:
        assert scan["share"] == scan["copy_ms"]["median"] / scan["ms"]["median"]
        count = scan["length"] * scan["batch"] * scan["size"]
        assert scan["bytes"] == layer.traffic(layer.DTYPES[scan["dtype"]].itemsize, backend)[scan["what"]] * count


def test_the_machine_is_named(ran):
    machine = ran.report["machine"]
    assert (machine["threads"], machine["torch"], ran.report["turns"]) == (1, torch.__version__, 2)
    chosen = choose("auto", timing.DEVICE.type)
    assert machine["backend"] == (chosen.name if chosen else "reference")
    assert machine["package"] == "none"  # as a quick run goes without
    day = machine["date"][:10]
    assert ran.printed.startswith(f"{machine['device']}, threads: 1, torch {torch.__version__}, {day}; medians of 2;")
    for name, note in ran.report["contestants"].items():
        assert f"\n- {name.removesuffix(BFLOAT16)}: {note}\n" in ran.printed
        assert re.search(r": (oneDNN|cuDNN|cuBLAS|MKL|torch's BLAS) \([a-z_]", note), note


# ---------------------------------------------------------------- what must be moved


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


# ---------------------------------------------------------------- the clock


class Clock:
    """A clock that only the functions move; notes who ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def function(self, name: str, *seconds: float) -> timing.Function:
        """Takes these times in turn, the last one for ever."""
        left = list(seconds)

        def function() -> None:
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return function


def test_contestants_take_turns_in_rotating_order(monkeypatch):
    clock = Clock(monkeypatch)
    taken = {"a": 1 / 128, "b": 1 / 256, "c": 1 / 1024}  # the fraction of 5 ms decides how often a run calls
    found = timing.measure({name: clock.function(name, seconds) for name, seconds in taken.items()}, turns=4)
    a, b, c = ["a"], 2 * ["b"], 6 * ["c"]
    warmed_up = ["a", *a, *a, "b", "b", "b", *b, *b, "c", "c", "c", *c, *c]
    assert clock.ran == warmed_up + a + b + c + b + c + a + c + a + b + a + b + c
    assert found == {name: Spread(*3 * [1000 * seconds]) for name, seconds in taken.items()}


def test_a_run_is_long_enough_where_the_first_calls_are_slow(monkeypatch):
    clock = Clock(monkeypatch)
    timing.measure({"a": clock.function("a", 1.0, 0.004, 0.001, 0.001, 0.0001)}, turns=1)
    # more and more, twice each, until the faster one takes 5 ms; and the run that counts
    assert len(clock.ran) == 1 + 2 * (1 + 6 + 51) + 51


def test_figures_are_the_median_and_the_quartiles_without_the_warm_up(monkeypatch):
    clock = Clock(monkeypatch)
    runs = [3.0, 1.0, 4.0, 1.5, 9.0, 2.5]
    found = timing.measure({"a": clock.function("a", 100.0, 1.0, 1.0, *runs)}, turns=len(runs))["a"]
    low, median, high = statistics.quantiles(runs, n=4, method="inclusive")
    assert found == pytest.approx((1000 * median, 1000 * low, 1000 * high))


class Graphs:
    """A stand-in for torch.cuda's streams and graphs: a replay runs nothing, and takes ``took`` seconds a call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        self.clock, self.stream, self.fails, self.took = clock, "default", False, 1 / 4096
        cuda = SimpleNamespace(
            Stream=lambda: SimpleNamespace(wait_stream=lambda _: None),
            current_stream=lambda: SimpleNamespace(wait_stream=lambda _: None, name=self.stream),
            stream=self.beside,
            set_stream=lambda stream: setattr(self, "stream", stream.name),
            synchronize=lambda: self.clock.ran.append("synchronize"),
            CUDAGraph=self.new,
            graph=self.graph,
        )
        monkeypatch.setattr(timing.torch, "cuda", cuda)
        monkeypatch.setattr(timing, "ON_GPU", True)

    @contextlib.contextmanager
    def beside(self, _: Any) -> Iterator[None]:
        before, self.stream = self.stream, "side"
        yield
        self.stream = before

    def new(self) -> SimpleNamespace:
        made = SimpleNamespace(calls=0)
        made.replay = lambda: self.replay(made.calls)
        return made

    @contextlib.contextmanager
    def graph(self, made: SimpleNamespace) -> Iterator[None]:
        self.stream = "capture"  # which a capture that fails leaves
        self.clock.ran.append("begin")
        before = len(self.clock.ran)
        yield
        made.calls = len(self.clock.ran) - before
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.clock.ran.append("end")
        self.stream = "default"

    def replay(self, calls: int) -> None:
        self.clock.now += calls * self.took
        self.clock.ran.append("replay")


def test_a_graph_has_as_many_calls_as_take_long_and_is_timed_between_waits(monkeypatch):
    clock = Clock(monkeypatch)
    graphs = Graphs(monkeypatch, clock)
    streams = []
    work = clock.function("a", 1 / 1024)  # one by one, Python takes longer than the kernels

    def function() -> None:
        streams.append(graphs.stream)
        work()

    replayed = timing.graphed(function, seconds=1 / 1024)
    assert streams == 3 * ["side"] + 5 * ["capture"]
    assert clock.ran[-6:] == ["begin", *4 * ["a"], "end"]
    clock.ran.clear()
    graphs.took = 0.25
    found = timing.measure({"graph": replayed}, turns=2)
    assert clock.ran == 5 * ["synchronize", "replay", "synchronize"]
    assert found["graph"] == Spread(*3 * [250.0])  # of a call
    assert timing.graphed(function).calls == 1


def test_a_capture_that_fails_leaves_the_stream_that_was(monkeypatch):
    graphs = Graphs(monkeypatch, Clock(monkeypatch))
    graphs.fails = True
    with pytest.raises(RuntimeError, match="capturing"):
        timing.graphed(lambda: None)
    assert graphs.stream == "default"


# ---------------------------------------------------------------- times that are made up


def made_up(cases: list[Case], **others: float) -> dict[Case, dict[str, Spread]]:
    """Times of all contestants; of those in others, so many ms."""

    def ms(case: Case, i: int, name: str) -> float:
        work = case.length * case.batch * case.size * (1 + 2 * (case.what == BOTH)) / 2**14
        return others.get(name, work * (2 + i % 3))

    return {
        case: {
            name: Spread(*3 * [ms(case, i, name)])
            for i, name in enumerate(NAMES)
            if name != SCRIPTED or case.what == FORWARD
        }
        for case in cases
    }


# ---------------------------------------------------------------- the plot


def panels() -> dict[tuple[str, str, str], list[Case]]:
    """The cases of each, from left to right."""
    return {
        (dtype, mode, what): [Case(what, *s, dtype, mode) for s in ((32, 32, 256), (32, 32, 512), (128, 32, 512))]
        for dtype, mode in layer.VARIANTS
        for what in (FORWARD, BOTH)
    }


@pytest.mark.parametrize("without", [(), (PACKAGE, SCRIPTED)], ids=str)
def test_plot_has_a_bar_and_a_label_for_each_contestant(without):
    found = made_up([case for cases in panels().values() for case in cases])
    found = {case: {n: s for n, s in took.items() if n not in without} for case, took in found.items()}
    figure = layer.plot(found, "One layer")
    assert figure.get_suptitle() == "One layer"
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for ax, (panel, cases) in zip(figure.axes, panels().items(), strict=True):
        dtype, mode, what = panel
        assert ax.get_title() == (f"{what}, {dtype}, {mode}" if timing.ON_GPU else what)
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["l=32, d=256", "l=32, d=512", "l=128, d=512"]
        names = [n for n in NAMES if n not in {GEMM, *without, *({SCRIPTED} if what == BOTH else ())}]
        assert [text.get_text() for text in ax.get_legend().get_texts()] == names
        for name, bars in zip(names, ax.containers, strict=True):
            assert [bar.get_height() for bar in bars] == [found[case][name].median for case in cases]
            assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 1, 2]
        labels = [text for text in ax.texts if text.get_text()]
        for text, value in zip(labels, (found[case][name].median for name in names for case in cases), strict=True):
            assert_shown(text.get_text(), value)
        boxes = [text.get_window_extent(renderer) for text in labels]
        assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())
        boxes.append(ax.get_legend().get_window_extent(renderer))
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("option", ["--threads", "--turns"])
@pytest.mark.parametrize("given", ["0", "-1", "1.5", "two", ""])
def test_numbers_below_one_are_an_error(option, given, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        speed.main(["--quick", "--out", str(tmp_path), option, given])
    assert ended.value.code == 2
    assert f"argument {option}: must be an integer of at least 1; got {given!r}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [speed, steps])
def test_a_report_that_is_there_is_no_victim(script, tmp_path, capsys):
    path = tmp_path / f"{script.__name__}.json"
    path.write_text("of an hour")
    with pytest.raises(SystemExit):
        script.main(["--quick", "--out", str(tmp_path)])
    assert f"argument --out: {path} is there already: --resume goes on with it" in capsys.readouterr().err
    assert path.read_text() == "of an hour"


def test_without_the_published_package_it_goes_on(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sru", None)
    monkeypatch.setenv("PATH", "/usr/bin")
    layer.going_on_without.cache_clear()
    assert layer.published_package() is None
    assert layer.published_package() is None
    assert re.fullmatch(r"going on without the package sru: \w*Error: .*\n", capsys.readouterr().err)


class Broken(nn.Module):
    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this GPU\nand more")


def test_who_fails_is_left_out_but_ours_is_an_error(monkeypatch, capsys):
    case = Case(BOTH, 3, 2, 8)
    layer.going_on_without.cache_clear()
    assert set(layer.callers(case, Broken)) == set(NAMES) - {PACKAGE, SCRIPTED}
    said = capsys.readouterr().err
    assert said == (
        "going on without sru package, forward+backward, float32, eager: RuntimeError: no kernel for this GPU\n"
    )
    product = layer.Linear(8, 24)
    monkeypatch.setattr(layer, "contestants", lambda case, package: {layer.LSTM: Broken(), GEMM: product})
    assert set(layer.callers(case, None)) == {GEMM}
    monkeypatch.setattr(layer, "contestants", lambda case, package: {layer.OURS: Broken()})
    with pytest.raises(RuntimeError, match="no kernel"):
        layer.callers(case, None)


# ---------------------------------------------------------------- how numbers are shown


def test_a_report_is_gone_on_with_where_only_what_is_measured_differs(tmp_path):
    new = {"machine": {"device": "one", "date": "now"}, "turns": 3, "cases": []}
    old = {**new, "machine": {"device": "one", "date": "before"}, "cases": [1]}
    path = tmp_path / "speed.json"
    assert timing.resumed(path, new, "cases") is new
    path.write_text(json.dumps(old))
    assert timing.resumed(path, new, "cases") == old
    for there, name in (({**old, "turns": 7}, "turns"), ({**old, "machine": {"device": "two"}}, "device")):
        path.write_text(json.dumps(there))
        with pytest.raises(SystemExit, match=rf"^argument --resume: \S+speed.json is of another {name}: name another"):
            timing.resumed(path, new, "cases")
        assert json.loads(path.read_text()) == there
    for damaged in ("{", "[]", "{}"):
        path.write_text(damaged)
        with pytest.raises(SystemExit, match=r"^argument --resume: \S+speed.json is no report of this script$"):
            timing.resumed(path, new, "cases")


def test_a_case_in_which_the_process_ends_twice_is_left_out(capsys):
    written = ["{}"]

    def ends_in_two() -> list[str]:
        report: dict[str, Any] = json.loads(written[-1])
        seen = []
        for case in timing.Attempts("layers", ["1", "2", "3"], report, lambda: written.append(json.dumps(report))):
            if case == "2":  # nothing is written any more
                break
            seen.append(case)
        return seen

    assert [ends_in_two() for _ in range(3)] == [["1"], ["1"], ["1", "3"]]
    assert json.loads(written[-1]) == {"tries": {"layers, 2": 2}}, "what is left out is told"
    assert "going on without layers, 2: the process ended in it 2 times" in capsys.readouterr().err


def test_a_stopped_case_is_no_case_that_ended_the_process(capsys):
    written: list[str] = []
    report: dict[str, Any] = {}
    for _ in range(3):
        attempts = timing.Attempts("layers", ["1", "2"], report, lambda: written.append(json.dumps(report)))
        with pytest.raises(SystemExit, match=r"^130$"), timing.resumable(report, attempts.write):
            for case in attempts:
                if case == "2":
                    raise KeyboardInterrupt
        assert written[-2:] == ['{"tries": {"layers, 2": 1}}', "{}"]
    assert capsys.readouterr().err == "\nstopped; --resume goes on\n" * 3


def test_numbers_are_shown_with_three_digits():
    for i in range(-20, 70):
        assert_shown(timing.short(10 ** (i / 10)), 10 ** (i / 10))
    assert [timing.short(x) for x in (None, 0.004, 0.0567, 0.999, 1, 99.96, 1234.5)] == [
        *("–", "0.0040", "0.0567", "0.999", "1.00", "100.0", "1,234"),
    ]
