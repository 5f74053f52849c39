"""From what a client sends to h2's events, with the payloads of DATA frames kept out of h2.

h2 would gather each frame, copy its payload three times and spell it in hexadecimal for a log that
nobody keeps. Here a payload goes to where it stays, and h2 is told of so many bytes: states,
windows, lengths and errors remain its own. It gets all other frames as they come, once their
length is known to be allowed: of 16 MiB it would gather all to refuse them.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from h2.errors import ErrorCodes
from h2.frame_buffer import FrameBuffer
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PushPromiseFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from h2.connection import H2Connection
    from h2.events import Event
    from hyperframe.frame import Frame

    from model.serving.transport.direct_body import DirectBody

PREFACE_BYTES: Final = 24
# RFC 9113, 4.1: three bytes of length, type, flags, a reserved bit and the stream.
HEAD: Final = struct.Struct(">HBBBL")
STREAM_MASK: Final = 0x7FFF_FFFF
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
BLOCK_TYPES: Final = (HeadersFrame.type, PushPromiseFrame.type, ContinuationFrame.type)
# Two calls to receive a frame in its place take as long as to copy so much.
IN_PLACE_BYTES: Final = 32 * 1024
# What h2 keeps before it judges: a frame, or the frames of a block of headers.
KEPT_BYTES: Final = 128 * 1024
# Received in its place before h2 is told.
UNTOLD_BYTES: Final = 2 << 20
# Tens of thousands of frames fit into one read: for so long at most they hold up others.
TURN_SECONDS: Final = 0.0005


class Refused(Exception):
    """A client sends a frame that is too long, or has used up an allowance."""

    def __init__(self, code: ErrorCodes) -> None:
        super().__init__(code.name)
        self.code = code


class Payload(bytes):
    """What h2 is told of: empty but for its length, all that h2 asks for.

    gathered: the bytes, unless they are where they stay
    """

    gathered: bytes
    _length: int

    @classmethod
    def of(cls, length: int, gathered: bytes) -> Payload:
        """One of this length."""
        payload = cls()
        payload._length, payload.gathered = length, gathered
        return payload

    def __len__(self) -> int:
        return self._length


class FrameReader:
    """Walks from frame to frame through what a client sends, in pieces of any size.

    shared: a buffer for whatever has no place yet; done with when `received` has been iterated
    limit: the longest frame of data, bytes
    body_of: where a stream's body is received; None for one that is gathered
    clock: seconds, of the time that a turn takes
    """

    def __init__(
        self,
        h2: H2Connection,
        shared: memoryview,
        limit: int,
        body_of: Callable[[int], DirectBody | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._h2 = h2
        self._frames = _Frames()
        h2.incoming_buffer = self._frames
        self._shared = shared
        self._limit = limit
        self._body_of = body_of
        self._clock = clock
        self._rest = memoryview(b"")
        self._head = bytearray()
        self._in_block = False
        self._num_kept = 0
        # Of the current frame: what is still to come, for h2 or of a payload.
        self._num_to_pass = PREFACE_BYTES
        self._num_left = 0
        self._data = _Head(0, 0, 0, 0)
        # After a frame that is long there is likely another: only its head is received apart.
        self._head_alone = False
        # What `buffer` was a part of, if not of the shared one.
        self._place: DirectBody | None = None
        self._num_untold = 0
        self._pieces: list[bytes] = []

    @property
    def stream_id(self) -> int:
        """The stream of the last DATA frame that h2 did not get; 0 before the first."""
        return self._data.stream_id

    @property
    def has_untold(self) -> bool:
        """Whether `tell` is to be called some time."""
        return self._num_untold > 0

    def buffer(self) -> memoryview:
        """Where to receive the next bytes; never empty."""
        self._place = None
        if self._num_left >= IN_PLACE_BYTES and (body := self._body_of(self._data.stream_id)):
            space = body.space()
            if space:
                self._place = body
                return space[: self._num_left]
        return self._shared[: HEAD.size - len(self._head)] if self._head_alone else self._shared

    def received(self, num_bytes: int) -> Iterator[Event]:
        """What h2 makes of the bytes in `buffer`; the data of a DataReceived may be a Payload.

        Not to be called while `has_rest`. Raises Refused, and h2's ProtocolError.
        """
        assert not self._rest
        if self._place is None:
            yield from self._read(self._shared[:num_bytes])
            return
        self._place.advance(num_bytes)
        self._place = None
        yield from self._count(num_bytes)

    @property
    def has_rest(self) -> bool:
        """Whether the time was up before all that was received has been read: see `go_on`."""
        return len(self._rest) > 0

    def go_on(self) -> Iterator[Event]:
        """As `received`, of the rest."""
        rest, self._rest = self._rest, memoryview(b"")
        yield from self._read(rest)

    def tell(self) -> Iterator[Event]:
        """Let h2 know of what it has not been told; raises ProtocolError."""
        yield from self._tell()

    # Inside

    def _read(self, data: memoryview) -> Iterator[Event]:
        until = self._clock() + TURN_SECONDS
        while data and not self._rest:
            if self._num_left:
                size = self._num_left
                yield from self._keep(data[:size])
            elif self._num_to_pass:
                size = self._num_to_pass
                yield from self._pass(data[:size])
            else:
                size = HEAD.size - len(self._head)
                self._head += data[:size]
                if len(self._head) == HEAD.size:
                    yield from self._begin()
            data = data[size:]
            if self._clock() > until:
                self._rest = memoryview(bytes(data))
        if self._pieces:
            yield from self._tell()

    def _begin(self) -> list[Event]:
        """A frame's head has come."""
        self._head_alone = False
        frame = _Head.of(self._head)
        if frame.length > self._limit:
            raise Refused(ErrorCodes.FRAME_SIZE_ERROR)
        # In a block of headers, on no stream, padded or empty, it is for h2 to judge.
        plain = frame.stream_id and not frame.flags & PADDED and not self._in_block
        if frame.type == DataFrame.type and frame.length and plain:
            self._head.clear()
            told = self._tell() if frame.stream_id != self._data.stream_id else []
            self._data, self._num_left = frame, frame.length
            return told
        self._num_kept = frame.length + (self._num_kept if self._in_block else 0)
        if self._num_kept > KEPT_BYTES:
            raise Refused(ErrorCodes.ENHANCE_YOUR_CALM)
        if frame.type in BLOCK_TYPES:
            self._in_block = not frame.flags & END_HEADERS
        self._num_to_pass = frame.length
        told = self._tell()
        return told if frame.length else told + self._pass(memoryview(b""))

    def _pass(self, piece: memoryview) -> list[Event]:
        """Give h2 a part of a frame, its head with the first."""
        self._num_to_pass -= len(piece)
        data, self._head = self._head + piece, bytearray()
        return self._h2.receive_data(data)

    def _keep(self, piece: memoryview) -> list[Event]:
        body = self._body_of(self._data.stream_id)
        if body is not None and len(piece) <= body.num_left:
            body.add(piece)
        else:
            # Beyond a body's end, too: h2 will refuse it.
            self._pieces.append(bytes(piece))
        return self._count(len(piece))

    def _count(self, num_bytes: int) -> list[Event]:
        self._num_left -= num_bytes
        self._num_untold += num_bytes
        self._head_alone = not self._num_left and self._data.length >= IN_PLACE_BYTES
        if not self._num_left and self._data.flags & END_STREAM:
            return self._tell("END_STREAM")
        return self._tell() if self._num_untold > UNTOLD_BYTES else []

    def _tell(self, *flags: str) -> list[Event]:
        """For h2 it is one frame, were it many or a part of one."""
        if not self._num_untold:
            return []
        payload = Payload.of(self._num_untold, b"".join(self._pieces))
        self._num_untold, self._pieces = 0, []
        self._frames.ready = [DataFrame(self._data.stream_id, payload, flags=flags)]
        return self._h2.receive_data(b"")


class _Head(NamedTuple):
    length: int
    type: int
    flags: int
    stream_id: int

    @classmethod
    def of(cls, data: bytes | bytearray) -> _Head:
        high, low, type_, flags, stream_id = HEAD.unpack(data)
        return cls(high << 8 | low, type_, flags, stream_id & STREAM_MASK)


class _Frames(FrameBuffer):
    """h2's own, and a frame that was not made of bytes."""

    def __init__(self) -> None:
        super().__init__(server=True)
        self.ready: list[Frame] = []

    def __iter__(self) -> Iterator[Frame]:  # type: ignore[override]
        if not self.ready:
            return self
        ready, self.ready = self.ready, []
        return iter(ready)
