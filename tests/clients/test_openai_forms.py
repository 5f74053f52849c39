"""The openai package: structured answers, tools, logprobs."""

from __future__ import annotations

import json
import math
from typing import Any

import openai
import pytest

from tests.clients.openai_requests import (
    MODEL,
    PAINT,
    Scene,
    Shape,
    about,
    text_of,
)


def test_parse_gives_a_pydantic_object(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    answer = openai_client.chat.completions.parse(
        model=MODEL, messages=about(sample_image), response_format=Scene, max_tokens=400
    )
    scene = answer.choices[0].message.parsed
    assert isinstance(scene, Scene)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({"guided_json": Shape.model_json_schema()}, id="guided_json"),
        pytest.param({"guided_json": json.dumps(Shape.model_json_schema())}, id="as text"),
        pytest.param(
            {"structured_outputs": {"json": Shape.model_json_schema()}}, id="structured_outputs"
        ),
        pytest.param({"json_schema": Shape.model_json_schema()}, id="this server's own name"),
        pytest.param(
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "shape", "schema": Shape.model_json_schema()},
                }
            },
            id="a schema that is not strict",
        ),
    ],
)
def test_a_schema_is_followed_by_whatever_name_it_comes(
    openai_client: openai.OpenAI, sample_image: bytes, extra: dict[str, Any]
) -> None:
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=about(sample_image), extra_body=extra
    )
    assert Shape.model_validate_json(text_of(answer))


