"""The models as any module of torch: parts that are put into others, weights that are edited, pruned, traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from support.small_models import SRU_VARIANTS, VARIANTS, made, prefixes, sources
from torch import Tensor, nn
from torch.nn.utils import prune

from fairseq_sru.layers import linear as module_of_linear


def run(model: Any, dictionary: Any) -> Tensor:
    return model(sources(dictionary, [5, 3]), None, prefixes(dictionary, 2, 4))[0]


def test_one_encoder_serves_several_decoders(build, dictionary):
    """Also outputs that are made under no_grad, with which a decoder learns, and that are edited; all at once and step
    by step."""
    one, other = (build().eval() for _ in range(2))
    other.load_state_dict({**other.state_dict(), **{f"encoder.{k}": v for k, v in one.encoder.state_dict().items()}})
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 4)

    def last(model: Any, encoded: dict[str, Any]) -> Tensor:
        """The last step's logits, after the three before."""
        state: dict[str, Any] = {}
        return [model.decoder(target[:, : n + 1], encoded, incremental_state=state)[0][:, -1] for n in range(4)][-1]

    expected = [run(model, dictionary) for model in (one, other)]
    with torch.no_grad():
        encoded = one.encoder(src, None)
        edited = {**encoded, "encoder_out": [2 * encoded["encoder_out"][0]]}
        changed = one.decoder(target, edited)[0]
        assert not torch.allclose(changed, expected[0])
        for result, logits in ((encoded, expected[0]), (edited, changed)):
            torch.testing.assert_close(one.decoder(target, result)[0], logits)
            torch.testing.assert_close(last(one, result), logits[:, -1])
        torch.testing.assert_close(last(other, encoded), expected[1][:, -1])
        for weight in one.decoder.parameters():
            weight.data.mul_(1.5)  # as an optimizer writes
        torch.testing.assert_close(last(one, encoded), run(one, dictionary)[:, -1])
    last(one, encoded).square().sum().backward()
    assert all(weight.grad is not None for weight in one.decoder.parameters())


def test_modules_with_a_state_of_their_own_are_reordered_with_the_decoder(build, dictionary):
    """A subclass of the decoder has them."""
    decoder, state, order = build().eval().decoder, {}, torch.tensor([1, 1, 0])
    decoder.reorder_incremental_state_scripting(state, order)
    keys = torch.randn(3, 2, 4, 8)
    decoder.mine = MultiheadAttention(16, 2, self_attention=True)
    decoder.eval()  # as fairseq calls it before each batch
    decoder.mine._set_input_buffer(state, {"prev_key": keys, "prev_value": keys})
    decoder.reorder_incremental_state_scripting(state, order)
    assert torch.equal(decoder.mine._get_input_buffer(state)["prev_key"], keys[order])


@torch.no_grad()
def test_what_a_subclass_adds_to_the_encoders_result_is_reordered(build, dictionary):
    model = build().eval()
    encoded = model.encoder(sources(dictionary, [5, 3, 4]), None)
    second, rows = torch.randn(3, 7), torch.tensor([2, 2, 0, 0])  # a beam of 2; a sentence is done
    found = model.encoder.reorder_encoder_out({**encoded, "second": [second]}, rows)
    assert torch.equal(found["second"][0], second[[2, 0]])


@pytest.mark.parametrize("name", ["sru, tied", "sru_lm, tied", "transformer_sru, tied"])
def test_an_embedding_that_is_edited_is_the_output_layer_too(name, dictionary, monkeypatch):
    """After make_generation_fast_, which may keep it twice: as averages of weights and noise are made; its gradient has
    the output layer's share."""
    monkeypatch.setattr(module_of_linear, "_ONEDNN", hasattr(torch.ops.mkldnn, "_linear_pointwise"))
    kind, options = VARIANTS[name]
    model = made(kind, dictionary, **options).float().eval()
    features = torch.randn(2, 4, model.decoder.embed_tokens.embedding_dim)
    model.make_generation_fast_(need_attn=False)
    weight = model.decoder.embed_tokens.weight
    with torch.no_grad():
        if model.decoder.tied is not None:
            model.decoder.tied.zero_()
            assert not model.decoder.output_layer(features).any()
        weight.mul_(-3)
        torch.testing.assert_close(model.decoder.output_layer(features), features @ weight.t())
    model.decoder.output_layer(features).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum((0, 1)).expand_as(weight))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("variant", ["defaults", "tied", "convolution"])
def test_pruned_weights_are_trained(variant, autocast, build, dictionary):
    """prune computes a weight before each call of its module, so each module has to be called; as weight_norm does."""
    model = build(**SRU_VARIANTS[variant]).float().train()
    pruned = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    for module in pruned:
        prune.l1_unstructured(module, "weight", 0.3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = run(model, dictionary).float().square().mean()
        loss.backward()
        optimizer.step()
    for module in pruned:
        assert (module.weight_orig.grad[module.weight_mask == 0] == 0).all()
        assert module.weight_orig.grad.any()


class Logits(nn.Module):
    """The model's: the attention's weights are in a dictionary that a trace can't have."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: Any) -> Tensor:
        return self.model(*given)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["sru, defaults", "sru, convolution", "sru_lm, convolution", "transformer_sru, ssru"])
def test_a_traced_model_is_saved_and_loaded(name, dictionary, tmp_path):
    kind, options = VARIANTS[name]
    model = Logits(made(kind, dictionary, **options).float().eval())
    source, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 4)
    given = (target,) if kind == "sru_lm" else (source, torch.tensor([5, 3]), target)
    with torch.no_grad():
        torch.jit.trace(model, given).save(tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
        for lengths in ([5, 3], [9, 6], [3, 2]):
            source, target = sources(dictionary, lengths), prefixes(dictionary, 2, lengths[0] - 1)
            given = (target,) if kind == "sru_lm" else (source, torch.tensor(lengths), target)
            torch.testing.assert_close(loaded(*given), model(*given))
