"""SRU layers as torch modules, in the manner of nn.LSTM; they know nothing of fairseq."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .linear import linear
from .recurrence import check_backend, sru_recurrence

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
    """One SRU layer over a sequence: by default the v1 cell of Lei et al. 2017 (arXiv 1709.02755v1, equations 3-7).

    ``u = W x`` is one matrix product for all time steps; the rest is :func:`fairseq_sru.sru_recurrence`, whose
    docstring has the equations. The skip (highway) term is the input itself where ``input_size == directions *
    hidden_size``, else one more matrix product.

    Parameters: ``weight`` ``(k * D, input_size)``, the blocks candidate, forget, reset (and skip), each D = directions
    * hidden_size rows; ``bias`` ``(2, D)``, forget and reset; for v2 ``weight_c`` ``(2, D)`` likewise, the gates'
    weights of the cell state. They start as in the published code: weights in U(-sqrt(3 / input_size), sqrt(3 /
    input_size)), b_r at highway_bias, b_f at 0; for v2 scaled as ``sru`` 2.6.0 does.

    Args:
        input_size: number of features of x.
        hidden_size: number of channels of each direction.
        dropout: variational dropout on g(c), one draw a sequence.
        rnn_dropout: variational dropout on the matrix product's input, one draw a sequence; the skip term stays whole.
        use_tanh: g = tanh; with use_tanh = use_relu = 0, g is the identity.
        use_relu: g = relu; goes before use_tanh.
        bidirectional: a second set of channels runs backward in time.
        highway: False leaves the skip term out: ``h = r g(c)``, for layers that have a residual connection around them.
        layer_norm: normalise the matrix product's input; the skip term stays as it is.
        highway_bias: where b_r starts; below 0 the layer starts by handing its input on.
        v1: False for the v2 cell (Lei et al. 2018), whose gates see the cell state.
        rescale: multiply a skip term that is the input by sqrt(1 + 2 exp(highway_bias)); None: for v2.
        reset_gate: False leaves reset gate and skip term out, ``h = g(c)``: with use_relu the SSRU of Kim et al. 2019,
            which takes two matrices.
        backend: of :func:`fairseq_sru.sru_recurrence`.

    Raises:
        ValueError: a size is below 1, a probability outside [0, 1) or a backend unknown; the message names it.
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
        layer_norm: bool = False,
        highway_bias: float = 0.0,
        v1: bool = True,
        rescale: bool | None = None,
        reset_gate: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.input_size = _positive("input_size", input_size)
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.dropout = _probability("dropout", dropout)
        self.rnn_dropout = _probability("rnn_dropout", rnn_dropout)
        self.activation = "relu" if use_relu else "tanh" if use_tanh else "identity"
        self.bidirectional = bool(bidirectional)
        self.highway = bool(highway) and bool(reset_gate)
        self.highway_bias = float(highway_bias)
        self.v1 = bool(v1)
        self.rescale = not v1 if rescale is None else bool(rescale)
        self.reset_gate = bool(reset_gate)
        self.backend = check_backend(backend)
        self.output_size = hidden_size * (2 if bidirectional else 1)
        self.planes = 4 if self.highway and input_size != self.output_size else 3 if reset_gate else 2
        gates = 2 if reset_gate else 1
        self.weight = nn.Parameter(torch.empty(self.planes * self.output_size, input_size))
        self.bias = nn.Parameter(torch.empty(gates, self.output_size))
        self.weight_c = None if v1 else nn.Parameter(torch.empty(gates, self.output_size))
        self.layer_norm = nn.LayerNorm(input_size) if layer_norm else None
        self.reset_parameters()

    @property
    def skip_scale(self) -> float:
        """alpha, the factor of the skip term (EMNLP 2018, section 3.2): keeps the variance from layer to layer."""
        return math.sqrt(1 + 2 * math.exp(self.highway_bias)) if self.rescale and self.highway else 1.0

    def reset_parameters(self) -> None:
        """Draw the weights anew and set the biases to where they start."""
        bound = math.sqrt(3.0 / self.input_size)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)
        if self.reset_gate:
            nn.init.constant_(self.bias[1], self.highway_bias)
        if self.layer_norm is not None:
            self.layer_norm.reset_parameters()
        if self.weight_c is None:
            return
        nn.init.uniform_(self.weight_c, -math.sqrt(1.5), math.sqrt(1.5))
        with torch.no_grad():
            candidate, *gates = self.weight.view(self.planes, self.output_size, self.input_size)
            candidate.mul_(math.sqrt(1 - self.dropout))
            for gate in gates[:2]:
                gate.mul_(math.sqrt(0.5))
            for skip in gates[2:]:
                skip.mul_(self.skip_scale)
            self.weight.mul_(math.sqrt(1 - self.rnn_dropout) * (0.1 if self.layer_norm is not None else 1.0))

    def forward(self, x: Tensor, c0: Tensor | None = None, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: ``(length, batch, input_size)``, or ``(batch, input_size)`` for a single step.
            c0: ``(batch, D)``, the cell state before the first step; zeros if not given.
            padding_mask: ``(length, batch)`` (or ``(batch)``) bool, True at padding: the state is carried and the
                output is 0 there.

        Returns:
            The outputs ``(length, batch, D)`` (or ``(batch, D)``) and the last cell state ``(batch, D)``, which is
            float32 whatever x is (float64 for float64).

        Raises:
            ValueError: a shape is not as described.
            RuntimeError: the backend that was asked for can't run here.
        """
        if x.dim() == 2:
            mask = None if padding_mask is None else padding_mask.unsqueeze(0)
            h, c = self.forward(x.unsqueeze(0), c0, mask)
            return h.squeeze(0), c
        _check_input(x, self.input_size)
        length, batch, _ = x.shape
        inputs = x if self.layer_norm is None else self.layer_norm(x)
        if self.training and self.rnn_dropout:
            inputs = inputs * self._mask(x, self.rnn_dropout, self.input_size)
        u = linear(inputs, self.weight).view(length, batch, self.planes, self.output_size)
        own_skip = self.planes == 4
        return sru_recurrence(
            u,
            x if self.highway and not own_skip else None,
            self.bias,
            c0,
            weight_c=self.weight_c,
            activation=self.activation,
            bidirectional=self.bidirectional,
            skip_scale=1.0 if own_skip else self.skip_scale,
            dropout_mask=self._mask(x, self.dropout, self.output_size) if self.training and self.dropout else None,
            padding_mask=padding_mask,
            backend=self.backend,
        )

    def _mask(self, x: Tensor, p: float, width: int) -> Tensor:
        return x.new_empty(x.size(1), width).bernoulli_(1 - p).div_(1 - p)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, dropout={self.dropout}, rnn_dropout={self.rnn_dropout}, "
            f"activation={self.activation}, bidirectional={self.bidirectional}, highway={self.highway}, v1={self.v1}, "
            f"highway_bias={self.highway_bias}, rescale={self.rescale}, reset_gate={self.reset_gate}, "
            f"backend={self.backend}"
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
        layer_norm, highway_bias, v1, rescale, highway, backend: as in :class:`SRUCell`.
        batch_first: x and the outputs are ``(batch, length, features)``; the states are not concerned, as in nn.LSTM.

    Raises:
        ValueError: a size is below 1, a probability outside [0, 1) or a backend unknown; the message names it.
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
        layer_norm: bool = False,
        highway_bias: float = 0.0,
        v1: bool = True,
        backend: str = "auto",
        rescale: bool | None = None,
        highway: bool = True,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = _positive("num_layers", num_layers)
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
            )
            for i in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Draw the weights of all layers anew and set their biases to where they start."""
        for layer in self.layers:
            assert isinstance(layer, SRUCell)
            layer.reset_parameters()

    def forward(
        self,
        x: Tensor | PackedSequence,
        c0: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the stack.

        Args:
            x: ``(length, batch, input_size)``, with batch_first ``(batch, length, input_size)``; ``(batch,
                input_size)`` for a single step; or a PackedSequence, whose sequences may be in any order.
            c0: ``(num_layers, batch, D)``, D = directions * hidden_size; zeros if not given.
            lengths: ``(batch)``, how many steps of each sequence are not padding, where padding follows.
            padding_mask: bool, of x's shape without the features, True at padding on whichever side: instead of
                lengths.

        Returns:
            output_states ``(length, batch, D)`` (as x: batch first, ``(batch, D)``, or a PackedSequence) and c_states
            ``(num_layers, batch, D)``.

        Raises:
            ValueError: a shape or a length is not as described.
            RuntimeError: the backend that was asked for can't run here.
        """
        if isinstance(x, PackedSequence):
            if lengths is not None or padding_mask is not None:
                raise ValueError("lengths and padding_mask must not be given with a PackedSequence, which has lengths")
            return self._packed(x, c0)
        _check_input(x, self.input_size, "batch, length" if self.batch_first else "length, batch")
        self._check_c0(c0, x.size(0) if self.batch_first else x.size(-2))
        if padding_mask is not None:
            if lengths is not None:
                raise ValueError("lengths and padding_mask must not be given both")
            if padding_mask.shape != x.shape[:-1]:
                raise ValueError(
                    f"padding_mask must have shape {tuple(x.shape[:-1])}, as x has {tuple(x.shape)}; "
                    f"got {tuple(padding_mask.shape)}"
                )
        single = x.dim() == 2
        if single:
            x = x.unsqueeze(0)
            padding_mask = None if padding_mask is None else padding_mask.unsqueeze(0)
        elif self.batch_first:
            x = x.transpose(0, 1)
            padding_mask = None if padding_mask is None else padding_mask.t()
        h, c = self._run(x, c0, padding_mask if lengths is None else _padding(lengths, x))
        return h.squeeze(0) if single else h.transpose(0, 1) if self.batch_first else h, c

    def _run(self, x: Tensor, c0: Tensor | None, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """All layers; x is ``(length, batch, input_size)``."""
        before = (None,) * self.num_layers if c0 is None else c0.unbind(0)
        after = []
        for layer, c in zip(self.layers, before, strict=True):
            x, c = layer(x, c, padding_mask)
            after.append(c)
        return x, torch.stack(after)

    def _packed(self, packed: PackedSequence, c0: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """In the order of the packed sequences, as nn.LSTM: sorted by length; c0 and c_states in the caller's."""
        x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        _check_input(x, self.input_size)
        self._check_c0(c0, x.size(1))
        order, back = packed.sorted_indices, packed.unsorted_indices
        if c0 is not None and order is not None:
            c0 = c0.index_select(1, order)
        h, c = self._run(x, c0, _padding(lengths, x))
        data = pack_padded_sequence(h, lengths).data
        return PackedSequence(data, packed.batch_sizes, order, back), c if back is None else c.index_select(1, back)

    def _check_c0(self, c0: Tensor | None, batch: int) -> None:
        if c0 is not None and c0.shape != (self.num_layers, batch, self.output_size):
            raise ValueError(
                f"c0 must have shape ({self.num_layers}, {batch}, {self.output_size}); got {tuple(c0.shape)}"
            )

    @classmethod
    def from_sru_state_dict(cls, state_dict: Mapping[str, Tensor], **options: Any) -> SRU:
        """A stack with the weights of the PyPI package ``sru`` (v1 and v2) or of the SRU code of 2017.

        Sizes, number of layers, cell, layer norm and rescaling follow from the tensors; a factorised weight
        (``projection_size``) is multiplied out.

        Args:
            state_dict: of their ``SRU``, with names as ``rnn_lst.0.weight``.
            options: what tensors don't tell, as in :class:`SRU`: bidirectional above all; dropout; use_tanh, which is
                0 for ``sru`` and 1 for the code of 2017 if not given, as it is there; highway=False for
                has_skip_term=False.

        Raises:
            ValueError: names or shapes are not of those, or not with these options, or of a variant that has no
                counterpart: custom_m, proj_input_to_hidden_first, normalize_after (which shows only where
                input_size differs from the layer's outputs).
        """
        return _import(cls, state_dict, options)


def _check_input(x: Tensor, features: int, order: str = "length, batch") -> None:
    if x.dim() not in (2, 3) or x.size(-1) != features:
        raise ValueError(f"x must have shape ({order}, {features}) or (batch, {features}); got {tuple(x.shape)}")


def _padding(lengths: Tensor | Sequence[int], x: Tensor) -> Tensor:
    """The padding mask ``(length, batch)`` of right-padded sequences."""
    steps, batch, _ = x.shape
    lengths = torch.as_tensor(lengths)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be {batch} integers, one a sequence; got {lengths.dtype} {tuple(lengths.shape)}"
        )
    if not torch.compiler.is_compiling() and lengths.device.type == "cpu" and batch:  # a GPU would have to be awaited
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > steps:
            raise ValueError(f"lengths must be from 0 to {steps}, the length of x; got {least if least < 0 else most}")
    return torch.arange(steps, device=x.device)[:, None] >= lengths.to(x.device)


def _import(cls: type[SRU], state_dict: Mapping[str, Tensor], options: dict[str, Any]) -> SRU:
    known = {"weight", "weight_proj", "weight_c", "bias", "scale_x", "layer_norm.weight", "layer_norm.bias"}
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        start, _, rest = name.partition(".")
        number, _, what = rest.partition(".")
        if start != "rnn_lst" or not number.isdigit() or what not in known:
            raise ValueError(f"state_dict must hold rnn_lst.<layer>.<{', '.join(sorted(known))}>; got {name!r}")
        found.setdefault(int(number), {})[what] = tensor.detach()
    layers = [found[number] for number in sorted(found)]
    if not layers or len(layers) != max(found) + 1 or any(not {"weight", "bias"} <= set(t) for t in layers):
        raise ValueError(f"state_dict must hold weight and bias of the layers from 0 on; got layers {sorted(found)}")
    for given in layers:
        if "weight_proj" in given:
            given["weight"] = given.pop("weight_proj") @ given["weight"]
    scales = sorted({float(given.pop("scale_x")) if "scale_x" in given else 1.0 for given in layers})
    if len(scales) > 1 or scales[0] < 1.0:
        raise ValueError(f"scale_x must be the same in all layers, and at least 1; got {scales}")
    scale = scales[0]
    first = layers[0]
    input_size, out = first["weight"].size(0), first["bias"].numel() // 2
    guessed: dict[str, Any] = {
        "use_tanh": 0 if "weight_c" in first else 1,
        "v1": not any("weight_c" in given and bool(given["weight_c"].any()) for given in layers),
        "layer_norm": "layer_norm.weight" in first,
        "rescale": scale != 1.0,
        "highway": not (input_size != out and first["weight"].size(1) == 3 * out),
    }
    if scale != 1.0:
        guessed["highway_bias"] = math.log((scale * scale - 1) / 2)
    directions = 2 if options.get("bidirectional") else 1
    made = cls(input_size, out // directions, len(layers), **{**guessed, **options}).to(first["weight"])
    for i, (cell, given) in enumerate(zip(made.layers, layers, strict=True)):
        assert isinstance(cell, SRUCell)
        if cell.highway and cell.planes == 3 and not math.isclose(cell.skip_scale, scale, rel_tol=1e-3):
            raise ValueError(f"rescale and highway_bias must give scale_x, {scale}; {options} give {cell.skip_scale}")
        _fill(cell, given, f"rnn_lst.{i}", options)
    return made


def _fill(cell: SRUCell, given: dict[str, Tensor], prefix: str, options: dict[str, Any]) -> None:
    """Copy the published layer's tensors."""
    weights = dict(cell.named_parameters())
    for name in given:
        if name not in weights and given[name].any():  # v1 has a weight_c of zeros there
            raise ValueError(f"{prefix}.{name} has no place in a layer with the options {options}")
    for name, ours in weights.items():
        theirs = given.get(name)
        shape = ours.t().shape if name == "weight" else (ours.numel(),)
        if theirs is None or theirs.shape != shape:
            raise ValueError(
                f"{prefix}.{name} must have shape {tuple(shape)} with the options {options}; "
                f"got {None if theirs is None else tuple(theirs.shape)}"
            )
        if name == "weight":  # theirs is interleaved: (input, D, k)
            theirs = theirs.view(cell.input_size, cell.output_size, cell.planes).permute(2, 1, 0)
        ours.data.copy_(theirs.reshape(ours.shape))
