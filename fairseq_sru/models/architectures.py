"""Register a model's architectures: its presets, and the checks of the command line."""

from __future__ import annotations

import csv
import glob
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fairseq import utils
from fairseq.data import Dictionary, data_utils
from fairseq.data.audio.audio_utils import FEATURE_OR_SF_AUDIO_FILE_EXTENSIONS
from fairseq.data.audio.data_cfg import S2TDataConfig
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
SUBSETS = ["train_subset", "valid_subset"]
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
        data, look = getattr(args, "data", None), CHECKS.get(getattr(args, "task", None))
        if data and look and not getattr(args, "path", None):  # which decoding has alone
            folders = [Path(path) for path in utils.split_paths(data)]
            for folder in folders:
                if not os.path.isdir(folder):
                    exit_with(f"argument data: no such folder: {folder}")
            look(args, folders[0])

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


def _splits(args: Any, validated: bool = False) -> list[tuple[str, str]]:
    """What is read of the data, each with its flag: all of it, or what training or validation needs the truth of."""
    flags = ["train_subset"] if validated and getattr(args, "disable_validation", False) else SUBSETS
    given = {f"--{flag.replace('_', '-')}": getattr(args, flag, None) for flag in flags}
    return [(flag, split) for flag, splits in given.items() if splits for split in splits.split(",")]


def _check_splits(splits: list[tuple[str, str]], folder: Path, *patterns: str) -> None:
    """Is there a file of one of the patterns for each split?"""
    for flag, split in splits:
        names = [pattern.format(split) for pattern in patterns]
        if not any(glob.glob(os.path.join(glob.escape(str(folder)), name)) for name in names):
            exit_with(f"{flag} {split}: {folder} holds no {names[0]}")


def _words(dictionary: Path) -> list[bytes]:
    lines = (line.removesuffix(b" #fairseq:overwrite") for line in dictionary.read_bytes().splitlines())
    return [line.rpartition(b" ")[0] for line in lines]


def _check_data(args: Any, folder: Path) -> None:
    """fairseq-train: are there dictionaries in the data folder? fairseq itself doesn't say what makes them."""
    languages = [lang for lang in (getattr(args, "source_lang", None), getattr(args, "target_lang", None)) if lang]
    wanted = [f"dict.{lang}.txt" for lang in languages] or ["dict.*.txt"]
    found = [path for name in wanted for path in sorted(folder.glob(name))]
    for name in wanted:
        if not any(folder.glob(name)):
            exit_with(f"argument data: {folder} holds no {name}; fairseq-preprocess makes it")
    shared = getattr(args, "share_all_embeddings", False)
    words = [_words(path) for path in found] if shared else []
    if len(words) == 2 and words[0] != words[1]:
        exit_with(
            "--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary); "
            f"got {found[0].name} and {found[1].name}, which differ"
        )
    _check_splits(_splits(args), folder, "{}.*-*.*")
    if reads_attention(criterion := getattr(args, "criterion", None)):
        if not getattr(args, "load_alignments", False):
            exit_with(f"--criterion {criterion} goes with --load-alignments")
        pair = "-".join(languages) if len(languages) == 2 else "*-*"
        _check_splits([("--train-subset", args.train_subset)], folder, f"{{}}.align.{pair}*")


def _check_text(args: Any, folder: Path) -> None:
    """Is there a dictionary in the data folder of a language model?"""
    if not (folder / "dict.txt").is_file():
        exit_with(f"argument data: {folder} holds no dict.txt; fairseq-preprocess --only-source makes it")
    _check_splits(_splits(args), folder, "{}.*", "{}")


def _check_sentences(args: Any, folder: Path) -> None:
    """Are the dictionaries of a classifier there, its data, and a class for each label?"""
    regression = getattr(args, "regression_target", False)
    for name in ("input0",) if regression else ("input0", "label"):
        if not (folder / name / "dict.txt").is_file():
            exit_with(
                f"argument data: {folder} holds no {name}/dict.txt; recipes/prepare.py makes both for its data sets"
            )
    _check_splits(_splits(args), folder, "input0/{}.*", "input0/{}")
    if (folder / "input1").is_dir():
        _check_splits(_splits(args), folder, "input1/{}.*", "input1/{}")
        one, other = (folder / name / "dict.txt" for name in ("input0", "input1"))
        if other.is_file() and one.read_bytes() != other.read_bytes():
            exit_with(f"argument data: {other} differs from {one}: give fairseq-preprocess --srcdict {one} for input1")
    labelled = _splits(args, validated=True)
    if regression:
        if args.num_classes != 1:
            exit_with(f"--num-classes must be 1 with --regression-target; got {args.num_classes}")
        _check_splits(labelled, folder, "label/{}.label")
        return
    _check_splits(labelled, folder, "label/{}.*", "label/{}")
    dictionary = Dictionary.load(str(folder / "label" / "dict.txt"))
    labels = labels_of(dictionary)
    if labels and args.num_classes < len(labels):
        exit_with(f"--num-classes must be {len(labels)}, the labels of {folder}/label/dict.txt; got {args.num_classes}")
    for _, split in labelled:
        if wrong := _wrong_labels(folder, split, dictionary):
            exit_with(wrong)


