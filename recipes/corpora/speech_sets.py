"""The data sets of speech that prepare.py knows: spoken digits, MuST-C and LibriSpeech."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import yaml
from common.errors import RecipeError
from common.files import read_text

from .archives import Archive, unpack_all
from .speech import Speech, SpeechSet, Splits, Utterance, Wave, check, read

# SpecAugment's policies as fairseq's scripts name them: masks of so many channels and frames
LIBRISPEECH = {"freq_mask_N": 2, "freq_mask_F": 27, "time_mask_N": 2, "time_mask_T": 100, "time_mask_p": 1.0}
MUSTC = {**LIBRISPEECH, "freq_mask_N": 1, "time_mask_N": 1}
SPOKEN_DIGITS = {"freq_mask_N": 2, "freq_mask_F": 8, "time_mask_N": 2, "time_mask_T": 20, "time_mask_p": 0.2}

# --- spoken digits ----------------------------------------------------------------------------------------------------

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FSDD = Archive("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz")
PACKED = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip")
NAMES = ("*digit*", "v[0-9]*", "master", "main")  # of the archive; the latter are GitHub's
WAVES = ("[!.]*.[wW][aA][vV]", "[!.]*.[fF][lL][aA][cC]")  # files that begin with a dot are a file system's own
STRINGS = {"train": 20_000, "valid": 200, "test": 500}
TEST_SPEAKERS = "theo"
LOUDNESS = 0.1  # root mean square of a recording's louder half
SILENCE = 1e-3  # one that is lower has no speech
# What makes few speakers and microphones stand for many in training: speeds, which move formants, too (Ko et al. 2015),
# and an equaliser's bands and standard deviation in decibels
SPEEDS, BANDS, GAIN = (0.85, 1.18), 6, 6.0


def louder_half(wave: Wave) -> float:
    """Root mean square of the half of a recording that is louder, by windows of 200 samples."""
    if not len(wave):
        return 0.0
    power = np.sort(np.convolve(wave**2, np.ones(200) / 200, "same"))
    return float(np.sqrt(power[len(power) // 2 :].mean()))


def varied(wave: Wave, speed: float, gains: list[float]) -> Wave:
    """A recording at another speed, through an equaliser with these gains in decibels."""
    faster = np.interp(np.arange(0, len(wave), speed), np.arange(len(wave)), wave)
    spectrum = np.fft.rfft(faster)
    bands = np.interp(np.linspace(0, len(gains) - 1, len(spectrum)), np.arange(len(gains)), gains)
    return np.fft.irfft(spectrum * 10 ** (bands / 20), len(faster))


def string(
    recordings: dict[str, list[Path]], rng: random.Random, rate: int, train: bool
) -> tuple[str, Callable[[], Wave]]:
    """One to seven digits of a speaker, equally loud, with pauses of 50 to 400 ms, and noise 10 to 30 dB below the
    speech; those for training are varied."""
    digits = [rng.choice(sorted(recordings)) for _ in range(rng.randint(1, 7))]
    paths = [rng.choice(recordings[digit]) for digit in digits]
    pauses = [rng.uniform(0.05, 0.4) for _ in range(len(digits) + 1)]
    decibels, seed = rng.uniform(10, 30), rng.randrange(2**32)
    speed, gains = rng.uniform(*SPEEDS), [rng.gauss(0, GAIN) for _ in range(BANDS)]
    wave = partial(
        joined, paths, [round(pause * rate) for pause in pauses], decibels, seed, (speed, gains) if train else None
    )
    return " ".join(DIGITS[int(digit)] for digit in digits), wave


def joined(
    paths: list[Path], pauses: list[int], decibels: float, seed: int, variation: tuple[float, list[float]] | None
) -> Wave:
    """The wave of a :func:`string`; ``variation``: speed and gains of :func:`varied`, None for none."""
    parts = [np.zeros(pauses[0], "f4")]
    for path, pause in zip(paths, pauses[1:], strict=True):
        spoken = varied(read(path), *variation) if variation else read(path)
        parts += [spoken * LOUDNESS / louder_half(spoken), np.zeros(pause, "f4")]
    whole = np.concatenate(parts)
    noise = np.random.default_rng(seed).normal(0, LOUDNESS * 10 ** (-decibels / 20), len(whole))
    return (whole + noise).astype("f4").clip(-1, 1)


def recordings(files: dict[str, Path], work: Path, rate: int) -> dict[str, dict[str, list[Path]]]:
    """The files DIGIT_SPEAKER_NUMBER.wav or .flac among these and in the archives among them, by speaker and digit.

    Raises:
        RecipeError: there are none, one is named otherwise or silent, or as :func:`~corpora.speech.check`.
    """
    paths = [path for path in files.values() if path.suffix.lower() in (".wav", ".flac")]
    packed = [path for path in files.values() if path not in paths]
    for n, archive in enumerate(packed):
        folder = unpack_all(archive, work / f"unpacked{n}")
        paths += sorted(path for pattern in WAVES for path in folder.rglob(pattern))
    if not paths:
        raise RecipeError(f"{packed[0]} has no recordings: they are named DIGIT_SPEAKER_NUMBER.wav or .flac")
    named: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        if not (parts := re.fullmatch(r"([0-9])_(.+)_([0-9]+)", path.stem)):
            raise RecipeError(f"{path}: must be named DIGIT_SPEAKER_NUMBER.wav or .flac, as 7_theo_12.wav")
        if not louder_half(read(check(path, rate))) >= SILENCE:  # nor where samples are no numbers
            raise RecipeError(f"{path}: is empty, or silent but for noise 60 dB below the loudest there can be")
        named.setdefault((parts[2], parts[1], int(parts[3])), path)
    by_speaker: dict[str, dict[str, list[Path]]] = {}
    for (speaker, digit, _), path in sorted(named.items()):
        by_speaker.setdefault(speaker, {}).setdefault(digit, []).append(path)
    counts = (f"{name} ({sum(map(len, of.values())):,})" for name, of in sorted(by_speaker.items()))
    print(f"recordings: {', '.join(counts)}", flush=True)
    return by_speaker


def spoken_digits(task: Speech, files: dict[str, Path], work: Path) -> Splits:
    by_speaker = recordings(files, work, task.known.rate)
    tested = task.chosen["test_speakers"].split(",")
    if unknown := sorted(set(tested) - by_speaker.keys()):
        raise RecipeError(f"argument --test-speakers: {unknown[0]} must be one of {', '.join(sorted(by_speaker))}")
    trained = sorted(by_speaker.keys() - set(tested))
    if not trained:
        raise RecipeError(
            "argument --test-speakers: no speaker is left for training; for those of the data set put its archive, "
            f"{FSDD.url}, into --local-dir, too, as {FSDD.name} or with 'digit' in its name"
        )

    def of(split: str, takes: list[Path]) -> list[Path]:
        """A speaker's recordings of a digit for the split: the first tenth is for validation, of a single one none."""
        held = max(1, len(takes) // 10) if len(takes) > 1 else 0
        return {"train": takes[held:], "valid": takes[:held], "test": takes}[split]

    def strings(split: str) -> Iterator[Utterance]:
        rng = random.Random(f"{split} {task.chosen['test_speakers']}")
        pools = {
            speaker: {digit: part for digit, takes in by_speaker[speaker].items() if (part := of(split, takes))}
            for speaker in (sorted(tested) if split == "test" else trained)
        }
        speakers = [speaker for speaker in pools if pools[speaker]]
        if not speakers:
            raise RecipeError("validation needs a second recording of a digit by a speaker of the training data")
        for n in range(STRINGS[split]):
            speaker = speakers[n % len(speakers)]
            text, wave = string(pools[speaker], rng, task.known.rate, split == "train")
            yield Utterance(f"{split}-{n}", wave, text, speaker)

    return {split: strings(split) for split in STRINGS}


# --- MuST-C and LibriSpeech, as they are unpacked ---------------------------------------------------------------------


def at_hand(task: Speech, place: str, train: str, utterances: Callable[[Path], Iterator[Utterance]]) -> Splits:
    """Utterances of the folders of splits, ``train...``, ``dev...`` and ``tst...`` or ``test...``, that
    are in ``place`` below --local-dir.

    Raises:
        RecipeError: there is no such place, or none for training, as ``train`` is.
    """
    if task.local_dir is None or not (task.local_dir / place).is_dir():
        raise RecipeError(f"argument --local-dir: must be a folder that has {place}; got {task.local_dir}")
    folders = sorted(path for path in (task.local_dir / place).iterdir() if path.is_dir())
    splits = {folder.name: folder for folder in folders if folder.name.startswith(("train", "dev", "test", "tst"))}
    if not any(split.startswith("train") for split in splits):
        raise RecipeError(f"argument --local-dir: {task.local_dir / place} must have {train}")
    print(f"splits: {', '.join(splits)}", flush=True)
    return {split: utterances(folder) for split, folder in splits.items()}


def must_c(task: Speech, files: dict[str, Path], work: Path) -> Splits:
    language, rate = task.chosen["language"], task.known.rate

    def utterances(folder: Path) -> Iterator[Utterance]:
        text = folder / "txt" / folder.name
        listed = text.with_suffix(".yaml")
        try:
            segments = yaml.load(read_text(listed), Loader=yaml.CBaseLoader)
            places = [(s["wav"], float(s["offset"]), float(s["duration"]), s["speaker_id"]) for s in segments]
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"{listed} is no list of segments as MuST-C has it: {error}") from None
        lines = read_text(text.with_suffix(f".{language}")).removesuffix("\n").split("\n")
        if len(lines) != len(segments):
            raise RecipeError(f"{text}.{language} has {len(lines):,} lines for {len(segments):,} segments")
        both = zip(places, lines, strict=True)
        for name, of_talk in groupby(both, lambda pair: pair[0][0]):
            path = check(folder / "wav" / name, rate)
            for n, ((_, start, seconds, speaker), line) in enumerate(sorted(of_talk, key=lambda pair: pair[0][1])):
                wave = partial(read, path, int(start * rate), int(seconds * rate))
                yield Utterance(f"{path.stem}_{n}", wave, " ".join(line.split()), speaker)

    return at_hand(task, f"en-{language}/data", "train", utterances)


