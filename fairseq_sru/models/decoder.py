"""The SRU decoder: all target positions at once in training, one step at a time in decoding."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..linear import Linear
from .attention import Attention, GlobalAttention, Source
from .dropout import Dropout
from .encoder import project_in
from .output import Decoder, Extra, IncrementalState, State, extra, output_norm
from .recurrent import UNITS, Packing, RecurrentLayer, padding


class DecoderLayer(nn.Module):
    """A :class:`RecurrentLayer`, then (with heads) ``x + dropout(attention(layer_norm(x)))``.

    ``recurrent`` are options of the :class:`RecurrentLayer`.
    """

    def __init__(self, size: int, source_size: int, heads: int, dropout: float, **recurrent: Any) -> None:
        super().__init__()
        self.rnn = RecurrentLayer(size, dropout, **recurrent)
        self.attention_norm = nn.LayerNorm(size) if heads else None
        self.attention = Attention(size, source_size, heads) if heads else None
        self.dropout = Dropout(dropout, module_name=type(self).__name__)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None,
        target_padding: Tensor | Packing | None,
        source: Source | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the layer's output ``(tgt_len, batch, size)``, its state and the attention weights."""
        x, state = self.rnn(x, state, target_padding)
        weights = None
        if self.attention is not None and self.attention_norm is not None:
            assert source is not None
            context, weights = self.attention(self.attention_norm(x), source, need_weights)
            x = x + self.dropout(context)
        return x, state, weights


class SRUDecoder(Decoder):
    """Embedding, :class:`DecoderLayer` s, layer norm, a linear map to the output embedding, logits.

    With global attention, :class:`GlobalAttention` takes the place of the linear map. No input feeding, so nothing but
    the recurrence runs step by step in training. The incremental state is the state of each layer; the keys and values
    of the source stay with the encoder's result.

    Args:
        dictionary: the target dictionary.
        embed_tokens: the target embedding, ``(len(dictionary), embed_dim)``.
        hidden_size: channels of each layer.
        out_embed_dim: features before the output layer.
        num_layers: number of layers.
        attention: N: multi-head, in the top layer and each N-th below; ``global``: once, after the top layer; 0: the
            layers start from the encoder's last state instead.
        heads: attention heads of a layer.
        encoder_output_units: features of the encoder outputs.
        encoder_state_units: features of the encoder's last state.
        dropout_in: dropout on the embedded tokens.
        dropout_out: dropout on each layer's output, and before the output layer.
        rnn_dropout: variational dropout on each layer's input, one draw a sentence.
        share_input_output_embed: use embed_tokens as output layer.
        adaptive_softmax_cutoff: cutoffs of an adaptive softmax; None for a full softmax.
        max_target_positions: longest target sentence.
        unit: the recurrent unit, ``sru`` or ``lstm``.
        activation: SRU's g, ``tanh``, ``identity`` or ``relu``.
        residual: False for plain layers, without layer norms.
    """

    def __init__(
        self,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        hidden_size: int,
        out_embed_dim: int,
        num_layers: int,
        attention: int | str,
        heads: int,
        encoder_output_units: int,
        encoder_state_units: int,
        dropout_in: float,
        dropout_out: float,
        rnn_dropout: float,
        share_input_output_embed: bool,
        adaptive_softmax_cutoff: list[int] | None,
        max_target_positions: int,
        unit: str = "sru",
        activation: str = "tanh",
        residual: bool = True,
    ) -> None:
        super().__init__(dictionary, embed_tokens, max_target_positions)
        self.unit = unit
        self.dropout_in = Dropout(dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, hidden_size)
        every = attention if isinstance(attention, int) else 0
        attended = range(num_layers - 1, -1, -every) if every else range(0)
        self.layers = nn.ModuleList(
            DecoderLayer(
                hidden_size,
                encoder_output_units,
                heads if i in attended else 0,
                dropout_out,
                rnn_dropout=rnn_dropout,
                unit=unit,
                activation=activation,
                residual=residual,
            )
            for i in range(num_layers)
        )
        self.initial_state = None
        if attention == 0:
            self.initial_state = Linear(encoder_state_units, num_layers * hidden_size * UNITS[unit])
        self.norm = output_norm(hidden_size) if residual else nn.Identity()
        self.global_attention = self.project_out = None
        if attention == "global":
            self.global_attention = GlobalAttention(hidden_size, encoder_output_units, out_embed_dim)
        else:
            self.project_out = Linear(hidden_size, out_embed_dim)
            nn.init.xavier_uniform_(self.project_out.weight)
            nn.init.zeros_(self.project_out.bias)
        self.dropout_out = Dropout(dropout_out, module_name=type(self).__name__)
        self.add_output_layer(out_embed_dim, dropout_out, share_input_output_embed, adaptive_softmax_cutoff)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """As :meth:`forward`, without the output layer: features ``(batch, tgt_len, out_embed_dim)``."""
        assert encoder_out is not None
        state = self.cached(incremental_state)
        states: tuple[Tensor | None, ...]
        target_padding = None
        if state:
            prev_output_tokens = prev_output_tokens[:, -1:]
            states = tuple(state.values())
        else:
            pads = prev_output_tokens.eq(self.padding_idx).t()
            target_padding = padding(self.unit, pads, outputs_only=incremental_state is None)
            states = self._initial_states(encoder_out, len(prev_output_tokens))
        sources = iter(self.sources(encoder_out, keep=incremental_state is not None))

        x = self.project_in(self.dropout_in(self.embed_tokens(prev_output_tokens.t())))
        new: State = {}
        weights = None
        need_weights = self.need_attn and not self.training
        for i, layer in enumerate(self.layers):
            source = None if layer.attention is None else next(sources)
            last = i + 1 == len(self.layers)
            x, new[str(i)], weights = layer(x, states[i], target_padding, source, need_weights and last)
        self.cache(incremental_state, new)
        x = self.norm(x)
        if self.global_attention is not None:
            x, weights = self.global_attention(x, next(sources), need_weights)
        else:
            assert self.project_out is not None
            x = self.project_out(x)
        return self.dropout_out(x).transpose(0, 1), extra(weights)

    def _initial_states(self, encoder_out: dict[str, Any], batch: int) -> tuple[Tensor | None, ...]:
        if self.initial_state is None:
            return (None,) * len(self.layers)
        state = encoder_out["encoder_state"][0].to(self.initial_state.weight.dtype)
        state = self.initial_state(state).repeat_interleave(batch // len(state), 0)
        return state.chunk(len(self.layers), dim=-1)
