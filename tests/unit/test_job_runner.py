"""Jobs run in turn, wait out what is not their fault, and end when they should."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from model.errors import InvalidImage, NotReady, QueueFull
from model.serving import job_runner
from model.serving.describe_body import Batch, Options, Question
from model.serving.job_runner import JobRunner
from model.serving.jobs import Job, JobStatus, MemoryJobStore, StoreUnavailable
from model.serving.lifecycle import Lifecycle, Phase
from model.settings import JobSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from model.serving.describer import Describer

OPTIONS = Options({})
USAGE = dict.fromkeys(("prompt_tokens", "image_tokens", "completion_tokens", "total_tokens"), 1)


class FakeDescriber:
    """Answers with the picture itself once it may; notes what it was asked."""

    model_name = "qwen3-vl"

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.num_running = 0
        self.most_running = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.faults: list[Exception] = []

    async def answer(self, question: Question) -> dict[str, Any]:
        self.asked.append(question.images[0])
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.sleep(0)
            await self.may_answer.wait()
            if self.faults:
                raise self.faults.pop()
            return {"description": question.images[0].decode(), "usage": USAGE}
        finally:
            self.num_running -= 1


class MovingStore(MemoryJobStore):
    """A store that is away for as many calls as it is told."""

    num_away = 0

    def _check(self) -> None:
        if self.num_away:
            self.num_away -= 1
            raise StoreUnavailable

    async def create(self, job: Job) -> None:
        self._check()
        await super().create(job)

    async def add(self, job_id: str, result: dict[str, Any]) -> bool:
        self._check()
        return await super().add(job_id, result)

    async def end(self, job_id: str, status: JobStatus, error: str | None = None) -> None:
        self._check()
        await super().end(job_id, status, error)


class House:
    """A runner and all that it meets."""

    def __init__(self, **settings: Any) -> None:
        self.describer = FakeDescriber()
        self.store = MovingStore(keep_seconds=60, max_jobs=100, max_result_bytes=1 << 20)
        self.lifecycle = Lifecycle()
        self.lifecycle.enter(Phase.READY)
        self.runner = JobRunner(
            cast("Describer", self.describer), self.store, self.lifecycle, JobSettings(**settings)
        )

    async def submit(self, *pictures: bytes) -> str:
        entries = tuple(Question((picture,), None, OPTIONS) for picture in pictures)
        return (await self.runner.submit(Batch(entries, OPTIONS))).id

    async def ended(self, job_id: str) -> Job:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            job = await self.store.get(job_id)
            assert job is not None
            if job.status.ended:
                return job
            await asyncio.sleep(0.005)
        raise AssertionError("the job does not end")

    async def started(self, num: int) -> None:
        while len(self.describer.asked) < num:
            await asyncio.sleep(0.001)


@pytest.fixture
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    one = House(**getattr(request, "param", {}))
    yield one
    await one.runner.close()
    assert one.runner.num_unfinished == one.lifecycle.num_open == one.describer.num_running == 0


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runner, "RETRY_SECONDS", 0.01)


async def test_every_picture_gets_its_result(house: House) -> None:
    pictures = [b"%d" % number for number in range(20)]
    job = await house.ended(await house.submit(*pictures))
    assert job.status is JobStatus.COMPLETED
    assert (job.tally.succeeded, job.tally.failed, job.tally.usage["total_tokens"]) == (20, 0, 20)
    results = await house.store.results(job.id, 0, 100)
    assert {result["index"]: result["description"] for result in results} == {
        number: str(number) for number in range(20)
    }


async def test_a_picture_that_was_bad_from_the_start_is_one_result(house: House) -> None:
    good = Question((b"a",), None, OPTIONS)
    batch = Batch((InvalidImage("no picture"), good), OPTIONS)
    job = await house.ended((await house.runner.submit(batch)).id)
    assert (job.tally.succeeded, job.tally.failed) == (1, 1)


async def test_an_error_of_one_picture_is_its_result(house: House) -> None:
    house.describer.faults = [RuntimeError("at 0x12"), InvalidImage("broken")]
    job = await house.ended(await house.submit(b"a", b"b", b"c"))
    errors = [result.get("error") for result in await house.store.results(job.id, 0, 10)]
    assert job.status is JobStatus.COMPLETED
    assert sorted(map(str, errors)) == [
        "None",
        "broken",
        "internal error; the server's log says more",
    ]


@pytest.mark.parametrize("house", [{"max_running_pictures": 3}], indirect=True)
async def test_only_so_many_pictures_run_at_once(house: House) -> None:
    jobs = [await house.submit(*[b"x"] * 10) for _ in range(3)]
    for job_id in jobs:
        await house.ended(job_id)
    assert house.describer.most_running == 3


@pytest.mark.parametrize("house", [{"max_running_pictures": 1}], indirect=True)
async def test_jobs_take_turns(house: House) -> None:
    jobs = [await house.submit(*[name] * 10) for name in (b"a", b"b")]
    for job_id in jobs:
        await house.ended(job_id)
    order = b"".join(house.describer.asked)
    # A short one behind a long one does not wait for all of it.
    assert order.count(b"ab") + order.count(b"ba") > 12


@pytest.mark.parametrize("house", [{"max_running_pictures": 1}], indirect=True)
async def test_a_job_is_queued_until_it_has_a_place(house: House) -> None:
    house.describer.may_answer.clear()
    first = await house.submit(b"a", b"b")
    await house.started(1)
    second = await house.submit(b"c")
    await asyncio.sleep(0.01)
    states = [await house.store.get(one) for one in (first, second)]
    assert [job and job.status for job in states] == [JobStatus.RUNNING, JobStatus.QUEUED]
    house.describer.may_answer.set()
    assert (await house.ended(second)).status is JobStatus.COMPLETED


async def test_a_full_queue_is_waited_out(house: House) -> None:
    house.describer.faults = [QueueFull(1, 1) for _ in range(5)]
    job = await house.ended(await house.submit(b"a", b"b"))
    assert (job.tally.succeeded, job.tally.failed) == (2, 0)
    assert len(house.describer.asked) == 7


async def test_a_store_that_is_away_is_waited_out(house: House) -> None:
    house.describer.may_answer.clear()
    job_id = await house.submit(b"a", b"b")
    await house.started(2)
    house.store.num_away = 5
    house.describer.may_answer.set()
    job = await house.ended(job_id)
    assert (job.status, job.tally.succeeded) == (JobStatus.COMPLETED, 2)
    assert house.store.num_away == 0


async def test_a_job_that_the_store_does_not_take_leaves_nothing(house: House) -> None:
    house.store.num_away = 1
    with pytest.raises(StoreUnavailable):
        await house.submit(b"a")
    assert house.runner.num_unfinished == house.lifecycle.num_open == 0


async def test_a_cancelled_job_stops_at_once_and_keeps_what_it_has(house: House) -> None:
    house.describer.may_answer.clear()
    job_id = await house.submit(*[b"x"] * 30)
    await house.started(8)
    job = await house.runner.cancel(job_id)
    assert job is not None
    assert job.status is JobStatus.CANCELLED
    await asyncio.sleep(0.01)
    assert house.describer.num_running == house.runner.num_unfinished == 0
    assert len(house.describer.asked) == 8
    assert await house.runner.cancel("0" * 32) is None


async def test_a_job_that_ended_elsewhere_stops_at_its_next_result(house: House) -> None:
    house.describer.may_answer.clear()
    job_id = await house.submit(*[b"x"] * 30)
    await house.started(8)
    await house.store.end(job_id, JobStatus.CANCELLED)
    house.describer.may_answer.set()
    await asyncio.sleep(0.05)
    assert house.runner.num_unfinished == 0
    assert len(house.describer.asked) < 30


@pytest.mark.parametrize("house", [{"lease_seconds": 0.03}], indirect=True)
async def test_a_job_that_ended_elsewhere_stops_at_the_next_beat(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.describer.may_answer.clear()
    job_id = await house.submit(b"x")
    await house.started(1)

    async def renew(job_ids: list[str]) -> list[str]:
        return job_ids

    monkeypatch.setattr(house.store, "renew", renew)
    await asyncio.sleep(0.1)
    assert house.runner.num_unfinished == 0
    assert not (await house.store.get(job_id)).status.ended  # type: ignore[union-attr]


async def test_the_end_of_the_servers_time_is_told(house: House) -> None:
    house.describer.may_answer.clear()
    job_id = await house.submit(b"a", b"b")
    await house.started(2)
    await house.runner.interrupt()
    job = await house.store.get(job_id)
    assert job is not None
    assert (job.status, job.error) == (
        JobStatus.FAILED,
        "its server was shut down before it was done",
    )


async def test_a_server_that_drains_waits_for_its_jobs_and_takes_no_more(house: House) -> None:
    house.describer.may_answer.clear()
    job_id = await house.submit(b"a", b"b")
    house.lifecycle.enter(Phase.DRAINING)
    with pytest.raises(NotReady):
        await house.submit(b"c")
    assert not await house.lifecycle.wait_idle(0.01)
    house.describer.may_answer.set()
    assert await house.lifecycle.wait_idle(5)
    assert (await house.ended(job_id)).status is JobStatus.COMPLETED


@pytest.mark.parametrize("house", [{"max_unfinished": 2, "max_waiting_bytes": 100}], indirect=True)
async def test_what_waits_is_bounded_by_jobs_and_bytes(house: House) -> None:
    house.describer.may_answer.clear()
    # One that is too large for the bound is taken alone.
    large = await house.submit(b"x" * 150)
    with pytest.raises(QueueFull, match="150 bytes of jobs are queued, 10 more came; the limit is"):
        await house.submit(b"x" * 10)
    await house.runner.cancel(large)
    await asyncio.sleep(0.01)
    for _ in range(2):
        await house.submit(b"x" * 40)
    with pytest.raises(QueueFull, match="2 jobs are queued; the limit is 2; try again later"):
        await house.submit(b"x")


async def test_an_unforeseen_error_fails_the_job_and_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> dict[str, Any]:
        raise RuntimeError("at 0x12")

    with monkeypatch.context() as patched:
        patched.setattr(job_runner, "result_of", broken)
        job = await house.ended(await house.submit(b"a"))
    assert (job.status, job.error) == (
        JobStatus.FAILED,
        "internal error; the server's log says more",
    )
    assert "at 0x12" in caplog.text
    assert (await house.ended(await house.submit(b"a"))).status is JobStatus.COMPLETED
