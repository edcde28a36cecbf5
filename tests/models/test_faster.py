"""Methods of fairseq that the plugin replaces: Adam's step, and a training step under ``--cpu --amp``. Dropout, losses
and beam search have tests of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from fairseq.optim.adam import Adam
from support.commands import run_cli

from fairseq_sru.models import faster

THEIRS = Adam.step.__wrapped__


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_updates_all_weights_at_once_as_fairseq_does(
    weight_decay: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some weights get no gradient at times. A GPU's way runs on any device."""
    start = [torch.randn(7, 5), torch.randn(300), torch.randn(4)]
    updates: list[int] = []
    owner, name = (torch, "_fused_adamw_") if device == "cpu" else (faster, "adamw")
    update = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **settings: updates.append(1) or update(*args, **settings))
    monkeypatch.setattr(torch.Tensor, "is_cpu", device == "cpu")
    results = []
    for step in (THEIRS, Adam.step):
        weights = [torch.nn.Parameter(w.clone()) for w in start]
        adam = Adam(weights, lr=0.01, betas=(0.9, 0.98), eps=1e-4, weight_decay=weight_decay)
        draws = torch.Generator().manual_seed(1)
        for n in range(20):
            for number, weight in enumerate(weights):
                grad = 1e-3 * torch.randn(weight.shape, generator=draws)
                weight.grad = None if (n + number) % 3 == 0 else grad
            step(adam)
        results.append((weights, adam.state_dict()["state"]))
        assert bool(updates) == (step is not THEIRS)
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-9)
    assert (results[0][0][1] - start[1]).abs().max() > 0.05


@pytest.mark.parametrize("options", [{"amsgrad": True}, {}])
def test_adam_of_other_kinds_is_fairseqs(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster, "_update", lambda *_: pytest.fail("not for these"))
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float32 if options else torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    Adam([weight], lr=0.1, **options).step()
    torch.testing.assert_close(weight.detach().float(), torch.full((3,), 0.9), rtol=0.01, atol=0)


def test_adam_refuses_a_state_of_weights_of_other_shapes() -> None:
    """torch's kernels would read and write beyond it."""
    before, after = (torch.nn.Parameter(torch.randn(rows, 4)) for rows in (3, 5))
    before.grad, after.grad = torch.ones_like(before), torch.ones_like(after)
    first, later = Adam([before]), Adam([after])
    first.step()
    later.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(5, 4\).*--reset-optimizer"):
        later.step()


FEATURES = """
import fairseq_sru
from fairseq.criterions import FairseqCriterion, register_criterion

@register_criterion("features")
class Features(FairseqCriterion):
    def forward(self, model, sample, reduce=True):
        loss = model(**sample["net_input"], features_only=True)[0].float().square().sum()
        return loss, sample["ntokens"], {"loss": loss.data, "ntokens": sample["ntokens"], "sample_size": 1}

    @staticmethod
    def reduce_metrics(logging_outputs):
        pass

    @staticmethod
    def logging_outputs_can_be_summed():
        return True
"""


def test_a_criterion_may_leave_the_output_layer_out(toy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(FEATURES)
    words = ["--user-dir", "mine", "--arch", "sru", "--criterion", "features", "--share-all-embeddings", "--amp"]
    words += ["--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--cpu", "--optimizer", "adam", "--max-tokens", 400]
    words += ["--max-update", 2, "--disable-validation", "--save-dir", "save"]
    run_cli("train", toy_data, *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    state = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=False)["last_optimizer_state"]["state"]
    assert all(torch.isfinite(moments["exp_avg_sq"]).all() for moments in state.values()) and state
