"""SRU layers as torch modules, in the manner of nn.LSTM; they know nothing of fairseq.

docs/layers.md has a table for those who come from nn.LSTM or from the published SRU code.
"""

from .cell import SRUCell
from .sru import SRU

__all__ = ["SRU", "SRUCell"]
