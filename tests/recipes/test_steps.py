"""The report on steps of training and decoding: its systems, its table and its file. No time decides."""

from __future__ import annotations

import contextlib
import json
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import steps
import torch
from benchmarks import models, timing
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = {f"{side}_embed_dim": 32 for side in ("encoder", "decoder")}


def small(vocabulary: int, preset: str = "sru_iwslt_de_en") -> tuple[Any, dict[str, Any]]:
    """As models.systems, but small."""
    words = models.dictionary(vocabulary)
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
@pytest.mark.skipif(timing.ON_GPU, reason="a GPU has more cases, which test_gpu.py has, too")
def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "systems", small)
    monkeypatch.setattr(steps, "CASES", [(2, 2)])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    steps.main(["--out", str(tmp_path), "--threads", "1", "--turns", "1", "--vocabulary", "60", "--quick"])
    report = json.loads((tmp_path / "steps.json").read_text())
    assert list(report["cases"]) == ["train", "step, batch 2, beam 2", "decode, batch 2, beam 2"]
    assert report["parameters"] == {name: models.size(model) for name, model in small(60)[1].items()}
    for found in report["cases"].values():
        times = {name: spread["median"] for name, spread in found["ms"].items()}
        assert list(times) == list(report["parameters"])
        assert all(ms > 0 for ms in times.values())
        assert found["ratios"] == {n: pytest.approx(times[n] / times[models.SRU]) for n in times if n != models.SRU}
        assert math.isclose(sum(found["shares"].values()), 1)
        assert found["shares"]["matrix products"] > 0
    seen = {
        kind: [found["shares"][kind] > 0 for found in report["cases"].values()]
        for kind in ("recurrence", "compiled step")
    }
    assert seen == {"recurrence": [True, False, True], "compiled step": [False, True, True]}  # the encoder's
    dropout = {name: found["shares"]["dropout"] for name, found in report["cases"].items()}
    assert dropout["train"] > 0
    assert dropout["step, batch 2, beam 2"] == 0
    printed = capsys.readouterr().out
    for case in report["cases"]:
        assert printed.count(f"| {case} ") == 2
    steps.main(["--out", str(tmp_path), "--threads", "1", "--turns", "1", "--vocabulary", "60", "--quick", "--resume"])
    tables = [
        [line for line in text.splitlines() if line.startswith("|")] for text in (printed, capsys.readouterr().out)
    ]
    assert tables[0] == tables[1]  # of what was measured before, too
    train = {**report["cases"]["train"], "shares": None}  # where the profiler failed
    (tmp_path / "steps.json").write_text(json.dumps({**report, "cases": {**report["cases"], "train": train}}))
    steps.main(["--out", str(tmp_path), "--threads", "1", "--turns", "1", "--vocabulary", "60", "--quick", "--resume"])
    assert json.loads((tmp_path / "steps.json").read_text())["cases"]["train"] == train


def test_an_update_is_one() -> None:
    words, systems = small(60)
    for model in systems.values():
        before = [p.detach().clone() for p in model.parameters()]
        models.trainer(model, words)()
        assert model.training
        after = [(a, b) for a, b in zip(before, model.parameters(), strict=True) if b.grad is not None]
        assert len(after) > 10 and not any(torch.equal(a, b) for a, b in after)


def test_a_step_reads_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The incremental states are used: else each step would be the first."""
    words, systems = small(60)
    for model in systems.values():
        states = []
        forward = model.decoder.forward

        def seen(tokens: Any, encoder_out: Any, incremental_state: Any, forward: Any = forward, s: Any = states) -> Any:
            s.append((tokens.size(1), len(incremental_state)))
            return forward(tokens, encoder_out=encoder_out, incremental_state=incremental_state)

        monkeypatch.setattr(model.decoder, "forward", seen)
        models.stepper(model.eval(), words, 2, 2)()
        assert [length for length, _ in states] == list(range(1, models.STEPS + 1))
        assert [entries > 0 for _, entries in states] == [False] + [True] * (models.STEPS - 1)


def plain_torch(model: Any) -> Any:
    """The model, whose steps are not compiled."""
    model.decoder.register_forward_hook(lambda *_: None)
    return model


@contextlib.contextmanager
def noted_logits(model: Any) -> Iterator[list[torch.Tensor]]:
    """The logits of each step that the model's decoder makes within."""
    forward, seen = type(model.decoder).forward, []

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = forward(self, *args, **kwargs)
        seen.append(given[0][:, -1:].clone())
        return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.decoder), "forward", noted)
        yield seen


