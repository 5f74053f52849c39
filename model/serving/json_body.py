"""JSON from clients, parsed within bounds: an object of reasonable size and depth, or a 400.

orjson refuses NaN, Infinity, lone surrogates and bytes that are not UTF-8: none is seen here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from model.errors import InvalidRequest
from model.serving.parameters import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH: Final = 64
# `[],[],…` takes 3 bytes a list on the wire and 64 in memory: the number of values is bounded too.
MAX_VALUES: Final = 1 << 20
MARKS: Final = (b"[", b"{", b",")
PIECE_BYTES: Final = 64 * 1024


def parse_object(text: bytes | bytearray | memoryview) -> dict[str, Any]:
    """A JSON object; raises InvalidRequest for anything else."""
    if not len(text):
        raise InvalidRequest("the request body is empty; it must be a JSON object")
    num_values = _count_marks(text)
    if num_values > MAX_VALUES:
        raise InvalidRequest(f"the JSON has about {num_values} values; the limit is {MAX_VALUES}")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as e:
        raise InvalidRequest(f"the request body is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise InvalidRequest(f"the request body is {kind(value)}; it must be a JSON object")
    check_depth(value)
    return value


def _count_marks(text: bytes | bytearray | memoryview) -> int:
    """How many of the marks that begin or part values; piece by piece, as views cannot count."""
    pieces = (text[start : start + PIECE_BYTES] for start in range(0, len(text), PIECE_BYTES))
    return sum(piece.count(mark) for piece in map(bytes, pieces) for mark in MARKS)


def check_depth(value: object) -> None:
    """Raise InvalidRequest when containers are nested deeper than MAX_DEPTH."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for container in level
            for item in _members(container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise InvalidRequest(f"the JSON is nested more than {MAX_DEPTH} levels deep")


def check_keys(item: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise InvalidRequest for a member of another name: a misspelt one must not be ignored."""
    for key in item:
        if key not in known:
            raise InvalidRequest(
                f"unknown member {shown(key)} of {where}; known: {', '.join(known)}"
            )


def get_object(item: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """The object at a key; empty where there is none or null."""
    value = item.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{key} of {where} is {kind(value)}; it must be an object")
    return value


def get_list(item: dict[str, Any], key: str, where: str) -> list[Any]:
    """The list at a key; empty where there is none or null."""
    value = item.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequest(f"{key} of {where} is {kind(value)}; it must be a list")
    return value


def get_string(item: dict[str, Any], key: str, where: str) -> str | None:
    """The string at a key, None where there is none or null."""
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{key} of {where} is {kind(value)}; it must be a string")
    return value


def kind(value: object) -> str:
    """A JSON value's type, as an error message calls it."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def _members(container: object) -> Iterable[object]:
    match container:
        case dict():
            return container.values()
        case list():
            return container
        case _:
            return ()
