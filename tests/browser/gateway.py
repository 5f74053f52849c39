"""A gateway as clusters have them: it shows the page under a path, and takes the path off."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.browser.strange_server import run_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request

HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive")


@contextmanager
def start_gateway(upstream: str, prefix: str, *, strips: bool) -> Iterator[str]:
    """Its address; what is not under the prefix is not found.

    strips: whether the prefix is taken off on the way
    """
    app = _app(upstream, prefix, strips=strips)
    with socket.create_server(("127.0.0.1", 0)) as listener, run_app(app, listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _app(upstream: str, prefix: str, *, strips: bool) -> Starlette:
    client = httpx.AsyncClient(base_url=upstream, timeout=60)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def forward(request: Request) -> Response:
        path = request.url.path
        if path != prefix and not path.startswith(f"{prefix}/"):
            return PlainTextResponse("no such route", 404)
        target = (path.removeprefix(prefix) or "/") if strips else path
        headers = [(k, v) for k, v in request.headers.raw if k.decode() not in HOP_BY_HOP]
        answer = await client.send(
            client.build_request(
                request.method,
                httpx.URL(path=target, query=request.url.query.encode()),
                headers=headers,
                content=request.stream() if request.method == "POST" else None,
            ),
            stream=True,
        )
        streamed = StreamingResponse(
            answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose)
        )
        streamed.raw_headers = [
            (k.lower(), v) for k, v in answer.headers.raw if k.decode().lower() not in HOP_BY_HOP
        ]
        return streamed

    routes = [Route("/{path:path}", forward, methods=["GET", "POST"])]
    return Starlette(routes=routes, lifespan=lifespan)
