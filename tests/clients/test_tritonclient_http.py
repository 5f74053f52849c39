"""tritonclient.http and tritonclient.http.aio (written with 2.73), against the real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.serving import RunningServer

MODEL = "qwen3-vl"
LONG = {"max_tokens": 3000, "ignore_eos": True}
EVERY_OUTPUT = ["text", "finish_reason", "prompt_tokens", "completion_tokens"]


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.http_address, network_timeout=60) as one:
        yield one


@pytest.fixture
async def aio(server: RunningServer) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(server.http_address) as one:
        yield one


def inputs(
    picture: bytes, num: int = 1, prompt: str | None = None, *, binary: bool = True
) -> list[triton.InferInput]:
    image = triton.InferInput("image", [num], "BYTES")
    image.set_data_from_numpy(np.array([picture] * num, dtype=np.object_), binary_data=binary)
    if prompt is None:
        return [image]
    text = triton.InferInput("prompt", [1], "BYTES")
    text.set_data_from_numpy(np.array([prompt.encode()], dtype=np.object_), binary_data=binary)
    return [image, text]


def texts(result: triton.InferResult, name: str = "text") -> list[str]:
    return [item.decode() if isinstance(item, bytes) else item for item in result.as_numpy(name)]


def test_what_the_server_and_the_model_say_of_themselves(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(MODEL)
    assert metadata["versions"] == ["1"]
    assert metadata["platform"]
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "prompt"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == EVERY_OUTPUT
    config = client.get_model_config(MODEL, "1")
    assert config["max_batch_size"] == 0
    assert [tensor["name"] for tensor in config["input"]] == ["image", "prompt"]
    index = client.get_model_repository_index()
    assert index == [{"name": MODEL, "version": "1", "state": "READY"}]


def test_statistics_count_what_was_asked(
    client: triton.InferenceServerClient, sample_image: bytes
) -> None:
    def count() -> int:
        [stats] = client.get_inference_statistics(MODEL)["model_stats"]
        return int(stats["inference_stats"]["success"]["count"])

    before = count()
    client.infer(MODEL, inputs(sample_image, 2), parameters={"max_tokens": 2})
    assert count() == before + 1
    [everything] = client.get_inference_statistics()["model_stats"]
    assert everything["name"] == MODEL
    assert everything["inference_count"] >= 2


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary outputs", "JSON outputs"])
def test_raw_bytes_go_in_and_the_wanted_outputs_come_out(
    client: triton.InferenceServerClient,
    sample_image: bytes,
    compression: str | None,
    binary_out: bool,
) -> None:
    result = client.infer(
        MODEL,
        inputs(sample_image),
        request_id="77",
        outputs=[
            triton.InferRequestedOutput(name, binary_data=binary_out)
            for name in ("completion_tokens", "text")
        ],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    response = result.get_response()
    assert response["id"] == "77"
    assert [output["name"] for output in response["outputs"]] == ["completion_tokens", "text"]
    assert result.as_numpy("completion_tokens").dtype == np.int32
    assert len(texts(result)[0]) > 10


def test_text_prompts_may_be_json(
    client: triton.InferenceServerClient, sample_image: bytes
) -> None:
    raw = inputs(sample_image)
    question = inputs(sample_image, prompt="What color is the background?", binary=True)
    as_json = triton.InferInput("prompt", [1], "BYTES")
    as_json.set_data_from_numpy(
        np.array([b"What color is the background?"], dtype=np.object_), binary_data=False
    )
    binary = texts(client.infer(MODEL, question))
    assert texts(client.infer(MODEL, [*raw, as_json])) == binary
    assert texts(client.infer(MODEL, raw)) != binary


def test_a_batch(client: triton.InferenceServerClient, sample_image: bytes) -> None:
    result = client.infer(MODEL, inputs(sample_image, 3), parameters={"max_tokens": 5})
    assert result.as_numpy("text").shape == (3,)
    assert len(set(texts(result))) == 1
    assert result.as_numpy("completion_tokens").tolist() == [5, 5, 5]
    assert texts(result, "finish_reason") == ["length"] * 3


def test_requests_of_a_pool_are_answered_each_with_its_own(
    server: RunningServer, sample_image: bytes
) -> None:
    with triton.InferenceServerClient(server.http_address, concurrency=4) as client:
        asked = [
            client.async_infer(
                MODEL, inputs(sample_image), request_id=str(i), parameters={"max_tokens": i + 1}
            )
            for i in range(8)
        ]
        results = [one.get_result() for one in asked]
    assert [result.get_response()["id"] for result in results] == [str(i) for i in range(8)]
    assert [result.as_numpy("completion_tokens")[0] for result in results] == list(range(1, 9))


@pytest.mark.parametrize(
    ("parameters", "reason", "num_tokens"),
    [
        pytest.param({"max_tokens": 3}, "length", 3, id="an integer"),
        pytest.param({"max_tokens": 3, "temperature": 0.7, "seed": 1}, "length", 3, id="a float"),
        pytest.param({"max_tokens": 200, "ignore_eos": True}, "length", 200, id="a truth value"),
        pytest.param({"stop": " "}, "stop", None, id="a string"),
    ],
)
def test_parameters_have_their_types(
    client: triton.InferenceServerClient,
    sample_image: bytes,
    parameters: dict[str, Any],
    reason: str,
    num_tokens: int | None,
) -> None:
    result = client.infer(MODEL, inputs(sample_image), parameters=parameters)
    assert texts(result, "finish_reason") == [reason]
    if num_tokens is not None:
        assert result.as_numpy("completion_tokens").tolist() == [num_tokens]


def test_priority_and_timeout_are_taken(
    client: triton.InferenceServerClient, sample_image: bytes
) -> None:
    result = client.infer(MODEL, inputs(sample_image), priority=2, timeout=60_000_000)
    assert len(texts(result)[0]) > 10


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        pytest.param({"model_name": "nope"}, "404", "'nope' is not served here", id="model"),
        pytest.param({"model_version": "9"}, "404", "version '9'", id="version"),
        pytest.param({"parameters": {"max_tokens": 0}}, "400", "max_tokens is 0", id="value"),
        pytest.param({"parameters": {"max_token": 1}}, "400", "'max_token'", id="parameter"),
        pytest.param(
            {"outputs": [triton.InferRequestedOutput("logits")]}, "400", "'logits'", id="output"
        ),
    ],
)
def test_refusals_are_read(
    client: triton.InferenceServerClient,
    sample_image: bytes,
    change: dict[str, Any],
    status: str,
    text: str,
) -> None:
    arguments = {"model_name": MODEL, "inputs": inputs(sample_image), **change}
    with pytest.raises(InferenceServerException, match=text) as raised:
        client.infer(**arguments)
    assert raised.value.status() == status


UNSUPPORTED: dict[str, Callable[[triton.InferenceServerClient], object]] = {
    "load": lambda client: client.load_model(MODEL),
    "unload": lambda client: client.unload_model(MODEL),
    "shared memory": lambda client: client.get_system_shared_memory_status(),
    "registering it": lambda client: client.register_system_shared_memory("a", "b", 8),
    "unregistering it": lambda client: client.unregister_system_shared_memory(),
    "CUDA's": lambda client: client.get_cuda_shared_memory_status(),
    "registering CUDA's": lambda client: client.register_cuda_shared_memory("a", b"b", 0, 8),
    "trace settings": lambda client: client.get_trace_settings(),
    "changing them": lambda client: client.update_trace_settings(settings={"trace_rate": "1"}),
    "a model's": lambda client: client.get_trace_settings(MODEL),
    "log settings": lambda client: client.get_log_settings(),
    "changing those": lambda client: client.update_log_settings({"log_info": True}),
}


@pytest.mark.parametrize("call", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_what_is_not_offered_says_so(
    client: triton.InferenceServerClient,
    call: Callable[[triton.InferenceServerClient], object],
) -> None:
    with pytest.raises(InferenceServerException, match="unsupported: ") as raised:
        call(client)
    assert raised.value.status() == "501"


def test_tensors_in_shared_memory_are_refused(
    client: triton.InferenceServerClient, sample_image: bytes
) -> None:
    image = triton.InferInput("image", [1], "BYTES")
    image.set_shared_memory("region", 100)
    text = triton.InferRequestedOutput("text")
    text.set_shared_memory("region", 100)
    for arguments in ({"inputs": [image]}, {"inputs": inputs(sample_image), "outputs": [text]}):
        with pytest.raises(InferenceServerException, match="not in shared memory") as raised:
            client.infer(MODEL, **arguments)
        assert raised.value.status() == "501"


def test_a_client_that_waits_no_longer_cancels(server: RunningServer, sample_image: bytes) -> None:
    with triton.InferenceServerClient(server.http_address, network_timeout=1.0) as impatient:
        with pytest.raises(TimeoutError):
            impatient.infer(MODEL, inputs(sample_image, 3), parameters=LONG)
        server.wait_until_idle()


# asyncio


async def test_aio_asks_many_at_once(
    aio: triton_aio.InferenceServerClient, sample_image: bytes
) -> None:
    assert await aio.is_server_live()
    assert await aio.is_server_ready()
    assert await aio.is_model_ready(MODEL)
    assert (await aio.get_model_metadata(MODEL))["name"] == MODEL
    assert (await aio.get_model_config(MODEL))["name"] == MODEL
    results = await asyncio.gather(
        *(
            aio.infer(MODEL, inputs(sample_image), request_id=str(i), parameters={"max_tokens": 4})
            for i in range(4)
        )
    )
    assert len({texts(result)[0] for result in results}) == 1
    assert [result.get_response()["id"] for result in results] == list("0123")


async def test_aio_reads_refusals(
    aio: triton_aio.InferenceServerClient, sample_image: bytes
) -> None:
    with pytest.raises(InferenceServerException, match="'nope' is not served here"):
        await aio.infer("nope", inputs(sample_image))
    with pytest.raises(InferenceServerException, match="unsupported: "):
        await aio.load_model(MODEL)


async def test_aio_that_is_cancelled_cancels(
    server: RunningServer, aio: triton_aio.InferenceServerClient, sample_image: bytes
) -> None:
    asking = asyncio.create_task(aio.infer(MODEL, inputs(sample_image), parameters=LONG))
    await asyncio.to_thread(server.wait_until_running, 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.to_thread(server.wait_until_idle)
