"""Batches: requests in, answers out, for `/v1/batches` and for a dataset's rows in the browser.

A request, as the engine reads it, is {"row", "input", "sampling"} (and "custom_id" of a batch file); one
that cannot be answered carries "error" {message, code, param} from the start. The engine writes
{"row", "output"} or {"row", "error"} for each; `shared.answers` makes of both the files that people download.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from shared import formats
from shared.errors import Refused
from shared.formats import ROW, BadRow, quoted
from shared.recipe import Recipe
from shared.sampling import Sampling, checked

CHAT = "/v1/chat/completions"
PREDICTIONS = "/v1/predictions"
ENDPOINTS = (CHAT, PREDICTIONS)
MOST_REQUESTS = 50_000
MOST_ERRORS = 100
NAMES = tuple(one.name for one in fields(Sampling))
ROWS_AT_ONCE = 1024

# what would change an answer and cannot be done, and the values that ask for nothing
CANNOT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "logprobs": (False,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"],),
}


@dataclass(frozen=True)
class Problem:
    """A line that keeps the whole batch from starting, as OpenAI tells it."""

    line: int | None
    code: str
    message: str
    param: str | None = None

    def told(self) -> dict[str, Any]:
        """As it stands in a batch's `errors.data`."""
        return {"line": self.line, "code": self.code, "message": self.message, "param": self.param}


class BadBatch(Refused):
    """A batch file that cannot be answered; `problems` are its first hundred."""

    def __init__(self, problems: list[Problem]) -> None:
        first = problems[0]
        where = f"Line {first.line}: " if first.line else ""
        more = f" There are {len(problems) - 1} more lines with problems." if len(problems) > 1 else ""
        super().__init__(
            f"{where}{first.message}{more}", param=first.param or "input_file_id", code=first.code
        )
        self.problems = problems


class Bad(Exception):
    """What is wrong with one line: (code, message, param)."""


@dataclass
class Reading:
    """A batch file on its way: iterate to get the requests; then `problems` says what is wrong.

    `reads` are the knobs of `Sampling` that the recipe reads.
    """

    file: BinaryIO
    endpoint: str
    reads: Iterable[str] = NAMES
    model: str | None = None  # as the first line names it
    problems: list[Problem] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)  # custom_id → its line

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for line, text in numbered(self.file):
            count += 1
            if count > MOST_REQUESTS:
                message = f"A batch has at most {MOST_REQUESTS:,} requests. Split the file."
                self.problems.append(Problem(line, "too_many_tasks", message))
                return
            try:
                yield self.request(line, text)
            except Bad as wrong:
                code, message, param = wrong.args
                self.problems.append(Problem(line, code, message, param))
                if len(self.problems) >= MOST_ERRORS:
                    return
        if not count:
            self.problems.append(
                Problem(None, "empty_file", "The file has no requests. Put one on each line.")
            )

    def request(self, line: int, text: str | BadRow) -> dict[str, Any]:
        """One line as a request. Raises Bad."""
        asked = parsed(text)
        for name, of in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
            require(asked, name, of)
        custom_id, body = asked["custom_id"], asked["body"]
        if asked["method"] != "POST":
            raise Bad(
                "invalid_value",
                f"Invalid value: '{quoted(asked['method'])}'. Supported values are: 'POST'.",
                "method",
            )
        if asked["url"] != self.endpoint:
            raise Bad(
                "invalid_url",
                f"The URL '{quoted(asked['url'])}' does not match the batch endpoint {self.endpoint}.",
                "url",
            )
        if first := self.lines.get(custom_id):
            raise Bad(
                "duplicate_custom_id",
                f"The custom_id '{quoted(custom_id)}' was used by line {first} already.",
                "custom_id",
            )
        self.lines[custom_id] = line
        require(body, "model", str, "body.")
        self.model = self.model or body["model"]
        if body["model"] != self.model:
            raise Bad(
                "model_mismatch",
                f"All requests of a batch name one model; the first names '{quoted(self.model)}'.",
                "body.model",
            )
        known = {"row": line, "custom_id": custom_id}
        if self.endpoint == PREDICTIONS:
            require(body, "input", dict, "body.")
            return known | with_sampling(body["input"], body, self.reads)
        return known | chat_request(body, self.reads)

    def check(self) -> None:
        """Raises BadBatch where a line was wrong. Call it after the iteration."""
        if self.problems:
            raise BadBatch(self.problems)


def read(file: BinaryIO, endpoint: str, reads: Iterable[str] = NAMES) -> Reading:
    """The requests of a batch file, as a stream: iterate, then call `check`."""
    return Reading(file, endpoint, reads)


def first_model(file: BinaryIO) -> str | None:
    """The model that the first readable line names."""
    for _, text in numbered(file):
        try:
            body = parsed(text).get("body")
        except Bad:
            continue
        if isinstance(body, dict) and isinstance(body.get("model"), str):
            return body["model"]
    return None


def numbered(file: BinaryIO) -> Iterator[tuple[int, str | BadRow]]:
    """(number, text) of every line that is not blank; a line that is no text ends it."""
    try:
        for number, text in formats.lines(file):
            if text.strip():
                yield number, text
    except BadRow as wrong:
        yield wrong.row, wrong


