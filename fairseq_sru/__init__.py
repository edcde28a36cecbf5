"""Simple Recurrent Units for fairseq: layers (:class:`SRU`, :class:`SRUCell`), the recurrence, translation models, and
a :class:`Translator` for models that were exported.

The layers need torch only, and importing them loads no fairseq. The models register with fairseq where this package is
its ``--user-dir``, where it is imported after fairseq, or by ``import fairseq_sru.models``.
"""

import sys

from .decoding.translator import Translator
from .layers import SRU, SRUCell
from .recurrence import backends, sru_recurrence
from .versions import __version__

__all__ = ["SRU", "SRUCell", "Translator", "__version__", "backends", "sru_recurrence"]


class _Folders(list[str]):
    """The package's folder. fairseq's --user-dir looks only here for what was imported before: time to register."""

    def __contains__(self, folder: object) -> bool:
        is_here = super().__contains__(folder)
        if is_here and sys.modules.get("fairseq") is not None:
            from . import models  # noqa: F401
        return is_here


__path__ = _Folders(__path__)

if sys.modules.get("fairseq") is not None:
    from . import models  # noqa: F401
