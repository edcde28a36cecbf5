"""Exit handling: closed pipes, and errors that the user can mend."""

import signal
import sys
from io import TextIOWrapper
from typing import cast


def end_with_reader() -> None:
    """End without a word when nobody reads the output any more, as after ``| head``. What the terminal's encoding
    lacks ends nothing."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        cast(TextIOWrapper, stream).reconfigure(errors="replace")


class RecipeError(Exception):
    """An error that the user can mend; the message says how."""
