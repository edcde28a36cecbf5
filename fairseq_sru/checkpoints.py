"""What a fairseq checkpoint may hold beside tensors.

Since torch 2.6, ``torch.load`` reads tensors and plain containers alone unless it is told of other types. fairseq's
checkpoints also hold the types below: values without behaviour, whose loading runs no code of the file's choosing.
They are allowed one by one; whatever else a file asks for is refused as before.
"""

from __future__ import annotations

import argparse
import collections
import typing
from typing import Any

import numpy as np
import torch

__all__ = ["allow_fairseq_checkpoints"]


def _numpy_types() -> list[Any]:
    """Scalars and arrays: ``--eval-bleu`` logs BLEU as numpy numbers."""
    from numpy._core import multiarray

    functions = [multiarray.scalar, multiarray._reconstruct]  # type: ignore[attr-defined]
    return [
        np.dtype,
        np.ndarray,
        *functions,
        *((f, f"numpy.core.multiarray.{f.__name__}") for f in functions),  # as numpy 1 wrote them
        *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
    ]


def _omegaconf_types() -> list[Any]:
    """Configuration objects: distributed training saves them as they are."""
    import omegaconf
    from omegaconf import base, nodes

    return [
        omegaconf.DictConfig,
        omegaconf.ListConfig,
        base.ContainerMetadata,
        base.Metadata,
        *(
            getattr(nodes, name)
            for name in (
                "AnyNode",
                "StringNode",
                "IntegerNode",
                "FloatNode",
                "BooleanNode",
                "EnumNode",
                "PathNode",
                "BytesNode",
            )
        ),
        typing.Any,
        collections.defaultdict,
        *(str, int, float, bool, list, dict, tuple),
    ]


def allow_fairseq_checkpoints() -> None:
    """Let ``torch.load`` read fairseq's checkpoints with its safety on."""
    torch.serialization.add_safe_globals([argparse.Namespace, *_numpy_types(), *_omegaconf_types()])
