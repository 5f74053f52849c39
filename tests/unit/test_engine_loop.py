"""The engine's thread: streams, cancellation, back-pressure, failure, stop."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from model.engine.batch import DeviceFailure, nothing
from model.engine.loop import DISPATCH_SLICE, Engine, TokenStream
from model.errors import NotReady, PromptTooLong, QueueFull, QueueTimeout
from model.request import FinishReason, TokenEvent
from tests.unit.fake_runner import FakeRunner, LazyStep, reference
from tests.unit.test_scheduler import request, scheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from model.engine.batch import LaunchedStep, ScheduledBatch

NUM_BLOCKS = 64


class GatedRunner(FakeRunner):
    """Waits for `gate` before every step, so that a test can look in between."""

    def __init__(self, *, overlaps: bool = False) -> None:
        super().__init__(NUM_BLOCKS, 4, overlaps=overlaps)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.read_gate = threading.Event()
        self.read_gate.set()
        self.step_seconds = 0.0

    def execute(self, batch: ScheduledBatch) -> LaunchedStep:
        self.computing()
        self.entered.set()
        assert self.gate.wait(10)
        time.sleep(self.step_seconds)
        return super().execute(batch)

    def run_until(self, step: LazyStep) -> None:
        assert self.read_gate.wait(10)
        super().run_until(step)


@pytest.fixture(params=[pytest.param(False, id="in turn"), pytest.param(True, id="overlapped")])
def runner(request: pytest.FixtureRequest) -> GatedRunner:
    return GatedRunner(overlaps=request.param)


@pytest.fixture
async def engine(runner: GatedRunner) -> AsyncIterator[Engine]:
    engine = Engine(scheduler(), runner, max_queued_requests=8, stall_seconds=0.2)
    engine.start()
    yield engine
    runner.gate.set()
    await asyncio.to_thread(engine.stop)
    assert engine._scheduler.pool.num_free == NUM_BLOCKS
    assert not runner.embeddings
    assert not runner.held


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


async def test_1000_random_cancels_leave_every_block_free(engine: Engine) -> None:
    draw = random.Random(1)

    async def one(number: int) -> None:
        size = draw.randint(12, 40)
        images = ((1, size - 4),) if draw.random() < 0.5 else ()
        [stream] = engine.submit([request(f"r{number}", size, 30, images)])
        for _ in range(draw.randint(0, 12)):
            if draw.random() < 0.5:
                await asyncio.sleep(0)
            else:
                await anext(stream, None)
        stream.close()

    for start in range(0, 1000, 5):
        await asyncio.gather(*(one(start + number) for number in range(5)))
        await _until(lambda: engine.num_queued == 0)
    await _until(lambda: engine.stats.num_running == 0)
    await _until(lambda: engine._scheduler.pool.num_free == NUM_BLOCKS)


async def test_a_full_queue_refuses_the_whole_batch(engine: Engine, runner: GatedRunner) -> None:
    runner.gate.clear()
    [first] = engine.submit([request("first", 3)])
    await asyncio.to_thread(runner.entered.wait, 5)
    streams = engine.submit([request(f"r{index}", 3) for index in range(6)])
    with pytest.raises(QueueFull, match="6 requests are queued, 3 more came; the limit is 8"):
        engine.submit([request(f"x{index}", 3) for index in range(3)])
    streams += engine.submit([request("last", 3)])
    runner.gate.set()
    assert len(await asyncio.gather(*map(tokens, [first, *streams]))) == 8


async def test_queued_pictures_are_bounded_by_their_tokens(runner: GatedRunner) -> None:
    engine = Engine(
        scheduler(max_sequences=1),
        runner,
        max_queued_requests=8,
        max_queued_image_tokens=20,
        stall_seconds=5,
    )
    engine.start()
    runner.gate.clear()
    streams = engine.submit([request("large", 40, images=((1, 30),))])
    await asyncio.to_thread(runner.entered.wait, 5)
    streams += engine.submit([request("first", 20, images=((1, 12),))])
    with pytest.raises(QueueFull, match="12 image tokens are queued, 9 more came; the limit is 20"):
        engine.submit([request("second", 20, images=((1, 9),))])
    streams += engine.submit([request("text", 20), request("third", 20, images=((1, 8),))])
    runner.gate.set()
    assert [len(text) for text in await asyncio.gather(*map(tokens, streams))] == [4] * 4
    assert engine.num_queued_image_tokens == 0
    await asyncio.to_thread(engine.stop)


async def test_a_request_that_waits_too_long_is_told(runner: GatedRunner) -> None:
    engine = Engine(scheduler(max_sequences=1), runner, max_queued_requests=8, stall_seconds=5)
    engine.start()
    runner.step_seconds = 0.01
    first, second = engine.submit(
        [
            request("first", 3, max_tokens=40),
            dataclasses.replace(request("second", 3), max_queue_seconds=0.05),
        ]
    )
    [event] = [event async for event in second]
    assert isinstance(event.error, QueueTimeout)
    assert event.error.status == 504
    assert len(await tokens(first)) == 40
    await asyncio.to_thread(engine.stop)


async def test_out_of_memory_is_survived(
    engine: Engine, runner: GatedRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner.out_of_memory = lambda batch: len(batch.sequences) > 3
    requests = [request(f"r{index}", 6) for index in range(8)]
    texts = await asyncio.gather(*map(tokens, engine.submit(requests)))
    assert texts == [reference(one.prompt_token_ids, 4) for one in requests]
    assert "out of device memory: a step of" in caplog.text


@pytest.mark.parametrize("where", ["fail_next", "fail_tokens"])
async def test_a_failed_device_ends_every_stream_and_is_told(
    runner: GatedRunner, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    fatal = threading.Event()
    engine = Engine(
        scheduler(max_sequences=2),
        runner,
        max_queued_requests=8,
        stall_seconds=60,
        on_fatal=fatal.set,
    )
    engine.start()
    setattr(runner, where, DeviceFailure("an illegal memory access"))
    streams = engine.submit([request(f"r{index}", 3) for index in range(4)])
    for stream in streams:
        *_, event = [event async for event in stream]
        assert event.finish_reason is FinishReason.ERROR
        assert "the server must restart" in str(event.error)
    assert await asyncio.to_thread(fatal.wait, 5)
    assert "illegal memory access" in caplog.text
    assert engine.stalled
    with pytest.raises(NotReady):
        engine.submit([request("late", 3)])
    await asyncio.to_thread(engine.stop)


async def test_a_bug_of_the_engine_leaves_no_stream_without_an_end(runner: GatedRunner) -> None:
    engine = Engine(scheduler(), runner, max_queued_requests=8, stall_seconds=60)
    engine.start()
    engine._scheduler.commit = None
    [stream] = engine.submit([request("one", 3)])
    [event] = [event async for event in stream]
    assert event.finish_reason is FinishReason.ERROR
    assert engine.stalled
    await asyncio.to_thread(engine.stop)


async def test_a_prompt_too_long_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="128 tokens"):
        engine.submit([request("good", 3), request("long", 128)])
    assert engine.num_queued == 0


async def test_a_failed_step_ends_its_requests_and_the_next_one_works(
    engine: Engine, runner: GatedRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner.fail_next = RuntimeError("injected failure")
    [stream] = engine.submit([request("one", 3)])
    [event] = [event async for event in stream]
    assert (event.finish_reason, str(event.error)) == (
        FinishReason.ERROR,
        "the engine failed on this request",
    )
    assert "injected failure" in caplog.text
    two = request("two", 3)
    assert await tokens(engine.submit([two])[0]) == reference(two.prompt_token_ids, 4)


@pytest.mark.parametrize("where", ["gate", "read_gate"])
async def test_a_hanging_step_is_seen(engine: Engine, runner: GatedRunner, where: str) -> None:
    assert not engine.stalled
    getattr(runner, where).clear()
    [stream] = engine.submit([request("one", 3)])
    await _until(lambda: engine.stalled)
    getattr(runner, where).set()
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


async def test_a_large_step_is_told_in_order_with_turns_for_others_in_between() -> None:
    num = 3 * DISPATCH_SLICE
    engine = Engine(scheduler(), FakeRunner(NUM_BLOCKS, 4), max_queued_requests=8, stall_seconds=9)
    engine._loop = asyncio.get_running_loop()
    streams = [TokenStream(engine, f"r{number}") for number in range(num)]
    engine._streams = {stream.request_id: stream for stream in streams}
    turns: list[int] = []

    def look() -> None:
        turns.append(sum(bool(stream._events) for stream in streams))
        if turns[-1] < num:
            asyncio.get_running_loop().call_soon(look)

    for count in (1, 2):
        engine._dispatch([TokenEvent(one.request_id, count, count) for one in streams])
    look()
    await _until(lambda: turns[-1] == num)
    events = [[await anext(stream) for _ in range(2)] for stream in streams]
    assert [[event.token_id for event in pair] for pair in events] == [[1, 2]] * num
    assert turns == [DISPATCH_SLICE, 2 * DISPATCH_SLICE, num]


class SteppedRunner(FakeRunner):
    """Takes each step when it is told to. fails_at: the step, from 0, that the device fails at."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__(NUM_BLOCKS, 4)
        self.go = threading.Semaphore(0)
        self._fails_at = fails_at

    def execute(self, batch: ScheduledBatch) -> LaunchedStep:
        if len(self.batches) == self._fails_at:
            raise DeviceFailure("on purpose")
        self.computing()
        assert self.go.acquire(timeout=10)
        return super().execute(batch)


async def test_tokens_are_handed_out_when_the_next_step_computes() -> None:
    runner = SteppedRunner()
    engine = Engine(scheduler(), runner, max_queued_requests=8, stall_seconds=5)
    engine.start()
    [stream] = engine.submit([request("r", 6)])
    for number in range(1, 5):
        runner.go.release()
        # The step after it has begun and does not end; after the last there is none.
        event = await asyncio.wait_for(anext(stream), 5)
        assert event.num_completion_tokens == number
    assert event.finish_reason is FinishReason.LENGTH
    await asyncio.to_thread(engine.stop)


async def test_tokens_of_the_step_before_a_failure_are_not_lost() -> None:
    runner = SteppedRunner(fails_at=2)
    engine = Engine(scheduler(), runner, max_queued_requests=8, stall_seconds=5)
    runner.computing = nothing
    engine.start()
    [stream] = engine.submit([request("r", 6)])
    runner.go.release(2)
    told = [(event.num_completion_tokens, event.finish_reason) async for event in stream]
    assert told == [(1, None), (2, None), (2, FinishReason.ERROR)]
    await asyncio.to_thread(engine.stop)
