"""The two stores of jobs keep the same promises; each has its own besides."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from model.serving.jobs import Job, JobStatus, JobStore, MemoryJobStore, StoreUnavailable
from model.serving.jobs_redis import RedisJobStore
from tests.redis_server import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

USAGE = {"prompt_tokens": 3, "image_tokens": 2, "completion_tokens": 1, "total_tokens": 4}


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def memory(clock: Clock, max_jobs: int = 10, max_result_bytes: int = 10_000) -> MemoryJobStore:
    return MemoryJobStore(
        keep_seconds=60, max_jobs=max_jobs, max_result_bytes=max_result_bytes, clock=clock
    )


@contextlib.asynccontextmanager
async def shared(
    redis: RedisServer, clock: Clock | None = None, **changes: float
) -> AsyncIterator[RedisJobStore]:
    times = {"keep_seconds": 60, "lease_seconds": 30, **changes}
    store = RedisJobStore(redis.url, clock=clock or time.time, **times)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[JobStore]:
    if request.param == "memory":
        yield memory(clock)
        return
    async with shared(request.getfixturevalue("redis"), clock) as one:
        yield one


async def new_job(store: JobStore, total: int = 3) -> str:
    job_id = f"{time.monotonic_ns():032x}"
    await store.create(Job(job_id, "qwen3-vl", total, created=1_700_000_000.0))
    return job_id


async def status(store: JobStore, job_id: str) -> JobStatus | None:
    job = await store.get(job_id)
    return None if job is None else job.status


def answer(index: int, **more: Any) -> dict[str, Any]:
    return {"index": index, "description": f"é {index}", "usage": USAGE, **more}


def failed(index: int) -> dict[str, Any]:
    return {"index": index, "error": "no picture", "status": 400}


async def test_a_job_is_told_as_it_was_taken(store: JobStore, clock: Clock) -> None:
    job_id = await new_job(store)
    assert await store.get(job_id) == Job(job_id, "qwen3-vl", 3, created=clock.now)
    assert await store.get("0" * 32) is None


async def test_a_job_moves_from_queued_to_completed(store: JobStore, clock: Clock) -> None:
    job_id = await new_job(store)
    clock.now += 1
    assert await store.begin(job_id)
    assert not await store.begin(job_id)
    clock.now += 1
    await store.end(job_id, JobStatus.COMPLETED)
    job = await store.get(job_id)
    assert job is not None
    assert (job.status, job.error) == (JobStatus.COMPLETED, None)
    assert (job.started, job.finished) == (clock.now - 1, clock.now)


@pytest.mark.parametrize("before", [JobStatus.COMPLETED, JobStatus.CANCELLED, JobStatus.FAILED])
async def test_a_job_that_has_ended_stays_as_it_is(store: JobStore, before: JobStatus) -> None:
    job_id = await new_job(store)
    await store.begin(job_id)
    await store.add(job_id, answer(0))
    await store.end(job_id, before, "first")
    for after in (JobStatus.COMPLETED, JobStatus.CANCELLED, JobStatus.FAILED):
        await store.end(job_id, after, "second")
    assert not await store.begin(job_id)
    assert not await store.add(job_id, answer(1))
    job = await store.get(job_id)
    assert job is not None
    assert (job.status, job.error) == (before, "first")
    assert await store.results(job_id, 0, 10) == [answer(0)]


async def test_results_are_counted_and_kept_in_the_order_they_came(store: JobStore) -> None:
    job_id = await new_job(store)
    await store.begin(job_id)
    results = [answer(2), failed(0), answer(1)]
    for result in results:
        assert await store.add(job_id, result)
    job = await store.get(job_id)
    assert job is not None
    assert job.tally.summary() == {
        "succeeded": 2,
        "failed": 1,
        "usage": {name: 2 * value for name, value in USAGE.items()},
    }
    assert await store.results(job_id, 0, 10) == results
    assert await store.results(job_id, 1, 1) == results[1:2]
    assert await store.results(job_id, 3, 10) == []
    assert await store.results("0" * 32, 0, 10) == []


async def test_a_result_that_is_added_twice_counts_once(store: JobStore) -> None:
    job_id = await new_job(store)
    await store.begin(job_id)
    for _ in range(3):
        assert await store.add(job_id, answer(1))
    job = await store.get(job_id)
    assert job is not None
    assert job.tally.succeeded == 1
    assert await store.results(job_id, 0, 10) == [answer(1)]


async def test_nothing_is_added_before_the_beginning_or_to_nothing(store: JobStore) -> None:
    job_id = await new_job(store)
    assert not await store.add(job_id, answer(0))
    assert not await store.add("0" * 32, answer(0))
    await store.end("0" * 32, JobStatus.CANCELLED)
    assert await store.get("0" * 32) is None


# Memory


async def test_memory_forgets_a_job_when_its_time_is_over(clock: Clock) -> None:
    store = memory(clock)
    first, second = await new_job(store), await new_job(store)
    await store.end(first, JobStatus.CANCELLED)
    clock.now += 59
    assert await store.get(first) is not None
    clock.now += 1
    assert await store.get(first) is None
    # An unfinished one is never too old.
    assert await store.get(second) is not None


async def test_memory_makes_room_with_what_ended_first(clock: Clock) -> None:
    store = memory(clock, max_jobs=3)
    first, second, third = [await new_job(store) for _ in range(3)]
    for job_id in (second, first):
        await store.end(job_id, JobStatus.CANCELLED)
    fourth = await new_job(store)
    assert [await status(store, one) for one in (first, second, third, fourth)] == [
        JobStatus.CANCELLED,
        None,
        JobStatus.QUEUED,
        JobStatus.QUEUED,
    ]


async def test_memory_for_results_is_bounded(clock: Clock) -> None:
    store = memory(clock, max_result_bytes=1000)
    old, new = await new_job(store), await new_job(store)
    for job_id in (old, new):
        await store.begin(job_id)
    assert await store.add(old, answer(0, text="x" * 700))
    await store.end(old, JobStatus.COMPLETED)
    assert await store.add(new, answer(0, text="x" * 700))
    assert await store.get(old) is None
    assert not await store.add(new, answer(1, text="x" * 700))
    job = await store.get(new)
    assert job is not None
    assert job.status is JobStatus.FAILED
    assert job.error == "the results of all jobs take over 1000 bytes, which is the limit"
    assert len(await store.results(new, 0, 10)) == 1


# Redis


async def test_redis_tells_a_job_to_every_replica(redis: RedisServer, clock: Clock) -> None:
    async with shared(redis, clock) as one, shared(redis, clock) as other:
        job_id = await new_job(one)
        assert await other.get(job_id) == await one.get(job_id)
        await one.begin(job_id)
        await other.end(job_id, JobStatus.CANCELLED)
        assert not await one.add(job_id, answer(0))
        assert await one.renew([job_id]) == [job_id]


async def test_redis_finds_a_job_failed_whose_server_is_silent(redis: RedisServer) -> None:
    async with shared(redis, lease_seconds=0.2) as owner, shared(redis) as other:
        queued, running, done = [await new_job(owner) for _ in range(3)]
        await owner.begin(running)
        await owner.begin(done)
        await owner.add(running, answer(0))
        await owner.end(done, JobStatus.COMPLETED)
        for _ in range(4):
            await asyncio.sleep(0.1)
            assert await owner.renew([queued, running]) == []
        assert await status(other, running) is JobStatus.RUNNING
        await asyncio.sleep(0.3)
        for job_id in (queued, running):
            job = await other.get(job_id)
            assert job is not None
            assert (job.status, job.error) == (
                JobStatus.FAILED,
                "its server went away before it was done",
            )
            assert job.finished is not None
        assert await other.results(running, 0, 10) == [answer(0)]
        # A server that comes back too late must not go on.
        assert await owner.renew([running]) == [running]
        assert not await owner.add(running, answer(1))
        assert await status(owner, done) is JobStatus.COMPLETED


async def test_redis_forgets_a_job_when_its_time_is_over(redis: RedisServer) -> None:
    async with shared(redis, keep_seconds=0.3) as store:
        job_id = await new_job(store)
        await store.begin(job_id)
        await store.add(job_id, answer(0))
        await store.end(job_id, JobStatus.COMPLETED)
        await asyncio.sleep(0.4)
        assert await store.get(job_id) is None
        assert await store.results(job_id, 0, 10) == []


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_a_redis_that_is_away_is_unavailable_until_it_is_back(fault: str) -> None:
    with redis_server() as redis:
        async with shared(redis) as store:
            job_id = await new_job(store)
            await store.begin(job_id)
            away, back = {
                "killed": (redis.kill, redis.start),
                "frozen": (redis.freeze, redis.thaw),
            }[fault]
            away()
            started = time.monotonic()
            for call in (
                store.get(job_id),
                store.add(job_id, answer(0)),
                store.results(job_id, 0, 1),
                store.renew([job_id]),
                store.create(Job("1" * 32, "qwen3-vl", 1, created=0)),
            ):
                with pytest.raises(StoreUnavailable, match="does not answer; try again later"):
                    await call
            assert time.monotonic() - started < 30
            back()
            # What was sent while it froze may have arrived: adding again counts once.
            assert await store.add(job_id, answer(0))
            assert await store.results(job_id, 0, 10) == [answer(0)]
