"""Bodies within bounds, errors in one form, work that ends with its client."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient

from model.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    NotReady,
    QueueFull,
    ServingError,
    UnsupportedMediaType,
)
from model.serving.body import (
    error_response,
    install_error_handlers,
    read_body,
    until_disconnect,
)
from model.serving.routing import Route
from tests.unit.channel import Channel

if TYPE_CHECKING:
    from starlette.responses import Response

LIMIT = 1000
IDLE_SECONDS = 5.0


def request(channel: Channel, **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, channel)


async def read(*chunks: bytes, **headers: str) -> bytes:
    return bytes(await read_body(request(Channel(*chunks), **headers), LIMIT, IDLE_SECONDS))


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate, raw": raw_deflate,
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("step", [1, 7, 5000])
async def test_bodies_of_every_encoding_are_read(encoding: str, step: int) -> None:
    data = bytes(range(200)) * 4
    sent = ENCODERS[encoding](data)
    chunks = [sent[i : i + step] for i in range(0, len(sent), step)]
    assert await read(*chunks, content_encoding=encoding.partition(",")[0]) == data


async def test_gzip_of_two_members_is_one_body() -> None:
    sent = gzip.compress(b"one ") + gzip.compress(b"two")
    assert await read(sent, content_encoding="gzip") == b"one two"


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(1, 50), max_size=8))
def test_any_cut_of_a_gzip_body_reads_the_same(data: bytes, cuts: list[int]) -> None:
    sent, chunks = gzip.compress(data), []
    for cut in cuts:
        chunks.append(sent[:cut])
        sent = sent[cut:]
    assert asyncio.run(read(*chunks, sent, content_encoding="gzip")) == data


@pytest.mark.parametrize(
    ("chunks", "headers", "error", "text"),
    [
        pytest.param(
            [b"x"], {"content_length": "1001"}, BodyTooLarge, "1001 bytes", id="declared too long"
        ),
        pytest.param([b"x" * 600] * 2, {}, BodyTooLarge, "1200", id="undeclared and too long"),
        pytest.param(
            [b"x" * 600] * 2, {"content_length": "5"}, BodyTooLarge, "1200", id="a length that lies"
        ),
        pytest.param(
            [gzip.compress(bytes(10**8))], {"content_encoding": "gzip"}, BodyTooLarge, "1000",
            id="a gzip bomb",
        ),
        pytest.param(
            [gzip.compress(b"hello")[:-3]], {"content_encoding": "gzip"}, InvalidRequest,
            "truncated", id="truncated gzip",
        ),
        pytest.param(
            [zlib.compress(b"hello")[:-3]], {"content_encoding": "deflate"}, InvalidRequest,
            "truncated", id="truncated deflate",
        ),
        pytest.param([], {"content_encoding": "gzip"}, InvalidRequest, "truncated", id="no gzip"),
        pytest.param(
            [b"hello"], {"content_encoding": "gzip"}, InvalidRequest, "corrupt", id="not gzip"
        ),
        pytest.param(
            [zlib.compress(b"a") + b"x"], {"content_encoding": "deflate"}, InvalidRequest,
            "after its end", id="bytes after deflate",
        ),
        pytest.param(
            [b"x"], {"content_encoding": "br"}, UnsupportedMediaType, "'br'", id="brotli"
        ),
        pytest.param(
            [b"x"], {"content_encoding": "gzip, gzip"}, UnsupportedMediaType, "gzip, gzip",
            id="twice",
        ),
    ],
)  # fmt: skip
async def test_bad_bodies_are_refused(
    chunks: list[bytes], headers: dict[str, str], error: type[ServingError], text: str
) -> None:
    with pytest.raises(error, match=text):
        await read(*chunks, **headers)


async def test_a_body_that_the_transport_gathered_is_taken_as_it_is() -> None:
    whole = memoryview(b"x" * 900)
    body = await read_body(request(Channel(whole)), LIMIT, IDLE_SECONDS)
    assert body is whole
    packed = memoryview(gzip.compress(b"hello"))
    read = read_body(request(Channel(packed), content_encoding="gzip"), LIMIT, IDLE_SECONDS)
    assert bytes(await read) == b"hello"


async def test_what_is_too_long_is_taken_from_the_socket_so_that_the_answer_arrives() -> None:
    channel = Channel(*[b"x" * 100] * 9)
    with pytest.raises(BodyTooLarge):
        await read_body(request(channel, content_length="5000"), LIMIT, IDLE_SECONDS)
    assert channel.num_unread == 0


async def test_but_only_up_to_the_limit_again() -> None:
    channel = Channel(*[b"x" * 100] * 90)
    with pytest.raises(BodyTooLarge):
        await read_body(request(channel, content_length="9000"), LIMIT, IDLE_SECONDS)
    assert channel.num_unread > 70


async def test_a_client_that_waits_for_100_continue_is_not_asked_for_its_body() -> None:
    channel = Channel(b"x")
    headers = {"content_length": "5000", "expect": "100-continue"}
    with pytest.raises(BodyTooLarge):
        await read_body(request(channel, **headers), LIMIT, IDLE_SECONDS)
    assert channel.num_unread == 2


async def test_a_body_that_stops_arriving_is_not_waited_for() -> None:
    channel = Channel(b"x" * 7, complete=False)
    channel.gone.clear()
    with pytest.raises(BodyTimeout, match=r"stopped after 7 bytes; the limit is 0.05 s"):
        await read_body(request(channel), LIMIT, 0.05)


async def test_half_a_body_is_a_disconnect() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(request(Channel(b"x", complete=False)), LIMIT, IDLE_SECONDS)


async def test_work_is_cancelled_when_the_client_goes() -> None:
    channel, ended = Channel(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.set()

    waiting = asyncio.create_task(until_disconnect({}, channel, work()))
    await asyncio.sleep(0.01)
    channel.gone.set()
    with pytest.raises(ClientDisconnect):
        await waiting
    assert ended.is_set(), "the work has ended when the call returns"


async def test_work_that_fails_as_the_client_goes_leaves_its_task_uncancelled() -> None:
    channel = Channel()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise InvalidRequest("no") from None

    async def serve() -> int:
        with pytest.raises(InvalidRequest):
            await until_disconnect({}, channel, work())
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0.01)
    channel.gone.set()
    assert await serving == 0


async def test_work_is_cancelled_with_its_caller() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    waiting = asyncio.create_task(until_disconnect({}, Channel(), work()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_works_result_and_error_pass_through() -> None:
    async def good() -> int:
        return 5

    async def bad() -> int:
        raise InvalidRequest("no")

    assert await until_disconnect({}, Channel(), good()) == 5
    with pytest.raises(InvalidRequest, match="no"):
        await until_disconnect({}, Channel(), bad())


def test_errors_say_when_to_come_back() -> None:
    loading = error_response(NotReady("loading"))
    assert loading.status_code == 503
    assert json.loads(loading.body) == {"error": "loading"}
    assert (loading.headers["retry-after"], loading.headers["connection"]) == ("5", "close")
    full = error_response(QueueFull(9, 8))
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert "connection" not in full.headers


def test_every_failure_of_an_app_is_an_error_object() -> None:
    async def serving(request: Request) -> Response:
        raise InvalidRequest("bad")

    async def broken(request: Request) -> Response:
        raise RuntimeError("at 0x1234 in secret.py")

    handlers = (serving, broken)
    app = Starlette(routes=[Route(("GET",), f"/{one.__name__}", one) for one in handlers])
    install_error_handlers(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        answers = {
            (one := client.request(method, path)).request.url.path: (one.status_code, one.json())
            for method, path in (
                ("GET", "/serving"),
                ("GET", "/nowhere"),
                ("POST", "/serving/../serving"),
                ("GET", "/broken"),
            )
        }
        assert client.post("/serving").json() == {"error": "POST /serving: not allowed"}
        assert client.post("/serving").status_code == 405
    assert answers["/nowhere"] == (404, {"error": "GET /nowhere: no such route"})
    assert answers["/broken"] == (
        500,
        {"error": "internal error; the server's log says more"},
    )
