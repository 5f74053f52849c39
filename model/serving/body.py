"""HTTP's edges, the same for every protocol: bodies read within bounds, errors told in one form.

Errors are `{"error": text}`, as V2 clients expect it, unless the app's form says otherwise for a
path. Knows no protocol's own words.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from contextlib import aclosing, contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from model.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    NotReady,
    ServingError,
    UnsupportedMediaType,
)
from model.serving.parameters import shown
from model.serving.routing import allowed_methods

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterator

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import Receive, Scope

T = TypeVar("T")
# A view is a large body where the transport received it.
Body: TypeAlias = bytearray | memoryview

# The body of an error, from the request's path, the text, the status and, where it is one of ours,
# the error itself.
ErrorForm = Callable[[str, str, int, ServingError | None], dict[str, Any]]

INFLATE_BYTES: Final = 1 << 20
DISCARD_SECONDS: Final = 1.0
GZIP_WBITS: Final = 31
CLIENT_CLOSED_REQUEST: Final = 499
# A key of ASGI's http.request messages: bytes of the body that have come so far.
NUM_RECEIVED: Final = "num_received"
# Keys of ASGI's scope["extensions"]: see PieceWriter and Watch.
PIECE_WRITER: Final = "qwen3vl.piece_writer"
WATCH: Final = "qwen3vl.watch"
# Whom to call when the client goes, or None for nobody any more. The body must have been read.
Watch: TypeAlias = Callable[[Callable[[], None] | None], None]
INTERNAL_ERROR: Final = "internal error; the server's log says more"


async def read_body(request: Request, max_bytes: int, idle_seconds: float) -> Body:
    """The whole body, decompressed, of at most `max_bytes` before and after.

    idle_seconds: the longest pause between two pieces
    Raises BodyTooLarge, BodyTimeout, UnsupportedMediaType, InvalidRequest for a corrupt or cut-off
    body, and ClientDisconnect.
    """
    inflater = _inflater(request.headers.get("content-encoding", ""))
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        await discard_body(request, max_bytes)
        raise BodyTooLarge(int(declared), max_bytes)
    body = bytearray()
    num_received = 0
    async with aclosing(_unpausing(request, idle_seconds)) as chunks:
        async for chunk in chunks:
            num_received += len(chunk)
            pieces = inflater.feed(chunk) if inflater else (chunk,)
            for piece in pieces:
                if isinstance(piece, memoryview):
                    return piece  # the whole of it, where it was received
                body += piece
                if len(body) > max_bytes or num_received > max_bytes:
                    num_bytes = max(len(body), num_received)
                    body.clear()
                    await _discard(chunks, max_bytes)
                    raise BodyTooLarge(num_bytes, max_bytes)
                if inflater:
                    # A small chunk may inflate a thousandfold: let others have a turn.
                    await asyncio.sleep(0)
    if inflater:
        inflater.finish()
    return body


async def _unpausing(
    request: Request, idle_seconds: float
) -> AsyncGenerator[bytes | memoryview, None]:
    """The body's pieces; raises BodyTimeout when the next one is too long in coming."""
    num_bytes = 0
    more = True
    while more:
        try:
            async with asyncio.timeout(idle_seconds):
                message = await request.receive()
        except TimeoutError as e:
            raise BodyTimeout(num_bytes, idle_seconds) from e
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        # Our own transport says how far it is with a body that it gives in one piece at the end.
        num_bytes = message.get(NUM_RECEIVED, num_bytes + len(chunk))
        if chunk:
            yield chunk


async def discard_body(request: Request, max_bytes: int) -> None:
    """Take a body that will not be used, for a moment, so that its sender reads our answer.

    A socket closed on unread data is reset, and the client would see that instead of the error.
    """
    if "100-continue" in request.headers.get("expect", "").lower():
        return
    async with aclosing(request.stream()) as chunks:
        await _discard(chunks, max_bytes)


async def _discard(chunks: AsyncIterable[bytes | memoryview], max_bytes: int) -> None:
    num_bytes = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_SECONDS):
            async for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    return


