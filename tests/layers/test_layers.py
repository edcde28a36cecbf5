"""The layers against the equations, and as the published README uses them."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from support.processes import forget, python
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from fairseq_sru import SRU, SRUCell
from fairseq_sru.layers.linear import SMALL
from fairseq_sru.recurrence.native import Native
from fairseq_sru.recurrence.reference import Torch

G = {"identity": lambda c: c, "tanh": torch.tanh, "relu": lambda c: c.clamp(min=0.0)}


def expected_cell(cell: SRUCell, x, c0=None, padding_mask=None):
    """One layer in float64, a step at a time, as the docstring of sru_recurrence has it."""
    length, batch, size = x.shape
    width = cell.output_size
    x = x.double()
    inputs = x
    if cell.layer_norm is not None:
        scale, shift = cell.layer_norm.weight.double(), cell.layer_norm.bias.double()
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        inputs = (x - mean) / (variance + cell.layer_norm.eps).sqrt() * scale + shift
    candidate, forget, *more = (inputs @ w.t() for w in cell.weight.double().split(width))
    bias = cell.bias.double()
    v = torch.zeros_like(bias) if cell.v1 else cell.weight_c.double()
    skip = torch.zeros_like(candidate)
    if cell.highway:
        alpha = math.sqrt(1 + 2 * math.exp(cell.highway_bias)) if cell.rescale else 1.0
        skip = alpha * x if size == width else more[1]
    h, c_n = torch.zeros(2, length, batch, width, dtype=torch.float64)[0], []
    half = width // 2 if cell.bidirectional else width
    for first in range(0, width, half):
        d = slice(first, first + half)
        c = torch.zeros(batch, half, dtype=torch.float64) if c0 is None else c0[:, d].double()
        for t in range(length) if first == 0 else range(length - 1, -1, -1):
            f = 1 / (1 + torch.exp(-(forget[t, :, d] + v[0, d] * c + bias[0, d])))
            r = 1 / (1 + torch.exp(-(more[0][t, :, d] + v[1, d] * c + bias[1, d]))) if cell.reset_gate else 1.0
            c_t = f * c + (1 - f) * candidate[t, :, d]
            h_t = r * G[cell.activation](c_t) + (1 - r) * skip[t, :, d]
            real = torch.ones(batch, 1) if padding_mask is None else ~padding_mask[t, :, None]
            c = torch.where(real.bool(), c_t, c)
            h[t, :, d] = torch.where(real.bool(), h_t, 0.0)
        c_n.append(c)
    return h, torch.cat(c_n, -1)


def randomise(module):
    """Biases and layer norms have values at the start that would hide a mistake."""
    for name, parameter in module.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter)
    return module


def close(got, expected, tolerance=1e-10):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def near(got, expected, tolerance):
    """Compare by the greatest number of each tensor, for sums of float32 and narrower."""
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0.0, atol=tolerance * b.abs().max().item())


def gradients(module, run, *tensors):
    """Outputs of ``run(*tensors)`` and the gradients of these and of the module's parameters."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    h, c = run(*tensors)
    loss = (h.double() * torch.linspace(1, 2, h.size(-1))).square().sum() + (c.double() * 3).sum()
    return [h, c, *torch.autograd.grad(loss, [*tensors, *module.parameters()])]


CELLS = {
    "v1": {},
    "identity": {"use_tanh": 0},
    "relu": {"use_relu": 1},
    "relu goes before tanh": {"use_tanh": 1, "use_relu": 1},
    "no highway": {"highway": False},
    "layer_norm": {"layer_norm": True},
    "rescale": {"rescale": True, "highway_bias": -1.0},
    "v2": {"v1": False, "use_tanh": 0},
    "v2 tanh": {"v1": False, "highway_bias": -2.0},
    "v2 plain": {"v1": False, "use_tanh": 0, "rescale": False},
    "v2 layer_norm": {"v1": False, "use_relu": 1, "layer_norm": True},
    "v2 no highway": {"v1": False, "highway": False, "rescale": True},
    "ssru": {"reset_gate": False, "use_relu": 1},
    "ssru v2": {"reset_gate": False, "use_relu": 1, "v1": False, "rescale": True},
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("sizes", [(6, 6), (5, 4), (8, 4)])
@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS)
def test_cell_equals_the_equations(bidirectional, sizes, options):
    cell = randomise(SRUCell(*sizes, bidirectional=bidirectional, **options)).double()
    x = torch.randn(7, 3, sizes[0], dtype=torch.float64)
    c0 = torch.randn(3, cell.output_size, dtype=torch.float64)
    mask = torch.rand(7, 3) < 0.3

    expected = gradients(cell, lambda x, c0: expected_cell(cell, x, c0, mask), x, c0)
    for backend in ("native", "torch", "reference"):
        cell.backend = backend
        close(gradients(cell, lambda x, c0: cell(x, c0, mask), x, c0), expected)
        with torch.no_grad():
            close(cell(x, c0, mask), expected[:2])
    close(cell(x), expected_cell(cell, x))


@pytest.mark.parametrize("options", [{}, {"v1": False, "bidirectional": True}])
def test_a_layer_of_usual_size(options):
    """float32, and products that oneDNN computes, where the processor isn't Intel's."""
    rnn = SRU(96, 64, **options)
    x, c0 = torch.randn(13, 5, 96), torch.randn(2, 5, rnn.output_size)
    assert x.numel() * 3 * 64 > SMALL
    got = gradients(rnn, rnn, x, c0)
    near(got, gradients(rnn.double(), rnn, x.double(), c0.double()), 1e-5)