def parsed(text: str | BadRow) -> dict[str, Any]:
    """A line's object. Raises Bad."""
    if isinstance(text, BadRow):
        raise Bad("invalid_json_line", text.message, None)
    try:
        value = json.loads(text, parse_constant=formats.not_json)
    except (ValueError, RecursionError):
        raise Bad("invalid_json_line", "This line is not parseable as valid JSON.", None) from None
    if not isinstance(value, dict):
        raise Bad("invalid_json_line", "This line is not a JSON object.", None)
    return value


def require(asked: dict[str, Any], name: str, of: type, before: str = "") -> None:
    """Raises Bad unless there is such a field of that type."""
    if asked.get(name) in (None, ""):
        raise Bad(
            "missing_required_parameter", f"Missing required parameter: '{before}{name}'.", before + name
        )
    if not isinstance(asked[name], of):
        kind = "an object" if of is dict else "a string"
        raise Bad("invalid_type", f"Invalid type for '{before}{name}': expected {kind}.", before + name)


def chat_request(body: dict[str, Any], reads: Iterable[str]) -> dict[str, Any]:
    """The request that a chat body makes. Raises Bad for what OpenAI fails a batch for."""
    if body.get("stream"):
        raise Bad("streaming_unsupported", "Streaming is not supported in batches.", "body.stream")
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise Bad("invalid_request", "The body has no messages.", "body.messages")
    return with_sampling({"messages": body["messages"]}, body, reads)


def with_sampling(given: dict[str, Any], body: dict[str, Any], reads: Iterable[str]) -> dict[str, Any]:
    """{"input", "sampling"}; or {"input", "error"} where this request alone is wrong."""
    try:
        return {"input": given, "sampling": sampling(body, reads)}
    except Refused as wrong:
        return {"input": given, "error": {"message": wrong.message, "code": wrong.code, "param": wrong.param}}


def sampling(body: dict[str, Any], reads: Iterable[str]) -> dict[str, Any]:
    """The knobs of generation that a body gives. Raises Refused for one that cannot be honoured."""
    for name, nothing in CANNOT.items():
        if body.get(name) is not None and body[name] not in nothing:
            raise Refused(
                f"'{name}' is not supported by this server.", param=name, code="unsupported_parameter"
            )
    given = {name: body[name] for name in NAMES if name in body}
    if body.get("max_completion_tokens") is not None:
        given["max_tokens"] = body["max_completion_tokens"]
    return checked(given, reads)


def requests_from_dataset(
    path: Path, recipe: Recipe, columns: dict[str, str] | None = None, given: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """A request for every row of a dataset's Parquet file, by the recipe's input columns.

    `columns` maps the recipe's columns to the dataset's; `given` is the sampling, its seed that of all rows
    together: row n is drawn with seed + n. Raises Refused where an input column is missing; a row that the
    recipe cannot read carries its error.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        mapping = input_columns(recipe, columns, names)
        wanted = sorted({*mapping.values(), *({ROW} & set(names))})
        place = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
            for row in batch.to_pylist():
                place += 1
                number, way = row.get(ROW, place), dict(given or {})
                if "seed" in way:
                    way["seed"] += number
                yield {"row": number} | row_request(recipe, row, mapping, way)


def input_columns(recipe: Recipe, columns: dict[str, str] | None, names: list[str]) -> dict[str, str]:
    """The mapping without what is learned. Raises Refused where the dataset lacks an input."""
    plain = {column.name: column.name for column in recipe.columns if column.name in names}
    mapping = columns or recipe.recognise(names) or plain
    learned = {column.name for column in recipe.columns if column.output}
    inputs = {mine: theirs for mine, theirs in mapping.items() if mine not in learned}
    for mine, theirs in inputs.items():
        if theirs not in names:
            raise Refused(
                f"The dataset has no column «{theirs}». It has: {', '.join(n for n in names if n != ROW)}.",
                param=f"columns.{mine}",
                code="missing_column",
            )
    lacking = [c for c in recipe.columns if c.required and not c.output and c.name not in inputs]
    if lacking or not inputs:
        wanted = ", ".join(f"«{c.name}» ({c.help})" for c in lacking or recipe.columns if not c.output)
        raise Refused(
            f"«{recipe.title}» answers rows that have {wanted}. The dataset has:"
            f" {', '.join(n for n in names if n != ROW)}.",
            param="columns",
            code="missing_column",
        )
    return inputs


def row_request(
    recipe: Recipe, row: dict[str, Any], mapping: dict[str, str], given: dict[str, Any]
) -> dict[str, Any]:
    """{"input", "sampling"} of a row, or {"input", "error"}."""
    try:
        return {"input": recipe.input(recipe.canonical(row, mapping)), "sampling": given}
    except Refused as wrong:
        plain = {mine: row.get(theirs) for mine, theirs in mapping.items()}
        return {"input": plain, "error": {"message": wrong.message, "code": wrong.code, "param": wrong.param}}
