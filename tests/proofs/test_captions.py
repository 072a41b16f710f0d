"""Picture generation by captions learns what each word says: pairs of words that it has never seen together are drawn.

The pictures are scikit-learn's handwritten digits, coloured; a caption says colour and digit: «red seven». Every
digit is held out in one of the colours. The judges are classifiers that have seen real pictures alone.
"""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from shared import presets
from shared.learning.pictures import written
from shared.recipe import get
from tests.attempts import checkpoints, events, run_here, write_attempt
from tests.generators import asked, reopened
from tests.imports import imported, zipped
from tests.proofs.conftest import Found

pytestmark = pytest.mark.slow
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
}
HELD_OUT = [(list(COLOURS)[n % len(COLOURS)], digit) for n, digit in enumerate(DIGITS)]
EACH = 20  # pictures of every pair that is held out

Pair = tuple[str, str]


def coloured() -> tuple[np.ndarray, list[Pair]]:
    """(pictures [rows, 8, 8, 3], the colour and digit of each); colours are drawn at random."""
    digits: Any = load_digits()
    drawn = np.random.default_rng(0).choice(list(COLOURS), len(digits.target))
    paint = np.array([COLOURS[colour] for colour in drawn])
    pixels = (digits.images[..., None] / 16 * paint[:, None, None]).round().astype(np.uint8)
    return pixels, [(str(colour), DIGITS[digit]) for colour, digit in zip(drawn, digits.target, strict=True)]


def bundle(pixels: np.ndarray, shown: list[Pair]) -> bytes:
    """A zip as users upload it: pictures, and a captions file."""
    files = {f"{number:04}.png": written(one) for number, one in enumerate(pixels)}
    said = [f"{name},{' '.join(pair)}" for name, pair in zip(files, shown, strict=True)]
    return zipped(files | {"captions.csv": "\n".join(["file,caption", *said])})


class Judge:
    """Names the colour and the digit of pictures."""

    def __init__(self, pixels: np.ndarray, shown: list[Pair]) -> None:
        self.words = [SVC(C=10).fit(self.flat(pixels), words) for words in zip(*shown, strict=True)]

    def flat(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1) / 255.0

    def named(self, pixels: np.ndarray) -> list[Pair]:
        colours, digits = (judge.predict(self.flat(pixels)).tolist() for judge in self.words)
        return list(zip(colours, digits, strict=True))


def agreement(named: list[Pair], wanted: list[Pair]) -> float:
    """The share of pictures both of whose words are those that were asked for."""
    return sum(one == other for one, other in zip(named, wanted, strict=True)) / len(wanted)


def drawn(folder: Path, pixels: np.ndarray, shown: list[Pair], wanted: list[Pair]) -> np.ndarray:
    """What a model draws of the captions that are wanted, after it has learned from these pictures."""
    (folder / "import").mkdir()
    made = imported(folder / "import", "digits.zip", bundle(pixels, shown))
    attempt = write_attempt(
        folder / "attempt",
        recipe="text_to_image",  # everything is as it is by default
        columns=get("text_to_image").recognise(made.rows[0]),
        preset=presets.preset("scratch/dit-tiny"),
        train=made.folder / "artifacts" / "data.parquet",
        threads=None,
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    inputs = [{"caption": " ".join(pair), "seed": seed} for seed, pair in enumerate(wanted)]
    files = asked(reopened(checkpoints(attempt)[-1] / "servable", "text_to_image"), "text_to_image", inputs)
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def test_words_that_were_never_together_are_drawn_together(tmp_path: Path, found: Found):
    pixels, shown = coloured()
    half = len(shown) // 2
    trusted = agreement(Judge(pixels[:half], shown[:half]).named(pixels[half:]), shown[half:])
    wanted = [pair for pair in HELD_OUT for _ in range(EACH)]
    seen = [place for place, pair in enumerate(shown) if pair not in HELD_OUT]
    made = drawn(tmp_path, pixels[seen], [shown[place] for place in seen], wanted)
    named = Judge(pixels, shown).named(made)
    chance = agreement(random.Random(0).sample(named, len(named)), wanted)
    reached = agreement(named, wanted)
    found(
        f"both words as asked: {reached:.3f} of {len(wanted)}, real pictures {trusted:.3f}; chance {chance:.3f}"
    )
    assert reached >= 0.6
