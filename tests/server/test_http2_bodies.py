"""Bodies over HTTP/2: wherever frames are cut, padded or mixed, and whatever is wrong with them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame

from model.serving.transport import http2_frames
from model.serving.transport.http2 import CONNECTION_WINDOW_BYTES
from model.serving.transport.http2_stream import STREAM_WINDOW_BYTES
from tests.server.http2_client import Http2Client
from tests.server.transport_app import BOUND_BYTES, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.server.transport_app import Served

# Longer than a body that comes in pieces anyway; shorter than what a client may send ahead.
NUM_BYTES = 100_000
# A body is received in its place where its length is known, else it comes in pieces.
PLACES = pytest.mark.parametrize("announced", [True, False], ids=["in its place", "in pieces"])


def pattern(num_bytes: int) -> bytes:
    return (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]


async def raw(one: Served, **options: Any) -> Http2Client:
    client = await Http2Client(await one.connect(), **options).start()
    await client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 64)
    return client


async def opened(client: Http2Client, path: str, length: int | None = NUM_BYTES) -> int:
    """A stream whose body is to come."""
    fields = () if length is None else (("content-length", str(length)),)
    return await client.request(path, b"", *fields, end=False)


async def send(client: Http2Client, data: bytes, *flags: str, stream_id: int = 1) -> None:
    """A frame of data, whatever h2 would say to it."""
    frame = DataFrame(1, data, flags=flags)
    frame.stream_id = stream_id
    await client.wire.send(frame.serialize())


async def fill_window(client: Http2Client, stream_id: int) -> None:
    """Send as much of a stream's body as the server allows."""
    while window := client.h2.local_flow_control_window(stream_id):
        size = min(window, client.h2.max_outbound_frame_size)
        client.h2.send_data(stream_id, bytes(size))
        await client.flush()


async def goaway_of(client: Http2Client) -> ErrorCodes:
    """Why the server ends the connection."""
    await client.until_closed()
    assert client.goaway is not None
    return ErrorCodes(client.goaway.error_code)


def sent_frames(
    client: Http2Client, stream_id: int, *payloads: bytes, padding: Any = None
) -> bytes:
    for payload in payloads:
        client.h2.send_data(stream_id, payload, pad_length=padding)
    client.h2.end_stream(stream_id)
    return client.h2.data_to_send()


@PLACES
async def test_frames_may_be_cut_anywhere(announced: bool) -> None:
    body = pattern(NUM_BYTES)
    async with served() as one:
        client = await raw(one)
        for cut in (*range(1, 21), 40_008, 40_009, 40_010, 40_017, 40_018, 40_019, NUM_BYTES + 20):
            stream = await opened(client, "/echo", NUM_BYTES if announced else None)
            wire = sent_frames(client, stream, body[:40_000], body[40_000:])
            await client.wire.send(wire[:cut])
            await asyncio.sleep(0.002)
            await client.wire.send(wire[cut:])
            assert await client.answer(stream) == body


@PLACES
async def test_frames_may_come_in_crumbs(announced: bool) -> None:
    body = pattern(NUM_BYTES)
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/echo", NUM_BYTES if announced else None)
        wire = sent_frames(client, stream, body)
        for start in range(0, len(wire), 1009):
            await client.wire.send(wire[start : start + 1009])
            await asyncio.sleep(0)
        assert await client.answer(stream) == body


@PLACES
@pytest.mark.parametrize("padding", [0, 1, 255])
async def test_padding_is_taken_off_and_credited(announced: bool, padding: int) -> None:
    first, second = pattern(60_000), pattern(900_000)
    async with served() as one:
        client = await raw(one)
        # More than a connection's window, in all.
        for _ in range(10):
            length = len(first) + len(second)
            stream = await opened(client, "/echo", length if announced else None)
            client.h2.send_data(stream, first, pad_length=padding)
            await client.send_body(stream, second)
            assert await client.answer(stream) == first + second


