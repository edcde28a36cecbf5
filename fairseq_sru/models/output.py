"""What decoders share that predict a token at each position: output layer, incremental state, keys and values."""

from __future__ import annotations

import logging
from typing import Any

from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from ..layers import SRUCell
from ..linear import Linear, by_columns, linear
from .attention import Attention, GlobalAttention, Source
from .recurrent import LSTM

State = dict[str, Tensor]
IncrementalState = dict[str, dict[str, Tensor | None]]  # fairseq's
Extra = dict[str, list[Tensor] | None]  # fairseq's, too

logger = logging.getLogger(__name__)


def extra(weights: Tensor | None) -> Extra:
    """What a decoder returns beside its features, ``(batch, tgt_len, src_len)``; no list of None, which fairseq's
    SequenceScorer takes for weights in an ensemble."""
    return {"attn": None if weights is None else [weights]}


def output_norm(size: int) -> nn.LayerNorm:
    """The layer norm before the output layer. Its gain starts at 0.1, see docs/maths.md: with 1 the loss is too curved
    for gradient descent at fairseq's usual settings, the more so the wider the layers."""
    norm = nn.LayerNorm(size)
    nn.init.constant_(norm.weight, 0.1)
    return norm


def _forget_tied(decoder: Any, _: Any) -> None:
    decoder.tied = None


class Decoder(FairseqIncrementalDecoder):
    """Embedding and output layer; what lies between is the subclass's ``extract_features``.

    The incremental state is a dict of tensors that have the batch first; :meth:`cached` reads it, :meth:`cache` writes
    it.

    Args:
        dictionary: of the tokens that are predicted.
        embed_tokens: the embedding, ``(tokens that are read, embed_dim)``.
        max_target_positions: longest sequence.
    """

    def __init__(self, dictionary: Any, embed_tokens: nn.Embedding, max_target_positions: int) -> None:
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_target_positions = max_target_positions
        self.need_attn = True
        self.embed_tokens = embed_tokens
        self.tied: Tensor | None
        self.register_buffer("tied", None, persistent=False)  # the embedding, laid out for the output layer
        self.register_load_state_dict_post_hook(_forget_tied)

    def add_output_layer(
        self,
        out_embed_dim: int,
        dropout: float,
        share_input_output_embed: bool,
        adaptive_softmax_cutoff: list[int] | None,
    ) -> None:
        """Make the output layer. A call of its own, since where it is made decides the order of the parameters, by
        which checkpoints hold the optimizer's state.

        Args:
            out_embed_dim: features before the output layer.
            dropout: dropout inside an adaptive softmax.
            share_input_output_embed: use embed_tokens as output layer.
            adaptive_softmax_cutoff: cutoffs of an adaptive softmax; None for a full softmax.
        """
        self.adaptive_softmax = None
        self.output_projection = None
        if adaptive_softmax_cutoff is not None:
            self.adaptive_softmax = AdaptiveSoftmax(
                len(self.dictionary), out_embed_dim, adaptive_softmax_cutoff, dropout=dropout
            )
        elif not share_input_output_embed:
            self.output_projection = Linear(out_embed_dim, len(self.dictionary), bias=False)
            nn.init.normal_(self.output_projection.weight, mean=0.0, std=out_embed_dim**-0.5)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """As :meth:`forward`, without the output layer: features ``(batch, tgt_len, out_embed_dim)``."""
        raise NotImplementedError

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """Decode.

        Args:
            prev_output_tokens: ``(batch, tgt_len)``, all tokens so far, padded on either side. With an incremental
                state that holds earlier steps the result is that of the last token alone.
            encoder_out: the encoder's result, where there is an encoder.
            incremental_state: fairseq's cache; None computes all positions at once.
            src_lengths: not needed; fairseq passes it.
            features_only: leave the output layer out.

        Returns:
            Logits ``(batch, tgt_len, len(dictionary))`` (with an adaptive softmax or features_only: features), and
            ``{"attn": [weights]}``, ``(batch, tgt_len, src_len)``, or ``{"attn": None}``.
        """
        x, beside = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return (x if features_only else self.output_layer(x)), beside

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """Features ``(batch, tgt_len, out_embed_dim)`` to logits; an adaptive softmax takes the features as they
        are."""
        if self.adaptive_softmax is not None:
            return features
        weight = self.tied if self.output_projection is None else self.output_projection.weight
        return linear(features, self.embed_tokens.weight if weight is None else weight)

    def attentions(self) -> list[Attention | GlobalAttention]:
        """What attends to the source, in the order of the layers."""
        return [m for m in self.modules() if isinstance(m, Attention | GlobalAttention)]

    def sources(self, encoder_out: dict[str, Any], keep: bool) -> list[Source]:
        """What each attention reads; kept with the encoder's result, which reorders it with the rest."""
        names = ("keys", "values", "masks")
        if "keys" in encoder_out:
            return list(map(Source, *(encoder_out[name] for name in names)))
        source, padding_mask = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        sources = [attention.project(source, padding_mask) for attention in self.attentions()]
        if keep:
            encoder_out.update({name: [s[i] for s in sources] for i, name in enumerate(names)})
        return sources

    def cached(self, incremental_state: IncrementalState | None) -> State:
        """The state after the earlier steps; empty before the first."""
        return self.get_incremental_state(incremental_state, "cached_state") or {}

    def cache(self, incremental_state: IncrementalState | None, state: State) -> None:
        """Keep the state for the next step; without an incremental state, there is none."""
        self.set_incremental_state(incremental_state, "cached_state", state)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Reorder the cached state as the beam search reordered its hypotheses."""
        state = self.cached(incremental_state)
        if state:
            self.cache(incremental_state, {name: x.index_select(0, new_order) for name, x in state.items()})

    def max_positions(self) -> int:
        """Longest sequence."""
        return self.max_target_positions

    def make_generation_fast_(self, need_attn: bool = False, retain_dropout: bool = False, **_: Any) -> None:
        """fairseq-generate says whether the attention weights are needed, and whether dropout goes on. Weights are laid
        out for products of few rows; an embedding that is also the output layer is kept twice, since its lookups read
        rows.
        """
        if need_attn and not self.attentions():
            logger.warning("--print-alignment: a model without attention has none; in an ensemble the others have")
        if retain_dropout and any(
            isinstance(m, SRUCell | LSTM) and (m.dropout or m.rnn_dropout) for m in self.modules()
        ):
            logger.warning(
                "--retain-dropout keeps the dropout between the layers, not the variational dropout inside recurrent "
                "layers (--rnn-dropout; with --no-residual SRU's --dropout, too)"
            )
        self.need_attn = need_attn
        for module in self.modules():
            if isinstance(module, Linear | SRUCell):
                module.weight.data = by_columns(module.weight.data)
        if self.adaptive_softmax is None and self.output_projection is None:
            weight = self.embed_tokens.weight.detach()
            laid_out = by_columns(weight)
            self.tied = None if laid_out is weight else laid_out
