"""Weights of the PyPI package ``sru`` and of the SRU code of 2017 for :class:`fairseq_sru.SRU`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

if TYPE_CHECKING:
    from .cell import SRUCell
    from .sru import SRU

OF_3 = {"transform_module.weight": "weight", "transform_module.0.weight": "weight_proj"}  # transposed, in sru 3
OF_3 |= {"transform_module.1.weight": "weight"}
KNOWN = {"weight", "weight_proj", "weight_c", "bias", "scale_x", "layer_norm.weight", "layer_norm.bias"}


def from_published(
    cls: type[SRU], state_dict: Mapping[str, Tensor], options: dict[str, Any], normalize_after: bool | None
) -> SRU:
    """See :meth:`fairseq_sru.SRU.from_sru_state_dict`."""
    layers = _layers(state_dict)
    if normalize_after in (None, True) and any("layer_norm.weight" in given for given in layers):
        raise ValueError(
            f"normalize_after must be given, as their model had it, and False: True has no counterpart; "
            f"got {normalize_after}"
        )
    for given in layers:
        if "weight_proj" in given:
            given["weight"] = given.pop("weight_proj") @ given["weight"]
    tells_scale = any("scale_x" in given for given in layers)
    scales = sorted({float(given.pop("scale_x")) if "scale_x" in given else 1.0 for given in layers})
    if len(scales) > 1 or scales[0] < 1.0:
        raise ValueError(f"scale_x must be the same in all layers, and at least 1; got {scales}")
    scale = scales[0]
    first = layers[0]
    input_size, out = first["weight"].size(0), first["bias"].numel() // 2
    told: dict[str, Any] = {
        "v1": not any("weight_c" in given and bool(given["weight_c"].any()) for given in layers),
        "layer_norm": "layer_norm.weight" in first,
        "rescale": scale != 1.0,
    }
    if scale != 1.0:
        told["highway_bias"] = math.log((scale * scale - 1) / 2)
    directions = 2 if options["bidirectional"] else 1
    told |= {"device": first["weight"].device, "dtype": first["weight"].dtype}
    made = cls(input_size, out // directions, len(layers), **{**told, **options})
    for i, (layer, given) in enumerate(zip(made.layers, layers, strict=True)):
        cell = cast("SRUCell", layer)
        takes_scale = tells_scale and cell.highway and cell.planes == 3
        if takes_scale and not math.isclose(cell.skip_scale, scale, rel_tol=1e-3):
            raise ValueError(f"rescale and highway_bias must give scale_x, {scale}; {options} give {cell.skip_scale}")
        _fill(cell, given, f"rnn_lst.{i}", options)
    return made


def _layers(state_dict: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of each layer by their names in it."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            "state_dict must be what their model's state_dict() gives, tensors by name (torch.load reads it from a "
            f"file); got {type(state_dict).__name__}"
        )
    found: dict[int, dict[str, Tensor]] = {}
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
        found.setdefault(int(number), {})[what] = tensor.detach()
    layers = [found[number] for number in sorted(found)]
    if not layers or len(layers) != max(found) + 1 or any(not {"weight", "bias"} <= set(t) for t in layers):
        raise ValueError(f"state_dict must hold weight and bias of the layers from 0 on; got layers {sorted(found)}")
    return layers


def _fill(cell: SRUCell, given: dict[str, Tensor], prefix: str, options: dict[str, Any]) -> None:
    """Copy the published layer's tensors."""
    weights = dict(cell.named_parameters())
    for name in given:
        if name not in weights and given[name].any():  # v1 has a weight_c of zeros there
            raise ValueError(f"{prefix}.{name} has no place in a layer with the options {options}")
    for name, ours in weights.items():
        theirs = given.get(name)
        shape = ours.t().shape if name == "weight" else (ours.numel(),)
        if theirs is None or theirs.shape != shape:
            raise ValueError(
                f"{prefix}.{name} must have shape {tuple(shape)} with the options {options}; "
                f"got {None if theirs is None else tuple(theirs.shape)}"
            )
        if name == "weight":  # theirs is interleaved: (input, D, k)
            theirs = theirs.view(cell.input_size, cell.output_size, cell.planes).permute(2, 1, 0)
        ours.data.copy_(theirs.reshape(ours.shape))
