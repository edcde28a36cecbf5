"""Steps of training and decoding: how long they take, beside fairseq's own models, and where SRU's time goes.

    python recipes/steps.py [--out DIR] [--threads N] [--turns N] [--vocabulary N] [--quick]

Models of equal size, untrained, on random tokens: the preset ``sru_iwslt_de_en``; its counterpart with LSTM as the
unit; fairseq's ``lstm`` (2 + 2 layers) and ``transformer`` (the shape of ``transformer_iwslt_de_en``, 6 + 6 layers),
made narrower until they have as many parameters.

``train`` is one update on 40 pairs of 25 tokens: forward, label-smoothed loss, backward, clipping, Adam. ``step`` is a
step of the decoder without output layer and search: the mean of 40 from the sentence's beginning, with the state
reordered after each where there is a beam, and with whatever the decoder makes of the source at its first. ``decode``
is all of fairseq-generate's search over 25 source tokens, each hypothesis forced to 40. The systems take turns, in
rotating order; figures are medians. Shares are of the time in torch's profiler, which makes small operators look longer
than they are.

File in DIR (runs/steps): steps.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import parameters, write_text
from speed import DEVICE, TITLE, Function, Spread, at_least_one, folder, machine, measure, short, table
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fairseq_sru.models  # noqa: F401  registers the architectures
from fairseq_sru import __version__, sru_recurrence

SRU, UNIT, LSTM, TRANSFORMER = "sru", "lstm unit", "fairseq lstm", "fairseq transformer"
PAIRS, SOURCE, STEPS = 40, 25, 40
CASES = [(1, 1), (1, 5), (64, 1), (64, 5)]  # sentences, beam
WIDTHS = {"embed_dim": 1, "ffn_embed_dim": 2}  # of transformer_iwslt_de_en: 512, 1024


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
    models = (make(width) for width in range(8 * multiple, 1024, multiple))
    best = next(models)
    for model in models:
        if abs(size(model) - target) >= abs(size(best) - target):
            return best
        best = model
    return best


def systems(vocabulary: int) -> tuple[Any, dict[str, Any]]:
    """A dictionary, and the models by their names."""
    words = dictionary(vocabulary)
    task = Namespace(source_dictionary=words, target_dictionary=words)
    sru = built("sru_iwslt_de_en", task)
    target = size(sru)

    def lstm(width: int) -> Any:
        sizes = {f"{side}_embed_dim": width for side in ("encoder", "decoder", "decoder_out")}
        sizes |= {"encoder_hidden_size": width // 2, "decoder_hidden_size": width}
        both = {"encoder_layers": 2, "decoder_layers": 2, "encoder_bidirectional": True, "decoder_attention": "1"}
        return built("lstm", task, **sizes, **both)

    def transformer(width: int) -> Any:
        sizes = {f"{s}_{name}": n * width for s in ("encoder", "decoder") for name, n in WIDTHS.items()}
        return built("transformer_iwslt_de_en", task, **sizes)

    return words, {
        SRU: sru,
        UNIT: built("lstm_iwslt_de_en", task),
        LSTM: narrowed(target, 8, lstm),
        TRANSFORMER: narrowed(target, 8, transformer),
    }


def tokens(words: Any, rows: int, length: int) -> Tensor:
    return torch.randint(words.nspecial, len(words), (rows, length), device=DEVICE)


def trainer(model: Any, words: Any) -> Function:
    """A function that makes an update."""
    source, before, after = (tokens(words, PAIRS, SOURCE) for _ in range(3))
    lengths = torch.full((PAIRS,), SOURCE, device=DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    model.train()

    def update() -> None:
        logits, _ = model(source, lengths, before)
        loss = F.cross_entropy(logits.flatten(0, 1), after.flatten(), reduction="sum", label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return update


def for_decoding(model: Any) -> Any:
    """A copy, prepared as fairseq-generate does."""
    model = copy.deepcopy(model).eval()
    model.make_generation_fast_(need_attn=False)
    return model


def stepper(model: Any, words: Any, sentences: int, beam: int) -> Function:
    """A function that takes the decoder of a model :func:`for_decoding` through STEPS steps."""
    source = tokens(words, sentences, SOURCE)
    rows = torch.arange(sentences, device=DEVICE).repeat_interleave(beam)
    order = torch.arange(sentences * beam, device=DEVICE)
    before = tokens(words, sentences * beam, STEPS)
    with torch.no_grad():
        encoded = model.encoder(source, torch.full((sentences,), SOURCE, device=DEVICE))
        encoded = model.encoder.reorder_encoder_out(encoded, rows)

    @torch.no_grad()
    def decode() -> None:
        state: dict[str, dict[str, Tensor | None]] = {}
        seen = {**encoded} if isinstance(encoded, dict) else encoded  # SRU leaves keys and values in it
        for step in range(STEPS):
            model.decoder.extract_features(before[:, : step + 1], encoder_out=seen, incremental_state=state)
            if beam > 1:
                model.decoder.reorder_incremental_state_scripting(state, order)

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


OTHER = "the rest, and Python"
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "mkldnn_rnn_layer"),
    "attention and softmax": ("softmax", "scaled_dot_product", "masked_fill"),
    "recurrence": ("Recurrence",),
    "layer norm": ("layer_norm",),
    "dropout": ("dropout", "bernoulli", "random_", "lt"),
    "optimizer": ("Optimizer", "foreach", "addcmul", "addcdiv", "lerp", "linalg_vector_norm"),
}


def recorded(*arguments: Any, **options: Any) -> Any:
    """The recurrence, which without gradients is a call that the profiler doesn't see."""
    with record_function("Recurrence"):
        return sru_recurrence(*arguments, **options)


