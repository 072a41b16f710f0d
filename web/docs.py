"""`/openapi.json`, drawn from the routes and their shapes, and `/docs`, the page drawn from that."""

import re
from functools import lru_cache
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, render_template
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from shared import recipe as recipes
from shared.settings import settings
from web import policy, shapes
from web.wire import Operation

pages = Blueprint("docs", __name__)
REF = "#/components/schemas/{model}"
TAGS = {
    "api_files": "Files",
    "api_jobs": "Fine-tuning jobs",
    "api_events": "Fine-tuning jobs",
    "api_checkpoints": "Checkpoints",
    "api_models": "Models",
    "api_batches": "Batches",
    "api_evaluations": "Evaluations",
    "api_schedules": "Schedules",
    "api_webhooks": "Webhooks",
    "api_queue": "The queue",
}
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key with the same body is the same object, however often it is sent.",
    "schema": {"type": "string", "maxLength": 255},
}
FAULTS = {
    400: "Something in the request is wrong; `param` names it.",
    401: "The token is missing, unknown, expired or revoked.",
    403: "The token's role is too low.",
    404: "There is no such object in the token's team.",
    409: "The object's state or the idempotency key is in the way.",
    413: "Too many bytes.",
    429: "Too many requests.",
    503: "A part of the server is away; ask again after `Retry-After` seconds.",
}


@pages.get("/openapi.json")
def openapi() -> Response:
    """The whole API for machines."""
    return jsonify(document())


@pages.get("/docs")
def show() -> str:
    """The whole API for people."""
    described = document()
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, verbs in described["paths"].items():
        for verb, said in verbs.items():
            groups.setdefault(said["tags"][0], []).append({"verb": verb.upper(), "path": path, **said})
    return render_template(
        "docs/show.html",
        groups=groups,
        schemas=described["components"]["schemas"],
        fields=fields,
        kind=kind,
        body=body,
        answer=answer,
        recipes=[(recipes.wire_name(recipe), recipe) for recipe in recipes.recipes().values()],
        address=settings().public_url + "/v1",
    )


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of every route under /v1."""
    rules = sorted((r for r in current_app.url_map.iter_rules() if r.rule.startswith("/v1/")), key=str)
    paths: dict[str, dict[str, Any]] = {}
    for rule in rules:
        for verb in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(address(rule), {})[verb.lower()] = described(rule)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Burnish",
            "version": "1",
            "description": "Fine-tuning in OpenAI's shape: its client libraries work with `base_url` set to this "
            "server. What OpenAI does not have begins with `x_`.",
        },
        "servers": [{"url": settings().public_url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
        },
    }


def address(rule: Rule) -> str:
    """The route as OpenAPI writes it."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def described(rule: Rule) -> dict[str, Any]:
    """One operation: the view's docstring, its shapes, the role that it needs."""
    view = current_app.view_functions[rule.endpoint]
    operation: Operation = vars(view)["operation"]
    title, _, rest = (view.__doc__ or "").strip().partition("\n")
    said: dict[str, Any] = {
        "operationId": rule.endpoint.removeprefix("api_").replace(".", "_"),
        "tags": [TAGS[rule.endpoint.partition(".")[0]]],
        "summary": title.rstrip("."),
        "description": f"{' '.join(rest.split())} Needs the role {policy.POLICY[rule.endpoint].role}.".strip(),
        "parameters": parameters(rule, operation),
        "responses": {"200": {"description": "Done.", "content": content(operation.answer)}} | faults(),
    }
    if operation.body is not None:
        said["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": ref(operation.body)}},
        }
    if operation.form is not None:
        said["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": operation.form}},
        }
    return said


def parameters(rule: Rule, operation: Operation) -> list[dict[str, Any]]:
    """Of the path, the query string and the headers."""
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"<(?:\w+:)?(\w+)>", rule.rule)
    ]
    if operation.query is not None:
        for name, schema in operation.query.model_json_schema()["properties"].items():
            said = {"description": schema.pop("description")} if "description" in schema else {}
            found.append(
                {"name": name, "in": "query", "required": False, "schema": without_null(schema), **said}
            )
    return found + ([KEY] if operation.idempotent else [])


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is missing, never null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return (
        choices[0]
        if len(choices) == 1
        else {k: v for k, v in schema.items() if k not in ("title", "default")}
    )


