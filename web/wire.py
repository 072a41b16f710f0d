"""How the API reads requests and writes answers: JSON bodies, lists, documented operations."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

from flask import Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlmodel import Session, col
from sqlmodel.sql.expression import SelectOfScalar
from werkzeug.exceptions import BadRequest

from shared.errors import Refused

JSON_BYTES = 8 * 1024**2  # of a body; files come as multipart
T = TypeVar("T", bound=BaseModel)
Row = TypeVar("Row")
View = TypeVar("View", bound=Callable[..., Any])
KINDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
}
WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}


class Request(BaseModel):
    """A JSON body: exact types, no unknown keys, so that a typing error never trains with defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Paging(BaseModel):
    """Which part of a list: `limit` objects that come after the one with the id `after`."""

    after: str | None = Field(None, description="Id of the last object of the page before.")
    limit: int = Field(20, ge=1, le=100, description="Most objects in the answer.")


@dataclass(frozen=True)
class Operation:
    """What `/openapi.json` says of a route: the shapes of its query, body and answer."""

    answer: type[BaseModel] | str
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    form: dict[str, Any] | None = None
    idempotent: bool = False


def operation(
    answer: type[BaseModel] | str,
    *,
    body: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    form: dict[str, Any] | None = None,
    idempotent: bool = False,
) -> Callable[[View], View]:
    """Note the shapes on the view; its docstring is the description."""

    def mark(view: View) -> View:
        vars(view)["operation"] = Operation(answer, body, query, form, idempotent)
        return view

    return mark


def body(shape: type[T]) -> T:
    """The JSON body in that shape. Raises Refused naming the first field that is wrong."""
    request.max_content_length = JSON_BYTES
    try:
        given = json.loads(request.get_data(cache=True), parse_constant=no_constant)
        json.dumps(given, ensure_ascii=False).encode()  # half of a surrogate pair cannot be stored
    except (ValueError, RecursionError):
        raise Refused(
            "We could not parse the JSON body of your request. It must be one JSON object in UTF-8.",
            code="invalid_json",
        ) from None
    if not isinstance(given, dict):
        raise Refused("The body of the request must be a JSON object.", code="invalid_json")
    if holds_nul(given):
        raise Refused("The body holds a NUL character, which cannot be stored.")
    try:
        return shape.model_validate(given)
    except ValidationError as wrong:
        raise refused(wrong) from None


def query(shape: type[T]) -> T:
    """The query string in that shape. Raises Refused naming the first parameter that is wrong."""
    known = {name: request.args[name] for name in shape.model_fields if name in request.args}
    try:
        return shape.model_validate(known)
    except ValidationError as wrong:
        raise refused(wrong) from None


def refused(wrong: ValidationError) -> Refused:
    """The first fault of a body or query in OpenAI's words."""
    fault = wrong.errors()[0]
    param = ".".join(str(part) for part in fault["loc"])
    kind, given = fault["type"], fault["input"]
    if kind == "missing":
        return Refused(
            f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    if kind == "extra_forbidden":
        return Refused(
            f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter"
        )
    if kind in WANTED:
        got = KINDS.get(type(given), "null")
        said = f"Invalid type for '{param}': expected {WANTED[kind]}, but got {got} instead."
        return Refused(said, param=param, code="invalid_type")
    if kind == "literal_error":
        said = f"Invalid value: '{given}'. Supported values are: {fault['ctx']['expected'].replace(' or ', ', ')}."
        return Refused(said, param=param)
    reason = fault["msg"].replace("Input should", "it should").rstrip(".")
    return Refused(f"Invalid '{param}': {reason}.", param=param)


def no_constant(name: str) -> float:
    """NaN and Infinity are not JSON."""
    raise ValueError(name)


def holds_nul(value: Any) -> bool:
    """Whether any text in the document has a NUL."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(holds_nul(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(holds_nul(part) for part in value)


def cut(
    db: Session,
    wanted: SelectOfScalar[Row],
    key: Any,
    paging: Paging,
    order: Literal["asc", "desc"] = "desc",
) -> tuple[Sequence[Row], bool]:
    """One page of the rows, by age, and whether more follow. Raises Refused for an unknown `after`."""
    key = col(key)
    if paging.after is not None:
        if db.exec(wanted.where(key == paging.after)).first() is None:
            raise Refused(f"There is no object «{paging.after}» in this list.", param="after")
        wanted = wanted.where(key < paging.after if order == "desc" else key > paging.after)
    wanted = wanted.order_by(key.desc() if order == "desc" else key)
    rows = db.exec(wanted.limit(paging.limit + 1)).all()
    return rows[: paging.limit], len(rows) > paging.limit


def listed(data: Iterable[BaseModel], has_more: bool, **more: Any) -> Response:
    """A list as every list of the API looks."""
    plain = [shape.model_dump(mode="json", by_alias=True) for shape in data]
    ids = [one.get("id") for one in plain]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return jsonify({"object": "list", "data": plain, **ends, "has_more": has_more, **more})


def answer(shape: BaseModel) -> Response:
    """One object."""
    return jsonify(shape.model_dump(mode="json", by_alias=True))


def seconds(moment: datetime | None) -> int | None:
    """A time as OpenAI writes it: whole Unix seconds."""
    return None if moment is None else int(moment.timestamp())


def labels_asked() -> dict[str, str] | None:
    """The filter `metadata[key]=value` of a list; None where there is none, {} for `metadata=null`."""
    if request.args.get("metadata") == "null":
        return {}
    named = {name[9:-1]: value for name, value in request.args.items() if name.startswith("metadata[")}
    return named or None


def idempotency_key() -> str | None:
    """The header, which makes a repeated request the same job. Raises Refused over 255 characters."""
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > 255:
        raise Refused("An Idempotency-Key has at most 255 characters.", param="Idempotency-Key")
    return key or None


def is_retry() -> bool:
    """Whether the client says that it sends this request again after a lost answer."""
    return request.headers.get("x-stainless-retry-count", "0").strip() not in ("", "0")


def upload() -> Any:
    """The part «file» of a multipart body, on disk where it is large. Raises Refused."""
    if request.mimetype != "multipart/form-data":
        raise Refused(
            "Send the file as multipart/form-data with the parts «purpose» and «file».", param="file"
        )
    try:
        part = request.files.get("file")
    except (BadRequest, ValueError):
        part = None
    if part is None:
        raise Refused("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    return part
