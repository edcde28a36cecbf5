"""Whole models of one size, untrained, on random tokens: updates, steps of the decoder, and search."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common.machine import parameters
from torch import Tensor
from torch.nn import functional as F

import fairseq_sru.models  # noqa: F401  registers the architectures

from .registry import CONTESTANTS, SOURCE, TARGET, Preset, contestant
from .timing import DEVICE, DRY, ON_GPU, Function, Spread, failed, graphed, measure

SRU, UNIT, LSTM, TRANSFORMER = "sru", "lstm unit", "fairseq lstm", "fairseq transformer"
Maker = Callable[[Any], Function]  # of what is timed, from a model


def dictionary(size: int) -> Any:
    from fairseq.data import Dictionary

    words = Dictionary()
    for i in range(size - len(words)):
        words.add_symbol(f"w{i}")
    return words


def built(arch: str, task: Any, **options: Any) -> Any:
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    lengths = {"max_source_positions": 1024, "max_target_positions": 1024}
    args = Namespace(arch=arch, share_all_embeddings=True, criterion="cross_entropy", **lengths, **options)
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task).to(DEVICE)


def size(model: Any) -> int:
    return parameters(dict(model.named_parameters()))


def narrowed(target: int, multiple: int, make: Callable[[int], Any]) -> Any:
    """Model whose width, a multiple of so many, gives the number of parameters nearest to the target."""
    tried = [8 * multiple * factor for factor in (1, 2, 3)]
    # matrices are as large as a width squared, all else as a width
    law = np.polynomial.Polynomial.fit(tried, [size(make(width)) for width in tried], deg=2)
    return make(min(range(8 * multiple, 4096, multiple), key=lambda width: abs(law(width) - target)))


@contestant("model", SRU)
def sru(name: str, preset: Preset, task: Any, target: int) -> Any:
    return built(name, task)


@contestant("model", UNIT)
def lstm_unit(name: str, preset: Preset, task: Any, target: int) -> Any:
    return built(name.replace("sru", "lstm"), task)


@contestant("model", LSTM)
def fairseq_lstm(name: str, preset: Preset, task: Any, target: int) -> Any:
    def make(width: int) -> Any:
        sizes = {f"{side}_embed_dim": width for side in ("encoder", "decoder", "decoder_out")}
        sizes |= {"encoder_hidden_size": width // 2, "decoder_hidden_size": width}
        both = {"encoder_layers": 2, "decoder_layers": 2, "encoder_bidirectional": True, "decoder_attention": "1"}
        return built("lstm", task, **sizes, **both)

    return narrowed(target, 16 if ON_GPU else 8, make)  # cuDNN's products in 16 bits want widths of 8


@contestant("model", TRANSFORMER)
def transformer(name: str, preset: Preset, task: Any, target: int) -> Any:
    def make(width: int, inner: int | None = None) -> Any:
        sizes = {f"{side}_embed_dim": width for side in ("encoder", "decoder")}
        sizes |= {f"{side}_ffn_embed_dim": inner or preset.wider * width for side in ("encoder", "decoder")}
        return built(preset.transformer, task, **sizes)

    if not ON_GPU:
        return narrowed(target, 8, make)
    # heads of a width that torch's fused attention takes; then the inner width varies
    whole = narrowed(target, 8 * preset.heads, make)
    return narrowed(target, 8, partial(make, whole.encoder.embed_tokens.embedding_dim))


def systems(name: str, preset: Preset) -> tuple[Any, dict[str, Any]]:
    """Dictionary, and the models of one size by their names; name: of SRU's preset."""
    words = dictionary(preset.vocabulary)
    task = Namespace(source_dictionary=words, target_dictionary=words)
    models: dict[str, Any] = {}
    for system, entry in CONTESTANTS["model"].items():  # SRU first
        models[system] = entry.make(name, preset, task, size(models[SRU]) if models else 0)
    return words, models


def tokens(words: Any, rows: int, length: int) -> Tensor:
    return torch.randint(words.nspecial, len(words), (rows, length), device=DEVICE)


