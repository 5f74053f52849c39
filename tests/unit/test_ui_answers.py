"""How answers grow on the page, what it says when they do not, and what leaving them cancels."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from model.ui.answers import Answer, Phase, follow
from model.ui.api import Api, Health
from model.ui.ask import Call, Picture
from tests.browser.strange_server import KEY, TEXT, StrangeServer, start_strange_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def strange() -> Iterator[StrangeServer]:
    with start_strange_server() as running:
        yield running


@pytest.fixture
async def api(strange: StrangeServer) -> AsyncIterator[Api]:
    async with httpx.AsyncClient(timeout=10) as client:
        yield Api(strange.url, client)


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"a picture")
    return Picture(path, "photo.jpg")


def call(picture: Picture, prompt: str = "") -> Call:
    return Call((picture,), (("prompt", prompt),) if prompt else ())


async def test_an_answer_grows_to_the_whole_text(api: Api, picture: Picture) -> None:
    frames = [answer async for [answer] in follow(api, [call(picture)], "", asyncio.Event())]
    texts = [answer.text for answer in frames]
    assert texts[-1] == TEXT
    assert len({*texts}) > 5
    assert all(later.startswith(earlier.rstrip()) for earlier, later in itertools.pairwise(texts))
    phases = list(dict.fromkeys(answer.phase for answer in frames))
    assert phases[-2:] == [Phase.WRITING, Phase.DONE]
    assert frames[-1].tokens_per_second == pytest.approx(41 / 1.72)
    assert frames[-1].images[0]["seen_width"] == 1280


async def test_many_answers_grow_side_by_side_four_at_a_time(api: Api, picture: Picture) -> None:
    most = 0
    async for answers in follow(api, [call(picture)] * 6, "", asyncio.Event()):
        most = max(most, sum(answer.phase in {Phase.READING, Phase.WRITING} for answer in answers))
    assert most == 4
    assert [answer.phase for answer in answers] == [Phase.DONE] * 6


async def test_stopping_keeps_the_text_and_cancels_at_the_server(
    api: Api, strange: StrangeServer, picture: Picture
) -> None:
    before = strange.num_cancelled
    stop = asyncio.Event()
    async for answers in follow(api, [call(picture)] * 6, "", stop):
        if answers[0].text:
            stop.set()
    assert [answer.phase for answer in answers] == [Phase.STOPPED] * 6
    assert TEXT.startswith(answers[0].text.strip())
    assert await cancelled(strange, before) == 4, "two of the six were never sent"


async def test_leaving_cancels_at_the_server(
    api: Api, strange: StrangeServer, picture: Picture
) -> None:
    before = strange.num_cancelled
    frames = follow(api, [call(picture)], "", asyncio.Event())
    async for [answer] in frames:
        if answer.text:
            break
    await frames.aclose()  # type: ignore[attr-defined]
    assert await cancelled(strange, before) == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("too many", "512 requests wait; try again in 7 s"),
        ("a gateway's page", "the server answered 502 Bad Gateway: <h1>Bad gateway</h1>"),
        ("only with a key", "this server wants an API key"),
        ("break", "the device is lost"),
        ("end early", "the server ended the answer in the middle"),
    ],
)
async def test_what_the_server_says_is_said(
    api: Api, picture: Picture, prompt: str, message: str
) -> None:
    answer = await last(api, call(picture, prompt))
    assert (answer.phase, answer.error) == (Phase.FAILED, message)
    assert (answer.text != "") is (prompt in {"break", "end early"}), "what came is kept"


async def test_the_key_goes_with_the_request(
    api: Api, strange: StrangeServer, picture: Picture
) -> None:
    answer = await last(api, call(picture, "only with a key"), KEY)
    assert answer.phase is Phase.DONE
    assert strange.asked[-1].authorization == f"Bearer {KEY}"


async def test_one_failure_leaves_the_others(api: Api, picture: Picture) -> None:
    calls = [call(picture), call(picture, "break"), call(picture)]
    frames = [answers async for answers in follow(api, calls, "", asyncio.Event())]
    assert [answer.phase for answer in frames[-1]] == [Phase.DONE, Phase.FAILED, Phase.DONE]


async def test_a_picture_that_is_gone_is_named(api: Api, picture: Picture) -> None:
    picture.path.unlink()
    answer = await last(api, call(picture))
    assert answer.error == "photo.jpg is no longer kept here: add it again"


async def test_no_server_is_said_plainly(picture: Picture) -> None:
    async with httpx.AsyncClient() as client:
        api = Api("http://127.0.0.1:9", client)
        answer = await last(api, call(picture))
        assert answer.error == "no server answers at http://127.0.0.1:9: is it running?"
        assert await api.health("") == Health("unreachable")


async def test_health_tells_the_first_name_served(api: Api) -> None:
    assert await api.health("") == Health("ready", "strange-model")


def test_a_rate_needs_two_tokens_and_time_between_them() -> None:
    def rate(tokens: int, first: float, whole: float) -> float | None:
        usage, timings = {"completion_tokens": tokens}, {}
        timings = {"first_text_ms": first, "generate_ms": whole}
        return Answer(usage=usage, timings=timings).tokens_per_second

    assert rate(11, 100, 600) == 20
    assert rate(1, 100, 600) is None
    assert rate(5, 100, 100) is None
    assert Answer().tokens_per_second is None


async def last(api: Api, one: Call, key: str = "") -> Answer:
    return [answer async for [answer] in follow(api, [one], key, asyncio.Event())][-1]


async def cancelled(strange: StrangeServer, before: int) -> int:
    """How many answers were cancelled since, once no more are for a while."""
    deadline = time.monotonic() + 5
    while strange.num_cancelled == before and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    return strange.num_cancelled - before
