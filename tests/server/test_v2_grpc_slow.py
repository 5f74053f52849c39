"""gRPC clients that read slowly or never: what they cost, and whom."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc._cython.cygrpc import ExecuteBatchError

from model.serving.v2_grpc import ClientGone, send
from model.serving.v2_proto import SERVICE, message_class
from tests.server.grpc_client import OPTIONS, Stub, infer_request, text_of
from tests.server.http2_client import Http2Client
from tests.server.transport_app import Wire
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serving import RunningServer

PATIENCE_SECONDS = 1.0
LONG = {"max_tokens": {"int64_param": 3000}, "ignore_eos": {"bool_param": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with start_server("--request.send_idle_seconds", str(PATIENCE_SECONDS)) as running:
        yield running


async def stream_of(server: RunningServer, picture: bytes, *, window: int) -> Http2Client:
    """A stream of one request, by a client that reads what fits into its window and no more."""
    host, port = server.grpc_address.rsplit(":", 1)
    client = Http2Client(
        Wire(*await asyncio.open_connection(host, int(port))), acknowledges=False, window=window
    )
    await client.start()
    data = infer_request(picture, parameters=LONG).SerializeToString()
    await client.request(
        f"/{SERVICE}/ModelStreamInfer",
        struct.pack(">BI", 0, len(data)) + data,
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    return client


async def test_a_client_that_never_reads_loses_its_request_and_holds_up_nobody(
    server: RunningServer, sample_image: bytes
) -> None:
    client = await stream_of(server, sample_image, window=2000)
    await client.until(lambda: client.bodies and len(client.bodies[1]) == 2000)
    with grpc.insecure_channel(server.grpc_address, options=OPTIONS) as channel:
        answer = await asyncio.to_thread(Stub(channel).ModelInfer, infer_request(sample_image))
    assert text_of(answer)
    await asyncio.to_thread(server.wait_until_idle)
    assert f"nothing of the answer was read for {PATIENCE_SECONDS:g} s" in server.log()
    client.wire.close()


async def test_a_client_that_reads_slowly_gets_everything(
    server: RunningServer, sample_image: bytes
) -> None:
    client = await stream_of(server, sample_image, window=4000)
    while not client.ended:
        await client.read()
        if client.h2.remote_flow_control_window(1) == 0:
            await asyncio.sleep(PATIENCE_SECONDS / 20)
            client.h2.acknowledge_received_data(4000, 1)
            await client.flush()
    assert client.trailers[1]["grpc-status"] == "0"
    client.wire.close()


async def test_a_call_that_has_ended_under_a_message_is_a_client_that_left() -> None:
    """gRPC says so by an error of its own, at times before it cancels."""

    class Ended:
        async def write(self, message: object) -> None:
            raise ExecuteBatchError("execute_batch", ())

    with pytest.raises(ClientGone):
        await send(Ended(), message_class("ModelStreamInferResponse")(), 1.0)
