"""Register a model's architectures: its presets, and the checks of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_REGISTRY, FairseqLanguageModel, register_model_architecture
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.tasks.multilingual_language_modeling import MultilingualLanguageModelingTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from omegaconf import OmegaConf

from .config import presets

OF_ONE_TEXT = (LanguageModelingTask, MaskedLMTask, MultilingualLanguageModelingTask)
OF_PAIRS = (TranslationMultiSimpleEpochTask, TranslationTask)


def register_architectures(model: str, check: Callable[[Any], None]) -> None:
    """Register the presets of a model, and the model's own name, as architectures.

    Args:
        model: the name that the model is registered with.
        check: raises a ValueError for options that don't go together; on the command line, its message is the one line
            that the user gets.
    """
    # fairseq registers an architecture named as the model by itself, but without the checks: ours takes its place
    ARCH_CONFIG_REGISTRY[model] = _architecture(model, {}, check)
    for name, options in presets(model).items():
        register_model_architecture(model, name)(_architecture(model, options, check))


def _architecture(model: str, options: dict[str, Any], check: Callable[[Any], None]) -> Callable[[Any], None]:
    def apply(args: Any) -> None:
        """fairseq calls this when the command line is parsed (a Namespace) and when the model is built (a
        DictConfig)."""
        if OmegaConf.is_config(args):  # complete, or a checkpoint's: what that lacks is newer than it, not the preset's
            return
        for name, value in options.items():
            if not hasattr(args, name):
                setattr(args, name, value)
        _check_task(args, model)
        try:
            check(args)
        except ValueError as error:
            _exit(str(error))
        _check_data(args)
        _check_text(args)

    return apply


def _exit(message: str) -> NoReturn:
    """End as argparse does at a bad command line: one line, status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _check_task(args: Any, model: str) -> None:
    """Does the task make the batches that the model reads? Of tasks that fairseq doesn't bring, who knows."""
    name = getattr(args, "task", None)
    task = TASK_REGISTRY.get(name, object)
    arch = f"--arch {getattr(args, 'arch', model)}"
    if issubclass(MODEL_REGISTRY[model], FairseqLanguageModel):
        if issubclass(task, OF_PAIRS):
            _exit(f"{arch} is a language model: it goes with --task language_modeling; got --task {name}")
    elif issubclass(task, OF_ONE_TEXT):
        _exit(f"{arch} is a translation model: it goes with --task translation; got --task {name}")


def _data_folder(args: Any, task: str) -> Path | None:
    """The data folder that a command line of this task names; None where it is of another task or names none."""
    data = getattr(args, "data", None)
    if not data or getattr(args, "task", None) != task:
        return None
    folder = Path(utils.split_paths(data)[0])
    if not folder.is_dir():
        _exit(f"argument data: no such folder: {folder}")
    return folder


def _check_data(args: Any) -> None:
    """fairseq-train: are there dictionaries in the data folder? fairseq itself would end in a traceback."""
    folder = _data_folder(args, "translation")
    if folder is None:
        return
    languages = [lang for lang in (getattr(args, "source_lang", None), getattr(args, "target_lang", None)) if lang]
    wanted = [f"dict.{lang}.txt" for lang in languages] or ["dict.*.txt"]
    found = [path for name in wanted for path in sorted(folder.glob(name))]
    for name in wanted:
        if not any(folder.glob(name)):
            _exit(f"argument data: {folder} holds no {name}; fairseq-preprocess makes it")
    shared = getattr(args, "share_all_embeddings", False)
    if shared and len(found) == 2 and found[0].read_bytes() != found[1].read_bytes():
        _exit(
            "--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary); "
            f"got {found[0].name} and {found[1].name}, which differ"
        )


def _check_text(args: Any) -> None:
    """Is there a dictionary in the data folder of a language model?"""
    folder = _data_folder(args, "language_modeling")
    if folder is not None and not (folder / "dict.txt").is_file():
        _exit(f"argument data: {folder} holds no dict.txt; fairseq-preprocess --only-source makes it")
