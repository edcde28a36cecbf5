"""Cases of the CUDA backend, and how they are checked."""

from __future__ import annotations

import functools
from typing import Any

import torch

from fairseq_sru import sru_recurrence

from .variants import Case, assert_defined, results

# The variant DEFAULT_VARIANT, with all tensors that it can have.
CASE = Case(
    kind="k3-input",
    dtype=torch.float32,
    activation="tanh",
    v=False,
    bidirectional=False,
    dropout=True,
    padding=True,
    c0=True,
    bias=True,
    scaled=False,
)
BARE = CASE._replace(dropout=False, padding=False, c0=False, bias=False)

by_cuda = functools.partial(sru_recurrence, backend="cuda")


def check(arguments: dict[str, Any], factor: float = 1.0) -> None:
    """The GPU backend gives what the definition gives in float64 from the same numbers."""
    assert_defined(results(by_cuda, arguments), arguments, factor)
