"""POST /api/v1/batch: each picture its own answer or error, in order; streams; bounds."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.demo import SAMPLES_DIR
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serving import RunningServer

ROUTE = "/api/v1/batch"
LONG = {"max_tokens": 3000, "ignore_eos": True}
PICTURES = [path.read_bytes() for path in sorted(SAMPLES_DIR.glob("*.jpg"))]


def text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def post_form(
    server: RunningServer, pictures: list[bytes], **fields: str | list[str]
) -> httpx.Response:
    files = [("images", picture) for picture in pictures]
    return httpx.post(server.http_url + ROUTE, files=files, data=fields, timeout=120)


def post(server: RunningServer, accept: str = "*/*", **fields: Any) -> httpx.Response:
    return httpx.post(server.http_url + ROUTE, json=fields, headers={"accept": accept}, timeout=120)


@contextmanager
def streaming(
    server: RunningServer, route: str = ROUTE, **fields: Any
) -> Iterator[Iterator[dict[str, Any]]]:
    url, headers = server.http_url + route, {"accept": "application/x-ndjson"}
    with httpx.stream("POST", url, json=fields, headers=headers, timeout=120) as response:
        assert response.status_code == 200, response.read()
        yield (json.loads(line) for line in response.iter_lines())


def describe(server: RunningServer, picture: bytes, **fields: str) -> dict[str, Any]:
    response = httpx.post(
        f"{server.http_url}/api/v1/describe", files={"image": picture}, data=fields, timeout=60
    )
    answer: dict[str, Any] = response.json()
    return answer


def test_every_picture_is_answered_as_it_is_alone(server: RunningServer) -> None:
    answer = post_form(server, PICTURES, prompts="What color is the background?").json()
    alone = [describe(server, one, prompt="What color is the background?") for one in PICTURES]
    assert [result["index"] for result in answer["results"]] == list(range(len(PICTURES)))
    for result, expected in zip(answer["results"], alone, strict=True):
        assert result.keys() == expected.keys() - {"id", "model"} | {"index"}
        for name in ("description", "finish_reason", "usage", "images"):
            assert result[name] == expected[name]
    assert (answer["succeeded"], answer["failed"]) == (len(PICTURES), 0)
    assert answer["model"] == "qwen3-vl"
    assert answer["usage"] == {
        name: sum(one["usage"][name] for one in alone) for name in alone[0]["usage"]
    }


def test_every_picture_may_have_its_own_prompt(server: RunningServer) -> None:
    prompts = ["How many objects are there?", "What color is the background?"]
    answer = post_form(server, PICTURES[:2], prompts=prompts).json()
    expected = [
        describe(server, picture, prompt=prompt)["description"]
        for picture, prompt in zip(PICTURES[:2], prompts, strict=True)
    ]
    assert [result["description"] for result in answer["results"]] == expected
    again = post(server, images=[text(one) for one in PICTURES[:2]], prompts=prompts).json()
    assert [result["description"] for result in again["results"]] == expected


def test_without_prompts_the_default_or_the_style_asks(server: RunningServer) -> None:
    expected = describe(server, PICTURES[0])["description"]
    for prompts in (None, [], [None], ""):
        answer = post(server, images=[text(PICTURES[0])], prompts=prompts).json()
        assert answer["results"][0]["description"] == expected
    tags = post(server, images=text(PICTURES[0]), style="tags").json()["results"][0]["tags"]
    assert tags == describe(server, PICTURES[0], style="tags")["tags"]


def test_one_bad_picture_does_not_touch_the_others(server: RunningServer) -> None:
    good = text(PICTURES[0])
    images = [good, "@@@", text(b"no picture"), f"data:image/jpeg;base64,{good}", "", good[:400]]
    answer = post(server, images=images).json()
    assert (answer["succeeded"], answer["failed"]) == (2, 4)
    results = answer["results"]
    for index in (0, 3):
        assert results[index]["description"] == describe(server, PICTURES[0])["description"]
    for index, message in (
        (1, "not base64"),
        (2, "not a JPEG, PNG, WebP or GIF"),
        (4, "image is"),
        (5, "cut short"),
    ):
        assert results[index].keys() == {"index", "error", "status"}
        assert (results[index]["index"], results[index]["status"]) == (index, 400)
        assert message in results[index]["error"]


def test_a_batch_may_fail_altogether(server: RunningServer) -> None:
    response = post(server, images=["@", "@"])
    assert response.status_code == 200
    assert response.json()["failed"] == 2
    assert set(response.json()["usage"].values()) == {0}


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
def test_the_stream_says_what_the_whole_answer_says(server: RunningServer, accept: str) -> None:
    images = [*map(text, PICTURES), "@"]
    whole = post(server, images=images).json()
    response = post(server, accept, images=images)
    assert response.headers["content-type"].startswith(accept)
    lines = [line for line in response.text.splitlines() if "{" in line]
    start, *results, end = (json.loads(line.removeprefix("data: ")) for line in lines)
    head = {"id": response.headers["x-request-id"], "model": "qwen3-vl"}
    assert start == {"type": "start", **head, "total": len(images)}
    assert end == {
        "type": "end",
        **head,
        **{name: whole[name] for name in ("succeeded", "failed", "usage")},
    }
    assert {result.pop("type") for result in results} == {"result"}
    results.sort(key=lambda result: result["index"])
    for result, expected in zip(results, whole["results"], strict=True):
        assert {**result, "timings": None} == {**expected, "timings": None}


def test_results_come_as_they_are_done(server: RunningServer) -> None:
    # The last is over at its first token, the others never are.
    prompts = ["Describe this image."] * 2 + ["What color is the background?"]
    images = [text(one) for one in PICTURES[:2]] + ["@"]
    with streaming(server, images=images, prompts=prompts, **LONG) as events:
        assert next(events)["type"] == "start"
        first = next(events)
        assert (first["index"], first["status"]) == (2, 400)
        server.wait_until_running(2)


def test_a_client_that_goes_away_cancels_all(server: RunningServer) -> None:
    with streaming(server, images=[text(one) for one in PICTURES], **LONG) as events:
        next(events)
        server.wait_until_running(len(PICTURES))
    server.wait_until_idle()


def test_a_client_that_gives_up_waiting_cancels_all(server: RunningServer) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            server.http_url + ROUTE, json={"images": [text(PICTURES[0])] * 4, **LONG}, timeout=1
        )
    server.wait_until_idle()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({}, "images is missing", id="no images"),
        pytest.param({"images": []}, "images is missing", id="an empty list"),
        pytest.param({"images": [5]}, "images is a number", id="a number"),
        pytest.param({"images": [["x"]]}, "images is a list", id="a list in the list"),
        pytest.param({"images": ["x"] * 33}, "33 pictures; the limit is 32", id="too many"),
        pytest.param(
            {"images": ["x"] * 3, "prompts": ["a", "b"]},
            "prompts has 2 texts; for 3 images it must have 1, 3 or none",
            id="another number of prompts",
        ),
        pytest.param({"images": ["x"], "prompts": [5]}, "prompts holds a number", id="a prompt"),
        pytest.param({"images": ["x"], "prompts": False}, "prompts holds a truth value", id="none"),
        pytest.param({"images": ["x"], "image": "x"}, "unknown field 'image'", id="a field"),
        pytest.param({"images": ["x"], "temperature": -1}, "temperature is -1", id="a value"),
        pytest.param({"images": ["x"], "max_tokens": 100_000}, "has 4096 tokens", id="the context"),
        pytest.param({"images": ["x"], "style": "x"}, "style is 'x'", id="a style"),
    ],
)
def test_a_fault_of_the_whole_is_told_for_the_whole(
    server: RunningServer, fields: dict[str, Any], message: str
) -> None:
    response = post(server, **fields)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningServer]:
    """A server with short queues: of four requests, or of one picture and a half."""
    with start_server(
        *("--engine.max_queued_requests", "4"),
        *("--engine.max_queued_image_tokens", "54"),
        *("--engine.max_sequences", "1"),
    ) as running:
        yield running


def test_a_batch_larger_than_the_queue_is_refused_whole(narrow: RunningServer) -> None:
    response = post(narrow, images=[text(PICTURES[0])] * 5)
    assert response.status_code == 429
    assert response.json()["error"].startswith("0 requests are queued, 5 more came")
    assert response.headers["retry-after"] == "1"


def test_pictures_that_the_queue_cannot_hold_at_once_follow_each_other(
    narrow: RunningServer,
) -> None:
    answer = post(narrow, images=[text(one) for one in PICTURES[:4]]).json()
    assert (answer["succeeded"], answer["failed"]) == (4, 0), answer
    expected = [describe(narrow, one)["description"] for one in PICTURES[:4]]
    assert [result["description"] for result in answer["results"]] == expected


def test_only_a_queue_full_of_others_fails_a_picture(narrow: RunningServer) -> None:
    image = text(PICTURES[0])
    with (
        streaming(narrow, "/api/v1/describe", image=image, **LONG) as running,
        streaming(narrow, "/api/v1/describe", image=image, **LONG) as queued,
    ):
        for _ in range(2):
            next(running)
        next(queued)
        answer = post(narrow, images=[image] * 3).json()
    assert (answer["succeeded"], answer["failed"]) == (0, 3), answer
    assert {result["status"] for result in answer["results"]} == {429}
    assert "image tokens are queued" in answer["results"][0]["error"]