class _Inflater:
    """gzip (any number of members) or deflate (with or without zlib's header), piece by piece."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._head = b""
        self._stream: Any = None

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Pieces of at most INFLATE_BYTES; raises InvalidRequest for corrupt data."""
        self._head += data
        # Two bytes tell whether zlib's header is there.
        while len(self._head) >= 2 or (self._head and self._stream is not None):
            if self._stream is None or self._stream.eof:
                self._stream = zlib.decompressobj(self._wbits())
            data, self._head = self._head, b""
            while True:
                try:
                    piece = self._stream.decompress(data, INFLATE_BYTES)
                except zlib.error as e:
                    raise InvalidRequest(f"the {self._encoding} body is corrupt: {e}") from e
                data = self._stream.unconsumed_tail
                if piece:
                    yield piece
                if not data and len(piece) < INFLATE_BYTES:
                    break
            if self._stream.eof:
                self._head = self._stream.unused_data
                if self._head and self._encoding != "gzip":
                    raise InvalidRequest("the deflate body has bytes after its end")

    def finish(self) -> None:
        """Raise InvalidRequest unless the data was whole."""
        if self._stream is None or not self._stream.eof or self._head:
            raise InvalidRequest(f"the {self._encoding} body is truncated")

    def _wbits(self) -> int:
        if self._encoding == "gzip":
            return GZIP_WBITS
        method, check = self._head[0], int.from_bytes(self._head[:2], "big")
        has_header = method & 0x0F == zlib.DEFLATED and check % 31 == 0
        return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def _inflater(encoding: str) -> _Inflater | None:
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return _Inflater("gzip")
        case "deflate":
            return _Inflater("deflate")
        case _:
            raise UnsupportedMediaType(
                f"Content-Encoding is {shown(encoding)}; it must be gzip, deflate or identity"
            )


def piece_writer(scope: Scope) -> PieceWriter:
    """The connection's own, or one that is never ready."""
    writer: PieceWriter = scope.get("extensions", {}).get(PIECE_WRITER, _NEVER)
    return writer


class PieceWriter(Protocol):
    """Sends pieces of a body at once, past the app's layers, which leave bodies alone."""

    def ready(self) -> bool:
        """Whether `write` may be called; else only ASGI's `send` can wait, count or refuse."""

    def write(self, data: bytes) -> None:
        """Send one more piece."""


class _Never:
    def ready(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        raise AssertionError("never ready")


_NEVER: Final = _Never()


async def until_disconnect(scope: Scope, receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client goes away.

    The body must have been read. Raises ClientDisconnect, after `work` has ended.
    """
    task = asyncio.current_task()
    assert task is not None, "a request is a task"
    already_cancelled = task.cancelling()
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        task.cancel()

    with _watching(scope, receive, leave):
        try:
            return await work
        except asyncio.CancelledError:
            if left and task.cancelling() - 1 <= already_cancelled:
                raise ClientDisconnect from None
            raise
        finally:
            # However it ended: what comes next is not cancelled.
            if left:
                task.uncancel()


@contextmanager
def _watching(scope: Scope, receive: Receive, leave: Callable[[], None]) -> Iterator[None]:
    """Call `leave` when the client goes; our own transport tells it without being asked."""
    watch: Watch | None = scope.get("extensions", {}).get(WATCH)
    if watch is None:
        watcher = asyncio.create_task(_disconnected(receive, leave))
        try:
            yield
        finally:
            watcher.cancel()
        return
    watch(leave)
    try:
        yield
    finally:
        watch(None)


async def _disconnected(receive: Receive, leave: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()


def plain_error(path: str, text: str, status: int, error: ServingError | None) -> dict[str, Any]:
    """The same for every path; see ErrorForm."""
    return {"error": text}


def error_response(error: ServingError, path: str = "", form: ErrorForm = plain_error) -> Response:
    """What a client reads of an error: its text, its status, when to come back.

    While not serving and after an unread body the connection is closed: the next request should
    find another replica, or a clean start.
    """
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, NotReady | BodyTooLarge | BodyTimeout):
        headers["Connection"] = "close"
    return JSONResponse(form(path, str(error), error.status, error), error.status, headers)


def install_error_handlers(app: Starlette, form: ErrorForm = plain_error) -> None:
    """Answer every failure of the app's routes, and its unknown routes, in the given form."""

    def body(request: Request, text: str, status: int) -> dict[str, Any]:
        return form(request.scope["path"], text, status, None)

    async def serving_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return error_response(error, request.scope["path"], form)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = str(error.detail)
        if error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            known = "no such route" if error.status_code == HTTPStatus.NOT_FOUND else "not allowed"
            text = f"{request.method} {request.scope['path']}: {known}"
        headers = error.headers
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": allowed_methods(app, request.scope["path"])}
        answer = body(request, text, error.status_code)
        return JSONResponse(answer, error.status_code, headers)

    async def client_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def unexpected(request: Request, error: Exception) -> Response:
        # The server logs the traceback: Starlette raises the error again after this answer.
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return JSONResponse(body(request, INTERNAL_ERROR, status), status)

    app.add_exception_handler(ServingError, serving_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, client_gone)
    app.add_exception_handler(Exception, unexpected)
