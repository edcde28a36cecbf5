"""The translator under the address and undefined-behaviour sanitizers, damaged models included."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from support.processes import under_sanitizers

SCRIPT = """
from pathlib import Path
import torch
from support.exported import LINES, exported, fuzzed
from fairseq_sru import Translator
lines = [*LINES, "", "a", "new " * 60] * 6
for i, (name, form) in enumerate((name, form) for name in {names!r} for form in {forms!r}):
    folder = Path({folder!r}) / str(i)
    program.OPTIONS = {options!r} + form
    program.library.cache_clear()
    exported(folder, name, int8=i % 2 == 1)
    for beam in (1, 3, 9):
        for batch_size in (1, 64):
            Translator(folder, 1 + i % 2).hypotheses(lines, beam=beam, nbest=beam, max_length=9, batch_size=batch_size,
                                             no_repeat_ngram_size=i % 3)
    assert fuzzed(folder, i, {times}) > 0
"""
OPTIONS = ("-fopenmp-simd", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


@pytest.mark.slow
def test_no_access_is_out_of_bounds(tmp_path: Path) -> None:
    names = ["sru, coverage", "sru, convolution", "sru, sizes differ", "transformer_sru, ssru"]
    forms = [(), ("-DPLAIN",), *([("-mno-avx512vnni", "-mno-avxvnni")] if platform.machine() == "x86_64" else [])]
    under_sanitizers(
        SCRIPT.format(names=names, forms=forms, options=OPTIONS, folder=str(tmp_path), times=25), tmp_path / "cache"
    )
