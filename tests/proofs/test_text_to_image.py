"""Picture generation learns: scikit-learn's handwritten digits, drawn as asked.

The judge is a classifier that has seen real digits alone. Chance is one in ten.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from shared import presets
from shared.learning.pictures import png
from tests.attempts import checkpoints, events, parquet, run_here, write_attempt
from tests.generators import asked, reopened
from tests.proofs.conftest import Found

pytestmark = pytest.mark.slow
EACH = 20  # pictures of every digit
CLASSES = 10


def test_digits_are_drawn_as_asked(tmp_path: Path, found: Found):
    digits: Any = load_digits()
    shades = (digits.images * 255 / 16).round().astype(np.uint8)
    rows = [
        {"image": png(image.tobytes(), 8, 8, 1), "label": str(label)}
        for image, label in zip(shades, digits.target, strict=True)
    ]
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="text_to_image",
        columns={"image": "image", "label": "label"},
        preset=presets.preset("scratch/dit-tiny"),
        train=parquet(tmp_path / "rows.parquet", rows),
        threads=None,
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    judge = SVC(gamma=0.001).fit(shades.reshape(len(shades), -1) / 16.0, digits.target)
    labels = [n for n in range(CLASSES) for _ in range(EACH)]
    inputs = [{"label": str(label), "seed": seed} for seed, label in enumerate(labels)]
    drawn = asked(reopened(checkpoints(attempt)[-1] / "servable", "text_to_image"), "text_to_image", inputs)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("L")).ravel() for content in drawn])
    named = float(np.mean(judge.predict(pixels / 16.0) == labels))
    found(f"named as asked: {named:.3f} of {len(labels)}; chance {1 / CLASSES}")
    assert named >= 0.8