def test_use_as_in_the_published_readme():
    x = torch.randn(20, 32, 128)
    rnn = SRU(128, 64, num_layers=2, dropout=0.0, rnn_dropout=0.0, use_tanh=1, use_relu=0, bidirectional=False)
    output_states, c_states = rnn(x)
    assert output_states.shape == (20, 32, 64)
    assert c_states.shape == (2, 32, 64)
    h, expected = x, []
    for layer in rnn.layers:
        h, c = expected_cell(layer, h)
        expected.append(c)
    close((output_states.double(), c_states.double()), (h, torch.stack(expected)), 1e-4)


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
def test_a_two_dimensional_input_of_a_cell_is_a_single_step(bidirectional):
    cell = SRUCell(6, 6, bidirectional=bidirectional)
    x, c0, mask = torch.randn(3, 6), torch.randn(3, cell.output_size), torch.tensor([False, True, False])
    for given, given3 in (((x,), (x[None],)), ((x, c0), (x[None], c0)), ((x, c0, mask), (x[None], c0, mask[None]))):
        (h, c), (h3, c3) = cell(*given), cell(*given3)
        close((h, c), (h3[0], c3), 0.0)
    close((h[1], c[1]), (torch.zeros_like(h[1]), c0[1]), 0.0)


def test_steps_in_turn_equal_the_sequence():
    rnn = SRU(6, 8, num_layers=3).double()
    x = torch.randn(12, 3, 6, dtype=torch.float64)
    full, c_full = rnn(x)
    c, steps = None, []
    for x_t in x:
        h, c = rnn(x_t[None], c)
        steps.append(h)
    torch.testing.assert_close(torch.cat(steps), full)
    torch.testing.assert_close(c, c_full)


LENGTHS = [4, 7, 1, 7, 0]


def padded():
    """x ``(7, 5, 5)`` with NaN at padding, which must never be read, and the mask."""
    x = torch.randn(7, 5, 5, dtype=torch.float64)
    mask = torch.arange(7)[:, None] >= torch.tensor(LENGTHS)
    x[mask] = float("nan")
    return x, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_padded_batch_equals_its_sequences_alone(side, bidirectional):
    rnn = SRU(5, 4, num_layers=3, bidirectional=bidirectional).double()
    x, mask = padded()
    if side == "left":
        x, mask = x.flip(0), mask.flip(0)
    c0 = torch.randn(3, 5, rnn.output_size, dtype=torch.float64)
    h, c = rnn(x, c0, padding_mask=mask)
    assert not h[mask].any()
    for b, n in enumerate(LENGTHS):
        span = slice(7 - n, 7) if side == "left" else slice(0, n)
        close((h[span, b : b + 1], c[:, b : b + 1]), rnn(x[span, b : b + 1], c0[:, b : b + 1]))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"v1": False, "layer_norm": True}])
def test_lengths_are_a_mask(options):
    rnn = SRU(5, 4, num_layers=3, **options).double()
    x, mask = padded()
    c0 = torch.randn(3, 5, rnn.output_size, dtype=torch.float64)
    expected = rnn(x, c0, padding_mask=mask)
    for lengths in (LENGTHS, tuple(LENGTHS), torch.tensor(LENGTHS), torch.tensor(LENGTHS, dtype=torch.int32)):
        close(rnn(x, c0, lengths), expected, 0.0)
    h, c = rnn(x, c0, [0] * 5)
    assert not h.any()
    close([c], [c0], 0.0)
    close(rnn(x.nan_to_num(), c0, [7] * 5), rnn(x.nan_to_num(), c0), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
@pytest.mark.parametrize(
    "options",
    [{}, {"highway": False, "bidirectional": True}, {"v1": False, "layer_norm": True, "dropout": 0.5}],
    ids=["v1", "bidirectional", "v2"],
)
def test_what_padding_holds_reaches_no_gradient(options, backend, dtype):
    """Not even NaN, of which any product is NaN; neither in second derivatives."""
    rnn = SRU(5, 4, backend=backend, dtype=dtype, **options)
    clean, mask = padded()
    clean = clean.to(dtype)
    results = []
    for garbage in (0.0, float("nan"), float("inf")):
        x = clean.masked_fill(mask[..., None], garbage).requires_grad_()
        c0 = torch.ones(2, 5, rnn.output_size, dtype=dtype, requires_grad=True)
        leaves = [x, c0, *rnn.parameters()]
        for create_graph in (False, True):
            torch.manual_seed(0)
            h, c = rnn(x, c0, padding_mask=mask)
            grads = torch.autograd.grad(h.square().sum() + c.sum(), leaves, create_graph=create_graph)
            assert not grads[0][mask].any()
            results.append([h, c, *grads])
        wide = dtype != torch.float16  # in which torch's own second derivatives of layer_norm overflow at 0
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves) if wide else [])
    for first, second, third in zip(*(results[i : i + 3] for i in (0, 3, 6)), strict=True):
        for expected, *got in zip(first, second, third, strict=True):
            assert expected.isfinite().all()
            assert all(torch.equal(g, expected) for g in got)


@pytest.mark.parametrize("options", [{}, {"v1": False, "bidirectional": True}])
def test_batch_first_is_transposed(options):
    rnn = SRU(5, 4, **options).double()
    turned = SRU(5, 4, batch_first=True, **options).double()
    turned.load_state_dict(rnn.state_dict())
    x, mask = padded()
    c0 = torch.randn(2, 5, rnn.output_size, dtype=torch.float64)
    for given, given_turned in (
        ({}, {}),
        ({"lengths": LENGTHS}, {"lengths": LENGTHS}),
        ({"padding_mask": mask}, {"padding_mask": mask.t()}),
    ):
        values = x if given else x.nan_to_num()
        h, c = rnn(values, c0, **given)
        h_turned, c_turned = turned(values.transpose(0, 1).contiguous(), c0, **given_turned)
        close((h_turned, c_turned), (h.transpose(0, 1), c))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_c0", [False, True])
