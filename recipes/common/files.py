"""Files that are written whole, and text of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .errors import RecipeError


def read_text(path: Path) -> str:
    """All of a text of the user's.

    Raises:
        RecipeError: it isn't UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error})") from None


def write(path: Path, how: Callable[[Path], object]) -> None:
    """Aside first, by ``how(aside)``, then renamed: nobody sees half of a file. A link stays one, to the new file."""
    path = Path(os.path.realpath(path))
    aside = path.with_name(f".{os.getpid()}-.{path.name}")  # torch.save requires a name before the suffix
    try:
        how(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut may leave an empty file of the new name
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """:func:`write` for text; makes the folder, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda aside: aside.write_text(text, encoding="utf-8"))
