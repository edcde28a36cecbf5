"""A stack of SRU layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..recurrence import check_backend
from ..recurrence.dispatch import check_fits
from .arguments import check_input, padding, positive, probability
from .cell import SRUCell, refuse_scripting
from .published import read


class SRU(nn.Module):
    """A stack of SRU layers, used as the published SRU code is.

    ::

        rnn = SRU(input_size, hidden_size, num_layers=2, dropout=0.0, use_tanh=1, bidirectional=False)
        output_states, c_states = rnn(x)

    Beware, coming from nn.LSTM: the state is one tensor, so ``output, (h, c) = rnn(x)`` would take the states of two
    layers for h and c, and num_layers is 2 by default; dropout is variational; x has three dimensions. From nn.GRU: the
    state is c, not the last output.

    It works under autocast, torch.compile, torch.export, torch.jit.trace and torch.func (by the definition), but not
    under torch.jit.script, nor in an export to ONNX; docs/layers.md says what to use instead.

    Args:
        input_size: number of features of x.
        hidden_size: number of channels of each direction.
        num_layers: number of layers.
        dropout: variational dropout on g(c) of every layer but the last.
        rnn_dropout: variational dropout on the input of every layer's matrix product.
        use_tanh: g = tanh; with use_tanh = use_relu = 0, g is the identity.
        use_relu: g = relu; goes before use_tanh.
        bidirectional: every layer runs in both directions and gives 2 * hidden_size features.
        layer_norm, highway, highway_bias, v1, rescale, backend, device, dtype: as in :class:`SRUCell`.
        batch_first: x and the outputs are ``(batch, length, features)``; the states are not concerned, as in nn.LSTM.

    Raises:
        ValueError: a size isn't an integer of at least 1, a probability outside [0, 1), highway_bias not finite or a
            backend unknown; the message names it.
        TypeError: a probability or highway_bias isn't a number.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        *,
        dropout: float = 0.0,
        rnn_dropout: float = 0.0,
        use_tanh: int = 1,
        use_relu: int = 0,
        bidirectional: bool = False,
        layer_norm: bool = False,
        highway: bool = True,
        highway_bias: float = 0.0,
        v1: bool = True,
        rescale: bool | None = None,
        backend: str = "auto",
        batch_first: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        input_size = self.input_size = positive("input_size", input_size)
        hidden_size = self.hidden_size = positive("hidden_size", hidden_size)
        num_layers = positive("num_layers", num_layers)
        if probability("dropout", dropout) and num_layers == 1:
            warnings.warn(f"dropout is between layers: with num_layers=1, {dropout} drops nothing", stacklevel=2)
        self.bidirectional = bool(bidirectional)
        self.batch_first = bool(batch_first)
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
                highway=highway,
                layer_norm=layer_norm,
                highway_bias=highway_bias,
                v1=v1,
                rescale=rescale,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            for i in range(num_layers)
        )
        for cell in self._cells[1:]:
            cell.finite_padding = True  # the layer below gives 0 at padding

    __prepare_scriptable__ = refuse_scripting

    @property
    def num_layers(self) -> int:
        """Number of layers. Upper ones may be dropped (``rnn.layers = rnn.layers[:1]``); set ``dropout`` then."""
        return len(self.layers)

    @property
    def dropout(self) -> float:
        """Dropout of every layer but the last. A new one holds from the next call on. ValueError: outside [0, 1)."""
        return self._cells[0].dropout

    @dropout.setter
    def dropout(self, p: float) -> None:
        p, (*lower, top) = probability("dropout", p), self._cells
        for cell in lower:
            cell.dropout = p
        top.dropout = 0.0

    @property
    def rnn_dropout(self) -> float:
        """Dropout of every layer's input, likewise."""
        return self._cells[0].rnn_dropout

    @rnn_dropout.setter
    def rnn_dropout(self, p: float) -> None:
        for cell in self._cells:
            cell.rnn_dropout = p

    @property
    def backend(self) -> str:
        """Name of every layer's backend, likewise. ValueError: unknown."""
        return self._cells[0].backend

    @backend.setter
    def backend(self, name: str) -> None:
        check_backend(name)
        for cell in self._cells:
            cell.backend = name

    @property
    def _cells(self) -> list[SRUCell]:
        return [cast(SRUCell, layer) for layer in self.layers]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, batch_first={self.batch_first}"

    def reset_parameters(self) -> None:
        """Draw the weights of all layers again and set their biases to where they start."""
        for cell in self._cells:
            cell.reset_parameters()

    def forward(
        self,
        x: Tensor | PackedSequence,
        c0: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the stack.

        Args:
            x: ``(length, batch, input_size)``, with batch_first ``(batch, length, input_size)``; or a PackedSequence,
                whose sequences may be in any order. Of the parameters' dtype, but under autocast.
            c0: ``(num_layers, batch, D)``, D = directions * hidden_size; zeros if not given. It is c_states of an
                earlier call, and not a tuple.
            lengths: ``(batch)`` integers, how many steps of each sequence are not padding, where padding follows.
            padding_mask: bool, of x's shape without the features, True at padding on whichever side: instead of
                lengths. What x holds at padding reaches neither outputs nor gradients, not even NaN.

        Returns:
            output_states ``(length, batch, D)`` (as x: batch first, or a PackedSequence) and c_states ``(num_layers,
            batch, D)``, which are float32 whatever x is (float64 for float64).

        Raises:
            ValueError: a shape, a device, a length or the lengths' dtype is not as described, or the backend is for
                another device. The numbers of lengths are not looked at on a GPU, which would have to be awaited, and
                under torch.compile, torch.func and torch.export.
            TypeError: an argument is not a tensor, or of another dtype.
            RuntimeError: the backend that was asked for can't run here.
        """
        if isinstance(x, PackedSequence):
            if lengths is not None or padding_mask is not None:
                raise ValueError("lengths and padding_mask must not be given with a PackedSequence, which has lengths")
            return self._packed(x, c0)
        check_input(x, self.input_size, "batch, length" if self.batch_first else "length, batch")
        check_fits("c0", c0, (self.num_layers, x.size(0 if self.batch_first else 1), self.output_size), x, "x")
        if padding_mask is not None:
            if lengths is not None:
                raise ValueError("lengths and padding_mask must not be given both")
            check_fits("padding_mask", padding_mask, x.shape[:-1], x, "x")
        if self.batch_first:
            x = x.transpose(0, 1)
            padding_mask = None if padding_mask is None else padding_mask.t()
        h, c = self._run(x, c0, padding_mask if lengths is None else padding(lengths, x))
        return h.transpose(0, 1) if self.batch_first else h, c

    def _run(self, x: Tensor, c0: Tensor | None, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run all layers; x is ``(length, batch, input_size)``."""
        layers = self.layers
        before = [None] * len(layers) if c0 is None else c0.unbind(0)
        after = []
        for layer, c in zip(layers, before, strict=True):
            x, c = layer(x, c, padding_mask)
            after.append(c)
        return x, torch.stack(after)  # of one layer, too: a view can't be detached in place

    def _packed(self, packed: PackedSequence, c0: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """Run the stack in the order of the packed sequences, sorted by length; c0 and c_states are in the caller's."""
        if packed.data.dim() != 2:
            shape = ", ".join(["length", *map(str, packed.data.shape[1:])])
            raise ValueError(f"x must pack sequences of shape (length, {self.input_size}); got ({shape})")
        x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        check_input(x, self.input_size)
        check_fits("c0", c0, (self.num_layers, x.size(1), self.output_size), x, "x")
        order, back = packed.sorted_indices, packed.unsorted_indices
        if c0 is not None and order is not None:
            c0 = c0.index_select(1, order)
        h, c = self._run(x, c0, padding(lengths, x))
        data = pack_padded_sequence(h, lengths).data
        return PackedSequence(data, packed.batch_sizes, order, back), c if back is None else c.index_select(1, back)

    @classmethod
    def from_sru_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        bidirectional: bool,
        use_tanh: int,
        highway: bool,
        normalize_after: bool | None = None,
        **options: Any,
    ) -> SRU:
        """Return a stack with the weights of the PyPI package ``sru`` (2 and 3, v1 and v2) or of the SRU code of 2017.

        Sizes, number of layers, cell (v1 where weight_c is all zeros, unless v1=False is given), layer norm and
        rescaling follow from the tensors; a factorised weight (``projection_size``) is multiplied out. What the
        tensors don't tell must be given, as their model had it.

        Args:
            state_dict: of their ``SRU``, with names as ``rnn_lst.0.weight``.
            bidirectional: as there.
            use_tanh: as there. If their code gave none, it was 0 with ``sru`` and 1 with the code of 2017.
            highway: ``has_skip_term`` of ``sru``, True if their code gave none, as always with the code of 2017.
            normalize_after: as there, of a model with layer norm; False if their code gave none.
            options: more of :class:`SRU`, such as use_relu=1 if theirs had it, dropout or batch_first.

        Raises:
            TypeError: state_dict is not a dict of tensors, or an argument is missing.
            ValueError: names or shapes are not of those, or not with these options, or of a variant that has no
                counterpart: custom_m, transform_module, proj_input_to_hidden_first, normalize_after.
        """
        options = {"bidirectional": bidirectional, "use_tanh": use_tanh, "highway": highway, **options}
        published = read(state_dict, normalize_after)
        hidden_size = published.width // (2 if bidirectional else 1)
        rnn = cls(published.input_size, hidden_size, len(published.layers), **{**published.options, **options})
        scale = published.scale
        for i, (cell, tensors) in enumerate(zip(rnn._cells, published.layers, strict=True)):
            takes_scale = cell.highway and cell.planes == 3
            if scale is not None and takes_scale and not math.isclose(cell.skip_scale, scale, rel_tol=1e-3):
                raise ValueError(
                    f"rescale and highway_bias must give scale_x, {scale}; {options} give {cell.skip_scale}"
                )
            cell.load_published(tensors, f"rnn_lst.{i}", options)
        return rnn