def shares(function: Function) -> dict[str, float]:
    """What part of the function's time each kind of operator takes by itself."""
    function()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])
    with mock.patch("fairseq_sru.layers.sru_recurrence", recorded), profile(activities=activities) as seen:
        for _ in range(3):
            with record_function("all"):  # by itself: what is outside of torch, Python
                function()
    found = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in seen.key_averages():
        took = event.self_device_time_total if DEVICE.type == "cuda" else event.self_cpu_time_total
        name = event.key.removeprefix("aten::")
        kinds = (k for k, parts in KINDS.items() if any(name == p or (len(p) > 4 and p in name) for p in parts))
        found[next(kinds, OTHER)] += took
    return {kind: took / sum(found.values()) for kind, took in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=folder, default="runs/steps", help="folder for the file (%(default)s)")
    parser.add_argument("--threads", type=at_least_one, help="threads on the CPU (torch's own number)")
    parser.add_argument("--turns", type=at_least_one, default=7, help="runs of each system (%(default)s)")
    parser.add_argument("--vocabulary", type=at_least_one, default=8000, help="tokens (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one sentence alone")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    words, models = systems(args.vocabulary)
    decoding = {name: for_decoding(model) for name, model in models.items()}
    others = [name for name in models if name != SRU]
    here = machine(fairseq_sru=__version__)
    print(TITLE.format(**here), f"medians of {args.turns}", sep="; ")
    sizes = {name: size(model) for name, model in models.items()}
    print("parameters:", ", ".join(f"{name} {size:,}" for name, size in sizes.items()))

    cases: dict[str, tuple[Callable[[Any], Function], dict[str, Any]]] = {
        "train": (partial(trainer, words=words), models)
    }
    for what, maker in (("step", stepper), ("decode", searcher)):
        for sentences, beam in CASES[:1] if args.quick else CASES:
            name = f"{what}, batch {sentences}, beam {beam}"
            cases[name] = partial(maker, words=words, sentences=sentences, beam=beam), decoding
    found: dict[str, dict[str, dict[str, Any]]] = {}

    def rows() -> Iterator[list[str]]:
        for case, (maker, taking_part) in tqdm(cases.items(), disable=None, leave=False):
            functions = {name: maker(model) for name, model in taking_part.items()}
            per = STEPS if case.startswith("step") else 1
            took = {name: Spread(*(ms / per for ms in s)) for name, s in measure(functions, args.turns).items()}
            ratios = {name: took[name].median / took[SRU].median for name in others}
            found[case] = {
                "ms": {name: spread._asdict() for name, spread in took.items()},
                "ratios": ratios,
                "shares": shares(functions[SRU]),
            }
            yield [case, *(short(spread.median) for spread in took.values()), *map(short, ratios.values())]

    table("Milliseconds:", ["case", *models, *(f"{name} / {SRU}" for name in others)], rows())
    percent = ([case, *(f"{100 * s:.0f}" for s in now["shares"].values())] for case, now in found.items())
    table("Of the time of SRU, in %:", ["case", *KINDS, OTHER], percent)
    report = {
        "machine": here,
        "turns": args.turns,
        "vocabulary": args.vocabulary,
        "parameters": sizes,
        "cases": found,
    }
    path = args.out / "steps.json"
    write_text(path, json.dumps(report, indent=1) + "\n")
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
