"""The SRU encoder: what runs over inputs of any kind, and the encoder of tokens."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from torch import Tensor, nn

from ..decoding.program import Program
from . import options
from .base_encoder import BaseEncoder
from .dropout import Dropout
from .embeddings import look_up, project_in
from .recurrent import RecurrentLayer
from .step import plain, write_embedding, write_norm
from .units import UNITS


class RecurrentEncoder(BaseEncoder):
    """Dropout, a linear map where sizes differ, a stack of :class:`RecurrentLayer` s, layer norm, over inputs of
    input_size features. read: False where nothing reads the outputs but the last state, and the norm would get no
    gradient."""

    def __init__(
        self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding | None, input_size: int, read: bool = True
    ) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        self.unit, self.read = cfg.recurrent_unit, read
        self.output_units = cfg.encoder_hidden_size * (2 if cfg.encoder_bidirectional else 1)
        self.state_units = self.output_units * UNITS[self.unit].states
        self.dropout_in = Dropout(cfg.encoder_dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(input_size, self.output_units)
        self.layers = nn.ModuleList(
            RecurrentLayer(
                cfg,
                self.output_units,
                cfg.encoder_dropout_out,
                not cfg.no_residual,
                cfg.encoder_bidirectional,
                cfg.encoder_kernel_size,
            )
            for _ in range(cfg.encoder_layers)
        )
        self.norm = nn.LayerNorm(self.output_units) if read and not cfg.no_residual else nn.Identity()

    def encode(self, x: Tensor, padding_mask: Tensor) -> dict[str, Any]:
        """Run the stack over x ``(length, batch, input_size)``; padding, where padding_mask ``(batch, length)`` is
        True, may be on either side.

        Return :meth:`BaseEncoder.result`; and, unless the outputs are read, encoder_state ``[(batch, state_units)]``,
        the top layer's last state.
        """
        padding = UNITS[self.unit].padding(padding_mask.t(), self.read, False)
        x = self.project_in(self.dropout_in(x))
        for layer in self.layers:
            x, state = layer(x, {}, padding)
        return self.result(self.norm(x), padding_mask, **({} if self.read else {"encoder_state": [state["c"]]}))


class SRUEncoder(RecurrentEncoder):
    """Embedding, and the stack of :class:`RecurrentEncoder`. Padding is found by its token."""

    def __init__(self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding, read: bool = True) -> None:
        super().__init__(cfg, dictionary, embed_tokens, embed_tokens.embedding_dim, read)
        self.embeds_output = getattr(cfg, "share_all_embeddings", False) and options.tied(cfg)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, Any]:
        """Encode tokens ``(batch, src_len)``, padded on either side, as :meth:`RecurrentEncoder.encode`."""
        embedded = look_up(self.embed_tokens, src_tokens.t(), self.embeds_output)
        return self.encode(embedded, src_tokens.eq(self.padding_idx))

    def program(self) -> Program | None:
        """See :meth:`BaseEncoder.program`."""
        layers: list[Any] = list(self.layers)
        cells = [getattr(layer, layer.unit) for layer in layers]
        if not all(plain(cell, bidirectional=True) for cell in cells) or not isinstance(self.norm, nn.LayerNorm):
            return None
        program = Program()
        size = self.output_units
        wide = program.slot(max(cell.planes for cell in cells) * size)
        inner, convolved = program.slot(size), program.slot(size)
        x = write_embedding(program, self.embed_tokens.weight, self.project_in)
        for layer, cell in zip(layers, cells, strict=True):
            write_norm(program, x, inner, layer.norm)
            seen = inner
            if layer.convolution is not None:
                seen = convolved
                program.convolve(inner, seen, layer.convolution.weight)
            program.linear(seen, wide, cell.weight)
            program.scan(wide, x, cell.bias, cell.activation, cell.bidirectional)
        write_norm(program, x, inner, self.norm)
        program.result = inner
        return program