def content(answer: type[BaseModel] | str) -> dict[str, Any]:
    """The body of an answer: an object, or bytes."""
    if isinstance(answer, str):
        return {
            "application/octet-stream": {
                "schema": {"type": "string", "contentMediaType": "application/octet-stream"}
            }
        }
    return {"application/json": {"schema": ref(answer)}}


def faults() -> dict[str, Any]:
    """What may go wrong on every route."""
    body = {"application/json": {"schema": ref(shapes.Error)}}
    return {str(status): {"description": said, "content": body} for status, said in FAULTS.items()}


def ref(shape: type[BaseModel]) -> dict[str, str]:
    """Where the shape stands in the document."""
    return {"$ref": REF.format(model=named(shape))}


def named(shape: type[BaseModel]) -> str:
    """The shape's name as pydantic writes it into the document."""
    return re.sub(r"[^a-zA-Z0-9.\-_]", "_", shape.__name__)


@lru_cache(maxsize=1)
def schemas() -> dict[str, Any]:
    """Every shape of `web.shapes` and every list of one, with `method` drawn from the recipes' Specs."""
    wanted = {shapes.Error}
    for view in current_app.view_functions.values():
        operation = vars(view).get("operation")
        if operation is not None:
            wanted |= {s for s in (operation.answer, operation.body) if s and not isinstance(s, str)}
    ordered = sorted(wanted, key=named)
    _, found = models_json_schema([(shape, "validation") for shape in ordered], ref_template=REF)
    definitions = found["$defs"]
    for shape in (shapes.CreateJob, shapes.CreateSchedule):
        definitions[shape.__name__]["properties"]["method"] = {"oneOf": methods() + [{"type": "null"}]}
    return definitions


def methods() -> list[dict[str, Any]]:
    """`method` for each recipe, with the knobs that its Spec has."""
    return [
        {
            "type": "object",
            "title": recipe.title,
            "description": recipe.summary,
            "required": ["type"],
            "additionalProperties": False,
            "properties": {
                "type": {"const": recipes.wire_name(recipe)},
                recipes.wire_name(recipe): {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"hyperparameters": hyperparameters(recipe)},
                },
            },
        }
        for recipe in recipes.recipes().values()
    ]


def hyperparameters(recipe: recipes.Recipe) -> dict[str, Any]:
    """A recipe's knobs, and OpenAI's three names for some of them; «auto» is the default."""
    schema = recipe.spec.model_json_schema()
    properties = {
        name: {"description": knob.get("description") or knob.get("title", "")} | automatic(knob)
        for name, knob in schema["properties"].items()
    }
    properties |= {
        "n_epochs": {"description": "OpenAI's name of `epochs`."} | automatic(schema["properties"]["epochs"]),
        "learning_rate_multiplier": {"description": "Times the default `learning_rate`."}
        | automatic({"type": "number", "exclusiveMinimum": 0}),
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def automatic(knob: dict[str, Any]) -> dict[str, Any]:
    """The knob's values, or «auto»."""
    plain = {k: v for k, v in knob.items() if k not in ("title", "description", "advanced", "default")}
    more = {"default": knob["default"]} if "default" in knob else {}
    choices = plain.pop("anyOf", None) or [plain]
    return {"anyOf": [*choices, {"const": "auto"}]} | more


def body(operation: dict[str, Any]) -> str:
    """The shape that an operation takes, in a word."""
    kinds = operation.get("requestBody", {}).get("content", {})
    return next((kind(part["schema"]) if name.endswith("json") else name for name, part in kinds.items()), "")


def answer(operation: dict[str, Any]) -> str:
    """The shape that an operation answers with, in a word."""
    kinds = operation["responses"]["200"]["content"]
    return next(kind(part["schema"]) if name.endswith("json") else "bytes" for name, part in kinds.items())


def fields(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of an object for the page: name, kind, whether it must be there, what it says."""
    required = schema.get("required", [])
    return [
        {"name": name, "kind": kind(part), "required": name in required, "says": part.get("description", "")}
        for name, part in schema.get("properties", {}).items()
    ]


def kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"list of {name[5:-1]}" if name.startswith("Page_") else name
    if "const" in schema:
        return f"«{schema['const']}»"
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    for many in ("anyOf", "oneOf"):
        if many in schema:
            return " or ".join(dict.fromkeys(kind(part) for part in schema[many]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
