"""The SRU encoder."""

from __future__ import annotations

from typing import Any

from fairseq.models import FairseqEncoder
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..layers import SRUCell
from ..linear import Linear


class ResidualSRU(nn.Module):
    """``x + dropout(SRU(layer_norm(x)))``: a pre-norm residual SRU layer. The residual connection is the skip path, so
    the cell has no highway term of its own."""

    def __init__(self, size: int, dropout: float, rnn_dropout: float, bidirectional: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.sru = SRUCell(
            size,
            size // 2 if bidirectional else size,
            rnn_dropout=rnn_dropout,
            bidirectional=bidirectional,
            highway=False,
        )
        self.dropout = FairseqDropout(dropout, module_name=type(self).__name__)

    def forward(self, x: Tensor, c0: Tensor | None, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shapes as in :class:`fairseq_sru.SRUCell`."""
        h, c = self.sru(self.norm(x), c0, padding_mask)
        return x + self.dropout(h), c


class SRUEncoder(FairseqEncoder):
    """Embedding, a stack of :class:`ResidualSRU` layers, layer norm.

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
        normalize: layer norm on the outputs; without attention nothing reads them.
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
        normalize: bool = True,
    ) -> None:
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_source_positions = max_source_positions
        self.output_units = hidden_size * (2 if bidirectional else 1)
        self.embed_tokens = embed_tokens
        self.dropout_in = FairseqDropout(dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, self.output_units)
        self.layers = nn.ModuleList(
            ResidualSRU(self.output_units, dropout_out, rnn_dropout, bidirectional) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(self.output_units) if normalize else nn.Identity()

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, list[Tensor]]:
        """Encode.

        Args:
            src_tokens: ``(batch, src_len)``, padded on either side.
            src_lengths: not needed; fairseq passes it.

        Returns:
            encoder_out ``[(src_len, batch, output_units)]``, encoder_padding_mask ``[(batch, src_len)]``, and
            encoder_state ``[(batch, output_units)]``, the last layer's last cell state.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        x = self.project_in(self.dropout_in(self.embed_tokens(src_tokens.t())))
        for layer in self.layers:
            x, c = layer(x, None, padding_mask.t())
        return {"encoder_out": [self.norm(x)], "encoder_padding_mask": [padding_mask], "encoder_state": [c]}

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        """Reorder (or repeat, for a beam) the batch."""
        return {
            name: [t.index_select(1 if name == "encoder_out" else 0, new_order) for t in tensors]
            for name, tensors in encoder_out.items()
        }

    def max_positions(self) -> int:
        """Longest source sentence."""
        return self.max_source_positions


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
