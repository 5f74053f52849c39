"""One request and its answer, between a connection and an ASGI app. Knows no wire format.

The connection feeds the body and says when the client is gone; the app reads and answers in ASGI
messages, whose order and lengths are checked here.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from model.serving.body import INTERNAL_ERROR, NUM_RECEIVED, PIECE_WRITER, WATCH

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from starlette.types import ASGIApp, Message, Scope

    Headers: TypeAlias = Seq[tuple[bytes, bytes]]

logger = logging.getLogger(__name__)

# Starlette looks after disconnects itself below 2.4, where a send after one would raise.
ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
BODYLESS_STATUSES: Final = (204, 304)


def error_body(text: str) -> bytes:
    """An error as every route but OpenAI's tells it, for faults that no route sees."""
    return orjson.dumps({"error": text})


FAILED: Final = error_body(INTERNAL_ERROR)
FAILED_HEADERS: Final = (
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(FAILED)),
)


class WrongAnswer(RuntimeError):
    """The app sent something that makes no HTTP answer: a fault of ours."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers, as the app sent them. content_length: None where there is none"""

    status: int
    headers: Headers
    content_length: int | None

    @classmethod
    def of(cls, message: Message) -> Head:
        """The head in an http.response.start message."""
        headers = [(name.lower(), value) for name, value in message.get("headers", ())]
        lengths = [int(value) for name, value in headers if name == b"content-length"]
        return cls(message["status"], headers, lengths[0] if lengths else None)


def make_scope(
    *, method: str, path: str, raw_path: bytes, query: bytes, headers: list[tuple[bytes, bytes]],
    **connection: Any,
) -> Scope:  # fmt: skip
    """An ASGI scope; connection: http_version, client and server."""
    return {
        "type": "http",
        "asgi": ASGI,
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": headers,
        **connection,
    }


