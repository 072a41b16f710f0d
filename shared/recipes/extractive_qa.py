"""Extractive question answering: the answer is a stretch of a given text, its start and end are found by an encoder.

After Devlin et al. 2018: question and context go in as one sequence, two logits a token say how likely the
answer starts and ends there, and [CLS] stands for «there is no answer». A long context is read in
overlapping windows; the best stretch over all of them is the answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import Refused
from shared.learning import groups
from shared.learning.answers import WANTED, placed, several, short, single
from shared.learning.cells import text
from shared.learning.usage import opened
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
)
from shared.spec import LoraSpec, knob

if TYPE_CHECKING:
    from shared.learning.spans import Reading, Window

QUESTION_NAMES = ("question", "query")
CONTEXT_NAMES = ("context", "passage", "paragraph")
ANSWER_NAMES = ("answer", "answer_text")
LEFT_OUT = ("empty", "ambiguous")  # codes of refusals that leave a row out and stop nothing
N_BEST = 20  # stretches that are compared
AT_ONCE = 16  # windows in one batch of predictions
CHARACTERS = 4  # in a token, about
FEW_CONTEXTS = 10  # with fewer, single questions are held out
FED = ("input_ids", "token_type_ids", "null", "start_position", "end_position")


class ExtractiveQASpec(LoraSpec):
    """Knobs of extractive question answering."""

    learning_rate: float = knob(
        1e-4, gt=0, le=1, title="Learning rate", help="Peak of the learning-rate schedule."
    )
    max_length: int = knob(
        384,
        ge=32,
        le=131_072,
        title="Window",
        help="Tokens of question and context together; a longer context is read in several windows.",
    )
    stride: int = knob(
        128,
        ge=0,
        le=65_536,
        title="Overlap",
        help="Tokens that neighbouring windows share; at most half of a window's context.",
        advanced=True,
    )
    max_answer_length: int = knob(
        30, ge=1, le=1024, title="Longest answer", help="Tokens of an answer.", advanced=True
    )
    no_answer_threshold: float = knob(
        0.0,
        ge=-100,
        le=100,
        title="No-answer threshold",
        help="By how much «no answer» must score above the best answer; only read where questions without"
        " an answer were learned.",
        advanced=True,
    )
    method: Literal["lora", "full"] = knob(
        "full", title="Weights", help="full trains every weight, lora a small adapter."
    )


class ExtractiveQA(Recipe):
    """Start and end logits on an encoder, as in SQuAD."""

    name = "extractive_qa"
    title = "Question answering"
    summary = "Teach a model to find the answer to a question in a given text, or to say that there is none."
    paper = "https://arxiv.org/abs/1810.04805"
    spec = ExtractiveQASpec
    columns = (
        Column("question", "what is asked"),
        Column("context", "the text in which the answer stands"),
        Column(
            "answers",
            f"accepted answers as {WANTED}, characters counted from 0; empty lists: there is no answer",
            kind="answers",
            output=True,
            required=False,
        ),
        Column("answer", "a single answer, where there is no «answers» column", output=True, required=False),
        Column(
            "answer_start",
            "where the single answer starts, in characters from 0",
            output=True,
            required=False,
        ),
        Column("id", "an identifier of the question", required=False),
    )
    example = [
        {
            "question": "Where was Marie Curie born?",
            "context": "Marie Curie was born in Warsaw. She moved to Paris at 24.",
            "answers": {"text": ["Warsaw", "in Warsaw"], "answer_start": [24, 21]},
        },
        {
            "question": "What did Marie Curie like to eat?",
            "context": "Marie Curie was born in Warsaw. She moved to Paris at 24.",
            "answers": {"text": [], "answer_start": []},
        },
        {
            "question": "Who wrote Emma?",
            "context": "Emma is a novel written by Jane Austen.",
            "answers": {"text": ["Jane Austen"], "answer_start": [27]},
        },
    ] * 6
    metrics = (
        Metric("f1", "F1 of words", "higher"),
        Metric("exact_match", "Exact match", "higher"),
        Metric("loss", "Loss", "lower"),
    )
    head = "encoder"
    opens_with = "AutoModelForQuestionAnswering"
    agrees = "{equal} of {count} questions get the same answer, and no score differs by more than {largest}."
    default_base_model = "minilm-l6-v2"
    place = 30
    needs_facts = True

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """SQuAD's columns, or a question, a context and a single answer with or without its start."""
        names = set(columns)
        found = {"question": QUESTION_NAMES, "context": CONTEXT_NAMES, "id": ("id",)}
        if "answers" in names:
            found["answers"] = ("answers",)
        else:
            found |= {"answer": ANSWER_NAMES, "answer_start": ("answer_start",)}
        known = {mine: name for mine, usual in found.items() for name in [first(usual, names)] if name}
        return None if self.lacks(known) else known

    def lacks(self, columns: dict[str, str]) -> str | None:
        """A question, a context, and answers in one of two shapes."""
        if lacking := super().lacks(columns):
            return lacking
        if "answers" in columns or "answer" in columns:
            return None
        return f"{self.title} needs a column of «answers» ({WANTED}), or one of single answers («answer»)."

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{question, context, id, answers {text: [], answer_start: []}}; a row to predict has no answers.

        Raises Refused for what is no text, and for answers that do not stand in the context.
        """
        mine = super().canonical(row, columns)
        known: dict[str, Any] = {name: words(mine, name) for name in ("question", "context")}
        if mine.get("id") is not None:
            known["id"] = str(mine["id"])
        if "answers" in mine:
            known["answers"] = placed(*several(mine["answers"]), known["context"], "answers")
        elif "answer" in mine:
            known["answers"] = placed(*single(mine), known["context"], "answer")
        return known

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Answers that are not where they are said to be are fatal; rows without words are left out."""
        seen: set[str] = set()
        number = usable = 0
        for number, row in enumerate(rows, 1):
            try:
                mine = self.canonical(row, columns)
            except Refused as wrong:
                fatal = wrong.code not in LEFT_OUT
                said = wrong.message if fatal else f"{wrong.message.removesuffix('.')}; the row is left out."
                yield Finding(said, number, columns.get(wrong.param or ""), fatal)
                continue
            usable += 1
            if (name := mine.get("id")) in seen:
                said = f"An earlier row has the id «{short(name)}» too. Give every question an id of its own."
                yield Finding(said, number, columns["id"])
            elif name is not None:
                seen.add(name)
        if not usable:
            said = "No row has a question, a context and an answer that stands in it."
            yield Finding(said if number else "There are no rows.")

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """Question and context."""
        return {name: row[name] for name in ("question", "context")}

    def examples(self, rows: int, characters: int, spec: ExtractiveQASpec) -> int:
        """Windows: each but a context's first brings that many new tokens."""
        tokens, new = characters / CHARACTERS, spec.max_length - min(spec.stride, spec.max_length // 2)
        return rows + max(0, round((tokens - rows * spec.max_length) / new))

    def facts(
        self, rows: Sequence[dict[str, Any]], spec: ExtractiveQASpec, earlier: dict[str, Any]
    ) -> dict[str, Any]:
        """{"unanswerable": whether questions without an answer were learned; only then does it say so}."""
        learned = earlier.get("unanswerable", False)
        return {"unanswerable": learned or any(not row["answers"]["text"] for row in rows)}

    def split(
        self, rows: Sequence[dict[str, Any]], fraction: float, seed: int
    ) -> tuple[list[int], list[int]]:
        """Whole contexts are held out, so that no text is judged that was learned; where there are only a
        few contexts, single questions.
        """
        contexts = [groups.key(row["context"]) for row in rows]
        if len(set(contexts)) < FEW_CONTEXTS:
            return super().split(rows, fraction, seed)
        return groups.held_out(contexts, fraction, seed)

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: ExtractiveQASpec) -> Any:
        """The base model's, with a padding token. Raises Refused where it cannot tell where its tokens stand."""
        tokenizer = super().load_tokenizer(folder, rows, spec)
        if not tokenizer.is_fast:
            raise Refused("This base model's tokenizer cannot say where its tokens stand.", param="model")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def load_model(self, learner: Learner, folder: Any) -> Any:
        """The base model with a fresh layer for start and end, or a model as it was saved."""
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering.from_pretrained(folder, dtype="float32")

    def lora(self, learner: Learner) -> Any:
        """The adapter, and the layer for start and end trained in full beside it."""
        config = super().lora(learner)
        config.task_type = "QUESTION_ANS"
        config.exclude_modules = ["qa_outputs"]
        return config

    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """A window each, with the places of the first answer's ends: [CLS] where it is cut off or missing."""
        from shared.learning.spans import target

        span = None
        if row["answers"]["text"]:
            answer, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
            start += len(answer) - len(answer.lstrip())
            span = (start, start + len(answer.strip()))
        return [window | target(window, span) for window in read_in(row, learner)]

    def length(self, item: Item) -> int:
        """Tokens of a window, or of all windows of a prediction."""
        return sum(len(window["input_ids"]) for window in item.get("windows", [item]))

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """Windows padded to the longest; `inside` is 1 on tokens of the context."""
        from shared.learning.batch import pad

        fed = [
            {name: item[name] for name in FED if name in item}
            | {"inside": [int(start >= 0) for start in item["starts"]]}
            for item in items
        ]
        return pad(fed, learner.tokenizer)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """Mean of the two cross-entropies over a window's tokens, summed over windows."""
        from shared.learning import spans

        each = spans.cross_entropies(*spans.logits(learner.model, batch), batch)
        return Loss(each.sum(), len(each))

    def judged_items(self, learner: Learner, items: list[Item], batch: Batch) -> list[Judged]:
        """Of each window: its loss, and what was read in it."""
        from shared.learning import spans

        starts, ends = spans.logits(learner.model, batch)
        losses = spans.cross_entropies(starts, ends, batch).tolist()
        read = spans.read(items, starts, ends, batch, learner.spec.max_answer_length, N_BEST)
        told = zip(losses, read, strict=True)
        return [{"loss": loss, "windows": 1, "readings": [reading]} for loss, reading in told]

    def settled(
        self, learner: Learner, rows: Sequence[dict[str, Any]], found: dict[int, Judged]
    ) -> dict[int, Judged]:
        """Of each row: loss and number of its windows, F1 and exact match of the best stretch over them."""
        from shared.learning import answers, spans

        settled: dict[int, Judged] = {}
        for place, judged in found.items():
            row, readings = rows[place], [spans.reading(*told) for told in judged["readings"]]
            accepted, guess = row["answers"]["text"], decided(readings, row["context"], learner)["answer"]
            settled[place] = {
                "loss": judged["loss"],
                "windows": judged["windows"],
                "f1": answers.f1(guess, accepted),
                "exact_match": answers.exact_match(guess, accepted),
                "weight": 1,
            }
        return settled

    def scored(self, sums: dict[str, float]) -> dict[str, float]:
        """F1 and exact match are means over rows, the loss over windows."""
        rows = max(sums["weight"], 1)
        return {
            "f1": sums["f1"] / rows,
            "exact_match": sums["exact_match"] / rows,
            "loss": sums["loss"] / max(sums["windows"], 1),
        }

    def row_score(self, judged: Judged, facts: dict[str, Any]) -> float:
        """F1 of the row's answer."""
        return judged["f1"]

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the model answers to the rows' questions."""
        items = [self.encode_input(row, learner) for row in rows]
        return [
            {
                "prompt": f"{row['question']}\n\n{short(row['context'], 600)}",
                "expected": " / ".join(dict.fromkeys(row["answers"]["text"])) or "(no answer)",
                "answer": output["answer"] or "(no answer)",
            }
            for row, output in zip(rows, self.predict(learner, items, []), strict=True)
        ]

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """All windows over the context. Raises Refused unless there are a question and a context."""
        row = {name: words(given, name) for name in ("question", "context")}
        return {"context": row["context"], "windows": read_in(row, learner)}

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{answer, score, start, end}]: `score` is its share among the best candidates; the answer is
        empty where the context has none.
        """
        pairs = [(number, window) for number, item in enumerate(items) for window in item["windows"]]
        pairs.sort(key=lambda pair: len(pair[1]["input_ids"]))
        readings: dict[int, list[Reading]] = defaultdict(list)
        for at in range(0, len(pairs), AT_ONCE):
            numbers, part = zip(*pairs[at : at + AT_ONCE], strict=True)
            for number, reading in zip(numbers, self.read(learner, list(part)), strict=True):
                readings[number].append(reading)
        return [decided(readings[number], item["context"], learner) for number, item in enumerate(items)]

    def read(self, learner: Learner, windows: list[Window]) -> list[Reading]:
        """What the model makes of each window."""
        import torch

        from shared.learning import spans

        batch = {name: value.to(learner.device) for name, value in self.collate(windows, learner).items()}
        with torch.no_grad():
            starts, ends = spans.logits(learner.model, batch)
        return spans.read(windows, starts, ends, batch, learner.spec.max_answer_length, N_BEST)

    def usage(self, learner: Learner) -> str:
        """Ask the checkpoint by transformers alone, over a context of one window."""
        return (
            "import torch\n"
            + opened(learner, self.opens_with)
            + 'question, context = "Who wrote Emma?", "Emma is a novel by Jane Austen."\n'
            'inputs = tokenizer(question, context, truncation="only_second", return_tensors="pt")\n'
            "with torch.no_grad():\n"
            "    outputs = model(**inputs)\n"
            "tokens = torch.tensor([part == 1 for part in inputs.sequence_ids()])\n"
            "scores = outputs.start_logits[0][:, None] + outputs.end_logits[0][None]\n"
            "scores[~(tokens[:, None] & tokens[None]).triu().tril(29)] = -torch.inf\n"
            "start, end = divmod(int(scores.argmax()), len(tokens))\n"
            "print(context[inputs.token_to_chars(start).start : inputs.token_to_chars(end).end])\n"
            "# Below the score of the first token, where one of no answer was learned: there is no answer.\n"
            "print(float(scores.max()), float(outputs.start_logits[0, 0] + outputs.end_logits[0, 0]))\n"
        )


def read_in(row: dict[str, Any], learner: Learner) -> list[Window]:
    """The row's windows."""
    from shared.learning.language_model import room
    from shared.learning.spans import windows

    longest, stride = room(learner, learner.spec.max_length), learner.spec.stride
    return windows(row["question"], row["context"], learner.tokenizer, longest, stride)


def decided(readings: list[Reading], context: str, learner: Learner) -> dict[str, Any]:
    """{answer, score, start, end} of what was read in all windows of a context."""
    from shared.learning.spans import merged, shares

    null, best = merged(readings, N_BEST)
    nothing = [null] if learner.facts["unanswerable"] else []
    if not best:
        return {"answer": "", "score": 1.0, "start": 0, "end": 0}
    told = shares(nothing + [one.score for one in best])
    if nothing and null - best[0].score > learner.spec.no_answer_threshold:
        return {"answer": "", "score": round(told[0], 6), "start": 0, "end": 0}
    _, start, end = best[0]
    return {"answer": context[start:end], "score": round(told[len(nothing)], 6), "start": start, "end": end}


def first(names: tuple[str, ...], among: set[str]) -> str | None:
    """The first of the names that there is."""
    return next((name for name in names if name in among), None)


def words(row: dict[str, Any], name: str) -> str:
    """A cell that is text with something in it. Raises Refused."""
    value = text(row.get(name), name)
    if not value.strip():
        raise Refused(f"The {name} is empty.", param=name, code="empty")
    return value


recipe = ExtractiveQA()
