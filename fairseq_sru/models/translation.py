"""What all translation models share: how encoder and decoder go together."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from . import search
from .step import forget

logger = logging.getLogger(__name__)


class TranslationModel(FairseqEncoderDecoderModel):
    """A :class:`BaseEncoder` and a :class:`BaseDecoder`.

    What the decoder's attentions read of the source is a part of the encoder's result, so that it is computed once a
    sentence and beam search reorders it with the rest.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """As in nn.Module; an encoder computes for the decoder that it is with."""
        super().__setattr__(name, value)
        parts = self._modules.get("encoder"), self._modules.get("decoder")
        if name in ("encoder", "decoder") and None not in parts:
            parts[0].project = parts[1].project  # type: ignore[assignment, union-attr]

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
        forget(self, mode)
        return super().train(mode)

    def make_generation_fast_(self, name: str = "", **options: Any) -> None:
        """As fairseq's, after which nothing reaches :meth:`train`; it still has to forget."""
        if self._is_generation_fast:
            return
        super().make_generation_fast_(**options)
        fast = self.train

        def train(mode: bool = True) -> None:
            for module in (self, self.decoder):
                forget(module, mode)
            fast(mode)

        self.train = train  # type: ignore[assignment, method-assign]

    def beam_search(self, generator: SequenceGenerator, sample: dict[str, Any]) -> search.Hypotheses | None:
        """As of :func:`search.beam_search`; fairseq-0.12.2.patch asks for it."""
        return search.beam_search(self, generator, sample)