class Exchange(ABC):
    """A request that is being answered; a subclass knows how its wire says things.

    answered: the last byte of the answer has been handed to the wire
    body_ended: the last byte of the request's body has come
    """

    def __init__(self, scope: Scope) -> None:
        # HEAD is GET without the answer's body (RFC 9110, 9.3.2): all that the app has to know.
        self._head_only = scope["method"] == "HEAD"
        if self._head_only:
            scope["method"] = "GET"
        self.scope = scope
        self.answered = False
        self.body_ended = False
        self.num_received = 0
        self.num_unread = 0
        self._pieces: deque[bytes | memoryview] = deque()
        self._end_told = False
        self._gone = False
        self._changed = asyncio.Event()
        self._left: Callable[[], None] | None = None
        self._head: Head | None = None
        self._head_sent = False
        self._head_written = False
        self._num_sent = 0

    # The connection's side

    def feed(self, data: bytes | memoryview) -> None:
        """The next piece of the body."""
        self._pieces.append(data)
        self.num_received += len(data)
        self.num_unread += len(data)
        self._changed.set()

    def tell_progress(self, num_received: int) -> None:
        """So much of the body has come, but is not handed out yet."""
        self.num_received = num_received
        self._pieces.append(b"")
        self._changed.set()

    def end_body(self) -> None:
        """There is no more body."""
        self.body_ended = True
        self._changed.set()

    def disconnect(self) -> None:
        """The client is gone; what the app still sends goes nowhere."""
        self._gone = True
        self._changed.set()
        if self._left is not None:
            self._left()

    @property
    def begun(self) -> bool:
        """Whether the client has been sent a part of the answer."""
        return self._head_sent

    # The app's side

    async def run(self, app: ASGIApp) -> None:
        """Call the app; an answer that it leaves out or breaks off is told to the client."""
        self.scope["extensions"] = {PIECE_WRITER: self, WATCH: self.watch}
        try:
            await self._run(app)
        finally:
            # The scope would keep this, and with it the body, until somebody collects garbage.
            del self.scope["extensions"]

    async def _run(self, app: ASGIApp) -> None:
        try:
            await app(self.scope, self.receive, self.send)
            if self.answered or self._gone:
                return
            logger.error("%s %s was not answered whole", self.scope["method"], self.scope["path"])
        except asyncio.CancelledError:
            if not self.answered:
                self._abort()
            raise
        except Exception:
            logger.exception("%s %s failed", self.scope["method"], self.scope["path"])
        if self.answered or self._gone:
            return
        if self._head_sent:
            self._abort()
        else:
            self._head = None
            await self.send(
                {"type": "http.response.start", "status": 500, "headers": FAILED_HEADERS}
            )
            await self.send({"type": "http.response.body", "body": FAILED})

    async def receive(self) -> Message:
        """The next piece of the body, then the disconnect."""
        while not self._gone and not self.answered:
            if self._pieces:
                data = self._pieces.popleft()
                self.num_unread -= len(data)
                if data:
                    self._taken(len(data))
                return self._body(data)
            if self.body_ended and not self._end_told:
                return self._body(b"")
            self._changed.clear()
            self._wanted()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    def watch(self, left: Callable[[], None] | None) -> None:
        """Call `left` when the client goes, at once if it has; None: nobody asks any more."""
        self._left = left
        if left is None:
            return
        if self._gone:
            left()
        else:
            self._wanted()

    async def send(self, message: Message) -> None:
        """Take the head, which waits for the first piece of the body; then piece by piece.

        Raises WrongAnswer for messages out of order and for another length than was announced.
        """
        if message["type"] == "http.response.start":
            if self._head is not None:
                raise WrongAnswer("a second http.response.start was sent")
            self._head = Head.of(message)
            return
        if self._head is None or self.answered:
            raise WrongAnswer(f"{message['type']} was sent before the head or after the end")
        data, more = message.get("body", b""), message.get("more_body", False)
        if self._head.content_length is not None:
            self._check_length(self._head.content_length, len(data), more)
        if self._gone:
            # An app that has not noticed yet must not keep the event loop to itself.
            await asyncio.sleep(0)
            return
        if self._head_sent:
            await self._send_body(b"" if self._bodyless else data, more)
        else:
            self._head_sent = True
            await self._send_head(self._head, b"" if self._bodyless else data, more)
            self._head_written = True
        if not more:
            self.answered = True
            self._changed.set()
            self._ended()

    def ready(self) -> bool:
        """Whether the next piece of the body can be written at once.

        Not before the head is sent, nor where `send` has to wait, to count or to refuse.
        """
        head = self._head
        if head is None or head.content_length is not None:
            return False
        if not self._head_written or self.answered or self._gone or self._bodyless:
            return False
        return self._writable()

    def write(self, data: bytes) -> None:
        """Send one more piece of the body now, where `ready`; a stream has one for every token."""
        raise NotImplementedError

    @property
    def _bodyless(self) -> bool:
        assert self._head is not None
        return self._head_only or self._head.status in BODYLESS_STATUSES

    def _body(self, data: bytes | memoryview) -> Message:
        more = not self.body_ended or bool(self._pieces)
        self._end_told = not more
        return {
            "type": "http.request",
            "body": data,
            "more_body": more,
            NUM_RECEIVED: self.num_received,
        }

    def _check_length(self, announced: int, num_bytes: int, more: bool) -> None:
        self._num_sent += num_bytes
        if self._bodyless:
            return
        if self._num_sent > announced or (not more and self._num_sent < announced):
            raise WrongAnswer(f"{self._num_sent} bytes were sent, {announced} announced")

    # What a wire does

    @abstractmethod
    async def _send_head(self, head: Head, data: bytes, more: bool) -> None:
        """Write the head with the first piece of the body; wait while the client does not read."""

    @abstractmethod
    async def _send_body(self, data: bytes, more: bool) -> None:
        """Write one more piece; wait while the client does not read."""

    def _writable(self) -> bool:
        """Whether `write` would not wait; never where a wire has no such way."""
        return False

    @abstractmethod
    def _wanted(self) -> None:
        """The app waits for the body, or for the client to go."""

    @abstractmethod
    def _taken(self, num_bytes: int) -> None:
        """The app has taken so much of the body."""

    @abstractmethod
    def _ended(self) -> None:
        """The answer is whole."""

    @abstractmethod
    def _abort(self) -> None:
        """Break the answer off, so that the client cannot take it for whole."""
