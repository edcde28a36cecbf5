"""fairseq's beam search as compiled code, where a model and what is asked for allow it. Elsewhere its own goes on,
whose decoder step is compiled (step.py). The hypotheses are the same but for rounding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.search import BeamSearch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from ..decoding.program import Program, available
from ..decoding.search import EOS, PAD, Found, Search
from ..recurrence.native_call import threads_here
from .loss import usual_probabilities
from .step import remembered

Hypotheses = list[list[dict[str, Tensor]]]  # as SequenceGenerator returns them


def programs(model: Any) -> tuple[Program, Program] | None:
    """Encoder and decoder, which are :func:`as_written`, as programs, the encoder's with what the decoder's attentions
    read; None where either has to be torch's."""
    reading, writing = model.encoder.program(), model.decoder.program()
    if reading is None or writing is None:
        return None
    for attention in model.decoder.attentions():
        wide = reading.slot(attention.key_value.out_features)
        reading.linear(reading.result, wide, attention.key_value.weight)
        reading.source(wide, attention.heads)
    return (reading, writing) if reading.handed_over == writing.attentions else None


def _search(model: Any) -> Search | None:
    written = programs(model) if available() else None
    return None if written is None else Search(*written)


def _usual(generator: SequenceGenerator, words: int) -> bool:
    """Return whether the compiled search knows what the generator is asked for."""
    return (
        type(generator) is SequenceGenerator
        and type(generator.search) is BeamSearch
        and type(generator.model) is EnsembleModel
        and type(generator.repeat_ngram_blocker) in (NGramRepeatBlock, type(None))
        and (generator.pad, generator.eos) == (PAD, EOS)
        and 2 * generator.beam_size < words - 1
        and generator.min_len == 1
        and (generator.unk_penalty, generator.temperature) == (0, 1)
        and not generator.match_source_len
        and generator.token_indices_to_suppress is None
        and generator.lm_model is None
    )


def beam_search(model: Any, generator: SequenceGenerator, sample: dict[str, Any]) -> Hypotheses | None:
    """Return the hypotheses of fairseq's batch, as ``SequenceGenerator.generate`` does; None where torch has to search:
    on a GPU, in training, with an option that the compiled search doesn't know, with padding inside a line, or where
    attention weights are wanted.

    Raises:
        MemoryError: the batch doesn't fit.
    """
    net_input = sample["net_input"]
    tokens = net_input.get("src_tokens")
    if (
        not net_input.keys() <= {"src_tokens", "src_lengths", "prev_output_tokens"}
        or tokens.dim() != 2
        or not tokens.is_cpu
        or model.training
        or (model.decoder.need_attn and getattr(generator, "keeps_attention", True))
        or torch.is_autocast_enabled("cpu")
        or not _usual(generator, len(generator.tgt_dict))
        or not usual_probabilities(model)
    ):
        return None
    search = remembered(model, [model.encoder, model.decoder], partial(_search, model))
    if search is None:
        return None
    padding_mask = tokens == PAD
    if bool((padding_mask[:, 1:] != padding_mask[:, :-1]).sum(1).gt(1).any()):
        return None  # padding inside a line, which torch's encoder counts as a place
    lines = [line[~hidden].tolist() for line, hidden in zip(tokens, padding_mask, strict=True)]
    most = search.positions or tokens.size(1)
    if not lines or not all(0 < len(line) <= most for line in lines):
        return None
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < search.words:
        return None  # torch says what is wrong, or knows what to do
    longest = min(int(generator.max_len_a * tokens.size(1) + generator.max_len_b), generator.max_len - 1)
    if longest < 1:
        return None
    threads = min(threads_here(), len(lines))
    blocker = generator.repeat_ngram_blocker
    sentences = search.run(
        lines,
        threads,
        threads,
        generator.beam_size,
        longest,
        0 if blocker is None else blocker.no_repeat_ngram_size,
        penalty=generator.len_penalty if generator.normalize_scores else 0.0,
    )
    if not all(sentences):
        return None  # a model with NaN has none: fairseq stops
    return [[_as_fairseq(one) for one in hypotheses] for hypotheses in sentences]


def _as_fairseq(one: Found) -> dict[str, Tensor]:
    totals = torch.tensor(one.totals)
    return {
        "tokens": torch.tensor(one.tokens),
        "score": torch.tensor(one.score),
        "attention": torch.empty(0),
        "alignment": torch.empty(0),
        "positional_scores": torch.diff(totals, prepend=totals.new_zeros(1)),
    }
