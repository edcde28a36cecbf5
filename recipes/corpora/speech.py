"""Speech: log-mel features of recordings, and the manifests that fairseq's speech_to_text reads.

A manifest is as those of fairseq's examples/speech_to_text: ``SPLIT.tsv`` with id, audio (a place in a zip of
features), n_frames, tgt_text and speaker; a dictionary; and ``config.yaml``.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import yaml
from common.errors import RecipeError
from common.machine import cores
from common.progress import progress

from .archives import Archive, check, fetch
from .dataset import Dataset, Folders, described
from .subwords import in_order, train_sentencepiece

Wave = np.ndarray[Any, Any]  # float32 (samples), in [-1, 1]

SPECIAL = 4  # words of a dictionary that are fairseq's
FEATURES = "fbank.zip"
STATISTICS = "gcmvn.npz"  # of the frames for training
SHORTEST = 5  # frames of an utterance, as in fairseq's scripts
LONGEST = 3000  # of one for training
FEW = 2_000  # recordings up to which one process does it all


class Utterance(NamedTuple):
    id: str
    wave: Callable[[], Wave]  # that can be pickled
    text: str  # words and single spaces
    speaker: str


def opened(path: Path, rate: int) -> Any:
    """A recording as soundfile has it, to be closed.

    Raises:
        RecipeError: it isn't there, has no header that can be read, or not one channel at that rate.
    """
    import soundfile

    if not path.is_file():
        raise RecipeError(f"no such file: {path}")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise RecipeError(f"{path} can't be read: {error}") from None
    if file.samplerate != rate or file.channels != 1:
        file.close()
        raise RecipeError(
            f"{path}: must have one channel at {rate:,} Hz; got {file.channels} at {file.samplerate:,} Hz"
        )
    return file


def read(path: Path, rate: int, start: int = 0, samples: int = -1, may_be_silent: bool = False) -> Wave:
    """A recording, or a part of it.

    Raises:
        RecipeError: as :func:`opened`, or it is empty or silent and may not be, or has samples that are no numbers.
    """
    with opened(path, rate) as file:
        try:
            file.seek(min(start, file.frames))
            wave: Wave = file.read(samples, dtype="float32")
        except RuntimeError as error:
            raise RecipeError(f"{path} can't be read: {error}") from None
    if not np.isfinite(wave).all():
        raise RecipeError(f"{path}: has samples that are no numbers")
    if not wave.any() and not may_be_silent:
        raise RecipeError(f"{path}: is {'silent' if len(wave) else 'empty'}")
    return wave


def features(wave: Wave, rate: int, bins: int) -> np.ndarray[Any, Any]:
    """Kaldi's log-mel features ``(frames, bins)``, float32, as fairseq's scripts have them: of 25 ms each 10 ms, no
    dither."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = rate, 0.0
    options.mel_opts.num_bins, options.energy_floor = bins, 1.0
    made = kaldi_native_fbank.OnlineFbank(options)
    made.accept_waveform(rate, (wave * 2**15).tolist())  # Kaldi's are integers of 16 bits
    made.input_finished()
    frames = [made.get_frame(i) for i in range(made.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, bins), "f4")


def sound(rate: int, bins: int, wave: Callable[[], Wave]) -> tuple[np.ndarray[Any, Any], bool]:
    """Features of a recording, and whether it is silent."""
    samples = wave()
    return features(samples, rate, bins), not samples.any()


def manifest(
    utterances: Sequence[Utterance], split: str, pack: zipfile.ZipFile, rate: int, bins: int, to: Path
) -> dict[str, Any]:
    """Write the features and ``split``.tsv; how many utterances were kept and left out, and of the frames their number,
    sums and sums of squares, ``(3, bins)``."""
    rows, left_out, silent = ["id\taudio\tn_frames\ttgt_text\tspeaker\n"], 0, []
    moments = np.zeros((3, bins))
    waves = (utterance.wave for utterance in utterances)
    sounds = in_order(partial(partial, sound, rate, bins), waves, 1 if len(utterances) <= FEW else cores())
    both = zip(utterances, sounds, strict=True)
    for utterance, (found, is_silent) in progress(both, total=len(utterances), desc=split, unit="utterance"):
        too_long = split.startswith("train") and len(found) > LONGEST
        if len(found) < SHORTEST or too_long or not utterance.text:
            left_out += 1
            continue
        if is_silent:
            silent.append(utterance.id)
        data = io.BytesIO()
        np.save(data, found)
        name = f"{utterance.id}.npy"
        pack.writestr(name, data.getvalue())
        at = pack.getinfo(name).header_offset + 30 + len(name.encode())  # behind the file's own header
        audio = f"{FEATURES}:{at}:{len(data.getvalue())}"
        rows.append(f"{utterance.id}\t{audio}\t{len(found)}\t{utterance.text}\t{utterance.speaker}\n")
        moments += np.stack([np.ones_like(found), found, found**2]).sum(1, dtype="f8")
    said = f"{left_out:,} left out: fewer than {SHORTEST} frames, for training more than {LONGEST:,}, or no text"
    if len(rows) == 1:
        raise RecipeError(f"no utterance is left for {split}: {said}")
    if left_out:
        print(f"{split}: {said}", flush=True)
    if silent:
        print(f"{split}: {len(silent):,} kept although silent, as {silent[0]}", flush=True)
    (to / f"{split}.tsv").write_text("".join(rows), "utf-8", newline="\n")
    return {"counts": {"kept": len(rows) - 1, "silent": len(silent), "left out": left_out}, "moments": moments}


