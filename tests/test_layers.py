"""The layers against the equations, and as the published README uses them."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from test_recurrence import paper

from fairseq_sru import SRU, SRUCell


def expected_cell(cell: SRUCell, x, c0=None, padding_mask=None):
    """One layer in float64: a product per step, then the equations."""
    weight = cell.weight.detach().double().view(cell.planes, cell.output_size, cell.input_size)
    u = torch.einsum("lbi,kdi->lbkd", x.double(), weight)
    skip = x if cell.highway and cell.planes == 3 else None
    return paper(u, skip, cell.bias, c0, cell.activation, cell.bidirectional, None, padding_mask)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("sizes", [(6, 6), (5, 4), (8, 4)])
@pytest.mark.parametrize("use_tanh, use_relu", [(1, 0), (0, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("highway", [True, False])
def test_cell_equals_the_equations(bidirectional, sizes, use_tanh, use_relu, highway):
    torch.manual_seed(0)
    cell = SRUCell(*sizes, use_tanh=use_tanh, use_relu=use_relu, bidirectional=bidirectional, highway=highway).double()
    torch.nn.init.normal_(cell.bias)
    x = torch.randn(7, 3, sizes[0], dtype=torch.float64)
    c0 = torch.randn(3, cell.output_size, dtype=torch.float64)
    mask = torch.rand(7, 3) < 0.3
    for got, expected in zip(cell(x, c0, mask), expected_cell(cell, x, c0, mask), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_use_as_in_the_published_readme():
    x = torch.randn(20, 32, 128)
    rnn = SRU(128, 64, num_layers=2, dropout=0.0, rnn_dropout=0.0, use_tanh=1, use_relu=0, bidirectional=False)
    output_states, c_states = rnn(x)
    assert output_states.shape == (20, 32, 64)
    assert c_states.shape == (2, 32, 64)
    h, expected = x, []
    for layer in rnn.layers:
        h, c = expected_cell(layer, h.float())
        expected.append(c)
    torch.testing.assert_close(output_states.double(), h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(c_states.double(), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_bidirectional_shapes_and_directions():
    rnn = SRU(10, 7, num_layers=3, bidirectional=True).double()
    x = torch.randn(9, 4, 10, dtype=torch.float64)
    h, c = rnn(x)
    assert h.shape == (9, 4, 14)
    assert c.shape == (3, 4, 14)
    one = SRU(10, 7, num_layers=1, bidirectional=True).double()
    changed = x.clone()
    changed[4] += 1.0
    difference = (one(x)[0] - one(changed)[0]).abs().amax((1, 2))
    forward, backward = (one(x)[0] - one(changed)[0]).abs().amax(1).split(7, dim=-1)
    assert not forward[:4].any()
    assert not backward[5:].any()
    assert difference.all()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_two_dimensional_input_is_a_single_step(bidirectional):
    rnn = SRU(6, 6, bidirectional=bidirectional)
    x, c0 = torch.randn(3, 6), torch.randn(2, 3, rnn.output_size)
    h, c = rnn(x, c0)
    h3, c3 = rnn(x[None], c0)
    torch.testing.assert_close(h, h3[0])
    torch.testing.assert_close(c, c3)


def test_steps_in_turn_equal_the_sequence():
    rnn = SRU(6, 8, num_layers=3).double()
    x = torch.randn(12, 3, 6, dtype=torch.float64)
    full, c_full = rnn(x)
    c, steps = None, []
    for x_t in x:
        h, c = rnn(x_t, c)
        steps.append(h)
    torch.testing.assert_close(torch.stack(steps), full)
    torch.testing.assert_close(c, c_full)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_padded_batch_equals_its_sequences_alone(side, bidirectional):
    rnn = SRU(5, 4, num_layers=3, bidirectional=bidirectional).double()
    lengths = [7, 1, 4]
    x, mask = torch.randn(7, 3, 5, dtype=torch.float64), torch.ones(7, 3, dtype=torch.bool)
    spans = [slice(7 - n, 7) if side == "left" else slice(0, n) for n in lengths]
    for b, span in enumerate(spans):
        mask[span, b] = False
    h, c = rnn(x, padding_mask=mask)
    assert not h[mask].any()
    for b, span in enumerate(spans):
        alone, c_alone = rnn(x[span, b : b + 1])
        torch.testing.assert_close(h[span, b : b + 1], alone)
        torch.testing.assert_close(c[:, b : b + 1], c_alone)


def test_gradients_of_the_layer():
    for highway, bidirectional in itertools.product([True, False], repeat=2):
        cell = SRUCell(3, 4, bidirectional=bidirectional, highway=highway).double()
        x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
        parameters = dict(cell.named_parameters())

        def run(x, *values, cell=cell, names=tuple(parameters)):
            return torch.func.functional_call(cell, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_dropout_draws_once_a_sequence(monkeypatch):
    torch.manual_seed(0)
    cell = SRUCell(50, 50, dropout=0.5, highway=False)
    h, _ = cell(torch.randn(30, 4, 50))
    dropped = (h == 0).float()
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert 0.3 < dropped.mean() < 0.7
    assert cell.eval()(torch.randn(30, 4, 50))[0].ne(0).all()

    cell, seen = SRUCell(50, 50, rnn_dropout=0.5), {}
    monkeypatch.setattr("fairseq_sru.layers.linear", lambda x, w: seen.setdefault("input", x) @ w.t())
    cell(torch.ones(30, 4, 50))
    assert set(seen["input"].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(seen["input"], seen["input"][:1].expand(30, 4, 50))


def test_dropout_only_between_the_layers():
    rnn = SRU(4, 4, num_layers=3, dropout=0.3, rnn_dropout=0.1)
    assert [layer.dropout for layer in rnn.layers] == [0.3, 0.3, 0.0]
    assert [layer.rnn_dropout for layer in rnn.layers] == [0.1] * 3


def test_initial_weights():
    cell = SRUCell(300, 300)
    bound = math.sqrt(3 / 300)
    assert cell.weight.abs().max() <= bound
    assert cell.weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not cell.bias.any()
    before = copy.deepcopy(cell.weight)
    cell.reset_parameters()
    assert not torch.equal(before, cell.weight)


def test_planes_follow_the_sizes():
    assert SRUCell(8, 8).weight.shape == (24, 8)  # the input is the skip term
    assert SRUCell(8, 4, bidirectional=True).weight.shape == (24, 8)
    assert SRUCell(8, 6).weight.shape == (24, 8)  # 4 planes of 6
    assert SRUCell(8, 6, highway=False).weight.shape == (18, 8)


def test_works_under_autocast():
    rnn = SRU(8, 8, num_layers=2)
    x = torch.randn(5, 2, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, c = rnn(x)
        h.float().sum().backward()
    assert h.dtype == torch.bfloat16
    assert c.dtype == torch.float32
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(h.float(), rnn(x)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 4), "input_size must be an integer of at least 1; got 0"),
        ((4, -1), "hidden_size must be an integer of at least 1; got -1"),
        ((4, 4, 0), "num_layers must be an integer of at least 1; got 0"),
        ((4, 4, 1, 0.0, 1.0), r"rnn_dropout must be a probability in \[0, 1\); got 1.0"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SRU(*arguments)


def test_bad_shapes_are_named():
    rnn = SRU(6, 4)
    with pytest.raises(ValueError, match=r"x must have shape \(length, batch, 6\).*got \(3, 2, 5\)"):
        rnn(torch.zeros(3, 2, 5))
    with pytest.raises(ValueError, match=r"c0 must have shape \(2, batch, 4\); got \(3, 2, 4\)"):
        rnn(torch.zeros(3, 2, 6), torch.zeros(3, 2, 4))
