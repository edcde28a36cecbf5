"""Speech: features, recordings that can't be used, spoken digits, MuST-C and LibriSpeech in miniature."""

from __future__ import annotations

import json
import math
import pickle
import re
import tarfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import prepare
import pytest
import yaml
from conftest import run_cli

pytest.importorskip("kaldi_native_fbank")
soundfile = pytest.importorskip("soundfile")

from corpora import speech, speech_sets  # noqa: E402
from corpora.speech import features  # noqa: E402
from fairseq.data.audio.audio_utils import get_features_or_waveform  # noqa: E402
from fairseq.data.audio.data_cfg import S2TDataConfig  # noqa: E402
from fairseq.data.audio.feature_transforms import CompositeAudioFeatureTransform  # noqa: E402
from support.speech import SPEAKERS, digits, tone  # noqa: E402

SPLITS = ("train", "valid", "test")


def by_hand(wave: np.ndarray, rate: int, bins: int) -> np.ndarray:
    """Kaldi's features from their definition, in float64."""
    wave = np.asarray(wave, float) * 2**15
    length, step = round(0.025 * rate), round(0.01 * rate)
    size = 1 << (length - 1).bit_length()
    window = (0.5 - 0.5 * np.cos(2 * math.pi * np.arange(length) / (length - 1))) ** 0.85
    mel = lambda hertz: 1127 * np.log(1 + np.asarray(hertz, float) / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(rate / 2), bins + 2)
    places = mel(np.arange(size // 2) * rate / size)
    up = (places - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - places) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.maximum(0, np.minimum(up, down))
    rows = []
    for start in range(0, len(wave) - length + 1, step):
        frame = wave[start : start + length]
        frame = frame - frame.mean()
        frame = (frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])) * window
        power = np.abs(np.fft.rfft(frame, size)[:-1]) ** 2
        rows.append(np.log(np.maximum(weights @ power, np.finfo("f4").eps)))
    return np.array(rows)


@pytest.mark.parametrize("rate, bins", [(16_000, 80), (8000, 40)])
def test_features_are_those_of_kaldi(rate, bins):
    wave = np.random.default_rng(0).normal(0, 0.1, rate // 2).astype("f4") + tone(440, 0.5, rate)
    found = features(wave, rate, bins)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(wave, rate, bins), rtol=0, atol=5e-3)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_sets, "STRINGS", {"train": 40, "valid": 12, "test": 24})


