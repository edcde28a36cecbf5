"""Base of all translation models: how encoder and decoder go together."""

from __future__ import annotations

from typing import Any

from fairseq.models import FairseqEncoderDecoderModel
from fairseq.sequence_generator import SequenceGenerator

from . import search
from .base_decoder import BaseDecoder
from .base_encoder import BaseEncoder
from .step import forget


class TranslationModel(FairseqEncoderDecoderModel):
    """A :class:`BaseEncoder` and a :class:`BaseDecoder`."""

    def train(self, mode: bool = True) -> TranslationModel:
        """Set the mode as nn.Module does; also forget the compiled code."""
        forget(self, mode)
        return super().train(mode)

    def beam_search(self, generator: SequenceGenerator, sample: dict[str, Any]) -> search.Hypotheses | None:
        """Search as :func:`search.beam_search` does; :mod:`faster` makes fairseq's generator ask for it."""
        if not (isinstance(self.encoder, BaseEncoder) and isinstance(self.decoder, BaseDecoder)):
            return None
        return search.beam_search(self, generator, sample)
