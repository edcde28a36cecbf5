"""Base of all decoders: output layer, incremental state, and how they read the source."""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from ..decoding.program import Program, available
from ..layers import SRUCell
from ..layers.linear import Linear, by_columns, linear
from ..recurrence.dispatch import choose
from ..recurrence.modes import eager
from .attention import Attention, Coverage, GlobalAttention, Read, Source
from .dropout import Dropout
from .options import cutoffs, reads_attention, tied
from .recurrent import State
from .step import Step, forget, remembered, version
from .units import LSTM

IncrementalState = dict[str, dict[str, Tensor]]  # fairseq's
Extra = dict[str, list[Tensor] | None]  # fairseq's, too


def extra(weights: Tensor | None) -> Extra:
    """Return attention weights ``(batch, tgt_len, src_len)`` in fairseq's form; no list of None, which its
    SequenceScorer takes for weights in an ensemble."""
    return {"attn": None if weights is None else [weights]}


def output_layer(
    cfg: Namespace, dictionary: Any, out_embed_dim: int, dropout: float
) -> tuple[AdaptiveSoftmax | None, Linear | None]:
    """Return the layer that makes predictions of ``out_embed_dim`` features: an adaptive softmax with dropout, a linear
    map, or neither where the embedding does."""
    if (cutoff := cutoffs(cfg, len(dictionary))) is not None:
        return AdaptiveSoftmax(len(dictionary), out_embed_dim, cutoff, dropout=dropout), None
    if tied(cfg):
        return None, None
    projection = Linear(out_embed_dim, len(dictionary), bias=False)
    nn.init.normal_(projection.weight, mean=0.0, std=out_embed_dim**-0.5)
    return None, projection


def output_norm(size: int) -> nn.LayerNorm:
    """The layer norm before the output layer. It starts with features of the length 7, or sqrt(size) where that is
    less: the loss is then about as curved as that of fairseq's ``lstm``, whatever the size (docs/maths.md)."""
    norm = nn.LayerNorm(size)
    nn.init.constant_(norm.weight, min(1.0, 7 / math.sqrt(size)))
    return norm


