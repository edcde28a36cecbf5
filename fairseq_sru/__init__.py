"""Simple Recurrent Units for fairseq: layers (:class:`SRU`, :class:`SRUCell`), the recurrence and translation models.

Importing the package registers the models with fairseq where fairseq is installed; the layers need torch alone.
"""

import importlib.util
import warnings

from .layers import SRU, SRUCell
from .recurrence import backends, sru_recurrence
from .versions import __version__

__all__ = ["SRU", "SRUCell", "__version__", "backends", "sru_recurrence"]

if importlib.util.find_spec("fairseq") is not None:
    try:
        import fairseq.models  # noqa: F401
    except Exception as error:  # a broken fairseq raises anything, and the layers don't need it
        warnings.warn(
            f"fairseq is installed but can't be used ({type(error).__name__}: {error}); the layers work, the models "
            "are not registered. Mend it with: python -m fairseq_sru.install_fairseq",
            stacklevel=2,
        )
    else:
        from . import models  # noqa: F401
