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

from .archives import Archive, fetch
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
    """A recording and its text."""

    id: str
    wave: Callable[[], Wave]  # that can be pickled
    text: str  # words and single spaces
    speaker: str


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


def check(path: Path, rate: int) -> Path:
    """Return the path of a recording.

    Raises:
        RecipeError: it isn't there, can't be read, or has not one channel at that rate.
    """
    import soundfile

    if not path.is_file():
        raise RecipeError(f"no such file: {path}")
    try:
        header = soundfile.info(path)
    except RuntimeError as error:  # soundfile's own are such
        raise RecipeError(f"{path} can't be read: {error}") from None
    if (header.channels, header.samplerate) != (1, rate):
        shape = f"{header.channels} at {header.samplerate:,} Hz"
        raise RecipeError(f"{path}: must have one channel at {rate:,} Hz; got {shape}")
    return path


def read(path: Path, start: int = 0, samples: int = -1) -> Wave:
    """A recording, or a part of it."""
    import soundfile

    wave: Wave = soundfile.read(path, samples, start, dtype="float32")[0]
    return wave


def features(wave: Wave, rate: int, bins: int) -> np.ndarray[Any, Any]:
    """Kaldi's log-mel features ``(frames, bins)``, float32, as fairseq's scripts have them: of 25 ms each 10 ms, no
    dither."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = rate, 0.0
    options.mel_opts.num_bins, options.energy_floor = bins, 1.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(rate, (wave * 2**15).tolist())  # Kaldi's are integers of 16 bits
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, bins), "f4")


def sound(rate: int, bins: int, wave: Callable[[], Wave]) -> np.ndarray[Any, Any]:
    return features(wave(), rate, bins)


def manifest(
    utterances: Sequence[Utterance], split: str, pack: zipfile.ZipFile, rate: int, bins: int, to: Path
) -> dict[str, Any]:
    """Write the features and ``split``.tsv; returns how many utterances are in them and how many left out, and of the
    frames their number, sums and sums of squares, ``(3, bins)``."""
    rows, left_out = ["id\taudio\tn_frames\ttgt_text\tspeaker\n"], 0
    moments = np.zeros((3, bins))
    waves = (utterance.wave for utterance in utterances)
    sounds = in_order(partial(partial, sound, rate, bins), waves, 1 if len(utterances) <= FEW else cores())
    both = zip(utterances, sounds, strict=True)
    for utterance, frames in progress(both, total=len(utterances), desc=split, unit="utterance"):
        too_long = split.startswith("train") and len(frames) > LONGEST
        if len(frames) < SHORTEST or too_long or not utterance.text:
            left_out += 1
            continue
        data = io.BytesIO()
        np.save(data, frames)
        name = f"{utterance.id}.npy"
        pack.writestr(name, data.getvalue())
        at = pack.getinfo(name).header_offset + 30 + len(name.encode())  # behind the file's own header
        audio = f"{FEATURES}:{at}:{len(data.getvalue())}"
        rows.append(f"{utterance.id}\t{audio}\t{len(frames)}\t{utterance.text}\t{utterance.speaker}\n")
        moments += np.stack([np.ones_like(frames), frames, frames**2]).sum(1, dtype="f8")
    why = f"{left_out:,} left out: fewer than {SHORTEST} frames, for training more than {LONGEST:,}, or no text"
    if len(rows) == 1:
        raise RecipeError(f"no utterance is left for {split}: {why}")
    if left_out:
        print(f"{split}: {why}", flush=True)
    (to / f"{split}.tsv").write_text("".join(rows), "utf-8", newline="\n")
    return {"counts": {"kept": len(rows) - 1, "left out": left_out}, "moments": moments}


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

    def vocabulary(self, texts: list[str], folders: Folders) -> dict[str, Any]:
        """Learn the subwords or list the words; returns what config.yaml says of them."""
        if size := self.chosen.get("vocab_size"):
            model = subwords(texts, size, folders.made)
            words = [model.id_to_piece(i) for i in range(SPECIAL, model.get_piece_size())]
            # the whole path, since fairseq prefers a file of that name in the current folder
            tokenizer = {"bpe": "sentencepiece", "sentencepiece_model": str(folders.out / "spm.model")}
            name, more = "spm.txt", {"bpe_tokenizer": tokenizer}
        else:
            words, name, more = sorted({word for text in texts for word in text.split()}), "dict.txt", {}
        (folders.made / name).write_text("".join(f"{word} 1\n" for word in words), "utf-8", newline="\n")
        return {"vocab_filename": name, **more}

    def make(self, folders: Folders) -> dict[str, Any]:
        known, made, out = self.known, folders.made, folders.out
        files = self.files()
        sources = [described(path, name) for name, path in files.items()]
        if not files and known.archive:
            if self.local_dir:
                raise RecipeError(f"argument --local-dir: {self.local_dir} has nothing of {self.name}")
            files, sources = fetch([known.archive], None, folders.archives)
        splits = {split: list(utterances) for split, utterances in known.splits(self, files, folders.work).items()}
        train = [split for split in splits if split.startswith("train")]
        texts = [utterance.text for split in train for utterance in splits[split]]
        if not any(texts):
            raise RecipeError(f"there is no text in {' or '.join(train)}")
        config: dict[str, Any] = {
            **self.vocabulary(texts, folders),
            "audio_root": str(out),
            "input_channels": 1,
            "input_feat_per_channel": known.bins,
            "sample_rate": known.rate,
            "specaugment": known.specaugment,
            "transforms": {"*": [known.cmvn], "_train": [known.cmvn, "specaugment"]},
        }
        facts = {}
        with zipfile.ZipFile(made / FEATURES, "w", zipfile.ZIP_STORED) as pack:
            for split, utterances in splits.items():
                facts[split] = manifest(utterances, split, pack, known.rate, known.bins, made)
        if known.cmvn == "global_cmvn":
            count, sums, squares = np.sum([facts[split]["moments"] for split in train], axis=0)
            mean, std = sums / count, np.sqrt(squares / count - (sums / count) ** 2)
            np.savez(made / STATISTICS, mean=mean.astype("f4"), std=std.astype("f4"))
            config["global_cmvn"] = {"stats_npz_path": str(out / STATISTICS)}
        (made / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return {"sources": sources, "counts": {split: fact["counts"] for split, fact in facts.items()}}