@pytest.fixture(autouse=True)
def pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are the same in several processes."""
    usual = speech.in_order
    copies = lambda waves: (pickle.loads(pickle.dumps(wave)) for wave in waves)  # noqa: E731
    monkeypatch.setattr(speech, "in_order", lambda make, waves, n: usual(make, copies(waves), n))


def run(name: str, local: Path, out: Path, *more: str) -> list[dict[str, str]]:
    prepare.main([name, "--local-dir", str(local), "--out", str(out), *more])
    return rows(out, "test")


def rows(out: Path, split: str) -> list[dict[str, str]]:
    head, *lines = (out / f"{split}.tsv").read_text().splitlines()
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_strings_of_digits_are_read_by_fairseq_and_speakers_are_apart(tmp_path):
    out = tmp_path / "out"
    run("spoken-digits", digits(tmp_path / "in"), out, "--test-speakers", "bob")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["audio_root"] == str(out)
    assert config["transforms"]["_train"][-1] == "specaugment"
    assert (out / "dict.txt").read_text().split()[::2] == sorted(speech_sets.DIGITS)
    speakers = {split: {row["speaker"] for row in rows(out, split)} for split in SPLITS}
    assert speakers == {"train": {"ada", "cleo"}, "valid": {"ada", "cleo"}, "test": {"bob"}}
    for split in speakers:
        for row in rows(out, split):
            found = get_features_or_waveform(f"{out}/{row['audio']}")
            assert found.shape == (int(row["n_frames"]), 40)
            words = row["tgt_text"].split()
            assert 1 <= len(words) <= 7
            assert set(words) <= set(speech_sets.DIGITS)
            # 0.2 s a digit, at another speed, and pauses of 50 to 400 ms
            slow, fast = speech_sets.SPEEDS if split == "train" else (1.0, 1.0)
            n, seconds = len(words), 0.01 * len(found)
            assert 0.2 * n / fast + 0.05 * (n + 1) - 0.03 < seconds < 0.2 * n / slow + 0.4 * (n + 1)


def assert_same(one: Path, other: Path) -> None:
    """Rows and features of two folders."""
    for split in SPLITS:
        assert rows(one, split) == rows(other, split)
        for row in rows(one, split):
            made = (get_features_or_waveform(f"{folder}/{row['audio']}") for folder in (one, other))
            np.testing.assert_array_equal(*made)


def test_fairseq_normalises_digits_by_the_training_data(tmp_path):
    out = tmp_path / "out"
    run("spoken-digits", digits(tmp_path / "in"), out, "--test-speakers", "bob")
    read = {split: [get_features_or_waveform(f"{out}/{row['audio']}") for row in rows(out, split)] for split in SPLITS}
    frames = np.concatenate(read["train"]).astype("f8")
    config = S2TDataConfig(out / "config.yaml")
    for split, found in read.items():
        transform = CompositeAudioFeatureTransform.from_config_dict(config.get_feature_transforms(split, False))
        expected = [(x - frames.mean(0)) / frames.std(0) for x in found]
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(transform(x), y, rtol=1e-4, atol=1e-4)


def test_digits_are_equally_loud_however_they_were_recorded(tmp_path):
    """A microphone's level changes nothing, not even the noise."""
    folder = digits(tmp_path / "in")
    first = run("spoken-digits", folder, tmp_path / "a", "--test-speakers", "bob")
    for path in folder.rglob("*_bob_*.wav"):
        wave, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path, wave / 8, rate, subtype="FLOAT")
    assert run("spoken-digits", folder, tmp_path / "b", "--test-speakers", "bob") == first
    for row in first:
        loud, soft = (get_features_or_waveform(f"{tmp_path / name}/{row['audio']}") for name in "ab")
        np.testing.assert_allclose(loud, soft, rtol=0, atol=1e-2)


def test_the_louder_half_is_half_of_a_recording():
    """Whatever part of it is digital silence."""
    loud, soft = (factor * tone(300, 0.5, 8000) for factor in (1.0, 0.1))
    assert speech_sets.louder_half(np.concatenate([soft, loud])) == pytest.approx(np.sqrt((loud**2).mean()), rel=0.02)
    quarter = np.concatenate([loud, np.zeros(3 * len(loud), "f4")])
    assert speech_sets.louder_half(quarter) == pytest.approx(np.sqrt((loud**2).mean() / 2), rel=0.02)


def test_digits_for_training_vary_in_speed_and_colour():
    wave = tone(1000, 0.5, 8000)
    assert np.abs(speech_sets.varied(wave, 1.0, [0.0] * 6) - wave).max() < 1e-5
    faster = speech_sets.varied(wave, 1.25, [0.0] * 6)
    assert len(faster) == len(wave) / 1.25
    at = lambda x: np.abs(np.fft.rfft(x)).argmax() * 8000 / len(x)  # noqa: E731
    assert at(wave) == pytest.approx(1000, abs=3) and at(faster) == pytest.approx(1250, abs=3)
    half = speech_sets.varied(wave, 1.0, [-6.02] * 6)
    assert np.abs(half).max() == pytest.approx(np.abs(wave).max() / 2, rel=1e-2)


