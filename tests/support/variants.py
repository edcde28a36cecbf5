"""Cases of the recurrence in which every two options meet, their tensors, and what the definition says of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq_sru import sru_recurrence
from fairseq_sru.recurrence.reference import Tensors

OPTIONS: dict[str, tuple[Any, ...]] = {
    "kind": ("k2", "k3-noskip", "k3-input", "k4"),
    "dtype": (torch.float32, torch.float16, torch.bfloat16, torch.float64),
    "activation": ("tanh", "relu", "identity"),
    "v": (True, False),
    "bidirectional": (True, False),
    "dropout": (True, False),
    "padding": (True, False),
    "c0": (True, False),
    "bias": (True, False),
    "scaled": (True, False),
}
# rtol, atol: the result is rounded once to its dtype, what leads to it is float32 (float64).
TOLERANCES = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2**-11 + 1e-5, 2e-5),
    torch.bfloat16: (2**-8 + 1e-5, 2e-5),
}
TENSORS = Tensors._fields

Results = dict[str, Tensor]
Recurrent = Callable[..., tuple[Tensor, Tensor]]
"""Takes what sru_recurrence takes, but for backend."""


class Case(NamedTuple):
    """A value of each option. kind: planes of u, and where three planes have their skip term from."""

    kind: str
    dtype: torch.dtype
    activation: str
    v: bool
    bidirectional: bool
    dropout: bool
    padding: bool
    c0: bool
    bias: bool
    scaled: bool

    @property
    def planes(self) -> int:
        return int(self.kind[1])

    def __str__(self) -> str:
        words = [str(value).removeprefix("torch.") for value in self[:3]]
        return "-".join(words + [name for name, value in self._asdict().items() if value is True])


Pair = frozenset[tuple[str, Any]]


def fits(chosen: dict[str, Any]) -> bool:
    """Return True if these values go together: only an input as skip term has a scale."""
    return not chosen.get("scaled") or chosen.get("kind", "k3-input") == "k3-input"


def pairs_in(chosen: dict[str, Any]) -> list[Pair]:
    return [frozenset(pair) for pair in itertools.combinations(chosen.items(), 2)]


def all_pairs() -> list[Pair]:
    """Every two values of two options that can be had together."""
    named = [[(name, value) for value in values] for name, values in OPTIONS.items()]
    both = (pair for one, other in itertools.combinations(named, 2) for pair in itertools.product(one, other))
    return [frozenset(pair) for pair in both if fits(dict(pair))]


def covering() -> list[Case]:
    """Cases that have all pairs: each starts from a missing pair and takes the values that bring most others, of equals
    the first."""
    missing = dict.fromkeys(all_pairs())
    cases = []
    while missing:
        chosen = dict(next(iter(missing)))
        for name in [name for name in OPTIONS if name not in chosen]:
            possible = [value for value in OPTIONS[name] if fits({**chosen, name: value})]
            brings = [sum(pair in missing for pair in pairs_in({**chosen, name: value})) for value in possible]
            chosen[name] = possible[brings.index(max(brings))]
        for pair in pairs_in(chosen):
            missing.pop(pair, None)
        cases.append(Case(**chosen))
    return cases


COVERING = covering()


def make(
    case: Case, length: int = 7, batch: int = 3, half: int = 8, seed: int = 0, requires_grad: bool = True
) -> dict[str, Any]:
    """Arguments of sru_recurrence for a case; half: channels of a direction."""
    rng = torch.Generator().manual_seed(seed)
    width = half * (2 if case.bidirectional else 1)
    gates = 1 if case.planes == 2 else 2

    def normal(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=rng, dtype=torch.float64).to(case.dtype)
        return made.requires_grad_(requires_grad)

    dropout = (torch.rand(batch, width, generator=rng) < 0.7).to(case.dtype) / 0.7
    return {
        "u": normal(length, batch, case.planes, width),
        "x": normal(length, batch, width) if case.kind == "k3-input" else None,
        "bias": normal(gates, width) if case.bias else None,
        "c0": normal(batch, width) if case.c0 else None,
        "weight_c": normal(gates, width) if case.v else None,
        "activation": case.activation,
        "bidirectional": case.bidirectional,
        "skip_scale": 1.75 if case.scaled else 1.0,
        "dropout_mask": dropout.requires_grad_(requires_grad) if case.dropout else None,
        "padding_mask": torch.rand(length, batch, generator=rng) < 0.3 if case.padding else None,
    }


def changed(arguments: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The same with change(t), a new leaf, for each floating-point tensor t."""
    made = dict(arguments)
    for name in TENSORS:
        t = arguments[name]
        if t is not None:
            made[name] = change(t.detach()).detach().requires_grad_(t.requires_grad)
    return made


def moved(arguments: dict[str, Any], device: str = "cuda", dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The same tensors on a device, and in a dtype."""
    pad = arguments["padding_mask"]
    there = changed(arguments, lambda t: t.to(device, dtype))
    return {**there, "padding_mask": None if pad is None else pad.to(device)}


def results(run: Recurrent, arguments: dict[str, Any], seed: int = 1) -> Results:
    """h, c_n and all gradients, under their names; the loss is a fixed random sum of all h and c_n."""
    h, c_n = run(**arguments)
    rng = torch.Generator().manual_seed(seed)
    # multiples of 1/8: the same in all dtypes
    weights = [(8 * torch.randn(t.shape, generator=rng)).round().div(8).to(t.device, t.dtype) for t in (h, c_n)]
    wanted = {
        name: arguments[name] for name in TENSORS if arguments[name] is not None and arguments[name].requires_grad
    }
    grads = torch.autograd.grad((h, c_n), list(wanted.values()), weights) if wanted else ()
    return {"h": h.detach(), "c_n": c_n.detach(), **{f"grad of {n}": g for n, g in zip(wanted, grads, strict=True)}}


def definition(**arguments: Any) -> tuple[Tensor, Tensor]:
    """The recurrence that defines all others; as a :data:`Recurrent`."""
    return sru_recurrence(**arguments, backend="reference")


def assert_defined(got: Results, arguments: dict[str, Any], factor: float = 1.0) -> None:
    """Compare results with the definition in float64, computed on the CPU; factor: how much more than rounding is
    allowed."""
    exact = results(definition, moved(arguments, "cpu", torch.float64))
    assert got.keys() == exact.keys()
    rtol, atol = TOLERANCES[arguments["u"].dtype]
    for name, value in got.items():
        torch.testing.assert_close(
            value.double().cpu(),
            exact[name],
            rtol=factor * rtol,
            atol=factor * atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )
