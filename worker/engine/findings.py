"""What an evaluation has found so far, in shards: after a kill the next attempt goes on from there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shared.recipe import Item, Judged, add_up
from worker.engine.items import Items
from worker.engine.shards import Line, Shards


class Findings:
    """Lines {"of", "item", "row", "judged"} of items, {"of", "row", "answered"} and {"of", "row", "sample"} of rows.

    `of` is a hash of rows, code and tokenizer: what was found under another one does not count. Lines are noted
    in the order of the work, so that sums come out the same bit for bit whoever added them up.
    """

    def __init__(self, shards: Shards, of: str) -> None:
        self.shards, self.of = shards, of
        self.items: set[int] = set()  # that are judged
        self.judged: dict[int, Judged] = {}  # {place of the row: what was found of its items}
        self.answered: dict[int, Judged] = {}  # {place: what was found in what the model wrote}
        self.samples: dict[int, dict[str, Any]] = {}  # {place: prompt, expected and answer, or nothing}
        for line in shards.lines():
            if line["of"] == of:
                self.note(line)

    def note(self, line: Line) -> None:
        """What a line says."""
        if "judged" in line:
            self.items.add(line["item"])
            add_up(self.judged, [line], [line["judged"]])
        elif "answered" in line:
            self.answered[line["row"]] = line["answered"]
        else:
            self.samples[line["row"]] = line["sample"]

    def add(self, lines: Iterable[Line]) -> None:
        """More was found; what is added together is kept together."""
        fresh = [{"of": self.of} | line for line in lines]
        for line in self.shards.add(fresh):
            self.note(line)


class ByRow(Mapping[int, Item]):
    """{place of a row: its item}, of items that stand in flat arrays."""

    def __init__(self, every: Items, order: Sequence[int], places: Mapping[int, int]) -> None:
        self.every = every
        self.at = {places[every.rows[number]]: number for number in order}

    def __getitem__(self, place: int) -> Item:
        return self.every[self.at[place]] | {"row": place}

    def __iter__(self) -> Iterator[int]:
        return iter(self.at)

    def __len__(self) -> int:
        return len(self.at)
