"""One stream of an HTTP/2 connection: a request and its answer, within the client's windows."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from h2.errors import ErrorCodes
from h2.windows import LARGEST_FLOW_CONTROL_WINDOW

from model.serving.transport.direct_body import DirectBody
from model.serving.transport.exchange import Exchange, make_scope
from model.serving.transport.http1_exchange import DIRECT_BYTES, http_date
from model.serving.transport.http2_frames import Payload

if TYPE_CHECKING:
    from starlette.types import Scope

    from model.serving.transport.exchange import Head, Headers
    from model.serving.transport.http2 import Http2Connection
    from model.serving.transport.limits import ConnectionLimits

# What a client may send of a body ahead of the app.
STREAM_WINDOW_BYTES: Final = 1 << 20
# Of HTTP/1.1's connection, which HTTP/2 has none of (RFC 9113, 8.2.2).
CONNECTION_HEADERS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class Http2Exchange(Exchange):
    """A stream: a request of HTTP/2 and its answer.

    window_opened: set when the stream may send more
    closes_connection: the app wants no more requests from here
    direct: the body, where its length is known and not small, until it is whole
    """

    def __init__(
        self, connection: Http2Connection, stream_id: int, scope: Scope, limits: ConnectionLimits
    ) -> None:
        super().__init__(scope)
        self.stream_id = stream_id
        self.window_opened = asyncio.Event()
        self.closes_connection = False
        self._connection = connection
        self._h2 = connection.h2
        self._send_idle_seconds = limits.send_idle_seconds
        headers = dict(scope["headers"])
        self._expects_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self._num_uncredited = 0
        self._body_wanted = False
        self.direct: DirectBody | None = None
        self._length = int(headers.get(b"content-length", b"0"))
        if DIRECT_BYTES < self._length <= limits.max_body_bytes:
            self.direct = DirectBody(self._length)

    def take(self, data: bytes) -> None:
        """The next piece of the body, or how long one is that has been received in its place."""
        self._num_uncredited += len(data)
        if self.direct is None:
            self.feed(data.gathered if isinstance(data, Payload) else data)
            return
        if not isinstance(data, Payload):
            self.direct.add(data)
        if self._body_wanted:
            self._credit(self._num_uncredited)

    def tell_if_slow(self) -> None:
        """Say at times how far a body is of which nothing is handed out yet."""
        if self.direct is not None and self.direct.tells_progress():
            self.tell_progress(self.direct.num_received)

    def end_body(self) -> None:
        """There is no more body; what was received where it stays is handed out."""
        if self.direct is not None:
            self._pieces.append(self.direct.body[: self.direct.num_received])
            self.direct = None
        super().end_body()

    def disconnect(self) -> None:
        """The client is gone, and with it who would read and credit the rest."""
        super().disconnect()
        self._credit_unread()
        self.window_opened.set()

    async def _send_head(self, head: Head, data: bytes, more: bool) -> None:
        connection = dict(head.headers).get(b"connection", b"")
        self.closes_connection = connection.lower() == b"close"
        fields = [(b":status", b"%d" % head.status), (b"date", http_date(int(time.time())))]
        fields += [field for field in head.headers if field[0] not in CONNECTION_HEADERS]
        self._h2.send_headers(self.stream_id, fields, end_stream=not data and not more)
        self._connection.sent_frame(0)
        if data:
            await self._send_body(data, more)

    async def _send_body(self, data: bytes, more: bool) -> None:
        if not data and not more:
            self._h2.end_stream(self.stream_id)
        rest = memoryview(data)
        while rest:
            size = await self._sendable(len(rest))
            if not size:
                return
            last = size == len(rest) and not more
            self._h2.send_data(self.stream_id, bytes(rest[:size]), end_stream=last)
            rest = rest[size:]
            self._connection.sent_frame(size)

    async def _sendable(self, wanted: int) -> int:
        """How much may be sent now, once it is more than nothing; 0 when nothing ever will."""
        while await self._connection.writable() and not self._gone:
            window = self._h2.local_flow_control_window(self.stream_id)
            size = min(wanted, window, self._h2.max_outbound_frame_size)
            if size > 0:
                return size
            self.window_opened.clear()
            try:
                async with asyncio.timeout(self._send_idle_seconds):
                    await self.window_opened.wait()
            except TimeoutError:
                self._reset(ErrorCodes.CANCEL)
        return 0

    def _wanted(self) -> None:
        if self._expects_continue and not self._head_sent:
            self._expects_continue = False
            self._h2.send_headers(self.stream_id, [(b":status", b"100")])
            self._connection.flush_soon()
        if self.direct is not None and not self._body_wanted:
            self._body_wanted = True
            self._credit(self._num_uncredited)
            self._open_to_the_end()

    def _open_to_the_end(self) -> None:
        """The app waits for a body that has its place: its client need not ask on the way."""
        window = min(self._length, LARGEST_FLOW_CONTROL_WINDOW)
        if window > STREAM_WINDOW_BYTES:
            self._h2.increment_flow_control_window(window - STREAM_WINDOW_BYTES, self.stream_id)
            self._connection.flush_soon()

    def _taken(self, num_bytes: int) -> None:
        # What went to its place was credited while it came, if the app was waiting.
        self._credit(min(num_bytes, self._num_uncredited))

    def _credit(self, num_bytes: int) -> None:
        if num_bytes:
            self._num_uncredited -= num_bytes
            self._h2.acknowledge_received_data(num_bytes, self.stream_id)
            self._connection.flush_soon()

    def _credit_unread(self) -> None:
        """Give the connection back what nobody will read: other streams share its window."""
        self._credit(self._num_uncredited)
        self._pieces.clear()
        self.direct = None

    def _ended(self) -> None:
        self._credit_unread()
        if not self.body_ended and not self._gone:
            # The answer is whole; the rest of the question is not needed.
            self._h2.reset_stream(self.stream_id, ErrorCodes.NO_ERROR)
        self._connection.ended(self)

    def _abort(self) -> None:
        if not self._gone:
            self._reset(ErrorCodes.INTERNAL_ERROR)

    def _reset(self, code: ErrorCodes) -> None:
        self._h2.reset_stream(self.stream_id, code)
        self.disconnect()
        self._connection.ended(self)


def scope_of(fields: Headers, transport: asyncio.BaseTransport) -> Scope | None:
    """A request in ASGI's words; None for one without a path, such as CONNECT."""
    pseudo = {name: value for name, value in fields if name.startswith(b":")}
    if b":path" not in pseudo or not pseudo[b":path"].isascii():
        return None
    headers = [(name, value) for name, value in fields if not name.startswith(b":")]
    if b":authority" in pseudo:
        headers = [(n, v) for n, v in headers if n != b"host"]
        headers.insert(0, (b"host", pseudo[b":authority"]))
    raw_path, _, query = pseudo[b":path"].partition(b"?")
    return make_scope(
        method=pseudo[b":method"].decode("latin-1"),
        path=unquote(raw_path.decode("ascii")),
        raw_path=raw_path,
        query=query,
        headers=headers,
        http_version="2",
        client=transport.get_extra_info("peername")[:2],
        server=transport.get_extra_info("sockname")[:2],
    )
