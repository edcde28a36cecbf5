"""The SRU encoder."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from torch import Tensor, nn

from ..decoding.program import Program
from .base_encoder import BaseEncoder
from .dropout import Dropout
from .embeddings import project_in
from .options import attention
from .recurrent import RecurrentLayer
from .step import plain, write_embedding, write_norm
from .units import UNITS


class SRUEncoder(BaseEncoder):
    """Embedding, a stack of :class:`RecurrentLayer` s, layer norm.

    Padding is found by its token, so the source may be padded on either side.

    Args:
        cfg: options of :class:`SRUConfig`, completed.
        dictionary: the source dictionary.
        embed_tokens: the source embedding, ``(len(dictionary), embed_dim)``.
    """

    def __init__(self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        self.unit = cfg.recurrent_unit
        self.output_units = cfg.encoder_hidden_size * (2 if cfg.encoder_bidirectional else 1)
        self.state_units = self.output_units * UNITS[self.unit].states
        self.dropout_in = Dropout(cfg.encoder_dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, self.output_units)
        self.layers = nn.ModuleList(
            RecurrentLayer(
                self.output_units,
                cfg.encoder_dropout_out,
                cfg.rnn_dropout,
                bidirectional=cfg.encoder_bidirectional,
                unit=self.unit,
                activation=cfg.sru_activation,
                residual=not cfg.no_residual,
                kernel_size=cfg.encoder_kernel_size,
            )
            for _ in range(cfg.encoder_layers)
        )
        read = attention(cfg) != 0  # else nothing reads the outputs, and the norm would get no gradient
        self.norm = nn.LayerNorm(self.output_units) if read and not cfg.no_residual else nn.Identity()

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, Any]:
        """Encode.

        Args:
            src_tokens: ``(batch, src_len)``, padded on either side.
            src_lengths: not needed; fairseq passes it.

        Returns:
            As of :meth:`BaseEncoder.result`, and encoder_state ``[(batch, state_units)]``, the top layer's last state.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        padding = UNITS[self.unit].padding(padding_mask.t(), False)
        x = self.project_in(self.dropout_in(self.embed_tokens(src_tokens.t())))
        for layer in self.layers:
            x, state = layer(x, None, padding)
        return self.result(self.norm(x), padding_mask, encoder_state=[state])

    def program(self) -> Program | None:
        """As of :meth:`BaseEncoder.program`."""
        layers: list[Any] = list(self.layers)
        cells = [getattr(layer, layer.unit) for layer in layers]
        if not all(plain(cell, bidirectional=True) for cell in cells) or not isinstance(self.norm, nn.LayerNorm):
            return None
        made = Program()
        size = self.output_units
        wide = made.slot(max(cell.planes for cell in cells) * size)
        inner, convolved = made.slot(size), made.slot(size)
        x = write_embedding(made, self.embed_tokens.weight, self.project_in)
        for layer, cell in zip(layers, cells, strict=True):
            write_norm(made, x, inner, layer.norm)
            seen = inner
            if layer.convolution is not None:
                seen = convolved
                made.convolve(inner, seen, layer.convolution.weight)
            made.linear(seen, wide, cell.weight)
            made.scan(wide, x, cell.bias, cell.activation, cell.bidirectional)
        write_norm(made, x, inner, self.norm)
        made.result = inner
        return made
