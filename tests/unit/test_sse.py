"""Streams of objects: what is sent, in which form, and that they end with their client."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import ClientDisconnect

from model.errors import InvalidRequest, QueueFull, QueueTimeout
from model.serving import sse
from model.serving.sse import EVENTS, TYPED_EVENTS, TYPED_LINES, EventStream, Outlet, StreamFormat
from tests.unit.channel import Channel, Sent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def objects(*items: dict[str, Any] | Exception) -> AsyncGenerator[dict[str, Any], None]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


def stream_of(objects: AsyncGenerator[Any, None], form: StreamFormat) -> EventStream:
    return EventStream(objects, Outlet({}, form), nullcontext())


async def send(form: StreamFormat, *items: dict[str, Any] | Exception) -> Sent:
    sent, channel = Sent(), Channel()
    await channel()
    await stream_of(objects(*items), form)({}, channel, sent)
    return sent


@pytest.mark.parametrize(
    ("form", "content_type", "body"),
    [
        pytest.param(
            EVENTS, b"text/event-stream", b'data: {"type":"a"}\n\ndata: {"type":"b"}\n\n', id="SSE"
        ),
        pytest.param(
            TYPED_EVENTS,
            b"text/event-stream",
            b'event: a\ndata: {"type":"a"}\n\nevent: b\ndata: {"type":"b"}\n\n',
            id="SSE with names",
        ),
        pytest.param(
            TYPED_LINES, b"application/x-ndjson", b'{"type":"a"}\n{"type":"b"}\n', id="NDJSON"
        ),
    ],
)
async def test_objects_are_sent_in_their_form(
    form: StreamFormat, content_type: bytes, body: bytes
) -> None:
    sent = await send(form, {"type": "a"}, {"type": "b"})
    assert sent.body == body
    assert sent.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    headers = dict(sent.messages[0]["headers"])
    assert headers[b"content-type"].startswith(content_type)
    assert b"content-length" not in headers


async def test_a_form_may_have_an_end_of_its_own() -> None:
    form = StreamFormat("text/plain", sse.json_line, sse.plain_error, end=b"bye")
    assert (await send(form, {"a": 1})).body == b'{"a":1}\nbye'


async def test_what_a_request_holds_is_held_until_the_last_byte() -> None:
    held, sent = ExitStack(), Sent()
    held.callback(lambda: sent.messages.append({"type": "let go"}))
    stream = EventStream(objects({"a": 1}), Outlet({}, EVENTS), held)
    await stream({}, Channel(b""), sent)
    types = [message["type"] for message in sent.messages]
    assert types == ["http.response.start", *["http.response.body"] * 2, "let go"]


async def test_an_error_before_the_first_event_is_raised() -> None:
    with pytest.raises(QueueFull):
        await send(EVENTS, QueueFull(2, 1))


@pytest.mark.parametrize(
    ("form", "error", "told"),
    [
        pytest.param(EVENTS, InvalidRequest("no"), b'data: {"error":"no"}', id="a serving error"),
        pytest.param(
            EVENTS,
            RuntimeError("at 0x12"),
            b'data: {"error":"internal error; the server\'s log says more"}',
            id="others keep what they say to themselves",
        ),
        pytest.param(EVENTS, OSError("disk"), b'data: {"error":"internal error', id="an OSError"),
        pytest.param(
            TYPED_EVENTS,
            QueueTimeout(2, 1),
            b'event: error\ndata: {"type":"error","error":"request waited 2 s in the queue; '
            b'the limit is 1 s","status":504}',
            id="with a type and a status",
        ),
        pytest.param(TYPED_LINES, InvalidRequest("no"), b'"error":"no","status":400}', id="NDJSON"),
    ],
)
async def test_an_error_on_the_way_is_told_last(
    form: StreamFormat, error: Exception, told: bytes
) -> None:
    body = (await send(form, {"type": "a"}, error)).body
    assert told in body
    assert body.index(b'"a"') < body.index(told)


async def test_comments_are_sent_while_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)

    async def slowly() -> AsyncGenerator[dict[str, Any], None]:
        yield {"a": 1}
        await asyncio.sleep(0.11)
        yield {"b": 2}

    for form, least, most in ((EVENTS, 2, 5), (TYPED_LINES, 0, 0)):
        sent, channel = Sent(), Channel()
        await channel()
        await stream_of(slowly(), form)({}, channel, sent)
        assert least <= sent.body.count(b"\n: keep-alive\n\n") <= most
        assert b'"b":2' in sent.body


async def test_a_stream_that_waits_long_for_its_first_object_begins_with_comments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)

    async def late(error: bool) -> AsyncGenerator[dict[str, Any], None]:
        await asyncio.sleep(0.07)
        if error:
            raise QueueTimeout(2, 1)
        yield {"a": 1}

    for error, end in ((False, b'data: {"a":1}\n\n'), (True, b'the limit is 1 s"}\n\n')):
        sent, channel = Sent(), Channel()
        await channel()
        await stream_of(late(error), EVENTS)({}, channel, sent)
        assert sent.body.startswith(b": keep-alive\n\n")
        assert sent.body.endswith(end)
    with pytest.raises(QueueTimeout):  # without comments, whoever waits still reads a status
        await stream_of(late(True), TYPED_LINES)({}, Channel(), Sent())


async def test_a_busy_stream_has_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)

    async def busily() -> AsyncGenerator[dict[str, Any], None]:
        for _ in range(30):
            yield {}
            await asyncio.sleep(0.005)

    sent, channel = Sent(), Channel()
    await channel()
    await stream_of(busily(), EVENTS)({}, channel, sent)
    assert b"keep-alive" not in sent.body


async def test_a_client_that_went_away_while_something_was_sent_is_no_error() -> None:
    channel, closed = Channel(), asyncio.Event()
    await channel()

    async def endless() -> AsyncGenerator[dict[str, Any], None]:
        try:
            while True:
                yield {}
        finally:
            closed.set()

    async def broken(message: Any) -> None:
        if message.get("body"):
            raise OSError("connection reset")

    await stream_of(endless(), EVENTS)({}, channel, broken)
    assert closed.is_set()


async def test_a_stream_that_begins_with_comments_ends_with_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)
    channel, closed = Channel(), asyncio.Event()
    await channel()

    async def waiting() -> AsyncGenerator[dict[str, Any], None]:
        try:
            await asyncio.sleep(60)
            yield {}
        finally:
            closed.set()

    stream = stream_of(waiting(), EVENTS)
    sending = asyncio.create_task(stream({}, channel, Sent()))
    await asyncio.sleep(0.05)
    channel.gone.set()
    await sending
    assert closed.is_set()


@pytest.mark.parametrize("started", [False, True])
async def test_a_stream_that_waits_ends_with_its_client(started: bool) -> None:
    channel, closed = Channel(), asyncio.Event()
    await channel()

    async def waiting() -> AsyncGenerator[dict[str, Any], None]:
        try:
            if started:
                yield {"a": 1}
            await asyncio.sleep(60)
            yield {}
        finally:
            closed.set()

    async def serve() -> None:
        stream = stream_of(waiting(), EVENTS)
        await stream({}, channel, Sent())

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0.01)
    channel.gone.set()
    if started:
        await serving
    else:
        with pytest.raises(ClientDisconnect):
            await serving
    assert closed.is_set()
