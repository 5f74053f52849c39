"""The text in a JSON value, wherever it stands: found, or replaced character by character."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def strings_of(value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """Every string in a JSON value, keys included."""
    match value:
        case str():
            yield value
        case dict():
            for key, item in value.items():
                yield key
                yield from strings_of(item)
        case list() | tuple():
            for item in value:
                yield from strings_of(item)


def translated(value: Any, table: Mapping[int, str]) -> Any:  # noqa: ANN401 - any JSON
    """A JSON value with every string in it translated."""
    match value:
        case str():
            return value.translate(table)
        case dict():
            return {k.translate(table): translated(v, table) for k, v in value.items()}
        case list() | tuple():
            return [translated(item, table) for item in value]
        case _:
            return value
