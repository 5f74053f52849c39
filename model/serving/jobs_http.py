"""`/api/v1/jobs`: a batch that is answered later, its progress and results by its id.

The id is the key: it cannot be guessed, and there is no list of jobs.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse, Response

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
from model.serving.routing import QueryInteger, Route

if TYPE_CHECKING:
    from starlette.requests import Request

    from model.serving.describer import Describer
    from model.serving.job_runner import JobRunner
    from model.serving.jobs import Job
    from model.serving.lifecycle import Lifecycle
    from model.settings import Settings

ROUTE: Final = "/api/v1/jobs"
JOB_ID: Final = re.compile(r"[0-9a-f]{32}")
AFTER: Final = QueryInteger("after", default=0, low=0)
LIMIT: Final = QueryInteger("limit", default=100, low=1, high=1000)


def jobs_routes(
    runner: JobRunner, describer: Describer, lifecycle: Lifecycle, settings: Settings
) -> list[Route]:
    """The routes, for one model."""
    limits = settings.jobs

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

    async def state(request: Request) -> Response:
        """How far a job is."""
        job = await _job(request, runner)
        return JSONResponse(job.view(limits.keep_seconds))

    async def results(request: Request) -> Response:
        """Results in the order they were done, from the one numbered `after`.

        `next` is the `after` of the next page, null when there is none to come.
        """
        after, limit = AFTER.of(request), LIMIT.of(request)
        job = await _job(request, runner)
        # No farther than the end: a number of any size need not be one to a store.
        page = await runner.store.results(job.id, min(after, job.total), limit)
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

    async def cancel(request: Request) -> Response:
        """Let a job end; what is done stays. One that has ended stays as it is."""
        known = await _job(request, runner)
        job = _known(await runner.cancel(known.id), known.id)
        return JSONResponse(job.view(limits.keep_seconds))

    job = ROUTE + "/{job_id}"
    return [
        Route(("POST",), ROUTE, create, tag="jobs"),
        Route(("GET",), job, state, tag="jobs"),
        Route(("GET",), f"{job}/results", results, tag="jobs"),
        Route(("DELETE",), job, cancel, tag="jobs"),
    ]


async def _job(request: Request, runner: JobRunner) -> Job:
    """The one that a path names; raises NotFound."""
    job_id = request.path_params["job_id"]
    found = await runner.store.get(job_id) if JOB_ID.fullmatch(job_id) else None
    return _known(found, job_id)


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
