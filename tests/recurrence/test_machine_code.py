"""Code that NVRTC makes of the CUDA source for GPUs: its PTX run by a machine of the tests' own against the definition,
and its SASS read for what decides the speed."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_cupy import signatures
from support.gpu_forms import V1, by, geometries, gpu_compiler, ptx_of, variant_of
from support.ptx_machine import Machine, Memory
from support.sass import FORMS, TARGETS, instructions, step_loop
from support.variants import COVERING, Case, assert_defined, make, results
from torch import Tensor

from fairseq_sru.recurrence.build import kernel_text
from fairseq_sru.recurrence.cuda import BLOCK, steps_ahead
from fairseq_sru.recurrence.kernels import DEFAULT_VARIANT, KERNELS, Argument, Kernels, Shape, Variant

# ---------------------------------------------------------------- PTX


class Interpreted(Kernels):
    """The kernels as PTX, run by :class:`Machine` in a memory that knows its bounds.

    Args:
        vec, ahead: what they are compiled for.
        steps: that a thread works on, with v1 cells; all if not given.
    """

    name = "interpreted"

    def __init__(self, vec: int, ahead: int, steps: int | None = None) -> None:
        self.vec, self.ahead, self.steps = vec, ahead, steps

    def chunk_length(self, variant: Variant, length: int, columns: int, device: torch.device) -> int:
        return length if variant.peephole or not self.steps else self.steps

    def launch(self, kernel: str, variant: Variant, shape: Shape, device: torch.device, *arguments: Argument) -> None:
        memory, written, words = Memory(), [], []
        for parameter, argument in zip(signatures()[kernel], (*arguments, *shape), strict=True):
            if isinstance(argument, Tensor):
                content = argument.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                address = memory.put(content, written=parameter.written)
                words.append(struct.pack("<Q", address))
                if parameter.written:
                    written.append((parameter.name, argument, address, len(content)))
            elif isinstance(argument, float):
                words.append(struct.pack("<d" if variant.value == 3 else "<f", argument))
            else:
                words.append(struct.pack("<q", argument or 0))
        threads = shape.batch * shape.width // self.vec * shape.chunks
        Machine(ptx_of(variant, self.vec, self.ahead), kernel, memory, words, -(-threads // 32), 32).run()
        for name, tensor, address, size in written:
            if name != "summary":  # of which the last chunk leaves its part out
                memory.check_written(address, size)
            tensor.copy_(torch.frombuffer(bytearray(memory.get(address, size)), dtype=tensor.dtype).view(tensor.shape))


def check(case: Case, vec: int, ahead: int, steps: int | None, length: int, half: int) -> None:
    arguments = make(case, length=length, batch=2, half=half)
    assert_defined(results(by(Interpreted(vec, ahead, steps)), arguments), arguments)


SIXTEEN_BITS = [
    next(c for c in COVERING if (c.dtype, c.padding) == (torch.bfloat16, padding)) for padding in (True, False)
]


@pytest.mark.parametrize("case", SIXTEEN_BITS, ids=str)
def test_what_a_gpu_would_run_is_the_definition(case: Case) -> None:
    """The widest form, with more batches than the ring has halves and a rest."""
    vec, ahead = geometries(variant_of(case))[-1]
    for length in (4 * ahead, 4 * ahead + 1):
        check(case, vec, ahead, None, length, vec)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in COVERING if c.dtype != torch.float64], ids=str)
def test_what_a_gpu_would_run_is_the_definition_with_any_option(case: Case) -> None:
    for vec, ahead in geometries(variant_of(case)):
        for length in (1, ahead, 4 * ahead + 3):
            check(case, vec, ahead, None, length, 3 * vec)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in V1 if c.dtype != torch.float64][:4], ids=str)
def test_what_a_gpu_would_run_in_chunks_is_the_definition(case: Case) -> None:
    for vec, ahead in geometries(variant_of(case)):
        for steps in (1, 3, 12):
            check(case, vec, ahead, steps, 13, vec)


# ---------------------------------------------------------------- the functions of one number in device.h

MAPS = """
KERNEL map_sigmoid(const float* x, float* y) { y[THREAD] = sigmoid(x[THREAD], 0.f); }
KERNEL map_tanh(const float* x, float* y) { y[THREAD] = hyperbolic_tangent(x[THREAD]); }
"""
# Off by what the PTX manual allows: ex2.approx 2 units in the last place, rcp.approx 1.
OFF = [{"ex2": ex2, "rcp": rcp} for ex2 in (-2, 2) for rcp in (-1, 1)]
# In the last place; where the sigmoid is small, e^x costs it a unit more for each unit of x.
BOUNDS = {"map_sigmoid": 7.0, "map_tanh": 11.0}


def test_the_gates_of_a_gpu_are_exact_to_a_few_units() -> None:
    options = DEFAULT_VARIANT.defines(vec=1, ahead=2)
    headers = {name: text for name, text in kernel_text().items() if name.endswith(".h")}
    ptx = gpu_compiler()._compile(kernel_text()["sru.cu"] + MAPS, headers, options, "compute_90").code.decode()
    sizes = np.geomspace(1e-6, 20, 4096)
    x = np.concatenate([-sizes, sizes]).astype(np.float32)
    wide = x.astype(np.float64)
    exact = {"map_sigmoid": 1 / (1 + np.exp(-wide)), "map_tanh": np.tanh(wide)}
    for name, bound in BOUNDS.items():
        unit = 2.0 ** (np.floor(np.log2(abs(exact[name]))) - 23)
        for off in OFF:
            got = mapped(ptx, name, x, off)
            error = abs(got - exact[name]) / unit - (np.maximum(-wide, 0) if name == "map_sigmoid" else 0)
            assert error.max() <= bound, (name, off, error.max(), x[error.argmax()])


def mapped(ptx: str, kernel: str, x: Any, off: dict[str, int]) -> Any:
    memory = Memory()
    from_, to = memory.put(x.tobytes()), memory.put(x.tobytes(), written=True)
    Machine(ptx, kernel, memory, [struct.pack("<Q", a) for a in (from_, to)], len(x) // 64, 64, off).run()
    return np.frombuffer(memory.get(to, x.nbytes), np.float32)


# ---------------------------------------------------------------- SASS

# Instructions an element of the loop over the steps, at most, with and without a padding mask: forward, backward.
MOST = {  # by NVRTC 13.0
    1: {(0, 1): (60, 88), (0, 4): (41, 60), (2, 1): (86, 118), (2, 8): (44, 64)},
    0: {(0, 1): (50, 74), (0, 4): (37, 53), (2, 1): (76, 104), (2, 8): (41, 58)},
}


def assert_loads_stay_on_their_way(value: int, vec: int, target: str, pad: int) -> None:
    variant = DEFAULT_VARIANT._replace(value=value, pad=pad)
    ahead = steps_ahead(variant, vec)
    code = gpu_compiler().compile(variant.defines(vec=vec, ahead=ahead), target).code
    for kernel in variant.kernels:
        loop = step_loop(instructions(code, kernel, target))
        assert loop.loads == 0, "it is waited for where it is used"
        assert loop.others == 0, "something else waits for all copies"
        assert loop.rounds * ahead >= 2, f"steps between the copies' start and the wait for them: {loop}"
        if kernel in KERNELS:
            most = MOST[pad][value, vec][KERNELS.index(kernel)]
            a_step = loop.instructions / (vec * ahead)
            more = 1 if gpu_compiler().version == (13, 0) else 1.02  # 13.2 makes 89.5 of 88 for sm_100
            assert a_step <= most * more, (kernel, a_step)


@pytest.mark.parametrize("pad", [1, 0])
def test_what_a_step_reads_is_on_its_way_for_two_steps_at_least(pad: int) -> None:
    assert_loads_stay_on_their_way(2, 8, "sm_90", pad)


def test_many_threads_have_room() -> None:
    """256 sequences of 1,024 channels, 4 a thread, are 1,024 blocks, for which an H100 then has 132 times 8 places."""
    variant = DEFAULT_VARIANT._replace(value=0)
    options = (*variant.defines(vec=4, ahead=steps_ahead(variant, 4)), "--ptxas-options=-v")
    log = gpu_compiler().compile(options, "sm_90").log
    found = re.findall(r"entry function '(\w+)'.*?Used (\d+) registers.*?(\d+) bytes smem", log, re.S)
    assert {kernel for kernel, *_ in found} == set(variant.kernels)
    for kernel, registers, shared in found:
        assert -(-int(registers) // 8) * 8 * BLOCK * 8 <= 65536, kernel
        assert (int(shared) + 1024) * 8 <= 228 * 1024, kernel


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("value, vec", FORMS)
@pytest.mark.parametrize("pad", [1, 0])
def test_what_a_step_reads_is_on_its_way_on_any_gpu(value: int, vec: int, target: str, pad: int) -> None:
    assert_loads_stay_on_their_way(value, vec, target, pad)
