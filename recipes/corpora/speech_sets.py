"""The data sets of speech that prepare.py knows: spoken digits, MuST-C and LibriSpeech."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common.errors import RecipeError

from .archives import Archive, fetch, unpack_all
from .building import described
from .speech import Speech, SpeechSet, Splits, Utterance, Wave, read

# SpecAugment's policies as fairseq's scripts name them: masks of so many channels and frames
LIBRISPEECH = {"freq_mask_N": 2, "freq_mask_F": 27, "time_mask_N": 2, "time_mask_T": 100, "time_mask_p": 1.0}
MUSTC = {**LIBRISPEECH, "freq_mask_N": 1, "time_mask_N": 1}
SPOKEN_DIGITS = {"freq_mask_N": 2, "freq_mask_F": 8, "time_mask_N": 2, "time_mask_T": 20, "time_mask_p": 0.2}

# --- spoken digits ----------------------------------------------------------------------------------------------------

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FSDD = Archive("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz")
STRINGS = {"train": 2500, "valid": 200, "test": 500}
TEST_SPEAKERS = "theo"
SPEEDS = (0.9, 1.0, 1.1)  # for training, as of Ko et al. 2015


def string(
    recordings: dict[str, list[Path]], rng: random.Random, rate: int, train: bool
) -> tuple[str, Callable[[], Wave]]:
    """One to seven digits of a speaker with pauses of 50 to 400 ms, and noise 10 to 30 dB below the speech; those for
    training may be faster or slower."""
    digits = [rng.choice(sorted(recordings)) for _ in range(rng.randint(1, 7))]
    paths = [rng.choice(recordings[digit]) for digit in digits]
    pauses = [rng.uniform(0.05, 0.4) for _ in range(len(digits) + 1)]
    speed, decibels, seed = rng.choice(SPEEDS) if train else 1.0, rng.uniform(10, 30), rng.randrange(2**32)

    def wave() -> Wave:
        silent = [np.zeros(round(pause * rate), "f4") for pause in pauses]
        spoken = [read(path, rate) for path in paths]
        loudness = np.sqrt(np.mean(np.concatenate(spoken) ** 2))
        joined = np.concatenate([silent[0], *(part for pair in zip(spoken, silent[1:], strict=True) for part in pair)])
        joined = np.interp(np.arange(0, len(joined), speed), np.arange(len(joined)), joined)
        noise = np.random.default_rng(seed).normal(0, loudness * 10 ** (-decibels / 20), len(joined))
        return (joined + noise).astype("f4").clip(-1, 1)

    return " ".join(DIGITS[int(digit)] for digit in digits), wave


def recordings(task: Speech, work: Path, archives: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """The files DIGIT_SPEAKER_NUMBER.wav below --local-dir, or of an archive there or elsewhere."""
    form, local = "[0-9]_*_*.wav", task.local_dir
    sources: list[dict[str, Any]] = []
    paths = list(local.rglob(form)) if local else []
    if not paths:
        other = next(iter(sorted(local.glob("*digit*.tar*"))), None) if local else None
        if other is not None:
            archive, sources = other, [described(other, other.name)]
        else:
            found, sources = fetch([FSDD], local, archives)
            archive = found[FSDD.name]
        paths = list(unpack_all(archive, work / "unpacked").rglob(form))
    if not paths:
        raise RecipeError(f"{local or archives} has no recordings: they are named DIGIT_SPEAKER_NUMBER.wav")
    return sorted(paths, key=lambda path: (path.name.split("_")[:2], int(path.stem.split("_")[2]))), sources


def spoken_digits(task: Speech, work: Path, archives: Path) -> tuple[Splits, list[dict[str, Any]]]:
    paths, sources = recordings(task, work, archives)
    by_speaker: dict[str, dict[str, list[Path]]] = {}
    for path in paths:
        digit, speaker, _ = path.stem.split("_")
        by_speaker.setdefault(speaker, {}).setdefault(digit, []).append(path)
    tested = task.chosen["test_speakers"].split(",")
    if unknown := sorted(set(tested) - by_speaker.keys()):
        raise RecipeError(f"argument --test-speakers: {unknown[0]} must be one of {', '.join(sorted(by_speaker))}")
    trained = sorted(by_speaker.keys() - set(tested))
    if not trained:
        raise RecipeError("argument --test-speakers: no speaker is left for training")

    def of(split: str, takes: list[Path]) -> list[Path]:
        """Those of a speaker's recordings of a digit that are for the split: the first tenth is for validation."""
        held = max(1, len(takes) // 10)
        return {"train": takes[held:] or takes, "valid": takes[:held], "test": takes}[split]

    def strings(split: str) -> Iterator[Utterance]:
        rng = random.Random(f"{split} {task.chosen['test_speakers']}")
        speakers = sorted(tested) if split == "test" else trained
        for n in range(STRINGS[split]):
            speaker = speakers[n % len(speakers)]
            takes = {digit: of(split, paths) for digit, paths in by_speaker[speaker].items()}
            text, wave = string(takes, rng, task.known.rate, split == "train")
            yield Utterance(f"{split}-{n}", wave, text, speaker)

    return {split: strings(split) for split in STRINGS}, sources


# --- MuST-C and LibriSpeech, as they are unpacked ---------------------------------------------------------------------


def local(task: Speech, folder: str) -> Path:
    """A folder below --local-dir."""
    if task.local_dir is None or not (task.local_dir / folder).is_dir():
        raise RecipeError(f"argument --local-dir: must be a folder that has {folder}; got {task.local_dir}")
    return task.local_dir / folder


def must_c(task: Speech, work: Path, archives: Path) -> tuple[Splits, list[dict[str, Any]]]:
    language = task.chosen["language"]
    root = local(task, f"en-{language}/data")

    def utterances(split: str) -> Iterator[Utterance]:
        text = root / split / "txt"
        segments = yaml.load((text / f"{split}.yaml").read_text("utf-8"), Loader=yaml.CBaseLoader)
        lines = (text / f"{split}.{language}").read_text("utf-8").removesuffix("\n").split("\n")
        if len(lines) != len(segments):
            raise RecipeError(f"{text}: {split}.{language} has {len(lines):,} lines for {len(segments):,} segments")
        both = zip(segments, lines, strict=True)
        for name, of_talk in groupby(both, lambda pair: pair[0]["wav"]):
            path = root / split / "wav" / name
            for n, (segment, line) in enumerate(sorted(of_talk, key=lambda pair: float(pair[0]["offset"]))):
                start, length = (int(float(segment[key]) * task.known.rate) for key in ("offset", "duration"))
                wave = partial(read, path, task.known.rate, start, length)
                yield Utterance(f"{path.stem}_{n}", wave, line.strip(), segment["speaker_id"])

    return {s: utterances(s) for s in ("train", "dev", "tst-COMMON", "tst-HE") if (root / s).is_dir()}, []


def librispeech(task: Speech, work: Path, archives: Path) -> tuple[Splits, list[dict[str, Any]]]:
    root = local(task, "LibriSpeech")

    def utterances(split: str) -> Iterator[Utterance]:
        for chapter in sorted((root / split).glob("*/*/*.trans.txt")):
            for line in chapter.read_text("utf-8").splitlines():
                name, _, text = line.partition(" ")
                wave = partial(read, chapter.with_name(f"{name}.flac"), task.known.rate)
                yield Utterance(name, wave, text.lower(), name.split("-")[0])

    kinds = (
        "train-clean-100",
        "train-clean-360",
        "train-other-500",
        "dev-clean",
        "dev-other",
        "test-clean",
        "test-other",
    )
    found = {split: utterances(split) for split in kinds if (root / split).is_dir()}
    if not any(split.startswith("train") for split in found):
        raise RecipeError(f"argument --local-dir: {root} has none of {', '.join(kinds[:3])}")
    return found, []


SPEECH = {
    "spoken-digits": SpeechSet(
        "strings of digits by five speakers or more; CC BY-SA 4.0", 8000, 40, SPOKEN_DIGITS, spoken_digits
    ),
    "must-c": SpeechSet(
        "talks and their translations, of --local-dir; CC BY-NC-ND 4.0", 16_000, 80, MUSTC, must_c, 8000
    ),
    "librispeech": SpeechSet(
        "books read aloud, of --local-dir; CC BY 4.0", 16_000, 80, LIBRISPEECH, librispeech, 10_000
    ),
}
