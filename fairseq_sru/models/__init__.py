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

from ..checkpoints import allow_fairseq_checkpoints
from .sru import SRUModel

__all__ = ["SRUModel"]

allow_fairseq_checkpoints()
