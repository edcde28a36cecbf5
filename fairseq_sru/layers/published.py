"""Weights of the PyPI package ``sru`` and of the SRU code of 2017, read as options and tensors of our layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

OF_3 = {"transform_module.weight": "weight", "transform_module.0.weight": "weight_proj"}  # transposed, in sru 3
OF_3 |= {"transform_module.1.weight": "weight"}
KNOWN = {"weight", "weight_proj", "weight_c", "bias", "scale_x", "layer_norm.weight", "layer_norm.bias"}


class Published(NamedTuple):
    """A published stack.

    Attributes:
        input_size: of the first layer.
        width: channels of both directions together.
        options: arguments of :class:`fairseq_sru.SRU` that follow from the tensors.
        scale: of the skip term; None if the tensors don't have it.
        layers: the tensors of each layer, by the names of the published code.
    """

    input_size: int
    width: int
    options: dict[str, Any]
    scale: float | None
    layers: list[dict[str, Tensor]]


def read(state_dict: Mapping[str, Tensor], normalize_after: bool | None) -> Published:
    """Read a state_dict; see :meth:`fairseq_sru.SRU.from_sru_state_dict`."""
    layers = _layers(state_dict)
    if normalize_after in (None, True) and any("layer_norm.weight" in tensors for tensors in layers):
        raise ValueError(
            f"normalize_after must be given, as their model had it, and False: True has no counterpart; "
            f"got {normalize_after}"
        )
    for tensors in layers:
        if "weight_proj" in tensors:
            tensors["weight"] = tensors.pop("weight_proj") @ tensors["weight"]
    has_scale = any("scale_x" in tensors for tensors in layers)
    scales = sorted({float(tensors.pop("scale_x")) if "scale_x" in tensors else 1.0 for tensors in layers})
    if len(scales) > 1 or scales[0] < 1.0:
        raise ValueError(f"scale_x must be the same in all layers, and at least 1; got {scales}")
    scale = scales[0]
    first = layers[0]
    options: dict[str, Any] = {
        "v1": not any("weight_c" in tensors and bool(tensors["weight_c"].any()) for tensors in layers),
        "layer_norm": "layer_norm.weight" in first,
        "rescale": scale != 1.0,
        "device": first["weight"].device,
        "dtype": first["weight"].dtype,
    }
    if scale != 1.0:
        options["highway_bias"] = math.log((scale * scale - 1) / 2)
    width = first["bias"].numel() // 2
    return Published(first["weight"].size(0), width, options, scale if has_scale else None, layers)


def _layers(state_dict: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the tensors of each layer by their names in it."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            "state_dict must be what their model's state_dict() gives, tensors by name (torch.load reads it from a "
            f"file); got {type(state_dict).__name__}"
        )
    by_number: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        start, _, rest = str(name).partition(".")
        number, _, what = rest.partition(".")
        if what in OF_3 and isinstance(tensor, Tensor) and tensor.dim() == 2:
            what, tensor = OF_3[what], tensor.t()
        if start != "rnn_lst" or not number.isdigit() or what not in KNOWN:
            names = ", ".join(sorted(KNOWN | OF_3.keys()))
            raise ValueError(f"state_dict must hold rnn_lst.<layer>.<{names}>; got {name!r}")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state_dict must hold tensors; {name} is of type {type(tensor).__name__}")
        by_number.setdefault(int(number), {})[what] = tensor.detach()
    layers = [by_number[number] for number in sorted(by_number)]
    if not layers or len(layers) != max(by_number) + 1 or any(not {"weight", "bias"} <= set(t) for t in layers):
        raise ValueError(
            f"state_dict must hold weight and bias of the layers from 0 on; got layers {sorted(by_number)}"
        )
    return layers
