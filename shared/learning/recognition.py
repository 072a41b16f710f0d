"""Whether what was generated shows what was asked for: a classifier that has seen real examples names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

RIDGE = 1e-2

Words = Sequence[str]  # what one example shows: its label, or the words of its caption


def named_as_asked(
    real: Any, shown: Sequence[Words], made: Any, wanted: Sequence[Words]
) -> list[float | None]:
    """For each generated example the share of the words asked for that the classifier names; None where it
    knows none of them.

    `real` [examples, …] are real examples that no generator has learned from and `shown` what they show; `wanted`
    is what the examples in `made` were asked to show. The classifier finds each word apart, by kernel ridge
    regression (Saunders et al. 1998), solved exactly: the same rows give the same figures. Where n known words were
    asked for, the n likeliest are taken.
    """
    import numpy as np

    known = vocabulary(shown)
    truth, wish = marks(shown, known), marks(wanted, known)
    scores = regression(flat(real), truth, flat(made))
    shares: list[float | None] = []
    for row, score in zip(wish, scores, strict=True):
        count = int(row.sum())
        likeliest = np.argsort(-score, kind="stable")[:count]
        shares.append(float(row[likeliest].mean()) if count else None)
    return shares


def vocabulary(shown: Sequence[Words]) -> list[str]:
    """The words that tell examples apart: those that some have and some have not."""
    counts = Counter(word for words in shown for word in set(words))
    return sorted(word for word, count in counts.items() if count < len(shown))


def marks(shown: Sequence[Words], known: list[str]) -> Any:
    """Which word is in which example: 0 or 1, [examples, words]."""
    import numpy as np

    found = [[word in words for word in known] for words in shown]
    return np.array(found, dtype=float).reshape(len(shown), len(known))


def flat(examples: Any) -> Any:
    """[examples, values]"""
    import numpy as np

    return np.asarray(examples, dtype=np.float64).reshape(len(examples), -1)


def regression(known: Any, truth: Any, seen: Any) -> Any:
    """What kernel ridge regression from `known` to `truth` says of `seen`, [seen, words].

    The kernel's width is the median distance between examples.
    """
    import numpy as np

    apart = distances(known, known)
    width = np.median(apart[apart > 0]) if (apart > 0).any() else 1.0
    weights = np.linalg.solve(np.exp(-apart / width) + RIDGE * np.eye(len(known)), truth - truth.mean(0))
    return np.exp(-distances(seen, known) / width) @ weights + truth.mean(0)


def distances(some: Any, others: Any) -> Any:
    """Squared distances, [some, others]."""
    squares = (some**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * some @ others.T
    return squares.clip(min=0)
