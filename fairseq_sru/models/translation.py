"""What all translation models share: how encoder and decoder go together."""

from __future__ import annotations

from fairseq.models import FairseqEncoderDecoderModel

from .base_decoder import BaseDecoder
from .base_encoder import BaseEncoder


class TranslationModel(FairseqEncoderDecoderModel):
    """A :class:`BaseEncoder` and a :class:`BaseDecoder`.

    What the decoder's attentions read of the source is a part of the encoder's result, so that it is computed once a
    sentence and beam search reorders it with the rest.
    """

    def __init__(self, encoder: BaseEncoder, decoder: BaseDecoder) -> None:
        super().__init__(encoder, decoder)
        encoder.project = decoder.project  # type: ignore[method-assign]
