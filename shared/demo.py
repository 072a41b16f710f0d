"""The demo: a chat model learns small talk from real dialogue, through the HTTP API that everybody calls.

SmolLM2-135M-Instruct, LoRA, the English conversations of chatterbot-corpus. Every step is keyed by its
content, so that a second run finds its job done and shows it again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shared import progress
from shared.client import Api, kept_token
from shared.commands.jobs import JOBS, best, until_final
from shared.errors import Refused
from shared.stack import Home, home_folder

TEAM, EMAIL = "Demo", "demo@example.com"
BASE_MODEL = "smollm2-135m-instruct"
TOPICS = (
    "ai", "botprofile", "computers", "conversations", "emotion", "food", "gossip", "greetings", "health",
    "history", "humor", "literature", "money", "movies", "politics", "psychology", "science", "sports",
)  # fmt: skip
HELD_OUT = 12  # every so many conversations one is kept from training
MOST_ROWS = 288
LONGEST = 600  # characters of a conversation
KNOBS = {"epochs": 2, "batch_size": 16, "evaluations": 3, "checkpoints": 2, "max_length": 256}
ANSWER_TOKENS = 40


@dataclass(frozen=True)
class Demo:
    """The demo under way: whom it calls, and who looks after the stack meanwhile."""

    api: Api
    folder: Path
    tend: Callable[[], None]


def show(url: str, tend: Callable[[], None] = lambda: None) -> bool:
    """Run it over the stack at that address; whether it succeeded."""
    began = time.monotonic()
    home = Home(home_folder())
    greet(url)
    folder = home.folder / "demo"
    folder.mkdir(exist_ok=True)
    demo = Demo(Api(url, kept_token(home, "demo-token", TEAM), tend), folder, tend)
    train, valid = written(folder)
    body = {
        "model": BASE_MODEL,
        "training_file": stored(demo, train),
        "validation_file": stored(demo, valid),
        "method": {"type": "supervised", "supervised": {"hyperparameters": KNOBS}},
        "suffix": "small-talk",
        "seed": 1,
    }
    job = submitted(demo, body)
    print(f"Job {job['id']}: {job['x_page']}", flush=True)
    job = until_final(demo.api, job["id"], tend)
    if job["status"] != "succeeded":
        print(f"The job is {job['status']}: {(job.get('error') or {}).get('message', '')}")
        print(f"Its page: {job['x_page']}")
        return False
    tell(demo, job, prompts(valid))
    print(f"\nDone in {progress.lasting(time.monotonic() - began)}.", flush=True)
    return True


def greet(url: str) -> None:
    """Make the first account and print its password; a second run leaves it alone."""
    from sqlmodel import select

    from shared import teams
    from shared.db import transaction
    from shared.tables import User

    with transaction() as db:
        if db.exec(select(User.id).where(User.email == EMAIL)).first():
            again = f"burnish user add {EMAIL} --team {TEAM}"
            print(f"Account: {EMAIL} at {url}/sign-in (a new one-time password: {again})")
            return
        _, password = teams.add_user(db, EMAIL, TEAM)
    print(f"Account: {EMAIL}, one-time password: {password}, sign in at {url}/sign-in", flush=True)


# --- the data ---------------------------------------------------------------------------------


def written(folder: Path) -> tuple[Path, Path]:
    """The conversations as two files of chat rows: to train on, and held out."""
    rows = list(conversations())
    train, valid = folder / "small-talk.jsonl", folder / "small-talk-held-out.jsonl"
    train.write_text(lines([row for place, row in enumerate(rows) if place % HELD_OUT]))
    valid.write_text(lines(rows[::HELD_OUT]))
    return train, valid


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def conversations() -> Iterator[dict[str, Any]]:
    """Chat rows from the corpus, evenly over its topics; user and assistant speak in turns."""
    import yaml

    found = find_spec("chatterbot_corpus")
    if found is None or found.origin is None:
        raise Refused("The package chatterbot-corpus is missing: run «make install».")
    texts = [Path(found.origin).parent / "data" / "english" / f"{topic}.yml" for topic in TOPICS]
    talks = [talk for text in texts for talk in yaml.safe_load(text.read_text())["conversations"]]
    usable = list({json.dumps(row): row for talk in talks if (row := chat_row(talk))}.values())
    most = min(MOST_ROWS, len(usable))
    for place in range(most):
        yield usable[place * len(usable) // most]


def chat_row(talk: list[Any]) -> dict[str, Any] | None:
    """One conversation as messages, the assistant's last; None where it is too short or too long."""
    said = [" ".join(str(line).split()) for line in talk]
    said = said[: len(said) // 2 * 2]
    if not said or not all(said) or sum(map(len, said)) > LONGEST:
        return None
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[place % 2], "content": line} for place, line in enumerate(said)]}


