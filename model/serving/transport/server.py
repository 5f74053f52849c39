"""Listens, chooses between HTTP/1.1 and HTTP/2 by the first bytes, and ends in good order.

HTTP/2 is spoken in cleartext with prior knowledge, as Envoy, Knative and KServe do on ports they
call h2c; `Upgrade: h2c` is not taken, which RFC 9113 has withdrawn.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from model.serving.transport.http1 import Http1Connection
from model.serving.transport.http2 import Http2Connection

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp

    from model.serving.transport.exchange import Exchange
    from model.serving.transport.limits import ConnectionLimits

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Enough of it to know: no method of HTTP/1.1 begins so.
PREFACE_BEGIN: Final = PREFACE[:4]
READ_BYTES: Final = 256 * 1024
BACKLOG: Final = 2048
FAREWELL_SECONDS: Final = 0.5


class Connection(Protocol):
    """What the server asks of a connection of either kind."""

    def leave(self) -> None:
        """Ask for the next requests elsewhere, and answer those that still come."""

    def go_away(self) -> None:
        """Take no more requests here, as far as the protocol can say so; close what is idle."""

    def shutdown(self) -> None:
        """Close now, or after the answers that are being given."""

    def abort(self) -> None:
        """Close at once."""


class HttpServer:
    """An ASGI app on a bound socket.

    leaving: each connection's next answer is its last, where the protocol cannot say so ahead
    stopping: no further request is answered on the connections that are open
    buffer: what asyncio receives into; used and done with in one call, so that one serves all
    """

    def __init__(self, app: ASGIApp, limits: ConnectionLimits) -> None:
        self._app = app
        self.limits = limits
        self.leaving = False
        self.stopping = False
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.loop: asyncio.AbstractEventLoop
        self._connections: set[Connection] = set()
        self._closed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server

    async def start(self, listener: socket.socket) -> None:
        """Accept connections from now on."""
        self.loop = asyncio.get_running_loop()
        self._listener = await self.loop.create_server(
            lambda: _FirstBytes(self), sock=listener, backlog=BACKLOG
        )

    def joined(self, connection: Connection) -> None:
        """A connection is open."""
        self._connections.add(connection)
        self._closed.clear()

    def left(self, connection: Connection) -> None:
        """It is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._closed.set()

    def spawn(self, exchange: Exchange) -> asyncio.Task[None]:
        """Let the app answer."""
        task = self.loop.create_task(exchange.run(self._app))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def leave(self) -> None:
        """Ask the clients that are connected to send their next requests elsewhere.

        A kept connection stays with its server, whatever load balancers have heard since.
        """
        self.leaving = True
        for connection in tuple(self._connections):
            connection.leave()

    def go_away(self) -> None:
        """Be done with all connections but those that are being answered."""
        for connection in tuple(self._connections):
            connection.go_away()

    async def stop(self, grace_seconds: float) -> None:
        """Close everything; what is still being answered gets so long."""
        self.stopping = True
        self._listener.close()
        for connection in tuple(self._connections):
            connection.shutdown()
        await self._wait(grace_seconds)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._wait(FAREWELL_SECONDS)
        for connection in tuple(self._connections):
            connection.abort()

    async def _wait(self, seconds: float) -> None:
        """Until the last connection is closed, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._connections:
                    await self._closed.wait()


class _FirstBytes(asyncio.BufferedProtocol):
    """A new connection, until enough has come to know what it speaks."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._received = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.joined(self)
        self._timer = self._server.loop.call_later(
            self._server.limits.head_seconds, transport.close
        )

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.buffer[len(self._received) :]

    def buffer_updated(self, nbytes: int) -> None:
        num_bytes = len(self._received) + nbytes
        self._server.buffer[: len(self._received)] = self._received
        begin = bytes(self._server.buffer[: len(PREFACE_BEGIN)])[:num_bytes]
        if begin != PREFACE_BEGIN and PREFACE_BEGIN.startswith(begin):
            self._received = begin
            return
        speaks_http2 = begin == PREFACE_BEGIN
        protocol = (Http2Connection if speaks_http2 else Http1Connection)(self._server)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._leave()
        protocol.buffer_updated(num_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def leave(self) -> None:
        """Nothing was asked yet."""

    def go_away(self) -> None:
        """What is asked at last is refused, which is more than a closed connection says."""

    def shutdown(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _leave(self) -> None:
        self._timer.cancel()
        self._server.left(self)
