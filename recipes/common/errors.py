"""The error that the user can mend."""


class RecipeError(Exception):
    """What the user can mend; the message says how."""
