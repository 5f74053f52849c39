"""The store of jobs in Redis: any replica can read them, and they outlive the one that runs them.

The replica that took a job renews a lease on it. A job without a lease has lost its server: whoever
looks next finds it failed. Each change is one script, so that two replicas cannot disagree.

    qvl:job:{id}          hash: what is known of the job
    qvl:job:{id}:results  list: results as JSON, in the order they were added
    qvl:job:{id}:indices  bits: which results there are; an addition that is sent twice counts once
    qvl:job:{id}:lease    there while its server is
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from model.serving.batch import USAGE, Tally
from model.serving.jobs import Job, JobStatus, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

SERVER_WENT_AWAY: Final = "its server went away before it was done"
# A store that is slow for longer is as good as down: clients wait for it.
ANSWER_SECONDS: Final = 2.0

# KEYS: job, lease. ARGV: now, the error of a job without a lease
GET: Final = """
local status = redis.call('HGET', KEYS[1], 'status')
if (status == 'queued' or status == 'running') and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('HSET', KEYS[1], 'status', 'failed', 'finished', ARGV[1], 'error', ARGV[2])
end
return redis.call('HGETALL', KEYS[1])
"""
# KEYS: job, results, indices, lease. ARGV: index, result, keep, lease (milliseconds), then
# counters and what each grows by
ADD: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('SET', KEYS[4], '', 'PX', ARGV[4])
if redis.call('SETBIT', KEYS[3], ARGV[1], 1) == 1 then return 1 end
redis.call('RPUSH', KEYS[2], ARGV[2])
for i = 5, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
return 1
"""
# KEYS: job, results, indices. ARGV: keep (milliseconds), the status it must have or '' for any
# that has not ended, then fields and values
MOVE: Final = """
local status = redis.call('HGET', KEYS[1], 'status')
local open = status == 'queued' or status == 'running'
if not open or (ARGV[2] ~= '' and status ~= ARGV[2]) then return 0 end
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
return 1
"""
# KEYS: job, results, indices, lease. ARGV: keep, lease (milliseconds)
RENEW: Final = """
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
redis.call('SET', KEYS[4], '', 'PX', ARGV[2])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
return 1
"""


class RedisJobStore:
    """See JobStore. Raises ValueError for what is no Redis URL."""

    def __init__(
        self,
        url: str,
        *,
        keep_seconds: float,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            # Once more, at once: a connection that idled may be gone while the server is not.
            retry=Retry(NoBackoff(), 1),
        )
        self._keep = int(keep_seconds * 1000)
        self._lease = int(lease_seconds * 1000)
        self._clock = clock
        self._get = self._redis.register_script(GET)
        self._add = self._redis.register_script(ADD)
        self._move = self._redis.register_script(MOVE)
        self._renew = self._redis.register_script(RENEW)

    async def create(self, job: Job) -> None:
        """Keep a new job."""
        known = {
            "model": job.model,
            "status": job.status.value,
            "total": job.total,
            "created": job.created,
        }
        key, *_, lease = _keys(job.id)
        with _translating():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(key, mapping=known)
                pipeline.pexpire(key, self._keep)
                pipeline.set(lease, "", px=self._lease)
                await pipeline.execute()

    async def get(self, job_id: str) -> Job | None:
        """A job, None where there is none of that id any more."""
        job, *_, lease = _keys(job_id)
        with _translating():
            pairs = await self._get([job, lease], [self._clock(), SERVER_WENT_AWAY])
        known = dict(zip(pairs[::2], pairs[1::2], strict=True))
        return _job(job_id, known) if known else None

    async def begin(self, job_id: str) -> bool:
        """From queued to running; False when it is not queued any more."""
        return await self._to(job_id, JobStatus.QUEUED, status="running", started=self._clock())

    async def add(self, job_id: str, result: dict[str, Any]) -> bool:
        """Keep a result, once however often it is added; False when the job does not run."""
        tally = Tally()
        tally.add(result)
        counters = {"succeeded": tally.succeeded, "failed": tally.failed, **tally.usage}
        grown = [part for name, value in counters.items() if value for part in (name, value)]
        arguments = [result["index"], orjson.dumps(result), self._keep, self._lease, *grown]
        with _translating():
            return bool(await self._add(_keys(job_id), arguments))

    async def results(self, job_id: str, start: int, count: int) -> list[dict[str, Any]]:
        """Results in the order they were added, from the one numbered `start`."""
        with _translating():
            asked = self._redis.lrange(_keys(job_id)[1], start, start + count - 1)
            found = await cast("Awaitable[list[str]]", asked)
        return [*map(orjson.loads, found)]

    async def end(self, job_id: str, status: JobStatus, error: str | None = None) -> None:
        """Let a job end, unless it has."""
        why = {} if error is None else {"error": error}
        await self._to(job_id, None, status=status.value, finished=self._clock(), **why)

    async def renew(self, job_ids: Iterable[str]) -> list[str]:
        """Say that these jobs' server is alive; those of them that have ended."""
        ended = []
        for job_id in job_ids:
            with _translating():
                if not await self._renew(_keys(job_id), [self._keep, self._lease]):
                    ended.append(job_id)
        return ended

    async def close(self) -> None:
        """Let go of connections."""
        await self._redis.aclose()

    async def _to(self, job_id: str, only_from: JobStatus | None, **fields: str | float) -> bool:
        *keys, _lease = _keys(job_id)
        pairs = [part for name, value in fields.items() for part in (name, value)]
        with _translating():
            return bool(await self._move(keys, [self._keep, only_from or "", *pairs]))


def _keys(job_id: str) -> list[str]:
    """job, results, indices, lease."""
    # The braces keep a job's keys on one node of a cluster.
    key = f"qvl:job:{{{job_id}}}"
    return [key, f"{key}:results", f"{key}:indices", f"{key}:lease"]


def _job(job_id: str, known: dict[str, str]) -> Job:
    usage = {name: int(known.get(name, 0)) for name in USAGE}
    return Job(
        id=job_id,
        model=known["model"],
        total=int(known["total"]),
        created=float(known["created"]),
        status=JobStatus(known["status"]),
        started=float(known["started"]) if "started" in known else None,
        finished=float(known["finished"]) if "finished" in known else None,
        error=known.get("error"),
        tally=Tally(int(known.get("succeeded", 0)), int(known.get("failed", 0)), usage),
    )


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as e:
        raise StoreUnavailable from e
