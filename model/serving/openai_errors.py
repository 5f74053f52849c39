"""Errors in OpenAI's envelope, under the paths of its protocol; elsewhere they are plain.

Knows what each error is called there. `param` is the field that an error's text begins with: all
that name a field do.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from model.errors import (
    InvalidImage,
    ModelNotFound,
    PromptTooLong,
    ServingError,
)
from model.serving.openai_fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    REFUSED_FIELDS,
    TOKEN_FIELDS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIXES: Final = ("/v1", "/openai/v1")
PATHS: Final = tuple(f"{prefix}/" for prefix in PREFIXES)
FIELDS: Final = frozenset(
    (*CHAT_FIELDS, *COMPLETION_FIELDS, *REFUSED_FIELDS, *TOKEN_FIELDS, "image")
)
PARAM: Final = re.compile(r"([a-z][a-z_0-9]*)[\w.\[\]]*")

TYPES: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
CODES: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.FORBIDDEN: "forbidden",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_TIMEOUT: "request_timeout",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal_error",
    HTTPStatus.NOT_IMPLEMENTED: "not_implemented",
    HTTPStatus.SERVICE_UNAVAILABLE: "service_unavailable",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout",
}
CODES_OF_ERRORS: Final = (
    (ModelNotFound, "model_not_found"),
    (PromptTooLong, "context_length_exceeded"),
    (InvalidImage, "invalid_image"),
)


def error_body(path: str, text: str, status: int, error: Exception | None) -> dict[str, Any]:
    """An error as the protocol of its path has it; see body.ErrorForm."""
    if not path.startswith(PATHS):
        return {"error": text}
    body = envelope(text, status, error)
    if path.endswith("/chat/completions") and body["error"]["param"] in ("prompt", "image"):
        body["error"]["param"] = "messages"
    return body


def envelope(text: str, status: int, error: Exception | None = None) -> dict[str, Any]:
    """OpenAI's error object; error: what it was, where it is one of ours."""
    param = _param(text)
    code = CODES.get(status) or ("invalid_value" if param else None)
    for kind, name in CODES_OF_ERRORS:
        if isinstance(error, kind):
            code = name
    default = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    error_type = TYPES.get(status) or default or "invalid_request_error"
    return {"error": {"message": text, "type": error_type, "param": param, "code": code}}


def error_event(error: ServingError) -> dict[str, Any]:
    """An error in the middle of a stream."""
    return envelope(str(error), error.status, error)


def _param(text: str) -> str | None:
    """The field at fault, as `messages[0].content`; None where the text names none."""
    found = PARAM.match(text)
    return found[0].rstrip(".") if found and found[1] in FIELDS else None
