"""The language model ``sru_lm`` and its architectures."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from fairseq.models import FairseqLanguageModel, register_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from . import options
from .architectures import register_architectures
from .base_decoder import BaseDecoder, Extra, IncrementalState, extra, output_layer
from .config import SRULanguageModelConfig
from .dropout import Dropout
from .embeddings import biased, embedding_of, project_in
from .recurrent import RecurrentLayer, State
from .units import UNITS


class SRULanguageDecoder(BaseDecoder):
    """Embedding, :class:`RecurrentLayer` s, layer norm, a linear map to the output embedding, logits. The incremental
    state is that of each layer: ``(batch, hidden_size)`` with SRU and no convolution."""

    def __init__(self, cfg: Namespace, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        size, out_embed_dim, dropout = cfg.decoder_hidden_size, cfg.decoder_out_embed_dim, cfg.decoder_dropout_out
        super().__init__(cfg, dictionary, embed_tokens)
        self.unit = cfg.recurrent_unit
        self.adaptive_softmax, self.output_projection = output_layer(cfg, dictionary, out_embed_dim, dropout)
        self.dropout_in = Dropout(cfg.decoder_dropout_in, module_name=type(self).__name__)
        self.project_in = project_in(embed_tokens.embedding_dim, size)
        self.layers = nn.ModuleList(
            RecurrentLayer(cfg, size, dropout, kernel_size=cfg.decoder_kernel_size, causal=True)
            for _ in range(cfg.decoder_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.project_out = biased(size, out_embed_dim)
        self.dropout_out = Dropout(dropout, module_name=type(self).__name__)
        self.follow_blocks(0)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: IncrementalState | None = None,
        **_: Any,
    ) -> tuple[Tensor, Extra]:
        """Decode without the output layer: features ``(batch, tgt_len, out_embed_dim)``."""
        if self.context_window and incremental_state is None:
            blocks = [self._next_block(row[row.ne(self.padding_idx)]) for row in prev_output_tokens]
            x = pad_sequence(blocks, batch_first=True)
            return F.pad(x, (0, 0, 0, prev_output_tokens.size(1) - x.size(1))), extra(None)
        states = self.cached(incremental_state)
        tokens = prev_output_tokens[:, -1:] if states[0] else prev_output_tokens
        x, states = self._run(tokens, states, self.training and incremental_state is None)
        self.cache(incremental_state, states)
        return x, extra(None)

    def _run(self, tokens: Tensor, states: list[State], outputs_only: bool) -> tuple[Tensor, list[State]]:
        padding = UNITS[self.unit].padding(tokens.eq(self.padding_idx).t(), outputs_only, True)
        x = self.project_in(self.dropout_in(self.embed_tokens(tokens.t())))
        after: list[State] = []
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer(x, state, padding)
            after.append(state)
        return self.dropout_out(self.project_out(self.norm(x))).transpose(0, 1), after

    def follow_blocks(self, context_window: int) -> None:
        """Take the rows of all batches that come from now on as one text, and carry the state from block to block. Call
        it again before the text is read once more.

        context_window says how many tokens that have been read each row repeats before its own (fewer where fewer have
        been read), as fairseq's LMContextWindowDataset makes them. The features of those are 0. With 0, rows are texts
        of their own again.
        """
        self.context_window = context_window
        self._begin()

    def _begin(self) -> None:
        self._states: list[State] = [{} for _ in self.layers]
        self._repeated: Tensor | None = None  # the next row's first tokens

    def _next_block(self, tokens: Tensor) -> Tensor:
        """Features ``(length, out_embed_dim)`` of a row without padding; one that doesn't follow begins a new text."""
        seen = 0 if self._repeated is None else len(self._repeated)
        if self._repeated is not None and not torch.equal(tokens[:seen], self._repeated):
            self._begin()
            seen = 0
        x, states = self._run(tokens[None, seen:], self._states, False)
        self._states = [{name: kept.detach() for name, kept in state.items()} for state in states]
        self._repeated = tokens[-self.context_window :]
        return F.pad(x.squeeze(0), (0, 0, seen, 0))


def check(cfg: Any, config: type[SRULanguageModelConfig]) -> Namespace:
    """Return the options, completed and checked; a ValueError names the flag, its value and what is allowed."""
    cfg = options.completed(cfg, config)
    if options.tied(cfg):
        options.must_match(cfg, "share_decoder_input_output_embed", "decoder_embed_dim", "decoder_out_embed_dim")
    return cfg


@register_model("sru_lm", dataclass=SRULanguageModelConfig)
class SRULanguageModel(FairseqLanguageModel):
    """Language model of pre-norm residual SRU layers (Lei et al. 2017), with a tied, free or adaptive softmax.

    In training, and unless fairseq-eval-lm is told of a context window, each block of text starts from a state of
    zeros. ``fairseq-eval-lm --sample-break-mode none --context-window N`` (any N of at least 1 and below the block
    size) makes fairseq hand out the blocks in the order of the text, and the model carries its state from block to
    block: each token is then predicted from all tokens before it, whatever N, the block size and the batch size.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> SRULanguageModel:
        """Build the model for a task's dictionary; a ValueError names the flag of options that don't go together."""
        cfg = check(cfg, SRULanguageModelConfig)
        source, target = task.source_dictionary, task.target_dictionary
        if options.tied(cfg) and len(source) != len(target):
            raise ValueError(
                "--share-decoder-input-output-embed requires one dictionary, so no --output-dictionary-size; "
                f"got {len(source)} and {len(target)} tokens"
            )
        return cls(SRULanguageDecoder(cfg, target, embedding_of(cfg, "decoder", source)))

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Prepare as fairseq does; for fairseq-eval-lm with a context window over blocks of one text, carry the state.
        A ValueError says why the blocks would not come in their order."""
        super().prepare_for_inference_(cfg)
        window = getattr(getattr(cfg, "eval_lm", None), "context_window", 0)
        task = getattr(cfg, "task", None)
        if getattr(task, "sample_break_mode", None) not in (None, "none") or getattr(task, "add_bos_token", False):
            window = 0
        if window:
            for flag, number in (
                ("--num-workers", cfg.dataset.num_workers),
                ("--num-shards", cfg.dataset.num_shards),
                ("--distributed-world-size", cfg.distributed_training.distributed_world_size),
            ):
                if number > 1:
                    raise ValueError(
                        f"{flag} must be 1 with --context-window: the blocks come in their order from one process; "
                        f"got {number}"
                    )
        self.decoder.follow_blocks(window)


register_architectures("sru_lm", SRULanguageModelConfig, check, task="language_modeling")
