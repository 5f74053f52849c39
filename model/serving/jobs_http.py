"""`/api/v1/jobs`: a batch that is answered later, its progress and results by its id.

The id is the key: it cannot be guessed, and there is no list of jobs.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from model.errors import InvalidRequest, NotFound
from model.serving.describe_body import Batch, Question, read_batch
from model.serving.parameters import (
    DEFAULT_PRIORITY,
    MAX_TIMEOUT_SECONDS,
    PRIORITY_LEVELS,
    parse_priority,
    parse_timeout_seconds,
    shown,
)

if TYPE_CHECKING:
    from model.serving.describer import Describer
    from model.serving.job_runner import JobRunner
    from model.serving.jobs import Job
    from model.serving.lifecycle import Lifecycle
    from model.settings import Settings

ROUTE: Final = "/api/v1/jobs"
JOB_ID: Final = re.compile(r"[0-9a-f]{32}")
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100


def jobs_router(
    runner: JobRunner, describer: Describer, lifecycle: Lifecycle, settings: Settings
) -> APIRouter:
    """The routes, for one model."""
    router = APIRouter(tags=["jobs"])
    limits = settings.jobs

    @router.post(ROUTE)
    async def create(request: Request) -> Response:
        """Take a batch to be answered later, behind everybody who waits."""
        with lifecycle.request():
            runner.check_capacity()
            batch = _behind_others(
                await read_batch(
                    request,
                    settings,
                    max_pictures=limits.max_pictures,
                    max_body_bytes=limits.max_body_bytes,
                )
            )
            describer.check(batch.options)
            job = await runner.submit(batch)
        headers = {"Location": f"{ROUTE}/{job.id}"}
        return JSONResponse(job.view(limits.keep_seconds), 202, headers)

    @router.get(ROUTE + "/{job_id}")
    async def state(job_id: str) -> Response:
        """How far a job is."""
        return JSONResponse(_known(await _get(runner, job_id), job_id).view(limits.keep_seconds))

    @router.get(ROUTE + "/{job_id}/results")
    async def results(
        job_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    ) -> Response:
        """Results in the order they were done, from the one numbered `after`.

        `next` is the `after` of the next page, null when there is none to come.
        """
        job = _known(await _get(runner, job_id), job_id)
        page = await runner.store.results(job.id, after, limit)
        reached = after + len(page)
        # The job was read first: where it had ended, all results were there.
        done = job.tally.succeeded + job.tally.failed
        return JSONResponse(
            {
                "id": job.id,
                "status": job.status.value,
                "total": job.total,
                "results": page,
                "next": None if job.status.ended and reached >= done else reached,
            }
        )

    @router.delete(ROUTE + "/{job_id}")
    async def cancel(job_id: str) -> Response:
        """Let a job end; what is done stays. One that has ended stays as it is."""
        _known(await _get(runner, job_id), job_id)
        job = _known(await runner.cancel(job_id), job_id)
        return JSONResponse(job.view(limits.keep_seconds))

    return router


async def _get(runner: JobRunner, job_id: str) -> Job | None:
    return await runner.store.get(job_id) if JOB_ID.fullmatch(job_id) else None


def _known(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise NotFound(f"job {shown(job_id)} is not known: it never was, or its time is over")
    return job


def _behind_others(batch: Batch) -> Batch:
    """The batch in the last class of priority, and with all the time of a day in the queue."""
    options = batch.options
    if options.stream:
        raise InvalidRequest("stream is true; a job has no stream: ask for its results by its id")
    parameters = dict(options.parameters)
    urgency = parse_priority(parameters)
    if not parameters.get("priority"):
        parameters["priority"] = PRIORITY_LEVELS
    elif urgency <= 0:
        raise InvalidRequest(
            f"priority is {parameters['priority']}; a job's must be from {DEFAULT_PRIORITY + 1} to "
            f"{PRIORITY_LEVELS}, which is its default"
        )
    if parse_timeout_seconds(parameters) is None:
        parameters["timeout_seconds"] = MAX_TIMEOUT_SECONDS
    options = replace(options, parameters=parameters)
    entries = tuple(
        replace(entry, options=options) if isinstance(entry, Question) else entry
        for entry in batch.entries
    )
    return Batch(entries, options)
