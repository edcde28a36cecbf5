"""Register a model's architectures: its presets, and the checks of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, register_model_architecture
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.cross_lingual_lm import CrossLingualLMTask
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.tasks.multilingual_language_modeling import MultilingualLanguageModelingTask
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask
from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.text_to_speech import TextToSpeechTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from omegaconf import OmegaConf

from .config import presets
from .options import reads_attention

# what goes with each task, and the tasks that make such batches
READERS = {
    "translation": ("a translation model", (TranslationTask, TranslationMultiSimpleEpochTask)),
    "language_modeling": ("a language model", (LanguageModelingTask, MultilingualLanguageModelingTask)),
    "sentence_prediction": ("a classifier", (SentencePredictionTask,)),
    "speech_to_text": ("a speech model", (SpeechToTextTask,)),
}
# no model here is for these; the last two derive from tasks of READERS
REFUSED = (
    CrossLingualLMTask,
    MaskedLMTask,
    MultilingualTranslationTask,
    SentenceRankingTask,
    TranslationLevenshteinTask,
    TextToSpeechTask,
)


def register_architectures(model: str, check: Callable[[Any], object], task: str = "translation") -> None:
    """Register the presets of a model, and the model's own name, as architectures.

    Args:
        model: the name that the model is registered with.
        check: raises a ValueError for options that don't go together; on the command line, its message is the one line
            that the user gets.
        task: of READERS, which the model goes with.
    """
    known = presets(model)
    # fairseq registers an architecture named as the model by itself, but without the checks: ours takes its place
    ARCH_CONFIG_REGISTRY[model] = _architecture(model, known.pop(model, {}), check, task)
    for name, options in known.items():
        register_model_architecture(model, name)(_architecture(name, options, check, task))


def _architecture(
    name: str, options: dict[str, Any], check: Callable[[Any], object], task: str
) -> Callable[[Any], None]:
    def apply(args: Any) -> None:
        """fairseq calls this when the command line is parsed (a Namespace) and when the model is built (a
        DictConfig)."""
        if OmegaConf.is_config(args):  # complete; what a checkpoint lacks is newer, so not the preset's
            return
        for option, value in options.items():
            if not hasattr(args, option):
                setattr(args, option, value)
        _check_task(args, getattr(args, "arch", name), task)
        try:
            check(args)
        except ValueError as error:
            exit_with(str(error))
        check_data(args)

    return apply


def exit_with(message: str) -> NoReturn:
    """End as argparse does at a bad command line: one line, status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _check_task(args: Any, arch: str, task: str) -> None:
    """Does the task make the batches that the model reads? Of tasks that fairseq doesn't bring, who knows."""
    name = getattr(args, "task", None)
    found = TASK_REGISTRY.get(name, object)
    others = tuple(known for reader, (_, tasks) in READERS.items() if reader != task for known in tasks)
    if issubclass(found, REFUSED) or (issubclass(found, others) and not issubclass(found, READERS[task][1])):
        exit_with(f"--arch {arch} is {READERS[task][0]}: it goes with --task {task}; got --task {name}")
    if name == task == "sentence_prediction" and not hasattr(args, "classification_head_name"):
        exit_with(
            f"--task sentence_prediction goes with --criterion sentence_prediction; got --criterion {args.criterion}"
        )
    if name == "online_backtranslation":  # it wants an output layer to change
        for flag in ("share_all_embeddings", "share_decoder_input_output_embed"):
            if getattr(args, flag, False):
                exit_with(f"--{flag.replace('_', '-')}: can't be had with --task {name}")
        if getattr(args, "criterion", None) == "adaptive_loss":
            exit_with(f"--criterion adaptive_loss: can't be had with --task {name}")


def check_data(args: Any) -> None:
    """Is the data folder of a training there, and for translation its dictionaries?"""
    data, task = getattr(args, "data", None), getattr(args, "task", None)
    if not data or task not in READERS or getattr(args, "path", None):  # which decoding has alone
        return
    folders = [Path(path) for path in utils.split_paths(data)]
    for folder in folders:
        if not os.path.isdir(folder):
            exit_with(f"argument data: no such folder: {folder}")
    if task == "translation":
        _check_translation(args, folders[0])


def _check_translation(args: Any, folder: Path) -> None:
    languages = [lang for lang in (getattr(args, "source_lang", None), getattr(args, "target_lang", None)) if lang]
    found = []
    for name in [f"dict.{lang}.txt" for lang in languages] or ["dict.*.txt"]:
        matching = sorted(folder.glob(name))
        if not matching:
            exit_with(f"argument data: {folder} holds no {name}; fairseq-preprocess makes it")
        found += matching
    if getattr(args, "share_all_embeddings", False) and len(found) == 2:
        one, other = (Dictionary.load(str(path)) for path in found)
        if one != other:
            exit_with(
                "--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary); "
                f"got {found[0].name} and {found[1].name}, which differ"
            )
    criterion = getattr(args, "criterion", None)
    if reads_attention(criterion) and not getattr(args, "load_alignments", False):
        exit_with(f"--criterion {criterion} goes with --load-alignments")  # fairseq trains without, and says nothing
