"""What all translation models share: how encoder and decoder go together."""

from __future__ import annotations

from typing import Any

from fairseq.models import FairseqEncoderDecoderModel
from fairseq.sequence_generator import SequenceGenerator

from . import search
from .base_decoder import BaseDecoder
from .base_encoder import BaseEncoder
from .step import forget


class TranslationModel(FairseqEncoderDecoderModel):
    """A :class:`BaseEncoder` and a :class:`BaseDecoder`.

    What the decoder's attentions read of the source is a part of the encoder's result, so that it is computed once a
    sentence and beam search reorders it with the rest.
    """

    def __init__(self, encoder: BaseEncoder, decoder: BaseDecoder) -> None:
        super().__init__(encoder, decoder)
        encoder.project = decoder.project  # type: ignore[method-assign]

    def train(self, mode: bool = True) -> TranslationModel:
        """As in nn.Module; also forgets the compiled code."""
        forget(self)
        return super().train(mode)

    def beam_search(self, generator: SequenceGenerator, sample: dict[str, Any]) -> search.Hypotheses | None:
        """As of :func:`search.beam_search`; fairseq-0.12.2.patch asks for it."""
        return search.beam_search(self, generator, sample)
