"""The V2 protocol over HTTP, against the real server: raw requests, clients that go away."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.serving import RunningServer

MODEL = "qwen3-vl"
PATH = f"/v2/models/{MODEL}"
LONG = {"max_tokens": 3000, "ignore_eos": True}


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http_url, timeout=60) as http:
        yield http


def image_input(picture: bytes, **changes: object) -> dict[str, Any]:
    return {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(picture).decode()],
        "parameters": {"content_type": "base64"},
        **changes,
    }


def body(picture: bytes, *others: object, **members: object) -> dict[str, Any]:
    return {"inputs": [image_input(picture), *others], **members}


def binary_body(picture: bytes) -> tuple[bytes, dict[str, str]]:
    raw = struct.pack("<I", len(picture)) + picture
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


def values(answer: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


def test_health(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get(f"{PATH}/ready").json() == {"name": MODEL, "ready": True}
    assert client.get("/v2/models").json() == {"models": [MODEL]}


def test_head_asks_what_get_does_and_no_more(client: httpx.Client) -> None:
    for path in ("/v2/health/ready", "/v2/models/qwen3-vl", "/v2/models/none"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    answer = client.head("/v2/models/qwen3-vl/infer")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert client.post("/v2/health/ready").headers["allow"] == "GET, HEAD"


def test_json_with_base64_and_no_content_type(client: httpx.Client, sample_image: bytes) -> None:
    answer = client.post(f"{PATH}/infer", content=json.dumps(body(sample_image)))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert b"null" not in answer.content
    assert list(answer.json()) == ["model_name", "model_version", "outputs"]


def test_the_version_may_be_named(client: httpx.Client, sample_image: bytes) -> None:
    assert client.post(f"{PATH}/versions/1/infer", json=body(sample_image)).status_code == 200
    answer = client.post(f"{PATH}/versions/2/infer", json=body(sample_image))
    assert (answer.status_code, "version '2'" in answer.json()["error"]) == (404, True)


def test_several_images_in_one_prompt(client: httpx.Client, sample_image: bytes) -> None:
    data = [[base64.b64encode(sample_image).decode()] * 2]
    one = values(client.post(f"{PATH}/infer", json=body(sample_image)).json())
    two = values(
        client.post(
            f"{PATH}/infer", json={"inputs": [image_input(b"", shape=[1, 2], data=data)]}
        ).json()
    )
    assert two["prompt_tokens"][0] > one["prompt_tokens"][0]


def test_every_picture_may_have_its_own_prompt(client: httpx.Client, sample_image: bytes) -> None:
    data = [base64.b64encode(sample_image).decode()] * 2
    prompts = ["Describe this image.", "What is the background colour?"]
    request = {
        "inputs": [
            image_input(b"", shape=[2], data=data),
            {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": prompts},
        ]
    }
    answers = values(client.post(f"{PATH}/infer", json=request).json())["text"]
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("encode", "encoding"),
    [
        pytest.param(gzip.compress, "gzip", id="gzip"),
        pytest.param(zlib.compress, "deflate", id="deflate with zlib's header"),
        pytest.param(lambda data: zlib.compress(data, wbits=-15), "deflate", id="raw deflate"),
    ],
)
def test_compressed_bodies(
    client: httpx.Client, sample_image: bytes, encode: Callable[[bytes], bytes], encoding: str
) -> None:
    content, headers = binary_body(sample_image)
    headers["Content-Encoding"] = encoding
    assert client.post(f"{PATH}/infer", content=encode(content), headers=headers).is_success


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        pytest.param("GET", "/v2/models/nope", 404, "'nope'", id="unknown model"),
        pytest.param("GET", f"{PATH}/versions/7/config", 404, "'7'", id="unknown version"),
        pytest.param("GET", "/v2/nope", 404, "no such route", id="unknown route"),
        pytest.param("GET", f"{PATH}/infer", 405, "not allowed", id="wrong method"),
        pytest.param("POST", "/v2/repository/models/m/load", 501, "unsupported", id="load"),
        pytest.param("GET", "/v2/cudasharedmemory/status", 501, "unsupported", id="shared memory"),
        pytest.param("POST", "/v2/logging", 501, "unsupported", id="logging"),
    ],
)
def test_errors_are_told_in_one_form(
    client: httpx.Client, method: str, path: str, status: int, text: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert text in answer.json()["error"]


def png(size: tuple[int, int]) -> bytes:
    encoded = io.BytesIO()
    Image.new("1", size).save(encoded, "PNG")
    return encoded.getvalue()


BAD_PICTURES = {
    "text instead of an image": b"this is not a picture",
    "nothing at all": b"",
    "a 20,000-pixel side": png((20_000, 10)),
    "a bomb PNG": png((30_000, 30_000)),
    "aspect ratio 300:1": png((3000, 10)),
}


@pytest.mark.parametrize("picture", BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
def test_bad_pictures(server: RunningServer, client: httpx.Client, picture: bytes) -> None:
    answer = client.post(f"{PATH}/infer", json=body(picture))
    assert answer.status_code == 400, answer.text
    assert "0x" not in answer.text
    server.wait_until_idle()


def test_a_truncated_jpeg(client: httpx.Client, sample_image: bytes) -> None:
    answer = client.post(f"{PATH}/infer", json=body(sample_image[: len(sample_image) // 2]))
    assert answer.status_code == 400, answer.text


def test_one_bad_picture_refuses_the_batch(
    server: RunningServer, client: httpx.Client, sample_image: bytes
) -> None:
    data = [base64.b64encode(item).decode() for item in (sample_image, b"nope", sample_image)]
    request = {"inputs": [image_input(b"", shape=[3], data=data)]}
    assert client.post(f"{PATH}/infer", json=request).status_code == 400
    server.wait_until_idle()


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        pytest.param({"max_tokens": 0}, "max_tokens is 0", id="0"),
        pytest.param({"max_tokens": -1}, "max_tokens is -1", id="-1"),
        pytest.param({"max_tokens": 10**9}, "max_tokens is 1000000000", id="10^9"),
        pytest.param({"max_tokens": "9"}, "must be an integer", id="a string"),
        pytest.param({"max_token": 9}, "unknown parameter 'max_token'", id="unknown"),
        pytest.param({"min_pixels": 10**12}, "min_pixels is 1000000000000", id="huge min_pixels"),
        pytest.param({"temperature": 1e300}, "temperature is 1e+300", id="too hot"),
    ],
)
def test_bad_parameters(
    client: httpx.Client, sample_image: bytes, parameters: dict[str, Any], text: str
) -> None:
    answer = client.post(f"{PATH}/infer", json=body(sample_image, parameters=parameters))
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]


def test_a_prompt_that_is_too_long(client: httpx.Client, sample_image: bytes) -> None:
    prompt = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["word " * 6000]}
    answer = client.post(f"{PATH}/infer", json=body(sample_image, prompt))
    assert answer.status_code == 400
    assert "at most" in answer.json()["error"]


def test_bad_binary_bodies(client: httpx.Client, sample_image: bytes) -> None:
    content, headers = binary_body(sample_image)
    assert client.post(f"{PATH}/infer", content=content).status_code == 400
    lying = content.replace(struct.pack("<I", len(sample_image)), b"\xff\xff\xff\x7f", 1)
    answer = client.post(f"{PATH}/infer", content=lying, headers=headers)
    assert (answer.status_code, "claims 2147483647 bytes" in answer.text) == (400, True)
    for length in ("x", "-5", "99999999"):
        headers["Inference-Header-Content-Length"] = length
        answer = client.post(f"{PATH}/infer", content=content, headers=headers)
        assert (answer.status_code, length in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        pytest.param(b"{", {}, 400, id="invalid JSON"),
        pytest.param(b"", {}, 400, id="no body"),
        pytest.param(b"\xff\xfe", {}, 400, id="no UTF-8"),
        pytest.param(b"{}", {"Content-Encoding": "br"}, 415, id="an unknown encoding"),
        pytest.param(gzip.compress(b"{}")[:-4], {"Content-Encoding": "gzip"}, 400, id="cut gzip"),
        pytest.param(
            gzip.compress(bytes(10**8)), {"Content-Encoding": "gzip"}, 413, id="a gzip bomb"
        ),
    ],
)
def test_bad_bodies(
    client: httpx.Client, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.post(f"{PATH}/infer", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(client: httpx.Client, chunked: bool) -> None:
    piece, num = b" " * (1 << 20), 70
    content = (piece for _ in range(num)) if chunked else piece * num
    answer = client.post(f"{PATH}/infer", content=content)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert "the limit is 67108864" in answer.json()["error"]


def test_a_large_body_does_not_hold_up_the_others(
    server: RunningServer, client: httpx.Client
) -> None:
    content, headers = binary_body(bytes(60 << 20))
    url, longest = f"{server.http_url}{PATH}/infer", 0.0
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx.post, url, content=content, headers=headers, timeout=60)
        while not answer.done():
            started = time.monotonic()
            assert client.get("/v2/health/live").is_success
            longest = max(longest, time.monotonic() - started)
    assert answer.result().status_code == 400, "60 MiB of zeros are no picture"
    assert longest < 1.0


# The generate extension


def test_generate(client: httpx.Client, sample_image: bytes) -> None:
    request = {"image": base64.b64encode(sample_image).decode(), "id": "g"}
    answer = client.post(f"{PATH}/generate", json=request).json()
    whole = values(client.post(f"{PATH}/infer", json=body(sample_image)).json())
    assert answer["id"] == "g"
    assert answer["text"] == answer["text_output"] == whole["text"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["completion_tokens"] == whole["completion_tokens"][0]


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line:
            assert line.startswith("data: ")
            yield json.loads(line.removeprefix("data: "))


def test_generate_stream_comes_token_by_token(client: httpx.Client, sample_image: bytes) -> None:
    request = {"image": base64.b64encode(sample_image).decode(), "id": "s"}
    whole = client.post(f"{PATH}/generate", json=request).json()
    seen, times = [], []
    with client.stream("POST", f"{PATH}/generate_stream", json=request) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for event in events(answer.iter_lines()):
            seen.append(event)
            times.append(time.monotonic())
    assert "".join(event["text"] for event in seen) == whole["text"]
    assert len(seen) > 5
    assert len(set(times)) > 5
    assert all("finish_reason" not in event for event in seen[:-1])
    assert seen[-1]["finish_reason"] == "stop"
    assert seen[-1]["completion_tokens"] == whole["completion_tokens"]
    assert {event["id"] for event in seen} == {"s"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param({"image": "§"}, "not valid base64", id="no base64"),
        pytest.param({"image": ["AAAA", "AAAA"]}, "one sequence", id="a batch"),
        pytest.param({"image": "AAAA"}, "", id="no picture"),
        pytest.param({"max_tokens": 0}, "max_tokens is 0", id="no tokens"),
    ],
)
def test_a_bad_stream_request_is_a_status(
    client: httpx.Client, sample_image: bytes, change: dict[str, Any], text: str
) -> None:
    request = {"image": base64.b64encode(sample_image).decode(), **change}
    answer = client.post(f"{PATH}/generate_stream", json=request)
    assert answer.status_code == 400
    assert text in answer.json()["error"]


# Clients that go away


@pytest.mark.parametrize("route", ["infer", "generate"])
def test_a_unary_client_that_goes_cancels_its_batch(
    server: RunningServer, sample_image: bytes, route: str
) -> None:
    data = [base64.b64encode(sample_image).decode()] * 3
    if route == "infer":
        request = {"inputs": [image_input(b"", shape=[3], data=data)], "parameters": LONG}
    else:
        request = {"image": data, "parameters": LONG}
    content = json.dumps(request).encode()
    with httpx.Client(base_url=server.http_url) as client:
        timeout = httpx.Timeout(10, read=1.0)
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{PATH}/{route}", content=content, timeout=timeout)
    server.wait_until_idle()


def test_a_stream_that_is_closed_cancels_its_sequence(
    server: RunningServer, client: httpx.Client, sample_image: bytes
) -> None:
    request = {"image": base64.b64encode(sample_image).decode(), "parameters": LONG}
    with client.stream("POST", f"{PATH}/generate_stream", json=request) as answer:
        seen = events(answer.iter_lines())
        next(seen)
        server.wait_until_running(1)
    server.wait_until_idle()
