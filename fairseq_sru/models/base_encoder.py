"""Base of all encoders: their result, and how a beam search reorders it."""

from __future__ import annotations

from argparse import Namespace
from itertools import groupby
from typing import Any

import torch
from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from ..decoding.program import Program
from .attention import Source


class BaseEncoder(FairseqEncoder):
    """Embedding ``(len(dictionary), embed_dim)``, None where the source is no tokens, and the form of the result; the
    subclass's ``forward`` computes it."""

    output_units: int  # features of the outputs

    def __init__(self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding | None) -> None:
        super().__init__(dictionary)
        self.max_source_positions = cfg.max_source_positions
        if embed_tokens is not None:
            self.padding_idx = dictionary.pad()
            self.embed_tokens = embed_tokens

    def result(self, outputs: Tensor, padding_mask: Tensor, **more: list[Tensor]) -> dict[str, Any]:
        """Return the encoder's result, of outputs ``(src_len, batch, output_units)``, padding_mask ``(batch,
        src_len)``, True at padding, and more lists of tensors with the batch first.

        It has rows_per_sentence, 1, and read, where decoders keep what their attentions read of the outputs
        (:meth:`BaseDecoder.sources`).
        """
        result = {"encoder_out": [outputs], "encoder_padding_mask": [padding_mask], **more}
        return {**result, "rows_per_sentence": 1, "read": {}}

    def program(self) -> Program | None:
        """Return the program of the outputs, with their slot as its result; None where it has to be torch's."""
        return None

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        """Reorder (or repeat, for a beam) the rows of the batch.

        Rows of one sentence share its tensors while each sentence has equally many, next to one another, as in beam
        search; then this copies nothing but, when sentences are done, those that are not. Else each row gets a copy.
        """
        rows = encoder_out["rows_per_sentence"]
        runs = [(n, len(list(run))) for n, run in groupby(row // rows for row in new_order.tolist())]
        together = len({length for _, length in runs}) == 1
        remaining = [n for n, length in runs for _ in range(1 if together else length)]
        new = {**encoder_out, "rows_per_sentence": len(new_order) // len(remaining)}
        sentences = len(encoder_out["encoder_padding_mask"][0])
        dims = {name: int(name == "encoder_out") for name, tensors in encoder_out.items() if isinstance(tensors, list)}
        if remaining != list(range(sentences)):
            at = torch.tensor(remaining, device=new_order.device)
            new |= {name: [t.index_select(dim, at) for t in encoder_out[name]] for name, dim in dims.items()}
            new["read"] = {
                decoder: read._replace(
                    sources=[Source(*(t.index_select(0, at) for t in source)) for source in read.sources]
                )
                for decoder, read in encoder_out["read"].items()
            }
        return new

    def max_positions(self) -> int:
        """Longest source sentence."""
        return self.max_source_positions  # type: ignore[no-any-return]
