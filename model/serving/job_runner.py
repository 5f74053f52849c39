"""Runs this replica's jobs: a few pictures of each in turn, behind all who wait for an answer.

A picture is retried while the engine's queue is full, a result while the store is away: neither is
the job's fault. What ends a job early is a client, the end of the server, or a store that no longer
knows it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from model.errors import QueueFull
from model.serving.batch import result_of
from model.serving.body import INTERNAL_ERROR
from model.serving.describe_body import Question
from model.serving.jobs import Job, JobStatus, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from model.errors import InvalidImage
    from model.serving.describe_body import Batch
    from model.serving.describer import Describer
    from model.serving.jobs import JobStore
    from model.serving.lifecycle import Lifecycle
    from model.settings import JobSettings

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
SERVER_SHUT_DOWN: Final = "its server was shut down before it was done"


class JobRunner:
    """Takes jobs and runs them; call from one event loop.

    clock: seconds since the epoch
    """

    def __init__(
        self,
        describer: Describer,
        store: JobStore,
        lifecycle: Lifecycle,
        settings: JobSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._describer = describer
        self._lifecycle = lifecycle
        self._settings = settings
        self._clock = clock
        self._places = asyncio.Semaphore(settings.max_running_pictures)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Of each job's pictures; also of those that the store has yet to take.
        self._num_bytes: dict[str, int] = {}
        self._heartbeat: asyncio.Task[None] | None = None

    @property
    def num_unfinished(self) -> int:
        """Jobs that wait or run here."""
        return len(self._num_bytes)

    def check_capacity(self, num_bytes: int = 0) -> None:
        """Raise QueueFull unless one more job, with so many bytes of pictures, may wait."""
        limits = self._settings
        if self.num_unfinished >= limits.max_unfinished:
            raise QueueFull(self.num_unfinished, limits.max_unfinished, "jobs")
        held = sum(self._num_bytes.values())
        # One that could never be taken otherwise is taken alone.
        if held and held + num_bytes > limits.max_waiting_bytes:
            raise QueueFull(held, limits.max_waiting_bytes, "bytes of jobs", num_bytes)

    async def submit(self, batch: Batch) -> Job:
        """Take a job; raises QueueFull, StoreUnavailable, NotReady."""
        num_bytes = _num_bytes(batch)
        self.check_capacity(num_bytes)
        job = Job(
            id=uuid.uuid4().hex,
            model=self._describer.model_name,
            total=len(batch.entries),
            created=self._clock(),
        )
        with ExitStack() as held:
            # A server that drains waits for it.
            held.enter_context(self._lifecycle.request())
            self._num_bytes[job.id] = num_bytes
            held.callback(self._num_bytes.pop, job.id)
            await self.store.create(job)
            task = asyncio.create_task(self._run(job.id, deque(enumerate(batch.entries))))
            self._tasks[job.id] = task
            held.callback(self._tasks.pop, job.id)
            let_go = held.pop_all().close
            task.add_done_callback(lambda _: let_go())
        if self._heartbeat is None:
            self._heartbeat = asyncio.create_task(self._beat())
        return job

    async def cancel(self, job_id: str) -> Job | None:
        """Let a job end, whichever replica runs it; what it is now. Raises StoreUnavailable."""
        await self.store.end(job_id, JobStatus.CANCELLED)
        self._drop(job_id)
        return await self.store.get(job_id)

    async def interrupt(self) -> None:
        """End all that has not ended: the server's time is over."""
        tasks = dict(self._tasks)
        for job_id in tasks:
            self._drop(job_id)
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        ends = (self.store.end(one, JobStatus.FAILED, SERVER_SHUT_DOWN) for one in tasks)
        # A store that is away learns it from the lease.
        await asyncio.gather(*ends, return_exceptions=True)

    async def close(self) -> None:
        """Stop, and let go of the store."""
        await self.interrupt()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
        await self.store.close()

    def _drop(self, job_id: str) -> None:
        """Stop working on a job that has ended."""
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()

    async def _run(self, job_id: str, pending: deque[tuple[int, Question | InvalidImage]]) -> None:
        """Answer a job's pictures and let it end; cancelled when it has ended early."""
        try:
            await self._answer_all(job_id, pending)
            end = partial(self.store.end, job_id, JobStatus.COMPLETED)
        except Exception:
            logger.exception("job %s failed", job_id)
            end = partial(self.store.end, job_id, JobStatus.FAILED, INTERNAL_ERROR)
        await _insisting(end)

    async def _answer_all(
        self, job_id: str, pending: deque[tuple[int, Question | InvalidImage]]
    ) -> None:
        async with self._places:
            if not await _insisting(partial(self.store.begin, job_id)):
                return
        async with asyncio.TaskGroup() as group:
            while pending:
                # Jobs wait for places side by side, so each gets its turn.
                await self._places.acquire()
                answering = group.create_task(self._answer(job_id, *pending.popleft()))
                answering.add_done_callback(lambda _: self._places.release())

    async def _answer(self, job_id: str, index: int, entry: Question | InvalidImage) -> None:
        result = await self._result(index, entry)
        if not await _insisting(partial(self.store.add, job_id, result)):
            self._drop(job_id)

    async def _result(self, index: int, entry: Question | InvalidImage) -> dict[str, Any]:
        while True:
            try:
                return await result_of(self._describer, index, entry)
            except QueueFull:
                await asyncio.sleep(RETRY_SECONDS)

    async def _beat(self) -> None:
        """Renew the leases, and drop what ended elsewhere."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            # An answer that does not come in time is asked for again at the next beat.
            with suppress(StoreUnavailable):
                for job_id in await self.store.renew(list(self._tasks)):
                    self._drop(job_id)


async def _insisting(call: Callable[[], Awaitable[T]]) -> T:
    """The call's result, however long the store is away."""
    while True:
        try:
            return await call()
        except StoreUnavailable as e:
            logger.warning("%s", e)
            await asyncio.sleep(RETRY_SECONDS)


def _num_bytes(batch: Batch) -> int:
    questions = (entry for entry in batch.entries if isinstance(entry, Question))
    return sum(len(image) for question in questions for image in question.images)
