"""What recipes that generate pictures and sounds have in common; they differ in how a cell becomes an array."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from shared.errors import Refused
from shared.learning import conditions
from shared.recipe import (
    PROBES,
    Agreement,
    Batch,
    Finding,
    Item,
    Judged,
    Learner,
    Loss,
    Media,
    Metric,
    Recipe,
    Sampling,
)

CAPTIONS = ("one", "two", "a")
ASKED = 64  # examples that an evaluation generates
KNOWN = 2048  # real ones that the classifier learns from


class Generator(Recipe):
    """Learns to make examples of a label or caption, by diffusion.

    A canonical row is {cell: bytes} with either a `label` or a `caption`; an item holds `pixels`, uint8
    [channels, side, side], and either `label`, its number, or `input_ids`, the caption's tokens.
    """

    cell: ClassVar[str]  # the column of what is generated
    metrics = (
        Metric("loss", "Loss", "lower"),
        Metric("accuracy", "Named as asked", "higher"),
    )
    head = "diffusion"
    library = "diffusers"
    default_base_model = "scratch/dit-tiny"
    needs_facts = True
    samples_with = ("seed", "guidance")
    agrees = (
        "{equal} of {count} examples made from the same noise are the same to the bit, and no level differs by more"
        " than {largest} of 255."
    )

    # What a recipe adds.
    @abstractmethod
    def form(self, content: bytes) -> Any:
        """What all cells must have in common (a size, a sample rate), read from the cell's head. Raises Refused."""

    @abstractmethod
    def whole(self, content: bytes) -> None:
        """Raises Refused for a cell that cannot be read to its end."""

    @abstractmethod
    def differs(self, form: Any, usual: Any) -> str:
        """A sentence on a cell whose form is not the usual one, and the knob that makes them alike."""

    @abstractmethod
    def frame(self, contents: Iterable[bytes], spec: Any, earlier: dict[str, Any]) -> dict[str, Any]:
        """Facts: `channels`, `side` and `patch` of the arrays, and what `array` and `media` need. Raises Refused."""

    @abstractmethod
    def array(self, content: bytes, learner: Learner) -> Any:
        """A cell as uint8 [channels, side, side]. Raises Refused."""

    @abstractmethod
    def media(self, levels: Any, facts: dict[str, Any]) -> Media:
        """uint8 [channels, side, side] as a file."""

    @abstractmethod
    def finish(self, facts: dict[str, Any]) -> tuple[str, str]:
        """(import lines, lines) of Python that write what a sampler made, `levels`, to a file."""

    # Data.
    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """The cell's column, and one of captions or labels."""
        names = set(columns)
        said = next((name for name in conditions.NAMES if name in names), None)
        return {self.cell: self.cell, said: said} if said and self.cell in names else None

    def lacks(self, columns: dict[str, str]) -> str | None:
        """The cell, and either labels or captions."""
        if self.cell in columns and set(conditions.NAMES) & columns.keys():
            return None
        return f"{self.title} needs a column «{self.cell}», and one for «label» or «caption»."

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{cell: bytes, "label" or "caption": text}; a row to predict has no cell. Raises Refused."""
        mine = super().canonical(row, columns)
        said = conditions.known_as(columns)
        known = {said: conditions.words(mine[said], said)}
        if self.cell in mine:
            if mine[self.cell] is not None and not isinstance(mine[self.cell], bytes):
                raise Refused(
                    f"«{columns[self.cell]}» must hold files, not text or numbers.", param=self.cell
                )
            known[self.cell] = mine[self.cell] or b""
        return known

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Rows that cannot be read are left out; so are those of another form than most, unless a knob is set."""
        said, seen, number = conditions.known_as(columns), Counter[str](), 0
        forms: dict[Any, list[int]] = {}
        for number, row in enumerate(rows, 1):
            try:
                mine = self.canonical(row, columns)
            except Refused as wrong:
                yield Finding(wrong.message, number, columns.get(wrong.param or ""))
                continue
            try:
                require_said(mine, said)
                form = self.form(mine[self.cell])
                self.whole(mine[self.cell])
            except Refused as wrong:
                column = columns.get(wrong.param or self.cell)
                yield Finding(f"{wrong.message} The row is left out.", number, column, fatal=False)
            else:
                seen[mine[said]] += 1
                forms.setdefault(form, []).append(number)
        if not seen:
            yield Finding("No row can be used." if number else "There are no rows.", column=columns[said])
        yield from self.of_another_form(forms, columns[self.cell])
        yield from conditions.findings(seen, said, columns[said])

    def of_another_form(self, forms: dict[Any, list[int]], column: str) -> Iterator[Finding]:
        """The rows that are not like most."""
        usual = most_frequent({form: len(rows) for form, rows in forms.items()})
        for form, numbers in forms.items():
            for number in numbers if form != usual else ():
                yield Finding(self.differs(form, usual), number, column, fatal=False)

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """What is asked for."""
        return {name: row[name] for name in conditions.NAMES if name in row}

    def facts(self, rows: Sequence[dict[str, Any]], spec: Any, earlier: dict[str, Any]) -> dict[str, Any]:
        """The labels (None for captions), and the arrays' shape."""
        if earlier and earlier.get("cell") != self.cell:
            raise Refused(f"The checkpoint was not trained by {self.title}.", param="model")
        captions = "caption" in rows[0] if len(rows) else False
        said = [said_by(row) if self.usable(row) else None for row in rows]
        known = conditions.facts([one for one in said if one is not None], captions, earlier)
        cells = (row[self.cell] for row, one in zip(rows, said, strict=True) if one is not None)
        shape = self.frame(cells, spec, earlier)
        return {"cell": self.cell} | known | shape

    def usable(self, row: dict[str, Any]) -> bool:
        """Whether a row says what it shows and its cell can be told."""
        try:
            require_said(row, "caption" if "caption" in row else "label")
            self.form(row[self.cell])
        except Refused:
            return False
        return True

    # Building.
    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: Any) -> Any:
        """That of the captions; None where there are labels."""
        known = (folder / "tokenizer_config.json").exists()
        return super().load_tokenizer(folder, rows, spec) if known else None

    def train_tokenizer(self, rows: Sequence[dict[str, Any]], spec: Any) -> Any:  # noqa: ARG002 - has no knobs of its own
        """That of the captions; None where there are labels."""
        from shared.learning.tokenizers import train
        from shared.spec import ScratchSpec

        return train(self.texts(rows), ScratchSpec()) if "caption" in rows[0] else None

    def texts(self, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
        """The captions."""
        for row in rows:
            yield row["caption"]

    def build_model(self, learner: Learner) -> Any:
        """A diffusion transformer."""
        from shared.learning import diffusion

        return diffusion.build(learner)

    def load_model(self, learner: Learner, folder: Any) -> Any:
        """The diffusion transformer of a checkpoint."""
        from shared.learning import diffusion

        return diffusion.load(learner, folder)

    def save(self, learner: Learner, weights: dict[str, Any], folder: Any) -> None:
        """As plain diffusers loads it."""
        from shared.learning import diffusion

        diffusion.save(learner, weights, folder)

    # Training.
    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """`pixels`, and what they show."""
        said = "label" if learner.tokenizer is None else "caption"
        require_said(row, said)
        return [self.asked(row, learner) | {"pixels": self.array(row[self.cell], learner)}]

    def asked(self, given: dict[str, Any], learner: Learner) -> Item:
        """A label or caption as numbers, and what an example costs in tokens. Raises Refused."""
        facts = learner.facts
        item: Item = {"tokens": (facts["side"] // facts["patch"]) ** 2}
        if learner.tokenizer is None:
            return item | {"label": conditions.number(given, facts["labels"])}
        from shared.learning.diffusion import LONGEST_CAPTION

        text = conditions.words(given.get("caption"), "caption")
        if not text:
            raise Refused("The input needs a «caption».", param="caption")
        ids = learner.tokenizer(text, add_special_tokens=False)["input_ids"][: LONGEST_CAPTION - 2]
        return item | {"input_ids": [learner.tokenizer.bos_token_id, *ids, learner.tokenizer.eos_token_id]}

    def length(self, item: Item) -> int:
        """The patches of an example."""
        return item["tokens"]

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """Examples, noise and times; each drawn by the step and the row."""
        from shared.learning import diffusion

        return diffusion.collate(items, learner)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """The squared error of the velocity, summed over rows."""
        from shared.learning import diffusion

        return Loss(diffusion.errors(learner, batch).sum(), len(batch["times"]))

    # Judging and answering.
    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each row its loss; nothing was asked for yet."""
        from shared.learning import diffusion

        none = {"weight": 1, "named": 0.0, "asked": 0}
        return [{"loss": error} | none for error in diffusion.errors(learner, batch).tolist()]

    def asks(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[int]:  # noqa: ARG002 - a hook's names
        """Up to 64 rows, evenly spread."""
        return spread(len(rows), ASKED)

    def answered(
        self,
        learner: Learner,
        rows: Sequence[dict[str, Any]],
        items: Mapping[int, Item],
        places: Sequence[int],
    ) -> dict[int, Judged]:
        """Of each row the share of its words that a classifier of real examples names in a generated one.

        The classifier learns from the held-out rows (from 2,048 of them at most), which the generator has never seen.
        """
        from shared.learning.recognition import named_as_asked

        made = self.made(learner, [items[place] | {"seed": place} for place in places])
        known = spread(len(rows), KNOWN)
        shows, wanted = ([words_of(rows[place]) for place in part] for part in (known, places))
        shares = named_as_asked([items[place]["pixels"] for place in known], shows, made, wanted)
        told = zip(places, shares, strict=True)
        return {place: {"named": share, "asked": 1} for place, share in told if share is not None}

    def scored(self, sums: Judged) -> dict[str, float]:
        """The loss is a mean over rows, the accuracy over those that were asked for."""
        return {"loss": sums["loss"] / sums["weight"], "accuracy": sums["named"] / max(sums["asked"], 1)}

    def made(self, learner: Learner, items: list[Item], guidance: list[float] | None = None) -> list[Any]:
        """A generated example for each item, uint8 [channels, side, side]."""
        from shared.learning import diffusion

        found = diffusion.sample(learner, items, guidance or [learner.spec.guidance] * len(items))
        return [((one + 1) * 127.5).round().clamp(0, 255).byte().numpy() for one in found]

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Examples of what the rows show, beside the real ones."""
        items = [self.asked(row, learner) | {"seed": number} for number, row in enumerate(rows)]
        return [
            {
                "prompt": said_by(row),
                "expected": self.media(self.array(row[self.cell], learner), learner.facts),
                "answer": self.media(levels, learner.facts),
            }
            for row, levels in zip(rows, self.made(learner, items), strict=True)
        ]

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """What is asked for, and the seed of the noise if there is one. Raises Refused."""
        seed = given.get("seed")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
            raise Refused("The «seed» is a whole number from 0 on.", param="seed")
        return self.asked(given, learner) | {"seed": seed}

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """A file for each item."""
        own = learner.spec.guidance
        ways = [own if way.guidance is None else way.guidance for way in sampling]
        seeds = [
            way.seed or 0 if item["seed"] is None else item["seed"]
            for item, way in zip(items, sampling, strict=True)
        ]
        drawn = [item | {"seed": seed} for item, seed in zip(items, seeds, strict=True)]
        return [self.media(levels, learner.facts) for levels in self.made(learner, drawn, ways)]

    def usage(self, learner: Learner) -> str:
        """A sampler on plain diffusers."""
        from shared.learning.sampler import sampler

        return sampler(learner, *self.finish(learner.facts))

    # Exporting.
    def probes(self, learner: Learner) -> list[dict[str, Any]]:
        """Some labels, or captions; each with a seed."""
        labels = learner.facts["labels"]
        asked = [{"label": one} for one in labels[:PROBES]] if labels else [{"caption": c} for c in CAPTIONS]
        return [one | {"seed": seed} for seed, one in enumerate(asked)]

    def opened(self, folder: Path, learner: Learner) -> Learner:
        """By plain diffusers, and by transformers what reads captions."""
        tokenizer = self.load_tokenizer(folder, [], learner.spec)
        return replace(learner, tokenizer=tokenizer, model=self.load_model(learner, folder).eval())

    def shown(self, learner: Learner, probes: list[dict[str, Any]]) -> list[Any]:
        """Of each example its levels, and their digest."""
        made = self.made(learner, [self.encode_input(probe, learner) for probe in probes])
        return [
            {
                "digest": sha256(levels.tobytes()).hexdigest(),
                "levels": levels.astype(float).flatten().tolist(),
            }
            for levels in made
        ]

    def agreement(self, trained: list[Any], export: list[Any]) -> Agreement:
        """Alike but for a level, which rounding may tip."""
        from shared.learning.agreement import of_answers

        return of_answers(trained, export, self.agrees, most=1.0)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return [n * count // most for n in range(most)] if count > most else list(range(count))


def said_by(row: dict[str, Any]) -> str:
    """The caption or label of a canonical row."""
    return row["caption"] if "caption" in row else row["label"]


def words_of(row: dict[str, Any]) -> list[str]:
    """A label is one word, a caption several."""
    return row["caption"].lower().split() if "caption" in row else [row["label"]]


def require_said(row: dict[str, Any], name: str) -> None:
    """Refuses a row that does not say what it shows."""
    if not row.get(name):
        raise Refused(f"There is no {name}.", param=name)


def most_frequent(counts: dict[Any, int]) -> Any:
    """The commonest; of equals the first. None where there is none."""
    return max(counts, key=lambda one: counts[one], default=None)
