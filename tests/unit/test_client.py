"""The command line's parts: order, patience, lines, pictures, and the application in process."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.client.app_transport import AppTransport
from model.client.asking import Asker, NoAnswer, Patience, Unavailable
from model.client.command import AHEAD, in_order
from model.client.output import Result, json_line, take_up
from model.client.pictures import NoPictures, UnreadablePicture, find_pictures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from starlette.types import Receive, Scope, Send


# In order


async def test_results_come_in_the_order_of_the_questions() -> None:
    async def ask(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    questions = [0.03, 0.0, 0.02, 0.01]
    assert [one async for one in in_order(questions, ask, 4)] == questions


async def test_a_slow_question_holds_up_a_bounded_number() -> None:
    asked: list[int] = []
    release = asyncio.Event()

    async def ask(number: int) -> int:
        asked.append(number)
        if number == 0:
            await release.wait()
        return number

    results = in_order(range(100), ask, 2)
    first = asyncio.ensure_future(anext(results))
    await asyncio.sleep(0.05)
    assert asked == list(range(2 * AHEAD))
    release.set()
    assert [await first, *[one async for one in results]] == list(range(100))


async def test_no_more_are_asked_at_once_than_may_be() -> None:
    running = most = 0

    async def ask(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return number

    assert len([one async for one in in_order(range(20), ask, 3)]) == 20
    assert most == 3


async def test_a_failure_cancels_what_is_asked() -> None:
    cancelled: list[int] = []

    async def ask(number: int) -> int:
        if number == 1:
            raise Unavailable("gone")
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    results = in_order(range(4), ask, 4)
    assert await anext(results) == 0
    with pytest.raises(Unavailable):
        await anext(results)
    assert sorted(cancelled) == [2, 3]


# Patience


class Slept:
    """Replies of a server, and the pauses between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *replies: httpx.Response) -> None:
        self.pauses: list[float] = []
        self._replies = list(replies)
        self._now = 0.0
        monkeypatch.setattr("model.client.asking.asyncio.sleep", self._sleep)
        monkeypatch.setattr("model.client.asking.time.monotonic", lambda: self._now)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._now += seconds

    def _reply(self, request: httpx.Request) -> httpx.Response:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    async def ask(self, wait_seconds: float = 10.0) -> dict[str, Any]:
        transport = httpx.MockTransport(self._reply)
        patience = Patience(60.0, wait_seconds)
        async with Asker("http://x", None, patience, lambda text: None, transport) as asker:
            return await asker.ask({})


