"""Routes as the server makes them: what one answers, and what the document says of it.

Which protocol asks is each protocol's own business. A HEAD never comes as far as here: the
transport makes GET of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette import routing

from model.errors import InvalidRequest
from model.serving.parameters import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    Handler = Callable[[Request], Awaitable[Response]]

# Python itself reads other scripts' digits, and none of a text of more than 4300.
INTEGER: Final = re.compile(r"-?[0-9]{1,100}")


class Route(routing.Route):
    """Some methods of one path.

    tag: its group in the document; None: it is not shown there
    inference: whether it runs the model, and is looked for before those that do not
    """

    methods: set[str]

    def __init__(
        self,
        methods: Iterable[str],
        path: str,
        handler: Handler,
        *,
        tag: str | None = None,
        inference: bool = False,
    ) -> None:
        super().__init__(path, handler, include_in_schema=tag is not None)
        # Not by way of Starlette, which adds HEAD.
        self.methods = set(methods)
        self.tag = tag
        self.inference = inference

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of this path; not every Starlette tells which route it chose."""
        scope["route"] = self
        await super().handle(scope, receive, send)


def inference_first(routes: Iterable[Route]) -> list[Route]:
    """The same in the order in which to try them: one after the other is matched to a path."""
    return sorted(routes, key=lambda route: not route.inference)


def routes_of(app: Starlette) -> list[Route]:
    """Every route of an app that is one of ours."""
    return [route for route in app.routes if isinstance(route, Route)]


def allowed_methods(app: Starlette, path: str) -> str:
    """Of all routes with this path; Starlette would name those of the first alone."""
    routes = (route for route in routes_of(app) if route.path_regex.match(path))
    methods = {method for route in routes for method in route.methods}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


@dataclass(frozen=True, slots=True)
class QueryInteger:
    """A whole number that may be in a request's query.

    default: where it is not given
    high: None where it may be any size
    """

    name: str
    default: int
    low: int
    high: int | None = None

    def of(self, request: Request) -> int:
        """What a request says, the last time it does; raises InvalidRequest."""
        text = request.query_params.get(self.name)
        if text is None:
            return self.default
        value = int(text) if INTEGER.fullmatch(text) else None
        if value is None or value < self.low or (self.high is not None and value > self.high):
            wrong = shown(text if value is None else value)
            most = "" if self.high is None else f" and at most {self.high}"
            raise InvalidRequest(
                f"{self.name} is {wrong}; it must be an integer of at least {self.low}{most}"
            )
        return value
