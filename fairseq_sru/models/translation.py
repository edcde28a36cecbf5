"""What all translation models share: how encoder and decoder go together."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from . import search
from .base_decoder import BaseDecoder
from .base_encoder import BaseEncoder
from .step import forget

logger = logging.getLogger(__name__)


class TranslationModel(FairseqEncoderDecoderModel):
    """A :class:`BaseEncoder` and a :class:`BaseDecoder`."""

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Says so where a checkpoint has two embeddings for the one that this model has."""
        super().upgrade_state_dict_named(state_dict, name)
        if getattr(self.encoder, "embed_tokens", None) is self.decoder.embed_tokens:
            first = f"{name}." if name else ""
            names = [f"{first}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
            source, target = map(state_dict.get, names)
            if source is not None and target is not None and not torch.equal(source, target):
                logger.warning(
                    "--share-all-embeddings: the checkpoint has two embeddings, which differ; the decoder's is taken "
                    "for both"
                )

    def train(self, mode: bool = True) -> TranslationModel:
        """As in nn.Module; also forgets the compiled code."""
        if mode and self._is_generation_fast:
            raise RuntimeError("cannot train after make_generation_fast")
        forget(self, mode)
        return super().train(mode)

    def make_generation_fast_(self, name: str = "", **options: Any) -> None:
        """As fairseq's, whose own train(), which forgets nothing, doesn't stay."""
        super().make_generation_fast_(**options)
        self.__dict__.pop("train", None)

    def beam_search(self, generator: SequenceGenerator, sample: dict[str, Any]) -> search.Hypotheses | None:
        """Search as :func:`search.beam_search` does; :mod:`faster` makes fairseq's generator ask for it."""
        if not (isinstance(self.encoder, BaseEncoder) and isinstance(self.decoder, BaseDecoder)):
            return None
        return search.beam_search(self, generator, sample)
