"""A small ASGI app on our own transport, in the test's process, and raw connections to it."""

from __future__ import annotations

import asyncio
import socket
import weakref
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from model.errors import ServingError
from model.serving.body import piece_writer, read_body
from model.serving.transport.limits import ConnectionLimits
from model.serving.transport.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS = ConnectionLimits(
    max_head_bytes=8 * 1024,
    max_body_bytes=64 << 20,
    head_seconds=5.0,
    send_idle_seconds=5.0,
    keep_alive_seconds=5.0,
    max_streams=64,
)
ROUTES = {"/": "scope_", "/break": "break_"}
BOUND_BYTES = 2 << 20
# The transport says once a second how far a body is.
PAUSE_SECONDS = 1.2
PIECE = bytes(range(256)) * 256


class App:
    """Routes by path; remembers what it saw.

    /echo: the body; /length: how long it was, and in how many pieces
    /deaf: reads nothing of its body, and ends when `hears` is set
    /refuse: an answer before the body is read; /bounded: a 413 over BOUND_BYTES, else how long
    /pieces: 20 pieces of 64 KiB
    /endless: the same until the client is gone; /wait: nothing until the client is gone
    /written: pieces past the app's layers, until one has to wait for the client
    /break: fails in the middle; /fail: fails at once; /scope: what the app was told
    """

    def __init__(self) -> None:
        self.num_pieces_sent = 0
        self.num_running = 0
        self.gone = asyncio.Event()
        self.began = asyncio.Event()
        self.hears = asyncio.Event()
        self.scope: dict[str, Any] = {}
        self.exchange: weakref.ref[Any] | None = None
        self.num_written = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        # What writes pieces is the exchange itself.
        self.exchange = weakref.ref(piece_writer(scope))
        self.num_running += 1
        self.began.set()
        try:
            await getattr(self, ROUTES.get(scope["path"], scope["path"].strip("/")))(receive, send)
        finally:
            self.num_running -= 1

    async def _start(self, send: Any, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def _answer(self, send: Any, body: bytes, **start: Any) -> None:
        await self._start(send, (b"content-length", b"%d" % len(body)), **start)
        await send({"type": "http.response.body", "body": body})

    async def scope_(self, receive: Any, send: Any) -> None:
        await self._answer(send, b"hello")

    async def echo(self, receive: Any, send: Any) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        await self._start(send)
        await send({"type": "http.response.body", "body": bytes(body)})

    async def length(self, receive: Any, send: Any) -> None:
        num_bytes = num_pieces = 0
        more = True
        while more:
            message = await receive()
            num_bytes += len(message["body"])
            num_pieces += bool(message["body"])
            more = message["more_body"]
        await self._answer(send, b"%d in %d" % (num_bytes, num_pieces))

    async def refuse(self, receive: Any, send: Any) -> None:
        await self._answer(send, b"no", status=413)

    async def bounded(self, receive: Any, send: Any) -> None:
        try:
            body = await read_body(Request(self.scope, receive), BOUND_BYTES, PAUSE_SECONDS)
        except ServingError as e:
            await self._answer(send, str(e).encode(), status=e.status)
        else:
            await self._answer(send, b"%d" % len(body))

    async def deaf(self, receive: Any, send: Any) -> None:
        await self.hears.wait()
        await self._answer(send, b"heard nothing")

    async def farewell(self, receive: Any, send: Any) -> None:
        await self._start(send, (b"connection", b"close"), (b"content-length", b"0"))
        await send({"type": "http.response.body", "body": b""})

    async def pieces(self, receive: Any, send: Any) -> None:
        await self._start(send)
        for _ in range(20):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def endless(self, receive: Any, send: Any) -> None:
        await self._start(send)
        sending = asyncio.create_task(self._send_for_ever(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()
        self.gone.set()

    async def _send_for_ever(self, send: Any) -> None:
        while True:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            self.num_pieces_sent += 1

    async def written(self, receive: Any, send: Any) -> None:
        writer = piece_writer(self.scope)
        self.num_written = 0
        assert not writer.ready(), "the head has not been sent"
        await self._start(send)
        assert not writer.ready(), "the head waits for the first piece"
        await send({"type": "http.response.body", "body": b"0", "more_body": True})
        for number in range(1, 4):
            if writer.ready():
                writer.write(b"%d" % number)
                self.num_written += 1
            else:
                await send(
                    {"type": "http.response.body", "body": b"%d" % number, "more_body": True}
                )
        while self.scope["query_string"] == b"endless" and writer.ready():
            writer.write(PIECE)
            self.num_written += 1
        await send({"type": "http.response.body", "body": b""})
        assert not writer.ready(), "the answer is whole"

    async def written_length(self, receive: Any, send: Any) -> None:
        writer = piece_writer(self.scope)
        await self._start(send, (b"content-length", b"2"))
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        assert not writer.ready(), "the bytes of an announced length are counted"
        await send({"type": "http.response.body", "body": b"b"})

    async def wait(self, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    async def slowly(self, receive: Any, send: Any) -> None:
        await self._start(send)
        for i in range(5):
            await send({"type": "http.response.body", "body": b"%d" % i, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b""})

    async def fail(self, receive: Any, send: Any) -> None:
        raise ValueError("on purpose")

    async def break_(self, receive: Any, send: Any) -> None:
        await self._start(send)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("on purpose")


class Served:
    """The app, its server, and where it listens."""

    def __init__(self, app: App, server: HttpServer, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._wires: list[Wire] = []

    async def connect(self) -> Wire:
        """A raw connection."""
        self._wires.append(Wire(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self._wires[-1]

    async def hang_up(self) -> None:
        """Close all raw connections."""
        for wire in self._wires:
            wire.close()
            with suppress(ConnectionError):
                await wire.writer.wait_closed()


class Wire:
    """A client that says exactly what a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), 5)

    async def read_to_end(self) -> bytes:
        """Everything up to the end of the connection, which must come."""
        try:
            return await asyncio.wait_for(self.reader.read(), 5)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Cut the connection, as a client that crashes."""
        self.writer.transport.abort()


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[Served]:
    """The app on a free port; everything it started has ended afterwards."""
    app = App()
    server = HttpServer(app, replace(LIMITS, **limits))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    await server.start(listener)
    one = Served(app, server, port)
    try:
        yield one
    finally:
        await one.hang_up()
        await server.stop(0.2)
        assert app.num_running == 0
