"""A server that answers describe as the real one never does on demand: refusing, breaking, slow.

What it does is the prompt's to say; what it was sent is kept for the test.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp

KEY = "secret-key-of-a-person"
TEXT = (
    "A **photograph** of a harbour at dusk:\n\n"
    "- three fishing boats, two of them blue\n- a row of lamps\n\n"
    "The water is calm, and <b>nobody</b> is to be seen."
)
WORDS = TEXT.split(" ")
IMAGE = {"width": 4032, "height": 3024, "seen_width": 1280, "seen_height": 960, "tokens": 1200}


@dataclass(frozen=True)
class Asked:
    """One request to describe as it arrived; of its files the content."""

    authorization: str
    fields: dict[str, str]
    files: list[str]


class StrangeServer:
    """Its address, what it was asked, and how many of its answers nobody waited for."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.asked: list[Asked] = []
        self.num_cancelled = 0

    def app(self) -> FastAPI:
        """Its routes."""
        app = FastAPI()

        @app.get("/health")
        async def health() -> dict[str, str]:
            return {"status": "ready"}

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"data": [{"id": "strange-model"}]}

        @app.post("/api/v1/describe")
        async def describe(request: Request) -> Response:
            asked = await _asked(request)
            self.asked.append(asked)
            match asked.fields.get("prompt", ""):
                case "too many":
                    headers = {"retry-after": "7"}
                    return JSONResponse({"error": "512 requests wait"}, 429, headers)
                case "a gateway's page":
                    return HTMLResponse("<h1>Bad gateway</h1>", 502)
                case "only with a key" if asked.authorization != f"Bearer {KEY}":
                    return JSONResponse({"error": "this server wants an API key"}, 401)
                case prompt if "stream" in asked.fields:
                    events = self._events(prompt, len(asked.files))
                    return StreamingResponse(events, media_type="text/event-stream")
                case _:
                    return JSONResponse({"description": TEXT})

        return app

    async def _events(self, prompt: str, num_images: int) -> AsyncIterator[str]:
        usage = {"prompt_tokens": 1210, "image_tokens": 1200 * num_images}
        images = [IMAGE] * num_images
        try:
            yield ": keep-alive\n\n"
            yield _event({"type": "start", "id": "1", "images": images, "usage": usage})
            for index, word in enumerate(WORDS):
                await asyncio.sleep(0.05)
                yield _event({"type": "delta", "text": word + " "})
                if prompt == "break" and index == 3:
                    yield _event({"type": "error", "error": "the device is lost", "status": 500})
                    return
                if prompt == "end early" and index == 3:
                    return
            yield _event(
                {
                    "type": "end",
                    "description": TEXT,
                    "finish_reason": "stop",
                    "images": images,
                    "usage": {**usage, "completion_tokens": 42},
                    "timings": {
                        "queue_ms": 0.2,
                        "first_text_ms": 180,
                        "generate_ms": 1900,
                        "total_ms": 2100,
                    },
                }
            )
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise


async def _asked(request: Request) -> Asked:
    fields: dict[str, str] = {}
    files = []
    async with request.form() as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = value
            else:
                files.append((await value.read()).decode(errors="replace"))
    return Asked(request.headers.get("authorization", ""), fields, files)


def _event(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


@contextmanager
def start_strange_server() -> Iterator[StrangeServer]:
    """Run one on a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        strange = StrangeServer(listener.getsockname()[1])
        with run_app(strange.app(), listener):
            yield strange


@contextmanager
def run_app(app: ASGIApp, listener: socket.socket) -> Iterator[None]:
    """Serve on a thread."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
