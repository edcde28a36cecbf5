"""One system translates a file, text in and text out; ../decoding.py tells how. Run by itself: its memory is its own.

python recipes/benchmarks/decoding.py SYSTEM TASK.json

The task names the lines, those of them that go one by one if not all, the cells (beam, sentences at a time), threads,
the folder of the prepared data and each system's model, and options of the translator's search.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import sentencepiece

Translate = Callable[[list[str], int, int], list[str]]  # lines, beam, sentences at a time

PLAIN, STEP = "fairseq's search, plain torch", "fairseq's search, compiled step"
GENERATE = "fairseq-generate, compiled search"  # what it does by itself
FLOAT32, INT8 = "Translator, float32", "Translator, int8"
LSTM = "fairseq lstm"
CT2_FLOAT32, CT2_INT8 = "CTranslate2 Transformer, float32", "CTranslate2 Transformer, int8"
MODELS = {  # whose model each of them takes
    **dict.fromkeys((PLAIN, STEP, GENERATE, FLOAT32, INT8), "sru"),
    LSTM: "lstm",
    **dict.fromkeys((CT2_FLOAT32, CT2_INT8), "transformer"),
}
CELLS = [(1, 1), (1, 64), (5, 1), (5, 64)]  # beam, sentences at a time


def by_fairseq(checkpoint: str, data: Path, threads: int, system: str) -> Translate:
    """As fairseq-interactive does it, without its prints."""
    import torch
    from fairseq import checkpoint_utils

    from fairseq_sru.decoding.text import TextOptions, subwords
    from fairseq_sru.models import base_decoder, search

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    for module in {PLAIN: (base_decoder, search), STEP: (search,)}.get(system, ()):
        mock.patch.object(module, "available", lambda: False).start()
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint], {"data": str(data / "bin")})
    for model in models:
        model.prepare_for_inference_(cfg)
        model.eval()
    text = subwords(TextOptions("sentencepiece", "", ""), (data / "spm.model").read_bytes())

    def translate(lines: list[str], beam: int, size: int) -> list[str]:
        cfg.generation.beam = beam
        generator = task.build_generator(models, cfg.generation)
        encoded = text.encode(lines)
        tokens = [
            task.source_dictionary.encode_line(" ".join(line), add_if_not_exist=False, append_eos=True).long()
            for line in encoded
        ]
        dataset = task.build_dataset_for_inference(tokens, [len(line) for line in tokens])
        batches = task.get_batch_iterator(dataset, max_sentences=size, max_positions=(1024, 1024))
        found = [""] * len(lines)
        for batch in batches.next_epoch_itr(shuffle=False):
            for i, hypotheses in zip(batch["id"].tolist(), task.inference_step(generator, models, batch), strict=True):
                found[i] = task.target_dictionary.string(hypotheses[0]["tokens"].int().cpu(), "sentencepiece")
        return found

    return translate


def by_translator(folder: str, threads: int, options: dict[str, Any]) -> Translate:
    from fairseq_sru import Translator

    translator = Translator(folder, threads)
    return lambda lines, beam, size: (
        translator.translate(lines, beam, batch_size=size, **options)
        if size > 1
        else [translator.translate([line], beam, **options)[0] for line in lines]
    )


def by_ctranslate2(folder: str, data: Path, threads: int, kind: str) -> Translate:
    import ctranslate2

    # two threads for a single sentence of so small a model are no faster, and in int8 can be many times slower
    model = ctranslate2.Translator(folder, compute_type=kind, intra_threads=1, inter_threads=threads)
    text = sentencepiece.SentencePieceProcessor(model_file=str(data / "spm.model"))

    def translate(lines: list[str], beam: int, size: int) -> list[str]:
        encoded = text.encode(lines, out_type=str)
        at_a_time = [encoded] if size > 1 else [[line] for line in encoded]
        options = {"beam_size": beam, "max_batch_size": size, "max_decoding_length": 200}
        found = [one for some in at_a_time for one in model.translate_batch(some, **options)]
        return [text.decode(one.hypotheses[0]) for one in found]

    return translate


def made(system: str, task: dict[str, Any]) -> Translate:
    data, threads = Path(task["data"]), task["threads"]
    model = task["models"][system]
    if system in (PLAIN, STEP, GENERATE, LSTM):
        return by_fairseq(model, data, threads, system)
    if system in (FLOAT32, INT8):
        return by_translator(model, threads, task.get("options", {}))
    return by_ctranslate2(model, data, threads, "float32" if system == CT2_FLOAT32 else "int8")


def peak_megabytes() -> int | None:
    """Of this process alone: rusage begins with the peak of what started it. None where /proc doesn't tell."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return round(int(found[1]) / 1024) if found else None


def main() -> None:
    system, task = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    translate = made(system, task)
    lines: list[str] = task["lines"]
    cells = []
    for beam, size in task["cells"]:
        given = task.get("some", lines) if size == 1 else lines
        translate(given[:8], beam, size)  # warms up
        start = time.perf_counter()
        found = translate(given, beam, size)
        cells.append({"seconds": time.perf_counter() - start, "sentences": len(given), "text": found})
    print(json.dumps({"cells": cells, "megabytes": peak_megabytes()}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as in ../common, which isn't found from here
    main()
