"""The layers against the SRU code that its authors published: the PyPI package sru 2.6.0, and the code of 2017."""

from __future__ import annotations

import fcntl
import math
import os
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from fairseq_sru import SRU, SRUCell


@pytest.fixture(scope="session")
def sru() -> Any:
    """The package. It builds its C++ part with ninja when it is first imported on a machine (twenty seconds)."""
    from torch.utils import cpp_extension

    build = cpp_extension.load

    def load(name: str, sources: list[str], **options: Any) -> None:
        """Without CUDA: builds both C++ files as one, since most of the time goes to torch's headers."""
        if name == "sru_cuda" and len(sources) > 1:
            raise RuntimeError("its CUDA source would take minutes; it does without")
        if name == "sru_cuda":
            both = folder / "sru_both.cpp"
            parts = [sources[0], sources[0].replace("cuda_impl_dummy", "cpu_impl")]
            both.write_text("".join(f'#include "{part}"\n' for part in parts))
            build(name="sru_both", sources=[str(both)], **options)

    with pytest.MonkeyPatch.context() as now, warnings.catch_warnings():
        now.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        now.setattr(cpp_extension, "load", load)
        warnings.simplefilter("ignore")
        folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "of_tests").open("w") as own:
            fcntl.flock(own, fcntl.LOCK_EX)  # goes with its process; a killed one's lock torch waits for without end
            for lock in folder.glob("**/sru_*/lock"):
                lock.unlink()
            return pytest.importorskip("sru")


pytestmark = [
    pytest.mark.filterwarnings("ignore:Running SRU on CPU with grad_enabled"),
    pytest.mark.filterwarnings("ignore:use_tanh = True is deprecated"),
    pytest.mark.filterwarnings("ignore:rnn_dropout > 0 is deprecated"),
]


def randomise(module: torch.nn.Module) -> None:
    """Biases, layer norms and the like have values at the start that would hide a mistake."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if name == "layer_norm.weight" else 0.0)


def blocks(weight: Tensor, planes: int) -> Tensor:
    """Their interleaved ``(input, D * k)`` as our ``(k * D, input)``."""
    return torch.cat([weight[:, j::planes].t() for j in range(planes)])


def inputs(size: int, output_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, c0 and a padding mask, 2 layers."""
    x, c0 = torch.randn(6, 3, size, dtype=dtype), torch.randn(2, 3, output_size, dtype=dtype)
    mask = torch.zeros(6, 3, dtype=torch.bool)
    mask[4:, 1] = mask[:3, 2] = True
    return x, c0, mask


def close(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


# their options, and ours that their weights don't tell, with TOLD where they are not as usual
TOLD: dict[str, Any] = {"bidirectional": False, "use_tanh": 0, "highway": True, "normalize_after": False}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "use_tanh": ({"use_tanh": True}, {"use_tanh": 1}),
    "layer_norm": ({"layer_norm": True}, {}),
    "rescale": ({"rescale": True, "highway_bias": -1.5}, {}),
    "no_skip": ({"has_skip_term": False}, {"highway": False}),
    "projection": ({"projection_size": 3}, {}),
    "dropout": ({"dropout": 0.4, "rnn_dropout": 0.3}, {"dropout": 0.4, "rnn_dropout": 0.3}),
    "all": (
        {"use_tanh": True, "layer_norm": True, "rescale": True, "highway_bias": -0.5, "projection_size": 2},
        {"use_tanh": 1},
    ),
}


def for_every_kind(test: Any) -> Any:
    for mark in (
        pytest.mark.parametrize("variant", VARIANTS),
        pytest.mark.parametrize("sizes", [(8, 8), (5, 4)], ids=["k3", "k4"]),
        pytest.mark.parametrize("bidirectional", [False, True]),
        pytest.mark.parametrize("v1", [False, True], ids=["v2", "v1"]),
    ):
        test = mark(test)
    return test


