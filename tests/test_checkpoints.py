"""What the allow-list lets torch.load read, and what it must not."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from fairseq_sru.checkpoints import allow_fairseq_checkpoints

allow_fairseq_checkpoints()


def round_trip(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load_pickle(data: bytes):
    """torch.load of a file whose pickle is the given bytes."""
    file, made = io.BytesIO(), io.BytesIO()
    torch.save({}, file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    made.seek(0)
    return torch.load(made, weights_only=True)


VALUES = {
    "namespace": argparse.Namespace(lr=[0.1], arch="lstm"),
    "float": np.float64(3.5),
    "float32": np.float32(3.5),
    "int": np.int64(-3),
    "bool": np.bool_(True),
    "matrix": np.arange(6, dtype="f4").reshape(2, 3),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "counts": np.array([5, 4, 3, 2]),
    "zero-dimensional": np.array(1.5),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_fairseq_writes_is_read(name):
    once = round_trip(VALUES[name])
    twice = round_trip(once)  # fairseq saves what it loaded, and broadcasts it
    for got in (once, twice):
        if isinstance(VALUES[name], np.ndarray | np.generic):
            np.testing.assert_array_equal(got, VALUES[name])
            assert got.dtype == VALUES[name].dtype
            assert got + 1 is not None
        else:
            assert got == VALUES[name]


@pytest.mark.parametrize(
    "value",
    [
        np.array([None, 1], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.array([1.0], dtype=">f8"),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(value):
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        round_trip(value)


class Call:
    """Pickles as a call of a function with arguments and, if given, a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def test_code_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        round_trip(Call(eval, ("1 + 1",)))


def test_a_forged_dtype_is_refused():
    """numpy's own unpickling would take an object dtype in disguise, and follow the file's bytes as pointers."""
    state = (3, "|", ("O", (1,)), None, None, 8, 1, 0)
    forged = pickle.dumps(Call(np.dtype, ("f8", False, True), state), protocol=2)
    with pytest.raises(pickle.UnpicklingError, match="plain numbers"):
        load_pickle(forged)


def test_an_array_longer_than_its_bytes_is_refused():
    dtype = np.dtype("f8")
    function = np.zeros(1).__reduce__()[0]
    forged = pickle.dumps(Call(function, (np.ndarray, (0,), b"b"), (1, (1000,), dtype, False, b"12345678")), protocol=2)
    with pytest.raises(pickle.UnpicklingError, match="has 8 bytes"):
        load_pickle(forged)
