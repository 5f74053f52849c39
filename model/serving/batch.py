"""`POST /api/v1/batch`: many pictures in one request, each with its own answer or its own error.

The results come together in the order of the pictures, or as a stream in the order they are done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse, Response

from model.errors import QueueFull, ServingError
from model.serving.body import INTERNAL_ERROR, until_disconnect
from model.serving.describe_body import read_batch
from model.serving.request_id import request_id_of
from model.serving.routing import Route
from model.serving.sse import EventStream, Outlet, wanted_form

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from collections.abc import Sequence as Seq

    from starlette.requests import Request

    from model.errors import InvalidImage
    from model.serving.describe_body import Question
    from model.serving.describer import Describer
    from model.serving.lifecycle import Lifecycle
    from model.settings import Settings

logger = logging.getLogger(__name__)

USAGE: Final = ("prompt_tokens", "image_tokens", "completion_tokens", "total_tokens")


@dataclass(slots=True)
class Tally:
    """What a batch has come to so far; usage is summed over what succeeded."""

    succeeded: int = 0
    failed: int = 0
    usage: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USAGE, 0))

    def add(self, result: dict[str, Any]) -> None:
        """Count one result."""
        if "error" in result:
            self.failed += 1
            return
        self.succeeded += 1
        for name in USAGE:
            self.usage[name] += result["usage"][name]

    def summary(self) -> dict[str, Any]:
        """As clients read it."""
        return {"succeeded": self.succeeded, "failed": self.failed, "usage": self.usage}


def batch_routes(describer: Describer, lifecycle: Lifecycle, settings: Settings) -> list[Route]:
    """The route, for one model."""
    limits = settings.request

    async def batch(request: Request) -> Response:
        """Describe many pictures; one that cannot be described does not touch the others."""
        with ExitStack() as held:
            held.enter_context(lifecycle.request())
            asked = await read_batch(
                request,
                settings,
                max_pictures=limits.max_batch,
                max_body_bytes=limits.max_body_bytes,
            )
            describer.check(asked.options)
            describer.check_capacity(len(asked.entries))
            head = {"id": request_id_of(request), "model": describer.model_name}
            form = wanted_form(request.headers.get("accept", ""), asked.options.stream)
            if form is not None:
                events = _events(describer, asked.entries, head)
                return EventStream(events, Outlet(request.scope, form), held.pop_all())
            work = _whole(describer, asked.entries)
            answer = await until_disconnect(request.scope, request.receive, work)
            return JSONResponse({**head, **answer})

    return [Route(("POST",), "/api/v1/batch", batch, tag="describe", inference=True)]


async def _whole(describer: Describer, entries: Seq[Question | InvalidImage]) -> dict[str, Any]:
    tally = Tally()
    async with aclosing(each_result(describer, entries)) as results:
        finished = [result async for result in results]
    for result in finished:
        tally.add(result)
    return {"results": sorted(finished, key=lambda one: one["index"]), **tally.summary()}


async def _events(
    describer: Describer, entries: Seq[Question | InvalidImage], head: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """A start, a result for each picture as it is done, an end with what all came to."""
    yield {"type": "start", **head, "total": len(entries)}
    tally = Tally()
    async with aclosing(each_result(describer, entries)) as results:
        async for result in results:
            tally.add(result)
            yield {"type": "result", **result}
    yield {"type": "end", **head, **tally.summary()}


async def each_result(
    describer: Describer, entries: Seq[Question | InvalidImage]
) -> AsyncGenerator[dict[str, Any], None]:
    """Each picture's result, as it is done; closing the generator cancels the others."""
    run = _Run(describer, entries)
    workers = [asyncio.create_task(run.work()) for _ in entries]
    try:
        for _ in entries:
            yield await run.results.get()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class _Run:
    """One batch on its way: as many at once as the engine's queue takes."""

    def __init__(self, describer: Describer, entries: Seq[Question | InvalidImage]) -> None:
        self.results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._describer = describer
        self._pending = deque(enumerate(entries))
        self._num_workers = len(entries)

    async def work(self) -> None:
        """Answer one after the other."""
        while self._pending:
            index, entry = self._pending.popleft()
            try:
                result = await result_of(self._describer, index, entry)
            except QueueFull as e:
                if self._num_workers > 1:
                    # The queue is full of our own, or they will at least get through: let them go
                    # first.
                    self._pending.appendleft((index, entry))
                    self._num_workers -= 1
                    return
                result = failure(index, e)
            self.results.put_nowait(result)


async def result_of(
    describer: Describer, index: int, entry: Question | InvalidImage
) -> dict[str, Any]:
    """A picture's answer or what is wrong with it; raises only QueueFull: that passes."""
    try:
        if isinstance(entry, ServingError):
            return failure(index, entry)
        return {"index": index, **await describer.answer(entry)}
    except QueueFull:
        raise
    except ServingError as e:
        return failure(index, e)
    except Exception:
        logger.exception("a picture of a batch failed")
        return {"index": index, "error": INTERNAL_ERROR, "status": HTTPStatus.INTERNAL_SERVER_ERROR}


def failure(index: int, error: ServingError) -> dict[str, Any]:
    """A picture's result when there is no answer."""
    return {"index": index, "error": str(error), "status": int(error.status)}
