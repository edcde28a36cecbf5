"""One step of a decoder on a CPU: one call of compiled code (kernels/translator.cpp) in place of a hundred of torch's.

A decoder writes its step down as a :class:`Program`, an encoder likewise, for the translator; the step is run here.
Results are those of the modules but for rounding.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from fairseq.modules import FairseqDropout, SinusoidalPositionalEmbedding
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from ..decoding.program import Packed, Program, address, library
from ..layers import SRUCell
from ..recurrence.dispatch import choose
from ..recurrence.native_call import openmp, threads_here
from .attention import Attention, Coverage, Source

Made = TypeVar("Made")


class _Known(NamedTuple):
    """The code compiled for a module, None where there can't be any, and versions of the weights that it read."""

    code: Any
    seen: tuple[Any, ...]


# Not an attribute: copies of a module have others.
_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()

# The modules whose weights a program reads: another's forward may be another.
KNOWN = (f"{__name__.split('.')[0]}.", "fairseq.")
TORCHS = (nn.Embedding, nn.Identity, nn.LayerNorm, nn.ModuleList)
METHODS = frozenset(("forward", "encode", "extract_features", "output_layer", "sources", "project"))
WRITTEN = ("program", "features_program")  # these say what those do


class Result(NamedTuple):
    """Results of a step: ``logits`` ``(rows, words)``; the new ``state`` ``(rows, state_size)``; with coverage ``past``
    and where asked for ``weights`` of the top attention, ``(rows, src_len)``."""

    logits: Tensor
    state: Tensor
    past: Tensor | None
    weights: Tensor | None


