"""The model ``s2t_sru`` and its architectures: frames of speech to text."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from fairseq.models import register_model
from fairseq.models.speech_to_text.s2t_transformer import Conv1dSubsampler
from torch import Tensor
from torch.nn import functional as F

from . import options, sru
from .architectures import register_architectures
from .config import SpeechConfig
from .decoder import SRUDecoder
from .embeddings import embedding_of
from .encoder import RecurrentEncoder
from .translation import TranslationModel


class Subsampler(Conv1dSubsampler):
    """That of fairseq's ``s2t_transformer`` (Synnaeve et al. 2019): convolutions over time with stride 2, each with a
    gated linear unit. Frames of padding count as 0 for each of them, so they change no other frame."""

    def forward(self, x: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return half as many frames for each convolution, ``(batch, less, size)``, and their padding mask; True is
        padding, which is at the end."""
        x = x.transpose(1, 2)
        for convolution in self.conv_layers:
            x = F.glu(convolution(x.masked_fill(padding_mask.unsqueeze(1), 0.0)), dim=1)
            padding_mask = padding_mask[:, ::2]  # that of the frame in the middle
        return x.transpose(1, 2), padding_mask


class SpeechEncoder(RecurrentEncoder):
    """:class:`Subsampler`, and the stack of :class:`RecurrentEncoder`."""

    def __init__(self, cfg: Namespace, read: bool) -> None:
        super().__init__(cfg, None, None, cfg.encoder_embed_dim, read)
        frame = cfg.input_feat_per_channel * cfg.input_channels
        self.subsample = Subsampler(
            frame, cfg.conv_channels, cfg.encoder_embed_dim, options.numbers(cfg.conv_kernel_sizes)
        )

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **_: Any) -> dict[str, Any]:
        """Encode frames ``(batch, length, input_feat_per_channel * input_channels)``, of which src_lengths ``(batch)``
        are real, as :meth:`RecurrentEncoder.encode`."""
        padding_mask = torch.arange(src_tokens.size(1), device=src_lengths.device) >= src_lengths[:, None]
        dtype = next(self.subsample.parameters()).dtype  # fairseq-generate --fp16 leaves frames in float32
        x, padding_mask = self.subsample(src_tokens.to(dtype), padding_mask)
        return self.encode(x.transpose(0, 1).to(dtype), padding_mask)  # autocast rounds only products, no sums


@register_model("s2t_sru", dataclass=SpeechConfig)
class SpeechModel(TranslationModel):
    """Speech to text: the encoder of ``--arch sru`` over convolutions, and its decoder, with SRU or LSTM units."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> SpeechModel:
        """Build the model for a task's dictionary; a ValueError names the flag of options that don't go together."""
        cfg = sru.check(cfg, SpeechConfig)
        encoder = SpeechEncoder(cfg, read=options.attention(cfg.decoder_attention) != 0)
        target, embed = task.target_dictionary, embedding_of(cfg, "decoder", task.target_dictionary)
        return cls(encoder, SRUDecoder(cfg, target, embed, encoder.output_units, encoder.state_units))


register_architectures("s2t_sru", SpeechConfig, sru.check, task="speech_to_text")
