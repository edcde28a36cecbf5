"""Classes of sentences, by a classifier that fairseq-train made."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from common.errors import RecipeError
from corpora.sentences import TEST, tokens
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary, data_utils

BATCH = 64  # sentences


def labels_of(dictionary: Dictionary) -> list[str]:
    """The labels of a dictionary of a classifier, without what fairseq adds to it."""
    words = dictionary.symbols[dictionary.nspecial :]
    return [word for word in words if word != "<mask>" and not word.startswith("madeupword")]


class Classes:
    """Tells the classes of sentences.

    Args:
        checkpoint: of a model of the task sentence_prediction.
        data: the folder that it was trained on, for its dictionaries.

    Raises:
        RecipeError: they can't be used.
    """

    def __init__(self, checkpoint: Path, data: Path) -> None:
        if (data / "input1").exists():
            raise RecipeError(f"{data} has pairs of sentences: only fairseq-validate classifies them")
        given = {"data": str(data), "encoder_embed_path": None}  # the vectors are in the checkpoint
        try:
            (self.model,), cfg, self.task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], given)
            self.head = cfg.criterion.classification_head_name
        except Exception as error:  # of torch, pickle, omegaconf: whatever lies in the file
            said = " ".join(str(error).split())[:300]
            raise RecipeError(f"{checkpoint} is no classifier of {data}: {said}") from None
        if self.task.cfg.regression_target:
            raise RecipeError(f"{checkpoint} tells numbers, no classes: only fairseq-validate scores it")
        self.model.eval()
        prepared = (data / TEST).is_file()
        self.tokens = tokens if prepared else str.split  # as fairseq-preprocess has text of the user's
        words = self.task.label_dictionary
        named, classes = len(labels_of(words)), self.task.cfg.num_classes
        if named > classes:
            raise RecipeError(f"{checkpoint} tells {classes} labels, and {data} has {named}: it is of other data")
        self.labels = words.symbols[words.nspecial : words.nspecial + classes]

    def __call__(self, sentences: Sequence[str]) -> Iterator[tuple[str, float]]:
        """The label of each sentence and its probability."""
        words = self.task.source_dictionary
        first = [] if self.task.cfg.init_token is None else [self.task.cfg.init_token]
        longest = utils.resolve_max_positions(self.task.max_positions(), self.model.max_positions())
        for start in range(0, len(sentences), BATCH):
            batch = []
            for sentence in sentences[start : start + BATCH]:
                numbers = words.encode_line(" ".join(self.tokens(sentence)), add_if_not_exist=False)
                batch.append(torch.tensor([*first, *numbers.tolist()])[:longest])
                if len(first) + len(numbers) - 1 > longest:  # the end token is no word
                    print(f"only the first {longest} words are read of: {sentence[:60]}...", file=sys.stderr)
            source = data_utils.collate_tokens(batch, words.pad())
            with torch.no_grad():
                logits, _ = self.model(source, classification_head_name=self.head)
            probabilities, best = torch.softmax(logits.float(), dim=-1).max(dim=-1)
            yield from zip((self.labels[i] for i in best.tolist()), probabilities.tolist(), strict=True)
