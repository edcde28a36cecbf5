"""Steps of training and decoding of whole models; ../steps.py tells how."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from common.machine import parameters
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

import fairseq_sru.models  # noqa: F401  registers the architectures
from fairseq_sru import sru_recurrence
from fairseq_sru.models.step import Step

from .timing import DEVICE, ON_GPU, Function, graphed

SRU, UNIT, LSTM, TRANSFORMER = "sru", "lstm unit", "fairseq lstm", "fairseq transformer"
PAIRS, SOURCE, STEPS = 40, 25, 40
CASES = [(1, 1), (1, 5), (64, 1), (64, 5)]  # sentences, beam
# SRU's preset: fairseq's Transformer that is made as large, the width of its feed-forward block, and its heads
PRESETS = {"sru_iwslt_de_en": ("transformer_iwslt_de_en", 2, 4), "sru_wmt": ("transformer_wmt_en_de", 4, 8)}


def dictionary(size: int) -> Any:
    from fairseq.data import Dictionary

    made = Dictionary()
    for i in range(size - len(made)):
        made.add_symbol(f"w{i}")
    return made


def built(arch: str, task: Any, **options: Any) -> Any:
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    lengths = {"max_source_positions": 1024, "max_target_positions": 1024}
    args = Namespace(arch=arch, share_all_embeddings=True, criterion="cross_entropy", **lengths, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).to(DEVICE)


def size(model: Any) -> int:
    return parameters(dict(model.named_parameters()))


def narrowed(target: int, multiple: int, make: Callable[[int], Any]) -> Any:
    """The model of the width, a multiple of so many, whose number of parameters is nearest to the target."""
    tried = [8 * multiple * factor for factor in (1, 2, 3)]
    # matrices are as large as a width squared, all else as a width
    law = np.polynomial.Polynomial.fit(tried, [size(make(width)) for width in tried], deg=2)
    return make(min(range(8 * multiple, 4096, multiple), key=lambda width: abs(law(width) - target)))


def systems(vocabulary: int, preset: str = "sru_iwslt_de_en") -> tuple[Any, dict[str, Any]]:
    """A dictionary, and the models by their names; preset: SRU's."""
    words = dictionary(vocabulary)
    task = Namespace(source_dictionary=words, target_dictionary=words)
    sru = built(preset, task)
    target = size(sru)
    arch, wider, heads = PRESETS[preset]

    def lstm(width: int) -> Any:
        sizes = {f"{side}_embed_dim": width for side in ("encoder", "decoder", "decoder_out")}
        sizes |= {"encoder_hidden_size": width // 2, "decoder_hidden_size": width}
        both = {"encoder_layers": 2, "decoder_layers": 2, "encoder_bidirectional": True, "decoder_attention": "1"}
        return built("lstm", task, **sizes, **both)

    def transformer(width: int, inner: int | None = None) -> Any:
        sizes = {f"{side}_embed_dim": width for side in ("encoder", "decoder")}
        sizes |= {f"{side}_ffn_embed_dim": inner or wider * width for side in ("encoder", "decoder")}
        return built(arch, task, **sizes)

    fitted: Callable[[int], Any] = transformer
    if ON_GPU:  # heads of such a width as torch's fused attention takes; then the inner width is what varies
        whole = narrowed(target, 8 * heads, transformer)
        fitted = partial(transformer, whole.encoder.embed_tokens.embedding_dim)
    return words, {
        SRU: sru,
        UNIT: built(preset.replace("sru", "lstm"), task),
        LSTM: narrowed(target, 16 if ON_GPU else 8, lstm),  # cuDNN's products in 16 bits want widths of 8
        TRANSFORMER: narrowed(target, 8, fitted),
    }


def tokens(words: Any, rows: int, length: int) -> Tensor:
    return torch.randint(words.nspecial, len(words), (rows, length), device=DEVICE)


def trainer(model: Any, words: Any, pairs: int = PAIRS, dtype: torch.dtype = torch.float32) -> Function:
    """A function that makes an update; under autocast where dtype is not that of the model."""
    source, before, after = (tokens(words, pairs, SOURCE) for _ in range(3))
    lengths = torch.full((pairs,), SOURCE, device=DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, capturable=ON_GPU)
    model.train()

    def update() -> None:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            logits, _ = model(source, lengths, before)
        logits = logits.flatten(0, 1).float()
        loss = F.cross_entropy(logits, after.flatten(), reduction="sum", label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return update


def for_decoding(model: Any) -> Any:
    """A copy, prepared as fairseq-generate does."""
    model = copy.deepcopy(model).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.RNNBase):
            part.flatten_parameters()  # as fairseq-generate's .cuda() does; else cuDNN copies the weights at each call
    model.make_generation_fast_(need_attn=False)
    return model


@torch.no_grad()
def begun(model: Any, words: Any, sentences: int, beam: int) -> tuple[Any, Tensor, Tensor]:
    """Encoded sentences, once for each hypothesis; those in their order; and tokens of STEPS steps."""
    encoded = model.encoder(tokens(words, sentences, SOURCE), torch.full((sentences,), SOURCE, device=DEVICE))
    encoded = model.encoder.reorder_encoder_out(encoded, torch.arange(sentences, device=DEVICE).repeat_interleave(beam))
    return encoded, torch.arange(sentences * beam, device=DEVICE), tokens(words, sentences * beam, STEPS)


def stepper(model: Any, words: Any, sentences: int, beam: int) -> Function:
    """A function that takes the decoder of a model :func:`for_decoding` through STEPS steps."""
    encoded, order, before = begun(model, words, sentences, beam)

    @torch.no_grad()
    def decode() -> None:
        state: dict[str, dict[str, Tensor | None]] = {}
        for step in range(STEPS):
            model.decoder(before[:, : step + 1], encoder_out=encoded, incremental_state=state)
            if beam > 1:
                model.decoder.reorder_incremental_state_scripting(state, order)

    return decode


def graphed_stepper(model: Any, words: Any, sentences: int, beam: int) -> Function:
    """As :func:`stepper` by a CUDA graph of a step, for our decoders: token and state lie where the graph has them."""
    encoded, order, before = begun(model, words, sentences, beam)
    token, decoder = before[:, :1].clone(), model.decoder
    incremental_state: dict[str, dict[str, Tensor | None]] = {}
    with torch.no_grad():
        decoder(token, encoder_out=encoded, incremental_state=incremental_state)  # shows which tensors the state has
    state = decoder.get_incremental_state(incremental_state, "cached_state")

    @torch.no_grad()
    def step() -> None:
        decoder.set_incremental_state(incremental_state, "cached_state", state)
        decoder(token, encoder_out=encoded, incremental_state=incremental_state)
        if beam > 1:
            decoder.reorder_incremental_state_scripting(incremental_state, order)
        for name, new in decoder.get_incremental_state(incremental_state, "cached_state").items():
            if new is not None:
                state[name].copy_(new)

    replay = graphed(step)

    @torch.no_grad()
    def decode() -> None:
        for kept in state.values():
            if kept is not None:
                kept.zero_()  # the state before the first step
        decoder.sources(encoded, None)  # for its time alone: the graph reads those that it was made with
        for at in range(STEPS):
            token.copy_(before[:, at : at + 1])
            replay()

    return decode


def searcher(model: Any, words: Any, sentences: int, beam: int) -> Function:
    """A function that translates with a model :func:`for_decoding`."""
    from fairseq.sequence_generator import SequenceGenerator

    source = tokens(words, sentences, SOURCE)
    lengths = torch.full((sentences,), SOURCE, device=DEVICE)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    # STEPS with the end of the sentence, which is kept for the last
    generator = SequenceGenerator([model], words, beam, max_len_a=0, max_len_b=STEPS - 1, min_len=STEPS - 1)

    def search() -> None:
        found = generator.generate([model], sample)
        assert {len(best["tokens"]) for hypotheses in found for best in hypotheses[:1]} == {STEPS}

    return search


DECODING = {"step": stepper, "decode": searcher}  # what is timed
OTHER = "the rest, and Python"
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "mkldnn_rnn_layer"),
    "attention and softmax": ("softmax", "scaled_dot_product", "efficient_attention", "flash_attention", "masked_fill"),
    "recurrence": ("Recurrence",),
    "compiled step": ("CompiledStep",),
    "layer norm": ("layer_norm",),
    "dropout": ("dropout", "_Dropped", "bernoulli", "random_", "lt"),
    "optimizer": ("Optimizer", "foreach", "addcmul", "addcdiv", "lerp", "linalg_vector_norm"),
}


