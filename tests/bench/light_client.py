"""A client that costs next to nothing, to measure the server and not who asks it.

It shares two cores with the server: what a client takes to read its events, the server lacks. This
one counts events, notes when the first came, and reads only the last.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tests.bench.client import MODEL_NAME, WrongAnswer
from tests.bench.work import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from tests.bench.work import Work

EVENT: Final = b"data: "


class _Stream(asyncio.Protocol):
    """One answer of generate_stream."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.started = 0.0
        self.first_seconds: float | None = None
        self.num_events = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.started = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.num_events += data.count(EVENT)
        if self.num_events and self.first_seconds is None:
            self.first_seconds = time.perf_counter() - self.started
        self._tail = (self._tail + data)[-2048:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)

    def check(self, num_tokens: int) -> None:
        """Raise WrongAnswer unless the answer has so many tokens."""
        said = b'"completion_tokens":%d' % num_tokens
        if said not in self._tail:
            raise WrongAnswer(f"no {said.decode()} at the end: {self._tail!r}")


async def stream_at_once(url: str, pictures: Seq[bytes], work: Work) -> tuple[float, float]:
    """All pictures at the same time; tokens a second in all, median TTFT in seconds."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    assert host is not None, "a server's URL names its host"
    assert port is not None, "and its port"
    loop = asyncio.get_running_loop()
    requests = [_request(picture, work) for picture in pictures]
    started = time.perf_counter()
    connecting = (
        loop.create_connection(partial(_Stream, request), host, port) for request in requests
    )
    streams = [stream for _, stream in await asyncio.gather(*connecting)]
    await asyncio.gather(*(stream.ended for stream in streams))
    seconds = time.perf_counter() - started
    for stream in streams:
        stream.check(work.num_tokens)
    ttft = statistics.median(stream.first_seconds or seconds for stream in streams)
    return len(streams) * work.num_tokens / seconds, ttft


def _request(picture: bytes, work: Work) -> bytes:
    body = json.dumps(
        {
            "image": base64.b64encode(picture).decode(),
            "prompt": PROMPT,
            "temperature": 0,
            "max_tokens": work.num_tokens,
            "min_tokens": work.num_tokens,
            "ignore_eos": True,
        }
    )
    path = f"/v2/models/{MODEL_NAME}/generate_stream"
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
