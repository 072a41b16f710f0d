"""What a model of characters has to beat: how well a character's two predecessors tell it."""

import math
from collections import Counter


def trigram(learned: str, held: str) -> float:
    """Bits per character of held-out text under a character trigram whose counts all have 0.1 added."""
    threes = Counter(learned[at : at + 3] for at in range(len(learned) - 2))
    twos = Counter(learned[at : at + 2] for at in range(len(learned) - 2))
    letters = len(set(learned + held))
    text = learned[-2:] + held
    return -sum(
        math.log2((threes[text[at : at + 3]] + 0.1) / (twos[text[at : at + 2]] + 0.1 * letters))
        for at in range(len(held))
    ) / len(held)
