"""What a comparison trains."""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    """A system that is trained with a seed."""

    system: str
    seed: int

    def stage(self, what: str) -> str:
        return f"{what} {self.system} {self.seed}"

    @property
    def file(self) -> str:
        return f"{self.system}-{self.seed}"
