"""Text classification: one label a row (binary or multi-class), or any number of them (multi-label)."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from shared.errors import Refused
from shared.learning.cells import words
from shared.learning.labels import in_order, label
from shared.learning.usage import pipeline
from shared.recipe import (
    Batch,
    Column,
    Finding,
    Item,
    Judged,
    Learner,
    Loss,
    Metric,
    Recipe,
    Sampling,
    Scores,
)
from shared.spec import LoraSpec, knob

TEXT_NAMES = ("text", "sentence", "content", "review", "question")
LABEL_NAMES = ("label", "labels", "category", "class", "intent", "topic")
MOST_LABELS = 10_000
MOST_SINGLE = 20  # findings about labels with a single row


class ClassificationSpec(LoraSpec):
    """Knobs of a classifier."""

    epochs: float = knob(5, gt=0, le=100, title="Epochs", help="Times that every row is seen.")
    batch_size: int = knob(16, ge=1, le=1024, title="Batch size", help="Rows in one optimizer step.")
    learning_rate: float = knob(
        2e-4, gt=0, le=1, title="Learning rate", help="Peak of the learning-rate schedule."
    )
    max_length: int = knob(
        256, ge=8, le=131_072, title="Longest row", help="Tokens; longer texts are cut at the end."
    )
    method: Literal["lora", "full"] = knob(
        "full", title="Weights", help="full trains every weight, lora a small adapter."
    )
    class_weights: bool = knob(
        False, title="Weigh rare labels up", help="A label counts by the inverse of its share.", advanced=True
    )


class Classification(Recipe):
    """A classification head on an encoder; every label is one of the dataset's own words."""

    name = "classification"
    title = "Text classification"
    summary = "Teach a model to sort texts into your labels: one label a text, or several."
    paper = "https://arxiv.org/abs/1810.04805"
    spec = ClassificationSpec
    columns = (
        Column("text", "what is classified"),
        Column("label", "its label, or a list of labels", kind="label", output=True),
    )
    example = [
        {"text": "The pasta was cold and bland.", "label": "bad"},
        {"text": "A wonderful evening, friendly people.", "label": "good"},
        {"text": "Nobody answered the phone for days.", "label": "bad"},
        {"text": "Fast, clean and cheap: recommended.", "label": "good"},
    ] * 4
    metrics = (
        Metric("f1", "F1 (macro)", "higher"),
        Metric("accuracy", "Accuracy", "higher"),
        Metric("precision", "Precision (macro)", "higher"),
        Metric("recall", "Recall (macro)", "higher"),
        Metric("loss", "Loss", "lower"),
    )
    head = "encoder"
    default_base_model = "minilm-l6-v2"
    place = 20
    needs_facts = True
    opens_with = "AutoModelForSequenceClassification"
    agrees = "{equal} of {count} texts get the same label, and no probability differs by more than {largest}."

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """A text column and a label column by their usual names."""
        names = list(columns)
        text = next((name for name in TEXT_NAMES if name in names), None)
        label = next((name for name in LABEL_NAMES if name in names), None)
        return {"text": text, "label": label} if text and label else None

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{"text": text, "label": label or list of labels}; a row to predict has no label."""
        mine = super().canonical(row, columns)
        known = {"text": words(mine.get("text"), "text")}
        return known | {"label": label(mine["label"])} if "label" in mine else known

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Mixed kinds of labels or one label alone are fatal; rows without text or label are left out."""
        seen: Counter[str] = Counter()
        kinds: dict[type, int] = {}
        for number, row in enumerate(rows, 1):
            try:
                mine = self.canonical(row, columns)
            except Refused as wrong:
                yield Finding(wrong.message, number, columns.get(wrong.param or ""))
                continue
            if not mine["text"].strip():
                yield Finding("The text is empty; the row is left out.", number, columns["text"], fatal=False)
            elif mine["label"] is None or mine["label"] == "":
                yield Finding(
                    "There is no label; the row is left out.", number, columns["label"], fatal=False
                )
            else:
                kinds.setdefault(type(mine["label"]), number)
                seen.update(labels_of(mine))
        yield from about_labels(seen, kinds, columns["label"])

    def facts(
        self, rows: Sequence[dict[str, Any]], spec: ClassificationSpec, earlier: dict[str, Any]
    ) -> dict[str, Any]:
        """{"labels": every label in order, "multi_label": bool, "weights": one for each label}."""
        usable = [row for row in rows if row["text"].strip() and row.get("label") not in (None, "")]
        counts = Counter(name for row in usable for name in labels_of(row))
        labels = in_order(counts)
        if len(labels) < 2:
            raise Refused("A classifier needs rows of at least two labels.", param="training_file")
        if len(labels) > MOST_LABELS:
            raise Refused(f"There are more than {MOST_LABELS} different labels.", param="training_file")
        mean = sum(counts.values()) / len(labels)
        weights = [round(mean / counts[name], 4) if spec.class_weights else 1.0 for name in labels]
        multi = any(isinstance(row["label"], list) for row in usable)
        return {"labels": labels, "multi_label": multi, "weights": weights}

    def split(
        self, rows: Sequence[dict[str, Any]], fraction: float, seed: int
    ) -> tuple[list[int], list[int]]:
        """Stratified: each label keeps its share in both parts, and at least one row to learn from."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            groups[min(labels_of(row), default="")].append(number)
        dice, held, owed = random.Random(seed), [], 0.0
        for name in sorted(groups):
            numbers = groups[name]
            dice.shuffle(numbers)
            owed += fraction * len(numbers)
            taken = max(0, min(round(owed), len(numbers) - 1))
            owed -= taken
            held += numbers[:taken]
        kept = set(held)
        return [number for number in range(len(rows)) if number not in kept], sorted(held)

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: ClassificationSpec) -> Any:
        """The base model's, with a padding token in any case."""
        tokenizer = super().load_tokenizer(folder, rows, spec)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def load_model(self, learner: Learner, folder: Any) -> Any:
        """The base model with a fresh classification head, or a classifier as it was saved; one of other labels, or
        of the same in another order, gets a new head too.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification

        labels = learner.facts["labels"]
        before = AutoConfig.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype="float32",
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: number for number, name in enumerate(labels)},
            problem_type=f"{'multi' if learner.facts['multi_label'] else 'single'}_label_classification",
            ignore_mismatched_sizes=True,  # another number of labels
        )
        if is_classifier(before) and before.id2label != model.config.id2label:
            draw_head_anew(model)
        model.config.pad_token_id = learner.tokenizer.pad_token_id
        return model

    def lora(self, learner: Learner) -> Any:
        """The adapter, and the head trained in full beside it."""
        config = super().lora(learner)
        config.task_type = "SEQ_CLS"
        return config

    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """`input_ids`, and `labels`: a class number, or a 0/1 list."""
        if not row["text"].strip():
            raise Refused("The text is empty.")
        if row["label"] is None or row["label"] == "":
            raise Refused("There is no label.")
        numbers = {name: number for number, name in enumerate(learner.facts["labels"])}
        wanted = labels_of(row)
        if strange := [name for name in wanted if name not in numbers]:
            raise Refused(f"The label «{strange[0]}» does not occur in the training rows.")
        item = self.encode_input(row, learner)
        if learner.facts["multi_label"]:
            return [item | {"labels": [int(name in wanted) for name in numbers]}]
        return [item | {"labels": numbers[wanted[0]]}]

    def length(self, item: Item) -> int:
        """Tokens of the text; the 0/1 list of labels costs nothing."""
        return len(item["input_ids"])

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """Cross-entropy, or binary cross-entropy over all labels, summed over rows."""
        each, _ = compared(learner, batch)
        return Loss(each.sum(), len(batch["labels"]))

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each row: its loss, the truth and the guess (a class number, or a 0/1 list)."""
        loss, logits = compared(learner, batch)
        guesses = (logits > 0).long() if learner.facts["multi_label"] else logits.argmax(-1)
        told = zip(loss.tolist(), batch["labels"].tolist(), guesses.tolist(), strict=True)
        return [{"loss": one, "truth": truth, "guess": guess} for one, truth, guess in told]

    def measure(self, found: list[Judged], facts: dict[str, Any]) -> Scores:
        """Macro precision, recall and F1; per label and the confusion matrix in detail."""
        import numpy as np

        from shared.learning.scores import multi_label, single_label

        truth, guess = (np.array([judged[name] for judged in found]) for name in ("truth", "guess"))
        measure = multi_label if facts["multi_label"] else single_label
        metrics, detail = measure(truth, guess, facts["labels"])
        loss = sum(judged["loss"] for judged in found) / len(found)
        return Scores(metrics | {"loss": loss}, detail)

    def row_score(self, judged: Judged, facts: dict[str, Any]) -> float:
        """The lower the loss, the better the row went."""
        return -judged["loss"]

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the classifier says of the rows."""
        items = [self.encode_input(row, learner) for row in rows]
        outputs = self.predict(learner, items, [])
        return [
            {
                "prompt": row["text"],
                "expected": ", ".join(labels_of(row)),
                "answer": ", ".join(output["labels"]) if "labels" in output else output["label"],
            }
            for row, output in zip(rows, outputs, strict=True)
        ]

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """The text's tokens. Raises Refused if there is none."""
        from shared.learning.language_model import room

        text = given.get("text")
        if not isinstance(text, str) or not text.strip():
            raise Refused("The input needs a «text» that is not empty.", param="text")
        longest = room(learner, learner.spec.max_length)
        encoded = learner.tokenizer(text, truncation=True, max_length=longest)
        return {"input_ids": encoded["input_ids"]}

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{label, scores {label: probability}}], or [{labels, scores}] where a text has several."""
        import torch

        names = learner.facts["labels"]
        batch = {name: value.to(learner.device) for name, value in self.collate(items, learner).items()}
        with torch.no_grad():
            logits = learner.model(**batch).logits.float()
        multi = learner.facts["multi_label"]
        shares = (torch.sigmoid(logits) if multi else torch.softmax(logits, -1)).tolist()
        outputs: list[dict[str, Any]] = []
        for row in shares:
            scores = {name: round(share, 6) for name, share in zip(names, row, strict=True)}
            if multi:
                outputs.append({"labels": [name for name in names if scores[name] > 0.5], "scores": scores})
            else:
                outputs.append({"label": max(scores, key=lambda name: scores[name]), "scores": scores})
        return outputs

    def opened(self, folder: Path, learner: Learner) -> Learner:
        """The classifier, and its labels as its own configuration names them."""
        known = super().opened(folder, learner)
        names = known.model.config.id2label
        return replace(known, facts=learner.facts | {"labels": [names[number] for number in sorted(names)]})

    def usage(self, learner: Learner) -> str:
        """Classify with the checkpoint by transformers alone."""
        return (
            pipeline(learner, "classify", "text-classification", self.opens_with, ", top_k=None")
            + 'print(classify("A text of yours"))\n'
        )


def is_classifier(config: Any) -> bool:
    """Whether the folder of that configuration holds a head."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def draw_head_anew(model: Any) -> None:
    """The layers that have a row for each label, as for a base model that has none."""
    for name, module in model.named_modules():
        inside = name.split(".")[0] == model.base_model_prefix
        if not inside and getattr(module, "out_features", None) == model.config.num_labels:
            module.weight.data.normal_(std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                module.bias.data.zero_()


def compared(learner: Learner, batch: Batch) -> tuple[Any, Any]:
    """(loss [rows], logits [rows, labels])."""
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
    logits = learner.model(**inputs).logits.float()
    weights = logits.new_tensor(learner.facts["weights"])
    if learner.facts["multi_label"]:
        truth = batch["labels"].to(logits.dtype)
        each = binary_cross_entropy_with_logits(logits, truth, pos_weight=weights, reduction="none")
        return each.mean(-1), logits
    return cross_entropy(logits, batch["labels"], weight=weights, reduction="none"), logits


def labels_of(row: dict[str, Any]) -> list[str]:
    """The labels of a canonical row as a list."""
    given = row.get("label")
    if isinstance(given, list):
        return given
    return [given] if given else []


def about_labels(seen: Counter[str], kinds: dict[type, int], column: str) -> Iterator[Finding]:
    """What is wrong with the label column as a whole."""
    if len(kinds) > 1:
        rows = " and ".join(str(row) for row in kinds.values())
        yield Finding(
            f"Some labels are lists and some are not (rows {rows}): make all of them lists.",
            column=column,
        )
    if not seen:
        yield Finding("No row has both a text and a label.", column=column)
    elif len(seen) == 1:
        yield Finding(
            f"Every label is «{next(iter(seen))}»: a classifier needs at least two labels.", column=column
        )
    for name in sorted(name for name, count in seen.items() if count == 1)[:MOST_SINGLE]:
        yield Finding(
            f"The label «{name}» has a single row: it cannot be both learned and checked.",
            column=column,
            fatal=False,
        )


recipe = Classification()
