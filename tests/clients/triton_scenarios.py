"""What tritonclient's gRPC clients see, as JSON: python -m … SCENARIO ADDRESS IMAGE_FILE.

A process of its own, since tritonclient and KServe's SDK register the same protobuf symbols.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MODEL = "qwen3-vl"
LONG = {"max_tokens": 3000, "ignore_eos": True}


def inputs(picture: bytes, num: int = 1, prompt: str | None = None) -> list[Any]:
    image = triton.InferInput("image", [num], "BYTES")
    image.set_data_from_numpy(np.array([picture] * num, dtype=np.object_))
    if prompt is None:
        return [image]
    text = triton.InferInput("prompt", [1], "BYTES")
    text.set_data_from_numpy(np.array([prompt.encode()], dtype=np.object_))
    return [image, text]


def texts(result: triton.InferResult, name: str = "text") -> list[str]:
    return [item.decode() for item in result.as_numpy(name)]


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> list[str]:
    try:
        call(*arguments, **options)
    except InferenceServerException as e:
        return [str(e.status()), str(e.message())]
    return ["OK", ""]


def about(address: str, picture: bytes) -> dict[str, Any]:
    """What server and model say of themselves, and what is not offered."""
    with triton.InferenceServerClient(address) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL, "1"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(MODEL, as_json=True),
            "config": client.get_model_config(MODEL, as_json=True),
            "index": client.get_model_repository_index(as_json=True),
            "statistics": client.get_inference_statistics(MODEL, as_json=True),
            "unsupported": [
                refusal(client.load_model, MODEL),
                refusal(client.unload_model, MODEL),
                refusal(client.get_system_shared_memory_status),
                refusal(client.register_system_shared_memory, "a", "b", 8),
                refusal(client.unregister_system_shared_memory),
                refusal(client.get_cuda_shared_memory_status),
                refusal(client.get_trace_settings),
                refusal(client.update_trace_settings, settings={"trace_rate": "1"}),
                refusal(client.get_log_settings),
                refusal(client.update_log_settings, {"log_info": True}),
            ],
        }


def unary(address: str, picture: bytes) -> dict[str, Any]:
    """Requests with one answer, each in its own way, and refused ones."""
    with triton.InferenceServerClient(address) as client:
        result = client.infer(
            MODEL, inputs(picture, 2), request_id="7", parameters={"max_tokens": 4}
        )
        selected = client.infer(
            MODEL, inputs(picture), outputs=[triton.InferRequestedOutput("completion_tokens")]
        )
        typed = {"max_tokens": 4, "temperature": 0.5, "seed": 3, "ignore_eos": True, "stop": "§"}
        region = triton.InferInput("image", [1], "BYTES")
        region.set_shared_memory("region", 100)
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.async_infer(
            MODEL, inputs(picture), lambda result, error: answers.put((result, error))
        )
        later, error = answers.get(timeout=60)
        assert error is None, error
        return {
            "id": result.get_response().id,
            "texts": texts(result),
            "prompt_tokens": result.as_numpy("prompt_tokens").tolist(),
            "finish_reason": texts(result, "finish_reason"),
            "selected": [output.name for output in selected.get_response().outputs],
            "compressed": [
                texts(client.infer(MODEL, inputs(picture), compression_algorithm=algorithm))[0]
                for algorithm in ("gzip", "deflate")
            ],
            "asked": texts(client.infer(MODEL, inputs(picture, prompt="What color is it?")))[0],
            "later": texts(later)[0],
            "typed": client.infer(MODEL, inputs(picture), parameters=typed)
            .as_numpy("completion_tokens")
            .tolist(),
            "priority": texts(client.infer(MODEL, inputs(picture), priority=1, timeout=60_000_000))[
                0
            ],
            "unknown_model": refusal(client.infer, "nope", inputs(picture)),
            "unknown_version": refusal(client.infer, MODEL, inputs(picture), model_version="2"),
            "bad_value": refusal(client.infer, MODEL, inputs(picture), parameters={"top_p": 2.0}),
            "shared_memory": refusal(client.infer, MODEL, [region]),
        }


def stream(address: str, picture: bytes) -> dict[str, Any]:
    """Two requests on one stream, then one that is refused."""
    answers: queue.Queue[tuple[float, Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((time.monotonic(), result, error)))
        for request_id in ("a", "b"):
            client.async_stream_infer(
                MODEL, inputs(picture), request_id=request_id, enable_empty_final_response=True
            )
        deltas: dict[str, list[str]] = {"a": [], "b": []}
        times: list[float] = []
        num_final = 0
        while num_final < 2:
            moment, result, error = answers.get(timeout=60)
            assert error is None, error
            response = result.get_response()
            if response.parameters["triton_final_response"].bool_param:
                assert not response.outputs, "the final response of a stream is an empty one"
                num_final += 1
                continue
            times.append(moment)
            deltas[response.id].append(texts(result)[0])
        client.async_stream_infer("nope", inputs(picture), request_id="c")
        error = str(answers.get(timeout=60)[2])
        client.stop_stream()
        whole = texts(client.infer(MODEL, inputs(picture)))[0]
    return {"deltas": deltas, "whole": whole, "seconds": times[-1] - times[0], "error": error}


def cancel(address: str, picture: bytes) -> dict[str, Any]:
    """Every way of leaving: a call, a deadline, a stream."""
    seen: dict[str, Any] = {}
    with triton.InferenceServerClient(address) as client:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        call = client.async_infer(
            MODEL,
            inputs(picture),
            lambda result, error: answers.put((result, error)),
            parameters=LONG,
        )
        time.sleep(0.5)
        call.cancel()
        seen["call"] = str(answers.get(timeout=20)[1])
        seen["deadline"] = refusal(
            client.infer, MODEL, inputs(picture), parameters=LONG, client_timeout=0.5
        )
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(MODEL, inputs(picture), parameters=LONG)
        assert answers.get(timeout=20)[1] is None
        client.stop_stream(cancel_requests=True)
    return seen


async def aio(address: str, picture: bytes) -> dict[str, Any]:
    """The asyncio client: many at once, a stream, a refusal, a cancelled stream."""

    async def requests(**options: object) -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": MODEL, "inputs": inputs(picture), "request_id": "x", **options}

    async with triton_aio.InferenceServerClient(address) as client:
        asked = (client.infer(MODEL, inputs(picture)) for _ in range(4))
        results = await asyncio.gather(*asked)
        deltas = []
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            deltas.append(texts(result)[0])
        refused = ""
        try:
            await client.infer("nope", inputs(picture))
        except InferenceServerException as e:
            refused = str(e.message())
        endless = client.stream_infer(requests(parameters=LONG))
        async for _ in endless:
            break
        endless.cancel()
        return {
            "ready": await client.is_model_ready(MODEL),
            "texts": [texts(result)[0] for result in results],
            "deltas": deltas,
            "refused": refused,
        }


def main() -> None:
    scenario, address, path = sys.argv[1:]
    picture = Path(path).read_bytes()
    if scenario == "aio":
        seen = asyncio.run(aio(address, picture))
    else:
        scenarios = {"about": about, "unary": unary, "stream": stream, "cancel": cancel}
        seen = scenarios[scenario](address, picture)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
