"""The models ``sru_classifier`` and ``cnn_classifier`` and their architectures: sentences to classes."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from . import options
from .architectures import register_architectures
from .config import ClassifierConfig, CNNClassifierConfig
from .dropout import Dropout
from .embeddings import biased, embedding_of
from .encoder import SRUEncoder

logger = logging.getLogger(__name__)

# Each makes (batch, size) of outputs (length, batch, size), padding (length, batch, 1) and all of the encoder's result.
POOLINGS: dict[str, Callable[[Tensor, Tensor, dict[str, Any]], Tensor]] = {
    "max": lambda outputs, padding, _: outputs.masked_fill(padding, -torch.inf).amax(0),
    "mean": lambda outputs, padding, _: outputs.masked_fill(padding, 0.0).sum(0) / (~padding).sum(0),
    "last": lambda outputs, padding, encoded: encoded["encoder_state"][0].to(outputs.dtype),
}


class Classifier(BaseFairseqModel):
    """Sentences to vectors of so many features (size) by ``encode``, which the subclass has; dropout; a linear layer
    for each head."""

    def __init__(self, cfg: Namespace, size: int) -> None:
        super().__init__()
        self.args = cfg  # fairseq's criterion looks there
        self.size = size
        self.max_source_positions = cfg.max_source_positions
        self.dropout = Dropout(cfg.dropout, module_name=type(self).__name__)
        self.classification_heads = nn.ModuleDict()

    def register_classification_head(self, name: str, num_classes: int, **_: Any) -> None:
        """Add a head, as fairseq's task asks for."""
        self.classification_heads[name] = biased(self.size, num_classes)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Have a checkpoint's heads of other names or classes make room for this model's own, which are new: so a
        model is fine-tuned for other classes."""
        super().upgrade_state_dict_named(state_dict, name)
        own = {f"classification_heads.{key}": weight for key, weight in self.classification_heads.state_dict().items()}
        for key in [key for key in state_dict if key.startswith("classification_heads.")]:
            if key not in own or state_dict[key].shape != own[key].shape:
                logger.warning(f"{key} of the checkpoint is for other classes: this model's is untrained")
                del state_dict[key]
        state_dict.update({key: weight for key, weight in own.items() if key not in state_dict})

    def encode(self, src_tokens: Tensor) -> Tensor:
        """Tokens ``(batch, length)``, padded on either side, to ``(batch, size)``."""
        raise NotImplementedError

    def forward(self, src_tokens: Tensor, classification_head_name: str = "", **_: Any) -> tuple[Tensor, None]:
        """Return logits ``(batch, num_classes)`` of a head that was registered, and None, for tokens ``(batch,
        length)``, padded on either side."""
        return self.classification_heads[classification_head_name](self.dropout(self.encode(src_tokens))), None

    def max_positions(self) -> int:
        """Longest sentence."""
        return self.max_source_positions  # type: ignore[no-any-return]


@register_model("sru_classifier", dataclass=ClassifierConfig)
class SRUClassifier(Classifier):
    """The encoder of ``--arch sru``, with SRU or LSTM units, and pooling over time."""

    def __init__(self, cfg: Namespace, encoder: SRUEncoder) -> None:
        super().__init__(cfg, encoder.state_units if cfg.pooling == "last" else encoder.output_units)
        self.encoder = encoder

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> SRUClassifier:
        """Build the model for a task's dictionary; a ValueError names the flag of options that don't go together."""
        cfg = options.completed(cfg, ClassifierConfig)
        dictionary = task.source_dictionary
        read = cfg.pooling != "last"
        return cls(cfg, SRUEncoder(cfg, dictionary, embedding_of(cfg, "encoder", dictionary), read))

    def encode(self, src_tokens: Tensor) -> Tensor:
        """See :meth:`Classifier.encode`."""
        encoded = self.encoder(src_tokens)
        padding = encoded["encoder_padding_mask"][0].t().unsqueeze(-1)
        return POOLINGS[self.args.pooling](encoded["encoder_out"][0], padding, encoded)


@register_model("cnn_classifier", dataclass=CNNClassifierConfig)
class CNNClassifier(Classifier):
    """Filters over words, ReLU, the largest of each over time (Kim 2014, section 2), to compare with."""

    def __init__(self, cfg: Namespace, embed_tokens: nn.Embedding) -> None:
        widths = options.numbers(cfg.filter_widths)
        super().__init__(cfg, len(widths) * cfg.filters)
        self.widths = widths
        self.embed_tokens = embed_tokens
        assert embed_tokens.padding_idx is not None
        self.padding_idx = embed_tokens.padding_idx
        self.convolutions = nn.ModuleList(nn.Conv1d(cfg.encoder_embed_dim, cfg.filters, width) for width in widths)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> CNNClassifier:
        """See :meth:`SRUClassifier.build_model`."""
        cfg = options.completed(cfg, CNNClassifierConfig)
        return cls(cfg, embedding_of(cfg, "encoder", task.source_dictionary))

    def encode(self, src_tokens: Tensor) -> Tensor:
        """See :meth:`Classifier.encode`. A filter sees each place that has a word; what lies outside counts as 0."""
        padding = src_tokens.eq(self.padding_idx)
        x = self.embed_tokens(src_tokens).masked_fill(padding.unsqueeze(-1), 0.0).transpose(1, 2)
        words = (~padding).to(x.dtype).unsqueeze(1)
        largest = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            outside = (width - 1, width - 1)
            seen = F.max_pool1d(F.pad(words, outside), width, stride=1)  # 0 where a filter sees no word
            largest.append(convolution(F.pad(x, outside)).relu().mul(seen).amax(-1))  # ReLU's least is 0, too
        return torch.cat(largest, dim=1)


register_architectures("sru_classifier", ClassifierConfig, task="sentence_prediction")
register_architectures("cnn_classifier", CNNClassifierConfig, task="sentence_prediction")
