"""An answer's text to content and calls of functions, piece by piece, in the form of Qwen's models.

    Let me see.
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Bern"}}
    </tool_call>

Knows that form alone: neither which functions there are nor what a protocol makes of a call. What
a model writes is never lost: a call that is none is content.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"
# A call's beginning, where it comes in the usual order: its arguments can be told as they come.
HEAD: Final = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL
)
# White space, and what may be the beginning of a mark, at the end of what is known.
PERHAPS_OPENING: Final = re.compile(
    rf"\s*(?:{'|'.join(OPENING[:n] for n in range(len(OPENING) - 1, 0, -1))})?\Z"
)
OUTSIDE_STRING: Final = re.compile(r'["{}\[\]<]')
# A string of JSON holds no bare line break: one that does was never closed.
INSIDE_STRING: Final = re.compile(r'["\\\n]')


class Content(NamedTuple):
    """Text beside the calls."""

    text: str


class CallStart(NamedTuple):
    """A call begins; call: which one of the answer, from 0."""

    call: int
    name: str


class CallArguments(NamedTuple):
    """More of a call's arguments, as the JSON text that the model wrote."""

    call: int
    text: str


Piece = Content | CallStart | CallArguments


class ToolCallParser:
    """One answer. The pieces of all `push` and of `flush` are the whole of it, in order.

    several: whether calls after the first count; otherwise what follows the first is dropped
    num_calls: how many have begun
    """

    def __init__(self, *, several: bool = True) -> None:
        self.num_calls = 0
        self._several = several
        self._held = ""
        self._state: Callable[[], Iterator[Piece]] = self._content
        # Whether nothing but white space came since a call.
        self._separated = False
        # Of the arguments being read: open brackets, and whether a string is open.
        self._depth = 0
        self._in_string = False

    def push(self, text: str) -> list[Piece]:
        """Take in text; returns what it makes certain, often nothing."""
        self._held += text
        pieces: list[Piece] = []
        state = None
        # A state that has read all it can is still the state afterwards.
        while state != self._state:
            state = self._state
            pieces += state()
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back; call it once, when no more text comes."""
        held, self._held = self._held, ""
        if self._state == self._content:
            # Between and after calls white space only separates.
            return _content_of(held.rstrip() if self.num_calls else held)
        if self._state == self._head:
            # A call that lacks no more than its closing mark is one.
            return self._whole(held, OPENING + held)
        return []

    # States: each reads what it can of the held text, and names its successor

    def _content(self) -> Iterator[Piece]:
        text, opening, rest = self._held.partition(OPENING)
        if self._separated:
            text = text.lstrip()
            self._separated = not text
        if opening:
            self._held, self._state = rest, self._head
            yield from _content_of(text.rstrip())
            return
        found = PERHAPS_OPENING.search(text)
        assert found is not None, "the pattern matches the empty end"
        self._held = found[0]
        yield from _content_of(text[: found.start()])

    def _head(self) -> Iterator[Piece]:
        if head := HEAD.match(self._held):
            self._held = self._held[head.end() :]
            self._depth, self._in_string, self._state = 0, False, self._arguments
            yield self._start(_string(head[1]))
            return
        body, closing, rest = self._held.partition(CLOSING)
        if closing:
            self._held = rest
            yield from self._whole(body, OPENING + body + CLOSING)

    def _arguments(self) -> Iterator[Piece]:
        end = self._end_of_arguments()
        text, self._held = self._held[:end], self._held[end:]
        if text:
            yield CallArguments(self.num_calls - 1, text)

    def _end_of_arguments(self) -> int:
        """How much of the held text belongs to them; past their end the call is over."""
        position = 0
        while True:
            marks = INSIDE_STRING if self._in_string else OUTSIDE_STRING
            found = marks.search(self._held, position)
            if found is None:
                return len(self._held)
            position = found.end()
            match found[0]:
                case '"' | "\n":
                    self._in_string = not self._in_string
                case "\\":
                    if position == len(self._held):
                        return found.start()  # what it escapes is not here yet
                    position += 1
                case "{" | "[":
                    self._depth += 1
                case "<":  # no JSON: the arguments were never closed
                    self._state = self._tail
                    return found.start()
                case _:
                    self._depth -= 1
                    if self._depth == 0:
                        self._state = self._tail
                        return position

    def _tail(self) -> Iterator[Piece]:
        _, closing, rest = self._held.partition(CLOSING)
        if closing:
            self._held, self._state = rest, self._after_call
        else:
            self._held = self._held[-len(CLOSING) + 1 :]
        yield from ()

    def _after_call(self) -> Iterator[Piece]:
        if self._several:
            self._state, self._separated = self._content, True
        else:
            self._held = ""
        yield from ()

    def _start(self, name: str) -> CallStart:
        self.num_calls += 1
        return CallStart(self.num_calls - 1, name)

    def _whole(self, body: str, otherwise: str) -> list[Piece]:
        """A call that is known whole, its members in any order; content where it is none."""
        call = _parsed(body)
        if call is None:
            self._state, self._separated = self._content, False
            return [Content(otherwise)]
        name, arguments = call
        self._state = self._after_call
        start = self._start(name)
        return [start, CallArguments(start.call, arguments)]


def _content_of(text: str) -> list[Piece]:
    return [Content(text)] if text else []


def _string(text: str) -> str:
    """A JSON string's value; of a broken one, what stands between its quotes."""
    try:
        return str(orjson.loads(text))
    except orjson.JSONDecodeError:
        return text[1:-1]


def _parsed(body: str) -> tuple[str, str] | None:
    """Name and arguments of a whole call, None where it is none."""
    try:
        call: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    match call:
        case {"name": str(name)}:
            arguments = call.get("arguments", {})
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
            return name, text
        case _:
            return None