class AttendingLayer(nn.Module):
    """A decoder layer, one of whose blocks is ``x + dropout(attention(layer_norm(x)))``."""

    attention_norm: nn.LayerNorm | None
    attention: Attention | None
    coverage: Coverage | None
    dropout: Dropout  # on the output of each block

    def add_attention(self, size: int, source_size: int, heads: int, coverage: bool, dropout: float) -> None:
        """Make the block, with ``heads`` 0 none; dropout: on the attention's weights."""
        self.attention_norm = nn.LayerNorm(size) if heads else None
        self.attention = Attention(size, source_size, heads, dropout) if heads else None
        self.coverage = Coverage(heads) if coverage else None

    def attend(
        self,
        x: Tensor,
        state: State,
        after: State,
        source: Source | None,
        need_weights: bool,
        below: Tensor | None,
        padding_mask: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block of a layer that had ``state`` after the earlier steps; with coverage its sum ``(batch,
        src_len)`` goes to ``after``.

        ``x`` is ``(tgt_len, batch, size)``, ``source`` of :meth:`Attention.project`, ``below`` the weights of the
        attention below, padding_mask ``(tgt_len, batch)`` bool, True at padding. Return x, and the attention weights,
        or where there is no attention those of the one below.
        """
        if self.attention is None or self.attention_norm is None:
            return x, below
        assert source is not None
        bias = None
        if self.coverage is not None:
            assert below is not None
            bias, after["coverage"] = self.coverage(below, state.get("coverage"), padding_mask.t())
        context, weights = self.attention(self.attention_norm(x), source, need_weights, bias)
        return self.dropout.plus(x, context), weights


class BaseDecoder(FairseqIncrementalDecoder):
    """Embedding ``(tokens that are read, embed_dim)`` and output layer for the tokens of the dictionary; between them
    are the subclass's ``layers`` and ``extract_features``.

    The incremental state is each layer's :data:`State`; :meth:`cached` reads it, :meth:`cache` writes it.
    """

    layers: nn.ModuleList
    covered: int | None = None  # the layer whose attention the top one's coverage reads
    stateful: list[Any] | None = None  # modules that keep a state of their own, once looked for
    adaptive_softmax: AdaptiveSoftmax | None  # these two of output_layer
    output_projection: Linear | None

    def __init__(self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_target_positions = cfg.max_target_positions
        self.need_attn = True
        self.aligned = reads_attention(cfg.criterion)
        self.embed_tokens = embed_tokens
        self.tied: Tensor | None
        self.register_buffer("tied", None, persistent=False)  # the embedding, laid out for the output layer
        self.tied_version: tuple[int, int]  # :func:`version` of the embedding that it copies

    @property
    def need_weights(self) -> bool:
        """True where the features come with the weights of the top attention."""
        return self.need_attn and (self.aligned or not self.training)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Weights of before coverage: with zeros for its own it changes nothing, and can be learnt from there."""
        for key, weight in self.state_dict().items():
            if key.endswith("coverage.weight"):
                state_dict.setdefault(f"{name}.{key}", torch.zeros_like(weight))

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: IncrementalState | None = None,
        features_only: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """Decode: tokens so far ``(batch, tgt_len)``, padded on either side, to logits ``(batch, tgt_len,
        len(dictionary))`` (with an adaptive softmax or features_only: features) and :func:`extra`.

        Without fairseq's incremental_state all positions are computed at once. With one that holds earlier steps the
        result is that of the last token only.
        """
        if incremental_state is not None and encoder_out is not None and not features_only:
            stepped = self._stepped(prev_output_tokens, encoder_out, incremental_state)
            if stepped is not None:
                return stepped
        x, weights = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return (x if features_only else self.output_layer(x)), weights

    def program(self) -> Program | None:
        """The step from tokens to logits, written down; None where it has to be torch's."""
        program = None if self.adaptive_softmax is not None else self.features_program()
        if program is not None:
            output: Any = self.embed_tokens if self.output_projection is None else self.output_projection
            program.linear(len(program.widths) - 1, program.slot(len(output.weight)), output.weight)
        return program

    def features_program(self) -> Program | None:
        """Return :meth:`program` without the output layer: the last slot has the features."""
        return None

    def train(self, mode: bool = True) -> BaseDecoder:
        """Set the mode as nn.Module does; also forget the compiled code, and the modules with a state."""
        forget(self, mode)
        self.stateful = None
        return super().train(mode)

    def _step(self, look: bool) -> Step | None:
        """Return the compiled step, where there is one for this decoder; look: of :func:`remembered`."""

        def make() -> Step | None:
            program = self.program() if available() else None
            return None if program is None else Step(program)

        return remembered(self, [self], make, look)

    def _stepped(
        self, prev_output_tokens: Tensor, encoder_out: dict[str, Any], incremental_state: IncrementalState
    ) -> tuple[Tensor, Extra] | None:
        """A step by compiled code: as :meth:`forward`, or None where that isn't possible."""
        states = self.cached(incremental_state)
        started = bool(states[0])
        recorded = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()
        if self.training or recorded or torch.is_autocast_enabled("cpu") or not prev_output_tokens.is_cpu:
            return None
        step = self._step(look=not started)
        if step is None or (not started and prev_output_tokens.size(1) > 1):
            return None
        tokens, sources = prev_output_tokens[:, -1], self.sources(encoder_out, incremental_state)
        state = torch.cat([state["c"] for state in states], dim=1) if started else None
        past = states[-1].get("coverage")
        if not step.takes(tokens, sources, self.attentions(), state, past):
            return None
        after = step.run(tokens, sources, state, past, bool(self.need_attn))
        states = [{"c": c} for c in after.state.chunk(len(states), dim=1)]
        if after.past is not None:
            states[-1]["coverage"] = after.past
        self.cache(incremental_state, states)
        weights = None if after.weights is None else after.weights[:, None]
        return after.logits[:, None], extra(weights)

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """Features ``(batch, tgt_len, out_embed_dim)`` to logits; an adaptive softmax takes the features as they
        are."""
        if self.adaptive_softmax is not None:
            return features
        if self.output_projection is not None:
            return self.output_projection(features)  # type: ignore[no-any-return]
        weight = self.embed_tokens.weight
        if self.tied is not None and eager() and not (torch.is_grad_enabled() and weight.requires_grad):
            weight = self.tied if self.tied_version == version(weight) else weight
        return linear(features, weight)

    def attentions(self) -> list[Attention | GlobalAttention]:
        """Return the attentions over the source, in the order of the layers."""
        of_layers = [getattr(layer, "attention", None) for layer in self.layers]  # each step asks: walk no modules
        parts: list[Any] = [*of_layers, getattr(self, "global_attention", None)]
        return [attention for attention in parts if attention is not None]

    def sources(self, encoder_out: dict[str, Any], incremental_state: IncrementalState | None) -> list[Source]:
        """Return the source of each of :meth:`attentions`. For further steps of an incremental state they are kept
        in the encoder's result, which beam search reorders."""
        keeps = incremental_state is not None and not torch.compiler.is_compiling()
        kept: dict[BaseDecoder, Read] | None = encoder_out.get("read") if keeps else None
        known, recorded = kept.get(self) if kept else None, torch.is_grad_enabled()
        if known and known.state is incremental_state and known.recorded is recorded:
            return known.sources
        outputs, padding_mask = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        sources = [attention.project(outputs, padding_mask) for attention in self.attentions()]
        if kept is not None:
            kept[self] = Read(incremental_state, recorded, sources)
        return sources

    def run_layers(
        self,
        x: Tensor,
        states: list[State],
        sources: list[Source],
        padding_mask: Tensor,
        padding: Any,
        incremental_state: IncrementalState | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layers, ``states`` after the earlier steps, and keep their states; return the outputs and the weights
        of the top attention, or None. The layers' own ``padding`` is what the subclass has for them."""
        source_of: dict[Any, Source] = dict(zip(self.attentions(), sources, strict=True))
        after: list[State] = []
        weights = None
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            need = self.need_weights if i == len(states) - 1 else i == self.covered
            x, state, weights = layer(x, state, source_of.get(layer.attention), need, weights, padding_mask, padding)
            after.append(state)
        self.cache(incremental_state, after)
        return x, weights if self.need_weights else None

    def cached(self, incremental_state: IncrementalState | None) -> list[State]:
        """Return the state of each layer after the earlier steps."""
        states: list[State] = [{} for _ in self.layers]
        for key, x in (self.get_incremental_state(incremental_state, "cached_state") or {}).items():
            layer, name = key.split(".")
            states[int(layer)][name] = x
        return states

    def cache(self, incremental_state: IncrementalState | None, states: list[State]) -> None:
        """Keep the state of each layer for the next step; without an incremental state, there is none."""
        flat = {f"{layer}.{name}": x for layer, state in enumerate(states) for name, x in state.items()}
        self.set_incremental_state(incremental_state, "cached_state", flat)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Reorder the cached state as the beam search reordered its hypotheses."""
        states = self.cached(incremental_state)
        moved = [{name: x.index_select(0, new_order) for name, x in state.items()} for state in states]
        self.cache(incremental_state, moved)

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Reorder the states of all modules. fairseq looks for them at each step; here once after each :meth:`train`:
        the package's have none of their own, but a subclass's may be fairseq's."""
        stateful = self.stateful  # another thread may call eval() of the same model meanwhile
        if stateful is None:
            others = [module for module in self.modules() if module is not self]
            stateful = [module for module in others if hasattr(module, "reorder_incremental_state")]
            self.stateful = stateful
        self.reorder_incremental_state(incremental_state, new_order)
        for module in stateful:
            module.reorder_incremental_state(incremental_state, new_order)

    def max_positions(self) -> int:
        """Longest sequence."""
        return self.max_target_positions  # type: ignore[no-any-return]

    def make_generation_fast_(self, need_attn: bool = False, **_: Any) -> None:
        """Prepare for decoding: fairseq-generate says whether the attention weights are needed. Weights are laid out
        for products of few rows; an embedding that is also the output layer is kept twice, since its lookups read rows.
        """
        self.need_attn = need_attn
        for module in self.modules():
            if isinstance(module, SRUCell) and (device := module.weight.device.type) != "cpu":
                choose(module.backend, device)  # or the first batch would wait for CuPy and NVRTC
            if isinstance(module, Linear | SRUCell):
                module.weight.data = by_columns(module.weight.data)
            elif isinstance(module, LSTM):
                for matrix in module.all_weights[0][:2]:
                    matrix.data = by_columns(matrix.data)
        if self.adaptive_softmax is None and self.output_projection is None:
            weight = self.embed_tokens.weight.detach()
            laid_out = weight if weight.is_inference() else by_columns(weight)  # whose changes are not counted
            self.tied = None if laid_out is weight else laid_out
            self.tied_version = version(self.embed_tokens.weight)
