"""The engine's thread: streams, cancellation, back-pressure, failure, stop."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from model.engine.loop import Engine
from model.errors import NotReady, PromptTooLong, QueueFull
from model.request import FinishReason
from tests.unit.fake_runner import FakeRunner, reference
from tests.unit.test_scheduler import request, scheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from model.engine.batch import FinishedStep, ScheduledBatch
    from model.engine.loop import TokenStream

NUM_BLOCKS = 64


class GatedRunner(FakeRunner):
    """Waits for `gate` before every step, so that a test can look in between."""

    def __init__(self) -> None:
        super().__init__(NUM_BLOCKS, 4)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.step_seconds = 0.0

    def execute(self, batch: ScheduledBatch) -> FinishedStep:
        self.entered.set()
        assert self.gate.wait(10)
        time.sleep(self.step_seconds)
        return super().execute(batch)


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
async def engine(runner: GatedRunner) -> AsyncIterator[Engine]:
    engine = Engine(scheduler(), runner, max_queued_requests=8, stall_seconds=0.2)
    engine.start()
    yield engine
    runner.gate.set()
    await asyncio.to_thread(engine.stop)
    assert engine._scheduler.pool.num_free == NUM_BLOCKS


async def tokens(stream: TokenStream) -> list[int]:
    return [event.token_id async for event in stream if event.token_id is not None]


async def test_requests_submitted_together_are_answered_each(engine: Engine) -> None:
    requests = [request(f"r{index}", 6) for index in range(8)]
    texts = await asyncio.gather(*map(tokens, engine.submit(requests)))
    assert texts == [reference(one.prompt_token_ids, 4) for one in requests]


async def test_a_closed_stream_frees_its_sequence(engine: Engine, runner: GatedRunner) -> None:
    runner.step_seconds = 0.01
    [stream] = engine.submit([request("one", 6, max_tokens=100)])
    async for _ in stream:
        break
    stream.close()
    stream.close()
    await _until(lambda: engine.stats.num_running == 0)
    assert engine.stats.finished == {"cancelled": 1}
    assert [event async for event in stream] == []


async def test_500_random_cancels_leave_every_block_free(engine: Engine) -> None:
    draw = random.Random(1)

    async def one(number: int) -> None:
        [stream] = engine.submit([request(f"r{number}", draw.randint(1, 40), max_tokens=30)])
        for _ in range(draw.randint(0, 12)):
            if draw.random() < 0.5:
                await asyncio.sleep(0)
            else:
                await anext(stream, None)
        stream.close()

    for start in range(0, 500, 5):
        await asyncio.gather(*(one(start + number) for number in range(5)))
        await _until(lambda: engine.num_queued == 0)
    await _until(lambda: engine.stats.num_running == 0)
    assert engine._scheduler.pool.num_free == NUM_BLOCKS


async def test_a_full_queue_refuses_the_whole_batch(engine: Engine, runner: GatedRunner) -> None:
    runner.gate.clear()
    [first] = engine.submit([request("first", 3)])
    await asyncio.to_thread(runner.entered.wait, 5)
    streams = engine.submit([request(f"r{index}", 3) for index in range(6)])
    with pytest.raises(QueueFull, match="6 requests are queued; the limit is 8"):
        engine.submit([request(f"x{index}", 3) for index in range(3)])
    streams += engine.submit([request("last", 3)])
    runner.gate.set()
    assert len(await asyncio.gather(*map(tokens, [first, *streams]))) == 8


async def test_a_prompt_too_long_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="128 tokens"):
        engine.submit([request("good", 3), request("long", 128)])
    assert engine.num_queued == 0


async def test_a_failed_step_ends_its_requests_and_the_next_one_works(
    engine: Engine, runner: GatedRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner.fail_next = True
    [stream] = engine.submit([request("one", 3)])
    [event] = [event async for event in stream]
    assert (event.finish_reason, str(event.error)) == (
        FinishReason.ERROR,
        "the engine failed on this request",
    )
    assert "injected failure" in caplog.text
    two = request("two", 3)
    assert await tokens(engine.submit([two])[0]) == reference(two.prompt_token_ids, 4)


async def test_a_hanging_step_is_seen(engine: Engine, runner: GatedRunner) -> None:
    assert not engine.stalled
    runner.gate.clear()
    [stream] = engine.submit([request("one", 3)])
    await _until(lambda: engine.stalled)
    runner.gate.set()
    await tokens(stream)
    assert not engine.stalled


async def test_stop_cancels_what_runs_and_refuses_what_comes(runner: GatedRunner) -> None:
    engine = Engine(scheduler(), runner, max_queued_requests=8, stall_seconds=5)
    with pytest.raises(NotReady):
        engine.submit([request("early", 3)])
    engine.start()
    runner.gate.clear()
    [stream] = engine.submit([request("one", 3, max_tokens=100)])
    await asyncio.to_thread(runner.entered.wait, 5)
    stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
    await asyncio.sleep(0.05)
    runner.gate.set()
    await stopping
    events = [event async for event in stream]
    assert events[-1].finish_reason is FinishReason.CANCELLED
    with pytest.raises(NotReady):
        engine.submit([request("late", 3)])


async def _until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