def test_a_step_as_a_cuda_graph_ends_as_the_steps_do() -> None:
    """Where there is a GPU it is recorded; each replay writes its logits where those of the recording lie."""
    words, systems = small(60)
    model = models.for_decoding(systems[models.SRU])
    last = []
    with noted_logits(model) as seen:
        for make in (models.stepper, models.graphed_stepper):
            torch.manual_seed(0)
            function = make(model, words, 2, 3)
            for _ in range(2):  # the second begins anew
                function()
                last.append(seen[-1].clone())
    for logits in last[1:]:
        torch.testing.assert_close(logits, last[0], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(timing.ON_GPU, reason="a graph that is replayed calls no forward, which is what is looked at")
@pytest.mark.parametrize("plain", [False, True])
def test_a_recorded_step_gives_what_the_steps_give(plain: bool) -> None:
    """All steps by one function that reads and writes the same tensors; where there is no GPU it isn't recorded."""
    words, systems = small(60)
    model = models.for_decoding(systems[models.SRU])
    model = plain_torch(model) if plain else model
    found = []
    for make in (models.stepper, models.graphed_stepper):
        torch.manual_seed(0)
        function = make(model, words, 2, 3)
        for _ in range(2):  # the second begins anew
            with noted_logits(model) as seen:
                function()
            found.append(seen)
    assert all(len(logits) == models.STEPS for logits in found)
    for logits in found[1:]:
        torch.testing.assert_close(torch.cat(logits), torch.cat(found[0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0][0], found[0][-1], atol=0.1)


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
    words, systems = small(60)
    functions = {
        "update": models.trainer(systems[models.SRU], words),
        "step": models.graphed_stepper(plain_torch(models.for_decoding(systems[models.SRU])), words, 2, 2),
        "update with packed sequences": models.trainer(systems[models.UNIT], words),
    }
    waited = {}
    for name, function in functions.items():
        with Waits() as noted:
            function()
        waited[name] = bool(noted.seen)
    assert waited == {"update": False, "step": False, "update with packed sequences": True}


class Sized(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(width, width))


@pytest.mark.parametrize("target, width", [(40_000, 200), (39_900, 200), (40_700, 200), (41_000, 204), (1, 32)])
def test_the_width_of_as_many_parameters(target: int, width: int) -> None:
    assert models.narrowed(target, 4, Sized).weight.shape == (width, width)


def test_on_a_gpu_fairseqs_models_are_of_widths_that_its_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ON_GPU", True)
    _, systems = models.systems(500)
    sru, lstm, transformer = (systems[name] for name in (models.SRU, models.LSTM, models.TRANSFORMER))
    assert transformer.encoder.layers[0].self_attn.head_dim % 8 == 0
    assert lstm.encoder.hidden_size % 8 == 0
    assert models.size(transformer) == pytest.approx(models.size(sru), rel=0.005)


def test_a_systems_size_is_that_of_what_it_learns() -> None:
    words, systems = small(60)
    for name, model in systems.items():
        model.train()
        models.trainer(model, words)()
        learnt = sum(p.numel() for p in model.parameters() if p.grad is not None)
        assert models.size(model) == learnt, name


@pytest.mark.slow
def test_the_systems_are_of_one_size() -> None:
    _, made = models.systems(8000)
    sizes = {name: models.size(model) for name, model in made.items()}
    for size in sizes.values():
        assert size == pytest.approx(sizes[models.SRU], rel=0.02), sizes


@pytest.mark.parametrize("on_gpu", [False, True])
def test_times_are_of_the_kind_of_their_operator(on_gpu: bool) -> None:
    """On a GPU the recurrence's time is its kernels': outside of autograd the profiler gives it to no operator."""
    events = [
        ("aten::mm", "CPU", 1, 8),
        ("Recurrence", "CPU", 2, 4),
        ("_DroppedBackward", "CPU", 5, 0),  # what is on a CPU alone
        ("aten::_efficient_attention_forward", "CPU", 3, 2),
        ("all", "CPU", 4, 0),
        ("sru_forward", "CUDA", 0, 6),
        ("ampere_sgemm", "CUDA", 0, 8),
    ]
    told = [
        Namespace(
            key=key,
            device_type=getattr(torch.autograd.DeviceType, device),
            self_cpu_time_total=on_cpu,
            self_device_time_total=there,
        )
        for key, device, on_cpu, there in events
        if on_gpu or device == "CPU"
    ]
    found = models.by_kind(told, on_gpu)
    expected = {"matrix products": 8, "attention and softmax": 2, "recurrence": 6, models.OTHER: 0}
    if not on_gpu:
        expected = {"matrix products": 1, "attention and softmax": 3, "recurrence": 2, "dropout": 5, models.OTHER: 4}
    total = sum(expected.values())
    assert {kind: share for kind, share in found.items() if share or kind == models.OTHER} == {
        kind: pytest.approx(took / total) for kind, took in expected.items()
    }


def test_without_a_profiler_steps_are_timed(monkeypatch, capsys):
    def fails(_: object) -> None:
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")

    monkeypatch.setattr(steps.made, "shares", fails)
    timing.going_on_without.cache_clear()
    assert steps.shares(fails) is None
    assert "going on without the profiler: CUPTI_ERROR_NOT_INITIALIZED" in capsys.readouterr().err
