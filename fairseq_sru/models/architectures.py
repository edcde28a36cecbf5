"""Register a model's architectures: its presets, and the checks of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import ARCH_CONFIG_REGISTRY, register_model_architecture
from omegaconf import OmegaConf

from .config import presets
from .options import completed, reads_attention

# what goes with each task
KINDS = {
    "translation": "a translation model",
    "language_modeling": "a language model",
    "sentence_prediction": "a classifier",
    "speech_to_text": "a speech model",
}


def register_architectures(
    model: str,
    config: type[FairseqDataclass],
    check: Callable[[Any, type[FairseqDataclass]], object] = completed,
    task: str = "translation",
) -> None:
    """Register the presets of a model, and the model's own name, as architectures of a task of KINDS.

    config is the dataclass of the options. check raises a ValueError for options that are not allowed or don't go
    together; on the command line, its message is the one line that the user gets.
    """

    def architecture(name: str, options: dict[str, Any]) -> Callable[[Any], None]:
        def apply(args: Any) -> None:
            """Run when the command line is parsed (a Namespace) and when the model is built (a DictConfig)."""
            if OmegaConf.is_config(args):  # complete; what a checkpoint lacks is newer, so not the preset's
                return
            for option, value in options.items():
                if not hasattr(args, option):
                    setattr(args, option, value)
            other = getattr(args, "task", None)
            if other in KINDS and other != task:
                arch = getattr(args, "arch", name)
                exit_with(f"--arch {arch} is {KINDS[task]}: it goes with --task {task}; got --task {other}")
            try:
                check(args, config)
            except ValueError as error:
                exit_with(str(error))
            check_data(args)

        return apply

    known = presets(model)
    # fairseq registers an architecture named as the model by itself, but without the checks: ours takes its place
    ARCH_CONFIG_REGISTRY[model] = architecture(model, known.pop(model, {}))
    for name, options in known.items():
        register_model_architecture(model, name)(architecture(name, options))


def exit_with(message: str) -> NoReturn:
    """End as argparse does at a bad command line: one line, status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_data(args: Any) -> None:
    """Check that a training's data folder is there, and for translation its dictionaries."""
    data, task = getattr(args, "data", None), getattr(args, "task", None)
    if not data or task not in KINDS or getattr(args, "path", None):  # which only decoding has
        return
    for folder in map(Path, utils.split_paths(data)):
        if not folder.is_dir():
            exit_with(f"argument data: no such folder: {folder}")
        if task == "translation" and not list(folder.glob("dict.*.txt")):
            exit_with(f"argument data: {folder} holds no dict.*.txt; fairseq-preprocess makes it")
    criterion = getattr(args, "criterion", None)
    if reads_attention(criterion) and not getattr(args, "load_alignments", False):
        exit_with(f"--criterion {criterion} goes with --load-alignments")  # fairseq trains without, and says nothing
