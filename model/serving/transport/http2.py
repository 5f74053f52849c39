"""HTTP/2 on one cleartext connection: the h2 library's state machine around streams of an ASGI app.

Flow control works both ways: a stream's body is credited as the app takes it, and an answer waits
for the client's windows. What is cheap to send and dear to take (resets, pings, settings, empty
frames) has an allowance. All that one turn of the event loop makes is written at once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from model.serving.transport.allowance import Allowance
from model.serving.transport.http2_frames import FrameReader, Refused
from model.serving.transport.http2_stream import STREAM_WINDOW_BYTES, Http2Exchange, scope_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.serving.transport.direct_body import DirectBody
    from model.serving.transport.limits import ConnectionLimits
    from model.serving.transport.server import HttpServer

# What a client may send ahead of the app on all streams of a connection.
CONNECTION_WINDOW_BYTES: Final = 8 << 20
DEFAULT_WINDOW_BYTES: Final = 65_535
# Every frame costs the same: clients that can send larger ones than the usual 16 KiB may, as large
# as what they may send ahead. Larger ones would hold up their other streams on a slow line.
FRAME_BYTES: Final = STREAM_WINDOW_BYTES
# Made for the client and not yet written; more is written without waiting for the turn's end.
GATHERED_BYTES: Final = 64 * 1024
# Our encoder forgets what does not fit; a client may not make it remember more.
MAX_ENCODER_TABLE_BYTES: Final = 4096
# Streams that a client gives up: a gateway whose own clients all leave at once is still served.
RESET_BURST: Final = 1000.0
RESETS_PER_SECOND: Final = 50.0
IDLE_FRAME_BURST: Final = 1000.0
IDLE_FRAMES_PER_SECOND: Final = 50.0
IDLE_FRAMES_PER_ANSWERS: Final = 3.0
# Until h2 hears of bytes that are received in their place, and may credit them.
TELL_SECONDS: Final = 0.01
# Between the last answer and the end of a connection whose client has been told to go.
LINGER_SECONDS: Final = 0.5


class Http2Connection(asyncio.BufferedProtocol):
    """One client's connection, and its streams."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._h2 = _state_machine(server.limits)
        self._reader = FrameReader(self._h2, server.buffer, FRAME_BYTES, self._body_of)
        self._streams: dict[int, Http2Exchange] = {}
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._flushing = False
        self._telling = False
        self._deaf = False
        self._num_gathered = 0
        # The last stream that is answered, once the client has been told to go.
        self._last_stream_id: int | None = None
        now = time.monotonic()
        self._resets = Allowance(RESET_BURST, RESETS_PER_SECOND, now)
        self._idle_frames = Allowance(IDLE_FRAME_BURST, IDLE_FRAMES_PER_SECOND, now)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what we allow."""
        self._transport = transport  # type: ignore[assignment]
        self._server.joined(self)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self._flush()
        self._arm()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the buffer that all connections share, or a body's own."""
        return self._server.buffer if self._deaf else self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has come, a frame at a time."""
        if self._deaf:
            return
        self._take(self._reader.received(nbytes))
        if self._reader.has_rest:
            self._let_others()
        if self._reader.has_untold:
            self._tell_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all streams."""
        self._server.left(self)
        self._disarm()
        self._leave_streams()
        self._writable.set()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    # What the server calls

    def leave(self) -> None:
        """Tell the client to ask elsewhere, as soon as nothing is being answered.

        In the middle of an answer httpx, for one, takes that for the answer's end.
        """
        self._close_if_idle()

    def go_away(self) -> None:
        """Answer what has been asked, and no more: the client asks elsewhere, and loses nothing."""
        if self._last_stream_id is None and not self._is_closing:
            self._last_stream_id = self._h2.highest_inbound_stream_id
            self._write_goaway(self._last_stream_id, ErrorCodes.NO_ERROR)
            self._close_if_idle()

    def shutdown(self) -> None:
        """Close now, or after the answers that are being given."""
        self.go_away()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # What the streams call

    @property
    def h2(self) -> H2Connection:
        """The state machine; whoever changes it calls `flush_soon`."""
        return self._h2

    def flush_soon(self) -> None:
        """Write what has gathered, once this turn of the event loop is over."""
        if not self._flushing:
            self._flushing = True
            self._server.loop.call_soon(self._flush)

    def sent_frame(self, num_bytes: int) -> None:
        """A frame of an answer has been made: the client may credit it, and measure the way."""
        self._idle_frames.earn(IDLE_FRAMES_PER_ANSWERS)
        self._num_gathered += num_bytes
        if self._num_gathered > GATHERED_BYTES:
            self._flush()
        else:
            self.flush_soon()

    async def writable(self) -> bool:
        """Wait until the client has read enough; False when it is gone, or is given up."""
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(self._limits.send_idle_seconds):
                    await self._writable.wait()
            except TimeoutError:
                self._transport.abort()
        return not self._is_closing

    def ended(self, stream: Http2Exchange) -> None:
        """A stream's answer is whole, or broken off."""
        self._streams.pop(stream.stream_id, None)
        if stream.closes_connection:
            self.go_away()
        self.flush_soon()
        self._close_if_idle()

    # Inside

    def _take(self, events: Iterator[Event]) -> None:
        try:
            for event in events:
                self._handle(event)
        except ProtocolError:
            # h2 has prepared the GOAWAY that says why.
            self._give_up()
        except Refused as refused:
            self._write_goaway(self._h2.highest_inbound_stream_id, refused.code)
            self._give_up()
        self.flush_soon()

    def _let_others(self) -> None:
        """Go on with what has come after others have had their turn; until then read no more."""
        if self._is_closing:
            return
        if self._reader.has_rest:
            self._transport.pause_reading()
            self._server.loop.call_soon(self._go_on)
        else:
            self._transport.resume_reading()

    def _go_on(self) -> None:
        if not self._is_closing:
            self._take(self._reader.go_on())
            self._let_others()

    def _tell_later(self) -> None:
        """A large body's bytes have come: h2 need not hear of each read."""
        if not self._telling:
            self._telling = True
            self._server.loop.call_later(TELL_SECONDS, self._tell)
        if stream := self._streams.get(self._reader.stream_id):
            stream.tell_if_slow()

    def _tell(self) -> None:
        self._telling = False
        if not self._is_closing:
            self._take(self._reader.tell())

    def _handle(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event)
            case DataReceived():
                self._receive(event)
            case StreamEnded(stream_id=int(stream_id)):
                if stream := self._streams.get(stream_id):
                    stream.end_body()
            case StreamReset(stream_id=stream_id):
                self._spend(self._resets)
                if stream := self._streams.pop(stream_id, None):
                    stream.disconnect()
                self._close_if_idle()
            case WindowUpdated(stream_id=stream_id):
                self._spend(self._idle_frames)
                self._open_windows(stream_id)
            case RemoteSettingsChanged():
                self._spend(self._idle_frames)
                table = min(self._h2.encoder.header_table_size, MAX_ENCODER_TABLE_BYTES)
                self._h2.encoder.header_table_size = table
                self._open_windows(None)
            case ConnectionTerminated():
                # The client opens no more streams, but still reads; h2 would send it nothing.
                self._h2.state_machine.state = ConnectionState.SERVER_OPEN
                self._last_stream_id = self._h2.highest_inbound_stream_id
                self._close_if_idle()
            case TrailersReceived():
                pass  # no route has a use for them
            case _:
                self._spend(self._idle_frames)

    def _begin(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        if self._last_stream_id is not None and stream_id > self._last_stream_id:
            # GOAWAY has said that it may be asked again elsewhere (RFC 9113, 6.8). A reset beside
            # it is one frame too many for h2 and with it httpx, which then fail instead.
            return
        scope = scope_of(event.headers or [], self._transport)
        if scope is None:
            self._h2.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        self._disarm()
        stream = Http2Exchange(self, stream_id, scope, self._limits)
        self._streams[stream_id] = stream
        self._server.spawn(stream)

    def _body_of(self, stream_id: int) -> DirectBody | None:
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.direct

    def _receive(self, event: DataReceived) -> None:
        data, size = event.data or b"", event.flow_controlled_length or 0
        assert event.stream_id is not None
        if not data and event.stream_ended is None:
            self._spend(self._idle_frames)
        stream = self._streams.get(event.stream_id)
        if stream is None:
            self._h2.acknowledge_received_data(size, event.stream_id)
            return
        if size > len(data):
            # Padding is nobody's to take.
            self._h2.acknowledge_received_data(size - len(data), event.stream_id)
        if data:
            stream.take(data)

    def _open_windows(self, stream_id: int | None) -> None:
        """Wake who waits for the stream's window; for the connection's, everybody."""
        if stream_id:
            if stream := self._streams.get(stream_id):
                stream.window_opened.set()
            return
        for stream in self._streams.values():
            stream.window_opened.set()

    def _spend(self, allowance: Allowance) -> None:
        if not allowance.spend(time.monotonic()):
            raise Refused(ErrorCodes.ENHANCE_YOUR_CALM)

    def _write_goaway(self, last_stream_id: int, code: ErrorCodes) -> None:
        """By hand: h2 would take the connection for closed, and send no more answers."""
        frame = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=code)
        self._flush()
        self._transport.write(frame.serialize())

    def _flush(self) -> None:
        self._flushing = False
        self._num_gathered = 0
        data = self._h2.data_to_send()
        if data and not self._is_closing:
            self._transport.write(data)

    @property
    def _is_closing(self) -> bool:
        return self._deaf or self._transport.is_closing()

    def _close_if_idle(self) -> None:
        if self._streams or self._is_closing:
            return
        if self._last_stream_id is not None:
            self._linger()
        elif self._server.leaving:
            self.go_away()
        else:
            self._arm()

    def _give_up(self) -> None:
        """Serve a client no more that does not keep to the protocol.

        It may be in the middle of a flood, which would reset the connection that is closed on it.
        """
        self._flush()
        self._deaf = True
        self._leave_streams()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()
        self._linger()

    def _leave_streams(self) -> None:
        for stream in self._streams.values():
            stream.disconnect()
        self._streams.clear()

    def _end(self) -> None:
        """Close once everything written is on its way, without waiting for ever."""
        self._flush()
        self._transport.close()
        self._disarm()
        seconds = self._limits.send_idle_seconds
        self._timer = self._server.loop.call_later(seconds, self._transport.abort)

    def _linger(self) -> None:
        """Give the client the time to read that it should go.

        What it sends meanwhile would else reset the connection, and it would not read that it may
        ask again elsewhere.
        """
        self._disarm()
        self._timer = self._server.loop.call_later(LINGER_SECONDS, self._end)

    def _arm(self) -> None:
        """Close what stays without a stream; pings do not count."""
        self._disarm()
        seconds = self._limits.keep_alive_seconds
        self._timer = self._server.loop.call_later(seconds, self.go_away)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _state_machine(limits: ConnectionLimits) -> H2Connection:
    connection = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    connection.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_head_bytes,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            SettingCodes.MAX_FRAME_SIZE: FRAME_BYTES,
        },
    )
    connection.decoder.max_header_list_size = limits.max_head_bytes
    connection.max_inbound_frame_size = FRAME_BYTES
    return connection
