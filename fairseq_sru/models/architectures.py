"""Register a model's architectures: its presets, and the checks of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, register_model_architecture
from omegaconf import OmegaConf

from .config import presets
from .sru import _check_data, _exit


def register_architectures(model: str, check: Callable[[Any], None]) -> None:
    """Register the presets of a model, and the model's own name, as architectures.

    Args:
        model: the name that the model is registered with.
        check: raises a ValueError for options that don't go together; on the command line, its message is the one line
            that the user gets.
    """
    # fairseq registers an architecture named as the model by itself, but without the checks: ours takes its place
    ARCH_CONFIG_REGISTRY[model] = _architecture({}, check)
    for name, options in presets(model).items():
        register_model_architecture(model, name)(_architecture(options, check))


def _architecture(options: dict[str, Any], check: Callable[[Any], None]) -> Callable[[Any], None]:
    def apply(args: Any) -> None:
        """fairseq calls this when the command line is parsed (a Namespace) and when the model is built (a
        DictConfig)."""
        for name, value in options.items():
            if not hasattr(args, name):
                setattr(args, name, value)
        if OmegaConf.is_config(args):
            return
        try:
            check(args)
        except ValueError as error:
            _exit(str(error))
        _check_data(args)
        _check_text(args)

    return apply


def _check_text(args: Any) -> None:
    """Is there a dictionary in the data folder of a language model?"""
    data = getattr(args, "data", None)
    if not data or getattr(args, "task", None) != "language_modeling":
        return
    folder = Path(utils.split_paths(data)[0])
    if not folder.is_dir():
        _exit(f"argument data: no such folder: {folder}")
    if not (folder / "dict.txt").is_file():
        _exit(f"argument data: {folder} holds no dict.txt; fairseq-preprocess --only-source makes it")
