"""Jobs: batches that nobody waits for. What is known of one, and where it is kept.

A store keeps states and results; who computes them is `job_runner`'s business. A job moves one way:
queued → running → completed | cancelled | failed; whoever finds it ended leaves it as it is.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from model.errors import GrpcStatus, ServingError
from model.serving.batch import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class JobStatus(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class StoreUnavailable(ServingError):
    """The store of jobs cannot be asked now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_status = GrpcStatus.UNAVAILABLE
    retry_after_seconds = 5

    def __init__(self) -> None:
        super().__init__("the store of jobs does not answer; try again later")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now; times are seconds since the epoch.

    total: pictures; tally: those that are done; error: why it failed
    """

    id: str
    model: str
    total: int
    created: float
    status: JobStatus = JobStatus.QUEUED
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    tally: Tally = field(default_factory=Tally)

    def view(self, keep_seconds: float) -> dict[str, Any]:
        """As clients read it."""
        finished = self.finished
        return {
            "id": self.id,
            "model": self.model,
            "status": self.status.value,
            **({"error": self.error} if self.error else {}),
            "total": self.total,
            **self.tally.summary(),
            "created_at": _time(self.created),
            "started_at": _time(self.started),
            "finished_at": _time(finished),
            "expires_at": _time(None if finished is None else finished + keep_seconds),
        }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class JobStore(Protocol):
    """Jobs and their results, for a time. Everything raises StoreUnavailable."""

    async def create(self, job: Job) -> None:
        """Keep a new job."""

    async def get(self, job_id: str) -> Job | None:
        """A job, None where there is none of that id any more."""

    async def begin(self, job_id: str) -> bool:
        """From queued to running; False when it is not queued any more."""

    async def add(self, job_id: str, result: dict[str, Any]) -> bool:
        """Keep a result, once however often it is added; False when the job does not run."""

    async def results(self, job_id: str, start: int, count: int) -> list[dict[str, Any]]:
        """Results in the order they were added, from the one numbered `start`."""

    async def end(self, job_id: str, status: JobStatus, error: str | None = None) -> None:
        """Let a job end, unless it has."""

    async def renew(self, job_ids: Iterable[str]) -> list[str]:
        """Say that these jobs' server is alive; those of them that have ended."""

    async def close(self) -> None:
        """Let go of connections."""


@dataclass(slots=True)
class _Kept:
    job: Job
    results: list[bytes] = field(default_factory=list)
    indices: set[int] = field(default_factory=set)
    num_bytes: int = 0


class MemoryJobStore:
    """A store in this process: gone with it, and not seen by other replicas.

    max_jobs, max_result_bytes: of all that are kept; those that ended first make room
    clock: seconds since the epoch
    """

    def __init__(
        self,
        *,
        keep_seconds: float,
        max_jobs: int,
        max_result_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keep_seconds = keep_seconds
        self._max_jobs = max_jobs
        self._max_bytes = max_result_bytes
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._num_bytes = 0

    async def create(self, job: Job) -> None:
        """Keep a new job."""
        self._make_room(num_jobs=1)
        # Those that ended stand behind those that have not.
        self._kept[job.id] = _Kept(job)
        self._kept.move_to_end(job.id, last=False)

    async def get(self, job_id: str) -> Job | None:
        """A job, None where there is none of that id any more."""
        self._forget_old()
        kept = self._kept.get(job_id)
        return kept.job if kept is not None else None

    async def begin(self, job_id: str) -> bool:
        """From queued to running; False when it is not queued any more."""
        kept = self._kept.get(job_id)
        if kept is None or kept.job.status is not JobStatus.QUEUED:
            return False
        kept.job = replace(kept.job, status=JobStatus.RUNNING, started=self._clock())
        return True

    async def add(self, job_id: str, result: dict[str, Any]) -> bool:
        """Keep a result, once however often it is added; False when the job does not run."""
        kept = self._kept.get(job_id)
        if kept is None or kept.job.status is not JobStatus.RUNNING:
            return False
        if result["index"] in kept.indices:
            return True
        data = orjson.dumps(result)
        self._make_room(num_bytes=len(data))
        if self._num_bytes + len(data) > self._max_bytes:
            limit = f"the results of all jobs take over {self._max_bytes} bytes, which is the limit"
            await self.end(job_id, JobStatus.FAILED, limit)
            return False
        kept.results.append(data)
        kept.indices.add(result["index"])
        kept.num_bytes += len(data)
        self._num_bytes += len(data)
        kept.job.tally.add(result)
        return True

    async def results(self, job_id: str, start: int, count: int) -> list[dict[str, Any]]:
        """Results in the order they were added, from the one numbered `start`."""
        kept = self._kept.get(job_id)
        return [] if kept is None else [*map(orjson.loads, kept.results[start : start + count])]

    async def end(self, job_id: str, status: JobStatus, error: str | None = None) -> None:
        """Let a job end, unless it has."""
        kept = self._kept.get(job_id)
        if kept is None or kept.job.status.ended:
            return
        kept.job = replace(kept.job, status=status, error=error, finished=self._clock())
        self._kept.move_to_end(job_id)

    async def renew(self, job_ids: Iterable[str]) -> list[str]:
        """None have ended unknown to their server: it is this one."""
        return []

    async def close(self) -> None:
        """There are no connections."""

    def _forget_old(self) -> None:
        now = self._clock()
        for job_id in self._ended():
            finished = self._kept[job_id].job.finished
            if finished is None or finished + self._keep_seconds > now:
                return
            self._forget(job_id)

    def _make_room(self, *, num_jobs: int = 0, num_bytes: int = 0) -> None:
        self._forget_old()
        for job_id in self._ended():
            if (
                len(self._kept) + num_jobs <= self._max_jobs
                and self._num_bytes + num_bytes <= self._max_bytes
            ):
                return
            self._forget(job_id)

    def _ended(self) -> list[str]:
        """Jobs that ended, the first first."""
        return [job_id for job_id, kept in self._kept.items() if kept.job.status.ended]

    def _forget(self, job_id: str) -> None:
        self._num_bytes -= self._kept.pop(job_id).num_bytes
