"""Rows that belong together (questions about one text, copies of one file) are held out together."""

import random
from collections import defaultdict
from collections.abc import Iterable
from hashlib import sha256


def held_out(keys: Iterable[bytes], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers (from 0) to learn from, and those held out: whole groups of rows with the same key, drawn by
    the seed until that share of rows is reached. At least one group is learned.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    count = 0
    for number, name in enumerate(keys):
        groups[name].append(number)
        count += 1
    names, held = list(groups), []
    random.Random(seed).shuffle(names)
    for name in names[1:]:
        if len(held) >= fraction * count:
            break
        held += groups[name]
    kept = set(held)
    return [number for number in range(count) if number not in kept], sorted(held)


def key(text: str) -> bytes:
    """What equal texts have in common, and no others."""
    return sha256(text.encode()).digest()
