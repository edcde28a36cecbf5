"""fairseq models; importing this registers them, as fairseq does when it is given ``--user-dir``."""

try:
    import fairseq  # noqa: F401
except Exception as error:  # a broken fairseq raises anything
    missing = isinstance(error, ModuleNotFoundError) and error.name == "fairseq"
    reason = "is not installed" if missing else f"can't be imported ({type(error).__name__}: {error})"
    raise ImportError(
        f"fairseq_sru.models needs fairseq, which {reason}. Install it with: python -m fairseq_sru.install_fairseq"
    ) from (None if missing else error)

from fairseq import checkpoint_utils

from . import faster  # noqa: F401  (replaces methods of fairseq)
from .checkpoints import allow_options, loader
from .classifier import CNNClassifier, SRUClassifier
from .lm import SRULanguageModel
from .speech import SpeechModel
from .sru import SRUModel
from .transformer_sru import TransformerSRUModel

__all__ = [
    "CNNClassifier",
    "SRUClassifier",
    "SRULanguageModel",
    "SRUModel",
    "SpeechModel",
    "TransformerSRUModel",
]

allow_options()
for _name in ("load_checkpoint_to_cpu", "load_ema_from_checkpoint"):
    setattr(checkpoint_utils, _name, loader(getattr(checkpoint_utils, _name)))
