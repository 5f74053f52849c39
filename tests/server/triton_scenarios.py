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


def inputs(picture: bytes, num: int = 1, prompt: str | None = None) -> list[Any]:
    image = triton.InferInput("image", [num], "BYTES")
    image.set_data_from_numpy(np.array([picture] * num, dtype=np.object_))
    if prompt is None:
        return [image]
    text = triton.InferInput("prompt", [1], "BYTES")
    text.set_data_from_numpy(np.array([prompt.encode()], dtype=np.object_))
    return [image, text]


def texts(result: triton.InferResult) -> list[str]:
    return [item.decode() for item in result.as_numpy("text")]


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> list[str]:
    try:
        call(*arguments, **options)
    except InferenceServerException as e:
        return [str(e.status()), str(e.message())]
    return ["OK", ""]


def unary(address: str, picture: bytes) -> dict[str, Any]:
    with triton.InferenceServerClient(address) as client:
        result = client.infer(
            MODEL, inputs(picture, 2), request_id="7", parameters={"max_tokens": 4}
        )
        selected = client.infer(
            MODEL, inputs(picture), outputs=[triton.InferRequestedOutput("completion_tokens")]
        )
        gzipped = client.infer(MODEL, inputs(picture), compression_algorithm="gzip")
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL, "1"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(MODEL, as_json=True),
            "config": client.get_model_config(MODEL, as_json=True),
            "index": client.get_model_repository_index(as_json=True),
            "statistics": client.get_inference_statistics(MODEL, as_json=True),
            "id": result.get_response().id,
            "texts": texts(result),
            "prompt_tokens": result.as_numpy("prompt_tokens").tolist(),
            "finish_reason": [item.decode() for item in result.as_numpy("finish_reason")],
            "selected": [output.name for output in selected.get_response().outputs],
            "gzipped": texts(gzipped),
            "unknown_model": refusal(client.infer, "nope", inputs(picture)),
            "unknown_version": refusal(client.infer, MODEL, inputs(picture), model_version="2"),
            "load": refusal(client.load_model, MODEL),
            "shared_memory": refusal(client.get_system_shared_memory_status),
        }


def stream(address: str, picture: bytes) -> dict[str, Any]:
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


async def aio(address: str, picture: bytes) -> dict[str, Any]:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": MODEL, "inputs": inputs(picture), "request_id": "x"}

    async with triton_aio.InferenceServerClient(address) as client:
        asked = (client.infer(MODEL, inputs(picture)) for _ in range(4))
        results = await asyncio.gather(*asked)
        deltas = []
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            deltas.append(texts(result)[0])
        return {"texts": [texts(result)[0] for result in results], "deltas": deltas}


def main() -> None:
    scenario, address, path = sys.argv[1:]
    picture = Path(path).read_bytes()
    if scenario == "aio":
        seen = asyncio.run(aio(address, picture))
    else:
        seen = {"unary": unary, "stream": stream}[scenario](address, picture)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
