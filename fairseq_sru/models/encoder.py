"""The SRU encoder."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from ..linear import Linear
from .dropout import Dropout
from .recurrent import UNITS, RecurrentLayer, padding


class Encoder(FairseqEncoder):
    """Embedding, and how a beam search reorders the result; what computes it is the subclass's ``forward``.

    Args:
        dictionary: the source dictionary.
        embed_tokens: the source embedding, ``(len(dictionary), embed_dim)``.
        max_source_positions: longest source sentence.
    """

    def __init__(self, dictionary: Any, embed_tokens: nn.Embedding, max_source_positions: int) -> None:
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_source_positions = max_source_positions
        self.embed_tokens = embed_tokens

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        """Reorder (or repeat, for a beam) the rows of the batch.

        Rows of one sentence share its tensors while each sentence has equally many, next to one another, as in beam
        search; then this copies nothing but, when sentences are done, those that are not. Else each row gets a copy.
        """
        rows = encoder_out["rows_per_sentence"]
        runs = [(n, len(list(run))) for n, run in groupby(row // rows for row in new_order.tolist())]
        together = len({length for _, length in runs}) == 1
        kept = [n for n, length in runs for _ in range(1 if together else length)]
        new = {**encoder_out, "rows_per_sentence": len(new_order) // len(kept)}
        if kept != list(range(len(encoder_out["encoder_padding_mask"][0]))):
            at = torch.tensor(kept, device=new_order.device)
            for name, tensors in encoder_out.items():
                if name != "rows_per_sentence":
                    new[name] = [t.index_select(1 if name == "encoder_out" else 0, at) for t in tensors]
        return new

    def max_positions(self) -> int:
        """Longest source sentence."""
        return self.max_source_positions


class SRUEncoder(Encoder):
    """Embedding, a stack of :class:`RecurrentLayer` s, layer norm.

    Padding is found by its token, so the source may be padded on either side.

    Args:
        dictionary: the source dictionary.
        embed_tokens: the source embedding, ``(len(dictionary), embed_dim)``.
        hidden_size: channels of each direction.
        num_layers: number of layers.
        bidirectional: run every layer in both directions; outputs then have 2 * hidden_size features.
        dropout_in: dropout on the embedded tokens.
        dropout_out: dropout on each layer's output.
        rnn_dropout: variational dropout on each layer's input, one draw a sentence.
        max_source_positions: longest source sentence.
        unit: the recurrent unit, ``sru`` or ``lstm``.
        activation: SRU's g, ``tanh``, ``identity`` or ``relu``.
        residual: False for plain layers, without layer norms.
        attended: the decoder attends to the outputs; else nothing reads them, and they need no layer norm.
        kernel_size: positions that the :class:`Convolution` in each layer sees; 1: there is none.
    """

    def __init__(
        self,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout_in: float,
        dropout_out: float,
        rnn_dropout: float,
        max_source_positions: int,
        unit: str = "sru",
        activation: str = "tanh",
        residual: bool = True,
        attended: bool = True,
        kernel_size: int = 1,
    ) -> None:
        super().__init__(dictionary, embed_tokens, max_source_positions)
        self.unit = unit
        self.output_units = hidden_size * (2 if bidirectional else 1)
        self.state_units = self.output_units * UNITS[unit]
        self.dropout_in = Dropout(dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, self.output_units)
        self.layers = nn.ModuleList(
            RecurrentLayer(
                self.output_units,
                dropout_out,
                rnn_dropout,
                bidirectional,
                unit=unit,
                activation=activation,
                residual=residual,
                kernel_size=kernel_size,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(self.output_units) if residual and attended else nn.Identity()

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, Any]:
        """Encode.

        Args:
            src_tokens: ``(batch, src_len)``, padded on either side.
            src_lengths: not needed; fairseq passes it.

        Returns:
            encoder_out ``[(src_len, batch, output_units)]``, encoder_padding_mask ``[(batch, src_len)]``, encoder_state
            ``[(batch, state_units)]``, the last layer's last state, and rows_per_sentence, 1. The decoder adds keys,
            values and masks, of the :class:`Source` of each attention.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        pads = padding(self.unit, padding_mask.t())
        x = self.project_in(self.dropout_in(self.embed_tokens(src_tokens.t())))
        for layer in self.layers:
            x, state = layer(x, None, pads)
        return {
            "encoder_out": [self.norm(x)],
            "encoder_padding_mask": [padding_mask],
            "encoder_state": [state],
            "rows_per_sentence": 1,
        }


def project_in(embed_dim: int, size: int) -> nn.Module:
    """A linear map from the embedding to the layers, where the sizes differ."""
    if embed_dim == size:
        return nn.Identity()
    linear = Linear(embed_dim, size, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def embedding(num_embeddings: int, embed_dim: int, padding_idx: int) -> nn.Embedding:
    """An embedding ~ N(0, 1 / embed_dim), zero at padding."""
    module = nn.Embedding(num_embeddings, embed_dim, padding_idx=padding_idx)
    nn.init.normal_(module.weight, mean=0.0, std=embed_dim**-0.5)
    nn.init.zeros_(module.weight[padding_idx])
    return module
