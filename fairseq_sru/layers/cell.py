"""One SRU layer."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..recurrence import check_backend, sru_recurrence
from ..recurrence.dispatch import check_fits, choose
from ..recurrence.modes import eager, leaves
from ..recurrence.native import FEW, Native
from ..recurrence.reference import Options
from .arguments import check_input, number, positive, probability
from .linear import linear


def refuse_scripting(layer: nn.Module) -> NoReturn:
    """Refuse torch.jit.script, which asks a module for a scriptable form of itself."""
    raise RuntimeError(
        f"{type(layer).__name__} can't be compiled by torch.jit.script (TorchScript can't read Python that picks a "
        "backend); torch.export, torch.compile and torch.jit.trace work"
    )


def variational_mask(x: Tensor, p: float, width: int) -> Tensor:
    """Return a factor for each sequence of x ``(length, batch, ...)`` and channel, ``(batch, width)``: 0 with
    probability p, else 1 / (1 - p)."""
    if torch._C._are_functorch_transforms_active():  # vmap over the parameters: x has no batch of masks
        return torch.bernoulli(x.new_full((x.size(1), width), 1 - p)) / (1 - p)
    return x.new_empty(x.size(1), width).bernoulli_(1 - p).div_(1 - p)


def _plain(t: Tensor | None) -> bool:
    """Return True if compiled code can read a tensor as it is."""
    return t is None or (
        type(t) in (Tensor, nn.Parameter)
        and t.is_cpu
        and t.dtype is torch.float32
        and t.layout is torch.strided
        and t.is_contiguous()
    )


class SRUCell(nn.Module):
    """One SRU layer over a sequence: by default the v1 cell of Lei et al. 2017 (arXiv 1709.02755v1, equations 3-7).

    ``u = W x`` is one matrix product for all time steps; the rest is :func:`fairseq_sru.sru_recurrence`, whose
    docstring has the equations. In evaluation on a CPU, up to 8 rows (steps times sequences) are one call of compiled
    code. The skip (highway) term is the input itself where ``input_size == directions * hidden_size``, else one more
    matrix product.

    Parameters: ``weight`` ``(k * D, input_size)``, the blocks candidate, forget, reset (and skip), each D = directions
    * hidden_size rows; ``bias`` ``(2, D)``, forget and reset; for v2 ``weight_c`` ``(2, D)`` likewise, the gates'
    weights of the cell state. Without reset gate both are ``(1, D)``. They start as in the published code: weights in
    U(-sqrt(3 / input_size), sqrt(3 / input_size)), b_r at highway_bias, b_f at 0; for v2 scaled as ``sru`` 2.6.0 does.
    v1 has of that scaling only what ``rescale`` asks for: of the skip term's matrix.

    It works under autocast, torch.compile, torch.export, torch.jit.trace and torch.func (by the definition), but not
    under torch.jit.script, nor in an export to ONNX; docs/layers.md says what to use instead.

    Args:
        input_size: number of features of x.
        hidden_size: number of channels of each direction.
        dropout: variational dropout on g(c), one draw a sequence and call.
        rnn_dropout: variational dropout on the matrix product's input, likewise; the skip term stays whole.
        use_tanh: g = tanh; with use_tanh = use_relu = 0, g is the identity.
        use_relu: g = relu; goes before use_tanh.
        bidirectional: a second set of channels runs backward in time.
        highway: False leaves the skip term out: ``h = r g(c)``, for layers that have a residual connection around them.
        layer_norm: normalise the matrix product's input; the skip term stays as it is.
        highway_bias: where b_r starts; below 0 the layer starts by handing its input on. With rescale it is also in the
            factor of the skip term, which a state_dict doesn't have.
        v1: False for the v2 cell (Lei et al. 2018), whose gates see the cell state.
        rescale: multiply a skip term that is the input by sqrt(1 + 2 exp(highway_bias)); None: for v2.
        reset_gate: False leaves reset gate and skip term out, ``h = g(c)``: with use_relu the SSRU of Kim et al. 2019,
            which takes two matrices.
        backend: of :func:`fairseq_sru.sru_recurrence`.
        device, dtype: of the parameters, as all modules of torch have them; float32, float16, bfloat16 or float64.

    Raises:
        ValueError: a size isn't an integer of at least 1, a probability outside [0, 1), highway_bias not finite or a
            backend unknown; the message names it.
        TypeError: a probability or highway_bias isn't a number.
    """

    finite_padding = False  # whether x is known to be finite at padding

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
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
        reset_gate: bool = True,
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        input_size = self.input_size = positive("input_size", input_size)
        hidden_size = self.hidden_size = positive("hidden_size", hidden_size)
        self.dropout = dropout
        self.rnn_dropout = rnn_dropout
        self.activation = "relu" if use_relu else "tanh" if use_tanh else "identity"
        self.bidirectional = bool(bidirectional)
        self.highway = bool(highway) and bool(reset_gate)
        self.highway_bias = number("highway_bias", highway_bias)
        self.v1 = bool(v1)
        self.rescale = not v1 if rescale is None else bool(rescale)
        self.reset_gate = bool(reset_gate)
        self.backend = check_backend(backend)
        self.output_size = hidden_size * (2 if bidirectional else 1)
        self.planes = 4 if self.highway and input_size != self.output_size else 3 if reset_gate else 2
        gates = 2 if reset_gate else 1
        where: Any = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(self.planes * self.output_size, input_size, **where))
        self.bias = nn.Parameter(torch.empty(gates, self.output_size, **where))
        self.weight_c = None if v1 else nn.Parameter(torch.empty(gates, self.output_size, **where))
        self.layer_norm = nn.LayerNorm(input_size, **where) if layer_norm else None
        self.reset_parameters()

    @property
    def dropout(self) -> float:
        """Probability of dropout on g(c). A new one holds from the next call on. ValueError: outside [0, 1)."""
        return self._dropout

    @dropout.setter
    def dropout(self, p: float) -> None:
        self._dropout = probability("dropout", p)

    @property
    def rnn_dropout(self) -> float:
        """Probability of dropout on the product's input, likewise."""
        return self._rnn_dropout

    @rnn_dropout.setter
    def rnn_dropout(self, p: float) -> None:
        self._rnn_dropout = probability("rnn_dropout", p)

    @property
    def skip_scale(self) -> float:
        """alpha, the factor of the skip term (EMNLP 2018, section 3.2): keeps the variance from layer to layer."""
        return math.sqrt(1 + 2 * math.exp(self.highway_bias)) if self.rescale and self.highway else 1.0

    def reset_parameters(self) -> None:
        """Draw the weights again and set the biases to where they start."""
        bound = math.sqrt(3.0 / self.input_size)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)
        if self.reset_gate:
            nn.init.constant_(self.bias[1], self.highway_bias)
        if self.layer_norm is not None:
            self.layer_norm.reset_parameters()
        with torch.no_grad():
            candidate, *gates = self.weight.view(self.planes, self.output_size, self.input_size)
            for skip in gates[2:]:
                skip.mul_(self.skip_scale)
            if self.weight_c is None:
                return
            nn.init.uniform_(self.weight_c, -math.sqrt(1.5), math.sqrt(1.5))
            candidate.mul_(math.sqrt(1 - self.dropout))
            for gate in gates[:2]:
                gate.mul_(math.sqrt(0.5))
            self.weight.mul_(math.sqrt(1 - self.rnn_dropout) * (0.1 if self.layer_norm is not None else 1.0))

    def load_published(self, tensors: dict[str, Tensor], prefix: str, options: dict[str, Any]) -> None:
        """Copy the tensors of a published layer; the message names them by prefix and options."""
        weights = dict(self.named_parameters())
        for name in tensors:
            if name not in weights and tensors[name].any():  # v1 has a weight_c of zeros there
                raise ValueError(f"{prefix}.{name} has no place in a layer with the options {options}")
        for name, ours in weights.items():
            theirs = tensors.get(name)
            shape = ours.t().shape if name == "weight" else (ours.numel(),)
            if theirs is None or theirs.shape != shape:
                raise ValueError(
                    f"{prefix}.{name} must have shape {tuple(shape)} with the options {options}; "
                    f"got {None if theirs is None else tuple(theirs.shape)}"
                )
            if name == "weight":  # theirs is interleaved: (input, D, k)
                theirs = theirs.view(self.input_size, self.output_size, self.planes).permute(2, 1, 0)
            ours.data.copy_(theirs.reshape(ours.shape))

    def forward(self, x: Tensor, c0: Tensor | None = None, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: ``(length, batch, input_size)``, or ``(batch, input_size)`` for a single step, as nn.LSTMCell has it; of
                the parameters' dtype, but under autocast.
            c0: ``(batch, D)``, the cell state before the first step; zeros if not given.
            padding_mask: ``(length, batch)`` (or ``(batch)``) bool, True at padding: the state is carried and the
                output is 0 there. What x holds there reaches neither outputs nor gradients, not even NaN.

        Returns:
            The outputs ``(length, batch, D)`` (or ``(batch, D)``) and the last cell state ``(batch, D)``, which is
            float32 whatever x is (float64 for float64).

        Raises:
            ValueError: a shape or a device is not as described, or the backend is for another device.
            TypeError: an argument is not a tensor, or of another dtype.
            RuntimeError: the backend that was asked for can't run here.
        """
        weight = self.weight
        check_input(x, self.input_size, step=True)
        if x.dtype != weight.dtype and (
            not x.is_floating_point()
            or torch.float64 in (x.dtype, weight.dtype)  # which autocast leaves
            or x.is_meta  # which has no autocast
            or not torch.is_autocast_enabled(x.device.type)
        ):
            raise TypeError(f"x must be of the parameters' dtype, {weight.dtype}; got {x.dtype}")
        if x.device != weight.device:
            raise ValueError(f"x must be on the parameters' device, {weight.device}; got {x.device}")
        check_fits("c0", c0, (x.size(-2), self.output_size), x, "x")
        if padding_mask is not None:
            check_fits("padding_mask", padding_mask, x.shape[:-1], x, "x")
            grads = torch.is_grad_enabled() or leaves()  # what is exported may be trained later
            if grads and not self.finite_padding:  # NaN times 0 is NaN: in the weights' gradients
                x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        single = x.dim() == 2
        if single:
            x = x.unsqueeze(0)
            padding_mask = None if padding_mask is None else padding_mask.unsqueeze(0)
        if padding_mask is None and (at_once := self._at_once(x, weight, c0)) is not None:
            h, c = at_once
            return h.squeeze(0) if single else h, c
        length, batch, _ = x.shape
        inputs = x if self.layer_norm is None else self.layer_norm(x)
        if self.training and self.rnn_dropout:
            inputs = inputs * variational_mask(x, self.rnn_dropout, self.input_size)
        u = linear(inputs, weight).view(length, batch, self.planes, self.output_size)
        own_skip = self.planes == 4
        h, c = sru_recurrence(
            u,
            x if self.highway and not own_skip else None,
            self.bias,
            c0,
            weight_c=self.weight_c,
            activation=self.activation,
            bidirectional=self.bidirectional,
            skip_scale=1.0 if own_skip else self.skip_scale,
            dropout_mask=variational_mask(x, self.dropout, self.output_size)
            if self.training and self.dropout
            else None,
            padding_mask=padding_mask,
            backend=self.backend,
        )
        return h.squeeze(0) if single else h, c

    def _at_once(self, x: Tensor, weight: Tensor, c0: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return the outputs and the state by :meth:`Native.layer`, or None where it can't compute them."""
        if (
            torch.is_grad_enabled()
            or self.training
            or not eager()  # before the size, which would make torch.compile start again
            or not x.is_cpu
            or not 0 < x.numel() <= FEW * self.input_size
            or torch.is_autocast_enabled("cpu")
            or torch._C._len_torch_dispatch_stack() > 0  # what looks at operators
            or self.layer_norm is not None
        ):
            return None
        bias, v, width = self.bias, self.weight_c, self.output_size
        gates = (1 if self.planes == 2 else 2, width)
        shapes = (weight.shape, bias.shape, gates if v is None else v.shape)  # parameters may have been replaced
        skip = self.highway and self.planes == 3
        if shapes != ((self.planes * width, self.input_size), gates, gates) or (skip and self.input_size != width):
            return None
        if not all(map(_plain, (weight, x, bias, v, c0))) or not weight.untyped_storage().nbytes():
            return None  # without storage is a weight that FSDP has put away
        chosen = choose(self.backend, "cpu")
        if type(chosen) is not Native:
            return None
        options = Options(self.activation, self.bidirectional, self.skip_scale if skip else 1.0)
        return chosen.layer(x, weight, bias, c0, v, skip, options)

    __prepare_scriptable__ = refuse_scripting

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, dropout={self.dropout}, rnn_dropout={self.rnn_dropout}, "
            f"activation={self.activation}, bidirectional={self.bidirectional}, highway={self.highway}, v1={self.v1}, "
            f"highway_bias={self.highway_bias}, rescale={self.rescale}, reset_gate={self.reset_gate}, "
            f"backend={self.backend}"
        )