def test_json_regex_and_choice(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    def ask(**extra: object) -> str:
        return text_of(
            openai_client.chat.completions.create(
                model=MODEL, messages=about(sample_image), extra_body=extra
            )
        )

    assert ask(guided_choice=["yes", "no"]) in ("yes", "no")
    assert ask(structured_outputs={"choice": ["maybe"]}) == "maybe"
    assert ask(guided_regex="[0-9]{3}").isdecimal()
    assert isinstance(json.loads(ask(response_format={"type": "json_object"})), dict)
    assert ask(response_format={"type": "text"}) == ask()


def test_a_required_call_follows_its_schema(
    openai_client: openai.OpenAI, sample_image: bytes
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": about(sample_image), "tools": [PAINT]}
    for choice in ("required", {"type": "function", "function": {"name": "paint"}}):
        answer = openai_client.chat.completions.create(**ask, tool_choice=choice, max_tokens=200)
        [first] = answer.choices
        assert first.finish_reason == "tool_calls"
        assert first.message.content is None
        calls = first.message.tool_calls
        assert calls
        for call in calls:
            assert call.type == "function"
            assert call.function.name == "paint"
            arguments = json.loads(call.function.arguments)
            assert arguments["color"] in ("red", "blue")
            assert arguments["layers"] in (1, 2, 3)
        assert len({call.id for call in calls}) == len(calls)


def test_a_call_is_streamed_in_pieces(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": about(sample_image),
        "tools": [PAINT],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    whole = openai_client.chat.completions.create(**ask)
    [call] = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    chunks = [
        chunk.choices[0] for chunk in openai_client.chat.completions.create(**ask, stream=True)
    ]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert [piece.index for piece in pieces] == [0] * len(pieces)
    heads = [piece for piece in pieces if piece.id]
    assert len(heads) == 1
    assert heads[0].function is not None
    assert heads[0].function.name == "paint"
    arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert arguments == call.function.arguments
    assert len(pieces) > 3
    assert chunks[-1].finish_reason == "tool_calls"


def test_a_model_that_may_call_may_also_speak(
    openai_client: openai.OpenAI, sample_image: bytes
) -> None:
    def ask(tool: dict[str, Any], **more: Any) -> str:
        answer = openai_client.chat.completions.create(
            model=MODEL, messages=about(sample_image), tools=[tool], **more
        )
        assert answer.choices[0].finish_reason == "stop"
        return text_of(answer)

    strict = {"type": "function", "function": {**PAINT["function"], "strict": True}}
    # It was never trained to call: what the grammar of a strict function allows, it says.
    assert ask(strict) == ask(PAINT)
    schema = {"name": "shape", "schema": Shape.model_json_schema(), "strict": True}
    answer = openai_client.chat.completions.create(
        model=MODEL,
        messages=about(sample_image),
        tools=[PAINT],
        response_format={"type": "json_schema", "json_schema": schema},
    )
    message = answer.choices[0].message
    assert message.tool_calls or Shape.model_validate_json(text_of(answer))


def test_the_sdk_parses_strict_tools(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    tool = openai.pydantic_function_tool(Shape, name="shape")
    answer = openai_client.chat.completions.parse(
        model=MODEL, messages=about(sample_image), tools=[tool], tool_choice="required"
    )
    [call, *_] = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Shape)


def test_calls_and_their_results_go_back(openai_client: openai.OpenAI, sample_image: bytes) -> None:
    ask: dict[str, Any] = {"model": MODEL, "tools": [PAINT]}
    messages = about(sample_image)
    first = openai_client.chat.completions.create(**ask, messages=messages, tool_choice="required")
    message = first.choices[0].message
    assert message.tool_calls
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls
    ]
    more = openai_client.chat.completions.create(
        **ask, messages=[*messages, message, *results, *messages], max_tokens=5
    )
    assert first.usage is not None
    assert more.usage is not None
    call_tokens = first.usage.completion_tokens
    assert more.usage.prompt_tokens > first.usage.prompt_tokens + call_tokens


def test_tools_that_may_not_be_called_are_not_told(
    openai_client: openai.OpenAI, sample_image: bytes
) -> None:
    plain, without, free = (
        openai_client.chat.completions.create(model=MODEL, messages=about(sample_image), **tools)
        for tools in (
            {},
            {"tools": [PAINT], "tool_choice": "none"},
            {"tools": [PAINT]},
        )
    )
    assert text_of(plain) == text_of(without)
    assert plain.usage is not None
    assert without.usage is not None
    assert free.usage is not None
    assert plain.usage.prompt_tokens == without.usage.prompt_tokens < free.usage.prompt_tokens


@pytest.mark.parametrize("stop", [None, " square"], ids=["to the end", "before a stop string"])
def test_logprobs_are_of_the_tokens_of_the_text(
    openai_client: openai.OpenAI, sample_image: bytes, stop: str | None
) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": about(sample_image),
        "logprobs": True,
        "top_logprobs": 3,
        "stop": stop,
    }
    choice = openai_client.chat.completions.create(**ask).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert tokens is not None
    assert "".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        assert bytes(token.bytes or []).decode() == token.token
        assert math.exp(token.logprob) <= 1.0
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        # Greedy: the token is the most probable one.
        assert token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 3
    streamed = [
        token
        for chunk in openai_client.chat.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert [token.logprob for token in streamed] == pytest.approx(
        [token.logprob for token in tokens], abs=0.05
    )


def test_the_sdks_stream_helper_puts_answers_and_calls_together(
    openai_client: openai.OpenAI, sample_image: bytes
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": about(sample_image)}
    with openai_client.chat.completions.stream(**ask, response_format=Scene, logprobs=True) as said:
        kinds = {event.type for event in said}
        parsed = said.get_final_completion().choices[0].message.parsed
    assert kinds >= {"chunk", "content.delta", "content.done", "logprobs.content.delta"}
    assert isinstance(parsed, Scene)
    tool = openai.pydantic_function_tool(Shape, name="shape")
    with openai_client.chat.completions.stream(
        **ask, tools=[tool], tool_choice="required", parallel_tool_calls=False
    ) as called:
        kinds = {event.type for event in called}
        [call] = called.get_final_completion().choices[0].message.tool_calls or []
    assert kinds >= {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"}
    assert isinstance(call.function.parsed_arguments, Shape)
