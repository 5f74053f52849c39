"""HTTP/1.1 on one connection: llhttp reads the heads, the body goes straight to where it stays.

A body of known length is received into the buffer that the app gets: the kernel's copy is the only
one. Everything else goes through the parser piece by piece. Bounded are the head in bytes and
seconds, the body that waits for the app, and the time for which a client may not read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import httptools

from model.serving.transport.exchange import make_scope
from model.serving.transport.http1_exchange import Http1Exchange, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope

    from model.serving.transport.direct_body import DirectBody
    from model.serving.transport.server import HttpServer

# Of the body that the app has not asked for yet.
HIGH_WATER_BYTES: Final = 64 * 1024
# How long a client may go on sending what nobody reads; a reset would cost it our answer.
LINGER_SECONDS: Final = 2.0
# The colon, the space and the line's end; else thousands of empty headers would count for nothing.
HEADER_FRAMING_BYTES: Final = 4
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class HeadTooLarge(Exception):
    """A request's head is longer than the limit."""


class Http1Connection(asyncio.BufferedProtocol):
    """One client's connection; its requests are answered in their order."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading = True
        self._deaf = False
        # The request whose body is coming, the one that is being answered, and those behind it.
        self._incoming: Http1Exchange | None = None
        self._current: Http1Exchange | None = None
        self._waiting: deque[Http1Exchange] = deque()
        self._direct: DirectBody | None = None
        self._in_head = False
        self._head_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first head."""
        self._transport = transport  # type: ignore[assignment]
        self._server.joined(self)
        self._arm(self._limits.head_seconds, self.close)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the buffer that all connections share, or a body's own."""
        return self._server.buffer if self._direct is None else self._direct.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come."""
        if self._direct is None:
            self._parse(self._server.buffer[:nbytes])
            return
        assert self._incoming is not None
        self._direct.advance(nbytes)
        if self._direct.complete:
            self._direct = None
            # The old one still waits for the body.
            self._parser = httptools.HttpRequestParser(self)
            self.on_message_complete()
        elif self._direct.tells_progress():
            self._incoming.tell_progress(self._direct.num_received)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever still waits."""
        self._server.left(self)
        self._disarm()
        for exchange in (self._incoming, self._current, *self._waiting):
            if exchange is not None:
                exchange.disconnect()
        self._waiting.clear()
        self._writable.set()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    # What the server and the exchanges call

    def close(self) -> None:
        """Close once everything written is on its way, without waiting for ever."""
        self._transport.close()
        self._arm(self._limits.send_idle_seconds, self._transport.abort)

    def shutdown(self) -> None:
        """Close now, or after the answer that is being given."""
        if self._current is None:
            self.close()

    def leave(self) -> None:
        """HTTP/1.1 says nothing ahead: the next answer closes the connection."""

    def go_away(self) -> None:
        """Close it if nothing is being asked: a client that looks before it asks loses nothing."""
        if self._current is None and self._incoming is None and not self._in_head:
            self.close()

    @property
    def leaving(self) -> bool:
        """Whether the next answer is the last."""
        return self._server.leaving

    def abort(self) -> None:
        """Cut the connection, so that an answer that was begun is not taken for whole."""
        self._transport.abort()

    async def write(self, data: bytes) -> None:
        """Write, as soon as the client has read enough of what came before."""
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(self._limits.send_idle_seconds):
                    await self._writable.wait()
            except TimeoutError:
                self._transport.abort()
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def writable(self) -> bool:
        """Whether `write` would not wait, and not be in vain."""
        return self._writable.is_set() and not self._transport.is_closing()

    def write_now(self, data: bytes) -> None:
        """Write where it is `writable`."""
        self._transport.write(data)

    def want_body(self, exchange: Http1Exchange) -> None:
        """The app waits: tell a client that waits too, and read on."""
        if exchange.expects_continue:
            exchange.expects_continue = False
            self._transport.write(CONTINUE)
        if not self._waiting:
            self._read(True)

    def answered(self, exchange: Http1Exchange) -> None:
        """Go on with the next request, or wait for one."""
        self._current = None
        if exchange.body_ended and exchange.keep_alive and not self._deaf:
            self._next()
        elif exchange.body_ended:
            self.close()
        elif exchange.keep_alive:
            if exchange.direct is not None:
                exchange.direct.drop(self._server.buffer)
            self._read(True)
            self._arm(LINGER_SECONDS, self.close)
        else:
            self._linger()

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers = b"", []
        self._in_head, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole: the app can begin."""
        self._in_head = False
        self._disarm()
        size = len(self._url) + sum(
            len(name) + len(value) + HEADER_FRAMING_BYTES for name, value in self._headers
        )
        if size > self._limits.max_head_bytes:
            raise HeadTooLarge
        exchange = Http1Exchange(self, self._scope(), self._parser, self._limits.max_body_bytes)
        self._incoming = exchange
        if self._current is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self._read(False)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        exchange = self._incoming
        assert exchange is not None
        if exchange.answered:
            return
        if exchange.direct is not None:
            exchange.direct.add(body)
            return
        exchange.feed(body)
        if exchange.num_unread > HIGH_WATER_BYTES:
            self._read(False)

    def on_message_complete(self) -> None:
        """The body is whole."""
        exchange = self._incoming
        assert exchange is not None
        if exchange.upgrades and exchange.direct is not None and not exchange.direct.complete:
            return  # see _ignore_upgrade
        self._incoming = None
        if exchange.direct is not None and not exchange.answered:
            exchange.feed(exchange.direct.body)
        exchange.end_body()
        if exchange.answered and not self._deaf:
            self._next()

    # Inside

    def _parse(self, data: memoryview) -> None:
        if self._deaf:
            return
        if self._current is None and self._incoming is None and not self._in_head:
            self._arm(self._limits.head_seconds, self.close)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._ignore_upgrade(data[e.args[0] :])
            return
        except httptools.HttpParserCallbackError as e:
            self._refuse(isinstance(e.__context__, HeadTooLarge))
            return
        except httptools.HttpParserError:
            self._refuse(too_large=False)
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse(too_large=True)
        elif self._incoming is not None and self._incoming.direct is not None:
            self._direct = self._incoming.direct
            self._read(self._incoming.wanted or self._incoming.answered)

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """Answer the request as if it had not asked; llhttp takes its body for another protocol's.

        What comes after it is not listened to: the answer closes the connection.
        """
        self._deaf = True
        if self._incoming is None:
            return
        direct = self._incoming.direct
        assert direct is not None
        direct.add(rest[: direct.num_left])
        if direct.complete:
            self.on_message_complete()
        else:
            self._direct = direct

    def _scope(self) -> Scope:
        url = httptools.parse_url(self._url)
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        transport = self._transport
        return make_scope(
            method=self._parser.get_method().decode("ascii"),
            path=unquote(path) if "%" in path else path,
            raw_path=raw_path,
            query=url.query or b"",
            headers=self._headers,
            http_version=self._parser.get_http_version(),
            client=transport.get_extra_info("peername")[:2],
            server=transport.get_extra_info("sockname")[:2],
        )

    def _start(self, exchange: Http1Exchange) -> None:
        self._current = exchange
        self._server.spawn(exchange)

    def _next(self) -> None:
        """The request behind the one that has been answered, if it is there already."""
        if self._server.stopping:
            self.close()
            return
        if self._waiting:
            self._start(self._waiting.popleft())
        else:
            limits = self._limits
            seconds = limits.head_seconds if self._in_head else limits.keep_alive_seconds
            self._arm(seconds, self.close)
        if not self._waiting:
            self._read(True)

    def _refuse(self, too_large: bool) -> None:
        """Tell the client that its request is none, and listen to it no more."""
        self._deaf = True
        if self._current is not None:
            self._waiting.clear()
            if self._incoming is not self._current:
                # An answer is on its way: it stays whole, and is the last one.
                self._incoming = None
                return
            if self._current.begun:
                self.abort()
                return
            # The body is broken: the app must not take what has come of it for the whole.
            self._current.disconnect()
        status, text = HTTPStatus.BAD_REQUEST, "the request is not valid HTTP/1.1"
        if too_large:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            limit = self._limits.max_head_bytes
            text = f"the request's head is larger than the limit of {limit} bytes"
        self._transport.write(refusal(status, text))
        self._linger()

    def _linger(self) -> None:
        """End our side, and give the client the time to read that before it is cut off."""
        self._deaf = True
        self._direct = None
        self._transport.write_eof()
        self._read(True)
        self._arm(LINGER_SECONDS, self.close)

    def _read(self, wanted: bool) -> None:
        if wanted == self._reading or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._server.loop.call_later(seconds, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
