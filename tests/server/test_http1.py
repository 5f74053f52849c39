"""HTTP/1.1 as our transport speaks it: bodies, limits, pipelines, clients that go or stop."""

from __future__ import annotations

import asyncio
import gc

import httpx
import pytest

from model.serving.transport.http1 import HIGH_WATER_BYTES
from tests.server.transport_app import PIECE, served

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(path: str, *pieces: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (*pieces, b""))


@pytest.mark.parametrize("num_bytes", [0, 1, 1000, 64 * 1024, 64 * 1024 + 1, 300_000, 9 << 20])
@pytest.mark.parametrize("as_chunks", [False, True])
async def test_bodies_of_any_length_arrive_whole(num_bytes: int, as_chunks: bool) -> None:
    body = (bytes(range(251)) * (num_bytes // 251 + 1))[:num_bytes]

    async def pieces() -> object:
        for start in range(0, num_bytes, 100_000):
            yield body[start : start + 100_000]

    async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
        for _ in range(2):
            answer = await client.post("/echo", content=pieces() if as_chunks else body)
            assert answer.status_code == 200
            assert answer.content == body


async def test_a_large_body_is_given_to_the_app_in_one_piece() -> None:
    async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
        assert (await client.post("/length", content=bytes(9 << 20))).text == f"{9 << 20} in 1"
        # Beyond what any route takes, nothing is gathered: the app sees it come.
        length, _, pieces = (await client.post("/length", content=bytes(65 << 20))).text.split()
    assert int(length) == 65 << 20
    assert int(pieces) > 10


@pytest.mark.parametrize("cut", [1, 7, 100, 70_000])
async def test_however_the_bytes_come_the_requests_are_the_same(cut: int) -> None:
    data = post("/length", bytes(100_000)) + chunked("/length", b"ab", b"c" * 70_000) + GET
    async with served() as one:
        wire = await one.connect()
        for start in range(0, len(data), cut if cut > 50 else 50_000):
            await wire.send(data[start : start + (cut if cut > 50 else 50_000)])
            await asyncio.sleep(0)
        assert (await wire.read_until(b"100000 in 1")).startswith(b"HTTP/1.1 200 OK\r\n")
        await wire.read_until(b"70002 in ")
        await wire.read_until(b"hello")


async def test_pieces_may_be_sent_past_the_app_s_layers() -> None:
    async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
        assert (await client.get("/written")).text == "0123"
        assert one.app.num_written == 3
        assert (await client.get("/written_length")).text == "ab"
        assert (await client.head("/written")).status_code == 200
        assert one.app.num_written == 0, "an answer without a body has no pieces"


async def test_an_answered_request_keeps_nothing_of_its_body() -> None:
    gc.disable()
    try:
        async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
            await client.post("/length", content=bytes(9 << 20))
            exchange = one.app.exchange
            assert exchange is not None
            await asyncio.sleep(0)
            assert exchange() is None, "only a collection of garbage would free it"
    finally:
        gc.enable()


async def test_head_is_get_without_a_body() -> None:
    async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
        answer = await client.head("/")
        assert (answer.status_code, answer.headers["content-length"]) == (200, "5")
        assert (answer.content, one.app.scope["method"]) == (b"", "GET")


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    async with served() as one:
        wire = await one.connect()
        head = b"GET /written?endless HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        await wire.send(head)
        await asyncio.sleep(0.1)
        assert 3 < one.app.num_written < 1000
        assert (await wire.read_to_end()).endswith(PIECE + b"\r\n0\r\n\r\n")


async def test_a_head_may_come_byte_by_byte() -> None:
    async with served() as one:
        wire = await one.connect()
        for byte in GET:
            await wire.send(bytes([byte]))
            await asyncio.sleep(0)
        await wire.read_until(b"hello")


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with served() as one:
        wire = await one.connect()
        slow = b"GET /slowly HTTP/1.1\r\nHost: x\r\n\r\n"
        await wire.send(slow + GET + post("/length", b"abc") + slow)
        await wire.read_until(b"1\r\n0\r\n1\r\n1\r\n1\r\n2\r\n1\r\n3\r\n1\r\n4\r\n0\r\n\r\n")
        await wire.read_until(b"hello")
        await wire.read_until(b"3 in 1")
        await wire.read_until(b"0\r\n\r\n")


async def test_a_client_is_told_to_go_on_only_when_its_body_is_wanted() -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(post("/length", b"", "Expect: 100-continue").replace(b": 0", b": 3"))
        await wire.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.send(b"abc")
        await wire.read_until(b"3 in 1")
        await wire.send(post("/refuse", b"", "Expect: 100-continue").replace(b": 0", b": 3"))
        answer = await wire.read_to_end()
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer


async def test_an_answer_that_leaves_the_body_unread_does_not_cut_the_client_off() -> None:
    async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
        for num_bytes in (10, 100_000, 5 << 20):
            answer = await client.post("/refuse", content=bytes(num_bytes))
            assert (answer.status_code, answer.content) == (413, b"no")
            assert (await client.get("/")).content == b"hello"


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [
        pytest.param("1.1", "", True, id="1.1 stays"),
        pytest.param("1.1", "Connection: close\r\n", False, id="1.1 asked to close"),
        pytest.param("1.0", "", False, id="1.0 closes"),
        pytest.param("1.0", "Connection: keep-alive\r\n", True, id="1.0 asked to stay"),
    ],
)
async def test_connections_stay_as_long_as_the_client_wants(
    version: str, headers: str, stays: bool
) -> None:
    request = f"GET / HTTP/{version}\r\nHost: x\r\n{headers}\r\n".encode()
    async with served() as one:
        wire = await one.connect()
        await wire.send(request)
        answer = await wire.read_until(b"hello")
        assert (b"connection: close" in answer) != stays
        if stays:
            await wire.send(request)
            await wire.read_until(b"hello")
        else:
            assert await wire.read_to_end() == b""


async def test_http_1_0_gets_a_stream_without_chunks() -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(b"GET /slowly HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await wire.read_to_end()).endswith(b"\r\n\r\n01234")


async def test_head_gets_the_headers_alone() -> None:
    async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
        answer = await client.head("/")
        assert (answer.headers["content-length"], answer.content) == ("5", b"")
        assert (await client.head("/slowly")).content == b""
        assert (await client.get("/")).content == b"hello"


async def test_what_the_app_is_told_of_a_request() -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(b"GET /%73cope_?a=%20&b HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
        await wire.read_until(b"hello")
        scope = one.app.scope
    assert (scope["path"], scope["raw_path"]) == ("/scope_", b"/%73cope_")
    assert scope["query_string"] == b"a=%20&b"
    assert scope["headers"] == [(b"host", b"x"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert scope["client"][0] == "127.0.0.1"
    assert scope["http_version"] == "1.1"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01", id="TLS on a cleartext port"),
        pytest.param(b"GET\r\n\r\n", id="no target"),
        pytest.param(b"GET / HTTP/1.1\r\nA B: c\r\n\r\n", id="a space in a name"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", id="a zero in a value"),
        pytest.param(b"GET /\xff HTTP/1.1\r\n\r\n", id="a target that is not ASCII"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", id="two lengths"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            id="a length and chunks",
        ),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", id="a negative length"),
        pytest.param(b"PRISM / HTTP/1.1\r\n\r\n", id="nearly HTTP/2's preface"),
    ],
)
async def test_what_is_no_request_is_a_400(data: bytes) -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(data)
        answer = await wire.read_to_end()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith(b'{"error":"the request is not valid HTTP/1.1"}')


async def test_a_fault_behind_a_request_leaves_its_answer_whole() -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(b"GET /slowly HTTP/1.1\r\nHost: x\r\n\r\n" + b"nonsense\r\n\r\n")
        answer = await wire.read_to_end()
    assert answer.endswith(b"4\r\n0\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_fault_in_a_body_is_a_400_and_the_app_never_sees_the_whole() -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(chunked("/length", b"abc").replace(b"3\r\nabc", b"x\r\nabc"))
        answer = await wire.read_to_end()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_an_upgrade_is_not_taken() -> None:
    headers = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    async with served() as one:
        wire = await one.connect()
        await wire.send(f"GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        assert (await wire.read_to_end()).endswith(b"hello")
        for num_bytes in (3, 1 << 20):
            wire = await one.connect()
            await wire.send(post("/length", bytes(num_bytes), *headers.strip().split("\r\n")))
            assert (await wire.read_to_end()).endswith(b"%d in 1" % num_bytes)


@pytest.mark.parametrize("num_headers", [1, 100, 1000])
async def test_a_head_over_the_limit_is_a_431(num_headers: int) -> None:
    line = b"A: " + b"a" * (9000 // num_headers - 5) + b"\r\n"
    async with served() as one:
        wire = await one.connect()
        await wire.send(GET[:-2] + line * num_headers + b"\r\n")
        answer = await wire.read_to_end()
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"the limit of 8192 bytes" in answer
        # Endless, it is refused before its end.
        wire = await one.connect()
        await wire.send(GET[:-2] + b"X-A: " + b"a" * 9000)
        assert (await wire.read_to_end()).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nHost:", GET + b"GET /"])
async def test_a_head_that_does_not_come_is_not_waited_for(begun: bytes) -> None:
    async with served(head_seconds=0.1) as one:
        wire = await one.connect()
        await wire.send(begun)
        await wire.read_to_end()


async def test_an_idle_connection_is_closed() -> None:
    async with served(keep_alive_seconds=0.1) as one:
        wire = await one.connect()
        await wire.send(GET)
        assert (await wire.read_to_end()).endswith(b"hello")


@pytest.mark.parametrize("goes", ["close", "reset"])
@pytest.mark.parametrize("path", ["/wait", "/endless"])
async def test_the_app_hears_that_the_client_is_gone(path: str, goes: str) -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await one.app.began.wait()
        getattr(wire, goes)()
        await asyncio.wait_for(one.app.gone.wait(), 2)


@pytest.mark.parametrize("num_bytes", [10, 100_000, 1 << 20])
async def test_a_client_that_goes_in_the_middle_of_its_body(num_bytes: int) -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(post("/wait", bytes(num_bytes))[:-5])
        await one.app.began.wait()
        wire.close()
        await asyncio.wait_for(one.app.gone.wait(), 2)


async def test_a_client_that_does_not_read_is_not_written_to_and_then_cut_off() -> None:
    async with served(send_idle_seconds=0.5) as one:
        wire = await one.connect()
        wire.writer.transport.pause_reading()
        await wire.send(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.3)
        num_sent = one.app.num_pieces_sent
        await asyncio.wait_for(one.app.gone.wait(), 2)
    # What fits into the kernel's buffers and our own, and no more.
    assert one.app.num_pieces_sent <= num_sent + 1
    assert num_sent * len(PIECE) < 16 << 20


async def test_a_slow_reader_gets_everything() -> None:
    async with served(send_idle_seconds=1.0) as one:
        wire = await one.connect()
        await wire.send(b"GET /pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while data := await asyncio.wait_for(wire.reader.read(100_000), 5):
            received += data
            await asyncio.sleep(0.02)
    assert received.count(PIECE) == 20


async def test_a_body_that_nobody_wants_yet_waits_with_the_client() -> None:
    async with served() as one:
        wire = await one.connect()
        await wire.send(
            b"POST /slowly HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n" % (100 << 20)
        )
        sending = asyncio.create_task(wire.send(bytes(100 << 20)))
        await asyncio.sleep(0.1)
        [connection] = one.server._connections
        assert connection._incoming.num_unread <= HIGH_WATER_BYTES + len(one.server.buffer)
        assert not sending.done()
        sending.cancel()
        wire.reset()


async def test_faults_of_the_app_are_told_or_break_the_answer_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served() as one, httpx.AsyncClient(base_url=one.url) as client:
        answer = await client.get("/fail")
        assert (answer.status_code, "internal error" in answer.json()["error"]) == (500, True)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/break")
    assert caplog.text.count("ValueError: on purpose") == 2


async def test_a_server_that_leaves_closes_each_connection_behind_its_next_answer() -> None:
    async with served() as one:
        kept, streaming = await one.connect(), await one.connect()
        await kept.send(GET)
        await kept.read_until(b"hello")
        await streaming.send(b"GET /slowly HTTP/1.1\r\nHost: x\r\n\r\n")
        await streaming.read_until(b"0\r\n")
        one.server.leave()
        await streaming.read_until(b"4\r\n0\r\n\r\n")
        for wire in (kept, streaming, await one.connect()):
            await wire.send(GET)
            answer = await wire.read_to_end()
            assert b"connection: close\r\n" in answer
            assert answer.endswith(b"hello")


async def test_a_server_that_takes_no_more_closes_what_is_idle_and_nothing_else() -> None:
    async with served() as one:
        idle, busy, asking, new = [await one.connect() for _ in range(4)]
        await idle.send(GET)
        await idle.read_until(b"hello")
        await busy.send(b"GET /slowly HTTP/1.1\r\nHost: x\r\n\r\n")
        await busy.read_until(b"0\r\n")
        await asking.send(GET[:-2])
        one.server.leave()
        one.server.go_away()
        assert await idle.read_to_end() == b""
        assert (await busy.read_until(b"4\r\n0\r\n\r\n")).startswith(b"1\r\n1\r\n")
        await asking.send(GET[-2:])
        await new.send(GET)
        assert (await asking.read_to_end()).endswith(b"hello")
        assert (await new.read_to_end()).endswith(b"hello")


async def test_stopping_lets_an_answer_end_and_closes_the_rest() -> None:
    async with served() as one:
        idle, busy, new = [await one.connect() for _ in range(3)]
        await idle.send(GET)
        await idle.read_until(b"hello")
        await busy.send(b"GET /slowly HTTP/1.1\r\nHost: x\r\n\r\n")
        await busy.read_until(b"0\r\n")
        await one.server.stop(5)
        assert (await busy.read_to_end()).endswith(b"4\r\n0\r\n\r\n")
        assert await idle.read_to_end() == b""
        assert await new.read_to_end() == b""
