"""A client that costs next to nothing, to measure the server and not who asks it.

It shares two cores with the server: what a client takes to read its events, the server lacks, and
being woken for each of them is the server's own send call that takes longer. This one notes when
the first piece came, asks the kernel not to wake it before the end, counts the events then, and
reads only the last.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tests.bench.client import MODEL_NAME, WrongAnswer
from tests.bench.streams import Streams, keep_running
from tests.bench.work import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from tests.bench.work import Work

EVENT: Final = b"data: "
# More than any answer here: the end of the stream wakes the client, and nothing before it.
SLEEP_BYTES: Final = 256 * 1024


class _Stream(asyncio.Protocol):
    """One answer of generate_stream."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self._transport: asyncio.Transport
        self.started = 0.0
        self.first_byte: float | None = None
        self.num_events = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = transport  # type: ignore[assignment]
        self.started = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.num_events += data.count(EVENT)
        if self.num_events and self.first_byte is None:
            self.first_byte = time.monotonic()
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, SLEEP_BYTES)
        self._tail = (self._tail + data)[-2048:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)

    def check(self, num_tokens: int) -> float:
        """When the first piece came. Raises WrongAnswer unless the answer has so many tokens."""
        said = b'"completion_tokens":%d' % num_tokens
        if said not in self._tail:
            raise WrongAnswer(f"no {said.decode()} at the end: {self._tail!r}")
        assert self.first_byte is not None, "an answer with tokens has a first piece"
        return self.first_byte


async def stream(
    url: str, pictures: Seq[bytes], work: Work, limit: int | None = None
) -> tuple[Streams, list[float]]:
    """All pictures at the same time, or so many of them.

    returns the streams, and when the first piece of each came, on time.monotonic
    """
    host, port = urlsplit(url).hostname, urlsplit(url).port
    assert host is not None, "a server's URL names its host"
    assert port is not None, "and its port"

    async def ask(request: bytes) -> _Stream:
        make = partial(_Stream, request)
        _, asked = await asyncio.get_running_loop().create_connection(make, host, port)
        await asked.ended
        return asked

    lengths = work.lengths(len(pictures))
    requests = map(_request, pictures, lengths)
    asks = [partial(ask, request) for request in requests]
    started = time.monotonic()
    asked = await keep_running(limit or len(pictures), asks)
    seconds = time.monotonic() - started
    first_bytes = [one.check(length) for one, length in zip(asked, lengths, strict=True)]
    ttft = (first - one.started for first, one in zip(first_bytes, asked, strict=True))
    return Streams(sum(lengths) / seconds, tuple(ttft)), first_bytes


def _request(picture: bytes, num_tokens: int) -> bytes:
    body = json.dumps(
        {
            "image": base64.b64encode(picture).decode(),
            "prompt": PROMPT,
            "temperature": 0,
            "max_tokens": num_tokens,
            "min_tokens": num_tokens,
            "ignore_eos": True,
        }
    )
    path = f"/v2/models/{MODEL_NAME}/generate_stream"
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