@PLACES
@pytest.mark.parametrize("how", ["with the last byte", "in an empty frame", "with trailers"])
async def test_a_body_ends(announced: bool, how: str) -> None:
    body = pattern(NUM_BYTES)
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/echo", NUM_BYTES if announced else None)
        client.h2.send_data(stream, body, end_stream=how == "with the last byte")
        await client.flush()
        if how == "in an empty frame":
            client.h2.end_stream(stream)
        elif how == "with trailers":
            client.h2.send_headers(stream, [("a", "b")], end_stream=True)
        await client.flush()
        assert await client.answer(stream) == body


async def test_streams_take_turns_frame_by_frame() -> None:
    bodies = [bytes([i]) * NUM_BYTES for i in range(6)]
    async with served() as one:
        client = await raw(one)
        streams = [await opened(client, "/echo", (None, NUM_BYTES)[i % 2]) for i in range(6)]
        for start in range(0, NUM_BYTES, 40_000):
            for stream, body in zip(streams, bodies, strict=True):
                client.h2.send_data(stream, body[start : start + 40_000])
        for stream in streams:
            client.h2.end_stream(stream)
        await client.flush()
        assert [await client.answer(stream) for stream in streams] == bodies


async def test_a_body_ended_early_by_trailers_is_as_long_as_what_came() -> None:
    """h2 does not compare its length here; no byte may be handed out that nobody sent."""
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/echo", 5 << 20)
        client.h2.send_data(stream, pattern(NUM_BYTES))
        client.h2.send_headers(stream, [("a", "b")], end_stream=True)
        await client.flush()
        assert await client.answer(stream) == pattern(NUM_BYTES)


# Flow control


