"""Registry of all that recipes/speed.py times: contestants by group and name, and the shapes that they are timed at.

A contestant is a function with the decorator :func:`contestant`: one layer and the recurrence in layer.py, whole models
in models.py, translation of text in decoding.py. The columns of a table have the order of registration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

Maker = TypeVar("Maker", bound=Callable[..., Any])


class Contestant(NamedTuple):
    """Entry of the registry.

    Attributes:
        make: makes what is timed; its arguments are those of its group.
        note: what it calls, for the report.
        needs: the checkpoint that it translates with.
    """

    make: Callable[..., Any]
    note: str
    needs: str


CONTESTANTS: dict[str, dict[str, Contestant]] = {"layer": {}, "recurrence": {}, "model": {}, "translate": {}}


def contestant(group: str, name: str, note: str = "", needs: str = "") -> Callable[[Maker], Maker]:
    """Decorator that registers a maker under a name."""

    def register(make: Maker) -> Maker:
        CONTESTANTS[group][name] = Contestant(make, note, needs)
        return make

    return register


# ---------------------------------------------------------------- layers and recurrences

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
EAGER, GRAPH = "eager", "CUDA graph"

Shape = tuple[int, int, int]  # length, batch, size
WIDE, LONG = (64, 256, 1024), (8192, 1, 512)  # fill a GPU by columns, and by steps
LAYERS: list[Shape] = [(length, 32, size) for length in (32, 128) for size in (256, 512, 1024)] + [(1000, 1, 512)]
STEPS: list[Shape] = [(1, batch, 512) for batch in (1, 5, 64, 320)]  # of decoding
PLOTTED: list[Shape] = [(32, 32, 256), (32, 32, 512), (128, 32, 512)]
RECURRENCES: dict[str, list[Shape]] = {
    "cpu": [(64, 32, 512), LONG],
    "cuda": [WIDE, LONG, (32, 32, 512), (128, 32, 512)],
}


class Case(NamedTuple):
    """Work of the contestants of a layer or a recurrence."""

    what: str
    length: int
    batch: int
    size: int
    dtype: str = "float32"
    mode: str = EAGER

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Case:
        """Case of a report's entry."""
        return cls(*(entry[field] for field in cls._fields))

    @property
    def shape(self) -> Shape:
        return self.length, self.batch, self.size

    def __str__(self) -> str:
        variant = [word for word in (self.dtype, self.mode) if word not in ("float32", EAGER)]
        return " ".join((self.what, f"L{self.length} B{self.batch} d{self.size}", *variant))


# ---------------------------------------------------------------- models


class Preset(NamedTuple):
    """Sizes of the models that are compared with a preset of SRU.

    Attributes:
        transformer: the preset of fairseq that is made as large.
        wider: times its width, the width of its feed-forward block.
        heads: of its attention.
        vocabulary: tokens of both languages.
        pairs: sentence pairs of an update.
        decoding: sentences and beam of each case of decoding.
    """

    transformer: str
    wider: int
    heads: int
    vocabulary: int
    pairs: int
    decoding: list[tuple[int, int]]


PRESETS = {
    "sru_iwslt_de_en": Preset("transformer_iwslt_de_en", 2, 4, 8000, 40, [(1, 1), (1, 5), (64, 1), (64, 5)]),
    "sru_wmt": Preset("transformer_wmt_en_de", 4, 8, 32000, 160, []),
}
SOURCE, TARGET = 25, 40  # tokens of a source sentence, and steps of decoding

# ---------------------------------------------------------------- translation

CELLS = [(1, 1), (1, 64), (5, 1), (5, 64)]  # beam, sentences at a time