def trainer(model: Any, words: Any, pairs: int = 40, dtype: torch.dtype = torch.float32) -> Function:
    """Function that makes an update, under autocast where dtype is not that of the model."""
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
    """Copy of the model, prepared as fairseq-generate does."""
    model = copy.deepcopy(model).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.RNNBase):
            part.flatten_parameters()  # as fairseq-generate's .cuda() does; else cuDNN copies the weights at each call
    model.make_generation_fast_(need_attn=False)
    return model


@torch.no_grad()
def begun(model: Any, words: Any, sentences: int, beam: int) -> tuple[Any, Tensor, Tensor]:
    """Encoded sentences, once for each hypothesis; those in their order; and tokens of TARGET steps."""
    encoded = model.encoder(tokens(words, sentences, SOURCE), torch.full((sentences,), SOURCE, device=DEVICE))
    encoded = model.encoder.reorder_encoder_out(encoded, torch.arange(sentences, device=DEVICE).repeat_interleave(beam))
    return encoded, torch.arange(sentences * beam, device=DEVICE), tokens(words, sentences * beam, TARGET)


def stepper(model: Any, words: Any, sentences: int, beam: int) -> Function:
    """Function that takes the decoder of a model :func:`for_decoding` through TARGET steps."""
    encoded, order, before = begun(model, words, sentences, beam)

    @torch.no_grad()
    def decode() -> None:
        state: dict[str, dict[str, Tensor | None]] = {}
        for step in range(TARGET):
            model.decoder(before[:, : step + 1], encoder_out=encoded, incremental_state=state)
            if beam > 1:
                model.decoder.reorder_incremental_state_scripting(state, order)

    return decode


def searcher(model: Any, words: Any, sentences: int, beam: int) -> Function:
    """Function that translates with a model :func:`for_decoding`."""
    from fairseq.sequence_generator import SequenceGenerator

    source = tokens(words, sentences, SOURCE)
    lengths = torch.full((sentences,), SOURCE, device=DEVICE)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    # TARGET with the end of the sentence, which comes last
    generator = SequenceGenerator([model], words, beam, max_len_a=0, max_len_b=TARGET - 1, min_len=TARGET - 1)

    def search() -> None:
        hypotheses = generator.generate([model], sample)
        assert {len(best["tokens"]) for best, *_ in hypotheses} == {TARGET}

    return search


# ---------------------------------------------------------------- the cases


def cases_of(preset: Preset, words: Any, models: dict[str, Any]) -> dict[str, tuple[Maker, dict[str, Any]]]:
    """By the case's name, the maker of what is timed, and the models that take part."""
    cases: dict[str, tuple[Maker, dict[str, Any]]] = {}
    dtypes = {"train": torch.float32, **({"train, bfloat16": torch.bfloat16} if ON_GPU or DRY else {})}
    for name, dtype in dtypes.items():
        cases[name] = partial(trainer, words=words, pairs=preset.pairs, dtype=dtype), models
    decoding = {name: for_decoding(model) for name, model in models.items()} if preset.decoding else {}
    for what, maker in {"step": stepper, "decode": searcher}.items():
        for sentences, beam in preset.decoding:
            of_model = partial(maker, words=words, sentences=sentences, beam=beam)
            cases[f"{what}, batch {sentences}, beam {beam}"] = of_model, decoding
    # nn.LSTM's packing and fairseq's own models wait for the GPU and can't be recorded; a capture that fails may spoil
    # what follows
    if ON_GPU or DRY:
        update = cases["train, bfloat16"][0]
        cases["train, bfloat16, CUDA graph"] = (lambda model: graphed(update(model))), {SRU: models[SRU]}
    return cases


def time_case(case: str, maker: Maker, models: dict[str, Any], turns: int) -> dict[str, Any] | None:
    """Entry of a case in the report; None where no system runs."""
    functions: dict[str, Function] = {}
    for name, model in models.items():
        try:
            function = maker(model)
            function()
            functions[name] = function
        except Exception as error:  # one system that fails must not cost the other figures
            if name == SRU and "graph" not in case:
                raise
            failed(f"{name}, {case}", error)
    if not functions:
        return None
    per = TARGET if case.startswith("step") else 1
    took = {name: Spread(*(ms / per for ms in spread)) for name, spread in measure(functions, turns).items()}
    ratios = {name: spread.median / took[SRU].median for name, spread in took.items() if name != SRU}
    return {"ms": {name: spread._asdict() for name, spread in took.items()}, "ratios": ratios}