def stored(demo: Demo, path: Path) -> str:
    """The id of the stored file with these bytes; uploaded where there is none yet."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = demo.api.every("/files", purpose="fine-tune")
    found = next((f for f in known if f["x_sha256"] == digest and f["status"] != "error"), None)
    file = found or demo.api.upload(path)
    demo.tend()
    rows = path.read_text().count("\n")
    print(f"Data: {file['filename']}, {rows} conversations{'' if found is None else ' (stored already)'}")
    return file["id"]


# --- the jobs ---------------------------------------------------------------------------------


def key_of(body: dict[str, Any], chance: int) -> str:
    """The idempotency key of this content; one that failed may be tried again under the next."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return f"demo-{digest[:32]}-{chance}"


def submitted(demo: Demo, body: dict[str, Any]) -> dict[str, Any]:
    """The job with this content: the one of an earlier run, unless it came to nothing."""
    chance = 0
    while (job := demo.api.post(JOBS, body, key_of(body, chance)))["status"] in ("failed", "cancelled"):
        chance += 1
    return job


def prompts(valid: Path) -> list[str]:
    """What the models are asked before and after: two questions that were held out of training."""
    questions = [row["messages"][0]["content"] for row in json_lines(valid.read_text())]
    return [question for question in questions if question.endswith("?")][:2] or questions[:2]


def answers(demo: Demo, model: str, asked: list[str]) -> list[str]:
    """The model's answers, as a batch inference job."""
    path = demo.folder / f"ask-{hashlib.sha256(model.encode()).hexdigest()[:8]}.jsonl"
    path.write_text(lines([request(model, place, question) for place, question in enumerate(asked)]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = demo.api.every("/files", purpose="batch")
    file = next((f for f in known if f["x_sha256"] == digest), None) or demo.api.upload(path, "batch")
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = demo.api.post("/batches", body, key_of(body, 0))
    line = progress.Line()
    while batch["status"] in ("validating", "in_progress", "finalizing"):
        line.show("asking", model)
        demo.tend()
        time.sleep(0.3)
        batch = demo.api.get(f"/batches/{batch['id']}")
    line.end()
    if batch["status"] != "completed" or not batch["output_file_id"]:
        return ["(no answer)"] * len(asked)
    said = demo.api.wire.get(f"/files/{batch['output_file_id']}/content", follow_redirects=True).text
    by_id = {answer["custom_id"]: answer for answer in json_lines(said)}
    return [content(by_id.get(str(place))) for place in range(len(asked))]


def json_lines(text: str) -> list[Any]:
    """The values of JSONL; texts in it may hold other separators of lines than the newline."""
    return [json.loads(line) for line in text.split("\n") if line]


def request(model: str, place: int, question: str) -> dict[str, Any]:
    """A line of a batch."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    body["max_tokens"] = ANSWER_TOKENS
    return {"custom_id": str(place), "method": "POST", "url": "/v1/chat/completions", "body": body}


def content(answer: dict[str, Any] | None) -> str:
    """What the assistant says in a line of a batch's output."""
    if not answer or not answer.get("response"):
        return "(no answer)"
    return " ".join(answer["response"]["body"]["choices"][0]["message"]["content"].split())


# --- the end ----------------------------------------------------------------------------------


def tell(demo: Demo, job: dict[str, Any], asked: list[str]) -> None:
    """Scores, answers before and after, where the checkpoint and the job's page are."""
    before = answers(demo, BASE_MODEL, asked)
    after = answers(demo, job["fine_tuned_model"], asked)
    scores = job["x_scores"]
    base, tuned = (scores.get(which, {}).get("loss") for which in ("base", "tuned"))
    print(f"\nHeld-out loss: {progress.score(base)} (base) → {progress.score(tuned)} (tuned)")
    for question, old, new in zip(asked, before, after, strict=True):
        print(f"\n  {question}\n    base:  {old}\n    tuned: {new}")
    checkpoint = best(demo.api, job)
    files = demo.api.get(f"{JOBS}/{job['id']}/checkpoints/{checkpoint}/files")
    adapter = next((f for f in files["data"] if f["name"].endswith(".safetensors")), files["data"][0])
    print(f"\nModel:      {job['fine_tuned_model']}")
    print(f"Checkpoint: {files.get('x_zip') or adapter['url']}")
    print(f"Job page:   {job['x_page']}")
