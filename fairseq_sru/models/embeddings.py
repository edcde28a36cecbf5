"""Embeddings, and the maps from them to the layers and back."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from fairseq import utils
from fairseq.models.transformer import Embedding
from torch import Tensor, nn

from ..layers.linear import Linear
from .options import flag


def embeddings(cfg: Namespace, source: Any, target: Any) -> tuple[nn.Embedding, nn.Embedding]:
    """The embeddings of a translation model's source and target dictionary, the same one if they are shared; with the
    vectors of a file, and left as they are, where the options say so.

    Raises:
        ValueError: a file can't be used; the message names the flag.
    """
    encoder = embedding_of(cfg, "encoder", source)
    return encoder, embedding_of(cfg, "decoder", target, encoder if cfg.share_all_embeddings else None)


def embedding_of(cfg: Namespace, side: str, dictionary: Any, shared: nn.Embedding | None = None) -> nn.Embedding:
    """The embedding of the encoder or the decoder, as in :func:`embeddings`; ``shared`` is taken for it."""
    module = shared or Embedding(len(dictionary), getattr(cfg, f"{side}_embed_dim"), dictionary.pad())
    if not shared and (path := getattr(cfg, f"{side}_embed_path", None)):
        try:
            vectors = utils.parse_embedding(path)
            utils.print_embed_overlap(vectors, dictionary)
            utils.load_embedding(vectors, dictionary, module)
        except (ValueError, RuntimeError) as error:  # a word without numbers, or with too few
            raise ValueError(f"{flag(f'{side}_embed_path')}: {path}: {error}") from None
    if getattr(cfg, f"{side}_freeze_embed", False):
        module.weight.requires_grad = False
    return module


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