def test_packed_sequences_are_as_with_lstm(bidirectional, enforce_sorted, batch_first, with_c0):
    lengths = [7, 7, 4, 1] if enforce_sorted else [4, 7, 1, 7]
    sequences = [torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in lengths]
    packed = pack_sequence(sequences, enforce_sorted)
    rnn = SRU(5, 4, num_layers=2, bidirectional=bidirectional, batch_first=batch_first).double()
    c0 = torch.randn(2, 4, rnn.output_size, dtype=torch.float64) if with_c0 else None
    h, c = rnn(packed, c0)
    lstm = torch.nn.LSTM(5, 4, 2, bidirectional=bidirectional, batch_first=batch_first).double()(packed)[0]
    assert isinstance(h, PackedSequence)
    assert h.data.shape == lstm.data.shape
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        got, expected = getattr(h, name), getattr(lstm, name)
        assert (got is None and expected is None) or torch.equal(got, expected)
    alone = SRU(5, 4, num_layers=2, bidirectional=bidirectional).double()
    alone.load_state_dict(rnn.state_dict())
    results = [alone(x[:, None], None if c0 is None else c0[:, b : b + 1]) for b, x in enumerate(sequences)]
    close([h.data], [pack_sequence([h_b[:, 0] for h_b, _ in results], enforce_sorted).data])
    close([c], [torch.cat([c_b for _, c_b in results], 1)])
    of_packed = torch.autograd.grad(h.data.square().sum() + c.sum(), sequences)
    of_alone = torch.autograd.grad(sum(h_b.square().sum() + c_b.sum() for h_b, c_b in results), sequences)
    close(of_packed, of_alone)


@pytest.mark.parametrize("options", [{}, {"v1": False, "bidirectional": True}])
def test_no_steps_and_no_sequences(options):
    rnn = SRU(5, 4, **options)
    c0 = torch.randn(2, 3, rnn.output_size, requires_grad=True)
    h, c = rnn(torch.zeros(0, 3, 5), c0)
    assert h.shape == (0, 3, rnn.output_size)
    close([c], [c0], 0.0)
    c.sum().backward()
    close([c0.grad], [torch.ones_like(c0)], 0.0)
    for x, lengths in ((torch.zeros(6, 0, 5), None), (torch.zeros(6, 0, 5), torch.zeros(0, dtype=torch.long))):
        h, c = rnn(x, lengths=lengths)
        assert h.shape == (6, 0, rnn.output_size)
        assert c.shape == (2, 0, rnn.output_size)
    assert SRUCell(5, 4, **options)(torch.zeros(0, 5))[0].shape == (0, rnn.output_size)


