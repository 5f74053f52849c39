"""Streams of JSON objects, as server-sent events or as lines, that notice a client's going.

Starlette's own StreamingResponse looks for a disconnect only between two sends on some servers;
here the receiving side is watched all the time, so that a request that still waits is cancelled
as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from model.errors import EngineFailure, ServingError
from model.serving.body import INTERNAL_ERROR, piece_writer, until_disconnect
from model.serving.tap import Tap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager

    from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

# Proxies close what is silent for a minute, some for half of one.
KEEP_ALIVE_SECONDS: Final = 15.0
EVENT_STREAM: Final = "text/event-stream"
JSON_LINES: Final = "application/x-ndjson"
HEADERS: Final = {
    "Cache-Control": "no-cache",
    # Proxies that buffer would turn the stream into one late answer.
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """How objects become bytes.

    encode: one object, or whatever else a stream yields
    error: the object that tells an error on the way
    keep_alive: sent while there is nothing to tell, b"" for never; end: sent after the last object
    """

    content_type: str
    encode: Callable[[Any], bytes]
    error: Callable[[ServingError], dict[str, Any]]
    keep_alive: bytes = b""
    end: bytes = b""


def data_event(item: dict[str, Any] | bytes) -> bytes:
    """A server-sent event without a name; bytes are one already."""
    return item if isinstance(item, bytes) else b"data: " + orjson.dumps(item) + b"\n\n"


def typed_event(item: dict[str, Any]) -> bytes:
    """A server-sent event named after the object's `type`."""
    return b"event: " + str(item["type"]).encode() + b"\n" + data_event(item)


def json_line(item: dict[str, Any]) -> bytes:
    """A line of NDJSON."""
    return orjson.dumps(item) + b"\n"


def plain_error(error: ServingError) -> dict[str, Any]:
    """An error as V2 clients expect it."""
    return {"error": str(error)}


def typed_error(error: ServingError) -> dict[str, Any]:
    """An error as one more type of object, with the status it would have had as an answer."""
    return {"type": "error", "error": str(error), "status": int(error.status)}


SSE_TYPE: Final = f"{EVENT_STREAM}; charset=utf-8"
COMMENT: Final = b": keep-alive\n\n"
EVENTS: Final = StreamFormat(SSE_TYPE, data_event, plain_error, COMMENT)
TYPED_EVENTS: Final = StreamFormat(SSE_TYPE, typed_event, typed_error, COMMENT)
TYPED_LINES: Final = StreamFormat(JSON_LINES, json_line, typed_error)
TYPED_FORMS: Final = {EVENT_STREAM: TYPED_EVENTS, JSON_LINES: TYPED_LINES}


def wanted_form(accept: str, stream: bool | None) -> StreamFormat | None:
    """The typed stream that a request asks for; None: one whole answer.

    stream: what the body says of it; where it says nothing, an Accept header of nothing but a
    stream's types asks for one
    """
    types = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    forms = [TYPED_FORMS[name] for name in types if name in TYPED_FORMS]
    if stream is None:
        stream = len(forms) == len(types)
    if not stream:
        return None
    return forms[0] if forms else TYPED_EVENTS


class Outlet:
    """Where the objects of one stream leave, in one format: the answer to a request."""

    def __init__(self, scope: Scope, form: StreamFormat) -> None:
        self.form = form
        self.last_sent = 0.0
        self._writer = piece_writer(scope)

    @property
    def tap(self) -> Tap[Any]:
        """The short way, for who makes the objects; kept here it would keep this, and the request
        with it, until somebody collects garbage.
        """
        return Tap(self._writer.ready, self._put)

    async def send(self, item: object, send: Send) -> None:
        """Send an object, at once or as soon as the client has read enough."""
        if self._writer.ready():
            self._put(item)
            return
        self.last_sent = time.monotonic()
        await send(_piece(self.form.encode(item)))

    def _put(self, item: object) -> None:
        """Whoever makes objects may find that there is nothing to say."""
        if item:
            self.last_sent = time.monotonic()
            self._writer.write(self.form.encode(item))


class EventStream(Response):
    """Objects as they come, in one format, from the first of them to the end.

    objects: an error before the first is raised, so that it is a status and not a 200; an error on
    the way is told by a last object
    held: what the request holds until its last byte, which is long after its handler has returned

    Where there are comments, the answer begins no later than a connection may be silent.
    """

    def __init__(
        self,
        objects: AsyncGenerator[Any, None],
        outlet: Outlet,
        held: AbstractContextManager[object],
    ) -> None:
        super().__init__(headers={"Content-Type": outlet.form.content_type, **HEADERS})
        # The body comes in pieces; Response counted an empty one.
        del self.headers["content-length"]
        self._objects = objects
        self._outlet = outlet
        self._held = held
        self._begun = False
        self._keeping_alive: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the objects as they come, until they end or the client goes away.

        Raises ClientDisconnect if it goes before the first.
        """
        with self._held:
            try:
                async with aclosing(self._objects):
                    await until_disconnect(scope, receive, self._send(send))
            except ClientDisconnect:
                if not self._begun:
                    raise

    async def _send(self, send: Send) -> None:
        form = self._outlet.form
        patience = None
        if form.keep_alive:
            loop = asyncio.get_running_loop()
            patience = loop.call_later(KEEP_ALIVE_SECONDS, self._keep_alive, send)
        try:
            async with aclosing(self._told()) as objects:
                async for item in objects:
                    await self._begin(send)
                    await self._outlet.send(item, send)
        except OSError:
            if not self._begun:
                raise
            return  # the client went away in the middle of a send
        finally:
            if patience is not None:
                patience.cancel()
            if self._keeping_alive is not None:
                self._keeping_alive.cancel()
                await asyncio.gather(self._keeping_alive, return_exceptions=True)
        await send({"type": "http.response.body", "body": form.end, "more_body": False})

    async def _begin(self, send: Send) -> None:
        """Send the head, once."""
        if not self._begun:
            self._begun = True
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})

    async def _told(self) -> AsyncGenerator[Any, None]:
        """All objects; the last tells what went wrong after the answer began, if anything did."""
        num_objects = 0
        try:
            async for item in self._objects:
                num_objects += 1
                yield item
            if not num_objects:
                raise EngineFailure("the model gave no answer")
        except ServingError as e:
            if not self._begun:
                raise
            yield self._outlet.form.error(e)
        except Exception:
            if not self._begun:
                raise
            logger.exception("a stream failed")
            yield self._outlet.form.error(EngineFailure(INTERNAL_ERROR))

    def _keep_alive(self, send: Send) -> None:
        """Most streams have ended before the first comment is due: none has this task till then."""
        self._keeping_alive = asyncio.create_task(self._comment(send))

    async def _comment(self, send: Send) -> None:
        """Send a comment whenever nothing was sent for a while."""
        outlet = self._outlet
        await self._begin(send)
        while True:
            silent_seconds = time.monotonic() - outlet.last_sent
            if silent_seconds >= KEEP_ALIVE_SECONDS:
                outlet.last_sent, silent_seconds = time.monotonic(), 0.0
                await send(_piece(outlet.form.keep_alive))
            await asyncio.sleep(KEEP_ALIVE_SECONDS - silent_seconds)


def _piece(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}