def make_both(sru: Any, v1: bool, bidirectional: bool, sizes: tuple[int, int], variant: str, dtype: torch.dtype) -> Any:
    """Their stack and ours with its weights, in evaluation: dropout is not drawn alike."""
    torch.manual_seed(0)
    size, hidden = sizes
    options, not_told = VARIANTS[variant]
    if size == hidden and bidirectional:
        hidden //= 2
    theirs = sru.SRU(size, hidden, num_layers=2, bidirectional=bidirectional, v1=v1, **options).to(dtype).eval()
    randomise(theirs)
    ours = SRU.from_sru_state_dict(theirs.state_dict(), **{**TOLD, "bidirectional": bidirectional, **not_told}).eval()
    assert all(cell.v1 == v1 for cell in ours.layers)
    return theirs, ours


@for_every_kind
def test_values_equal_those_of_its_cplusplus(sru, v1, bidirectional, sizes, variant):
    theirs, ours = make_both(sru, v1, bidirectional, sizes, variant, torch.float32)
    x, c0, mask = inputs(sizes[0], ours.output_size, torch.float32)
    with torch.no_grad():  # with gradients it runs its Python
        for state, padding in ((None, None), (c0, None), (c0, mask)):
            got, expected = ours(x, state, padding_mask=padding), theirs(x, state, padding)
            close(got[0], expected[0], "h", 1e-5)
            close(got[1], expected[1], "c", 1e-5)


