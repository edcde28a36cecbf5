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
    """Return the embeddings of a translation model's source and target dictionary, the same one if they are shared; a
    ValueError names the flag of a file that can't be used, or of dictionaries that differ and are to share."""
    if cfg.share_all_embeddings and source != target:
        raise ValueError("--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary)")
    encoder = embedding_of(cfg, "encoder", source)
    return encoder, embedding_of(cfg, "decoder", target, encoder if cfg.share_all_embeddings else None)


def embedding_of(cfg: Namespace, side: str, dictionary: Any, shared: nn.Embedding | None = None) -> nn.Embedding:
    """Return the embedding of the encoder or the decoder, with the vectors of a file, and left as they are, where the
    options say so; ``shared`` is taken for it."""
    module = shared or Embedding(len(dictionary), getattr(cfg, f"{side}_embed_dim"), dictionary.pad())
    if not shared and (path := getattr(cfg, f"{side}_embed_path", None)):
        try:
            vectors = vectors_in(path, module.embedding_dim, dictionary.indices)
        except ValueError as error:
            dim = f"{flag(f'{side}_embed_dim')} {module.embedding_dim}"
            raise ValueError(f"{flag(f'{side}_embed_path')}: {path} holds no vectors of {dim}: {error}") from None
        utils.print_embed_overlap(vectors, dictionary)
        utils.load_embedding(vectors, dictionary, module)
    if getattr(cfg, f"{side}_freeze_embed", False):
        module.weight.requires_grad = False
    return module


def vectors_in(path: str, size: int, words: Container[str]) -> dict[str, Tensor]:
    """Return the vectors that a file has for words. fairseq's parser takes no word with spaces, as GloVe's largest file
    has, and makes tensors of all its millions."""
    vectors = {}
    with open(path, encoding="utf-8") as lines:
        if next(lines, "").split()[1:] != [str(size)]:
            raise ValueError(f"its first line must be the number of words and {size}")
        for line in lines:
            word, *numbers = line.rstrip().rsplit(" ", size)
            if word in words:
                if len(numbers) != size:
                    raise ValueError(f"{word} has {len(numbers)} numbers")
                vectors[word] = torch.tensor([float(number) for number in numbers])
    return vectors


def look_up(embedding: nn.Embedding, tokens: Tensor, output: bool) -> Tensor:
    """Look tokens up. ``output``: the weight is the output layer's, too, whose gradient is dense. In training by
    autocast on a CPU this one is then sparse: torch adds its few rows to the dense one, without a matrix of its own."""
    hooked = embedding._forward_hooks or embedding._forward_pre_hooks
    usual = type(embedding) is nn.Embedding and not hooked and not torch.compiler.is_compiling()
    if not output or not usual or not tokens.is_cpu or not torch.is_autocast_enabled("cpu"):
        return embedding(tokens)  # type: ignore[no-any-return]
    return F.embedding(tokens, embedding.weight, embedding.padding_idx, sparse=True)


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
    linear = Linear(size, out)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
