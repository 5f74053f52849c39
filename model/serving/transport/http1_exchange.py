"""One request of an HTTP/1.1 connection and its answer: heads and pieces as the wire has them."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from model.serving.transport.direct_body import DirectBody
from model.serving.transport.exchange import Exchange, WrongAnswer, error_body

if TYPE_CHECKING:
    import httptools
    from starlette.types import Scope

    from model.serving.transport.exchange import Head
    from model.serving.transport.http1 import Http1Connection

# Smaller bodies come with their head, or in the next piece.
DIRECT_BYTES: Final = 64 * 1024
LAST_CHUNK: Final = b"0\r\n\r\n"


class Http1Exchange(Exchange):
    """A request of HTTP/1.1 and its answer.

    upgrades: it asks for another protocol
    direct: the body, where its length is known and not small
    wanted: the app has asked for the body
    """

    def __init__(
        self,
        connection: Http1Connection,
        scope: Scope,
        parser: httptools.HttpRequestParser,
        max_body_bytes: int,
    ) -> None:
        super().__init__(scope)
        headers = dict(scope["headers"])
        self._connection = connection
        self.upgrades = parser.should_upgrade()
        self.keep_alive = parser.should_keep_alive() and not self.upgrades
        self.expects_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self.wanted = False
        self.direct: DirectBody | None = None
        self._chunked = False
        length = int(headers.get(b"content-length", b"0"))
        if (0 if self.upgrades else DIRECT_BYTES) < length <= max_body_bytes:
            self.direct = DirectBody(length)

    def write(self, data: bytes) -> None:
        """See Exchange."""
        self._connection.write_now(self._framed(data, more=True))

    async def _send_head(self, head: Head, data: bytes, more: bool) -> None:
        self._chunked = head.content_length is None and not self._bodyless
        if self.scope["http_version"] == "1.0":
            self._chunked, self.keep_alive = False, self.keep_alive and not self._chunked
        if self.expects_continue or dict(head.headers).get(b"connection", b"").lower() == b"close":
            # A client that was not asked for its body may send it or not.
            self.keep_alive = self.expects_continue = False
        if self._connection.leaving:
            self.keep_alive = False
        await self._connection.write(self._head_bytes(head) + self._framed(data, more))

    async def _send_body(self, data: bytes, more: bool) -> None:
        framed = self._framed(data, more)
        if framed:
            await self._connection.write(framed)

    def _writable(self) -> bool:
        return self._connection.writable

    def _head_bytes(self, head: Head) -> bytes:
        lines = [status_line(head.status), b"date: " + http_date(int(time.time()))]
        lines += [name + b": " + value for name, value in head.headers if name != b"connection"]
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        if not self.keep_alive:
            lines.append(b"connection: close")
        elif self.scope["http_version"] == "1.0":
            lines.append(b"connection: keep-alive")
        block = b"\r\n".join(lines)
        if block.count(b"\n") != len(lines) - 1 or block.count(b"\r") != len(lines) - 1:
            raise WrongAnswer("a header has a line break in it")
        return block + b"\r\n\r\n"

    def _framed(self, data: bytes, more: bool) -> bytes:
        if not self._chunked:
            return data
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return chunk if more else chunk + LAST_CHUNK

    def _wanted(self) -> None:
        self.wanted = True
        self._connection.want_body(self)

    def _taken(self, num_bytes: int) -> None:
        """Reading goes on when the app asks for more."""

    def _ended(self) -> None:
        self._connection.answered(self)

    def _abort(self) -> None:
        self._connection.abort()


def refusal(status: HTTPStatus, text: str) -> bytes:
    """The whole answer to what is no request; the connection ends after it."""
    body = error_body(text)
    lines = (
        status_line(status),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
    )
    return b"\r\n".join((*lines, b"", body))


@lru_cache(64)
def status_line(status: int) -> bytes:
    """The first line of an answer, without its end."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}".encode()


@lru_cache(2)
def http_date(seconds: int) -> bytes:
    """A moment as HTTP writes it."""
    return formatdate(seconds, usegmt=True).encode()
