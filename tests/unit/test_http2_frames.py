"""What h2 is told of frames that it does not get: the same as it would have read itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, repeat
from typing import TYPE_CHECKING

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, StreamEnded
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from model.serving.transport.direct_body import DirectBody
from model.serving.transport.http2_frames import (
    HEAD,
    KEPT_BYTES,
    PREFACE_BYTES,
    TURN_SECONDS,
    FrameReader,
    Payload,
    Refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
LIMIT = 300_000
WINDOW_BYTES = 1 << 20
SHARED_BYTES = 4096
FIELDS = ((":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", "/"))


@dataclass
class Heard:
    """What came of a client's bytes."""

    bodies: dict[int, bytes] = field(default_factory=lambda: dict.fromkeys(STREAMS, b""))
    num_flow_controlled: Counter[int] = field(default_factory=Counter)
    ended: list[int] = field(default_factory=list)

    def take(self, event: Event) -> None:
        match event:
            case DataReceived(stream_id=int(stream_id)):
                data = event.data or b""
                self.bodies[stream_id] += data.gathered if isinstance(data, Payload) else data
                self.num_flow_controlled[stream_id] += event.flow_controlled_length or 0
            case StreamEnded(stream_id=int(stream_id)):
                self.ended.append(stream_id)


def state_machine() -> H2Connection:
    """One with large windows: of two faults, which is found first may differ."""
    h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    windows = {SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES}
    h2.local_settings = Settings(client=False, initial_values=windows)
    h2.initiate_connection()
    h2.increment_flow_control_window(WINDOW_BYTES)
    h2.max_inbound_frame_size = LIMIT
    return h2


def as_h2_reads(data: bytes) -> Heard | tuple[type[ProtocolError], ErrorCodes]:
    """The judge: h2 gets all bytes itself, at once. A fault instead where it finds one."""
    heard = Heard()
    try:
        for event in state_machine().receive_data(data):
            heard.take(event)
    except ProtocolError as e:
        return type(e), e.error_code
    return heard


class Reading:
    """A FrameReader whose bytes come in pieces.

    direct: streams whose body has its place, of this length
    step_seconds: between two looks at the clock
    """

    def __init__(
        self,
        direct: Iterable[int] = (),
        length: int = 0,
        step_seconds: float = 0,
    ) -> None:
        self.h2 = state_machine()
        self.shared = memoryview(bytearray(SHARED_BYTES))
        self.bodies = {stream_id: DirectBody(length) for stream_id in direct}
        clock = partial(next, count(0, step_seconds))
        self.reader = FrameReader(self.h2, self.shared, LIMIT, self.bodies.get, clock)
        self.heard = Heard()
        self.num_turns = 0

    def feed(self, data: bytes, sizes: Iterable[int] = ()) -> None:
        """Give it pieces of these sizes, then the rest; none is longer than its buffer."""
        rest = memoryview(data)
        for size in chain(sizes, repeat(len(data))):
            if not rest:
                return
            buffer = self.reader.buffer()
            size = min(len(buffer), len(rest), size)
            buffer[:size], rest = rest[:size], rest[size:]
            self.take(self.reader.received(size))
            self.shared[:] = bytes(SHARED_BYTES)  # others use it too
            while self.reader.has_rest:
                self.take(self.reader.go_on())

    def take(self, events: Iterable[Event]) -> None:
        self.num_turns += 1
        for event in events:
            self.heard.take(event)
            match event:
                case DataReceived(stream_id=int(stream_id), data=bytes(padded)):
                    if stream_id in self.bodies and not isinstance(padded, Payload):
                        self.bodies[stream_id].add(padded)
                case StreamEnded(stream_id=int(stream_id)):
                    self._end(stream_id)

    def _end(self, stream_id: int) -> None:
        if body := self.bodies.pop(stream_id, None):
            self.heard.bodies[stream_id] = bytes(body.body[: body.num_received])

    def result(self) -> Heard:
        """All that was heard, with the bodies that are in their place."""
        self.take(self.reader.tell())
        for stream_id in tuple(self.bodies):
            self._end(stream_id)
        return self.heard


def head(encoder: Encoder, stream_id: int, *fields: tuple[str, str], end: bool = False) -> bytes:
    flags = ["END_HEADERS", *(["END_STREAM"] if end else [])]
    return HeadersFrame(stream_id, encoder.encode((*FIELDS, *fields)), flags=flags).serialize()


def data(stream_id: int, payload: bytes, *flags: str, padding: int | None = None) -> bytes:
    frame = DataFrame(1, payload, flags=flags)
    if padding is not None:
        frame.flags.add("PADDED")
        frame.pad_length = padding
    frame.stream_id = stream_id
    return frame.serialize()


