"""Translation by one system, text in and text out, in a process of its own: its memory is measured.

    python recipes/benchmarks/decoding.py SYSTEM TASK.json

The task names the lines, those of them that go one by one if not all, the cells (beam, sentences at a time), threads,
the folder of the prepared data and each system's model, and options of the translator's search.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison.processes import peak_memory

from benchmarks.registry import CONTESTANTS, contestant

Translate = Callable[[list[str], int, int], list[str]]  # lines, beam, sentences at a time

PLAIN, STEP = "fairseq's search, plain torch", "fairseq's search, compiled step"
GENERATE = "fairseq-generate, compiled search"
FLOAT32, INT8 = "Translator, float32", "Translator, int8"
LSTM = "fairseq lstm"
CT2_FLOAT32, CT2_INT8 = "CTranslate2 Transformer, float32", "CTranslate2 Transformer, int8"


def fairseq_search(checkpoint: str, task: dict[str, Any]) -> Translate:
    """Translate as fairseq-interactive does, without its prints."""
    import torch
    from fairseq import checkpoint_utils

    from fairseq_sru.decoding.text import TextOptions, subwords

    torch.set_num_threads(task["threads"])
    torch.set_grad_enabled(False)
    data = Path(task["data"])
    models, cfg, of_fairseq = checkpoint_utils.load_model_ensemble_and_task([checkpoint], {"data": str(data / "bin")})
    for model in models:
        model.prepare_for_inference_(cfg)
        model.eval()
    text = subwords(TextOptions("sentencepiece", "", ""), (data / "spm.model").read_bytes())

    def translate(lines: list[str], beam: int, size: int) -> list[str]:
        cfg.generation.beam = beam
        generator = of_fairseq.build_generator(models, cfg.generation)
        dictionary = of_fairseq.source_dictionary
        tokens = [
            dictionary.encode_line(" ".join(line), add_if_not_exist=False, append_eos=True).long()
            for line in text.encode(lines)
        ]
        dataset = of_fairseq.build_dataset_for_inference(tokens, [len(line) for line in tokens])
        batches = of_fairseq.get_batch_iterator(dataset, max_sentences=size, max_positions=(1024, 1024))
        translations = [""] * len(lines)
        for batch in batches.next_epoch_itr(shuffle=False):
            best = [hypotheses[0] for hypotheses in of_fairseq.inference_step(generator, models, batch)]
            for i, hypothesis in zip(batch["id"].tolist(), best, strict=True):
                tokens_of = hypothesis["tokens"].int().cpu()
                translations[i] = of_fairseq.target_dictionary.string(tokens_of, "sentencepiece")
        return translations

    return translate


@contestant("translate", PLAIN, needs="sru")
def plain(checkpoint: str, task: dict[str, Any]) -> Translate:
    from fairseq_sru.models import base_decoder

    mock.patch.object(base_decoder, "available", lambda: False).start()
    return compiled_step(checkpoint, task)


@contestant("translate", STEP, needs="sru")
def compiled_step(checkpoint: str, task: dict[str, Any]) -> Translate:
    from fairseq_sru.models import search

    mock.patch.object(search, "available", lambda: False).start()
    return fairseq_search(checkpoint, task)


contestant("translate", GENERATE, needs="sru")(fairseq_search)


def translator(folder: str, task: dict[str, Any]) -> Translate:
    from fairseq_sru import Translator

    model, options = Translator(folder, task["threads"]), task.get("options", {})

    def translate(lines: list[str], beam: int, size: int) -> list[str]:
        at_a_time = [lines] if size > 1 else [[line] for line in lines]
        return [text for some in at_a_time for text in model.translate(some, beam, batch_size=size, **options)]

    return translate


contestant("translate", FLOAT32, needs="sru")(translator)
contestant("translate", INT8, needs="sru")(translator)
contestant("translate", LSTM, needs="lstm")(fairseq_search)


@contestant("translate", CT2_FLOAT32, needs="transformer")
def ctranslate2_float32(folder: str, task: dict[str, Any], kind: str = "float32") -> Translate:
    import ctranslate2
    import sentencepiece

    # two threads for a single sentence of so small a model are no faster, and in int8 can be many times slower
    model = ctranslate2.Translator(folder, compute_type=kind, intra_threads=1, inter_threads=task["threads"])
    text = sentencepiece.SentencePieceProcessor(model_file=str(Path(task["data"]) / "spm.model"))

    def translate(lines: list[str], beam: int, size: int) -> list[str]:
        encoded = text.encode(lines, out_type=str)
        at_a_time = [encoded] if size > 1 else [[line] for line in encoded]
        options = {"beam_size": beam, "max_batch_size": size, "max_decoding_length": 200}
        results = [result for some in at_a_time for result in model.translate_batch(some, **options)]
        return [text.decode(result.hypotheses[0]) for result in results]

    return translate


@contestant("translate", CT2_INT8, needs="transformer")
def ctranslate2_int8(folder: str, task: dict[str, Any]) -> Translate:
    return ctranslate2_float32(folder, task, "int8")


def main() -> None:
    system, task = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    translate = CONTESTANTS["translate"][system].make(task["models"][system], task)
    cells = []
    for beam, size in task["cells"]:
        lines = task.get("some", task["lines"]) if size == 1 else task["lines"]
        translate(lines[:8], beam, size)  # warms up
        start = time.perf_counter()
        text = translate(lines, beam, size)
        cells.append({"seconds": time.perf_counter() - start, "sentences": len(lines), "text": text})
    peak = peak_memory(os.getpid())
    print(json.dumps({"cells": cells, "megabytes": round(peak / 2**20) if peak else None}))


if __name__ == "__main__":
    main()
