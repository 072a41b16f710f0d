"""How alike the texts are that a model wrote and those that were expected.

Of one pair numbers are counted that add up; the scores of many pairs follow from the sums, so that drawing
the pairs again for a confidence interval costs next to nothing. chrF and BLEU are sacrebleu's, ROUGE-L is
rouge-score's, read with the letters of every script and without the two seconds of import time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

WORDS = re.compile(r"[^\W_]+")
OF_CHRF = slice(2, 20)  # among the counts of a pair: three numbers for each length of character n-grams
OF_BLEU = slice(20, None)


def likeness(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """{exact_match, rouge_l} from 0 to 1 and {chrf, bleu} from 0 to 100 of (expected, written) pairs.

    chrF: Popović 2015, https://aclanthology.org/W15-3049; BLEU: Papineni et al. 2002,
    https://aclanthology.org/P02-1040, over tokens as sacrebleu's `13a` cuts them; ROUGE-L: Lin 2004,
    https://aclanthology.org/W04-1013, the mean of the pairs' F1. No pairs score 0.
    """
    import numpy as np

    counted = [counts(expected, written) for expected, written in pairs]
    if not counted:
        return dict.fromkeys(("exact_match", "chrf", "bleu", "rouge_l"), 0.0)
    sums = np.array(counted).sum(0).tolist()
    chrf, bleu = meters()
    return {
        "exact_match": sums[0] / len(counted),
        "chrf": chrf._compute_f_score(sums[OF_CHRF]),  # noqa: SLF001 - its public calls count anew
        "bleu": bleu._compute_score_from_stats(sums[OF_BLEU]).score,  # noqa: SLF001 - likewise
        "rouge_l": sums[1] / len(counted),
    }


@lru_cache(maxsize=1)
def meters() -> tuple[Any, Any]:
    """chrF and BLEU with sacrebleu's own settings."""
    from sacrebleu import metrics

    return metrics.CHRF(), metrics.BLEU(force=True)


@lru_cache(maxsize=65_536)
def counts(expected: str, written: str) -> tuple[float, ...]:
    """(exact, ROUGE-L, chrF's n-grams, BLEU's n-grams) of one pair; white space at the ends is nothing."""
    expected, written = expected.strip(), written.strip()
    ngrams: list[float] = []
    for meter in meters():
        ngrams += meter._extract_corpus_statistics([written], [[expected]])[0]  # noqa: SLF001 - see `likeness`
    return (float(expected == written), rouge_l(expected, written), *ngrams)


def rouge_l(expected: str, written: str) -> float:
    """F1 of the longest common subsequence of words."""
    wanted, given = (WORDS.findall(text.lower()) for text in (expected, written))
    common = in_common(wanted, given)
    return 2 * common / (len(wanted) + len(given)) if common else 0.0


def in_common(first: list[str], second: list[str]) -> int:
    """How long the longest common subsequence is."""
    row = [0] * (len(second) + 1)  # of a prefix of `first`, by prefixes of `second`
    for word in first:
        above = row.copy()
        for place, other in enumerate(second, 1):
            row[place] = above[place - 1] + 1 if word == other else max(above[place], row[place - 1])
    return row[-1]
