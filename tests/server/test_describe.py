"""POST /api/v1/describe as people call it with curl, and what it says when they call it wrong."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from model.demo import SAMPLES_DIR

if TYPE_CHECKING:
    from tests.serving import RunningServer

ROUTE = "/api/v1/describe"


def captions() -> list[dict[str, str]]:
    lines = (SAMPLES_DIR / "captions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "caption", captions(), ids=lambda caption: f"{caption['image']}: {caption['prompt']}"
)
def test_samples_are_described_as_they_are(server: RunningServer, caption: dict[str, str]) -> None:
    picture = (SAMPLES_DIR / caption["image"]).read_bytes()
    response = httpx.post(
        server.http_url + ROUTE,
        files={"image": (caption["image"], picture)},
        data={"prompt": caption["prompt"]},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    assert response.json()["description"] == caption["answer"]


def test_the_answer_carries_usage_sizes_and_timings(
    server: RunningServer, sample_image: bytes
) -> None:
    answer = post_form(server, sample_image).json()
    usage, [image] = answer["usage"], answer["images"]
    assert answer["finish_reason"] == "stop"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["image_tokens"] == image["tokens"]
    assert image["tokens"] == image["seen_width"] * image["seen_height"] // 32**2
    assert (image["width"], image["height"]) == Image.open(io.BytesIO(sample_image)).size
    timings = answer["timings"]
    assert 0 < timings["first_text_ms"] <= timings["generate_ms"] < timings["total_ms"]


def test_json_says_the_same_as_a_form(server: RunningServer, sample_image: bytes) -> None:
    text = base64.b64encode(sample_image).decode()
    expected = post_form(server, sample_image).json()["description"]
    for image in (text, [text], f"data:image/jpeg;base64,{text}"):
        response = httpx.post(server.http_url + ROUTE, json={"image": image}, timeout=60)
        assert response.status_code == 200, response.text
        assert response.json()["description"] == expected


def test_parameters_of_a_form_are_numbers_and_truth_values(
    server: RunningServer, sample_image: bytes
) -> None:
    answer = post_form(
        server, sample_image, max_tokens="7", temperature="0.5", seed="1", ignore_eos="true"
    ).json()
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["finish_reason"] == "length"


def test_a_seed_repeats_itself(server: RunningServer, sample_image: bytes) -> None:
    sampled = {"temperature": "5.0", "max_tokens": "20", "ignore_eos": "true"}
    first, again, other = (
        post_form(server, sample_image, seed=seed, **sampled).json()["description"]
        for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_a_stop_string_ends_the_text_before_it(server: RunningServer, sample_image: bytes) -> None:
    whole = post_form(server, sample_image).json()["description"]
    stop = whole.split()[3]
    answer = post_form(server, sample_image, stop=stop).json()
    assert answer["description"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_two_pictures_are_one_prompt(server: RunningServer, sample_image: bytes) -> None:
    files = [("image", sample_image), ("image", sample_image)]
    response = httpx.post(server.http_url + ROUTE, files=files, timeout=60)
    assert response.status_code == 200, response.text
    assert len(response.json()["images"]) == 2


async def test_16_at_once_are_answered_each(server: RunningServer, sample_image: bytes) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        responses = await asyncio.gather(
            *(
                client.post(server.http_url + ROUTE, files={"image": sample_image})
                for _ in range(16)
            )
        )
    assert {response.json()["description"] for response in responses} == {
        post_form(server, sample_image).json()["description"]
    }


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        pytest.param({"data": {"prompt": "x"}}, 415, "Content-Type is", id="a urlencoded form"),
        pytest.param({"files": {"prompt": (None, "x")}}, 400, "image is missing", id="no image"),
        pytest.param(
            {"files": {"image": (None, "photo.jpg")}}, 400, "with the @", id="the @ forgotten"
        ),
        pytest.param(
            {"files": {"image": b"some text"}}, 400, "not a JPEG, PNG, WebP or GIF", id="text"
        ),
        pytest.param({"files": {"image": b""}}, 400, "image", id="an empty file"),
        pytest.param(
            {"files": {"image": b"x", "picture": b"x"}}, 400, "unknown field 'picture'", id="field"
        ),
        pytest.param(
            {"files": [("image", b"x")] * 10},
            400,
            "prompt has 10 images; the limit is 8",
            id="10 images",
        ),
        pytest.param({"json": {}}, 400, "image is missing", id="JSON without an image"),
        pytest.param({"json": {"image": 5}}, 400, "image is a number", id="a number"),
        pytest.param({"json": {"image": "@@@"}}, 400, "not base64", id="bad base64"),
        pytest.param(
            {"json": {"image": "https://example.com/a.jpg"}}, 400, "fetching is off", id="a URL"
        ),
        pytest.param({"json": [1]}, 400, "must be a JSON object", id="a JSON list"),
        pytest.param({"content": b"{"}, 400, "not valid JSON", id="broken JSON"),
        pytest.param(
            {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=y"}},
            400,
            "form cannot be read",
            id="a broken form",
        ),
        pytest.param(
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            400,
            "form cannot be read",
            id="a form without a boundary",
        ),
        pytest.param(
            {"content": b"x", "headers": {"content-type": "text/plain"}},
            415,
            "Content-Type is 'text/plain'",
            id="text/plain",
        ),
    ],
)
def test_a_wrong_request_is_told_so(
    server: RunningServer, request_: dict[str, Any], status: int, message: str
) -> None:
    response = httpx.post(server.http_url + ROUTE, timeout=30, **request_)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tokens", "0", "max_tokens is 0; it must be from 1"),
        ("max_tokens", "-1", "max_tokens is -1; it must be from 1"),
        ("max_tokens", "1000000000", "max_tokens is 1000000000; it must be"),
        ("max_tokens", "1000000", "max_tokens is 1000000; this model's context has 4096 tokens"),
        ("max_tokens", "ten", "max_tokens is 'ten'; it must be an integer"),
        ("temperature", "-0.1", "temperature is -0.1; it must be from 0"),
        ("top_p", "0", "top_p is 0"),
        ("seed", "-1", "seed is -1"),
        ("max_pixels", "100000000", "max_pixels is 100000000; it must be from 1 to"),
        ("ignore_eos", "maybe", "ignore_eos is 'maybe'; it must be true or false"),
        ("prompt", "word " * 6000, "prompt"),
        ("prompt", "x" * 40_000, "the limit is"),
    ],
)
def test_a_value_outside_its_limits_is_named_with_them(
    server: RunningServer, sample_image: bytes, name: str, value: str, message: str
) -> None:
    response = post_form(server, sample_image, **{name: value})
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


def post_form(server: RunningServer, image: bytes, **fields: str) -> httpx.Response:
    return httpx.post(server.http_url + ROUTE, files={"image": image}, data=fields, timeout=60)
