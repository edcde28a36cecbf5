"""Recordings of tones that stand for digits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

SPEAKERS = ("ada", "bob", "cleo")


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray[Any, Any]:
    """A tone and a little noise, which a file of 16 bits keeps."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(hertz)).normal(0, 0.02, len(time))
    return (0.3 * np.sin(2 * math.pi * hertz * time) + noise).astype("f4")


def digits(folder: Path, speakers: tuple[str, ...] = SPEAKERS, takes: int = 7) -> Path:
    """A folder of recordings, each digit and each speaker with a tone of their own."""
    import soundfile

    (folder / "recordings").mkdir(parents=True)
    for at, speaker in enumerate(speakers):
        for digit in range(10):
            for take in range(takes):
                wave = tone(200 + 150 * digit + 10 * at + take, 0.2, 8000)
                soundfile.write(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", wave, 8000, subtype="PCM_16")
    return folder