class Step:
    """The step of a decoder, ready to run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.packed: Packed = program.packed()

    def takes(
        self,
        tokens: Tensor,
        sources: list[Source],
        attentions: Sequence[Any],
        state: Tensor | None,
        past: Tensor | None,
    ) -> bool:
        """Return whether :meth:`run` can take these, which it reads unseen: sources of the attentions' sizes, of the
        same sentences and places, in float32."""
        rows, (sentences, _, src_len, _) = len(tokens), sources[0].key.shape
        shapes = [(sentences, a.heads, src_len, a.query.out_features // a.heads) for a in attentions]
        return (
            tokens.dtype == torch.int64
            and 0 < sentences <= rows
            and rows % sentences == 0
            and (state is None or state.shape == (rows, self.program.state_size))
            and (past is None or past.shape == (rows, src_len))
            and [source.key.shape for source in sources] == shapes
            and all(source.value.shape == source.key.shape for source in sources)
            and all(source.mask.shape == (sentences, 1, 1, src_len) for source in sources)
            and all(x.dtype == torch.float32 and x.is_cpu for source in sources for x in source)
        )

    def run(
        self, tokens: Tensor, sources: list[Source], state: Tensor | None, past: Tensor | None, need_weights: bool
    ) -> Result:
        """Run the step for tokens ``(rows)``, which are a multiple of the sources' sentences.

        state is ``(rows, state_size)`` and past, with coverage its sum so far, ``(rows, src_len)``; zeros if None.

        Raises:
            IndexError: a token is not of the dictionary.
            MemoryError: there is not enough.
        """
        rows, src_len, program = len(tokens), sources[0].key.size(2), self.program
        tokens = tokens.contiguous()
        usual: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are
        state = torch.zeros(rows, program.state_size, **usual) if state is None else state.contiguous()
        past = torch.zeros(rows, src_len if program.coverage else 0, **usual) if past is None else past.contiguous()
        sources = [Source(*(x if x.stride(-1) == 1 else x.contiguous() for x in source)) for source in sources]
        *inner, words = program.widths
        scratch, logits = torch.empty(rows * sum(inner), **usual), torch.empty(rows, words, **usual)
        new_state, new_past = torch.empty_like(state), torch.empty_like(past)
        weights = torch.empty(rows, src_len, **usual)
        packed = b"".join(
            struct.pack(
                "11q",
                *(x.data_ptr() for x in source),
                *source.key.stride()[:3],
                *source.value.stride()[:3],
                source.mask.stride(0),
                False,  # packed
            )
            for source in sources
        )
        pointers = [x.data_ptr() for x in (tokens, scratch, state, new_state, past, new_past, weights, logits)]
        shape = (rows, rows // len(sources[0].key), src_len, program.state_size, need_weights)
        call = (threads_here(), *openmp(), *self.packed.fields, *shape, address(packed), *pointers)
        done = library().run_step(struct.pack("22q", *call))
        if done < 0:
            raise MemoryError(f"a step of {rows} rows doesn't fit")
        if not done:
            raise IndexError(f"tokens must be of the dictionary; got {int(tokens.min())} to {int(tokens.max())}")
        return Result(logits, new_state, new_past if program.coverage else None, weights if need_weights else None)


def write_norm(program: Program, x: int, out: int, module: nn.Module) -> None:
    """Write ``out = layer_norm(x)``."""
    assert isinstance(module, nn.LayerNorm)
    program.norm(x, out, module.weight, module.bias, module.eps)


def write_embedding(program: Program, embedding: Tensor, project_in: nn.Module) -> int:
    """Write the embedding of tokens and the map to the layers, where there is one; returns the slot that has them."""
    embedded = program.slot(embedding.size(1))
    program.embed(embedded, embedding)
    if isinstance(project_in, nn.Identity):
        return embedded
    module: Any = project_in  # Linear, or what fairseq's quantisation makes of it
    x = program.slot(module.out_features)
    program.linear(embedded, x, module.weight, module.bias)
    return x


def write_attention(program: Program, x: int, inner: int, wide: int, layer: Any, keep: bool) -> None:
    """Write ``x += attention(layer_norm(x))`` of a decoder layer. x is the slot of the residual sum; inner, of its
    width, and wide, at least as wide, are for what is between; keep: the top attention reads the weights of this
    one."""
    attention: Attention = layer.attention
    coverage: Coverage | None = layer.coverage
    weight = None if coverage is None else coverage.weight
    write_norm(program, x, inner, layer.attention_norm)
    program.linear(inner, wide, attention.query.weight)
    program.attend(wide, inner, attention.heads, attention.scale, keep, weight)
    program.linear(inner, x, attention.out.weight, add=True)


def plain(cell: nn.Module, bidirectional: bool = False) -> bool:
    """Return whether a :class:`Program` can compute a cell."""
    if not isinstance(cell, SRUCell) or type(cell).forward is not SRUCell.forward:
        return False
    return cell.v1 and not cell.highway and cell.layer_norm is None and (bidirectional or not cell.bidirectional)


@functools.cache
def _is_known(kind: Any) -> bool:
    """Return whether a program knows the modules of a class, and its METHODS are not someone else's, as they are when
    the class is first seen."""
    if kind not in TORCHS and not kind.__module__.startswith(KNOWN):
        return False
    place = {name: at for at, base in reversed([*enumerate(kind.__mro__)]) for name in vars(base)}
    methods = [name for name in METHODS if name in place]
    defined = [getattr(getattr(kind, name), "__globals__", {}).get("__name__", "") for name in methods]
    if not all(where.startswith((*KNOWN, "torch.nn.")) for where in defined):
        return False
    written = min((place[name] for name in WRITTEN if name in place), default=0)
    return written <= min(place[name] for name in methods)  # or a subclass does something else than is written


def _misplaced(name: str, module: Any) -> bool:
    """Return whether something is in a place where programs expect something else."""
    if name.startswith("dropout"):
        return not isinstance(module, FairseqDropout)
    if module is None:
        return False
    if name.endswith("norm"):
        return not isinstance(module, nn.LayerNorm)
    if name == "embed_positions":
        return not isinstance(module, SinusoidalPositionalEmbedding)
    return name == "project_out" and not hasattr(module, "out_features")


def _usual(module: nn.Module) -> bool:
    """Return whether a module does what a program of it says, but for the modules in it."""
    own = vars(module)
    kind: Any = type(module)
    return (
        _is_known(kind)
        and METHODS.isdisjoint(own)  # put there by someone
        and not own.get("apply_during_inference")  # --retain-dropout
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (kind is nn.LayerNorm and own["_parameters"]["bias"] is None)
        and not any(_misplaced(name, part) for name, part in own["_modules"].items())
    )


def as_written(module: nn.Module) -> bool:
    """Return whether a module and those in it do what a program of them says."""
    hooked = every_module._global_forward_hooks or every_module._global_forward_pre_hooks
    return not hooked and all(map(_usual, module.modules()))


def compilable(module: nn.Module) -> bool:
    """Return whether compiled code may take a module's place: as its weights, backends, dropout and hooks are now."""
    cells = [part for part in module.modules() if isinstance(part, SRUCell)]
    return (
        as_written(module)
        and not any(part.training for part in module.modules())
        and all(getattr(choose(cell.backend, "cpu"), "name", "") == "native" for cell in cells)
        and all(weight.is_cpu and weight.dtype == torch.float32 for weight in module.parameters())
    )


def version(weight: Tensor) -> tuple[int, int]:
    """Return two numbers that change when a weight is written, moved or cast; not by ``weight.data``, nor where it was
    made in inference mode."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def forget(module: nn.Module, mode: bool) -> None:
    """Forget the code compiled for a module, in nn.Module.train(mode): optimizers change weights in ways that leave no
    trace. Where evaluation goes on, as fairseq says before each batch, :func:`remembered` sees what changes."""
    if mode or module.training:
        _known.pop(module, None)


def remembered(
    module: nn.Module, parts: Sequence[nn.Module], make: Callable[[], Made | None], look: bool = True
) -> Made | None:
    """Return the code compiled for a module in evaluation, None if there can't be any.

    ``make`` compiles it; the parts have to be :func:`compilable`, and it reads their weights. look: compile it again
    where they have changed, which takes time to see.
    """
    known = _known.get(module)
    if known is None or look:
        possible = all(map(compilable, parts))
        seen = (possible, *(version(weight) for part in parts for weight in part.parameters()))
        if known is None or known.seen != seen:
            known = _known[module] = _Known(make() if possible else None, seen)
    return known.code  # type: ignore[no-any-return]