def subwords(texts: Iterable[str], size: int, to: Path) -> sentencepiece.SentencePieceProcessor:
    """Learn ``spm.model``, with fairseq's numbers for its special words.

    Raises:
        RecipeError: the text doesn't allow a vocabulary of that size.
    """
    special = dict(zip(("bos_id", "pad_id", "eos_id", "unk_id"), range(SPECIAL), strict=True))
    try:
        with (to / "spm.model").open("wb") as file:
            train_sentencepiece(
                sentence_iterator=iter(texts),
                model_writer=file,
                vocab_size=size,
                character_coverage=1.0,
                minloglevel=2,
                **special,
            )
    except RuntimeError as error:
        raise RecipeError(f"a vocabulary of {size} subwords: {error}") from None
    return sentencepiece.SentencePieceProcessor(model_file=str(to / "spm.model"))


@dataclass(frozen=True)
class Speech(Dataset):
    """Speech that is to be prepared."""

    known: SpeechSet
    chosen: dict[str, Any]  # language, vocab_size, test_speakers: what the data set needs of these

    @property
    def archives(self) -> list[Archive]:
        return [self.known.archive] if self.known.archive and not self.files() else []

    def files(self) -> dict[str, Path]:
        if (local := self.local_dir) is None:
            return {}
        patterns = (pattern.format(**self.chosen) for pattern in self.known.files)
        return {str(path.relative_to(local)): path for pattern in patterns for path in sorted(local.glob(pattern))}

    def options(self) -> dict[str, Any]:
        try:
            versions = {name: version(name) for name in ("kaldi-native-fbank", "soundfile")}
        except PackageNotFoundError as error:
            raise RecipeError(f"speech needs the package {error.name}: pip install -r requirements.txt") from None
        return {"data_set": self.name, **self.chosen, **(self.known.settings or {}), "versions": versions}

    def vocabulary(self, texts: list[str], made: Path, there: Path) -> dict[str, Any]:
        """Learn the subwords or list the words; what config.yaml says of them."""
        if size := self.chosen.get("vocab_size"):
            # the whole path, since fairseq prefers a file of that name in the current folder
            tokenizer = {"bpe": "sentencepiece", "sentencepiece_model": str(there / "spm.model")}
            try:
                model = subwords(texts, size, made)
            except RecipeError as error:
                raise RecipeError(f"argument --vocab-size: {error}") from None
            words = [model.id_to_piece(i) for i in range(SPECIAL, model.get_piece_size())]
            name, more = "spm.txt", {"bpe_tokenizer": tokenizer}
        else:
            words, name, more = sorted({word for text in texts for word in text.split()}), "dict.txt", {}
        (made / name).write_text("".join(f"{word} 1\n" for word in words), "utf-8", newline="\n")
        return {"vocab_filename": name, **more}

    def make(self, folders: Folders) -> dict[str, Any]:
        self.options()  # first, for the packages that it needs
        known, made, there = self.known, folders.made, folders.out
        if ":" in str(there):  # fairseq splits the place of features there
            raise RecipeError(f"argument --out: speech can't lie in a folder with a colon in its path; got {there}")
        files, archive = self.files(), known.archive
        sources = [
            check(path, archive) if archive and archive.name == path.name else described(path, name)
            for name, path in files.items()
        ]
        if not files:
            if self.local_dir and archive:
                raise RecipeError(f"argument --local-dir: {self.local_dir} has nothing of {self.name}")
            files, sources = fetch(self.archives, self.local_dir, folders.archives)
        splits = {split: list(utterances) for split, utterances in known.splits(self, files, folders.work).items()}
        train = [split for split in splits if split.startswith("train")]
        texts = [utterance.text for split in train for utterance in splits[split]]
        if not any(texts):
            raise RecipeError(f"there is no text in {' or '.join(train)}")
        vocabulary = self.vocabulary(texts, made, there)
        found = {}
        with zipfile.ZipFile(made / FEATURES, "w", zipfile.ZIP_STORED) as pack:
            for split, utterances in splits.items():
                found[split] = manifest(utterances, split, pack, known.rate, known.bins, made)
        config: dict[str, Any] = {
            **vocabulary,
            "audio_root": str(there),
            "input_channels": 1,
            "input_feat_per_channel": known.bins,
            "sample_rate": known.rate,
            "specaugment": known.specaugment,
            "transforms": {"*": [known.cmvn], "_train": [known.cmvn, "specaugment"]},
        }
        if known.cmvn == "global_cmvn":
            count, sums, squares = np.sum([found[split]["moments"] for split in train], axis=0)
            mean, std = sums / count, np.sqrt(squares / count - (sums / count) ** 2)
            np.savez(made / STATISTICS, mean=mean.astype("f4"), std=std.astype("f4"))
            config["global_cmvn"] = {"stats_npz_path": str(there / STATISTICS)}
        (made / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        counts = {split: facts["counts"] for split, facts in found.items()}
        return {"sources": sources, "counts": counts}


Splits = dict[str, Iterator[Utterance]]


class SpeechSet(NamedTuple):
    """A data set.

    Attributes:
        about: what is in it, licence.
        rate: of the recordings, in Hz.
        bins: features of a frame.
        specaugment: policy.
        splits: given the preparation, its files and a folder to work in: utterances of each split.
        files: patterns of those below --local-dir that tell whether the set is already made; ``{}`` takes an option.
        archive: what is fetched where none of them is there.
        vocab_size: subwords unless the user says otherwise; None: words.
        cmvn: fairseq's transform that normalises features, by each utterance or by the training data.
        settings: what else the data depend on, for the manifest.
    """

    about: str
    rate: int
    bins: int
    specaugment: dict[str, Any]
    splits: Callable[[Speech, dict[str, Path], Path], Splits]
    files: tuple[str, ...]
    archive: Archive | None = None
    vocab_size: int | None = None
    cmvn: str = "utterance_cmvn"
    settings: dict[str, Any] | None = None
