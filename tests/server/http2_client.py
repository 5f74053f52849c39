"""A raw HTTP/2 client on h2's state machine: it opens streams and answers only what a test says."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.transport_app import Wire


class Http2Client:
    """Keeps what it is told: bodies, statuses, trailers, resets, the end.

    acknowledges: gives the server the window back for what it has read
    """

    def __init__(self, wire: Wire, *, acknowledges: bool = True, window: int = 65_535) -> None:
        self.wire = wire
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.acknowledges = acknowledges
        self.bodies: dict[int, bytes] = defaultdict(bytes)
        self.headers: dict[int, dict[str, str]] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.informational: list[int] = []
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.closed = False
        self._window = window

    async def start(self) -> Http2Client:
        """Say hello."""
        self.h2.initiate_connection()
        if self._window != 65_535:
            self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: self._window})
        await self.flush()
        return self

    async def flush(self) -> None:
        await self.wire.send(self.h2.data_to_send())

    async def request(
        self, path: str, body: bytes | None = None, *headers: tuple[str, str], end: bool = True
    ) -> int:
        """Open a stream; a body larger than the server's windows is sent as they open."""
        stream_id = self.h2.get_next_available_stream_id()
        fields = [
            (":method", "GET" if body is None else "POST"),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", path),
            *headers,
        ]
        self.h2.send_headers(stream_id, fields, end_stream=body is None and end)
        await self.flush()
        if body is not None:
            await self.send_body(stream_id, body, end=end)
        return stream_id

    async def send_body(self, stream_id: int, body: bytes, *, end: bool = True) -> None:
        while body:
            size = min(
                self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size
            )
            if size <= 0:
                await self.read()
                continue
            self.h2.send_data(stream_id, body[:size])
            body = body[size:]
            await self.flush()
        if end:
            self.h2.end_stream(stream_id)
            await self.flush()

    async def read(self) -> None:
        """Take one piece of what the server says."""
        data = await asyncio.wait_for(self.wire.reader.read(65_536), 5)
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            self._handle(event)
        await self.flush()

    async def until(self, condition: Callable[[], object]) -> None:
        """Read until the condition holds; fails when the connection ends before."""
        while not condition():
            assert not self.closed, "the server closed the connection"
            await self.read()

    async def answer(self, stream_id: int) -> bytes:
        """A stream's whole body."""
        await self.until(lambda: stream_id in self.ended)
        return self.bodies[stream_id]

    async def until_closed(self) -> None:
        """Read until the server closes the connection."""
        while not self.closed:
            try:
                await self.read()
            except ConnectionError:
                self.closed = True

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.InformationalResponseReceived():
                self.informational.append(int(dict(event.headers)[":status"]))
            case h2.events.ResponseReceived():
                self.headers[event.stream_id] = dict(event.headers)
            case h2.events.TrailersReceived():
                self.trailers[event.stream_id] = dict(event.headers)
            case h2.events.DataReceived():
                self.bodies[event.stream_id] += event.data
                if self.acknowledges:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.resets[event.stream_id] = int(event.error_code)
            case h2.events.ConnectionTerminated():
                self.goaway = event
                # As in the server: h2 would send nothing more, though answers are still to come.
                self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
