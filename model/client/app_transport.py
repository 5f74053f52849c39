"""Requests to an ASGI application in this process, its answers read as they come.

httpx's own ASGITransport hands an answer on once it is whole.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Scope

logger = logging.getLogger(__name__)


class AppTransport(httpx.AsyncBaseTransport):
    """An httpx transport to one application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Start the application's call; returns as soon as it has sent a status."""
        exchange = _Exchange(await request.aread())
        call = asyncio.create_task(self._call(_scope(request), exchange))
        try:
            start = await exchange.sent.get()
        except asyncio.CancelledError:
            await exchange.close(call)
            raise
        if start is None:
            raise httpx.RemoteProtocolError("the application ended without an answer")
        return httpx.Response(
            start["status"], headers=start["headers"], stream=_Body(exchange, call)
        )

    async def _call(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:  # as a server does: its client is told by the answer, if any
            logger.exception("the application failed")
        finally:
            exchange.sent.put_nowait(None)


class _Exchange:
    """One request's body, and what the application has sent: messages, then None."""

    def __init__(self, body: bytes) -> None:
        self.sent: asyncio.Queue[Message | None] = asyncio.Queue()
        self._body: bytes | None = body
        self._closed = asyncio.Event()

    async def receive(self) -> Message:
        """The whole body; after it, the client's going."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a piece of the answer."""
        self.sent.put_nowait(message)

    async def close(self, call: asyncio.Task[None]) -> None:
        """Tell the application that the client has gone, and wait for its end."""
        self._closed.set()
        await asyncio.wait([call])


class _Body(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange, call: asyncio.Task[None]) -> None:
        self._exchange = exchange
        self._call = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._exchange.sent.get()) is not None:
            yield message.get("body", b"")

    async def aclose(self) -> None:
        await self._exchange.close(self._call)


def _scope(request: httpx.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 0),
        "server": (request.url.host, request.url.port or 80),
    }
