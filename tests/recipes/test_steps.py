"""The report on steps of training and decoding: its systems, its table and its file. No time decides."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import steps
import torch
from benchmarks import models

SIZES = {f"{side}_embed_dim": 32 for side in ("encoder", "decoder")}


def small(vocabulary: int) -> tuple[Any, dict[str, Any]]:
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
def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(steps, "systems", small)
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
    assert (
        report["cases"]["train"]["shares"]["dropout"]
        > 0
        == report["cases"]["step, batch 2, beam 2"]["shares"]["dropout"]
    )
    printed = capsys.readouterr().out
    for case in report["cases"]:
        assert printed.count(f"| {case} ") == 2


def test_an_update_is_one() -> None:
    words, systems = small(60)
    for model in systems.values():
        before = [p.detach().clone() for p in model.parameters()]
        models.trainer(model, words)()
        assert model.training
        assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if b.grad is not None)


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


class Sized(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(width, width))


@pytest.mark.parametrize("target, width", [(40_000, 200), (39_900, 200), (40_700, 200), (41_000, 204), (1, 32)])
def test_the_width_of_as_many_parameters(target: int, width: int) -> None:
    assert models.narrowed(target, 4, Sized).weight.shape == (width, width)


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