def test_the_same_is_made_again_and_from_an_archive(tmp_path):
    folder = digits(tmp_path / "in")
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "spoken-digits.tar.xz", "w:xz") as tar:
        tar.add(folder, "spoken-digits")
    bob = sorted(folder.rglob("*_bob_*.wav"))
    for path in bob[: len(bob) // 2]:  # some beside the archive, and in it; some under an ending of Windows
        (tmp_path / "packed" / path.name.replace(".wav", ".WAV")).write_bytes(path.read_bytes())
    run("spoken-digits", folder, tmp_path / "a", "--test-speakers", "ada")
    run("spoken-digits", tmp_path / "packed", tmp_path / "b", "--test-speakers", "ada")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_speaker_of_your_own_is_tested_with_those_of_the_data_set(tmp_path, capsys):
    """Recordings of one more speaker, some of them FLAC, beside the archive, which has the name that it is downloaded
    under."""
    own = digits(tmp_path / "own", ("dora",), takes=2)
    for path in sorted((own / "recordings").iterdir())[::2]:
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
        path.unlink()
    with pytest.raises(SystemExit):
        run("spoken-digits", own, tmp_path / "out", "--test-speakers", "dora")
    assert f"{speech_sets.FSDD.url}, into --local-dir, too" in capsys.readouterr().err
    with tarfile.open(own / speech_sets.FSDD.name, "w:gz") as tar:
        tar.add(digits(tmp_path / "in"), "free-spoken-digit-dataset-1.0.10")
    run("spoken-digits", own, tmp_path / "out", "--test-speakers", "dora")
    assert "recordings: ada (70), bob (70), cleo (70), dora (20)\n" in capsys.readouterr().out
    assert {row["speaker"] for row in rows(tmp_path / "out", "train")} == set(SPEAKERS)
    assert {row["speaker"] for row in rows(tmp_path / "out", "test")} == {"dora"}


def refused(capsys, name: str, local: Path, out: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(name, local, out, *more)
    assert ended.value.code == 2 and not out.exists()
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "wave, rate, message",
    [
        (np.zeros(1600, "f4"), 8000, "is empty, or silent"),
        (np.zeros(0, "f4"), 8000, "is empty, or silent"),
        (np.random.default_rng(1).normal(0, 5e-4, 1600), 8000, "is empty, or silent"),
        (np.full(1600, np.nan, "f4"), 8000, "is empty, or silent"),
        (np.ones((1600, 2), "f4") / 2, 8000, "must have one channel at 8,000 Hz; got 2 at 8,000"),
        (tone(300, 0.2, 44_100), 44_100, "must have one channel at 8,000 Hz; got 1 at 44,100"),
        (None, 0, "can't be read"),
    ],
)
def test_recordings_that_cannot_be_used_are_named(wave, rate, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("corpora.speech.features", None)  # before any are made
    folder = digits(tmp_path / "in", takes=2)
    path = folder / "recordings" / "3_bob_0.wav"
    path.write_bytes(b"RIFF") if wave is None else soundfile.write(path, wave, rate, subtype="FLOAT")
    said = refused(capsys, "spoken-digits", folder, tmp_path / "out", "--test-speakers", "bob")
    assert str(path) in said and message in said
    path.rename(path.with_name("three_bob_0.wav"))
    said = refused(capsys, "spoken-digits", folder, tmp_path / "out", "--test-speakers", "bob")
    assert "three_bob_0.wav: must be named DIGIT_SPEAKER_NUMBER.wav" in said


@pytest.mark.parametrize(
    "name, speakers, more, message",
    [
        ("spoken-digits", SPEAKERS, ["--test-speakers", "dora"], "--test-speakers: dora must be one of ada, bob, cleo"),
        ("spoken-digits", SPEAKERS, ["--test-speakers", ",".join(SPEAKERS)], "no speaker is left for training"),
        ("spoken-digits", ("theo", "bob"), [], "validation needs a second recording of a digit by a speaker"),
        ("spoken-digits", (), [], "in has nothing of spoken-digits"),
        ("must-c", (), [], "must be a folder that has en-de/data; got"),
        ("librispeech", (), [], "must be a folder that has LibriSpeech; got"),
        ("librispeech", (), ["--test-speakers", "bob"], "--test-speakers: is not for librispeech"),
    ],
)
def test_data_that_cannot_be_used_are_named(name, speakers, more, message, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    if speakers:
        digits(tmp_path / "in" / "some", speakers, takes=1)
    assert message in refused(capsys, name, tmp_path / "in", tmp_path / "out", *more)


@pytest.mark.parametrize(
    "name, place, message",
    [
        ("must-c", "en-de/data/dev", "en-de/data must have train"),
        ("librispeech", "LibriSpeech/dev-clean", "LibriSpeech must have train-clean-100 or the like"),
        ("librispeech", "LibriSpeech/train-clean-5", "there is no text in train-clean-5"),
    ],
)
def test_another_layout_is_named(name, place, message, tmp_path, capsys):
    (tmp_path / "in" / place).mkdir(parents=True)
    assert message in refused(capsys, name, tmp_path / "in", tmp_path / "out")


def test_no_recording_is_in_training_and_validation(tmp_path):
    """A digit that a speaker said once is for training alone."""
    folder = digits(tmp_path / "in", ("ada", "bob"), takes=2)
    once = [path for path in folder.rglob("*_ada_1.wav") if path.name[0] in "0123"]
    for path in once:
        path.unlink()
    run("spoken-digits", folder, tmp_path / "out", "--test-speakers", "bob")
    train, valid, _ = (" ".join(row["tgt_text"] for row in rows(tmp_path / "out", split)).split() for split in SPLITS)
    assert len(once) == 4 and set(valid) == set(speech_sets.DIGITS[4:])
    assert set(train) == set(speech_sets.DIGITS)


def test_a_speaker_may_have_an_underscore_and_come_later(tmp_path, capsys):
    """What was made of fewer recordings doesn't count as already made."""
    folder = digits(tmp_path / "in", ("ada", "bob"), takes=2)
    run("spoken-digits", folder, tmp_path / "out", "--test-speakers", "bob")
    for path in (folder / "recordings").glob("*_ada_0.wav"):
        path.with_name(path.name.replace("ada", "ada_lovelace")).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit):
        run("spoken-digits", folder, tmp_path / "out", "--test-speakers", "bob")
    assert "0_ada_lovelace_0.wav has changed" in capsys.readouterr().err.splitlines()[-1]
    found = run("spoken-digits", folder, tmp_path / "more", "--test-speakers", "ada_lovelace")
    assert {row["speaker"] for row in found} == {"ada_lovelace"}


def test_a_missing_package_is_named_before_anything_is_fetched(tmp_path, capsys, monkeypatch):
    def versions(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("corpora.speech.version", versions)
    monkeypatch.setattr("corpora.speech.fetch", None)
    with pytest.raises(SystemExit):
        prepare.main(["spoken-digits", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "speech needs the package kaldi-native-fbank: pip install -r requirements.txt" in said, said


def decoded(out: Path, *splits: str, scoring: str) -> list[str]:
    """Return a model's transcripts of the test set after an update with the manifests."""
    train, valid, test = splits
    words = [out, "--user-dir", "fairseq_sru", "--task", "speech_to_text", "--cpu", "--max-tokens", 2000]
    narrow = ["--encoder-hidden-size", 8, "--encoder-layers", 1, "--conv-channels", 16, "--decoder-layers", 1]
    narrow += ["--decoder-embed-dim", 16, "--decoder-hidden-size", 16]
    flags = ["--arch", "s2t_sru", *narrow, "--optimizer", "adam", "--lr", 1e-3, "--max-update", 1]
    run_cli("train", *words, *flags, "--train-subset", train, "--valid-subset", valid, "--save-dir", out / "model")
    path = ["--path", out / "model" / "checkpoint_last.pt", "--gen-subset", test, "--scoring", scoring]
    done = run_cli("generate", *words, *path, "--max-len-b", 20)
    references = dict(re.findall(r"^T-(\d+)\t(.*)$", done.stdout, re.M))
    assert references.keys() == dict(re.findall(r"^D-(\d+)\t(.*)$", done.stdout, re.M)).keys()
    return [references[str(n)] for n in range(len(references))]


def test_must_c_in_miniature(tmp_path, capsys, monkeypatch):
    data = tmp_path / "MUSTC" / "en-de" / "data"
    for split, talks in (("train", 3), ("dev", 1), ("tst-COMMON", 1)):
        (data / split / "wav").mkdir(parents=True)
        (data / split / "txt").mkdir()
        segments, lines = [], []
        for talk in range(talks):
            wave = np.concatenate([tone(200 + 100 * k, 1.0, 16_000) for k in range(4)])
            wave[48_000:] *= talk != 1  # a silent segment stays, too
            soundfile.write(data / split / "wav" / f"ted_{split}_{talk}.wav", wave, 16_000)
            for k in range(4):
                place = f"duration: 1.0, offset: {k}.0, speaker_id: spk.{talk}"
                segments.append(f"- {{{place}, wav: ted_{split}_{talk}.wav}}")
                lines.append(f'Satz "{k}" von Vortrag {talk}, oder auch nicht')
        (data / split / "txt" / f"{split}.yaml").write_text("\n".join(segments) + "\n")
        (data / split / "txt" / f"{split}.de").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    prepare.main(["must-c", "--local-dir", str(tmp_path / "MUSTC"), "--out", str(out), "--vocab-size", "28"])
    made = rows(out, "train")
    assert [row["id"] for row in made] == [f"ted_train_{talk}_{k}" for talk in range(3) for k in range(4)]
    assert made[5]["tgt_text"] == 'Satz "1" von Vortrag 1, oder auch nicht'
    assert made[5]["speaker"] == "spk.1"
    # the second of its four seconds: each has a tone of its own
    expected = features(tone(300, 1.0, 16_000), 16_000, 80)
    found = get_features_or_waveform(f"{out}/{made[5]['audio']}")
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.2)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["bpe_tokenizer"] == {"bpe": "sentencepiece", "sentencepiece_model": str(out / "spm.model")}
    assert len((out / "spm.txt").read_text().splitlines()) == 24
    counts = json.loads((out / "manifest.json").read_text())["counts"]["train"]
    assert counts == {"kept": 12, "left out": 0}
    said = decoded(out, "train", "dev", "tst-COMMON", scoring="sacrebleu")
    assert said == [row["tgt_text"] for row in rows(out, "tst-COMMON")]
    monkeypatch.setattr("corpora.speech.features", None)  # what can't be used is known before any are made
    local, new = tmp_path / "MUSTC", tmp_path / "new"
    text, listed, sound = (data / "dev" / name for name in ("txt/dev.de", "txt/dev.yaml", "wav/ted_dev_0.wav"))
    for path, content, message in (
        (text, text.read_bytes().split(b"\n", 1)[1], "dev.de has 3 lines for 4 segments"),
        (listed, listed.read_bytes().replace(b"offset", b"at", 1), "dev.yaml is no list of segments as MuST-C has it"),
        (sound, b"RIFF", f"{sound} can't be read"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        assert message in refused(capsys, "must-c", local, new)
        path.write_bytes(before)
    sound.unlink()
    assert f"no such file: {sound}" in refused(capsys, "must-c", local, new)


def test_librispeech_in_miniature(tmp_path):
    for split, chapters in (("train-clean-100", 3), ("dev-clean", 1)):
        for chapter in range(chapters):
            folder = tmp_path / "LibriSpeech" / split / "19" / str(chapter)
            folder.mkdir(parents=True)
            lines = []
            for n in range(4):
                soundfile.write(folder / f"19-{chapter}-{n:04d}.flac", tone(300, 0.5 if n else 0.05, 16_000), 16_000)
                lines.append(f"19-{chapter}-{n:04d} THE WORDS OF CHAPTER {chapter}")
            if split == "dev-clean":  # as one's own may be
                lines[0] = "\ufeff" + lines[0]
                lines[1] = lines[1].replace(" ", "\t", 1)
                lines[2] = lines[2].replace(" OF", "\u2028OF")
            (folder / f"19-{chapter}.trans.txt").write_text("\r\n".join(lines) + "\n\n")
    out = tmp_path / "out"
    prepare.main(["librispeech", "--local-dir", str(tmp_path), "--out", str(out), "--vocab-size", "20"])
    made = rows(out, "train-clean-100")
    assert [row["id"] for row in made] == [
        f"19-{c}-{n:04d}" for c in range(3) for n in (1, 2, 3)
    ]  # too short: the first
    assert {row["tgt_text"] for row in made} == {f"the words of chapter {c}" for c in range(3)}
    assert [row["tgt_text"] for row in rows(out, "dev-clean")] == 3 * ["the words of chapter 0"]
    assert json.loads((out / "manifest.json").read_text())["counts"]["dev-clean"] == {
        "kept": 3,
        "left out": 1,
    }
    expected = features(tone(300, 0.5, 16_000), 16_000, 80)
    np.testing.assert_allclose(get_features_or_waveform(f"{out}/{made[0]['audio']}"), expected, rtol=0, atol=0.2)
