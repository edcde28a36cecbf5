"""Facts of the machine, the model and the source, for reports."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
# fairseq's Transformer has each encoder layer's weights twice; the copies serve a faster inference and aren't trained
COPY = re.compile(r"layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$")


def parameters(weights: Mapping[str, Tensor]) -> int:
    """Numbers that a model learns: tied weights count once, fairseq's copies not at all."""
    return sum({w.data_ptr(): w.numel() for name, w in weights.items() if not COPY.search(name)}.values())


def processor() -> str:
    """Its name; that of an ARM is a few numbers."""
    info = Path("/proc/cpuinfo")
    said = dict(re.findall(r"^(.+?)\s*: (.+)$", info.read_text(), re.MULTILINE)) if info.is_file() else {}
    known = " ".join(f"{key[4:]} {said[key]}" for key in ("CPU implementer", "CPU part") if key in said)
    return said.get("model name") or f"{platform.processor() or platform.machine()} {known}".strip()


def cores() -> int:
    """CPU cores that this process may use, within a container's quota, rounded up."""
    from fairseq_sru.decoding.translator import cores as of_this_process  # loads torch

    return of_this_process()


def source(*patterns: str) -> str:
    """Hash of the names and contents of the project's files of these patterns, as :meth:`Path.glob` takes them."""
    state = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()):
        state.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return state.hexdigest()[:12]
