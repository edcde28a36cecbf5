"""Embeddings, and the maps from them to the layers and back."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Container
from typing import Any

import torch
from fairseq import utils
from fairseq.models.transformer import Embedding
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.linear import Linear
from .options import flag


def embeddings(cfg: Namespace, source: Any, target: Any) -> tuple[nn.Embedding, nn.Embedding]:
    """The embeddings of a translation model's source and target dictionary, the same one if they are shared; with the
    vectors of a file, and left as they are, where the options say so.

    Raises:
        ValueError: a file can't be used, or dictionaries that differ are to share; the message names the flag.
    """
    if cfg.share_all_embeddings and source != target:
        raise ValueError("--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary)")
    encoder = embedding_of(cfg, "encoder", source)
    return encoder, embedding_of(cfg, "decoder", target, encoder if cfg.share_all_embeddings else None)


def embedding_of(cfg: Namespace, side: str, dictionary: Any, shared: nn.Embedding | None = None) -> nn.Embedding:
    """The embedding of the encoder or the decoder, as in :func:`embeddings`; ``shared`` is taken for it."""
    module = shared or Embedding(len(dictionary), getattr(cfg, f"{side}_embed_dim"), dictionary.pad())
    if not shared and (path := getattr(cfg, f"{side}_embed_path", None)):
        try:
            vectors = vectors_in(path, module.embedding_dim, dictionary.indices)
        except ValueError as error:
            raise ValueError(f"{flag(f'{side}_embed_path')}: {path}: {error}") from None
        utils.print_embed_overlap(vectors, dictionary)
        utils.load_embedding(vectors, dictionary, module)
    if getattr(cfg, f"{side}_freeze_embed", False):
        module.weight.requires_grad = False
    return module


def look_up(embedding: nn.Embedding, tokens: Tensor, output: bool) -> Tensor:
    """What an embedding has for tokens. ``output``: its weight is the output layer's, too, whose gradient is dense. In
    training by autocast on a CPU this one is then sparse: torch adds its few rows to the dense one, where otherwise a
    matrix of its own would be zeroed, filled and added. Where a loss leaves the output layer out it stays sparse until
    faster.py makes it dense."""
    hooked = embedding._forward_hooks or embedding._forward_pre_hooks
    usual = type(embedding) is nn.Embedding and not hooked and not torch.compiler.is_compiling()
    if not output or not usual or not tokens.is_cpu or not torch.is_autocast_enabled("cpu"):
        return embedding(tokens)  # type: ignore[no-any-return]
    return F.embedding(tokens, embedding.weight, embedding.padding_idx, sparse=True)


def vectors_in(path: str, size: int, words: Container[str]) -> dict[str, Tensor]:
    """The vectors that a file has for words. fairseq's takes no word with spaces, as GloVe's largest file has, and
    makes tensors of all its millions.

    Raises:
        ValueError: a line is not a word and ``size`` numbers, in UTF-8; the message has its number. The numbers of
            other words are counted, not read.
    """
    vectors = {}
    with open(path, "rb") as file:
        next(file)  # numbers of words and dimensions
        for number, line in enumerate(file, 2):
            if not line.strip():
                continue
            try:
                word, *numbers = line.decode("utf-8").rstrip().rsplit(" ", size)
                if word in words:
                    vectors[word] = torch.tensor([float(x) for x in numbers])
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if len(numbers) != size:
                raise ValueError(f"line {number} holds a vector of {len(numbers)} numbers, not of {size}")
    return vectors


class _Projection(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.weight.dtype)  # under autocast the residual sum stays as exact as the weights


def project_in(embed_dim: int, size: int) -> nn.Module:
    """A linear map from the embedding to the layers, where the sizes differ."""
    if embed_dim == size:
        return nn.Identity()
    linear = _Projection(embed_dim, size, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def biased(size: int, out: int) -> Linear:
    """A linear map with a bias of 0."""
    made = Linear(size, out)
    nn.init.xavier_uniform_(made.weight)
    nn.init.zeros_(made.bias)
    return made
