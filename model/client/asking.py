"""One question over HTTP, asked until it is answered or there is no point in asking again.

A busy server (429) is asked again until the answer's time is up; one that is not there or not ready
(no connection, 502, 503) only for a while. `Retry-After` is followed.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROUTE: Final = "/api/v1/describe"
CONNECT_SECONDS: Final = 10.0
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 8.0
MAX_EXCERPT: Final = 200


class NoAnswer(Exception):
    """One question that got no answer; status is HTTP's, where there was one."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Unavailable(NoAnswer):
    """No server there that would answer any question."""


class KeyRefused(NoAnswer):
    """A server that wants another API key."""


class Patience(NamedTuple):
    """Seconds: for one answer with all its waits; for a server that is not there or not ready."""

    timeout_seconds: float
    wait_seconds: float


class _Later(Exception):
    """What may work when it is tried again: in `after_seconds`, where the server says so."""

    def __init__(self, failure: NoAnswer, after_seconds: float | None = None) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.after_seconds = after_seconds


class _Tries:
    """The tries of one question: how long to pause before the next, and when to give up."""

    def __init__(self, wait_seconds: float) -> None:
        self.last: NoAnswer | None = None
        self._wait_seconds = wait_seconds
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._unavailable_since: float | None = None

    def pause(self, later: _Later, now: float) -> float:
        """Seconds to pause after a failed try; raises its failure where that is too long."""
        self.last = later.failure
        seconds = later.after_seconds
        if seconds is None:
            seconds = self._pause_seconds
            self._pause_seconds = min(2 * seconds, LONGEST_PAUSE_SECONDS)
        if not isinstance(later.failure, Unavailable):
            self._unavailable_since = None
            return seconds
        if self._unavailable_since is None:
            self._unavailable_since = now
        if now + seconds > self._unavailable_since + self._wait_seconds:
            raise later.failure
        return seconds


class Asker:
    """Asks one server; a context that closes its connections.

    transport: None for the network
    notify: told, in a sentence, why an answer takes longer
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        patience: Patience,
        notify: Callable[[str], None],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        # How long an answer may take is judged over all its tries.
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, transport=transport)
        self._server = url
        self._patience = patience
        self._notify = notify

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    async def ask(
        self, question: dict[str, Any], on_text: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """The whole answer; `on_text`, where given, is told its text as it comes.

        Raises NoAnswer.
        """
        streaming = {"stream": True} if on_text else {}
        body = json.dumps({**question, **streaming}).encode()
        tries = _Tries(self._patience.wait_seconds)
        try:
            async with asyncio.timeout(self._patience.timeout_seconds):
                while True:
                    try:
                        return await self._once(body, on_text)
                    except _Later as later:
                        seconds = tries.pause(later, time.monotonic())
                        self._notify(f"waiting: {later}")
                        await asyncio.sleep(seconds)
        except TimeoutError as e:
            text = f"no answer in {self._patience.timeout_seconds:g} s"
            if tries.last is None:
                raise NoAnswer(text) from e
            raise NoAnswer(f"{text}; the last try: {tries.last}", tries.last.status) from e

    async def _once(self, body: bytes, on_text: Callable[[str], None] | None) -> dict[str, Any]:
        num_told = 0

        def tell(text: str) -> None:
            nonlocal num_told
            num_told += 1
            assert on_text is not None
            on_text(text)

        url = self._server + ROUTE
        try:
            async with self._client.stream("POST", url, content=body) as response:
                if response.status_code != HTTPStatus.OK:
                    await response.aread()
                    raise self._refusal(response)
                if on_text is None:
                    return _object(await response.aread())
                return await _follow(response, tell)
        except httpx.TransportError as e:
            if num_told:
                raise NoAnswer(f"the connection broke in the middle of the answer: {e}") from e
            raise _Later(Unavailable(f"cannot reach {self._server}: {_reason(e)}")) from e
        except json.JSONDecodeError as e:
            raise Unavailable(f"{url} is answered by something else: no JSON") from e

    def _refusal(self, response: httpx.Response) -> Exception:
        """What a status other than 200 means for this question and the next."""
        status, text = response.status_code, _error_text(response)
        match status:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return KeyRefused(f"{self._server} refuses the API key: {text}", status)
            case HTTPStatus.TOO_MANY_REQUESTS:
                return _Later(NoAnswer(text, status), _retry_after(response))
            case HTTPStatus.BAD_GATEWAY | HTTPStatus.SERVICE_UNAVAILABLE:
                failure = Unavailable(f"{self._server} is not ready: {text}", status)
                return _Later(failure, _retry_after(response))
            case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
                return Unavailable(f"{self._server} describes no pictures: {text}", status)
            case _ if response.is_redirect:
                target = response.headers.get("location", "another place")
                return Unavailable(f"{self._server} redirects to {target}: give that URL", status)
            case _:
                return NoAnswer(text, status)


async def _follow(response: httpx.Response, on_text: Callable[[str], None]) -> dict[str, Any]:
    """Read a stream of server-sent events to its end, which is the whole answer."""
    async for line in _lines(response.aiter_bytes()):
        field, _, data = line.partition(b":")
        if field != b"data":
            continue
        event = _object(data)
        match event.get("type"):
            case "delta":
                on_text(str(event["text"]))
            case "end":
                return {key: value for key, value in event.items() if key != "type"}
            case "error":
                raise NoAnswer(str(event.get("error")), event.get("status"))
    raise NoAnswer("the answer was cut off")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines that end with a line feed, which is the only end of a line in JSON.

    httpx's own would also end them at U+2028 and its like, inside a text.
    """
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line


def _object(text: bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise json.JSONDecodeError("no object", "", 0)
    return value


def _error_text(response: httpx.Response) -> str:
    """What an error answer says, of this server or of a gateway before it."""
    try:
        error = _object(response.content).get("error")
    except ValueError:
        error = None
    if isinstance(error, dict):
        error = error.get("message")
    if isinstance(error, str):
        return error
    excerpt = " ".join(response.text.split())[:MAX_EXCERPT]
    return f"{response.status_code} {response.reason_phrase}: {excerpt}".rstrip(": ")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds until the server wants to be asked again; None where it does not say."""
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reason(error: httpx.TransportError) -> str:
    """Why there is no connection, as the operating system says it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f"{cause.strerror}"
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError):
            # asyncio's own text holds the address, once more.
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
