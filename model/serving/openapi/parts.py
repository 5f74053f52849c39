"""Pieces that every route's description is made of.

A schema is a plain dict, JSON Schema 2020-12 as OpenAPI 3.1 has it.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from PIL import Image, ImageDraw

from model.serving.request_id import HEADER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from model.serving.routing import QueryInteger

Schema: TypeAlias = dict[str, Any]

JSON: Final = "application/json"
STRING: Final[Schema] = {"type": "string"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
ANYTHING: Final[Schema] = {}
OBJECT: Final[Schema] = {"type": "object"}

DESCRIPTIONS: Final = {
    HTTPStatus.BAD_REQUEST: "The request is wrong; the text names the field, the value and what it "
    "must be. Sending it again cannot help.",
    HTTPStatus.NOT_FOUND: "There is nothing of that name.",
    HTTPStatus.REQUEST_TIMEOUT: "The body stopped arriving.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is over the limit.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body, or its encoding, is of a kind not read here.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too much waits already.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The server failed; nothing in the request caused it.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Loading, draining, or something it needs is away.",
    HTTPStatus.GATEWAY_TIMEOUT: "The request waited longer for its turn than it may.",
}
RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds until it may be worth trying again.", "schema": COUNT}
}
TEMPORARY: Final = (429, 503)
# What any request with a body for the model may be answered with.
WORK_ERRORS: Final = (400, 408, 413, 415, 429, 500, 503, 504)


def obj(
    properties: Mapping[str, Schema],
    *,
    required: Iterable[str] = (),
    closed: bool = True,
    **more: Any,
) -> Schema:
    """An object; closed: with no other members."""
    schema = {"type": "object", "properties": dict(properties), **more}
    if names := list(required):
        schema["required"] = names
    if closed:
        schema["additionalProperties"] = False
    return schema


def answer(properties: Mapping[str, Schema], *, optional: Iterable[str] = ()) -> Schema:
    """An object as the server makes it: every member but the optional ones is there."""
    left_out = set(optional)
    return obj(properties, required=[name for name in properties if name not in left_out])


def array(items: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **more}


def one_of(values: Iterable[object], **more: Any) -> Schema:
    """One of a few values."""
    return {"enum": list(values), **more}


def either(*schemas: Schema, **more: Any) -> Schema:
    """What one of the schemas allows."""
    return {"anyOf": list(schemas), **more}


def nullable(schema: Schema) -> Schema:
    """The same, or null, which counts as not given."""
    described = {key: value for key, value in schema.items() if key == "description"}
    return either(
        {key: value for key, value in schema.items() if key not in described},
        {"type": "null"},
        **described,
    )


def event(schema: Schema, *, named: bool = False, last: str | None = None) -> Schema:
    """One event of a stream of server-sent events.

    schema: of the JSON in its data; named: whether it has a name, which is the JSON's type
    last: the data of a last event that is no JSON
    """
    data: Schema = {**STRING, "contentMediaType": JSON, "contentSchema": schema}
    if last is not None:
        data = either({"const": last}, data)
    return obj({"event": STRING, "data": data}, required=("event", "data") if named else ("data",))


def ref(name: str) -> Schema:
    """A schema among the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def in_path(name: str, schema: Schema) -> dict[str, Any]:
    """A parameter in a path's braces."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def in_query(parameter: QueryInteger) -> dict[str, Any]:
    """A whole number in the query."""
    schema: Schema = {
        "type": "integer",
        "default": parameter.default,
        "minimum": parameter.low,
        **({} if parameter.high is None else {"maximum": parameter.high}),
    }
    return {"name": parameter.name, "in": "query", "required": False, "schema": schema}


def body(content: Mapping[str, Schema], examples: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body, as one of several media types; the examples are of the first."""
    described: dict[str, dict[str, Any]] = {
        media_type: {"schema": schema} for media_type, schema in content.items()
    }
    first = next(iter(described.values()))
    first["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": described}}


def response(
    description: str,
    content: Mapping[str, Schema],
    headers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An answer, as one of several media types."""
    described: dict[str, Any] = {
        "description": description,
        "headers": {HEADER: {"$ref": f"#/components/headers/{HEADER}"}, **(headers or {})},
    }
    if content:
        described["content"] = {name: {"schema": schema} for name, schema in content.items()}
    return described


def errors(*statuses: int, form: str = "Error") -> dict[str, Any]:
    """Answers that tell an error, by status; form: one of error_responses."""
    return {str(status): {"$ref": f"#/components/responses/{form}.{status}"} for status in statuses}


def error_responses(*forms: str) -> dict[str, Any]:
    """What `errors` refers to: every status in every form."""
    return {
        f"{form}.{status.value}": response(
            text,
            {JSON: ref(form)},
            RETRY_AFTER if status.value in TEMPORARY else None,
        )
        for form in forms
        for status, text in DESCRIPTIONS.items()
    }


@cache
def sample_picture() -> bytes:
    """A picture for examples: a red circle on white."""
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((24, 24, 72, 72), fill="red")
    encoded = io.BytesIO()
    picture.quantize(4).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def sample_base64() -> str:
    """The same as base64."""
    return base64.b64encode(sample_picture()).decode()


def sample_url() -> str:
    """The same as a data: URL."""
    return f"data:image/png;base64,{sample_base64()}"