def run_backward(module: Any, x: Tensor, c0: Tensor, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values and gradients: of the inputs, and of the weights by layer and name."""
    module.zero_grad()
    x, c0 = x.detach().requires_grad_(), c0.detach().requires_grad_()
    h, c = module(x, c0, **options)
    torch.manual_seed(1)
    ((h * torch.randn_like(h)).sum() + (c * torch.randn_like(c)).sum()).backward()
    weights = {name.split(".", 1)[1]: p.grad for name, p in module.named_parameters() if p.requires_grad}
    return {"h": h, "c": c, "x'": x.grad, "c0'": c0.grad}, weights


@for_every_kind
def test_gradients_equal_those_of_its_python(sru, v1, bidirectional, sizes, variant):
    theirs, ours = make_both(sru, v1, bidirectional, sizes, variant, torch.float64)
    x, c0, mask = inputs(sizes[0], ours.output_size, torch.float64)
    for padding in (None, mask):
        got, weights = run_backward(ours, x, c0, padding_mask=padding)
        expected, expected_weights = run_backward(theirs, x, c0, mask_pad=padding)
        for name, value in got.items():
            close(value, expected[name], name)
        for i, (cell, layer) in enumerate(zip(ours.layers, theirs.rnn_lst, strict=True)):
            weight, target = weights.pop(f"{i}.weight"), expected_weights.pop(f"{i}.weight")
            if layer.weight_proj is None:
                close(weight, blocks(target, cell.planes), f"weight' of layer {i}")
            else:  # their matrix is P W, and ours one: W' = P^T (P W)' and P' = (P W)' W^T
                close(weight @ layer.weight_proj, blocks(target, cell.planes), f"weight' of layer {i}")
                target = expected_weights.pop(f"{i}.weight_proj")
                close(weight.t() @ blocks(layer.weight, cell.planes), target, f"weight_proj' of layer {i}")
        assert weights.keys() == expected_weights.keys()
        for name, value in weights.items():
            close(value.flatten(), expected_weights[name], name)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_states_in_the_form_of_nn_lstm_as_the_page_makes_them(sru, bidirectional):
    theirs, ours = make_both(sru, True, bidirectional, (8, 8), "plain", torch.float32)
    compatible = sru.SRU(
        8, 4 if bidirectional else 8, 2, bidirectional=bidirectional, v1=True, nn_rnn_compatible_return=True
    )
    compatible.load_state_dict(theirs.state_dict())
    x, directions = torch.randn(5, 3, 8), 2 if bidirectional else 1
    with torch.no_grad():
        c = ours(x)[1]
        close(c.unflatten(-1, (directions, -1)).transpose(1, 2).flatten(0, 1), compatible.eval()(x)[1], "c", 1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_equal_the_package(sru, bidirectional):
    torch.manual_seed(0)
    theirs = sru.SRU(5, 4, bidirectional=bidirectional).eval()
    randomise(theirs)
    rnn = SRU.from_sru_state_dict(theirs.state_dict(), **{**TOLD, "bidirectional": bidirectional}).eval()
    packed = pack_padded_sequence(torch.randn(6, 3, 5), [2, 6, 4], enforce_sorted=False)
    c0 = torch.randn(2, 3, rnn.output_size)
    with torch.no_grad():
        (got, c), (expected, c_expected) = rnn(packed, c0), theirs(packed, c0)
    close(got.data, expected.data, "h", 1e-5)
    close(c, c_expected, "c", 1e-5)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(got, name), getattr(expected, name))


def test_a_skip_matrix_of_v1_starts_scaled_where_it_is_asked_for(sru):
    options = {"v1": True, "rescale": True, "highway_bias": -1.0}
    theirs, ours = sru.SRUCell(200, 300, **options), SRUCell(200, 300, **options)
    for got, expected in zip(ours.weight.chunk(4), blocks(theirs.weight, 4).chunk(4), strict=True):
        assert got.std().item() == pytest.approx(expected.std().item(), rel=0.015)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dropout, rnn_dropout", [(0.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("highway_bias, rescale", [(0.0, True), (-2.0, True), (-2.0, False)])
@pytest.mark.parametrize("sizes", [(300, 300), (200, 300)], ids=["k3", "k4"])
def test_v2_starts_as_in_the_package(sru, sizes, highway_bias, rescale, dropout, rnn_dropout, layer_norm):
    torch.manual_seed(0)
    options = {
        "dropout": dropout,
        "rnn_dropout": rnn_dropout,
        "layer_norm": layer_norm,
        "highway_bias": highway_bias,
        "rescale": rescale,
    }
    theirs = sru.SRUCell(*sizes, **options)
    ours = SRUCell(*sizes, v1=False, **options)
    assert ours.skip_scale == pytest.approx(theirs.scale_x.item())
    assert torch.equal(ours.bias.flatten(), theirs.bias)
    pairs = list(
        zip(ours.weight.chunk(ours.planes), blocks(theirs.weight, ours.planes).chunk(ours.planes), strict=True)
    )
    for got, expected in [*pairs, (ours.weight_c, theirs.weight_c)]:
        few = got.numel() < 1000
        assert got.std().item() == pytest.approx(expected.std().item(), rel=0.1 if few else 0.015)
        assert got.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=0.02 if few else 0.001)
        assert abs(got.mean() / got.std()) < (0.2 if few else 0.02)
    defaults = sru.SRUCell(*sizes)
    assert SRUCell(*sizes, v1=False).skip_scale == pytest.approx(defaults.scale_x.item())


def code_of_2017(u, x, bias, c0, activation, d, bidirectional):
    """sru_fwd and sru_bi_fwd of the first cuda_functional.py: a thread for each column of ``(batch, D)``, which walks
    through flat arrays by strides. u is ``(length, batch, D * k)``, k fastest."""
    length, batch, _ = u.shape
    width = d * (2 if bidirectional else 1)
    k = u.size(-1) // width
    columns = batch * width
    u, x, c0 = u.flatten(), x.flatten(), c0.flatten()
    h, last = {}, []
    for column in range(columns):
        flip = bidirectional and column % width >= d
        forget_bias, reset_bias = bias[column % width], bias[column % width + width]
        current = c0[column]
        for row in reversed(range(length)) if flip else range(length):
            at = row * columns + column
            g1 = torch.sigmoid(u[at * k + 1] + forget_bias)
            g2 = torch.sigmoid(u[at * k + 2] + reset_bias)
            skip = x[at] if k == 3 else u[at * k + 3]
            current = (current - u[at * k]) * g1 + u[at * k]
            value = {"identity": current, "tanh": torch.tanh(current), "relu": torch.relu(current)}[activation]
            h[at] = (value - skip) * g2 + skip
        last.append(current)
    return torch.stack([h[i] for i in range(length * columns)]).view(length, batch, width), torch.stack(last).view(
        batch, width
    )


@pytest.mark.parametrize("size, hidden", [(4, 4), (3, 4), (5, 2)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "activation, options", [("tanh", {"use_tanh": 1}), ("identity", {"use_tanh": 0}), ("relu", {"use_relu": 1})]
)
def test_equals_the_code_of_2017(size, hidden, bidirectional, activation, options):
    torch.manual_seed(0)
    directions = 2 if bidirectional else 1
    width = hidden * directions
    state, features = {}, size
    for i in range(2):
        k = 3 if features == width else 4
        shape = (features, hidden * k * directions)
        state[f"rnn_lst.{i}.weight"] = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        state[f"rnn_lst.{i}.bias"] = torch.randn(hidden * 2 * directions, dtype=torch.float64, requires_grad=True)
        features = width
    rnn = SRU.from_sru_state_dict(state, **{**TOLD, "bidirectional": bidirectional, **options})
    assert rnn.layers[0].v1
    x = torch.randn(4, 2, size, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(2, 2, width, dtype=torch.float64, requires_grad=True)
    got = rnn(x, c0)
    h, last = x, []
    for i in range(2):
        u = h @ state[f"rnn_lst.{i}.weight"]
        h, c = code_of_2017(u, h, state[f"rnn_lst.{i}.bias"], c0[i], activation, hidden, bidirectional)
        last.append(c)
    expected = (h, torch.stack(last))
    close(got[0], expected[0], "h")
    close(got[1], expected[1], "c")
    gradients = []
    for (h, c), tensors in ((got, rnn.parameters()), (expected, state.values())):
        gradients.append(torch.autograd.grad(h.square().sum() + c.square().sum(), [x, c0, *tensors]))
    for what, of_ours, of_theirs in zip(("x", "c0", *state), *gradients, strict=True):
        if what.endswith("weight"):
            of_theirs = blocks(of_theirs, of_theirs.size(1) // width)
        close(of_ours if what in ("x", "c0") or "weight" in what else of_ours.flatten(), of_theirs, f"{what}'")


def published(layers: int = 2, size: int = 4, hidden: int = 4, **more: tuple[int, ...]) -> dict[str, Tensor]:
    """A state dict; more: names and shapes that each layer has besides."""
    state = {}
    for i in range(layers):
        features = hidden if i else size
        state[f"rnn_lst.{i}.weight"] = torch.randn(features, hidden * (3 if features == hidden else 4))
        state[f"rnn_lst.{i}.bias"] = torch.randn(2 * hidden)
        for name, shape in more.items():
            state[f"rnn_lst.{i}.{name.replace('__', '.')}"] = torch.randn(shape)
    return state


def test_the_order_of_the_names_does_not_matter():
    state = published(11)
    x = torch.randn(3, 2, 4)
    expected = SRU.from_sru_state_dict(state, **TOLD)(x)[0]
    for names in (sorted(state), list(reversed(state))):
        assert torch.equal(SRU.from_sru_state_dict({name: state[name] for name in names}, **TOLD)(x)[0], expected)


def test_what_the_tensors_tell():
    state = published(3, 5, 4, weight_c=(8,), scale_x=(1,), layer_norm__weight=(4,), layer_norm__bias=(4,))
    state["rnn_lst.0.layer_norm.weight"], state["rnn_lst.0.layer_norm.bias"] = torch.randn(5), torch.randn(5)
    for i in range(3):
        state[f"rnn_lst.{i}.scale_x"] = torch.tensor([math.sqrt(1 + 2 * math.exp(-3.0))])
    rnn = SRU.from_sru_state_dict(state, **TOLD, dropout=0.2)
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers) == (5, 4, 3)
    cell = rnn.layers[1]
    assert (cell.v1, cell.rescale, cell.activation, cell.dropout) == (False, True, "identity", 0.2)
    assert cell.highway_bias == pytest.approx(-3.0, abs=1e-5)
    assert cell.layer_norm is not None
    narrow = SRU.from_sru_state_dict({name: t.half() for name, t in state.items()}, **TOLD)
    assert {p.dtype for p in narrow.parameters()} == {torch.float16}
    wide = SRU.from_sru_state_dict(state, **TOLD, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.device.type) for p in wide.parameters()} == {(torch.float64, "meta")}
    cell_of_2017 = SRU.from_sru_state_dict(published(), **{**TOLD, "use_tanh": 1}).layers[1]
    assert (cell_of_2017.v1, cell_of_2017.rescale, cell_of_2017.activation) == (True, False, "tanh")
    assert all(p.requires_grad for p in rnn.parameters())


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if n != name}


def test_the_scale_of_a_skip_term_that_is_not_there_is_left():
    """Releases up to 2.1 had one with has_skip_term=False, too, and didn't use it."""
    state = published(2)
    plain = SRU.from_sru_state_dict(state, **{**TOLD, "highway": False})
    for i in range(2):
        state[f"rnn_lst.{i}.scale_x"] = torch.tensor([math.sqrt(3)])
    x = torch.randn(5, 3, 4)
    assert torch.equal(SRU.from_sru_state_dict(state, **{**TOLD, "highway": False})(x)[0], plain(x)[0])


def test_a_scale_that_no_tensor_tells_can_be_given():
    """Before ``scale_x`` was a tensor it was an attribute, which a state_dict doesn't hold."""
    state = published(2)
    given = SRU.from_sru_state_dict(state, **TOLD, rescale=True, highway_bias=-1.0)
    for i in range(2):
        state[f"rnn_lst.{i}.scale_x"] = torch.tensor([math.sqrt(1 + 2 * math.exp(-1.0))])
    x = torch.randn(5, 3, 4)
    close(given(x)[0], SRU.from_sru_state_dict(state, **TOLD)(x)[0], "h", 1e-6)


V2 = {"weight_c": (8,)}
NORM = {"layer_norm__weight": (4,), "layer_norm__bias": (4,)}
ALLOWED = "state_dict must hold rnn_lst.<layer>.<bias, .*>; got '{}'"


@pytest.mark.parametrize(
    "state, options, message",
    [
        (published(custom_m__weight=(4, 4)), {}, ALLOWED.format("rnn_lst.0.custom_m.weight")),
        ({"input_to_hidden.weight": torch.ones(4, 5), **published()}, {}, ALLOWED.format("input_to_hidden.weight")),
        ({"module." + n: t for n, t in published().items()}, {}, ALLOWED.format("module.rnn_lst.0.weight")),
        ({"ln_lst.0.a": torch.ones(4), **published()}, {}, ALLOWED.format("ln_lst.0.a")),
        (published(1, 5, **NORM), {}, r"rnn_lst.0.layer_norm.weight must have shape \(5,\).*got \(4,\)"),
        ({}, {}, r"weight and bias of the layers from 0 on; got layers \[\]"),
        (without(published(), "rnn_lst.1.bias"), {}, r"weight and bias of the layers from 0 on; got layers \[0, 1\]"),
        (
            {n: t for n, t in published(3).items() if not n.startswith("rnn_lst.1.")},
            {},
            r"of the layers from 0 on; got layers \[0, 2\]",
        ),
        (published(**V2), {"v1": True}, r"rnn_lst.0.weight_c has no place in a layer with the options {.*'v1': True}"),
        (published(), {"v1": False}, r"rnn_lst.0.weight_c must have shape \(8,\) with the options.*got None"),
        (without(published(**V2), "rnn_lst.1.weight_c"), {}, r"rnn_lst.1.weight_c must have shape \(8,\).*got None"),
        (published(**NORM), {"layer_norm": False}, "rnn_lst.0.layer_norm.weight has no place"),
        (published(), {"layer_norm": True}, r"rnn_lst.0.layer_norm.weight must have shape \(4,\).*got None"),
        (
            {**published(1), "rnn_lst.0.scale_x": torch.ones(1)},
            {"rescale": True},
            r"rescale and highway_bias must give scale_x, 1.0; {.*'rescale': True} give 1.7",
        ),
        (published(scale_x=(1,)), {}, "scale_x must be the same in all layers, and at least 1; got"),
        (published(1, 5), {"highway": False}, r"rnn_lst.0.weight must have shape \(5, 12\).*got \(5, 16\)"),
        (published(1, 3, 3), {"bidirectional": True}, r"rnn_lst.0.weight must have shape \(3, 8\).*got \(3, 9\)"),
    ],
)
def test_what_has_no_counterpart_is_named(state, options, message):
    with pytest.raises(ValueError, match=message):
        SRU.from_sru_state_dict(state, **{**TOLD, **options})


@pytest.mark.parametrize("name", [name for name in TOLD if name != "normalize_after"])
def test_what_the_tensors_do_not_tell_must_be_given(name):
    with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
        SRU.from_sru_state_dict(published(), **{n: value for n, value in TOLD.items() if n != name})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Path("theirs.pt"), "state_dict must be .* tensors by name .*; got PosixPath"),
        ({"rnn_lst.0.weight": [1.0]}, "state_dict must hold tensors; rnn_lst.0.weight is of type list"),
    ],
    ids=["path", "list"],
)
def test_what_is_no_state_dict_is_named(state, message):
    with pytest.raises(TypeError, match=message):
        SRU.from_sru_state_dict(state, **TOLD)


