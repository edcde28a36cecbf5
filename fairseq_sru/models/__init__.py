"""fairseq models; importing this registers them, as fairseq does when it is given ``--user-dir``."""

try:
    import fairseq  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "fairseq":
        raise
    raise ImportError(
        "fairseq_sru.models needs fairseq, which is not installed. "
        "Install it with: python -m fairseq_sru.install_fairseq"
    ) from None

from .checkpoints import allow_fairseq_checkpoints
from .lm import SRULanguageModel
from .sru import SRUModel
from .transformer_sru import TransformerSRUModel

__all__ = ["SRULanguageModel", "SRUModel", "TransformerSRUModel"]

allow_fairseq_checkpoints()
