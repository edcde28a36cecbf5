"""A layer of few rows in evaluation, which compiled code does in one call: against the definition in float64."""

from __future__ import annotations

import copy
import platform
from typing import Any
from unittest import mock

import pytest
import torch
from support.processes import under_sanitizers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fairseq_sru import SRUCell
from fairseq_sru.recurrence import native
from fairseq_sru.recurrence.native import FEW, Native

CELLS: dict[str, dict[str, Any]] = {
    "skip term is the input": {"hidden_size": 37, "use_tanh": 0},
    "scaled": {"hidden_size": 37, "rescale": True, "highway_bias": -1.0},
    "skip term of its own": {"hidden_size": 20},
    "v2": {"hidden_size": 37, "v1": False},
    "v2, both directions": {"hidden_size": 33, "v1": False, "bidirectional": True},
    "both directions": {"hidden_size": 50, "bidirectional": True},
    "no highway": {"hidden_size": 37, "highway": False},
    "SSRU": {"hidden_size": 70, "reset_gate": False, "use_relu": 1},
}
SHAPES = [(1, 1), (1, 2), (1, 3), (4, 1), (1, 5), (2, 3), (7, 1), (1, FEW), (2, FEW // 2)]


def made(input_size: int = 37, **options: Any) -> SRUCell:
    """A layer whose biases aren't zeros."""
    cell = SRUCell(input_size, **{"hidden_size": input_size, **options}).eval()
    for parameter in (cell.bias, cell.weight_c):
        if parameter is not None:
            nn.init.normal_(parameter)
    return cell


def by_definition(cell: SRUCell, x: torch.Tensor, c0: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    exact = copy.deepcopy(cell).double()
    exact.backend = "reference"
    return exact(x.double(), None if c0 is None else c0.double())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Notes each call of the compiled code: whether it computed."""
    seen: list[bool] = []
    layer = Native.layer

    def spied(*args: Any) -> Any:
        done = layer(*args)
        seen.append(done is not None)
        return done

    monkeypatch.setattr(Native, "layer", spied)
    return seen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS)
def test_equals_the_definition(options, shape, calls):
    cell, x = made(**options), torch.randn(*shape, 37)
    with torch.no_grad():
        for c0 in (None, torch.randn(shape[1], cell.output_size)):
            for got, expected in zip(cell(x, c0), by_definition(cell, x, c0), strict=True):
                assert got.dtype == torch.float32 and got.shape == expected.shape
                torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert calls == [True, True]


@pytest.mark.parametrize("size", [1, 3, 16, 64, 1000])
def test_any_number_of_features(size, calls):
    cell, x = made(size), torch.randn(1, 3, size)
    with torch.inference_mode():
        h, c = cell(x)
        expected_h, expected_c = by_definition(cell, x)
        torch.testing.assert_close(h.double(), expected_h, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(c.double(), expected_c, rtol=1e-5, atol=1e-5)
        single_h, single_c = cell(x[0])
        assert torch.equal(single_h, h[0]) and torch.equal(single_c, c)
    assert calls == [True, True]


def test_several_cores_share_a_large_weight(calls):
    cell, x = made(500), torch.randn(1, FEW, 500)  # 46 strips and a part of one
    threads = torch.get_num_threads()
    with torch.no_grad():
        torch.set_num_threads(3)
        try:
            shared = cell(x)
        finally:
            torch.set_num_threads(threads)
        for got, expected in zip(shared, by_definition(cell, x), strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert calls == [True]


def test_what_is_not_finite_stays_so(calls):
    cell, x = made(highway=False, use_tanh=0), torch.randn(1, 2, 37)
    x[0, 0, 36], x[0, 1, 0] = float("nan"), float("inf")
    with torch.no_grad():
        for out in cell(x):
            first, second = out.view(2, 37)
            assert first.isnan().all() and not second.isfinite().any()
    assert calls == [True]


class Marked(nn.Parameter):
    """Parameter of a library that has weights in another form."""


def by_columns(cell: SRUCell) -> None:
    cell.weight.data = cell.weight.data.t().contiguous().t()


def marked(cell: SRUCell) -> None:
    cell.weight = Marked(cell.weight.data)


@pytest.mark.parametrize("change", [by_columns, marked, nn.Module.train])
def test_torch_computes_what_is_laid_out_or_done_otherwise(change, calls):
    cell, x = made(), torch.randn(1, 2, 37)
    change(cell)
    with torch.no_grad():
        torch.testing.assert_close(cell(x)[0].double(), by_definition(cell, x)[0], rtol=1e-5, atol=1e-5)
    assert not calls


@pytest.mark.parametrize("options", [{"backend": "torch"}, {"layer_norm": True}, {"dtype": torch.float64}], ids=str)
def test_other_layers_are_as_they_were(options, calls):
    cell = made(**options)
    x = torch.randn(1, 2, 37, dtype=cell.weight.dtype)
    with torch.no_grad():
        torch.testing.assert_close(cell(x)[0].double(), by_definition(cell, x)[0], rtol=1e-5, atol=1e-5)
    assert not calls


def test_more_rows_padding_gradients_and_autocast_are_as_they_were(calls):
    cell, x = made(), torch.randn(1, 2, 37)
    cell(x)
    with torch.no_grad():
        cell(torch.randn(1, FEW + 1, 37))
        cell(torch.randn(0, 2, 37))
        cell(x[:, ::2].expand(1, 2, 37))
        cell(x, torch.randn(2, 37, dtype=torch.float64))
        h, _ = cell(x, None, torch.tensor([[False, True]]))
        assert h[0, 0].any() and not h[0, 1].any()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cell(x)
        with FlopCounterMode(display=False) as counter:
            cell(x)
    assert counter.get_total_flops() == 2 * 2 * 37 * 3 * 37
    assert not calls


def test_a_parameter_of_another_shape_is_an_error(calls):
    cell = made()
    cell.bias = nn.Parameter(torch.zeros(2, 36))
    with torch.no_grad(), pytest.raises(ValueError, match=r"^bias must have shape \(2, 37\)"):
        cell(torch.randn(1, 1, 37))
    assert not calls


def test_a_weight_that_is_put_away_is_an_error(calls):
    cell = made()
    cell.weight.untyped_storage().resize_(0)
    with torch.no_grad(), pytest.raises(RuntimeError):
        cell(torch.randn(1, 1, 37))
    assert not calls


def test_torch_compile_does_not_start_again_with_the_number_of_rows(calls):
    cell = made()
    torch._dynamo.reset()
    compiled = torch.compile(cell, backend="eager", dynamic=True, fullgraph=True)
    with torch.no_grad(), mock.patch.object(torch._dynamo.config, "error_on_recompile", True):
        for rows in (FEW - 1, FEW + 1, FEW + 2):
            x = torch.randn(1, rows, 37)
            torch.testing.assert_close(compiled(x)[0].double(), by_definition(cell, x)[0], rtol=1e-5, atol=1e-5)
    assert not calls


def test_without_a_compiler_for_it_torch_multiplies(calls, monkeypatch):
    monkeypatch.setattr(native, "compiled", lambda *_: None)
    cell, x = made(), torch.randn(1, 2, 37)
    with torch.no_grad():
        torch.testing.assert_close(cell(x)[0].double(), by_definition(cell, x)[0], rtol=1e-5, atol=1e-5)
    assert calls == [False]


SCRIPT = """
import torch
from fairseq_sru import SRU
from fairseq_sru.recurrence import build, native, native_call
build.HOST_FLAGS += ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
flags = build.HOST_FLAGS
with torch.no_grad():
    for form in {forms!r}:
        build.HOST_FLAGS = (*flags, *form)
        for memory in (native_call.compiled, native.library, native.address):
            memory.cache_clear()
        assert native_call.compiled("layer.cpp", torch.float32, ("run_layer",)) is not None
        for size in (1, 16, 37, 100):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for rows in range(1, native.FEW + 1):
                    rnn = SRU(size, size, bidirectional=True).eval()
                    rnn(torch.randn(1, rows, size), torch.randn(2, rows, 2 * size))
"""


@pytest.mark.slow
def test_no_access_is_out_of_bounds(tmp_path):
    forms = [(), *([("-mno-avx512f",), ("-mno-avx",)] if platform.machine() == "x86_64" else [])]
    under_sanitizers(SCRIPT.format(forms=forms), tmp_path)


def test_a_skip_term_of_another_width_is_refused(calls):
    """Compiled code would read beyond x."""
    cell = made(8, hidden_size=37, highway=False)
    cell.highway = True
    with torch.no_grad(), pytest.raises(ValueError, match="x"):
        cell(torch.randn(1, 2, 8))
    assert not calls
