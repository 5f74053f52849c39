"""Which way the pieces of each protocol's streams go: by the tap where the client keeps up."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.__main__ import load
from model.serving.kserve_model import Qwen3VLModel
from model.serving.lifecycle import Lifecycle, Phase
from model.serving.request_id import RequestIds
from model.serving.server import build_app
from model.serving.transport.http1_exchange import Http1Exchange
from model.serving.transport.server import HttpServer
from model.settings import Settings
from tests.server.transport_app import LIMITS
from tests.serving import SAMPLES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NUM_TOKENS = 12
URL = (
    "data:image/jpeg;base64,"
    + base64.b64encode((SAMPLES / "scene-00000.jpg").read_bytes()).decode()
)
LONG = {"max_tokens": NUM_TOKENS, "min_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}
CONTENT = [
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "text", "text": "Describe this image."},
]
CHAT = {"messages": [{"role": "user", "content": CONTENT}], "stream": True, **LONG}


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """The server in this process, with the bundled model; its URL."""
    settings = Settings()
    model = Qwen3VLModel(settings, lambda: load(settings))
    await asyncio.to_thread(model.load)
    await model.start_engine()
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    listener = socket.create_server(("127.0.0.1", 0))
    http = HttpServer(RequestIds(build_app(model, lifecycle, settings)), LIMITS)
    await http.start(listener)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await http.stop(0.2)
        await asyncio.to_thread(model.stop)


def text_of(event: dict[str, Any]) -> str:
    """What an event of any protocol adds."""
    if event.get("choices"):
        choice = event["choices"][0]
        return str(choice.get("text") or choice.get("delta", {}).get("content") or "")
    return str(event["text"]) if event.get("type", "delta") == "delta" and "text" in event else ""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v2/models/qwen3-vl/generate_stream", {"image": URL, **LONG}, id="V2"),
        pytest.param("/v1/chat/completions", CHAT, id="chat"),
        pytest.param("/v1/chat/completions", {**CHAT, "logprobs": True}, id="logprobs"),
        pytest.param(
            "/v1/completions",
            {"prompt": "A red", "stream": True, **LONG},
            id="completions",
        ),
        pytest.param(
            "/api/v1/describe",
            {"image": URL, "stream": True, **LONG},
            id="describe",
        ),
    ],
)
async def test_pieces_go_the_short_way_and_say_the_same(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    written: list[bytes] = []
    write: Callable[[Http1Exchange, bytes], None] = Http1Exchange.write

    def noted(exchange: Http1Exchange, data: bytes) -> None:
        written.append(data)
        write(exchange, data)

    monkeypatch.setattr(Http1Exchange, "write", noted)
    texts = {}
    async with server() as url:
        for http2 in (False, True):  # where there is no such way
            async with httpx.AsyncClient(
                base_url=url, http1=not http2, http2=http2, timeout=60
            ) as client:
                answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            said = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            texts[http2] = [text_of(json.loads(one)) for one in said]
    assert texts[False] == texts[True]
    assert "".join(texts[True])
    assert len(written) >= NUM_TOKENS - 3, "all but the first and the last"
