"""The recurrent layers of encoder and decoder."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from torch import Tensor, nn

from .convolution import CausalConvolution, Convolution
from .dropout import Dropout
from .units import UNITS, Packing

State = dict[str, Tensor]  # what a layer keeps of earlier steps, batch first; empty before the first


class RecurrentLayer(nn.Module):
    """``x + dropout(unit(layer_norm(x)))``, pre-norm and residual; or a plain layer, ``dropout(unit(x))``, of ``size``
    features.

    A bidirectional unit has ``size / 2`` channels in each direction. With a kernel_size above 1 a convolution stands
    before the unit, a :class:`CausalConvolution` where causal, else a :class:`Convolution`.
    """

    def __init__(
        self,
        cfg: Namespace,
        size: int,
        dropout: float,
        residual: bool = True,
        bidirectional: bool = False,
        kernel_size: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.unit = cfg.recurrent_unit
        self.norm = nn.LayerNorm(size) if residual else nn.Identity()
        convolution = CausalConvolution if causal else Convolution
        self.convolution = convolution(size, kernel_size) if kernel_size > 1 else None
        unit = UNITS[self.unit]
        module = unit.make(
            size,
            size // 2 if bidirectional else size,
            rnn_dropout=cfg.rnn_dropout,
            bidirectional=bidirectional,
            activation=cfg.sru_activation,
            residual=residual,
            dropout=dropout,
        )
        self.add_module(self.unit, module)  # its name is a part of the weights' names in checkpoints
        inside = unit.drops and not residual
        self.dropout = Dropout(0.0 if inside else dropout, module_name=type(self).__name__)

    def forward(self, x: Tensor, state: State, padding: Any) -> tuple[Tensor, State]:
        """Run the layer over x ``(length, batch, size)``; padding: of ``UNITS[unit].padding``.

        state is ``c`` ``(batch, UNITS[unit].states * size)`` before the first step, and with a causal convolution its
        ``seen`` ``(batch, (kernel_size - 1) * size)``; zeros where they are missing. Return the outputs and the last
        state, without ``c`` where it doesn't matter.
        """
        h = self.norm(x)
        after: State = {}
        padding_mask = padding.padding_mask if isinstance(padding, Packing) else padding
        if isinstance(self.convolution, CausalConvolution):
            h, after["seen"] = self.convolution(h, padding_mask, state.get("seen"))
        elif self.convolution is not None:
            h = self.convolution(h, padding_mask)
        h, c = getattr(self, self.unit)(h, state.get("c"), padding)
        if c is not None:
            after["c"] = c
        return self.dropout.plus(x, h) if self.residual else self.dropout(h), after