@PLACES
async def test_what_nobody_asks_for_is_credited_when_it_is_answered(announced: bool) -> None:
    async with served() as one:
        client = await raw(one)
        # The last one has no window left unless the others have given theirs back.
        for _ in range(CONNECTION_WINDOW_BYTES // STREAM_WINDOW_BYTES + 1):
            one.app.hears.clear()
            stream = await opened(client, "/deaf", 8 << 20 if announced else None)
            await fill_window(client, stream)
            assert await client.answer(await client.request("/")) == b"hello"
            assert client.h2.local_flow_control_window(stream) == 0
            one.app.hears.set()
            assert await client.answer(stream) == b"heard nothing"
            assert client.resets[stream] == ErrorCodes.NO_ERROR
        other = await client.request("/length", bytes(STREAM_WINDOW_BYTES))
        assert (await client.answer(other)).startswith(b"%d in" % STREAM_WINDOW_BYTES)


async def test_a_body_that_has_its_place_is_let_in_once_it_is_asked_for() -> None:
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/length", 6 << 20)
        await client.until(lambda: client.h2.local_flow_control_window(stream) == 6 << 20)
        await client.send_body(stream, bytes(6 << 20))
        assert await client.answer(stream) == b"%d in 1" % (6 << 20)


async def test_a_body_goes_on_while_all_others_wait() -> None:
    """The connection's window is used up, all but a little by bodies that nobody asks for."""
    async with served() as one:
        client = await raw(one)
        wanted = await opened(client, "/length", 4 << 20)
        await client.until(lambda: client.h2.local_flow_control_window(wanted) == 4 << 20)
        for _ in range(7):
            await fill_window(client, await opened(client, "/deaf", 4 << 20))
        await client.send_body(wanted, bytes(4 << 20))
        assert await client.answer(wanted) == b"%d in 1" % (4 << 20)
        one.app.hears.set()


@PLACES
@pytest.mark.parametrize("num_bytes_over", [1, NUM_BYTES])
async def test_more_than_the_stream_s_window_is_a_fault(
    announced: bool, num_bytes_over: int
) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/deaf", 5 << 20 if announced else None)
        await fill_window(client, stream)
        await send(client, bytes(num_bytes_over), stream_id=stream)
        assert await goaway_of(client) == ErrorCodes.FLOW_CONTROL_ERROR


async def test_more_than_the_connection_s_window_is_a_fault() -> None:
    async with served() as one:
        client = await raw(one)
        for _ in range(CONNECTION_WINDOW_BYTES // STREAM_WINDOW_BYTES):
            await fill_window(client, await opened(client, "/deaf", 5 << 20))
        await send(client, b"x", stream_id=await opened(client, "/deaf", 5 << 20))
        assert await goaway_of(client) == ErrorCodes.FLOW_CONTROL_ERROR


# Faults


FAULTS = {
    "more than was announced": (NUM_BYTES, [(NUM_BYTES + 1, True)]),
    "more than was announced, without an end": (NUM_BYTES, [(60_000, False), (60_000, False)]),
    "less than was announced": (NUM_BYTES, [(NUM_BYTES - 1, True)]),
    "less, and an empty end": (NUM_BYTES, [(NUM_BYTES - 1, False), (0, True)]),
    "a small body that is too long": (10, [(11, True)]),
}


@pytest.mark.parametrize(("announced", "frames"), FAULTS.values(), ids=FAULTS.keys())
async def test_another_length_than_was_announced_is_a_fault(
    announced: int, frames: list[tuple[int, bool]]
) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/echo", announced)
        for num_bytes, ends in frames:
            flags = ["END_STREAM"] if ends else []
            await send(client, bytes(num_bytes), *flags, stream_id=stream)
        assert await goaway_of(client) == ErrorCodes.PROTOCOL_ERROR
        assert not client.bodies, "the app never sees a body of another length"


@pytest.mark.parametrize("num_bytes", [1, 50_000])
@pytest.mark.parametrize("path", ["/wait", "/"])
async def test_data_after_a_stream_s_end_costs_that_stream(path: str, num_bytes: int) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, path)
        await send(client, bytes(NUM_BYTES), "END_STREAM", stream_id=stream)
        if path == "/":
            client.h2.end_stream(stream)
            client.h2.data_to_send()
            assert await client.answer(stream) == b"hello"
        await send(client, bytes(num_bytes), stream_id=stream)
        assert await client.answer(await client.request("/")) == b"hello"
        if path == "/wait":
            assert client.resets == {stream: ErrorCodes.STREAM_CLOSED}
            assert one.app.gone.is_set()


@pytest.mark.parametrize(
    "stream_id", [pytest.param(0, id="stream 0"), pytest.param(5, id="a stream that is not open")]
)
@pytest.mark.parametrize("num_bytes", [0, 1, 50_000])
async def test_data_on_no_stream_is_a_fault(stream_id: int, num_bytes: int) -> None:
    async with served() as one:
        client = await raw(one)
        await opened(client, "/wait")
        await send(client, bytes(num_bytes), stream_id=stream_id)
        assert await goaway_of(client) == ErrorCodes.PROTOCOL_ERROR


# Answers before the end, and clients that go


@PLACES
@pytest.mark.parametrize("num_bytes", [BOUND_BYTES + 1, 20 << 20, 1 << 31])
async def test_a_body_over_the_limit_is_a_413(announced: bool, num_bytes: int) -> None:
    async with served(max_body_bytes=BOUND_BYTES) as one:
        client = await raw(one)
        stream = await opened(client, "/bounded", num_bytes if announced else None)
        num_left = num_bytes
        while stream not in client.ended:
            size = min(client.h2.local_flow_control_window(stream), num_left, 100_000)
            if not size:
                await client.read()
                continue
            num_left -= size
            client.h2.send_data(stream, bytes(size), end_stream=not num_left)
            await client.flush()
        assert client.headers[stream][":status"] == "413"
        assert str(BOUND_BYTES).encode() in client.bodies[stream]
        assert num_bytes - num_left <= BOUND_BYTES + CONNECTION_WINDOW_BYTES
        assert await client.answer(await client.request("/")) == b"hello"


@PLACES
async def test_a_body_as_long_as_the_limit_is_taken(announced: bool) -> None:
    headers = {"content-length": str(BOUND_BYTES)} if announced else {}

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(BOUND_BYTES // 4)

    async with served() as one, httpx.AsyncClient(http1=False, http2=True) as client:
        answer = await client.post(f"{one.url}/bounded", content=pieces(), headers=headers)
        assert answer.text == str(BOUND_BYTES)


@PLACES
async def test_an_answer_in_the_middle_of_a_frame_ends_its_stream_alone(announced: bool) -> None:
    async with served() as one:
        client = await raw(one)
        for _ in range(3):
            one.app.hears.clear()
            stream = await opened(client, "/deaf", 1 << 20 if announced else None)
            client.h2.send_data(stream, bytes(500_000))
            wire = client.h2.data_to_send()
            await client.wire.send(wire[:200_000])
            await asyncio.sleep(0.05)
            one.app.hears.set()
            assert await client.answer(stream) == b"heard nothing"
            await client.wire.send(wire[200_000:])
        # All of it is credited: more than a connection's window follows.
        for _ in range(16):
            other = await client.request("/length", bytes(STREAM_WINDOW_BYTES))
            assert (await client.answer(other)).startswith(b"%d in" % STREAM_WINDOW_BYTES)


@PLACES
async def test_a_client_that_resets_its_stream_after_a_part_of_its_body(announced: bool) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/wait", NUM_BYTES if announced else None)
        client.h2.send_data(stream, bytes(60_000))
        client.h2.reset_stream(stream, ErrorCodes.CANCEL)
        await client.flush()
        await asyncio.wait_for(one.app.gone.wait(), 2)
        assert await client.answer(await client.request("/")) == b"hello"


@PLACES
@pytest.mark.parametrize("cut", [4, 9, 100, 70_000])
async def test_a_connection_that_is_lost_within_a_frame(announced: bool, cut: int) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/wait", NUM_BYTES if announced else None)
        client.h2.send_data(stream, bytes(NUM_BYTES))
        await client.wire.send(client.h2.data_to_send()[:cut])
        await one.app.began.wait()
        await asyncio.sleep(0.02)
        client.wire.reset()
        await asyncio.wait_for(one.app.gone.wait(), 2)


@PLACES
async def test_a_slow_client_is_no_absent_one(announced: bool) -> None:
    """Its body takes longer than a pause may be, in one frame."""
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/bounded", NUM_BYTES if announced else None)
        wire = sent_frames(client, stream, bytes(NUM_BYTES))
        for start in range(0, len(wire), 10_000):
            await client.wire.send(wire[start : start + 10_000])
            await asyncio.sleep(0.2)
        assert await client.answer(stream) == b"%d" % NUM_BYTES


@PLACES
async def test_an_absent_client_is_waited_for_as_long_as_a_pause_may_be(announced: bool) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/bounded", NUM_BYTES if announced else None)
        await client.wire.send(sent_frames(client, stream, bytes(NUM_BYTES))[:-50_000])
        assert b"the limit is 1.2 s" in await client.answer(stream)
        assert client.headers[stream][":status"] == "408"


# Turns of the event loop


@PLACES
async def test_a_client_of_tiny_frames_holds_up_no_other(
    announced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_frames, "TURN_SECONDS", -1.0)  # each step is a turn
    async with served() as one:
        client, other = await raw(one), await raw(one)
        stream = await opened(client, "/echo", NUM_BYTES if announced else None)
        body = pattern(NUM_BYTES)
        for start in range(0, NUM_BYTES, 50):
            client.h2.send_data(stream, body[start : start + 50])
        client.h2.end_stream(stream)
        await client.flush()
        assert await other.answer(await other.request("/")) == b"hello"
        assert one.app.num_running == 1, "thousands of turns are still to come"
        assert await client.answer(stream) == body


async def test_a_client_that_goes_between_two_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_frames, "TURN_SECONDS", -1.0)
    async with served() as one:
        client = await raw(one)
        stream = await opened(client, "/wait")
        for _ in range(2000):
            client.h2.send_data(stream, b"abc")
        await client.flush()
        client.wire.reset()
        await asyncio.wait_for(one.app.gone.wait(), 5)