def pattern(num_bytes: int, seed: int) -> bytes:
    return (bytes(range(seed, 256)) * (num_bytes // 200 + 1))[:num_bytes]


STREAMS = (1, 3, 5)
LENGTHS = (0, 1, 8, 9, 10, 3000, 40_000)
# Of a frame: its stream, length, padding and kind.
FRAMES = st.tuples(
    st.sampled_from((*STREAMS, *STREAMS, 7, 0)),
    st.sampled_from(LENGTHS),
    st.sampled_from((None, None, None, 0, 7)),
    st.sampled_from(("data", "data", "data", "end", "ping", "trailers")),
)


def serialized(encoder: Encoder, number: int, frame: tuple[int, int, int | None, str]) -> bytes:
    stream_id, num_bytes, padding, kind = frame
    match kind:
        case "ping":
            return PingFrame(0, bytes(8)).serialize()
        case "trailers":
            flags = ["END_HEADERS", "END_STREAM"]
            return HeadersFrame(
                stream_id or 1, encoder.encode([("a", "b")]), flags=flags
            ).serialize()
        case _:
            flags = ["END_STREAM"] if kind == "end" else []
            return data(stream_id, pattern(num_bytes, number), *flags, padding=padding)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(FRAMES, max_size=8),
    st.lists(st.sampled_from((1, 2, 9, 10, 700, 50_000)), max_size=40),
    st.sets(st.sampled_from(STREAMS)),
    st.sampled_from((None, 10, 3000, 40_000, 43_010)),
    st.sampled_from((0, TURN_SECONDS / 3, 1)),
)
def test_any_frames_in_any_pieces_are_what_h2_reads_of_them(
    frames: list[tuple[int, int, int | None, str]],
    sizes: list[int],
    direct: set[int],
    length: int | None,
    step_seconds: float,
) -> None:
    encoder = Encoder()
    fields = () if length is None else (("content-length", str(length)),)
    wire = PREFACE + b"".join(head(encoder, stream_id, *fields) for stream_id in STREAMS)
    wire += b"".join(serialized(encoder, i, frame) for i, frame in enumerate(frames))
    reading = Reading(direct if length else (), length or 0, step_seconds)
    result: object
    try:
        reading.feed(wire, sizes)
        result = reading.result()
    except ProtocolError as e:
        result = type(e), e.error_code
    assert result == as_h2_reads(wire)


def opened(length: int | None = None, direct: Iterable[int] = STREAMS) -> Reading:
    """A reading whose streams are open. length: of all bodies, direct or not"""
    reading, encoder = (Reading(direct, length) if length else Reading()), Encoder()
    fields = () if length is None else (("content-length", str(length)),)
    reading.feed(PREFACE + b"".join(head(encoder, one, *fields) for one in STREAMS))
    return reading


def test_a_long_payload_is_received_where_it_stays() -> None:
    reading = opened(60_000)
    wire = data(1, pattern(60_000, 0), "END_STREAM")
    reading.feed(wire[:9])
    space = reading.reader.buffer()
    assert len(space) == 60_000
    space[:] = wire[9:]
    reading.take(reading.reader.received(60_000))
    assert (reading.heard.ended, reading.heard.bodies[1]) == ([1], pattern(60_000, 0))


def test_after_a_long_frame_only_the_next_one_s_head_is_received_apart() -> None:
    reading, wire = opened(200_000), data(1, bytes(60_000))
    reading.feed(wire)
    assert len(reading.reader.buffer()) == HEAD.size
    reading.feed(wire[:4])
    assert len(reading.reader.buffer()) == HEAD.size - 4
    reading.feed(wire[4:])
    reading.feed(PingFrame(0, bytes(8)).serialize())
    assert len(reading.reader.buffer()) == SHARED_BYTES


def test_a_stream_that_is_answered_meanwhile_has_no_place_any_more() -> None:
    reading = opened(60_000)
    wire = data(1, bytes(60_000), "END_STREAM")
    reading.feed(wire[:100])
    body = reading.bodies[1]
    assert len(reading.reader.buffer()) == 60_000 - 91
    del reading.bodies[1]  # nothing was there to receive, and the stream ends
    reading.feed(wire[100:])
    assert body.num_received == 91
    assert reading.heard.ended == [1]
    assert reading.heard.num_flow_controlled[1] == 60_000


def test_a_body_s_end_is_no_place_for_more() -> None:
    reading = opened(50_000)
    reading.feed(data(1, bytes(100_000))[: 9 + 50_000])
    assert len(reading.reader.buffer()) == SHARED_BYTES, "asyncio takes no empty buffer"
    with pytest.raises(InvalidBodyLengthError):
        reading.feed(b"x")


def test_h2_hears_of_a_large_body_seldom_and_of_pieces_at_once() -> None:
    reading = opened(1 << 20, direct=[1])
    reading.feed(data(1, bytes(1000)) * 3)
    assert reading.heard.num_flow_controlled[1] == 0
    assert reading.reader.has_untold
    reading.feed(data(3, b"abc"))
    assert reading.heard.num_flow_controlled == {1: 3000, 3: 3}
    assert reading.heard.bodies[3] == b"abc"
    assert not reading.reader.has_untold


def test_what_comes_of_a_frame_is_a_piece() -> None:
    reading = opened()
    wire = data(1, pattern(3000, 0), "END_STREAM")
    reading.feed(wire[:1009])
    assert reading.heard.bodies[1] == pattern(3000, 0)[:1000]
    reading.feed(wire[1009:])
    assert (reading.heard.bodies[1], reading.heard.ended) == (pattern(3000, 0), [1])


@pytest.mark.parametrize(
    ("step_seconds", "num_turns"),
    [
        pytest.param(0, 1, id="in no time all in one turn"),
        pytest.param(TURN_SECONDS / 10.5, 37, id="after its time a turn ends"),
        pytest.param(1, 400, id="a turn is one step at least"),
    ],
)
def test_many_frames_are_read_in_many_turns(step_seconds: float, num_turns: int) -> None:
    """A step is a head or what follows it: 200 pings have 400."""
    reading = Reading(step_seconds=step_seconds)
    reading.feed(PREFACE)
    num_before = reading.num_turns
    reading.feed(PingFrame(0, bytes(8)).serialize() * 200)
    assert reading.num_turns - num_before == num_turns
    assert reading.h2.data_to_send().count(b"\x00\x00\x08\x06\x01") == 200


def block(*lengths: int) -> list[bytes]:
    """A block of headers in frames of these lengths, which does not end."""
    first, *others = (bytes(length) for length in lengths)
    frames = (ContinuationFrame(7, one) for one in others)
    return [HeadersFrame(7, first).serialize(), *(one.serialize() for one in frames)]


def test_no_more_of_a_block_of_headers_is_kept_than_of_one_frame() -> None:
    *kept, refused = block(KEPT_BYTES // 2, KEPT_BYTES // 2, 1)
    reading = opened()
    reading.feed(b"".join(kept))
    with pytest.raises(Refused) as refusal:
        reading.feed(refused[: HEAD.size])
    assert refusal.value.code == ErrorCodes.ENHANCE_YOUR_CALM


def test_blocks_are_counted_apart() -> None:
    reading, encoder = opened(), Encoder()
    for stream_id in (7, 9, 11):
        encoded = encoder.encode((*FIELDS, ("a", "b" * 50_000)))
        frame = HeadersFrame(stream_id, encoded, flags=["END_HEADERS", "END_STREAM"])
        assert len(encoded) > KEPT_BYTES // 4
        reading.feed(frame.serialize())
    assert reading.heard.ended == [7, 9, 11]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param(data(1, bytes(LIMIT)), None, id="data as long as the limit"),
        pytest.param(
            data(1, bytes(LIMIT + 1)), ErrorCodes.FRAME_SIZE_ERROR, id="data over the limit"
        ),
        pytest.param(
            data(1, bytes(KEPT_BYTES), padding=0),
            ErrorCodes.ENHANCE_YOUR_CALM,
            id="padded data, which h2 would keep",
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 8, 9])
def test_a_frame_s_length_is_judged_by_its_head(
    frame: bytes, code: ErrorCodes | None, size: int
) -> None:
    reading = opened()
    reading.feed(frame[: HEAD.size - 1], repeat(size))
    if code is None:
        reading.feed(frame[HEAD.size - 1 : HEAD.size])
        return
    with pytest.raises(Refused) as refusal:
        reading.feed(frame[HEAD.size - 1 : HEAD.size])
    assert refusal.value.code == code


def test_data_within_a_block_of_headers_is_a_fault() -> None:
    reading = opened()
    with pytest.raises(ProtocolError):
        reading.feed(block(10)[0] + data(1, b"abc"))


def test_the_preface_is_h2_s_to_read() -> None:
    with pytest.raises(ProtocolError):
        Reading().feed(PREFACE[: PREFACE_BYTES - 1] + b"x")
