"""OpenAI's routes over plain HTTP: what the SDK does not show, and vLLM's routes beside them."""

from __future__ import annotations

import base64
import gzip
import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.serving.kserve_model import Loaded, Qwen3VLModel
from model.serving.lifecycle import Lifecycle
from model.serving.server import build_app
from model.settings import ServerSettings, Settings
from tests.serving import start_server

if TYPE_CHECKING:
    from tests.serving import RunningServer

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.http_url + path, json=body, timeout=60)


def about(picture: bytes) -> list[Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": url}]
    return [{"role": "user", "content": content}]


def events(text: str) -> list[Any]:
    """The objects of a stream, without its [DONE]."""
    *data, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in data]


# Tokens


def test_text_becomes_tokens_and_text_again(server: RunningServer) -> None:
    text = "A naïve <|im_end|> 好."
    answer = post(server, "/tokenize", prompt=text, return_token_strs=True).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 4096
    assert "<|im_end|>" in answer["token_strs"]
    for path in ("/detokenize", "/v1/detokenize"):
        assert post(server, path, tokens=answer["tokens"]).json() == {"prompt": text}
    assert post(server, "/detokenize", tokens=[]).json() == {"prompt": ""}


def test_messages_are_counted_as_they_are_billed(
    server: RunningServer, sample_image: bytes
) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "Does <b>."}}
    messages = [{"role": "system", "content": "Be brief."}, *about(sample_image)]
    for path in ("/tokenize", "/v1/tokenize", "/openai/v1/tokenize"):
        counted = post(server, path, model="qwen3-vl", messages=messages, tools=[tool]).json()
        assert counted["token_strs"] is None
        chat = post(server, CHAT, messages=messages, tools=[tool], max_tokens=1).json()
        assert counted["count"] == chat["usage"]["prompt_tokens"]
    without = post(
        server, "/tokenize", messages=messages, tools=[tool], add_generation_prompt=False
    )
    assert without.json()["count"] < counted["count"]


def test_prompts_longer_than_the_context_are_counted_too(server: RunningServer) -> None:
    assert post(server, "/tokenize", prompt="word " * 6000).json()["count"] > 4096


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "prompt or messages must be given, and not both"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt or messages must be given"),
        ("/tokenize", {"prompt": 5}, "prompt is a number; it must be a string"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens is 1"),
        ("/detokenize", {}, "tokens is missing"),
        ("/detokenize", {"tokens": "a"}, "tokens of the request is a string"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1] is -1; this model's ids are from 0"),
        ("/detokenize", {"tokens": [1 << 40]}, "tokens[0] is 1099511627776; this model's ids"),
        ("/detokenize", {"tokens": [1.5]}, "tokens[0] is 1.5; it must be an integer"),
    ],
)
def test_wrong_tokens_are_told_in_the_form_of_their_path(
    server: RunningServer, path: str, body: dict[str, Any], message: str
) -> None:
    plain, enveloped = post(server, path, **body), post(server, f"/v1{path}", **body)
    assert (plain.status_code, enveloped.status_code) == (400, 400)
    assert message in plain.json()["error"]
    assert enveloped.json()["error"]["message"] == plain.json()["error"]


# Requests


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
def test_a_request_without_a_model_is_for_the_one_that_is_served(
    server: RunningServer, prefix: str
) -> None:
    answer = post(server, f"{prefix}/chat/completions", messages=HELLO, model=None, max_tokens=2)
    assert answer.json()["model"] == "qwen3-vl"
    assert answer.headers["content-type"] == "application/json"


