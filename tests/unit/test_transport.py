"""The transport's pure parts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from starlette.requests import ClientDisconnect

from model.serving.body import until_disconnect
from model.serving.loop_lag import INTERVAL_SECONDS, LoopLag
from model.serving.transport.allowance import Allowance
from model.serving.transport.direct_body import FIRST_BYTES, DirectBody
from model.serving.transport.exchange import Exchange, Head, WrongAnswer, make_scope

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


def test_an_allowance_is_spent_and_comes_back() -> None:
    allowance = Allowance(burst=3, per_second=2, now=10.0)
    assert [allowance.spend(10.0) for _ in range(4)] == [True, True, True, False]
    assert allowance.spend(11.0)
    assert not allowance.spend(11.0)


def test_no_more_is_saved_than_the_burst() -> None:
    allowance = Allowance(burst=2, per_second=1, now=0.0)
    allowance.earn(100)
    assert [allowance.spend(1000.0) for _ in range(3)] == [True, True, False]


def test_what_is_useful_earns() -> None:
    allowance = Allowance(burst=2, per_second=0, now=0.0)
    for _ in range(10):
        assert allowance.spend(0.0)
        allowance.earn(1)


def test_a_direct_body_is_filled_and_ends_at_its_length() -> None:
    body = DirectBody(10)
    body.add(b"abc")
    body.space()[:4] = b"defg"
    body.advance(4)
    assert (len(body.space()), body.complete) == (3, False)
    body.space()[:] = b"hij"
    body.advance(3)
    assert (bytes(body.body), body.complete) == (b"abcdefghij", True)


@pytest.mark.parametrize("num_bytes", [1, FIRST_BYTES - 1, FIRST_BYTES, FIRST_BYTES + 1])
def test_a_long_body_s_memory_is_taken_when_more_than_its_beginning_comes(num_bytes: int) -> None:
    length = 8 << 20
    beginning, rest = b"a" * num_bytes, b"b" * (length - num_bytes)
    body = DirectBody(length)
    body.add(beginning)
    assert len(body.body) == (FIRST_BYTES if num_bytes <= FIRST_BYTES else length)
    while not body.complete:
        space = body.space()
        space[:], rest = rest[: len(space)], rest[len(space) :]
        body.advance(len(space))
    assert bytes(body.body) == beginning + b"b" * (length - num_bytes)
    assert len(body.space()) == 0


def test_a_dropped_body_keeps_nothing_and_still_ends() -> None:
    body, scratch = DirectBody(10), memoryview(bytearray(4))
    body.add(b"abc")
    body.drop(scratch)
    assert len(body.space()) == 4
    body.advance(4)
    assert len(body.space()) == 3
    body.advance(3)
    assert (len(body.body), body.complete) == (0, True)


class Recorder(Exchange):
    """An exchange whose wire is a list."""

    def __init__(self, method: str = "GET") -> None:
        super().__init__(make_scope(method=method, path="/", raw_path=b"/", query=b"", headers=[]))
        self.sent: list[object] = []

    async def _send_head(self, head: Head, data: bytes, more: bool) -> None:
        self.sent.append((head.status, data, more))

    async def _send_body(self, data: bytes, more: bool) -> None:
        self.sent.append((data, more))

    def _wanted(self) -> None:
        self.sent.append("wanted")

    def _taken(self, num_bytes: int) -> None:
        self.sent.append(num_bytes)

    def _ended(self) -> None:
        self.sent.append("ended")

    def _abort(self) -> None:
        self.sent.append("aborted")


def start(*headers: tuple[bytes, bytes]) -> dict[str, object]:
    return {"type": "http.response.start", "status": 200, "headers": headers}


def body(data: bytes, more: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


FIVE = (b"Content-Length", b"5")


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([body(b"")], id="no head"),
        pytest.param([start(), start()], id="two heads"),
        pytest.param([start(), body(b""), body(b"")], id="more after the end"),
        pytest.param([start(FIVE), body(b"123456")], id="longer than announced"),
        pytest.param([start(FIVE), body(b"1234")], id="shorter than announced"),
        pytest.param([start(FIVE), body(b"123", True), body(b"456")], id="longer, in pieces"),
    ],
)
async def test_answers_that_are_none_are_our_fault(messages: list[dict[str, object]]) -> None:
    exchange = Recorder()
    for message in messages[:-1]:
        await exchange.send(message)
    with pytest.raises(WrongAnswer):
        await exchange.send(messages[-1])


async def test_the_head_goes_with_the_first_piece() -> None:
    exchange = Recorder()
    await exchange.send(start())
    assert exchange.sent == []
    await exchange.send(body(b"a", more=True))
    await exchange.send(body(b"b"))
    assert exchange.sent == [(200, b"a", True), (b"b", False), "ended"]
    assert (await exchange.receive())["type"] == "http.disconnect"


async def test_an_app_that_gives_no_answer_is_answered_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def silent(*_: object) -> None:
        return

    async def half(scope: object, receive: object, send: object) -> None:
        await exchange.send(start())
        await exchange.send(body(b"a", more=True))

    exchange = Recorder()
    await exchange.run(silent)
    assert exchange.sent[0][0] == 500
    exchange = Recorder()
    await exchange.run(half)
    assert exchange.sent[-1] == "aborted"
    assert caplog.text.count("was not answered whole") == 2


async def test_the_body_is_received_piece_by_piece_and_then_the_disconnect() -> None:
    exchange = Recorder("POST")
    exchange.feed(b"ab")
    exchange.feed(b"c")
    assert (await exchange.receive())["body"] == b"ab"
    reading = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0)
    assert (await reading)["more_body"] is True
    exchange.end_body()
    assert await exchange.receive() == {
        "type": "http.request", "body": b"", "more_body": False, "num_received": 3
    }  # fmt: skip
    waiting = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0)
    assert not waiting.done()
    exchange.disconnect()
    assert (await waiting)["type"] == "http.disconnect"


@pytest.mark.parametrize("early", [True, False])
async def test_a_client_s_going_is_told_without_being_asked(early: bool) -> None:
    exchange = Recorder("POST")
    exchange.end_body()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = asyncio.all_tasks()
        if early:
            exchange.disconnect()
        else:
            asyncio.get_running_loop().call_later(0.01, exchange.disconnect)
        with pytest.raises(ClientDisconnect):
            await until_disconnect(scope, receive, work())
        assert begun.is_set() == ended.is_set()
        # Neither work nor watch was a task of its own, and what comes next is not cancelled.
        assert asyncio.all_tasks() == tasks
        await asyncio.sleep(0.01)
        ended.set()

    await exchange.run(app)
    assert ended.is_set()


async def test_a_client_that_goes_later_cancels_nothing() -> None:
    exchange, done = Recorder("POST"), asyncio.Event()
    exchange.end_body()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await until_disconnect(scope, receive, asyncio.sleep(0, 5)) == 5
        exchange.disconnect()
        await asyncio.sleep(0.01)
        done.set()

    await exchange.run(app)
    assert done.is_set()


async def test_the_loop_s_lag_is_what_holds_it_up() -> None:
    lag = LoopLag()
    lag.start()
    await asyncio.sleep(3 * INTERVAL_SECONDS)
    assert lag.histogram.count >= 1
    blocked_until = asyncio.get_running_loop().time() + INTERVAL_SECONDS + 0.2
    while asyncio.get_running_loop().time() < blocked_until:
        pass
    await asyncio.sleep(0.01)
    lag.stop()
    late = dict(lag.histogram.cumulative())
    assert late["+Inf"] - late["0.1"] == 1
    num_calls = lag.histogram.count
    await asyncio.sleep(2 * INTERVAL_SECONDS)
    assert lag.histogram.count == num_calls