def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that the profiler sees by name: compiled code is a call that it doesn't see."""

    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return function(*arguments, **options)

    return call


def shares(function: Function) -> dict[str, float]:
    """What part of the function's time each kind of operator takes by itself."""
    function()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])
    with (
        mock.patch("fairseq_sru.layers.cell.sru_recurrence", recorded("Recurrence", sru_recurrence)),
        mock.patch.object(Step, "run", recorded("CompiledStep", Step.run)),
        profile(activities=activities) as seen,
    ):
        for _ in range(1 if DEVICE.type == "cuda" else 3):  # there it takes long to read
            with record_function("all"):  # by itself: what is outside of torch, Python
                function()
    return by_kind(seen.key_averages(), DEVICE.type == "cuda")


def by_kind(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """What part of the time of a profile each kind of operator has by itself."""
    found = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in events:
        name = event.key.removeprefix("aten::")
        kinds = (k for k, parts in KINDS.items() if any(name == p or (len(p) > 4 and p in name) for p in parts))
        kind = next(kinds, OTHER)
        if event.device_type == torch.autograd.DeviceType.CUDA:  # a kernel's time is its operator's
            if name.startswith("sru_"):  # but the recurrence's, which outside of autograd has none
                found["recurrence"] += event.self_device_time_total
        elif not on_gpu:
            found[kind] += event.self_cpu_time_total
        elif kind != "recurrence":
            found[kind] += event.self_device_time_total
    all_of_it = sum(found.values()) or 1.0
    return {kind: took / all_of_it for kind, took in found.items()}
