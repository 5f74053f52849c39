"""A server that ends behind a load balancer that has looked away: its clients lose no request.

The load balancer is as kube-proxy: it chooses for a new connection, and leaves the others where
they are.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest

from model.serving.v2_proto import message_class
from tests.server.grpc_client import Stub, infer_request, text_of
from tests.serving import RunningServer, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNREADY_SECONDS = 3.0
NUM_CLIENTS = 4
STEADY_SECONDS = 1.0


class Balancer:
    """Leads new connections to where it is told; runs in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen; every connection is cut at the end."""
        listening, stopped = threading.Event(), asyncio.Event()

        async def run() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            listening.set()
            await stopped.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        thread = threading.Thread(target=self._loop.run_until_complete, args=(run(),))
        thread.start()
        listening.wait()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(stopped.set)
            thread.join()
            self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self.target)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(_pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
    finally:
        sink.close()


def http_client(version: int) -> Callable[[Balancer, bytes], Iterator[str]]:
    """One kept connection over HTTP of this version."""

    def answers(balancer: Balancer, picture: bytes) -> Iterator[str]:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{balancer.port}",
            http1=version == 1,
            http2=version == 2,
            timeout=60,
            trust_env=False,
        ) as client:
            while True:
                answer = client.post(
                    "/api/v1/describe", files={"image": picture}, data={"max_tokens": "4"}
                )
                answer.raise_for_status()
                yield answer.json()["description"]

    return answers


def grpc_client(balancer: Balancer, picture: bytes) -> Iterator[str]:
    """One kept channel."""
    tokens = message_class("InferParameter")(int64_param=4)
    request = infer_request(picture, parameters={"max_tokens": tokens})
    own = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(f"127.0.0.1:{balancer.port}", own) as channel:
        stub = Stub(channel)
        while True:
            yield text_of(stub.ModelInfer(request, timeout=60))


@pytest.fixture(scope="module")
def second() -> Iterator[RunningServer]:
    """The one that stays."""
    with start_server() as server:
        yield server


@pytest.mark.parametrize(
    ("client", "port_of"),
    [
        pytest.param(http_client(1), lambda one: one.http_port, id="HTTP/1.1"),
        pytest.param(http_client(2), lambda one: one.http_port, id="HTTP/2"),
        pytest.param(grpc_client, lambda one: one.grpc_port, id="gRPC"),
    ],
)
def test_clients_with_kept_connections_move_on_and_lose_nothing(
    client: Callable[[Balancer, bytes], Iterator[str]],
    port_of: Callable[[RunningServer], int],
    second: RunningServer,
    sample_image: bytes,
) -> None:
    ended = threading.Event()

    def ask() -> int:
        """Ask one request after the other; how many were answered."""
        answers = client(balancer, sample_image)
        num = 0
        while not ended.is_set():
            assert next(answers)
            num += 1
        answers.close()
        return num

    with start_server("--server.unready-seconds", str(UNREADY_SECONDS)) as first:
        balancer = Balancer(port_of(first))
        with balancer.running(), ThreadPoolExecutor(NUM_CLIENTS) as threads:
            asking = [threads.submit(ask) for _ in range(NUM_CLIENTS)]
            try:
                time.sleep(STEADY_SECONDS)
                before = second.metric("finished_sequences_total")
                balancer.target = port_of(second)
                first.process.send_signal(signal.SIGTERM)
                assert first.process.wait(60) == 0
                time.sleep(STEADY_SECONDS)
            finally:
                ended.set()
            assert all(one.result(60) > 1 for one in asking)
    assert second.metric("finished_sequences_total") > before