def librispeech(task: Speech, files: dict[str, Path], work: Path) -> Splits:
    def utterances(folder: Path) -> Iterator[Utterance]:
        for chapter in sorted(folder.glob("*/*/*.trans.txt")):
            for line in filter(str.strip, read_text(chapter).removeprefix("\ufeff").split("\n")):
                name, *words = line.split()
                path = check(chapter.with_name(f"{name}.flac"), task.known.rate)
                wave = partial(read, path)
                yield Utterance(name, wave, " ".join(words).lower(), name.split("-")[0])

    return at_hand(task, "LibriSpeech", "train-clean-100 or the like", utterances)


SPEECH = {
    "spoken-digits": SpeechSet(
        "strings of digits by five speakers or more; 1 GB; CC BY-SA 4.0",
        8000,
        40,
        SPOKEN_DIGITS,
        spoken_digits,
        (*(f"**/{pattern}" for pattern in WAVES), *(f"{name}{ending}" for name in NAMES for ending in PACKED)),
        FSDD,
        cmvn="global_cmvn",  # that of a short utterance depends on how much of it is silent
        settings={"strings": STRINGS["train"], "speeds": list(SPEEDS), "equaliser": [BANDS, GAIN]},
    ),
    "must-c": SpeechSet(
        "talks and their translations, of --local-dir; CC BY-NC-ND 4.0",
        16_000,
        80,
        MUSTC,
        must_c,
        ("en-{language}/data/*/txt/*.yaml", "en-{language}/data/*/txt/*.{language}"),
        vocab_size=8000,
    ),
    "librispeech": SpeechSet(
        "books read aloud, of --local-dir; CC BY 4.0",
        16_000,
        80,
        LIBRISPEECH,
        librispeech,
        ("LibriSpeech/*/*/*/*.trans.txt",),
        vocab_size=10_000,
    ),
}
