"""Ends of a script that are no fault of its own."""

import signal


def end_with_reader() -> None:
    """End without a word when nobody reads the output any more, as after ``| head``."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


class RecipeError(Exception):
    """What the user can mend; the message says how."""