def test_gradients_of_the_layer():
    for highway, bidirectional in itertools.product([True, False], repeat=2):
        cell = SRUCell(3, 4, bidirectional=bidirectional, highway=highway).double()
        x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
        parameters = dict(cell.named_parameters())

        def run(x, *values, cell=cell, names=tuple(parameters)):
            return torch.func.functional_call(cell, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_dropout_draws_once_a_sequence(monkeypatch):
    cell = SRUCell(50, 50, dropout=0.5, highway=False)
    h, _ = cell(torch.randn(30, 4, 50))
    dropped = (h == 0).float()
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert 0.3 < dropped.mean() < 0.7
    assert cell.eval()(torch.randn(30, 4, 50))[0].ne(0).all()

    cell, seen = SRUCell(50, 50, rnn_dropout=0.5), {}
    monkeypatch.setattr("fairseq_sru.layers.cell.linear", lambda x, w: seen.setdefault("input", x) @ w.t())
    cell(torch.ones(30, 4, 50))
    assert set(seen["input"].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(seen["input"], seen["input"][:1].expand(30, 4, 50))


def test_dropout_only_between_the_layers():
    rnn = SRU(4, 4, num_layers=3, dropout=0.3, rnn_dropout=0.1)
    assert [layer.dropout for layer in rnn.layers] == [0.3, 0.3, 0.0]
    assert [layer.rnn_dropout for layer in rnn.layers] == [0.1] * 3
    rnn.dropout, rnn.rnn_dropout = 0.5, 0.2
    assert [layer.dropout for layer in rnn.layers] == [0.5, 0.5, 0.0] and rnn.dropout == 0.5
    assert [layer.rnn_dropout for layer in rnn.layers] == [0.2] * 3 and rnn.rnn_dropout == 0.2
    for module, name in ((rnn, "dropout"), (rnn.layers[0], "dropout"), (rnn.layers[0], "rnn_dropout")):
        with pytest.raises(ValueError, match=f"^{name} must be a probability .*; got 1$"):
            setattr(module, name, 1)


def test_layers_may_be_dropped():
    rnn, x = SRU(4, 4, num_layers=3, dropout=0.5), torch.randn(2, 5, 4)
    rnn.layers = rnn.layers[:1]
    rnn.dropout = 0.3
    close(rnn(x), [t if i == 0 else t[None] for i, t in enumerate(rnn.layers[0](x))], 0.0)


def test_initial_weights():
    cell = SRUCell(300, 300)
    bound = math.sqrt(3 / 300)
    assert cell.weight.abs().max() <= bound
    assert cell.weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not cell.bias.any()
    before = copy.deepcopy(cell.weight)
    cell.reset_parameters()
    assert not torch.equal(before, cell.weight)


@pytest.mark.parametrize("options", [{}, {"v1": False, "layer_norm": True, "bidirectional": True}])
def test_works_under_autocast(options):
    rnn = SRU(8, 8, **options)
    x, c0 = torch.randn(5, 2, 8), torch.randn(2, 2, rnn.output_size)

    def autocast(x, c0):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return rnn(x, c0)

    got, expected = gradients(rnn, autocast, x, c0), gradients(rnn, rnn, x, c0)
    assert got[0].dtype == torch.bfloat16
    assert {t.dtype for t in got[1:]} == {torch.float32}
    near(got, expected, 0.03)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.004), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("options", [{}, {"v1": False, "layer_norm": True, "bidirectional": True}])
def test_narrow_layers_keep_a_float32_state(dtype, tolerance, options):
    rnn = SRU(8, 8, **options).to(dtype)
    x, c0 = torch.randn(9, 3, 8, dtype=dtype), torch.randn(2, 3, rnn.output_size)
    got = gradients(rnn, rnn, x, c0)
    assert got[0].dtype == dtype
    assert got[1].dtype == got[3].dtype == torch.float32  # c, and the gradient of c0
    assert {t.dtype for t in (got[2], *got[4:])} == {dtype}
    wide = rnn.double()
    near(got, gradients(wide, wide, x.double(), c0.double()), tolerance)
    h, c = wide.to(dtype)(x, lengths=[9, 4, 0])
    assert (h.dtype, c.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("options", [{}, {"v1": False, "layer_norm": True, "bidirectional": True}])
@pytest.mark.parametrize("through", ["state_dict", "file", "pickle", "deepcopy"])
def test_copies_compute_the_same(options, through):
    rnn = randomise(SRU(5, 4, **options))
    x = torch.randn(3, 2, 5)
    expected = rnn(x)
    if through == "deepcopy":
        other = copy.deepcopy(rnn)
    elif through == "pickle":
        other = pickle.loads(pickle.dumps(rnn))
    else:
        state = rnn.state_dict()
        if through == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        other = SRU(5, 4, **options)
        assert not torch.equal(other(x)[0], expected[0])
        other.load_state_dict(state)
    close(other(x), expected, 0.0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    close(rnn(x), expected, 0.0)


def test_the_names_of_the_weights():
    """Checkpoints hold them."""
    names = [f"layers.{i}.{name}" for i in range(2) for name in ("weight", "bias")]
    assert list(SRU(5, 4).state_dict()) == names
    everything = {"weight", "bias", "weight_c", "layer_norm.weight", "layer_norm.bias"}
    assert set(SRUCell(5, 4, v1=False, layer_norm=True).state_dict()) == everything
    assert {n: tuple(t.shape) for n, t in SRUCell(5, 4, reset_gate=False).state_dict().items()} == {
        "weight": (8, 5),
        "bias": (1, 4),
    }


@pytest.mark.parametrize("options", [{}, {"v1": False, "bidirectional": True, "layer_norm": True}])
def test_second_derivatives(options):
    rnn = randomise(SRU(3, 2, backend="native", **options)).double()
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(2, 2, rnn.output_size, dtype=torch.float64, requires_grad=True)
    weight = rnn.layers[0].weight.detach().requires_grad_()

    def run(x, c0, weight):
        return torch.func.functional_call(rnn, {"layers.0.weight": weight}, (x, c0, [3, 2]))

    assert torch.autograd.gradgradcheck(run, (x, c0, weight), fast_mode=True)


# ---------------------------------------------------------------- torch.compile, torch.export, torch.jit

KINDS = {
    "v1": ({}, {}),
    "bidirectional": ({"bidirectional": True}, {"lengths": torch.tensor([5, 2, 0])}),
    "v2": ({"v1": False, "layer_norm": True}, {"lengths": [5, 2, 0]}),
    "mask": ({"highway": False, "batch_first": True}, {"padding_mask": torch.ones(5, 3).tril(-3).bool().t()}),
}


def compiled(rnn, **options):
    torch._dynamo.reset()
    return torch.compile(rnn, fullgraph=True, **options)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options, given", KINDS.values(), ids=KINDS)
def test_compiles_as_one_graph(options, given, backend):
    rnn = SRU(6, 4, **options)
    x, c0 = torch.randn(5, 3, 6), torch.randn(2, 3, rnn.output_size)
    if rnn.batch_first:
        x = x.transpose(0, 1)
    fast = compiled(rnn, backend=backend)
    expected = gradients(rnn, lambda *t: rnn(*t, **given), x, c0)
    close(gradients(rnn, lambda *t: fast(*t, **given), x, c0), expected, 1e-5)
    rnn.eval()
    with torch.no_grad():
        close(fast(x, c0, **given), expected[:2], 1e-5)


def test_compiles_with_the_backend_that_is_named():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(4, 3, 6)
    for name in ("torch", "native", "reference"):
        rnn = SRU(6, 4, backend=name)
        close(compiled(rnn, backend=backend)(x), rnn(x), 1e-5)
        calls = [node for node in graphs[-1].graph.nodes if "fairseq_sru" in str(node.target)]
        assert [name in node.args for node in calls] == [True] * (name != "reference") * len(rnn.layers)


def test_compiled_dropout_is_drawn_again():
    rnn = SRU(6, 6, dropout=0.5, rnn_dropout=0.5)
    fast = compiled(rnn, backend="aot_eager")
    x = torch.randn(4, 3, 6)
    assert not torch.equal(fast(x)[0], fast(x)[0])
    rnn.eval()
    close(fast(x), rnn(x), 1e-5)


def test_one_graph_serves_all_lengths():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    rnn = SRU(6, 64)
    fast = compiled(rnn, backend=backend)
    for length in [5, 8, 20, 4 * SMALL // (64 * 64 * 3)]:  # above SMALL there is another product in eager mode
        x = torch.randn(length, 2, 6)
        near(gradients(rnn, fast, x), gradients(rnn, rnn, x), 1e-5)
    assert len(graphs) == 2  # the first length's, then one for any


def test_one_graph_serves_all_lists_of_lengths():
    """torch compiles at most eight times; each list of numbers could be another program."""
    rnn = SRU(6, 4)
    fast = compiled(rnn, backend="aot_eager")
    x = torch.randn(12, 2, 6)
    for steps in range(13):
        lengths = [steps, 12 - steps]
        close(fast(x, lengths=lengths), rnn(x, lengths=torch.tensor(lengths)), 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_traces(grad):
    """torch compares what it traced with another trace, of whose graph gradients must not change anything."""
    rnn = SRU(6, 4, v1=False, bidirectional=True).eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(rnn, (torch.randn(5, 3, 6), torch.randn(2, 3, 8)))
    x, c0 = torch.randn(9, 2, 6), torch.randn(2, 2, 8)
    close(gradients(traced, traced, x, c0), gradients(rnn, rnn, x, c0), 1e-5)
    x.requires_grad_()
    weights = torch.randn(4, 9, 2, 8)
    many = torch.autograd.grad(traced(x, c0)[0], x, weights, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(rnn(x, c0)[0], x, weight)[0] for weight in weights]
    close(many[0], torch.stack(one_by_one), 1e-5)
    for batch in (1, 3):  # a trace has left the layer's own checks out
        with pytest.raises(RuntimeError, match=rf"c0 must have shape \(2, 8\), as u has .* got \({batch}, 8\)"):
            traced(x, torch.randn(2, batch, 8))


LOAD = """
import sys, warnings, torch, fairseq_sru
warnings.simplefilter("ignore")
folder = sys.argv[1]
x, expected = torch.load(f"{folder}/expected.pt")
x.requires_grad_()
for name in ("export", "strict", "trace"):
    module = torch.jit.load(f"{folder}/trace") if name == "trace" else torch.export.load(f"{folder}/{name}").module()
    h, c = module(x)
    got = [h, c, *torch.autograd.grad(h.square().sum() + c.sum(), x)]
    print(name, all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True)))
try:
    torch.export.load(f"{folder}/native").module()(x)
    print("native runs")
except RuntimeError as error:
    print(error)
print(fairseq_sru.recurrence.dispatch.choose("auto", "cpu").name)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_exports_and_traces_load_in_a_new_process_with_other_backends(tmp_path):
    rnn = SRU(6, 4, v1=False, bidirectional=True).eval()
    x, example = torch.randn(9, 3, 6, requires_grad=True), (torch.randn(5, 3, 6),)
    shapes = {"x": {0: torch.export.Dim("steps", min=2)}}
    for name, strict in (("export", False), ("strict", True)):
        torch.export.save(torch.export.export(rnn, example, dynamic_shapes=shapes, strict=strict), tmp_path / name)
    torch.jit.trace(rnn, example).save(tmp_path / "trace")
    rnn.backend = "native"
    torch.export.save(torch.export.export(rnn, example, dynamic_shapes=shapes), tmp_path / "native")
    h, c = rnn(x)
    torch.save((x.detach(), [h, c, *torch.autograd.grad(h.square().sum() + c.sum(), x)]), tmp_path / "expected.pt")

    def load(**env):
        return python("-c", LOAD, tmp_path, **env).stdout.splitlines()

    right = ["export True", "strict True", "trace True"]
    assert load() == [*right, "native runs", "native"]
    *got, native, chosen = load(PATH=str(tmp_path), CXX="")  # no compiler
    assert (got, chosen) == (right, "torch")
    assert native.startswith("backend 'native' can't run: no C++ compiler")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_export_of_the_definition_needs_no_package(tmp_path):
    """It has operations of torch alone, of as many steps as the example."""
    rnn, x = SRU(6, 4, backend="reference").eval(), torch.randn(5, 3, 6)
    torch.export.save(torch.export.export(rnn, (x,)), tmp_path / "export")
    torch.save((x, rnn(x)), tmp_path / "expected.pt")
    script = "import sys; sys.modules['fairseq_sru'] = None; import torch; folder = sys.argv[1]\n"
    script += "x, expected = torch.load(f'{folder}/expected.pt')\n"
    script += "got = torch.export.load(f'{folder}/export').module()(x)\n"
    script += "print(all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True)))"
    assert python("-c", script, tmp_path).stdout == "True\n"


def test_an_export_does_what_the_variable_says_where_it_runs(monkeypatch):
    rnn, ran = SRU(6, 4).eval(), set()
    x = torch.randn(5, 3, 6)
    program = torch.export.export(rnn, (x,)).module()

    def spied(name, forward):
        return lambda *given: ran.add(name) or forward(*given)

    for kind in (Native, Torch):
        monkeypatch.setattr(kind, "forward", spied(kind.name, kind.forward))
    for backend in ("reference", "native", "torch"):
        monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", backend)
        forget()  # it is read once a process
        expected = rnn(x)
        for run, definition in ((program, {"torch"}), (compiled(rnn, backend="aot_eager"), set())):
            ran.clear()
            close(run(x), expected, 1e-5)
            assert ran == (definition if backend == "reference" else {backend})
    monkeypatch.setenv("FAIRSEQ_SRU_BACKEND", "fast")
    forget()
    with pytest.raises(ValueError, match="FAIRSEQ_SRU_BACKEND must be one of auto"):
        program(x)
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("size", [5, 200], ids=["small", "of oneDNN's size"])
def test_torch_func_works_by_the_definition(size):
    rnn = SRU(size, 4, v1=False, bidirectional=True)
    x = torch.randn(7, 60, size)
    assert (x.numel() * 4 * 8 > SMALL) == (size == 200)
    parameters = dict(rnn.named_parameters())

    def loss(parameters, x):
        h, c = torch.func.functional_call(rnn, parameters, (x,))
        return h.square().sum() + c.sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    close(torch.func.grad(loss)(parameters, x).values(), expected, 1e-4)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x[:, :, None])
    near([g.sum(0) for g in each.values()], expected, 1e-4)
    h, change = torch.func.jvp(lambda x: rnn(x)[0], (x,), (torch.ones_like(x),))
    close([h], [rnn(x)[0]], 1e-5)
    step = 1e-3
    near([change], [(rnn(x + step)[0] - rnn(x - step)[0]) / (2 * step)], 1e-2)


@pytest.mark.parametrize("size", [5, pytest.param(200, marks=pytest.mark.slow)], ids=["small", "of oneDNN's size"])
def test_forward_mode_derivatives_are_those_of_torch_func(size):
    """Also where nothing wants a gradient: a kernel would drop the tangent without a word."""
    rnn = SRU(size, 4, v1=False, bidirectional=True).requires_grad_(False)
    x, change = torch.randn(7, 60, size), torch.randn(7, 60, size)
    expected = torch.func.jvp(lambda x: rnn(x)[0], (x,), (change,))
    _, linear = torch.func.linearize(lambda x: rnn(x)[0], x)
    close([linear(change)], expected[1:], 1e-5)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            got = forward_ad.unpack_dual(rnn(forward_ad.make_dual(x, change))[0])
            close(got, expected, 1e-5)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_many_gradients_at_once(backend):
    rnn = SRU(3, 2, bidirectional=True, backend=backend)
    x = torch.randn(4, 2, 3)
    expected = torch.autograd.functional.jacobian(lambda x: rnn(x)[0], x)
    got = torch.autograd.functional.jacobian(lambda x: rnn(x)[0], x, vectorize=True)
    close([got], [expected], 1e-5)
    h = rnn(x.requires_grad_())[0]
    eye = torch.eye(h.numel()).view(-1, *h.shape)
    (rows,) = torch.autograd.grad(h, x, eye, is_grads_batched=True)
    close([rows.view_as(expected)], [expected], 1e-5)


def test_what_a_mode_records_runs():
    """make_fx has the operator; fake tensors have shapes alone."""
    rnn = SRU(6, 4, bidirectional=True).requires_grad_(False)
    x = torch.randn(5, 3, 6)
    program = make_fx(lambda x: rnn(x, lengths=torch.tensor([5, 2, 0]))[0])(x)
    assert "fairseq_sru.recurrence" in program.code
    other = torch.randn(5, 3, 6)
    close([program(other)], [rnn(other, lengths=torch.tensor([5, 2, 0]))[0]], 1e-6)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert SRU(6, 4)(torch.randn(5, 3, 6))[0].shape == (5, 3, 4)


def test_compiles_what_torch_func_differentiates():
    rnn = SRU(6, 4)
    x = torch.randn(5, 3, 6)
    gradient = torch.func.grad(lambda x: rnn(x)[0].square().sum())
    torch._dynamo.reset()
    close([torch.compile(gradient, backend="aot_eager")(x)], [gradient(x)], 1e-5)


def test_samples_have_lengths_and_ensembles_masks_of_their_own():
    rnn = SRU(6, 4)
    x, lengths = torch.randn(5, 3, 6), torch.tensor([5, 2, 3])
    got = torch.func.vmap(lambda x, n: rnn(x, lengths=n)[0], in_dims=(1, 0), out_dims=1)(
        x[:, :, None], lengths[:, None]
    )
    close([got.squeeze(2)], [rnn(x, lengths=lengths)[0]], 1e-5)
    drops = SRU(6, 6, dropout=0.5, rnn_dropout=0.5)
    many = {name: torch.stack([p, p]) for name, p in drops.named_parameters()}
    of = torch.func.vmap(lambda p: torch.func.functional_call(drops, p, (x,))[0], randomness="different")
    one, other = of(many)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_compiled_layer_takes_sequences_of_a_batch_first(backend):
    """Its inputs are not contiguous, and the compiler expects outputs that are."""
    rnn = SRU(8, 8, batch_first=True, backend=backend)
    x = torch.randn(3, 5, 8)
    fast = compiled(rnn, backend="aot_eager")
    close(gradients(rnn, fast, x), gradients(rnn, rnn, x), 1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_exported_without_gradients_can_be_trained(strict):
    """And what padding holds does no harm then, either."""
    rnn, x, mask = SRU(6, 4, 1), torch.randn(5, 3, 6), torch.zeros(5, 3, dtype=torch.bool)
    mask[3:, 1] = True
    with torch.no_grad():
        module = torch.export.export(rnn, (x,), {"padding_mask": mask}, strict=strict).module()
    h, _ = module(x.masked_fill(mask.unsqueeze(-1), float("nan")), padding_mask=mask)
    h.sum().backward()
    grads = [parameter.grad for parameter in module.parameters()]
    assert grads and all(grad is not None and grad.isfinite().all() for grad in grads)


def test_an_export_can_be_differentiated_twice():
    rnn = SRU(6, 4)
    x = torch.randn(5, 3, 6, requires_grad=True)
    found = []
    for module in (torch.export.export(rnn, (x,)).module(), rnn):
        (first,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x))
    close(*found, 1e-5)


def test_the_last_outputs_are_where_the_page_for_nn_lstm_says() -> None:
    rnn, x = SRU(6, 4, bidirectional=True), torch.randn(5, 3, 6)
    output, (h, c) = rnn(x)  # as nn.LSTM's: with two layers no error
    assert torch.equal(torch.stack([h, c]), rnn(x)[1])
    lengths = torch.tensor([5, 2, 4])
    padded = rnn(x, lengths=lengths)[0]
    for i, n in enumerate(lengths):
        alone = rnn(x[:n, i : i + 1])[0][:, 0]
        last = padded[lengths - 1, range(3)][i]
        torch.testing.assert_close(last[:4], alone[-1, :4])  # forward
        torch.testing.assert_close(padded[0, i, 4:], alone[0, 4:])  # backward, whose last step is the first
    rnn.batch_first = True
    swapped = rnn(x.transpose(0, 1), lengths=lengths)[0]
    assert torch.equal(swapped[range(3), lengths - 1, :4], padded[lengths - 1, range(3), :4])
    assert torch.equal(rnn(x[:, 0][None])[0][0], rnn(x[:, :1].transpose(0, 1))[0][0])  # a sequence without a batch
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    again, of_packed = pad_packed_sequence(rnn(packed)[0])
    assert torch.equal(of_packed, lengths)
    torch.testing.assert_close(again, padded)


def test_a_stacks_backend_is_that_of_its_layers() -> None:
    rnn = SRU(6, 4, backend="native")
    assert rnn.backend == "native"
    rnn.backend = "reference"
    assert [cell.backend for cell in rnn.layers] == ["reference"] * 2
    with pytest.raises(ValueError, match=r"^backend must be one of .*got 'cudnn'"):
        rnn.backend = "cudnn"


def test_dropout_of_a_single_layer_is_told():
    with pytest.warns(UserWarning, match=r"^dropout is between layers: with num_layers=1, 0.5 drops nothing$"):
        SRU(6, 4, 1, dropout=0.5)


def test_shapes_are_found_without_numbers():
    h, c = SRU(6, 4, device="meta")(torch.empty(5, 3, 6, device="meta"))
    assert (h.device.type, h.shape, c.shape) == ("meta", (5, 3, 4), (2, 3, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layer", [SRU(6, 4), SRUCell(6, 4), torch.nn.Sequential(SRU(6, 4))], ids=repr)
def test_scripting_is_refused_with_what_works(layer):
    with pytest.raises(RuntimeError, match=r"SRU.* can't be compiled by torch.jit.script .*; torch.export, torch"):
        torch.jit.script(layer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_onnx_is_refused(tmp_path, monkeypatch):
    rnn, x = SRU(6, 4), torch.randn(5, 3, 6)
    with pytest.raises(RuntimeError, match="export to ONNX is not supported"):
        torch.onnx.export(rnn, (x,), tmp_path / "rnn.onnx", dynamo=False)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)  # what dynamo=True needs is not installed
    for strict in (False, True):
        with pytest.raises(RuntimeError, match="export to ONNX is not supported"):
            torch.export.export(rnn, (x,), strict=strict)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_knows_nn_lstm_by_name_does_not_know_sru() -> None:
    with pytest.raises(TypeError, match=r"^x must be a tensor of shape .*; got Proxy$"):
        torch.fx.symbolic_trace(SRU(6, 4))
    x, rnn = torch.randn(5, 3, 6), SRU(6, 4)
    quantised = torch.ao.quantization.quantize_dynamic(rnn, dtype=torch.qint8)
    assert torch.equal(quantised(x)[0], rnn(x)[0])


# ---------------------------------------------------------------- what is not as described


def test_options_are_given_by_name_and_in_one_order():
    of_stack, of_cell = (list(inspect.signature(layer).parameters.values()) for layer in (SRU, SRUCell))
    assert [p.name for p in of_stack if p.kind != p.KEYWORD_ONLY] == ["input_size", "hidden_size", "num_layers"]
    assert [p.name for p in of_cell if p.kind != p.KEYWORD_ONLY] == ["input_size", "hidden_size"]
    shared = [p.name for p in of_stack if p.name not in ("num_layers", "batch_first")]
    assert shared == [p.name for p in of_cell if p.name != "reset_gate"]
    for p in of_stack:
        if p.name in shared:
            assert p.default == inspect.signature(SRUCell).parameters[p.name].default


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int32])
def test_lengths_are_integers_of_any_kind(dtype):
    rnn, x = SRU(4, 3), torch.randn(5, 2, 4)
    lengths = np.array([5, 2], dtype)
    for given in (lengths, torch.from_numpy(lengths)):
        close([rnn(x, lengths=given)[0]], [rnn(x, lengths=[5, 2])[0]])


def test_a_batch_of_none_has_a_list_of_no_lengths():
    for empty in ([], (), torch.tensor([], dtype=torch.int64)):
        assert SRU(6, 4)(torch.zeros(3, 0, 6), lengths=empty)[0].shape == (3, 0, 4)


@pytest.mark.parametrize("layer", [SRU, SRUCell])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_parameters_are_made_on_a_device_and_of_a_dtype(layer, dtype):
    made = layer(6, 4, v1=False, layer_norm=True, device="meta", dtype=dtype)
    assert {(p.dtype, p.device.type) for p in made.parameters()} == {(dtype, "meta")}
    made.to_empty(device="cpu").reset_parameters()
    h, c = made(torch.randn(3, 2, 6, dtype=dtype))
    assert h.dtype == dtype
    assert h.isfinite().all()
    assert {p.dtype for p in layer(6, 4).parameters()} == {torch.float32}


X = torch.zeros(3, 2, 6)
MASK = torch.zeros(3, 2, dtype=torch.bool)
META = torch.zeros(2, 2, 4, device="meta")


def first(**options):
    return SRU(6, 4, batch_first=True, **options)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: SRU(0, 4), ValueError, "input_size .* got 0"),
        (lambda: SRU(4, -1), ValueError, "hidden_size .* got -1"),
        (lambda: SRU(4, 4, 0), ValueError, "num_layers .* got 0"),
        (lambda: SRU(4, 4, backend="gpu"), ValueError, "backend .* one of auto, cuda, native, .*; got 'gpu'"),
        (lambda: SRU(4, 4, backend="cuda")(X[..., :4]), ValueError, "backend 'cuda' needs .*; u is on 'cpu'"),
        (lambda: SRUCell(4, 4, rnn_dropout=1.0), ValueError, "rnn_dropout .* got 1.0"),
        (lambda: SRU(4, 4, dropout=-0.1), ValueError, "dropout .* got -0.1"),
        (lambda: SRUCell(4, 4, dropout="a"), TypeError, "dropout .* got 'a'"),
        (lambda: SRU(4, 4, highway_bias="a"), TypeError, "highway_bias .* got 'a'"),
        (lambda: SRUCell(4, 4, highway_bias=math.inf), ValueError, "highway_bias .* got inf"),
        (lambda: SRU(6, 4)(X[..., :5]), ValueError, r"x must .*\(length, batch, 6\); got \(3, 2, 5\)"),
        (lambda: SRU(6, 4)(X[0]), ValueError, r"x must .* x\[None\] is a single step, x\[:, None\] a sing"),
        (lambda: first()(X[0]), ValueError, r"x must .* x\[:, None\] is a single step, x\[None\] a sing"),
        (lambda: first()(X[..., :5]), ValueError, r"x must .*\(batch, length, 6\); got \(3, 2, 5\)"),
        (lambda: SRUCell(6, 4)(X[..., :5]), ValueError, r"x must .* or \(batch, 6\); got \(3, 2, 5\)"),
        (lambda: SRU(6, 4)(pack_padded_sequence(X[..., :5], [3, 2])), ValueError, r"x must .*; got \(3, 2, 5\)"),
        (lambda: SRU(1, 4)(pack_sequence([X[:, 0, 0]])), ValueError, r"x must pack .*, 1\); got \(length\)"),
        (lambda: SRU(6, 4)(X.tolist()), TypeError, "x must be a tensor .*; got list"),
        (lambda: SRUCell(6, 4)(X.numpy()), TypeError, "x must be a tensor .*; got ndarray"),
        (lambda: SRU(6, 4)(X.long()), TypeError, "x must .* torch.float32; got torch.int64"),
        (lambda: SRUCell(6, 4)(X.double()), TypeError, "x must .* torch.float32; got torch.float64"),
        (lambda: SRU(6, 4, device="meta")(X), ValueError, "x must .* device, meta; got cpu"),
        (lambda: SRU(6, 4)(X, X), ValueError, r"c0 must .*\(2, 2, 4\).*; got \(3, 2, 6\)"),
        (lambda: first()(X, X), ValueError, r"c0 must .*\(2, 3, 4\).*; got \(3, 2, 6\)"),
        (lambda: SRU(6, 4)(pack_padded_sequence(X, [3, 2]), X), ValueError, r"c0 must .*\(2, 2, 4\)"),
        (lambda: SRUCell(6, 4)(X, X), ValueError, r"c0 must .*\(2, 4\).*; got \(3, 2, 6\)"),
        (lambda: SRU(6, 4)(X, (X, X)), TypeError, "c0 must .*there is no h as with nn.LSTM; got tuple"),
        (lambda: SRUCell(6, 4)(X, [[0.0]]), TypeError, "c0 must .*; got list"),
        (lambda: SRU(6, 4)(X, META), ValueError, "c0 must .* device, cpu; got meta"),
        (lambda: SRU(6, 4)(X, torch.zeros(2, 2, 4).long()), TypeError, "c0 must .* got torch.int64"),
        (lambda: SRU(6, 4)(X, padding_mask=MASK.t()), ValueError, r"padding_mask .*\(3, 2\).*got \(2, 3\)"),
        (lambda: first()(X, padding_mask=MASK.t()), ValueError, r"padding_mask .*\(3, 2\).*got \(2, 3\)"),
        (lambda: SRUCell(6, 4)(X[0], padding_mask=MASK), ValueError, r"padding_mask .*\(2,\).*got \(3, 2\)"),
        (lambda: SRU(6, 4)(X, padding_mask=MASK.float()), TypeError, "padding_mask .* got torch.float32"),
        (lambda: SRUCell(6, 4)(X, padding_mask=[[True]]), TypeError, "padding_mask .* got list"),
        (lambda: SRU(6, 4)(X, padding_mask=MASK.to("meta")), ValueError, "padding_mask .* cpu; got meta"),
        (lambda: SRU(6, 4)(X, lengths=[3, 1, 2]), ValueError, r"lengths .* got torch.int64 \(3,\)"),
        (lambda: SRU(6, 4)(X, lengths=[3.0, 1.0]), ValueError, r"lengths .* got torch.float32 \(2,\)"),
        (lambda: SRU(6, 4)(X, lengths=["a", "b"]), TypeError, "lengths must be 2 integers, one a sequence; got"),
        (lambda: SRU(6, 4)(X, lengths=[3, 4]), ValueError, "lengths must be from 0 to 3, .*; got 4"),
        (lambda: SRU(6, 4)(X, lengths=torch.tensor([-1, 3])), ValueError, "lengths must be from 0 to 3, .*; got -1"),
        (lambda: first()(X, lengths=[3, 2, 1]), ValueError, "lengths must be from 0 to 2, .*; got 3"),
        (lambda: SRU(6, 4)(X, None, MASK), ValueError, r"got torch.bool \(3, 2\); a mask is given as padding_mask="),
        (lambda: SRU(6, 4)(X, lengths=[3, 1], padding_mask=MASK), ValueError, "must not be given both"),
        (lambda: SRU(6, 4)(pack_padded_sequence(X, [3, 2]), lengths=[3, 2]), ValueError, "a PackedSequence"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("layers", [1, 2])
def test_the_state_can_be_cut_off_in_place(layers):
    """Truncated backpropagation does so with nn.LSTM's."""
    _, state = SRU(6, 4, layers)(X)
    state.detach_()
    SRU(6, 4, layers)(X, state)[0].sum().backward()


def test_autocast_narrows_neither_float64_nor_integers():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SRU(6, 4).double()(X.double())[0].dtype == torch.float64
        for layer, x in ((SRU(6, 4).double(), X), (SRU(6, 4), X.double()), (SRU(6, 4), X.long())):
            with pytest.raises(TypeError, match="x must be of the parameters' dtype"):
                layer(x)


def test_numbers_of_numpy_are_numbers():
    layer = SRUCell(6, 4, dropout=np.float32(0.5), highway_bias=np.int64(-1))
    assert (layer.dropout, layer.highway_bias) == (0.5, -1.0)
    assert type(layer.dropout) is float
