"""Text to text by an encoder-decoder: translation, summaries, transliteration, inflection …"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from shared.errors import Refused
from shared.learning.cells import words
from shared.learning.usage import opened
from shared.learning.writer import Writer
from shared.recipe import (
    Batch,
    Column,
    Finding,
    Item,
    Judged,
    Learner,
    Loss,
    Metric,
    Sampling,
    Scores,
)
from shared.spec import LoraSpec, PretrainSpec, knob

KNOWN_SHAPES = (
    ("source", "target"),
    ("input", "output"),
    ("document", "summary"),
    ("article", "highlights"),
    ("text", "summary"),
    ("dialogue", "summary"),
    ("translation", "translation"),  # an object with a text in each of two languages
)


class Seq2SeqSpec(PretrainSpec, LoraSpec):
    """Knobs of text to text. The defaults are those of a small model from scratch."""

    epochs: float = knob(
        30, gt=0, le=1000, title="Epochs", help="Times that every row is seen; 3 for a pretrained model."
    )
    batch_size: int = knob(16, ge=1, le=1024, title="Batch size", help="Rows in one optimizer step.")
    max_length: int = knob(
        256,
        ge=8,
        le=131_072,
        title="Longest text",
        help="Tokens; sources and targets that are longer are cut at the end.",
    )
    method: Literal["lora", "full"] = knob(
        "full",
        title="Weights",
        help="full trains every weight, lora a small adapter on a pretrained model.",
    )
    tokenizer: Literal["bpe", "characters", "bytes"] = knob(
        "characters",
        title="Tokenizer",
        help="How text is cut into tokens: characters for words, bpe for long texts."
        " Only read from scratch; a base model brings its own.",
        advanced=True,
    )
    beams: int = knob(
        1,
        ge=1,
        le=16,
        title="Beams",
        help="Of answers, where a request names none: more than one searches for the likeliest text.",
        advanced=True,
    )
    answers: int = knob(
        128,
        ge=1,
        le=10_000,
        title="Answers in an evaluation",
        help="Held-out rows, evenly spread, that a text is written for; exact match, chrF, BLEU and ROUGE-L are over these.",
        advanced=True,
    )


class Seq2Seq(Writer):
    """T5 from scratch, or any encoder-decoder from where it stands; loss on the target's tokens."""

    name = "seq2seq"
    title = "Text to text"
    summary = "Teach a model to turn one text into another: translate, summarise, transliterate, inflect."
    paper = "https://arxiv.org/abs/1910.10683"
    spec = Seq2SeqSpec
    columns = (
        Column("source", "the text that is given"),
        Column("target", "the text that it is to become", output=True),
    )
    example = [
        {"source": "good day", "target": "guten Tag"},
        {"source": "good night", "target": "gute Nacht"},
        {"source": "thank you", "target": "danke"},
        {"source": "yes please", "target": "ja bitte"},
    ] * 4
    metrics = (
        Metric("loss", "Loss", "lower"),
        Metric("exact_match", "Exact match", "higher"),
        Metric("chrf", "chrF", "higher"),
        Metric("bleu", "BLEU", "higher"),
        Metric("rouge_l", "ROUGE-L", "higher"),
    )
    head = "seq2seq"
    opens_with = "AutoModelForSeq2SeqLM"
    default_base_model = "scratch/t5-tiny"
    place = 40
    samples_with = ("max_tokens", "temperature", "top_p", "top_k", "beams", "seed", "stop")

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """Sources and targets by their usual names, or an object with a text in each of two languages."""
        names = set(columns)
        if "instruction" in names:  # rows of instructions call their context the input
            return None
        pairs = (pair for pair in KNOWN_SHAPES if names.issuperset(pair))
        return next(({"source": source, "target": target} for source, target in pairs), None)

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{"source": text, "target": text}; a row to predict has no target. Raises Refused."""
        mine = super().canonical(row, columns)
        if columns.get("source") == columns.get("target") or isinstance(mine.get("source"), dict):
            both = dict(zip(("source", "target"), languages(mine.get("source")), strict=True))
            mine = {name: both[name] for name in mine}
        return {name: words(value, name) for name, value in mine.items()}

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Cells that are no text are fatal, and so is one target for all; rows without text are left out."""
        usable, sources, targets, number = 0, set(), set(), 0
        for number, row in enumerate(rows, 1):
            try:
                mine = self.canonical(row, columns)
            except Refused as wrong:
                yield Finding(wrong.message, number, columns.get(wrong.param or ""))
                continue
            if empty := missing(mine):
                yield Finding(
                    f"The {empty} is empty; the row is left out.", number, columns[empty], fatal=False
                )
                continue
            usable += 1
            if len(targets) < 2:
                sources.add(mine["source"])
                targets.add(mine["target"])
        if not usable:
            yield Finding("No row has both a source and a target." if number else "There are no rows.")
        elif len(targets) == 1 and len(sources) > 1:
            yield Finding(
                f"Every target is «{next(iter(targets))[:80]}»: there is nothing to learn.",
                column=columns["target"],
            )

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: Seq2SeqSpec) -> Any:
        """The base model's; it knows how many positions the model has."""
        tokenizer = super().load_tokenizer(folder, rows, spec)
        config = folder / "config.json"
        room = json.loads(config.read_text()).get("max_position_embeddings") if config.exists() else None
        if room:
            tokenizer.model_max_length = min(tokenizer.model_max_length, room)
        return tokenizer

    def train_tokenizer(self, rows: Sequence[dict[str, Any]], spec: Seq2SeqSpec) -> Any:
        """Learned from sources and targets; it ends every text with `</s>`, as T5's does."""
        from tokenizers.processors import TemplateProcessing

        tokenizer = super().train_tokenizer(rows, spec)
        end = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end[0]}", special_tokens=[end]
        )
        return tokenizer

    def load_model(self, learner: Learner, folder: Any) -> Any:
        """An encoder-decoder in float32."""
        from shared.learning.encoder_decoder import load

        return load(folder)

    def build_model(self, learner: Learner) -> Any:
        """A new T5 of the preset's size."""
        from shared.learning.encoder_decoder import build

        return build(learner.preset, learner.tokenizer)

    def lora(self, learner: Learner) -> Any:
        """The adapter of an encoder-decoder."""
        config = super().lora(learner)
        config.task_type = "SEQ_2_SEQ_LM"
        return config

    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """`input_ids` of the source and `labels` of the target, each with the token that ends it."""
        if empty := missing(row):
            raise Refused(f"The {empty} is empty.", param=empty)
        source = self.encode_input(row, learner)["input_ids"]
        return [{"input_ids": source, "labels": tokens(row["target"], learner)}]

    def length(self, item: Item) -> int:
        """Tokens of the source and of the target."""
        return len(item["input_ids"]) + len(item.get("labels", ()))

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """Padded sources and targets, and where the targets' tokens are."""
        from shared.learning.encoder_decoder import collate

        return collate(items, learner)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """Cross-entropy of the targets' tokens."""
        from shared.learning.language_model import answer_loss

        return Loss(answer_loss(learner.model, batch), len(batch["targets"]))

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each row: its summed loss and how many tokens the target has."""
        from shared.learning.language_model import answer_sums

        return [
            {name: sums[name] for name in ("loss", "weight")} for sums in answer_sums(learner.model, batch)
        ]

    def asks(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[int]:
        """At most `spec.answers` rows."""
        return spread(list(range(len(rows))), learner.spec.answers)

    def answered(
        self,
        learner: Learner,
        rows: Sequence[dict[str, Any]],
        items: Mapping[int, Item],
        places: Sequence[int],
    ) -> dict[int, Judged]:
        """{place: {expected, written}}."""
        asked = [items[place] for place in places]
        ways = [Sampling(max_tokens=2 * len(item["labels"]) + 8) for item in asked]
        answers = self.predict(learner, asked, ways)
        return {
            place: {"expected": rows[place]["target"], "written": answer["text"]}
            for place, answer in zip(places, answers, strict=True)
        }

    def measure(self, found: list[Judged], facts: dict[str, Any]) -> Scores:
        """Loss is the mean over all target tokens; the other metrics compare what was written."""
        from shared.learning.likeness import likeness

        loss = sum(judged["loss"] for judged in found) / max(sum(judged["weight"] for judged in found), 1)
        written = [(one["expected"], one["written"]) for one in found if "written" in one]
        return Scores({"loss": loss} | likeness(written))

    def row_score(self, judged: Judged, facts: dict[str, Any]) -> float:
        """The row's own loss."""
        return judged["loss"] / max(judged["weight"], 1)

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the model writes for the rows."""
        items = [self.encode_input(row, learner) for row in rows]
        ways = [Sampling(max_tokens=2 * len(tokens(row["target"], learner)) + 8) for row in rows]
        answers = self.predict(learner, items, ways)
        return [
            {"prompt": row["source"], "expected": row["target"], "answer": answer["text"]}
            for row, answer in zip(rows, answers, strict=True)
        ]

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """The source's tokens. Raises Refused if there is none."""
        source = given.get("source")
        if not isinstance(source, str) or not source.strip():
            raise Refused("The input needs a «source» that is not empty.", param="source")
        return {"input_ids": tokens(source, learner)}

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{text}]; greedy answers search with the spec's beams where the request names none."""
        from shared.learning.encoder_decoder import write

        beams = learner.spec.beams
        ways = [
            replace(way, beams=beams) if way.beams == 1 and not way.temperature else way for way in sampling
        ]
        texts = write(learner.model, learner.tokenizer, [item["input_ids"] for item in items], ways)
        return [{"text": text} for text in texts]

    def usage(self, learner: Learner) -> str:
        """Ask the checkpoint by transformers alone; an adapter by peft."""
        return (
            opened(learner, self.opens_with) + 'source = tokenizer("A text of yours", return_tensors="pt")\n'
            "target = model.generate(**source, max_new_tokens=128)\n"
            "print(tokenizer.decode(target[0], skip_special_tokens=True))\n"
        )


def languages(cell: Any) -> list[Any]:
    """The two texts of an object such as {"en": …, "de": …}, or of the same as JSON text. Raises Refused."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            cell = None
    if not isinstance(cell, dict) or len(cell) != 2:
        raise Refused(
            "A translation must be an object with a text in each of two languages, the source first.",
            param="source",
        )
    return list(cell.values())


def missing(row: dict[str, Any]) -> str | None:
    """Which side of the row has no words, if any."""
    return next((name for name in ("source", "target") if not row[name].strip()), None)


def tokens(text: str, learner: Learner) -> list[int]:
    """A text's tokens with the one that ends it, cut where it is too long."""
    longest = min(learner.spec.max_length, learner.tokenizer.model_max_length)
    return learner.tokenizer(text, truncation=True, max_length=longest)["input_ids"]


def spread(places: list[int], most: int) -> list[int]:
    """At most `most` of the places, evenly spread."""
    if len(places) <= most:
        return places
    return [places[number * len(places) // most] for number in range(most)]


recipe = Seq2Seq()
