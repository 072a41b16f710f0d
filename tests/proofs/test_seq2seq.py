"""Text to text learns: it finds the base form of English verbs that it has never seen.

«making» comes from «make», «stopping» from «stop», «telling» from «tell»: the pairs are those of the NIH's
SPECIALIST lexicon, as the package lemminflect carries them. It is compared with copying, with the most frequent
change of the ending, and with the most frequent change behind the same last letters.
"""

import gzip
import json
import random
from collections import Counter, defaultdict
from importlib.metadata import files
from itertools import takewhile
from pathlib import Path

import pytest

from tests.attempts import checkpoints, events, parquet, predictions, run_here, write_attempt
from tests.proofs.conftest import Found

pytestmark = pytest.mark.slow
LEARNED, HELD_OUT = 3500, 500
MOST_LETTERS = 6  # of an ending that a rule looks at

Pair = tuple[str, str]


def verbs() -> list[Pair]:
    """(present participle, base form) of every verb with a single participle, in random order."""
    (table,) = (file for file in files("lemminflect") or [] if file.name == "infl_lu.csv.gz")
    with gzip.open(str(table.locate()), "rt") as lines:
        rows = [line.strip().split(",") for line in lines]
    pairs = [
        (participle, base)
        for base, kind, _, _, participle, *_ in (row for row in rows if len(row) > 4)
        if kind == "verb" and base.isascii() and base.isalpha() and base.islower() and participle.isalpha()
    ]
    random.Random(0).shuffle(pairs)
    return pairs


def change(pair: Pair) -> Pair:
    """(what the ending was, what it became)."""
    same = len(list(takewhile(lambda letters: letters[0] == letters[1], zip(*pair, strict=False))))
    return pair[0][same:], pair[1][same:]


def applied(change: Pair, word: str) -> str:
    """The word with that ending changed, if it has it."""
    return word.removesuffix(change[0]) + change[1] if word.endswith(change[0]) else word


def by_last_letters(learned: list[Pair], held: list[Pair], letters: int) -> float:
    """Exact match of the most frequent change behind the same last letters, or overall where those are new."""
    changes: dict[str, Counter[Pair]] = defaultdict(Counter)
    for pair in learned:
        changes[pair[0][len(pair[0]) - letters :]][change(pair)] += 1
        changes["any"][change(pair)] += 1
    known = {ending: counted.most_common(1)[0][0] for ending, counted in changes.items()}
    guesses = [applied(known.get(word[len(word) - letters :], known["any"]), word) for word, _ in held]
    return sum(guess == base for guess, (_, base) in zip(guesses, held, strict=True)) / len(held)


def answered(folder: Path, model: Path, words: list[str]) -> list[str]:
    """What the checkpoint answers in an inference job."""
    requests = folder / "requests.jsonl"
    asked = [{"row": number, "input": {"source": word}} for number, word in enumerate(words)]
    requests.write_text("\n".join(map(json.dumps, asked)))
    told = {"kind": "infer", "recipe": "seq2seq", "requests": requests, "base_model": model, "threads": None}
    attempt = write_attempt(folder / "answers", **told)
    assert run_here(attempt) == 0, events(attempt, "error")
    return [answer["output"]["text"] for answer in predictions(attempt)]


def test_unseen_verbs_are_brought_to_their_base_form(tmp_path: Path, found: Found):
    pairs = verbs()
    held, learned = pairs[:HELD_OUT], pairs[HELD_OUT:][:LEARNED]
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="seq2seq",
        spec={"evaluations": 1, "checkpoints": 1},  # everything else as it is by default
        columns={"source": "source", "target": "target"},
        preset={"architecture": "t5", "size": "tiny", "width": 64, "layers": 2, "heads": 4},
        train=parquet(tmp_path / "train.parquet", [{"source": s, "target": t} for s, t in learned]),
        threads=None,
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    words = [word for word, _ in held]
    texts = answered(tmp_path, checkpoints(attempt)[-1] / "servable", words)
    exact = sum(text == base for text, (_, base) in zip(texts, held, strict=True)) / len(held)
    copied = sum(word == base for word, base in held) / len(held)
    rules = [by_last_letters(learned, held, letters) for letters in range(MOST_LETTERS + 1)]
    told = ", ".join(f"{n} letters {rule:.3f}" for n, rule in enumerate(rules))
    found(f"exact match: copying {copied:.3f}, most frequent change by the last {told}; learned {exact:.3f}")
    assert exact >= 0.9
    assert exact > max(copied, *rules)
