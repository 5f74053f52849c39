"""HTTP/2 with prior knowledge: streams, flow control both ways, floods, and the end."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from model.serving.transport.http2 import FRAME_BYTES
from model.serving.transport.http2_stream import STREAM_WINDOW_BYTES
from tests.server.http2_client import Http2Client
from tests.server.transport_app import PIECE, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.transport_app import Served


def http2_client(one: Served) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=one.url, http1=False, http2=True)


async def raw(one: Served, **options: Any) -> Http2Client:
    return await Http2Client(await one.connect(), **options).start()


@pytest.mark.parametrize("num_bytes", [0, 1, 16_384, 70_000, 20 << 20])
async def test_bodies_of_any_length_arrive_whole(num_bytes: int) -> None:
    body = (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]
    async with served() as one, http2_client(one) as client:
        answer = await client.post("/echo", content=body)
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
        assert answer.content == body


async def test_both_protocols_on_one_port() -> None:
    async with served() as one, http2_client(one) as new, httpx.AsyncClient() as old:
        assert (await new.get("/")).text == (await old.get(one.url)).text == "hello"


async def test_the_first_bytes_may_come_one_by_one() -> None:
    async with served() as one:
        client = Http2Client(await one.connect())
        client.h2.initiate_connection()
        for byte in client.h2.data_to_send():
            await client.wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.answer(await client.request("/")) == b"hello"


async def test_many_streams_on_one_connection() -> None:
    async with served() as one, http2_client(one) as client:
        bodies = [b"%d" % i * 20_000 for i in range(60)]
        answers = await asyncio.gather(*(client.post("/echo", content=one) for one in bodies))
        assert [answer.content for answer in answers] == bodies
        assert len({answer.extensions["network_stream"] for answer in answers}) == 1


async def test_what_the_app_is_told_of_a_request() -> None:
    async with served() as one:
        client = await raw(one)
        await client.answer(await client.request("/%73cope_?a=%20", None, ("x-a", "1")))
        scope = one.app.scope
    assert (scope["method"], scope["http_version"]) == ("GET", "2")
    assert (scope["path"], scope["raw_path"]) == ("/scope_", b"/%73cope_")
    assert scope["query_string"] == b"a=%20"
    assert scope["headers"] == [(b"host", b"x"), (b"x-a", b"1")]
    assert scope["client"][0] == "127.0.0.1"


async def test_head_gets_the_headers_alone() -> None:
    async with served() as one, http2_client(one) as client:
        answer = await client.head("/")
        assert (answer.headers["content-length"], answer.content) == ("5", b"")
        assert (await client.head("/slowly")).content == b""


async def test_a_client_is_told_to_go_on_when_its_body_is_wanted() -> None:
    async with served() as one:
        client = await raw(one)
        stream = await client.request("/length", b"", ("expect", "100-continue"), end=False)
        await client.until(lambda: client.informational == [100])
        await client.send_body(stream, b"abc")
        assert await client.answer(stream) == b"3 in 1"


async def test_pieces_come_when_they_are_sent() -> None:
    async with served() as one:
        client = await raw(one)
        stream = await client.request("/slowly")
        await client.until(lambda: client.bodies[stream])
        assert client.bodies[stream] == b"0"
        assert await client.answer(stream) == b"01234"


# Flow control


async def test_an_answer_waits_for_the_stream_s_window() -> None:
    async with served() as one:
        client = await raw(one, acknowledges=False, window=10_000)
        stream = await client.request("/pieces")
        await client.until(lambda: len(client.bodies[stream]) == 10_000)
        other = await client.request("/")
        assert await client.answer(other) == b"hello", "one stream's window holds up no other"
        client.acknowledges = True
        client.h2.acknowledge_received_data(10_000, stream)
        await client.flush()
        assert await client.answer(stream) == PIECE * 20


async def test_a_larger_window_for_all_streams_is_heard_of() -> None:
    async with served() as one:
        client = await raw(one, acknowledges=False, window=10)
        stream = await client.request("/")
        await client.answer(stream)
        stream = await client.request("/pieces")
        await client.until(lambda: len(client.bodies[stream]) == 10)
        client.acknowledges = True
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
        await client.flush()
        assert await client.answer(stream) == PIECE * 20


async def test_a_client_that_does_not_read_costs_no_memory_and_then_its_stream() -> None:
    async with served(send_idle_seconds=0.3) as one:
        client = await raw(one, acknowledges=False)
        stream = await client.request("/endless")
        await client.until(lambda: stream in client.resets)
        assert client.resets[stream] == ErrorCodes.CANCEL
        assert one.app.gone.is_set()
        assert one.app.num_pieces_sent <= 2
        # The connection's window is still taken by what the client never credited.
        client.h2.increment_flow_control_window(1 << 20)
        assert await client.answer(await client.request("/")) == b"hello"


async def test_a_client_that_does_not_even_take_bytes_costs_its_connection() -> None:
    async with served(send_idle_seconds=0.3) as one:
        client = await raw(one, window=1 << 30)
        client.h2.increment_flow_control_window(1 << 30)
        client.wire.writer.transport.pause_reading()
        await client.request("/endless")
        await asyncio.wait_for(one.app.gone.wait(), 5)
        assert one.app.num_pieces_sent * len(PIECE) < 16 << 20


async def test_a_body_that_nobody_takes_waits_with_the_client() -> None:
    async with served() as one:
        client = await raw(one)
        stream = await client.request("/slowly", b"", end=False)
        while window := client.h2.local_flow_control_window(stream):
            client.h2.send_data(stream, bytes(min(window, client.h2.max_outbound_frame_size)))
        await client.flush()
        assert await client.answer(stream) == b"01234"
        assert client.resets == {stream: ErrorCodes.NO_ERROR}, "the rest is not needed"
        # What was never taken is credited to the connection: eight more fit into its window.
        for _ in range(16):
            other = await client.request("/length", bytes(STREAM_WINDOW_BYTES))
            assert (await client.answer(other)).startswith(b"%d in" % STREAM_WINDOW_BYTES)


# Clients that go


async def test_pieces_that_are_offered_take_the_way_of_all_others() -> None:
    async with served() as one, http2_client(one) as client:
        assert (await client.get("/written")).text == "0123"
        assert one.app.num_written == 0


@pytest.mark.parametrize("path", ["/wait", "/endless"])
async def test_a_cancelled_stream_ends_alone(path: str) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await client.request(path, b"unread" * 1000, end=False)
        await one.app.began.wait()
        client.h2.reset_stream(stream, ErrorCodes.CANCEL)
        await client.flush()
        await asyncio.wait_for(one.app.gone.wait(), 2)
        assert await client.answer(await client.request("/")) == b"hello"


async def test_a_lost_connection_ends_all_its_streams() -> None:
    async with served() as one:
        client = await raw(one)
        for _ in range(10):
            await client.request("/wait")
        while one.app.num_running < 10:
            await asyncio.sleep(0.01)
        client.wire.reset()
        while one.app.num_running:
            await asyncio.sleep(0.01)


async def test_a_client_that_says_goodbye_still_gets_its_answers() -> None:
    async with served() as one:
        client = await raw(one)
        stream = await client.request("/slowly")
        client.h2.close_connection()
        await client.flush()
        client.h2.state_machine.state = type(client.h2.state_machine.state).CLIENT_OPEN
        assert await client.answer(stream) == b"01234"
        await client.until_closed()


# Faults and floods


async def test_faults_of_the_app_are_told_or_break_the_stream_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served() as one:
        client = await raw(one)
        stream = await client.request("/fail")
        assert b"internal error" in await client.answer(stream)
        assert client.headers[stream][":status"] == "500"
        stream = await client.request("/break")
        await client.until(lambda: stream in client.resets)
        assert client.resets[stream] == ErrorCodes.INTERNAL_ERROR
        assert await client.answer(await client.request("/")) == b"hello"
    assert caplog.text.count("ValueError: on purpose") == 2


def headers_frame(client: Http2Client, *fields: tuple[str, str], stream_id: int = 1) -> bytes:
    block = client.h2.encoder.encode(fields)
    frame = HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"])
    return frame.serialize()


PSEUDO = ((":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/"))
NO_REQUESTS: dict[str, Callable[[Http2Client], bytes]] = {
    "no path": lambda client: headers_frame(client, *PSEUDO[:3]),
    "an upper-case name": lambda client: headers_frame(client, *PSEUDO, ("X-A", "b")),
    "HTTP/1.1's connection": lambda client: headers_frame(client, *PSEUDO, ("connection", "close")),
    "two paths": lambda client: headers_frame(client, *PSEUDO, PSEUDO[3]),
    "a pseudo-header behind": lambda client: headers_frame(client, ("a", "b"), *PSEUDO),
    "an even stream": lambda client: headers_frame(client, *PSEUDO, stream_id=2),
    "data without a stream": lambda client: DataFrame(5, b"x").serialize(),
    "a window of nothing": lambda client: WindowUpdateFrame(0, window_increment=0).serialize(),
    "no HPACK": lambda client: HeadersFrame(
        1, b"\xff\xff\xff\xff\xff", flags=["END_HEADERS"]
    ).serialize(),
    "an endless head": lambda client: (
        HeadersFrame(1, b"").serialize() + ContinuationFrame(1, b"").serialize() * 100
    ),
    "a head over the limit": lambda client: headers_frame(client, *PSEUDO, ("a", "b" * 9000)),
    "a frame over the limit": lambda client: DataFrame(1, bytes(FRAME_BYTES + 1)).serialize(),
    "a bad setting": lambda client: SettingsFrame(0, {SettingCodes.ENABLE_PUSH: 3}).serialize(),
    "too much padding": lambda client: b"\x00\x00\x02\x00\x08\x00\x00\x00\x01\xff\x00",
    "a short ping": lambda client: b"\x00\x00\x02\x06\x00\x00\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("fault", NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
async def test_what_is_no_http2_ends_the_connection(fault: Callable[[Http2Client], bytes]) -> None:
    async with served() as one:
        client = await raw(one)
        await client.wire.send(fault(client))
        await client.until_closed()
        assert client.goaway is not None
        assert client.goaway.error_code != ErrorCodes.NO_ERROR
        assert await (again := await raw(one)).answer(await again.request("/")) == b"hello"


async def test_a_frame_over_the_limit_is_refused_before_it_comes() -> None:
    async with served() as one:
        client = await raw(one)
        await client.wire.send(DataFrame(1, bytes(FRAME_BYTES + 1)).serialize()[:9])
        await client.until_closed()
        assert client.goaway is not None
        assert client.goaway.error_code == ErrorCodes.FRAME_SIZE_ERROR


async def test_a_preface_that_goes_wrong_ends_the_connection() -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + bytes(20))
        await wire.read_to_end()


async def test_connect_is_refused() -> None:
    async with served() as one:
        client = await raw(one)
        client.h2.config.validate_outbound_headers = False
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(
            stream, [(":method", "CONNECT"), (":authority", "x:1")], end_stream=True
        )
        await client.flush()
        await client.until(lambda: stream in client.resets or client.goaway)


def reset_streams(client: Http2Client, number: int) -> bytes:
    data = headers_frame(client, *PSEUDO[:3], (":path", "/wait"), stream_id=2 * number + 1)
    return data + RstStreamFrame(2 * number + 1, ErrorCodes.CANCEL).serialize()


FLOODS: dict[str, Callable[[Http2Client, int], bytes]] = {
    "streams opened and reset": reset_streams,
    "pings": lambda client, number: PingFrame(0, bytes(8)).serialize(),
    "settings": lambda client, number: SettingsFrame(0, {}).serialize(),
    "priorities": lambda client, number: PriorityFrame(2 * number + 1, depends_on=0).serialize(),
    "windows": lambda client, number: WindowUpdateFrame(0, window_increment=1).serialize(),
    "unknown frames": lambda client, number: b"\x00\x00\x00\xfa\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_ends_its_connection_and_no_other(
    flood: Callable[[Http2Client, int], bytes],
) -> None:
    async with served(max_streams=256) as one:
        client = await raw(one)
        await client.wire.send(b"".join(flood(client, number) for number in range(3000)))
        await client.until_closed()
        assert client.goaway is not None
        assert client.goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        while one.app.num_running:
            await asyncio.sleep(0.01)
        assert await (again := await raw(one)).answer(await again.request("/")) == b"hello"


async def test_empty_frames_of_a_body_are_a_flood_too() -> None:
    async with served() as one:
        client = await raw(one)
        await client.request("/length", b"", end=False)
        await client.wire.send(DataFrame(1, b"").serialize() * 3000)
        await client.until_closed()
        assert client.goaway is not None


async def test_a_gateway_whose_clients_all_leave_at_once_is_no_flood() -> None:
    async with served(max_streams=256) as one:
        client = await raw(one)
        for _ in range(3):
            streams = [await client.request("/wait") for _ in range(256)]
            for stream in streams:
                client.h2.reset_stream(stream, ErrorCodes.CANCEL)
            await client.flush()
        assert await client.answer(await client.request("/")) == b"hello"


async def test_one_stream_too_many_ends_the_connection() -> None:
    async with served(max_streams=4) as one:
        client = await raw(one)
        await client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 4)
        data = b"".join(
            headers_frame(client, *PSEUDO[:3], (":path", "/wait"), stream_id=2 * i + 1)
            for i in range(5)
        )
        await client.wire.send(data)
        await client.until_closed()
        assert client.goaway is not None


async def test_a_client_cannot_make_us_remember_its_headers() -> None:
    async with served() as one:
        client = await raw(one)
        client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
        await client.flush()
        assert await client.answer(await client.request("/")) == b"hello"
        [connection] = one.server._connections
        assert connection.h2.encoder.header_table_size <= 4096


# The end


async def test_an_idle_connection_is_told_to_go_and_closed() -> None:
    async with served(keep_alive_seconds=0.2) as one:
        client = await raw(one)
        stream = await client.request("/slowly")
        assert await client.answer(stream) == b"01234", (
            "a stream of more than that time is not idle"
        )
        await client.until_closed()
        assert client.goaway is not None
        assert client.goaway.error_code == ErrorCodes.NO_ERROR


def assert_unheard(client: Http2Client, stream_id: int) -> None:
    """Its GOAWAY says all: a client may ask again elsewhere, and httpx fails over a reset."""
    assert stream_id > client.goaway.last_stream_id
    assert stream_id not in client.headers
    assert stream_id not in client.resets


async def test_connection_close_becomes_goaway() -> None:
    async with served() as one:
        client = await raw(one)
        slow = await client.request("/slowly")
        last = await client.request("/farewell")
        await client.answer(last)
        assert "connection" not in client.headers[last]
        await client.until(lambda: client.goaway)
        assert client.goaway.last_stream_id == last
        late = await client.request("/")
        assert await client.answer(slow) == b"01234"
        await client.until_closed()
        assert_unheard(client, late)


async def test_a_server_that_leaves_tells_each_client_once_it_is_answered() -> None:
    async with served() as one:
        idle, busy = await raw(one), await raw(one)
        await idle.answer(await idle.request("/"))
        slow = await busy.request("/slowly")
        await busy.until(lambda: busy.bodies[slow])
        one.server.leave()
        await idle.until(lambda: idle.goaway)
        late = await idle.request("/")
        beside = await busy.request("/")
        assert await busy.answer(beside) == b"hello"
        assert busy.goaway is None, "httpx would take it for the other answer's end"
        assert await busy.answer(slow) == b"01234"
        await busy.until(lambda: busy.goaway)
        assert busy.goaway.last_stream_id == beside
        late_comer = await raw(one)
        assert await late_comer.answer(await late_comer.request("/")) == b"hello"
        for client in (idle, busy, late_comer):
            await client.until_closed()
        assert_unheard(idle, late)


async def test_stopping_lets_answers_end() -> None:
    async with served() as one:
        client, idle = await raw(one), await raw(one)
        stream = await client.request("/slowly")
        await client.until(lambda: client.bodies[stream])
        stopping = asyncio.create_task(one.server.stop(5))
        assert await client.answer(stream) == b"01234"
        await client.until_closed()
        await idle.until_closed()
        await stopping


# Other clients


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl(tmp_path: Any) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(range(256)) * (20 << 12))
    async with served() as one:
        got = await asyncio.to_thread(
            run, "curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}",
            "--data-binary", f"@{upload}", "-o", str(tmp_path / "echo"), f"{one.url}/echo",
        )  # fmt: skip
        assert (got.stdout, got.stderr) == ("2 200", "")
        upgrade = await asyncio.to_thread(
            run, "curl", "-sS", "--http2", "-w", " %{http_version}", "-d", "abc",
            f"{one.url}/length",
        )  # fmt: skip
        assert upgrade.stdout == "3 in 1 1.1", "an upgrade is not taken"
    assert (tmp_path / "echo").read_bytes() == upload.read_bytes()


@pytest.mark.skipif(shutil.which("h2load") is None, reason="nghttp2-client is not installed")
async def test_h2load() -> None:
    async with served() as one:
        got = await asyncio.to_thread(
            run, "h2load", "-n", "2000", "-c", "4", "-m", "50", f"{one.url}/"
        )
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in got.stdout
