"""Sound generation learns: the words for digits, spoken as asked.

The sounds are espeak-ng's, in many voices. The judge is a classifier that has heard those alone, and is
itself checked on voices that it has not heard. Chance is one in ten.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import SVC

from shared import presets
from shared.learning import sound
from tests.attempts import checkpoints, events, parquet, run_here, write_attempt
from tests.generators import asked, reopened
from tests.proofs.conftest import Found
from tests.proofs.espeak import speak

pytestmark = pytest.mark.slow
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = ["en-us", "en-gb-scotland", "en-gb-x-rp"]
VOICES = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5"]
SPEEDS = [150, 180]
RATE, SECONDS, FRAMES = 8000, 0.9, 64
EACH = 10  # sounds of every word


def spoken() -> list[tuple[str, bytes]]:
    """[(word, WAV)] of every word in every voice, in random order."""
    every = [
        (word, speak(word, f"{accent}+{voice}", speed))
        for word, accent, voice, speed in product(WORDS, ACCENTS, VOICES, SPEEDS)
    ]
    return [every[place] for place in np.random.default_rng(0).permutation(len(every))]


def heard(content: bytes) -> np.ndarray:
    """What the judge hears: the mel spectrogram of a sound, at one sample rate and length."""
    rate, _ = sound.look(content)
    values = sound.resampled(sound.read(content), rate, RATE)[: round(RATE * SECONDS)]
    return np.asarray(sound.spectrogram(values, sound.Layout(RATE, FRAMES))).ravel() / 255.0


def test_words_are_spoken_as_asked(tmp_path: Path, found: Found):
    said = spoken()
    learned, fresh = said[len(said) // 10 :], said[: len(said) // 10]
    judge = SVC(C=10).fit([heard(content) for _, content in learned], [word for word, _ in learned])
    trusted = judge.score([heard(content) for _, content in fresh], [word for word, _ in fresh])
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="text_to_audio",
        spec={"sample_rate": RATE, "seconds": SECONDS},  # everything else as it is by default
        columns={"audio": "audio", "label": "label"},
        preset=presets.preset("scratch/dit-tiny"),
        train=parquet(tmp_path / "rows.parquet", [{"audio": c, "label": w} for w, c in learned]),
        threads=None,
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    words = [word for word in WORDS for _ in range(EACH)]
    inputs = [{"label": word, "seed": seed} for seed, word in enumerate(words)]
    made = asked(reopened(checkpoints(attempt)[-1] / "servable", "text_to_audio"), "text_to_audio", inputs)
    named = float(np.mean(judge.predict([heard(content) for content in made]) == np.array(words)))
    found(f"named as asked: {named:.3f} of {len(words)}, real words {trusted:.3f}; chance {1 / len(WORDS)}")
    assert named >= 0.8
