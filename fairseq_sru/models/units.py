"""The recurrent units of the models: SRU, or LSTM in its place to compare with. A new one is an entry in UNITS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..layers.cell import SRUCell, variational_mask
from ..layers.linear import linear
from ..recurrence.modes import eager


class Packing(NamedTuple):
    """The way in which an LSTM layer packs a padded batch: padding_mask ``(length, batch)`` bool, True at padding;
    lengths ``(batch)``, on the CPU, as packing requires.

    order is ``(length, batch, 1)``, where each step of the right-padded batch comes from; None where the batch is
    right-padded as it is. turned is likewise, of the right-padded batch of sequences turned round; None where the
    layers are causal, where the last state matters, and on a GPU, which packs. outputs_only: the last state doesn't
    matter.
    """

    padding_mask: Tensor
    lengths: Tensor
    order: Tensor | None
    turned: Tensor | None
    outputs_only: bool


def packed(padding_mask: Tensor, outputs_only: bool, causal: bool) -> Packing | None:
    """Return what LSTM layers have to know about padding, True in padding_mask ``(length, batch)``; None where there is
    none that matters.

    outputs_only: only real positions of the outputs matter, not the last state. causal: the layers see nothing to the
    right; then, if only outputs matter, padding at the end needs no care.
    """
    on_cpu = padding_mask.cpu()  # the one wait for the GPU; packing needs the lengths
    if not on_cpu.any():
        return None
    right_padded = not (on_cpu[:-1] & ~on_cpu[1:]).any()
    if outputs_only and causal and right_padded:
        return None
    lengths = (~on_cpu).sum(0).clamp(min=1)
    order = None if right_padded else _real_first(padding_mask)
    turned = None
    if outputs_only and not causal and padding_mask.is_cpu:
        turned = len(padding_mask) - 1 - _real_first(padding_mask.flip(0))
    return Packing(padding_mask, lengths, order, turned, outputs_only)


def _real_first(padding_mask: Tensor) -> Tensor:
    return padding_mask.byte().argsort(dim=0, stable=True).unsqueeze(-1)


class LSTM(nn.LSTM):
    """One layer of nn.LSTM with the interface of :class:`fairseq_sru.SRUCell`; hidden_size: channels of each direction;
    rnn_dropout: variational dropout on the input, one draw a sequence."""

    def __init__(self, input_size: int, hidden_size: int, rnn_dropout: float, bidirectional: bool) -> None:
        super().__init__(input_size, hidden_size, bidirectional=bidirectional)
        self.rnn_dropout = rnn_dropout

    def reset_parameters(self) -> None:
        """Draw the weights again: input Glorot, recurrent orthogonal, biases 0 but for the forget gate's."""
        for name, parameter in self.named_parameters():
            for i, gate in enumerate(parameter.chunk(4)):  # input, forget, cell, output
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(gate)
                else:  # at 1 the state outlives the first updates (Jozefowicz et al. 2015); fairseq's +-0.1 halves it
                    nn.init.constant_(gate, 1.0 if i == 1 and name.startswith("bias_ih") else 0.0)

    def flatten_parameters(self) -> None:
        """For cuDNN; weights that were laid out by columns on a CPU are laid out by rows again."""
        for weight in self.parameters():
            if not weight.is_cpu:
                weight.data = weight.data.contiguous()
        super().flatten_parameters()

    def forward(  # type: ignore[override]
        self, x: Tensor, state: Tensor | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer over x ``(length, batch, input_size)``.

        state is ``(batch, 2 * D)``, h and c before the first step, D = directions * hidden_size; zeros if None. With a
        packing of :func:`packed`, padded positions are skipped, and the output is 0 there. Return the outputs
        ``(length, batch, D)`` and the last state; None where it doesn't matter and there is padding.
        """
        if self.training and self.rnn_dropout:
            x = x * variational_mask(x, self.rnn_dropout, x.size(-1))
        if len(x) == 1 and packing is None and self._steps(x):
            return self._step(x[0], state)
        before = None
        if state is not None:
            h0, c0 = state.to(x.dtype).unflatten(-1, (2, -1, self.hidden_size)).permute(1, 2, 0, 3).contiguous()
            before = (h0, c0)
        if packing is None:
            out, after = super().forward(x, before)
        else:
            if packing.outputs_only and x.is_cpu and state is None:
                return self._each_way(x, packing), None
            lengths, order = packing.lengths, packing.order
            x = x if order is None else x.gather(0, order.expand_as(x))
            packed, after = super().forward(pack_padded_sequence(x, lengths, enforce_sorted=False), before)
            out, _ = pad_packed_sequence(packed, total_length=len(x))
            if order is not None:
                out = torch.empty_like(out).scatter(0, order.expand_as(out), out)
        return out, torch.stack(after).permute(2, 0, 1, 3).flatten(1)

    def _each_way(self, x: Tensor, packing: Packing) -> Tensor:
        """Return the outputs, each direction by itself, over batches whose padding comes last: packed ones, which
        nn.LSTM does not give to oneDNN, take far longer."""
        outputs = []
        zeros = x.new_zeros(1, x.size(1), self.hidden_size)
        for order, weights in zip((packing.order, packing.turned), self.all_weights, strict=False):
            ordered = x if order is None else x.gather(0, order.expand_as(x))
            out, *_ = torch.lstm(ordered, (zeros, zeros), tuple(weights), True, 1, 0.0, self.training, False, False)
            outputs.append(out if order is None else torch.empty_like(out).scatter(0, order.expand_as(out), out))
        return torch.cat(outputs, dim=-1).masked_fill(packing.padding_mask.unsqueeze(-1), 0.0)

    def _steps(self, x: Tensor) -> bool:
        """Return whether :meth:`_step` can take a step."""
        recorded = torch.is_grad_enabled() or not eager() or torch.is_autocast_enabled("cpu")
        return x.is_cpu and x.dtype == torch.float32 and not self.bidirectional and not recorded

    def _step(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run one step, x ``(batch, input_size)``: nn.LSTM goes through oneDNN, which turns the weights again at each
        call and takes up to seven times as long for a step of one row."""
        h, c = x.new_zeros(2, len(x), self.hidden_size) if state is None else state.chunk(2, dim=-1)
        from_x, from_h, *biases = self.all_weights[0]
        gates = linear(x, from_x, biases[0]) + linear(h.contiguous(), from_h, biases[1])
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h.unsqueeze(0), torch.cat([h, c], dim=-1)


class SRU(SRUCell):
    """:class:`fairseq_sru.SRUCell` in a model, where activations at padding are finite and need no mask."""

    finite_padding = True


def _sru(size: int, hidden_size: int, *, activation: str, residual: bool, dropout: float, **options: Any) -> nn.Module:
    """Without highway term where there is a residual connection, which is the skip path. A plain layer has one, and its
    dropout is the variational one inside the cell, which leaves the skip term whole."""
    return SRU(
        size,
        hidden_size,
        dropout=0.0 if residual else dropout,
        use_tanh=int(activation == "tanh"),
        use_relu=int(activation == "relu"),
        highway=not residual,
        **options,
    )


def _lstm(size: int, hidden_size: int, *, rnn_dropout: float, bidirectional: bool, **_: Any) -> nn.Module:
    return LSTM(size, hidden_size, rnn_dropout, bidirectional)


def _masked(padding_mask: Tensor, outputs_only: bool, causal: bool) -> Tensor | None:
    """Return what SRU layers have to know about padding; None on a CPU where there is none, which saves them passes."""
    return None if padding_mask.is_cpu and eager() and not padding_mask.any() else padding_mask.contiguous()


class Unit(NamedTuple):
    """A recurrent unit.

    Attributes:
        states: how many vectors of a layer's width its state has: SRU's is c, LSTM's is h and c.
        make: given size, hidden_size and the keywords rnn_dropout, bidirectional, activation, residual and dropout,
            makes a module: ``(x, state, padding) -> (outputs, state)``, x ``(length, batch, size)``, outputs ``(length,
            batch, directions * hidden_size)``, state ``(batch, states * directions * hidden_size)`` or None for zeros.
        padding: given the padding mask ``(length, batch)``, whether only real positions of the outputs matter, and
            whether the layers see nothing to the right, what ``make`` 's module takes as padding: the mask, None where
            there is no padding, or a :class:`Packing`; found once for all layers.
        drops: has the dropout of a layer without residual connection inside.
    """

    states: int
    make: Callable[..., nn.Module]
    padding: Callable[[Tensor, bool, bool], Any]
    drops: bool


UNITS = {
    "sru": Unit(1, _sru, _masked, drops=True),
    "lstm": Unit(2, _lstm, packed, drops=False),
}
