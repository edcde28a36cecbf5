"""The forms in which a GPU may have the CUDA source compiled, and what NVRTC makes of them."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from fairseq_sru.recurrence import ACTIVATIONS, build, nvrtc
from fairseq_sru.recurrence.autograd import Backend, Recurrence
from fairseq_sru.recurrence.cuda import geometry
from fairseq_sru.recurrence.kernels import VALUES, Shape, Variant
from fairseq_sru.recurrence.reference import Options

from . import variants
from .variants import COVERING, Case, Recurrent

V1 = list(dict.fromkeys(case._replace(v=False) for case in COVERING))  # those whose steps can be cut into chunks


def variant_of(case: Case) -> Variant:
    codes = VALUES[case.dtype], list(ACTIVATIONS).index(case.activation)
    return Variant(*codes, case.planes, int(case.kind == "k3-input"), int(case.v), int(case.padding))


@functools.cache
def geometries(variant: Variant) -> list[tuple[int, int]]:
    """VEC and AHEAD as a GPU of any size may choose them."""
    shapes = [Shape(64, batch, width, 1, 64) for batch in (1, 10000) for width in (1, 2, 4, 8, 16)]
    return sorted({geometry(variant, shape, processors)[:2] for shape in shapes for processors in (1, 20, 200)})


def by(backend: Backend) -> Recurrent:
    """sru_recurrence with a backend of one's own."""

    def recurrent(**given: Any) -> Any:
        options = Options(given["activation"], given["bidirectional"], given["skip_scale"])
        tensors = (given[name] for name in variants.TENSORS)
        return Recurrence.apply(backend, options, given["padding_mask"], *tensors)

    return recurrent


@functools.cache
def gpu_compiler() -> nvrtc.Compiler:
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="NVRTC is found by cuda-pathfinder")
    try:
        return nvrtc.Compiler(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)
    except (build.Unavailable, pathfinder.DynamicLibNotFoundError) as error:
        pytest.skip(f"no NVRTC: {error}")


@functools.cache
def ptx_of(variant: Variant, vec: int, ahead: int) -> str:
    return gpu_compiler().compile(variant.defines(vec=vec, ahead=ahead), "compute_90").code.decode()
