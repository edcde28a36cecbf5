"""What the allow-list lets torch.load read, and what it must not."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import AnyNode, DictConfig, OmegaConf

from fairseq_sru.models.checkpoints import fairseq_checkpoints


def round_trip(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    with fairseq_checkpoints():
        return torch.load(file, weights_only=True)


def load_pickle(data: bytes):
    """torch.load of a file whose pickle is the given bytes."""
    file, made = io.BytesIO(), io.BytesIO()
    torch.save({}, file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    made.seek(0)
    with fairseq_checkpoints():
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


def forged_options(**metadata):
    options = OmegaConf.create({"a": 1})
    vars(options)["_metadata"].__dict__.update(metadata)
    return options


def node_of_a_function():
    node = AnyNode(1)
    vars(node)["__new__"] = os.system
    return node


@pytest.mark.parametrize(
    "value",
    [
        forged_options(object_type=os.system),
        forged_options(resolver_cache=collections.defaultdict(os.system)),
        forged_options(key_type=Call(eval, ("1 + 1",))),
        Call(collections.defaultdict, (os.system,)),
        Call(list, (Call(map, (os.system, ["true"])),)),
        Call(dict, (Call(os.listdir, (".",)),)),
        node_of_a_function(),
        Call(OmegaConf.register_new_resolver, ("name", os.system)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_code_in_forged_options_is_refused(value):
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        round_trip(value)


def test_interpolations_are_not_evaluated_by_reading():
    asked = []
    OmegaConf.register_new_resolver("sru_test", asked.append)
    try:
        options = round_trip(DictConfig({"a": "${sru_test:x}"}))
        assert asked == []
        assert options.a is None  # resolved by use alone, as anywhere in OmegaConf
        assert asked == ["x"]
    finally:
        OmegaConf.clear_resolver("sru_test")


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


def test_arrays_of_numpy_are_read_as_others_allow_them():
    """torch would take some of the stand-ins and some of numpy's own, which don't go together."""
    array = np.arange(3.0)
    allowed = [array.__reduce__()[0], np.ndarray, np.dtype, type(array.dtype)]
    file = io.BytesIO()
    torch.save({"array": array}, file)

    def read():
        file.seek(0)
        return torch.load(file, weights_only=True)["array"]

    round_trip(array)  # leaves nothing behind
    with torch.serialization.safe_globals(allowed):
        assert type(read()) is np.ndarray
        with fairseq_checkpoints():
            assert type(read()) is np.ndarray
        assert type(read()) is np.ndarray
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        read()
