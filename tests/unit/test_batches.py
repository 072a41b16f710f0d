"""Batch files in, OpenAI's output and error files out."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import answers, batches, shards
from shared.answers import Teller
from shared.batches import CHAT, PREDICTIONS, BadBatch
from shared.errors import Refused
from shared.formats import ROW
from shared.recipe import get
from shared.sampling import KNOBS, Sampling
from tests.attempts import json_lines

MESSAGES = [{"role": "user", "content": "hi"}]
TELLER = Teller("batch_1", "ft:base:team::12345678", CHAT, 1_700_000_000)


def chat(custom_id: str = "r1", model: str = "m", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": model, "messages": MESSAGES} | body,
    }


def read(*lines: Any, endpoint: str = CHAT) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    reading = batches.read(io.BytesIO(text.encode()), endpoint)
    requests = list(reading)
    return requests, [problem.told() for problem in reading.problems]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in chat().items() if key != name}


def test_chat_requests_become_inputs_with_sampling():
    given = chat(
        max_tokens=5,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=1,
        stop="\n",
        user="x",
    )
    requests, problems = read(given, "", chat("r2"))
    assert not problems
    knobs = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1, "stop": ["\n"]}
    assert requests == [
        {"row": 1, "custom_id": "r1", "input": {"messages": MESSAGES}, "sampling": knobs},
        {"row": 3, "custom_id": "r2", "input": {"messages": MESSAGES}, "sampling": {}},
    ]


def test_predictions_take_the_recipes_input_columns():
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": PREDICTIONS,
        "body": {"model": "m", "input": {"text": "x"}},
    }
    requests, problems = read(line, endpoint=PREDICTIONS)
    assert not problems
    assert requests[0]["input"] == {"text": "x"}


WRONG = {
    "not JSON": ("{nope", "invalid_json_line", None),
    "a list": ([1], "invalid_json_line", None),
    "NaN": ('{"custom_id": NaN}', "invalid_json_line", None),
    "no custom_id": (without("custom_id"), "missing_required_parameter", "custom_id"),
    "no method": (without("method"), "missing_required_parameter", "method"),
    "no url": (without("url"), "missing_required_parameter", "url"),
    "no body": (without("body"), "missing_required_parameter", "body"),
    "a body that is text": (without("body") | {"body": "x"}, "invalid_type", "body"),
    "GET": (chat() | {"method": "GET"}, "invalid_value", "method"),
    "another endpoint": (chat() | {"url": "/v1/embeddings"}, "invalid_url", "url"),
    "no model": (chat(model=""), "missing_required_parameter", "body.model"),
    "stream": (chat(stream=True), "streaming_unsupported", "body.stream"),
    "no messages": (chat(messages=[]), "invalid_request", "body.messages"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_fails_the_batch_with_openais_code(case: str):
    line, code, param = WRONG[case]
    _, problems = read(chat("good"), line)
    assert [(p["line"], p["code"], p["param"]) for p in problems] == [(2, code, param)]


def test_a_custom_id_twice_names_the_first_line():
    _, problems = read(chat("a"), chat("b"), chat("a"))
    assert problems[0]["code"] == "duplicate_custom_id"
    assert problems[0]["line"] == 3
    assert "line 1" in problems[0]["message"]


def test_one_batch_is_for_one_model():
    _, problems = read(chat("a", "m"), chat("b", "n"))
    assert (problems[0]["code"], problems[0]["param"]) == ("model_mismatch", "body.model")


def test_an_empty_file_fails():
    assert read("", " ")[1][0]["code"] == "empty_file"


def test_too_many_requests_fail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "MOST_REQUESTS", 3)
    _, problems = read(*(chat(str(n)) for n in range(5)))
    assert [(p["line"], p["code"]) for p in problems] == [(4, "too_many_tasks")]


def test_bytes_that_are_no_text_fail_at_their_line():
    reading = batches.read(io.BytesIO(json.dumps(chat()).encode() + b"\n\xff\xfe\n"), CHAT)
    assert len(list(reading)) == 1
    with pytest.raises(BadBatch) as bad:
        reading.check()
    assert bad.value.code == "invalid_json_line"
    assert bad.value.message.startswith("Line 2: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("beams", 17), ("top_k", -1), ("n", 2), ("tools", [{}]), ("logprobs", True), ("response_format", {"type": "json_object"}),
     ("frequency_penalty", 0.5), ("temperature", 3), ("temperature", "hot"), ("max_tokens", 0), ("max_tokens", 1.5),
     ("top_p", True), ("stop", ["a"] * 5), ("stop", [""])],
)  # fmt: skip
def test_what_cannot_be_honoured_fails_that_request_alone(name: str, value: Any):
    requests, problems = read(chat(**{name: value}), chat("r2"))
    assert not problems
    assert requests[0]["error"]["param"] == name
    assert "error" not in requests[1]


def test_predictions_take_the_knobs_that_their_recipe_reads():
    def ask(**knobs: Any) -> dict[str, Any]:
        body = {"model": "m", "input": {"text": "x"}} | knobs
        return {"custom_id": str(knobs), "method": "POST", "url": PREDICTIONS, "body": body}

    knobs = {"max_tokens": 9, "beams": 4, "top_k": 3, "top_p": 0.5, "seed": 1, "stop": ["\n"]}
    lines = [ask(**knobs), ask(temperature=0.5, beams=2), ask(guidance=3.0), ask(user="somebody")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    reads = ("max_tokens", "temperature", "top_p", "top_k", "beams", "seed", "stop")
    good, both, unread, plain = batches.read(io.BytesIO(text.encode()), PREDICTIONS, reads)
    assert good["sampling"] == knobs
    assert "Beam search draws nothing" in both["error"]["message"]
    assert (unread["error"]["param"], unread["error"]["code"]) == ("guidance", "unsupported_parameter")
    assert plain["sampling"] == {}


def test_values_that_ask_for_nothing_are_taken():
    given: dict[str, Any] = {
        "n": 1,
        "tools": [],
        "logprobs": False,
        "response_format": {"type": "text"},
        "stop": None,
        "stream": False,
    }
    requests, problems = read(chat(**given))
    assert not problems
    assert "error" not in requests[0]


def test_the_first_model_is_found_behind_broken_lines():
    text = "nope\n" + json.dumps(chat(model="ft:x")) + "\n"
    assert batches.first_model(io.BytesIO(text.encode())) == "ft:x"
    assert batches.first_model(io.BytesIO(b"nope\n")) is None


def written(
    folder: Path, requests: list, predictions: list, teller: Teller, pieces: answers.Pieces | None = None
) -> tuple[list, list, answers.Counts]:
    """What is made of predictions [{place, output | error}], each in a shard of its own, the last one first."""
    asked, output, errors = (folder / name for name in ("requests", "output", "errors"))
    asked.write_text("".join(json.dumps(line) + "\n" for line in requests))
    for number, line in enumerate(reversed(predictions), 1):
        shard = folder / "shards" / f"shard-{number:06d}"
        shard.mkdir(parents=True, exist_ok=True)
        (shard / shards.LINES).write_text(json.dumps(line) + "\n")
    counts = answers.write_results(
        asked, folder / "shards", output, errors, teller, pieces or answers.Pieces()
    )
    told = [json_lines(path.read_text()) for path in (output, errors)]
    return told[0], told[1], counts


def test_answers_are_chat_completions_and_failures_go_to_the_error_file(tmp_path: Path):
    requests = [{"row": n, "custom_id": f"r{n}", "input": {}} for n in (1, 2, 3)]
    answer = {"content": "Hello.", "finish_reason": "length", "prompt_tokens": 4, "completion_tokens": 3}
    wrong = {"message": "too long", "code": "context_length_exceeded", "param": "messages"}
    predictions = [{"place": 0, "output": answer}, {"place": 1, "error": wrong}]
    output, errors, counts = written(tmp_path, requests, predictions, TELLER)
    known = output[0]["id"].removeprefix("batch_req_")
    assert output == [
        {
            "id": f"batch_req_{known}",
            "custom_id": "r1",
            "response": {
                "status_code": 200,
                "request_id": f"req_{known}",
                "body": {
                    "id": f"chatcmpl-{known}",
                    "object": "chat.completion",
                    "created": 1_700_000_000,
                    "model": "ft:base:team::12345678",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "Hello.", "refusal": None},
                            "finish_reason": "length",
                            "logprobs": None,
                        }
                    ],
                    "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
                    "system_fingerprint": None,
                },
            },
            "error": None,
        }
    ]
    assert errors[0]["response"]["status_code"] == 400
    assert errors[0]["response"]["body"]["error"] == {"type": "invalid_request_error"} | wrong
    assert errors[0]["error"] is None
    assert errors[1]["response"] is None
    assert errors[1]["error"]["code"] == "batch_cancelled"
    assert counts.told()["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    assert counts.told()["usage"]["total_tokens"] == 7


def test_written_twice_the_files_are_the_same(tmp_path: Path):
    requests, predictions = (
        [{"row": 1, "custom_id": "a", "input": {}}],
        [{"place": 0, "output": {"label": "x"}}],
    )
    teller = Teller("batch_1", "m", PREDICTIONS, 1)
    first = written(tmp_path, requests, predictions, teller)
    assert first[:2] == written(tmp_path, requests, predictions, teller)[:2]
    assert first[0][0]["response"]["body"] == {"output": {"label": "x"}}


def test_the_answers_to_a_dataset_stand_beside_its_rows(tmp_path: Path):
    requests = [{"row": n, "input": {"text": "x"}} for n in (2, 3, 4)]
    predictions = [{"place": 0, "output": {"label": "a"}}, {"place": 1, "error": {"message": "no"}}]
    output, errors, _ = written(tmp_path, requests, predictions, Teller("batch_1", "m", "", 1))
    assert not errors
    assert output[0] == {"row": 2, "input": {"text": "x"}, "output": {"label": "a"}}
    assert output[1] == {"row": 3, "input": {"text": "x"}, "error": {"message": "no"}}
    assert output[2]["error"]["code"] == "batch_cancelled"


def test_pictures_become_files_and_are_named_by_their_rows(tmp_path: Path):
    requests = [{"row": n, "input": {"label": "7"}} for n in (2, 3, 4)]
    red, blue = f"{'a' * 32}.png", f"{'b' * 32}.png"
    predictions: list[dict[str, Any]] = [
        {"place": 0, "output": {"media": red}},
        {
            "place": 1,
            "output": {"label": "x", "scores": {"media": 0.5}, "seen": [{"media": blue}, {"media": red}]},
        },
        {"place": 2, "output": {"media": "../../etc/passwd"}},
    ]
    pieces = answers.Pieces()
    output, _, _ = written(tmp_path, requests, predictions, Teller("batch_1", "m", "", 1), pieces)
    known = {name: {"file_id": file_id} for name, file_id in pieces.ids.items()}
    assert output[0]["output"] == known[red]
    assert output[1]["output"] == {"label": "x", "scores": {"media": 0.5}, "seen": [known[blue], known[red]]}
    assert output[2]["output"] == {"media": "../../etc/passwd"}
    assert pieces.rows == [("2.png", red), ("3.png", blue), ("3-2.png", red)]


def dataset(folder: Path, **columns: list) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_a_datasets_rows_are_asked_without_what_is_learned(tmp_path: Path):
    path = dataset(tmp_path, **{ROW: [2, 5]}, text=["a", "b"], label=["x", "y"])
    requests = list(batches.requests_from_dataset(path, get("classification"), given={"max_tokens": 3}))
    assert requests == [
        {"row": 2, "input": {"text": "a"}, "sampling": {"max_tokens": 3}},
        {"row": 5, "input": {"text": "b"}, "sampling": {"max_tokens": 3}},
    ]


def test_each_row_of_a_dataset_is_drawn_by_a_seed_of_its_own(tmp_path: Path):
    path = dataset(tmp_path, **{ROW: [2, 5]}, text=["a", "b"])
    requests = list(batches.requests_from_dataset(path, get("classification"), given={"seed": 10}))
    assert [request["sampling"] for request in requests] == [{"seed": 12}, {"seed": 15}]


def test_rows_without_labels_can_be_asked(tmp_path: Path):
    path = dataset(tmp_path, sentence=["a"])
    found = batches.requests_from_dataset(path, get("classification"), {"text": "sentence"})
    assert next(found)["input"] == {"text": "a"}


def test_conversations_are_asked_up_to_the_last_question(tmp_path: Path):
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = dataset(tmp_path, messages=[asked, [{"role": "nobody", "content": "x"}]])
    good, bad = batches.requests_from_dataset(path, get("sft"))
    assert good == {"row": 1, "input": {"messages": [asked[0]]}, "sampling": {}}
    assert "nobody" in bad["error"]["message"]


def test_a_dataset_without_the_input_column_is_refused(tmp_path: Path):
    path = dataset(tmp_path, words=["a"])
    with pytest.raises(Refused, match="«text»"):
        list(batches.requests_from_dataset(path, get("classification")))
    with pytest.raises(Refused, match="no column «nope»"):
        list(batches.requests_from_dataset(path, get("classification"), {"text": "nope"}))


def test_the_api_tells_of_every_knob():
    from web import api_batches

    told = api_batches.create.__doc__ or ""
    wanted = {*KNOBS, "stop", "max_completion_tokens"}
    assert {name for name in wanted if f"`{name}`" in told} == wanted
    assert f"{KNOBS['max_tokens'].high:,}" in told
    assert f"{Sampling().max_tokens} where unset" in told
