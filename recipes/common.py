"""What several recipes share: files that are written whole, the size of a model, the name of the processor."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# fairseq's Transformer has each encoder layer's weights twice; the copies serve a faster inference and aren't trained
COPY = re.compile(r"layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)$")


def write(path: Path, how: Callable[[Path], object]) -> None:
    """Aside first, by ``how(aside)``, then renamed: nobody sees half of a file."""
    aside = path.with_name(f".{os.getpid()}-.{path.name}")  # torch.save wants a name before the suffix
    try:
        how(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """:func:`write` for text; makes the folder, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def parameters(weights: Mapping[str, Tensor]) -> int:
    """Numbers that a model learns: tied weights count once, fairseq's copies not at all."""
    return sum({w.data_ptr(): w.numel() for name, w in weights.items() if not COPY.search(name)}.values())


def processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