def test_a_stream_names_its_type_and_its_ignored_fields(server: RunningServer) -> None:
    answer = post(server, CHAT, messages=HELLO, stream=True, store=True, max_tokens=3)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-ignored-fields"] == '["store"]'
    assert answer.headers["x-request-id"]
    chunks = events(answer.text)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize(
    ("request_", "status", "code", "message"),
    [
        pytest.param({"content": b""}, 400, None, "the request body is empty", id="nothing"),
        pytest.param({"content": b"{"}, 400, None, "not valid JSON", id="broken JSON"),
        pytest.param({"content": b"[]"}, 400, None, "must be a JSON object", id="a list"),
        pytest.param({"content": b'{"model": NaN}'}, 400, None, "not valid JSON", id="NaN"),
        pytest.param(
            {"content": b'{"user": "\\ud800"}'}, 400, None, "not valid JSON", id="a lone surrogate"
        ),
        pytest.param(
            {"content": b'{"a":' * 100 + b"1" + b"}" * 100}, 400, None, "nested more", id="deep"
        ),
        pytest.param({"json": {"model": 5}}, 400, "invalid_value", "model is a number", id="5"),
        pytest.param(
            {"json": {"model": "x" * 10_000}}, 404, "model_not_found", "is not served", id="long"
        ),
        pytest.param(
            {"content": b"{}", "headers": {"content-type": "text/plain"}},
            415,
            "unsupported_media_type",
            "Content-Type is 'text/plain'; it must be application/json",
            id="text",
        ),
        pytest.param(
            {"data": {"a": "b"}},
            415,
            "unsupported_media_type",
            "Content-Type is 'application/x-www-form-urlencoded'",
            id="a form",
        ),
        pytest.param(
            {"content": b"{}", "headers": {"content-encoding": "br"}},
            415,
            "unsupported_media_type",
            "Content-Encoding is 'br'",
            id="brotli",
        ),
        pytest.param(
            {
                "content": gzip.compress(b" " * (65 << 20), 1),
                "headers": {"content-encoding": "gzip"},
            },
            413,
            "request_too_large",
            "request body has at least",
            id="a large body",
        ),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/openai/v1/completions"])
def test_a_body_that_cannot_be_read_is_told_in_the_envelope(
    server: RunningServer,
    path: str,
    request_: dict[str, Any],
    status: int,
    code: str | None,
    message: str,
) -> None:
    headers = {"content-type": "application/json"} if "content" in request_ else {}
    headers |= request_.get("headers", {})
    answer = httpx.post(server.http_url + path, timeout=30, **{**request_, "headers": headers})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert len(error["message"]) < 300


def test_a_schema_that_cannot_be_followed_is_told(server: RunningServer) -> None:
    schema = {"name": "x", "schema": {"type": "nothing"}}
    wish = {"type": "json_schema", "json_schema": schema}
    answer = post(server, CHAT, messages=HELLO, response_format=wish)
    assert answer.status_code == 400
    assert "json_schema cannot be followed" in answer.json()["error"]["message"]


# States of the server


def app_client(settings: Settings) -> httpx.AsyncClient:
    """A client of an app whose model is not loaded."""

    def load() -> Loaded:
        raise AssertionError("nothing is loaded here")

    app = build_app(Qwen3VLModel(settings, load), Lifecycle(), settings)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def test_while_loading_requests_are_refused_and_models_are_named() -> None:
    async with app_client(Settings()) as client:
        answer = await client.post(CHAT, json={"messages": HELLO})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
        [model] = (await client.get("/v1/models")).json()["data"]
        assert (model["id"], model["max_model_len"]) == ("qwen3-vl", None)


async def test_pages_of_listed_origins_alone_may_call() -> None:
    settings = Settings(server=ServerSettings(cors_origins=("https://app.example",)))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    async with app_client(settings) as client:
        for origin, status, allowed in (
            ("https://app.example", 200, "https://app.example"),
            ("https://evil.example", 400, None),
        ):
            answer = await client.options(CHAT, headers={"Origin": origin, **asked})
            assert answer.status_code == status
            assert answer.headers.get("access-control-allow-origin") == allowed
        refused = await client.post(
            CHAT, json={"messages": HELLO}, headers={"Origin": "https://app.example"}
        )
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Ignored-Fields" in refused.headers["access-control-expose-headers"]
    async with app_client(Settings()) as client:
        answer = await client.options(CHAT, headers={"Origin": "https://app.example", **asked})
        assert "access-control-allow-origin" not in answer.headers


def test_answers_that_a_shutdown_cuts_off_end_with_an_error() -> None:
    long = {"messages": HELLO, "max_tokens": 4000, "ignore_eos": True}
    answers: dict[bool, httpx.Response] = {}

    def ask(server: RunningServer, stream: bool) -> None:
        answers[stream] = post(server, CHAT, **long, stream=stream)

    with start_server("--server.drain_seconds", "0.1") as server:
        asking = [threading.Thread(target=ask, args=(server, stream)) for stream in (False, True)]
        for one in asking:
            one.start()
        server.wait_until_running(2)
        server.process.send_signal(signal.SIGTERM)
        for one in asking:
            one.join()
        assert server.process.wait(30) == 0
    assert answers[False].status_code == 503
    assert answers[True].status_code == 200
    for error in (answers[False].json()["error"], events(answers[True].text)[-1]["error"]):
        assert error["code"] == "service_unavailable"
        assert "shutting down" in error["message"]
