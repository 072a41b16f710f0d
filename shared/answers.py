"""Answers: what the engine found for an inference job's requests, as the files that people download.

OpenAI's output and error lines for a batch file, {"row", "input", "output"} for the rows of a dataset;
pictures and sounds become files of their own, and the lines name them.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared import media, shards
from shared.batches import CHAT
from shared.ids import new_id

CANCELLED = {"code": "batch_cancelled", "message": "The batch ended before this request was answered."}


@dataclass
class Counts:
    """What became of a batch's requests."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add_tokens(self, output: Any) -> None:
        """Counts what a text generator read and wrote."""
        if isinstance(output, dict):
            self.input_tokens += output.get("prompt_tokens", 0)
            self.output_tokens += output.get("completion_tokens", 0)

    def told(self) -> dict[str, Any]:
        """As it stands in a batch's `request_counts` and `usage`."""
        return {
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens,
                "total_tokens": self.input_tokens + self.output_tokens,
            },
        }


@dataclass(frozen=True)
class Teller:
    """Writes the lines of one batch. `endpoint` is empty for a dataset's rows."""

    job_id: str
    model: str
    endpoint: str
    created: int

    def line(self, request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        """The line that a request and its answer make."""
        if not self.endpoint:
            failed = "output" not in answer
            error = answer.get("error") or answer.get("response_error")
            told = {"error": error} if failed else {"output": answer["output"]}
            return {"row": request["row"], "input": request["input"]} | told
        known = hashlib.sha256(f"{self.job_id}/{request['row']}".encode()).hexdigest()[:24]
        line = {
            "id": f"batch_req_{known}",
            "custom_id": request["custom_id"],
            "response": None,
            "error": None,
        }
        if "response_error" in answer:
            return line | {"error": answer["response_error"]}
        if "error" in answer:
            wrong = {"type": "invalid_request_error", "param": None, "code": None} | answer["error"]
            status, body = 400, {"error": wrong}
        else:
            status, body = 200, self.body(known, answer["output"])
        return line | {"response": {"status_code": status, "request_id": f"req_{known}", "body": body}}

    def body(self, known: str, output: Any) -> dict[str, Any]:
        """The answer as the endpoint gives it."""
        return (
            completion(known, self.created, self.model, output)
            if self.endpoint == CHAT
            else {"output": output}
        )


def completion(known: str, created: int, model: str, output: dict[str, Any]) -> dict[str, Any]:
    """A chat.completion object of what the engine generated."""
    read_tokens, written = output.get("prompt_tokens", 0), output.get("completion_tokens", 0)
    message = {"role": "assistant", "content": output["content"], "refusal": None}
    return {
        "id": f"chatcmpl-{known}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": output.get("finish_reason", "stop"),
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": read_tokens,
            "completion_tokens": written,
            "total_tokens": read_tokens + written,
        },
        "system_fingerprint": None,
    }


@dataclass
class Pieces:
    """The pictures and sounds among the answers. `ids`: {media name: id of its file}; `rows`: (name in the
    zip, media name) of each one that a row has.
    """

    ids: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[str, str]] = field(default_factory=list)

    def told(self, value: Any, row: int) -> Any:
        """The same JSON with {"file_id": id} for every {"media": name}."""
        if isinstance(value, list):
            return [self.told(one, row) for one in value]
        if not isinstance(value, dict):
            return value
        name = value.get("media")
        if len(value) != 1 or not isinstance(name, str) or not media.NAME.fullmatch(name):
            return {key: self.told(one, row) for key, one in value.items()}
        self.rows.append((self.free_name(row, name), name))
        return {"file_id": self.ids.setdefault(name, new_id("file-"))}

    def free_name(self, row: int, name: str) -> str:
        """`<row>.png`, or `<row>-2.png` for a row's second one."""
        before = 0
        while before < len(self.rows) and self.rows[-1 - before][0].startswith((f"{row}.", f"{row}-")):
            before += 1
        suffix = name.rsplit(".", 1)[-1]
        return f"{row}-{before + 1}.{suffix}" if before else f"{row}.{suffix}"


class Answers:
    """The answers in the shards of a folder, by the place of their request. Of two to one request the later
    counts. Memory: eight bytes a request.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.at = array("q", [-1]) * total
        self.file = (folder / "joined").open("w+b")
        for shard in sorted(path for path in folder.glob("*") if shards.NAME.fullmatch(path.name)):
            with (shard / shards.LINES).open("rb") as lines:
                for line in lines:
                    place = json.loads(line)["place"]
                    if 0 <= place < total:
                        self.at[place] = self.file.tell()
                        self.file.write(line)

    def of(self, place: int) -> dict[str, Any] | None:
        """The answer to that request, if there is one."""
        if self.at[place] < 0:
            return None
        self.file.seek(self.at[place])
        return json.loads(self.file.readline())


def write_results(
    requests: Path, folder: Path, output: Path, errors: Path, teller: Teller, pieces: Pieces
) -> Counts:
    """The files that people download, in the order of the requests, of the shards in `folder`.

    Answers go to `output`; failed requests to `errors`, for a dataset's rows to `output` too. Requests
    without an answer were cancelled. `pieces` learns of pictures and sounds.
    """
    counts = Counts()
    with output.open("w", encoding="utf-8") as good, errors.open("w", encoding="utf-8") as bad:
        for request, answer in answered(requests, folder):
            failed = "output" not in answer
            counts.total += 1
            counts.failed += failed
            counts.completed += not failed
            if not failed:
                answer["output"] = pieces.told(answer["output"], request["row"])
                counts.add_tokens(answer["output"])
            target = bad if failed and teller.endpoint else good
            target.write(json.dumps(teller.line(request, answer), ensure_ascii=False) + "\n")
    return counts


def answered(requests: Path, folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each request with its answer; those that were not reached with the error that says so."""
    with requests.open("rb") as lines:
        answers = Answers(folder, total=sum(1 for _ in lines))
    with answers.file:
        for place, request in enumerate(json_lines(requests)):
            answer = answers.of(place)
            if answer is None:
                answer = {"error": request["error"]} if "error" in request else {"response_error": CANCELLED}
            yield request, answer


def json_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The objects of a JSONL file of our own."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
