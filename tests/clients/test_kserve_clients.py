"""KServe's InferenceRESTClient and InferenceGRPCClient (written with 0.21)."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import grpc
import httpx
import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.errors import UnsupportedProtocol
from kserve.inference_client import InferenceGRPCClient
from kserve.protocol.infer_type import RequestedOutput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.serving import RunningServer

MODEL = "qwen3-vl"
LONG = {"max_tokens": 3000, "ignore_eos": True}


@pytest.fixture
async def rest() -> AsyncIterator[InferenceRESTClient]:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
        yield client


@pytest.fixture
async def stub(server: RunningServer) -> AsyncIterator[InferenceGRPCClient]:
    async with InferenceGRPCClient(server.grpc_address) as client:
        yield client


def base64_input(picture: bytes, num: int = 1) -> InferInput:
    data = [base64.b64encode(picture).decode()] * num
    return InferInput("image", [num], "BYTES", data, {"content_type": "base64"})


def binary_input(picture: bytes, num: int = 1) -> InferInput:
    image = InferInput("image", [num], "BYTES")
    image.set_data_from_numpy(np.array([picture] * num, dtype=np.object_), binary_data=True)
    return image


async def test_rest_asks_after_the_server_s_health(
    server: RunningServer, rest: InferenceRESTClient
) -> None:
    assert await rest.is_server_live(server.http_url)
    assert await rest.is_server_ready(server.http_url)
    assert await rest.is_model_ready(server.http_url, MODEL)
    assert not await rest.is_model_ready(server.http_url, "nope")


async def test_rest_infers_from_json(
    server: RunningServer, rest: InferenceRESTClient, sample_image: bytes
) -> None:
    request = InferRequest(
        MODEL,
        [base64_input(sample_image, 2)],
        request_id="k",
        parameters={"max_tokens": 5},
        request_outputs=[RequestedOutput("text"), RequestedOutput("completion_tokens")],
    )
    response = await rest.infer(server.http_url, request, model_name=MODEL)
    assert response.id == "k"
    assert response.model_name == MODEL
    assert [output.name for output in response.outputs] == ["text", "completion_tokens"]
    assert response.get_output_by_name("completion_tokens").data == [5, 5]


async def test_rest_infers_from_binary_tensors(
    server: RunningServer, rest: InferenceRESTClient, sample_image: bytes
) -> None:
    outputs = [RequestedOutput("text", {"binary_data": True})]
    request = InferRequest(
        MODEL, [binary_input(sample_image)], request_id="b", request_outputs=outputs
    )
    response = await rest.infer(server.http_url, request, model_name=MODEL)
    [text] = response.get_output_by_name("text").as_numpy()
    assert len(text) > 10


async def test_rest_reads_refusals(
    server: RunningServer, rest: InferenceRESTClient, sample_image: bytes
) -> None:
    request = InferRequest(MODEL, [base64_input(sample_image)], parameters={"max_tokens": 0})
    with pytest.raises(httpx.HTTPStatusError, match="max_tokens is 0") as raised:
        await rest.infer(server.http_url, request, model_name=MODEL)
    assert raised.value.response.status_code == 400
    with pytest.raises(httpx.HTTPStatusError, match="'nope' is not served here"):
        await rest.infer(server.http_url, request, model_name="nope")
    with pytest.raises((httpx.HTTPStatusError, UnsupportedProtocol)):
        await rest.explain(server.http_url, model_name=MODEL, data={"instances": []})


async def test_rest_that_is_cancelled_cancels(
    server: RunningServer, rest: InferenceRESTClient, sample_image: bytes
) -> None:
    request = InferRequest(MODEL, [base64_input(sample_image, 2)], parameters=LONG)
    asking = asyncio.create_task(rest.infer(server.http_url, request, model_name=MODEL))
    await asyncio.to_thread(server.wait_until_running, 2)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.to_thread(server.wait_until_idle)


async def test_grpc_asks_after_the_server_s_health(stub: InferenceGRPCClient) -> None:
    assert await stub.is_server_live()
    assert await stub.is_server_ready()
    assert await stub.is_model_ready(MODEL)


async def test_grpc_infers(stub: InferenceGRPCClient, sample_image: bytes) -> None:
    request = InferRequest(
        MODEL,
        [InferInput("image", [1], "BYTES", [sample_image])],
        request_id="k",
        parameters={"max_tokens": 5},
    )
    response = await stub.infer(request)
    assert response.id == "k"
    assert len(response.get_output_by_name("text").as_numpy()[0]) > 5
    assert response.get_output_by_name("completion_tokens").as_numpy().tolist() == [5]


async def test_grpc_infers_from_raw_contents(
    stub: InferenceGRPCClient, sample_image: bytes
) -> None:
    response = await stub.infer(InferRequest(MODEL, [binary_input(sample_image, 2)]))
    one, two = response.get_output_by_name("text").as_numpy()
    assert one == two


async def test_grpc_reads_refusals(stub: InferenceGRPCClient, sample_image: bytes) -> None:
    image = InferInput("image", [1], "BYTES", [sample_image])
    with pytest.raises(grpc.RpcError) as raised:
        await stub.infer(InferRequest("nope", [image]))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as raised:
        await stub.infer(InferRequest(MODEL, [image], parameters={"max_tokens": 0}))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "max_tokens is 0" in raised.value.details()


async def test_grpc_that_waits_no_longer_cancels(
    server: RunningServer, stub: InferenceGRPCClient, sample_image: bytes
) -> None:
    image = InferInput("image", [1], "BYTES", [sample_image])
    with pytest.raises(grpc.RpcError) as raised:
        await stub.infer(InferRequest(MODEL, [image], parameters=LONG), timeout=0.7)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.to_thread(server.wait_until_idle)
