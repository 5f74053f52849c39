"""POST /api/v1/describe as a stream of events, and what `style` and `language` change."""

from __future__ import annotations

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

ROUTE = "/api/v1/describe"
LONG = {"max_tokens": "3000", "ignore_eos": "true"}
LINES = {"accept": "application/x-ndjson"}
EVENTS = {"accept": "text/event-stream"}


def post(
    server: RunningServer, image: bytes, headers: dict[str, str] | None = None, **fields: str
) -> httpx.Response:
    return httpx.post(
        server.http_url + ROUTE, files={"image": image}, data=fields, headers=headers, timeout=60
    )


def sse(text: str) -> list[dict[str, Any]]:
    """The objects of an event stream, each of which must be named after its type."""
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "delta")


@pytest.fixture(scope="module")
def crowded() -> Iterator[RunningServer]:
    """A server that runs one sequence at a time."""
    with start_server("--engine.max_sequences", "1") as running:
        yield running


@contextmanager
def streaming(
    server: RunningServer, image: bytes, **fields: str
) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a request as they come; leaving goes away."""
    files = {"image": image}
    url = server.http_url + ROUTE
    with httpx.stream("POST", url, files=files, data=fields, headers=LINES, timeout=60) as response:
        assert response.status_code == 200, response.read()
        yield (json.loads(line) for line in response.iter_lines())


@pytest.mark.parametrize(("read", "accept"), [(sse, EVENTS), (lines, LINES)])
def test_the_stream_says_what_the_whole_answer_says(
    server: RunningServer, sample_image: bytes, read: Any, accept: dict[str, str]
) -> None:
    name = {"x-request-id": "mine"}
    whole = post(server, sample_image, name).json()
    response = post(server, sample_image, name | accept)
    start, *deltas, end = read(response.text)
    assert response.headers["x-request-id"] == whole["id"] == "mine"
    assert start == {
        "type": "start",
        "id": "mine",
        "model": "qwen3-vl",
        "images": whole["images"],
        "usage": {key: whole["usage"][key] for key in ("prompt_tokens", "image_tokens")},
    }
    assert len(deltas) > 5
    assert {delta["type"] for delta in deltas} == {"delta"}
    assert text_of(deltas) == whole["description"]
    assert end["type"] == "end"
    assert {**end, "timings": None} == {**whole, "type": "end", "timings": None}
    assert end["timings"].keys() == whole["timings"].keys()


@pytest.mark.parametrize(
    ("headers", "fields", "content_type"),
    [
        pytest.param({}, {"stream": "true"}, "text/event-stream", id="stream: SSE"),
        pytest.param(LINES, {"stream": "true"}, "application/x-ndjson", id="as the client accepts"),
        pytest.param(
            {"accept": "*/*, application/x-ndjson;q=0.5"},
            {"stream": "true"},
            "application/x-ndjson",
            id="among others",
        ),
        pytest.param(EVENTS, {}, "text/event-stream", id="Accept alone asks for SSE"),
        pytest.param(LINES, {}, "application/x-ndjson", id="and for NDJSON"),
        pytest.param(
            {"accept": "text/event-stream, */*"}, {}, "application/json", id="but not with others"
        ),
        pytest.param(EVENTS, {"stream": "false"}, "application/json", id="nor against the body"),
    ],
)
def test_who_gets_a_stream(
    server: RunningServer,
    sample_image: bytes,
    headers: dict[str, str],
    fields: dict[str, str],
    content_type: str,
) -> None:
    response = post(server, sample_image, headers, max_tokens="3", **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(content_type)


def test_text_comes_while_it_is_generated(server: RunningServer, sample_image: bytes) -> None:
    with streaming(server, sample_image, **LONG) as events:
        assert next(events)["type"] == "start"
        assert next(events)["type"] == "delta"
        server.wait_until_running(1)


def test_a_client_that_goes_away_cancels(server: RunningServer, sample_image: bytes) -> None:
    with streaming(server, sample_image, **LONG) as events:
        for _ in range(3):
            next(events)
    server.wait_until_idle()


def test_a_fault_before_the_stream_is_a_status(server: RunningServer, sample_image: bytes) -> None:
    response = post(server, b"no picture", stream="true")
    assert response.status_code == 400
    assert "not a JPEG" in response.json()["error"]


def test_waiting_too_long_is_told_in_the_stream(
    crowded: RunningServer, sample_image: bytes
) -> None:
    """The one fault that can only come after the start: no place in the batch in time."""
    with streaming(crowded, sample_image, **LONG) as running:
        for _ in range(2):
            next(running)
        events = sse(post(crowded, sample_image, stream="true", timeout_seconds="0.2").text)
        refused = post(crowded, sample_image, timeout_seconds="0.2")
    assert [event["type"] for event in events] == ["start", "error"]
    assert events[1]["status"] == refused.status_code == 504
    assert "the limit is 0.2 s" in events[1]["error"]
    assert "the limit is 0.2 s" in refused.json()["error"]


def test_the_more_urgent_goes_first(crowded: RunningServer, sample_image: bytes) -> None:
    # Long enough that both others wait before it ends, on any machine.
    long, short = {"max_tokens": "2000", "ignore_eos": "true"}, {"max_tokens": "5"}
    with (
        streaming(crowded, sample_image, **long) as running,
        streaming(crowded, sample_image, **short, priority="9") as late,
        streaming(crowded, sample_image, **short, priority="1") as early,
    ):
        ends = [list(events)[-1] for events in (running, early, late)]
    waited = [end["timings"]["queue_ms"] for end in ends]
    assert waited == sorted(waited)


@pytest.mark.parametrize(
    ("style", "max_tokens"), [("brief", 96), ("detailed", 1024), ("alt-text", 128), ("tags", 128)]
)
def test_a_style_sets_how_long_an_answer_may_be(
    server: RunningServer, sample_image: bytes, style: str, max_tokens: int
) -> None:
    answer = post(server, sample_image, style=style, ignore_eos="true").json()
    assert answer["style"] == style
    assert answer["usage"]["completion_tokens"] == max_tokens
    shorter = post(server, sample_image, style=style, max_tokens="2", ignore_eos="true").json()
    assert shorter["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("style", "description"),
    [
        ("brief", "A red square, an orange triangle and a red star."),
        (
            "detailed",
            "A small red square at the top left, a large orange triangle in the center and a "
            "small red star at the bottom, on a beige background.",
        ),
        ("tags", "red square, orange triangle, red star, beige background"),
    ],
)
def test_the_bundled_model_knows_three_styles(
    server: RunningServer, style: str, description: str
) -> None:
    picture = (SAMPLES_DIR / "scene-00000.jpg").read_bytes()
    answer = post(server, picture, style=style).json()
    assert answer["description"] == description
    if style == "tags":
        assert answer["tags"] == description.split(", ")
    else:
        assert "tags" not in answer


def test_a_language_is_asked_for_and_told(server: RunningServer, sample_image: bytes) -> None:
    plain = post(server, sample_image, max_tokens="1").json()
    german = post(server, sample_image, max_tokens="1", language="German").json()
    assert german["language"] == "German"
    assert "language" not in plain
    assert german["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "long"}, "style is 'long'; known: brief, detailed, alt-text, tags"),
        ({"language": "<b>"}, "language is '<b>'"),
        ({"stream": "yes"}, "stream is 'yes'; it must be true or false"),
        ({"priority": "10"}, "priority is 10; it must be from 1"),
        ({"priority": "high"}, "priority is 'high'; it must be an integer"),
        ({"timeout_seconds": "-1"}, "timeout_seconds is -1; it must be from 0 to 86400"),
        ({"timeout_seconds": "soon"}, "timeout_seconds is 'soon'; it must be a number"),
    ],
)
def test_a_wrong_option_is_told_so(
    server: RunningServer, sample_image: bytes, fields: dict[str, str], message: str
) -> None:
    response = post(server, sample_image, **fields)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]
