"""Types that torch.load reads, and code that it refuses."""

from __future__ import annotations

import argparse
import io
import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import fairseq_sru.models  # noqa: F401


def round_trip(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


VALUES = {
    "namespace": argparse.Namespace(lr=[0.1], arch="lstm"),
    "float": np.float64(3.5),
    "int": np.int64(-3),
    "matrix": np.arange(6, dtype="f4").reshape(2, 3),
    "counts": np.array([5, 4, 3, 2]),
    # what fairseq sends to its other processes
    "options": OmegaConf.create(
        {
            "model": {"dropout": 0.1, "layers": [1, 2], "path": None, "interpolated": "${model.dropout}"},
            "task": argparse.Namespace(data="bin"),
        },
        flags={"allow_objects": True},
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_fairseq_writes_is_read(name):
    once = round_trip(VALUES[name])
    twice = round_trip(once)  # fairseq saves what it loaded, and broadcasts it
    for got in (once, twice):
        if isinstance(VALUES[name], np.ndarray | np.generic):
            np.testing.assert_array_equal(got, VALUES[name])
            assert got.dtype == VALUES[name].dtype
            np.testing.assert_array_equal(got + 1, VALUES[name] + 1)
        else:
            assert got == VALUES[name]
            assert type(got) is type(VALUES[name])


class Call:
    """Pickles as a call of a function with arguments and, if given, a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def test_code_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        round_trip(Call(eval, ("1 + 1",)))