def later() -> str:
    """A date that is 100 seconds away when the test runs, not when it is collected."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    [
        pytest.param("7", 7, 7, id="seconds"),
        pytest.param(later, 90, 100, id="a date"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0, id="a date long gone"),
        pytest.param("soon", 0.5, 0.5, id="nonsense"),
        pytest.param("", 0.5, 0.5, id="nothing"),
    ],
)
async def test_retry_after_is_followed(
    monkeypatch: pytest.MonkeyPatch,
    retry_after: str | Callable[[], str],
    low: float,
    high: float,
) -> None:
    value = retry_after if isinstance(retry_after, str) else retry_after()
    busy = httpx.Response(429, headers={"Retry-After": value}, json={"error": "busy"})
    slept = Slept(monkeypatch, busy, httpx.Response(200, json={"description": "x"}))
    assert await slept.ask() == {"description": "x"}
    [pause] = slept.pauses
    assert low <= pause <= high


async def test_pauses_grow_and_end_with_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = Slept(monkeypatch, httpx.Response(503))
    with pytest.raises(Unavailable):
        await slept.ask(wait_seconds=30)
    assert slept.pauses == [0.5, 1, 2, 4, 8, 8]


async def test_a_wait_that_would_end_too_late_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = Slept(monkeypatch, httpx.Response(503, headers={"Retry-After": "3600"}))
    with pytest.raises(Unavailable):
        await slept.ask()
    assert slept.pauses == []


async def test_a_busy_server_between_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, busy = httpx.Response(503), httpx.Response(429, headers={"Retry-After": "9"})
    done = httpx.Response(200, json={"description": "x"})
    slept = Slept(monkeypatch, starting, busy, starting, busy, starting, done)
    assert await slept.ask(wait_seconds=5)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        pytest.param(httpx.Response(400, json={"error": "no"}), "no", id="ours"),
        pytest.param(httpx.Response(400, json={"error": {"message": "no"}}), "no", id="OpenAI's"),
        pytest.param(
            httpx.Response(504, text="<b>Gateway\n  time-out</b>"),
            "504 Gateway Timeout: <b>Gateway time-out</b>",
            id="a gateway's",
        ),
        pytest.param(httpx.Response(400, json={"detail": 1}), '{"detail":1}', id="another's"),
        pytest.param(httpx.Response(418), "418 I'm a teapot", id="none"),
    ],
)
async def test_errors_of_any_form_are_told(
    monkeypatch: pytest.MonkeyPatch, response: httpx.Response, text: str
) -> None:
    with pytest.raises(NoAnswer) as raised:
        await Slept(monkeypatch, response).ask()
    assert text in str(raised.value)
    assert raised.value.status == response.status_code


# Pictures


def test_pictures_are_found_once_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "[x].gif", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = ("b.png", "*.jpg", "*", "[x].gif", "gone.jpg", "gone*.jpg", "https://x/*.jpg")
    found = find_pictures(
        [one if "://" in one else f"{tmp_path}/{one}" for one in sources], recursive=False
    )
    expected = ["b.png", "a.jpg", "[x].gif", "gone.jpg", "gone*.jpg"]
    assert [one.name for one in found] == [*(f"{tmp_path}/{n}" for n in expected), sources[-1]]
    [*_, missing, _pattern, url] = found
    with pytest.raises(UnreadablePicture, match="No such file or directory"):
        missing.content()
    assert url.content() == "https://x/*.jpg"


def test_an_endless_file_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.client.pictures.MAX_BYTES", 1000)
    [zeros] = find_pictures(["/dev/zero"], recursive=False)
    with pytest.raises(UnreadablePicture, match="it has over 1000 bytes"):
        zeros.content()


def test_a_terminal_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", 0), os.fdopen(theirs, "r") as screen:
        monkeypatch.setattr("sys.stdin", screen)
        with pytest.raises(NoPictures, match="standard input"):
            find_pictures(["-"], recursive=False)


def test_names_that_are_not_utf8_survive_json_lines(tmp_path: Path) -> None:
    name = os.fsdecode(b"photo-\xff.jpg")
    file = tmp_path / "answers.jsonl"
    with file.open("w", encoding="utf-8", errors="backslashreplace") as output:
        output.write(json_line(Result((name,), {"description": "🙂"})))
    assert take_up(file) == {(name,)}
    assert json.loads(file.read_bytes())["description"] == "🙂"


# The application in process


async def asked(app: Any) -> AsyncIterator[bytes]:
    async with (
        httpx.AsyncClient(transport=AppTransport(app)) as client,
        client.stream("POST", "http://x/a?b=1", content=b"body") as response,
    ):
        async for piece in response.aiter_raw():
            yield piece


async def test_pieces_come_before_the_answer_is_whole() -> None:
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (scope["path"], scope["query_string"]) == ("/a", b"b=1")
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await release.wait()
        await send({"type": "http.response.body", "body": b" end", "more_body": False})

    seen = []
    async for piece in asked(app):
        seen.append(piece)
        release.set()
    assert seen == [b"body", b" end"]


async def test_a_reader_that_leaves_is_a_client_that_goes() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        seen.append((await receive())["type"])

    answer = asked(app)
    await anext(answer)
    await answer.aclose()  # type: ignore[attr-defined]
    assert seen == ["http.disconnect"]


async def test_a_caller_that_is_cancelled_is_a_client_that_goes() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        seen.append((await receive())["type"])

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(asked(app))
    assert seen == ["http.disconnect"]


async def test_an_application_that_fails_is_no_hang(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    with pytest.raises(httpx.RemoteProtocolError):
        await anext(asked(app))
    assert "RuntimeError: broken" in caplog.text
