"""A name for every HTTP request: on its answer, in the log, and wherever a protocol tells one.

Plain ASGI around the whole app, so that answers to unforeseen errors carry it too, and streams and
disconnects pass through untouched.
"""

from __future__ import annotations

import logging
import random
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

HEADER: Final = "X-Request-Id"
# What may stand in a header, a log line and a URL as it is.
CLIENTS_OWN: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_random: Final = random.Random()


class RequestIds:
    """An app whose every answer carries X-Request-Id: the client's own, or a new one.

    ended: told each request's scope, once routed, and status; None where no answer was begun
    """

    def __init__(
        self, app: ASGIApp, ended: Callable[[Scope, int | None], None] = lambda scope, status: None
    ) -> None:
        self._app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request, answer it, and log it at debug."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if CLIENTS_OWN.fullmatch(given) else new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.monotonic()
        status: int | None = None

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            self._ended(scope, status)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(
                    "%s %s %s: %s, %.1f ms",
                    request_id,
                    scope["method"],
                    quote(scope["path"]),
                    status or "no answer",
                    (time.monotonic() - started) * 1000,
                )


def new_id() -> str:
    """A name that no other request has, for people and logs: it is no secret.

    Asked for randomness, the kernel would let other threads have the interpreter meanwhile.
    """
    return f"{_random.getrandbits(128):032x}"


def request_id_of(request: Request) -> str:
    """The name that RequestIds gave it."""
    return str(request.state.request_id)
