"""Question answering learns: questions about passages of the King James Bible that it has never seen.

It is compared with the best that can be scored without reading, chosen in hindsight on the held-out rows
themselves: always the same place of the passage, and always the same answer to whatever is asked about a passage.
"""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from shared.learning.answers import f1
from tests.attempts import checkpoints, events, parquet, predictions, run_here, write_attempt
from tests.proofs.conftest import Found
from tests.proofs.minilm import minilm
from tests.proofs.questions import Row, questions

pytestmark = pytest.mark.slow
LEARNED, HELD_OUT = 80, 24  # questions of each kind, at most
STARTS, WORDS = range(60), range(1, 6)  # of a constant answer


def mean_f1(answers: list[str], rows: list[Row]) -> float:
    """F1 of an answer for each row."""
    scores = [f1(answer, row["answers"]["text"]) for answer, row in zip(answers, rows, strict=True)]
    return sum(scores) / len(scores)


def best_place(rows: list[Row]) -> float:
    """The best F1 of answering with the same words of every passage, counted from its start, or with nothing."""
    passages = [row["context"].split() for row in rows]
    places = [(0, 0)] + [(start, start + words) for start in STARTS for words in WORDS]
    return max(mean_f1([" ".join(words[start:end]) for words in passages], rows) for start, end in places)


def best_without_question(rows: list[Row]) -> float:
    """The best F1 of one answer for each passage, whatever is asked about it."""
    about: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        about[row["context"]].append(row)
    best = 0.0
    for mine in about.values():
        answers = {""}.union(*(row["answers"]["text"] for row in mine))
        best += len(mine) * max(mean_f1([answer] * len(mine), mine) for answer in answers)
    return best / len(rows)


def answered(folder: Path, model: Path, rows: list[Row]) -> list[str]:
    """What the checkpoint answers in an inference job."""
    requests = folder / "requests.jsonl"
    asked = [{name: row[name] for name in ("question", "context")} for row in rows]
    requests.write_text("\n".join(json.dumps({"row": n, "input": one}) for n, one in enumerate(asked)))
    told = {"kind": "infer", "recipe": "extractive_qa", "requests": requests, "base_model": model}
    attempt = write_attempt(folder / "answers", **told)
    assert run_here(attempt) == 0, events(attempt, "error")
    return [answer["output"]["answer"] for answer in predictions(attempt)]


def test_held_out_questions_are_answered(tmp_path: Path, found: Found):
    learned, held = questions(0, LEARNED, HELD_OUT)
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="extractive_qa",
        spec={"epochs": 2, "batch_size": 16, "learning_rate": 3e-4, "evaluations": 1, "checkpoints": 1},
        columns={name: name for name in ("question", "context", "answers")},
        base_model=minilm(tmp_path),
        train=parquet(tmp_path / "train.parquet", learned),
        valid=parquet(tmp_path / "valid.parquet", held),
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    answers = answered(tmp_path, checkpoints(attempt)[-1] / "servable", held)
    reached, place, blind = mean_f1(answers, held), best_place(held), best_without_question(held)
    silent = [not answer for answer, row in zip(answers, held, strict=True) if not row["answers"]["text"]]
    spoke = [bool(answer) for answer, row in zip(answers, held, strict=True) if row["answers"]["text"]]
    no_answer, some_answer = sum(silent) / len(silent), sum(spoke) / len(spoke)
    found(
        f"{len(learned)} questions learned, {len(held)} held out: F1 {reached:.3f}, constant place {place:.3f},"
        f" question unread {blind:.3f}; no answer where there is none {no_answer:.3f} of {len(silent)}, an answer"
        f" where there is one {some_answer:.3f} of {len(spoke)}"
    )
    assert reached == pytest.approx(events(attempt, "eval")[-1]["data"]["metrics"]["f1"], abs=0.02)
    assert reached >= max(0.6, 3 * place)
    assert reached >= blind + 0.1
    assert some_answer >= 0.8
    assert no_answer >= 0.2 + (1 - some_answer), "it is silent where there is nothing rather than anywhere"
