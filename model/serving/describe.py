"""`POST /api/v1/describe` for people with curl: a picture and a question in, a description out.

multipart/form-data with files `image` and a field `prompt`, or JSON with base64; every sampling
parameter of the other protocols under its own name. As a whole, or as a stream of events.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from model.serving.body import until_disconnect
from model.serving.describe_body import read_question
from model.serving.request_id import request_id_of
from model.serving.routing import Route
from model.serving.sse import EventStream, Outlet, wanted_form

if TYPE_CHECKING:
    from starlette.requests import Request

    from model.serving.describer import Describer
    from model.serving.lifecycle import Lifecycle
    from model.settings import Settings


def describe_routes(describer: Describer, lifecycle: Lifecycle, settings: Settings) -> list[Route]:
    """The route, for one model."""

    async def describe(request: Request) -> Response:
        """Describe one picture, or answer a question about several."""
        with ExitStack() as held:
            held.enter_context(lifecycle.request())
            question = await read_question(request, settings)
            head = {"id": request_id_of(request), "model": describer.model_name}
            form = wanted_form(request.headers.get("accept", ""), question.options.stream)
            if form is not None:
                outlet = Outlet(request.scope, form)
                events = describer.events(question, head, outlet.tap)
                return EventStream(events, outlet, held.pop_all())
            work = describer.answer(question)
            answer = await until_disconnect(request.scope, request.receive, work)
            return JSONResponse({**head, **answer})

    return [Route(("POST",), "/api/v1/describe", describe, tag="describe", inference=True)]
