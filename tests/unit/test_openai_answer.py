"""What OpenAI's answers share: chunks, usage, choices side by side, errors in the envelope."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from model.errors import (
    BodyTooLarge,
    EngineFailure,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    PromptTooLong,
    QueueFull,
    QueueTimeout,
    ServingError,
    Unsupported,
    UnsupportedMediaType,
)
from model.request import FinishReason
from model.serving.generation import TextDelta
from model.serving.openai_answer import (
    EVENTS,
    ChunkFrame,
    Head,
    StreamUsage,
    Tally,
    interleaved,
    reason_of,
    usage_chunk,
)
from model.serving.openai_chat import ChatChoice
from model.serving.openai_errors import envelope, error_body
from model.serving.tool_calls import CallArguments, CallStart, Content, ToolCallParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEAD = Head("id-1", 'a "model"', 7)


class FakeGeneration:
    """An answer of given pieces, each a turn of the event loop apart; waits where one is None."""

    prompt_tokens, image_tokens, cached_tokens = 10, 4, 3

    def __init__(self, *pieces: str | Exception | None) -> None:
        self._pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[TextDelta]:
        for i, piece in enumerate(self._pieces):
            await (asyncio.sleep(0) if piece is not None else asyncio.Event().wait())
            if isinstance(piece, Exception):
                raise piece
            last = i == len(self._pieces) - 1
            yield TextDelta(piece or "", i + 1, FinishReason.STOP if last else None)

    def close(self) -> None:
        self.closed = True


def data_of(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event[6:])


def usage_of(*generations: FakeGeneration, **options: bool) -> StreamUsage:
    flags = {"told": False, "continuous": False, **options}
    return StreamUsage(generations, len(generations), **flags)  # type: ignore[arg-type]


def test_a_chunk_is_the_object_that_openai_sends() -> None:
    frame = ChunkFrame(HEAD, "kind", 2, usage_of(FakeGeneration()))
    assert data_of(frame.chunk(b'"text":"a"')) == {
        "id": "id-1",
        "object": "kind",
        "created": 7,
        "model": 'a "model"',
        "choices": [{"index": 2, "text": "a", "logprobs": None, "finish_reason": None}],
    }
    choice = data_of(frame.chunk(b'"text":""', b'{"a":1}', "stop"))["choices"][0]
    assert (choice["logprobs"], choice["finish_reason"]) == ({"a": 1}, "stop")


def test_usage_is_null_until_the_end_or_told_with_every_chunk() -> None:
    frame = ChunkFrame(HEAD, "kind", 0, usage_of(FakeGeneration(), told=True))
    assert data_of(frame.chunk(b'"text":""'))["usage"] is None
    usage = usage_of(FakeGeneration(), FakeGeneration(), told=True, continuous=True)
    usage.count(0, 1)
    usage.count(1, 1)
    usage.count(0, 2)
    told = data_of(ChunkFrame(HEAD, "kind", 0, usage).chunk(b'"text":""'))["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]) == (10, 3, 13)
    last = data_of(usage_chunk(HEAD, "kind", usage))
    assert (last["choices"], last["usage"]) == ([], told)


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    answers: Any = [FakeGeneration()] * 6
    tally = Tally.of(answers, 3)
    assert (tally.prompt_tokens, tally.image_tokens, tally.cached_tokens) == (20, 8, 6)
    details = tally.usage()["prompt_tokens_details"]
    assert details == {"cached_tokens": 6, "image_tokens": 8, "audio_tokens": 0}


async def test_answers_come_interleaved_and_whole() -> None:
    generations: Any = [
        FakeGeneration("a", "b", "c"),
        FakeGeneration("x"),
        FakeGeneration("1", "2"),
    ]
    texts = ["", "", ""]
    batches = [deltas async for deltas in interleaved(generations)]
    for deltas in batches:
        for index, delta in deltas:
            texts[index] += delta.text
    assert texts == ["abc", "x", "12"]
    assert len(batches[0]) > 1, "what comes together is told together"
    assert all(generation.closed for generation in generations)


@pytest.mark.parametrize("num", [1, 3])
async def test_an_error_of_one_answer_ends_all(num: int) -> None:
    generations: Any = [FakeGeneration("a", QueueTimeout(2, 1))] + [FakeGeneration(None)] * (
        num - 1
    )
    with pytest.raises(QueueTimeout):
        async for _ in interleaved(generations):
            pass
    assert all(generation.closed for generation in generations)


@pytest.mark.parametrize("num", [1, 3])
async def test_leaving_early_closes_all(num: int) -> None:
    generations: Any = [FakeGeneration("a", None) for _ in range(num)]
    deltas = interleaved(generations)
    assert await anext(deltas)
    await deltas.aclose()
    assert all(generation.closed for generation in generations)


def test_an_answer_that_the_server_ends_is_an_error() -> None:
    assert reason_of(TextDelta("a", 1)) is None
    assert reason_of(TextDelta("a", 1, FinishReason.LENGTH)) == "length"
    with pytest.raises(NotReady, match="shutting down"):
        reason_of(TextDelta("a", 1, FinishReason.CANCELLED))


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>', FinishReason.STOP, "tool_calls"),
        ('<tool_call>{"name": "f", "arguments": {"', FinishReason.LENGTH, "length"),
        ("no call", FinishReason.STOP, "stop"),
    ],
)
def test_an_answer_of_calls_ends_for_that_reason(
    text: str, reason: FinishReason, told: str
) -> None:
    assert ChatChoice(ToolCallParser(), None).read(TextDelta(text, 1, reason)).reason == told


def test_pieces_of_a_call_come_as_its_text_does() -> None:
    choice = ChatChoice(ToolCallParser(), None)
    assert choice.read(TextDelta("Hm. <tool_", 1)).pieces == [Content("Hm.")]
    head = choice.read(TextDelta('call>{"name": "f", "arguments": {"a', 2))
    assert head.pieces == [CallStart(0, "f"), CallArguments(0, '{"a')]
    last = choice.read(TextDelta('": 1}}', 3, FinishReason.STOP))
    assert (last.pieces, last.reason) == ([CallArguments(0, '": 1}')], "tool_calls")


@pytest.mark.parametrize(
    ("error", "kind", "param", "code"),
    [
        (InvalidRequest("n is 0"), "invalid_request_error", "n", "invalid_value"),
        (InvalidRequest("the body is bad"), "invalid_request_error", None, None),
        (
            InvalidRequest("messages[0].content[1] is a number"),
            "invalid_request_error",
            "messages[0].content[1]",
            "invalid_value",
        ),
        (
            InvalidRequest("stream_options.include_usage is 5"),
            "invalid_request_error",
            "stream_options.include_usage",
            "invalid_value",
        ),
        (PromptTooLong(9, 8), "invalid_request_error", "prompt", "context_length_exceeded"),
        (InvalidImage("image is cut"), "invalid_request_error", "image", "invalid_image"),
        (ModelNotFound("x", ("m",)), "invalid_request_error", "model", "model_not_found"),
        (BodyTooLarge(9, 8), "invalid_request_error", None, "request_too_large"),
        (UnsupportedMediaType("no"), "invalid_request_error", None, "unsupported_media_type"),
        (QueueFull(9, 8), "rate_limit_error", None, "rate_limit_exceeded"),
        (NotReady("loading"), "server_error", None, "service_unavailable"),
        (QueueTimeout(9, 8), "server_error", None, "timeout"),
        (EngineFailure("broken"), "server_error", None, "internal_error"),
        (Unsupported("no"), "server_error", None, "not_implemented"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_in_the_envelope(
    error: ServingError, kind: str, param: str | None, code: str | None
) -> None:
    expected = {"message": str(error), "type": kind, "param": param, "code": code}
    assert envelope(str(error), error.status, error) == {"error": expected}
    assert data_of(EVENTS.encode(EVENTS.error(error))) == {"error": expected}


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (401, "authentication_error", "invalid_api_key"),
        (403, "permission_error", "forbidden"),
        (404, "invalid_request_error", "not_found"),
        (405, "invalid_request_error", "method_not_allowed"),
        (408, "invalid_request_error", "request_timeout"),
        (418, "invalid_request_error", None),
        (500, "server_error", "internal_error"),
    ],
)
def test_a_status_in_the_envelope(status: int, kind: str, code: str | None) -> None:
    error = envelope("It failed", status)["error"]
    assert (error["type"], error["code"]) == (kind, code)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/describe", {"error": "prompt has 9"}),
        ("/v2/models/m/infer", {"error": "prompt has 9"}),
        ("/tokenize", {"error": "prompt has 9"}),
        ("/v1", {"error": "prompt has 9"}),
    ],
)
def test_other_paths_have_their_own_form(path: str, body: dict[str, Any]) -> None:
    assert error_body(path, "prompt has 9", 400, None) == body


def test_what_is_wrong_with_a_prompt_or_picture_of_a_chat_is_in_its_messages() -> None:
    for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
        for text in ("prompt has 9 tokens", "image has 9 bytes"):
            assert error_body(path, text, 400, None)["error"]["param"] == "messages"
    assert error_body("/v1/completions", "prompt has 9", 400, None)["error"]["param"] == "prompt"
