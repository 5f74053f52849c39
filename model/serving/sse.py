"""Server-sent events: a stream of JSON objects as one response that notices a client's going.

Starlette's own StreamingResponse looks for a disconnect only between two sends on some servers;
here the receiving side is watched all the time, so that a request that still waits is cancelled
as well.
"""

from __future__ import annotations

import logging
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from model.errors import EngineFailure, ServingError
from model.serving.body import INTERNAL_ERROR, until_disconnect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Proxies that buffer would turn the stream into one late answer.
    "X-Accel-Buffering": "no",
}


class EventStream(Response):
    """Objects as `data: {json}` events; an error on the way is a last `{"error": text}` event."""

    def __init__(self, first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None]) -> None:
        super().__init__(headers=HEADERS)
        # The body comes in pieces; Response counted an empty one.
        del self.headers["content-length"]
        self._first = first
        self._rest = rest

    @classmethod
    async def begin(
        cls, receive: Receive, objects: AsyncGenerator[dict[str, Any], None]
    ) -> EventStream:
        """Wait for the first object, so that an error before it is a status and not a 200."""
        return cls(await until_disconnect(receive, _first_of(objects)), objects)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come, until they end or the client goes away."""
        with suppress(ClientDisconnect):
            async with aclosing(self._rest):
                await until_disconnect(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send(_event(self._first))
        try:
            async for item in self._rest:
                await send(_event(item))
        except ServingError as e:
            await send(_event({"error": str(e)}))
        except OSError:
            return  # the client went away in the middle of a send
        except Exception:
            logger.exception("a stream failed")
            await send(_event({"error": INTERNAL_ERROR}))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _first_of(objects: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    async for item in objects:
        return item
    raise EngineFailure("the model gave no answer")


def _event(item: dict[str, Any]) -> dict[str, Any]:
    data = b"data: " + orjson.dumps(item) + b"\n\n"
    return {"type": "http.response.body", "body": data, "more_body": True}
