"""The recurrent layers of encoder and decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .convolution import CausalConvolution, Convolution
from .dropout import Dropout
from .units import UNITS, Packing


class RecurrentLayer(nn.Module):
    """``x + dropout(unit(layer_norm(x)))``, pre-norm and residual; or a plain layer, ``dropout(unit(x))``.

    Args:
        size: features of inputs and outputs.
        dropout: dropout on the unit's output.
        rnn_dropout: variational dropout on the unit's input, one draw a sentence.
        bidirectional: the unit has ``size / 2`` channels in each direction.
        unit: of :data:`UNITS`.
        activation: SRU's g, ``tanh``, ``identity`` or ``relu``.
        residual: False for a plain layer.
        kernel_size: positions that a convolution before the unit sees; 1: there is none.
        causal: it is a :class:`CausalConvolution`, else a :class:`Convolution`.
    """

    def __init__(
        self,
        size: int,
        dropout: float,
        rnn_dropout: float,
        bidirectional: bool = False,
        unit: str = "sru",
        activation: str = "tanh",
        residual: bool = True,
        kernel_size: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.unit = unit
        self.norm = nn.LayerNorm(size) if residual else nn.Identity()
        convolution = CausalConvolution if causal else Convolution
        self.convolution = convolution(size, kernel_size) if kernel_size > 1 else None
        made = UNITS[unit].make(
            size,
            size // 2 if bidirectional else size,
            rnn_dropout=rnn_dropout,
            bidirectional=bidirectional,
            activation=activation,
            residual=residual,
            dropout=dropout,
        )
        self.add_module(unit, made)  # its name is a part of the weights' names in checkpoints
        inside = UNITS[unit].drops and not residual
        self.dropout = Dropout(0.0 if inside else dropout, module_name=type(self).__name__)

    def forward(self, x: Tensor, state: Tensor | None, padding: Any) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            x: ``(length, batch, size)``.
            state: ``(batch, UNITS[unit].states * size)``, before the first step, and with a causal convolution its
                ``(kernel_size - 1) * size`` on their right; zeros if None.
            padding: of ``UNITS[unit].padding``.

        Returns:
            The outputs ``(length, batch, size)`` and the last state, of state's shape, or None where it doesn't matter.
        """
        h = self.norm(x)
        seen = None
        if self.convolution is not None:
            padding_mask = padding.padding_mask if isinstance(padding, Packing) else padding
            if isinstance(self.convolution, CausalConvolution):
                if state is not None:
                    state, seen = state.tensor_split([UNITS[self.unit].states * x.size(-1)], dim=1)
                h, seen = self.convolution(h, padding_mask, seen)
            else:
                h = self.convolution(h, padding_mask)
        h, state = getattr(self, self.unit)(h, state, padding)
        state = state if seen is None or state is None else torch.cat([state, seen], dim=1)
        return self.dropout.plus(x, h) if self.residual else self.dropout(h), state