def labels_of(dictionary: Dictionary) -> list[str]:
    """The labels of a dictionary of a classifier, without what fairseq adds to it."""
    words = dictionary.symbols[dictionary.nspecial :]
    return [word for word in words if word != "<mask>" and not word.startswith("madeupword")]


def _wrong_labels(folder: Path, split: str, dictionary: Dictionary) -> str | None:
    """What is wrong where not each sentence of a split has a label that is known."""
    path = folder / "label" / split
    found, sentences = (
        data_utils.load_indexed_dataset(str(folder / name / split), dictionary) for name in ("label", "input0")
    )
    if getattr(found, "supports_prefetch", False):
        found.prefetch(range(len(found)))
    if len(found) != len(sentences):
        return f"{path}: {len(found):,} labels for {len(sentences):,} sentences; must be as many"
    for line, label in enumerate(found, 1):
        if len(label) != 2 or label[0] < dictionary.nspecial:
            said = dictionary.string(label) or "no label"
            return f"{path}, line {line:,}: must be one label of {path.with_name('dict.txt')}; got {said}"
    return None


def _check_speech(args: Any, folder: Path) -> None:
    """Are the configuration of speech, its dictionary and its features there?"""
    config = folder / args.config_yaml
    if not config.is_file():
        exit_with(f"argument data: {folder} holds no {args.config_yaml}; recipes/prepare.py makes it for its data sets")
    read = S2TDataConfig(config)
    dictionary = folder / read.vocab_filename
    if not dictionary.is_file():
        exit_with(f"--config-yaml: {config} names the dictionary {dictionary}, which is not there")
    if read.audio_root and not Path(read.audio_root).is_dir():
        exit_with(f"--config-yaml: {config} names the audio_root {read.audio_root}, which is not there; was it moved?")
    splits = _splits(args)
    _check_splits(splits, folder, "{}.tsv")
    for flag, split in splits:
        validated = flag == "--valid-subset" and not getattr(args, "disable_validation", False)
        _check_manifest(folder / f"{split}.tsv", read.audio_root, args if validated else None)


def _too_long(args: Any, frames: int) -> str | None:
    """What a recording to validate on exceeds, and the remedy; None where it doesn't."""
    positions, batch = (getattr(args, flag, None) for flag in ("max_source_positions", "max_tokens_valid"))
    skip = "--skip-invalid-size-inputs-valid-test"
    if positions and frames > positions:
        left_out = getattr(args, "skip_invalid_size_inputs_valid_test", False)
        return None if left_out else f"--max-source-positions {positions:,}; {skip} leaves such out"
    if batch and frames > batch:
        return f"a batch of --max-tokens-valid {batch:,} (as --max-tokens unless given)"
    return None


def _check_manifest(path: Path, root: str, args: Any | None) -> None:
    """Are a manifest's features there, and, where the options are given, none longer than what they allow to validate
    on? Of each folder one file is looked for: all of very many would take minutes."""
    seen = set()
    with path.open(encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 2):
            audio = Path(root, row.get("audio") or "")
            single = audio.suffix.lower() in FEATURE_OR_SF_AUDIO_FILE_EXTENSIONS
            if not single:  # a zip, and where it has the features
                audio = Path(str(audio).partition(":")[0])
            where = audio.parent if single else audio
            if where not in seen and not audio.is_file():
                exit_with(f"argument data: {path}, line {line:,}: column audio: no such file: {audio}")
            seen.add(where)
            if args and (limit := _too_long(args, int(row.get("n_frames") or 0))):
                exit_with(f"--valid-subset: {path}, line {line:,} has {row['n_frames']} frames, more than {limit}")


CHECKS: dict[str | None, Callable[[Any, Path], None]] = {
    "translation": _check_data,
    "language_modeling": _check_text,
    "sentence_prediction": _check_sentences,
    "speech_to_text": _check_speech,
}
