"""Style of plots, and their files: the same figures give the same bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from .files import write

matplotlib.style.use("tableau-colorblind10")  # colours that nearly everybody can tell apart
matplotlib.rcParams["svg.hashsalt"] = "fairseq_sru"


def write_figure(path: Path, figure: Figure) -> None:
    """:func:`common.files.write` for a plot."""
    write(path, partial(figure.savefig, metadata={"Date": None}))
