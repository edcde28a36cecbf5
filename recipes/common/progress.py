"""Bars of progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LATE = 60.0  # seconds from one line to the next, where there is no terminal


def progress(iterable: Iterable[Any] | None = None, **how: Any) -> tqdm[Any]:
    """A bar of tqdm's; without a terminal, as in a log, a line a minute, and none of what takes less."""
    seldom: dict[str, Any] = {"delay": LATE, "mininterval": LATE, "maxinterval": LATE}
    return tqdm(iterable, **({} if sys.stderr.isatty() else seldom), **how)