@pytest.mark.parametrize("given", [{}, {"normalize_after": None}, {"normalize_after": True}])
def test_where_a_layer_is_normalised_must_be_told(sru, given):
    """With equal sizes the tensors look the same."""
    theirs = sru.SRU(4, 4, 1, layer_norm=True, normalize_after=True)
    told = {**{name: value for name, value in TOLD.items() if name != "normalize_after"}, **given}
    with pytest.raises(ValueError, match=r"normalize_after must be given, as their model had it, and False"):
        SRU.from_sru_state_dict(theirs.state_dict(), **told)


@pytest.mark.parametrize("projection_size", [0, 3])
def test_weights_of_version_3_are_those_of_2_transposed(sru, projection_size):
    """Its modules.py has nn.Linear, of which two follow one another with a projection."""
    state = sru.SRU(5, 4, 2, projection_size=projection_size).state_dict()
    names = {"weight": "transform_module.weight"}
    if projection_size:
        names = {"weight_proj": "transform_module.0.weight", "weight": "transform_module.1.weight"}
    of_3 = {}
    for name, tensor in state.items():
        start, what = name[: len("rnn_lst.0.")], name[len("rnn_lst.0.") :]
        of_3[start + names.get(what, what)] = tensor.t() if what in names else tensor
    x = torch.randn(6, 3, 5)
    assert torch.equal(SRU.from_sru_state_dict(of_3, **TOLD)(x)[0], SRU.from_sru_state_dict(state, **TOLD)(x)[0])


# ---------------------------------------------------------------- docs/layers.md

PAGE = ROOT / "docs" / "layers.md"


def test_python_of_the_layers_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = {f"rnn_lst.{i}.{n}": torch.randn(s) for i in range(2) for n, s in (("weight", (4, 12)), ("bias", (8,)))}
    names: dict[str, Any] = {"SRU": SRU, "torch": torch, "x": torch.randn(5, 3, 4)}
    names["theirs"] = SimpleNamespace(state_dict=lambda: state)
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(block, names)
    torch.testing.assert_close(names["output"], names["rnn"](names["x"])[0])


@pytest.mark.parametrize("options", [{}, {"v1": True, "use_tanh": True}], ids=["2018", "2017"])
def test_the_layer_that_the_docs_name_is_that_of_the_package(sru, options):
    ours = SRU(8, 4, **({"v1": False, "use_tanh": 0, "rescale": False} if not options else {}))
    theirs = sru.SRU(8, 4, **options)
    read = SRU.from_sru_state_dict(theirs.state_dict(), **{**TOLD, "use_tanh": int("v1" in options)})
    assert [repr(cell) for cell in read.layers] == [repr(cell) for cell in ours.layers]
