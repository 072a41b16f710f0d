"""Whether two models are one: what both make of the same, compared."""

from __future__ import annotations

import math
from typing import Any

from shared.recipe import Agreement

# What float32 may move when an adapter is worked in: its rounding is a part in 10⁷, and some thousand of them follow
# each other. Weights in the wrong place move a hundred times as much, even in a model that has hardly learned.
SCORES = 1e-3  # between two probabilities
NATS = 1e-6  # between two distributions of the next token, on average
LOGITS = 1e-3  # between two logits, as a share of how far all of them spread
PART = 64  # rows


def of_answers(trained: list[Any], export: list[Any], words: str, most: float = SCORES) -> Agreement:
    """Answers are equal where all but their scores is; scores may differ by `most`.

    Answers that differ though their scores are alike are a tie, and pass. `words` is a sentence with places for
    `equal`, `count` and `largest`.
    """
    pairs = [(taken_apart(one), taken_apart(other)) for one, other in zip(trained, export, strict=True)]
    equal = sum(one == other for (one, _), (other, _) in pairs)
    largest = max((apart(one, other) for (_, one), (_, other) in pairs), default=0.0)
    tied = all(scores for (_, scores), _ in pairs)
    said = words.format(equal=equal, count=len(pairs), largest=figure(largest))
    same = largest <= most and (equal == len(pairs) or tied)
    return Agreement(same, said, equal / max(len(pairs), 1), largest)


def taken_apart(answer: Any) -> tuple[Any, list[float]]:
    """(the answer without its scores, the scores): a score is a number that is not whole by its type."""
    scores: list[float] = []

    def without(value: Any) -> Any:
        if isinstance(value, float):
            scores.append(value)
            return None
        if isinstance(value, dict):
            return {name: without(value[name]) for name in sorted(value)}
        return [without(one) for one in value] if isinstance(value, list) else value

    return without(answer), scores


def apart(one: list[float], other: list[float]) -> float:
    """The largest difference; infinite where the scores are not of the same number or are none."""
    if len(one) != len(other):
        return math.inf
    gaps = [abs(mine - theirs) for mine, theirs in zip(one, other, strict=True)]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps, default=0.0)


def figure(value: float) -> str:
    """A bound in plain digits, rounded up to one that counts."""
    if not math.isfinite(value):
        return "any number"
    places = min(7, max(0, -math.floor(math.log10(value)))) if value else 0
    return f"{math.ceil(value * 10**places) / 10**places:.{places}f}" if value else "0"


def of_logits(trained: list[Any], export: list[Any], nats: float = NATS, logits: float = LOGITS) -> Agreement:
    """[{tokens, logits [tokens, words]}] of the same texts, compared at every token.

    The mean Kullback-Leibler divergence of the export's next-token distributions from the trained model's, in
    nats, may be `nats`; the largest difference between two logits `logits` of the trained model's deviation.
    """
    import torch

    if cut := sum(one["tokens"] != other["tokens"] for one, other in zip(trained, export, strict=True)):
        said = f"The export cuts {cut} of {len(trained)} texts into other tokens than the trained model."
        return Agreement(same=False, said=said, equal=0.0, largest_difference=math.inf)
    mine, theirs = (torch.cat([one["logits"] for one in shown]) for shown in (trained, export))
    if mine.shape != theirs.shape:
        said = f"The export knows {theirs.shape[1]} words, the trained model {mine.shape[1]}."
        return Agreement(same=False, said=said, equal=0.0, largest_difference=math.inf)
    equal = float((mine.argmax(-1) == theirs.argmax(-1)).float().mean())
    divergence, largest = diverged(mine, theirs), float((mine - theirs).abs().max())
    said = (
        f"Over {len(mine)} tokens {100 * equal:.4g} % of the likeliest next tokens are equal; the distributions"
        f" differ by at most {figure(divergence)} nats on average, and no logit by more than {figure(largest)}."
    )
    same = divergence <= nats and largest <= logits * float(mine.std())
    return Agreement(same, said, equal, largest)


def diverged(mine: Any, theirs: Any) -> float:
    """The mean Kullback-Leibler divergence of rows of logits, in nats; in parts, as rows are long."""
    total = 0.0
    for one, other in zip(mine.split(PART), theirs.split(PART), strict=True):
        log_p, log_q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return max(total / len(mine), 0.0)  # rounding may take it below
