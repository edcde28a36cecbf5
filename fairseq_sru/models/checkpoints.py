"""Types of fairseq's checkpoints that ``torch.load`` reads with its safety on.

Since torch 2.6, ``torch.load`` reads only tensors and plain containers unless other types are allowed. fairseq's
checkpoints also hold options in an ``argparse.Namespace`` or OmegaConf's nodes, and numbers and arrays of numpy after
``--eval-bleu``.
"""

from __future__ import annotations

import argparse
import collections
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import omegaconf
from omegaconf.base import ContainerMetadata, Metadata
from torch.serialization import add_safe_globals, safe_globals

OPTIONS = [argparse.Namespace, omegaconf.DictConfig, omegaconf.ListConfig, omegaconf.AnyNode]
OPTIONS += [ContainerMetadata, Metadata, Any, collections.defaultdict, dict, list, int]

_scalar = np.float64(0).__reduce__()[0]
_reconstruct = np.zeros(0).__reduce__()[0]
NUMPY: list[Any] = [np.dtype, np.ndarray, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd")]
for _module in ("numpy._core.multiarray", "numpy.core.multiarray"):  # numpy 2, numpy 1
    NUMPY += [(_scalar, f"{_module}.scalar"), (_reconstruct, f"{_module}._reconstruct")]

VECTORS = ("encoder_embed_path", "decoder_embed_path")  # files that only training reads


def allow_options() -> None:
    """Let ``torch.load`` read fairseq's checkpoints with its safety on, from now on."""
    add_safe_globals([*OPTIONS, *NUMPY])


@contextmanager
def fairseq_checkpoints() -> Iterator[None]:
    """Within it, ``torch.load`` reads fairseq's checkpoints with its safety on."""
    with safe_globals([*OPTIONS, *NUMPY]):
        yield


def loader(load: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return fairseq's function that loads a checkpoint, after which the model asks for no file of pretrained
    embeddings: the checkpoint has their vectors."""

    @functools.wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = load(*args, **kwargs)
        cfg = (state.get("cfg") or {}).get("model")
        for name in VECTORS:
            if getattr(cfg, name, None) is not None:
                setattr(cfg, name, None)
        return state

    return loaded
