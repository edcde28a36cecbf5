"""NVRTC, through pynvrtc: finding it, and compiling the CUDA source for a GPU's architecture.

Environment: ``FAIRSEQ_SRU_NVRTC`` names the library's file where it can't be found.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..versions import CUDA
from .build import Unavailable, cached, kernel_text

NVRTC_VARIABLE = "FAIRSEQ_SRU_NVRTC"
FLAGS = ("--std=c++17", "--device-as-default-execution-space")  # of every compilation
INSTALL = "pip install 'fairseq_sru[cuda{0}]' brings what the GPU kernels need"


class Compiled(NamedTuple):
    """Code, cubin or PTX, and the compiler's log."""

    code: bytes
    log: str


class Compiler:
    """NVRTC by its library's path.

    Raises:
        Unavailable: pynvrtc is missing, or the library can't be loaded.
    """

    def __init__(self, path: str) -> None:
        try:
            from pynvrtc.compiler import Program
            from pynvrtc.interface import NVRTCInterface
        except ImportError as error:
            raise Unavailable(f"pynvrtc can't be imported ({error}); pip install {CUDA[0]}") from error
        self.path = path
        self._program = Program
        try:
            # pynvrtc's default name of the library is one that no package has any more, hence always the path
            self.version: tuple[int, int] = tuple(NVRTCInterface(path).nvrtcVersion())
            self._library = ctypes.CDLL(path)
            builtins = Path(path).resolve().with_name("libnvrtc-builtins.so.{}.{}".format(*self.version))
            # NVRTC opens it by its bare name when it compiles, and doesn't look next to itself
            if "/" in path and builtins.exists():
                ctypes.CDLL(str(builtins))
        except Exception as error:  # of ctypes, and pynvrtc's own
            raise Unavailable(
                f"{path} can't be loaded as NVRTC ({error}); {NVRTC_VARIABLE} can name another"
            ) from error

    def architectures(self) -> list[int]:
        """Return the compute capabilities it compiles for, as 10 * major + minor."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        values = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(values))
        return sorted(values)

    def target(self, capability: int) -> str:
        """Return ``sm_XX``, which gives cubin, for a GPU's capability; ``compute_XX``, PTX, for a newer one."""
        known = self.architectures()
        if capability in known:
            return f"sm_{capability}"
        older = [a for a in known if a < capability]
        if not older:
            raise Unavailable(
                f"NVRTC {self.version[0]}.{self.version[1]} compiles for compute capability {known[0] / 10} and up; "
                f"this GPU has {capability / 10}. An NVRTC 12 (and a torch for CUDA 12) still knows it"
            )
        return f"compute_{older[-1]}"

    def compile(self, options: tuple[str, ...], target: str) -> Compiled:
        """Compile the CUDA source.

        Raises:
            Unavailable: it doesn't compile; the message holds the log.
        """
        text = kernel_text()
        headers = {name: content for name, content in text.items() if name.endswith(".h")}
        return self._compile(text["sru.cu"], headers, options, target)

    def empty(self, target: str) -> bytes:
        """Return the code of an empty kernel, to test if the driver takes what this NVRTC compiles."""
        return self._compile('extern "C" __global__ void empty() {}', {}, (), target).code

    def _compile(self, text: str, headers: dict[str, str], options: tuple[str, ...], target: str) -> Compiled:
        program = self._program(
            text, "sru.cu", headers=[*headers.values()], include_names=[*headers], lib_name=self.path
        )
        words = [*options, f"--gpu-architecture={target}", *FLAGS]
        try:
            ptx = program.compile(words)
        except Exception as error:  # pynvrtc's own, which holds the log
            raise Unavailable(f"NVRTC {self.version} can't compile {' '.join(words)}:\n{error}") from error
        log = str(program._interface.nvrtcGetProgramLog(program._program)).strip("\0\n ")
        return Compiled(self._cubin(program) if target.startswith("sm_") else ptx.encode(), log)

    def cubin(self, options: tuple[str, ...], target: str) -> bytes:
        """Return the code by :meth:`compile`, from the cache on disk where it is there."""
        parts = ["nvrtc", str(self.version), target, *FLAGS, *options, *kernel_text().values()]

        def make(path: Path) -> None:
            path.write_bytes(self.compile(options, target).code)

        return cached(parts, ".cubin" if target.startswith("sm_") else ".ptx", make).read_bytes()

    def _cubin(self, program: Any) -> bytes:
        handle = program._program
        size = ctypes.c_size_t()
        self._check(self._library.nvrtcGetCUBINSize(handle, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        self._check(self._library.nvrtcGetCUBIN(handle, code))
        return code.raw

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise Unavailable(f"NVRTC reports error {status}")


@functools.cache
def compiler() -> Compiler:
    """Return the NVRTC of torch's CUDA version.

    Raises:
        Unavailable: there is none; the message says what helps.
    """
    named = os.environ.get(NVRTC_VARIABLE)
    if named:
        return Compiler(named)
    version: str | None = torch.version.cuda
    if version is None:
        raise Unavailable("this torch is built without CUDA")
    major = version.split(".")[0]
    if int(major) < 12:
        raise Unavailable(f"torch is for CUDA {version}; the kernels need a torch for CUDA 12 or later")
    try:
        from cuda import pathfinder

        path = str(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)
    except Exception as error:  # it is missing, or its own kinds, by the way that failed
        remedy = f"{INSTALL.format(major)}; or {NVRTC_VARIABLE} names its file"
        raise Unavailable(f"no NVRTC found ({error}); {remedy}") from error
    wheels = [p for base in _nvidia_packages() for p in sorted(base.glob(f"*/lib/libnvrtc.so.{major}*"))]
    for candidate in (path, *map(str, wheels)):  # next to torch may lie one of another CUDA than what is found first
        library = Compiler(candidate)
        if library.version[0] == int(major):
            return library
    package = f"nvidia-cuda-nvrtc{'-cu12' if major == '12' else ''}=={major}.*"
    raise Unavailable(
        f"torch is for CUDA {version}, and {path} is not: pip install '{package}', or name one in {NVRTC_VARIABLE}"
    )


def _nvidia_packages() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
