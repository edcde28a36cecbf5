"""SRU layers as torch modules, in the manner of nn.LSTM; they know nothing of fairseq."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .linear import linear
from .recurrence import sru_recurrence

__all__ = ["SRU", "SRUCell"]


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
    return value


def _probability(name: str, value: float) -> float:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be a probability in [0, 1); got {value!r}")
    return value


class SRUCell(nn.Module):
    """One SRU layer over a sequence: the v1 cell of Lei et al. 2017 (arXiv 1709.02755v1, equations 3-7).

    ``u = W x`` is one matrix product for all time steps; the rest is :func:`fairseq_sru.sru_recurrence`. The skip
    (highway) term is the input itself where ``input_size == directions * hidden_size``, else one more matrix product.

    Parameters: ``weight`` ``(k * D, input_size)``, the blocks candidate, forget, reset (and skip), each D = directions
    * hidden_size rows; ``bias`` ``(2, D)``, forget and reset. Weights start in U(-sqrt(3 / input_size), sqrt(3 /
    input_size)), biases at 0.

    Args:
        input_size: number of features of x.
        hidden_size: number of channels of each direction.
        dropout: variational dropout on g(c), one draw a sequence.
        rnn_dropout: variational dropout on the matrix product's input, one draw a sequence; the skip term stays whole.
        use_tanh: g = tanh; with use_tanh = use_relu = 0, g is the identity.
        use_relu: g = relu; goes before use_tanh.
        bidirectional: a second set of channels runs backward in time.
        highway: False leaves the skip term out: ``h = r g(c)``, for layers that have a residual connection around them.

    Raises:
        ValueError: a size is below 1 or a probability outside [0, 1); the message names it.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        use_tanh: int = 1,
        use_relu: int = 0,
        bidirectional: bool = False,
        highway: bool = True,
    ) -> None:
        super().__init__()
        self.input_size = _positive("input_size", input_size)
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.dropout = _probability("dropout", dropout)
        self.rnn_dropout = _probability("rnn_dropout", rnn_dropout)
        self.activation = "relu" if use_relu else "tanh" if use_tanh else "identity"
        self.bidirectional = bool(bidirectional)
        self.highway = bool(highway)
        self.output_size = hidden_size * (2 if bidirectional else 1)
        self.planes = 4 if highway and input_size != self.output_size else 3
        self.weight = nn.Parameter(torch.empty(self.planes * self.output_size, input_size))
        self.bias = nn.Parameter(torch.empty(2, self.output_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew and set the biases to 0."""
        bound = math.sqrt(3.0 / self.input_size)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, c0: Tensor | None = None, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: ``(length, batch, input_size)``, or ``(batch, input_size)`` for a single step.
            c0: ``(batch, D)``, the cell state before the first step; zeros if not given.
            padding_mask: ``(length, batch)`` bool, True at padding: the state is carried and the output is 0 there.

        Returns:
            The outputs ``(length, batch, D)`` (or ``(batch, D)``) and the last cell state ``(batch, D)``, which is
            float32 whatever x is (float64 for float64).

        Raises:
            ValueError: a shape is not as described.
        """
        if x.dim() == 2:
            mask = None if padding_mask is None else padding_mask.unsqueeze(0)
            h, c = self.forward(x.unsqueeze(0), c0, mask)
            return h.squeeze(0), c
        if x.dim() != 3 or x.size(-1) != self.input_size:
            raise ValueError(
                f"x must have shape (length, batch, {self.input_size}) or (batch, {self.input_size}); "
                f"got {tuple(x.shape)}"
            )
        length, batch, _ = x.shape
        dropped = x * self._mask(x, self.rnn_dropout, self.input_size) if self.training and self.rnn_dropout else x
        u = linear(dropped, self.weight).view(length, batch, self.planes, self.output_size)
        return sru_recurrence(
            u,
            x if self.highway and self.planes == 3 else None,
            self.bias,
            c0,
            activation=self.activation,
            bidirectional=self.bidirectional,
            dropout_mask=self._mask(x, self.dropout, self.output_size) if self.training and self.dropout else None,
            padding_mask=padding_mask,
        )

    def _mask(self, x: Tensor, p: float, width: int) -> Tensor:
        return x.new_empty(x.size(1), width).bernoulli_(1 - p).div_(1 - p)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, dropout={self.dropout}, rnn_dropout={self.rnn_dropout}, "
            f"activation={self.activation}, bidirectional={self.bidirectional}, highway={self.highway}"
        )


class SRU(nn.Module):
    """A stack of SRU layers, used as the published SRU code is.

    ::

        rnn = SRU(input_size, hidden_size, num_layers=2, dropout=0.0, use_tanh=1, bidirectional=False)
        output_states, c_states = rnn(x)

    Args:
        input_size: number of features of x.
        hidden_size: number of channels of each direction.
        num_layers: number of layers.
        dropout: variational dropout on g(c) of every layer but the last.
        rnn_dropout: variational dropout on the input of every layer's matrix product.
        use_tanh: g = tanh; with use_tanh = use_relu = 0, g is the identity.
        use_relu: g = relu; goes before use_tanh.
        bidirectional: every layer runs in both directions and gives 2 * hidden_size features.

    Raises:
        ValueError: a size is below 1 or a probability outside [0, 1); the message names it.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        use_tanh: int = 1,
        use_relu: int = 0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = _positive("num_layers", num_layers)
        self.bidirectional = bool(bidirectional)
        self.output_size = hidden_size * (2 if bidirectional else 1)
        self.layers = nn.ModuleList(
            SRUCell(
                input_size if i == 0 else self.output_size,
                hidden_size,
                dropout=dropout if i + 1 < num_layers else 0.0,
                rnn_dropout=rnn_dropout,
                use_tanh=use_tanh,
                use_relu=use_relu,
                bidirectional=bidirectional,
            )
            for i in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Draw the weights of all layers anew and set their biases to 0."""
        for layer in self.layers:
            assert isinstance(layer, SRUCell)
            layer.reset_parameters()

    def forward(self, x: Tensor, c0: Tensor | None = None, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the stack.

        Args:
            x: ``(length, batch, input_size)``, or ``(batch, input_size)`` for a single step.
            c0: ``(num_layers, batch, D)``, D = directions * hidden_size; zeros if not given.
            padding_mask: ``(length, batch)`` bool, True at padding.

        Returns:
            output_states ``(length, batch, D)`` (or ``(batch, D)``) and c_states ``(num_layers, batch, D)``.

        Raises:
            ValueError: a shape is not as described.
        """
        if c0 is not None and (c0.dim() != 3 or c0.size(0) != self.num_layers):
            raise ValueError(
                f"c0 must have shape ({self.num_layers}, batch, {self.output_size}); got {tuple(c0.shape)}"
            )
        states = []
        for i, layer in enumerate(self.layers):
            x, c = layer(x, None if c0 is None else c0[i], padding_mask)
            states.append(c)
        return x, torch.stack(states)
