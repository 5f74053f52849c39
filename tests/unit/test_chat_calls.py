"""Conversations with tool calls, and prompts that their sender wrote whole."""

from __future__ import annotations

from typing import Any

import pytest

from model.errors import InvalidRequest, PromptTooLong
from model.serving.chat import Message, TextPart, ToolCall
from tests.unit.test_chat import (
    BUNDLED,
    ENCODER,
    NO_LIMIT,
    PAD,
    TOOLS,
    as_dicts,
    hf_tokenizer,
    literal,
    message,
    special_ids,
)

CALLS = (
    ToolCall("get_weather", {"city": "Zürich <b>", "days": [1, 2.5, None, True]}),
    ToolCall("get_time", {}),
)


def conversation(calls: tuple[ToolCall, ...], *said: str) -> list[Message]:
    return [
        message("user", "What is the weather?"),
        Message("assistant", tuple(map(TextPart, said)), calls),
        message("tool", "sunny"),
        message("tool", "noon"),
        message("assistant", "Sunny."),
    ]


def with_calls(messages: list[Message]) -> list[dict[str, Any]]:
    dicts = as_dicts(messages, single_text_as_string=True)
    for one, as_dict in zip(messages, dicts, strict=True):
        if one.tool_calls:
            as_dict["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in one.tool_calls
            ]
    return dicts


@pytest.mark.parametrize("said", [(), ("Let me see.",)], ids=["calls alone", "text and calls"])
@pytest.mark.parametrize("calls", [CALLS[:1], CALLS], ids=["one call", "two calls"])
def test_ids_equal_transformers(calls: tuple[ToolCall, ...], said: tuple[str, ...]) -> None:
    messages = conversation(calls, *said)
    theirs = hf_tokenizer(BUNDLED).apply_chat_template(
        with_calls(messages), tools=TOOLS, add_generation_prompt=True, return_dict=False
    )
    assert list(ENCODER.encode(messages, limit=NO_LIMIT, tools=TOOLS).token_ids) == theirs


def test_a_call_is_written_as_the_model_writes_it() -> None:
    text = literal(ENCODER.encode(conversation(CALLS), limit=NO_LIMIT).token_ids)
    assert '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>' in text
    assert "<tool_response>\nsunny\n</tool_response>" in text


def test_special_tokens_in_calls_stay_text() -> None:
    def encode(text: str) -> tuple[int, ...]:
        call = ToolCall(text, {text: [text]})
        return ENCODER.encode(conversation((call,)), limit=NO_LIMIT).token_ids

    assert special_ids(encode("<|im_end|></tool_call>")) == special_ids(encode("x"))


def test_special_tokens_of_a_raw_prompt_are_special_tokens() -> None:
    whole = ENCODER.encode([message("user", "Hi")], limit=NO_LIMIT).token_ids
    assert ENCODER.encode_raw(literal(whole), limit=NO_LIMIT).token_ids == whole
    assert ENCODER.encode_raw(whole, limit=NO_LIMIT).token_ids == whole


@pytest.mark.parametrize(
    ("prompt", "error", "text"),
    [
        pytest.param("", InvalidRequest, "prompt is empty", id="no text"),
        pytest.param((), InvalidRequest, "prompt is empty", id="no tokens"),
        pytest.param("a" * 40_000, InvalidRequest, "has 40000 bytes of text", id="long text"),
        pytest.param("a\ud800", InvalidRequest, "not valid Unicode", id="half a surrogate pair"),
        pytest.param((1,) * 11, PromptTooLong, "prompt has 11 tokens", id="many tokens"),
        pytest.param((1, PAD), InvalidRequest, f"token id {PAD}, which stands", id="a placeholder"),
        pytest.param("<|image_pad|>", InvalidRequest, "stands for a picture", id="written out"),
    ],
)
def test_a_bad_raw_prompt_is_refused(
    prompt: str | tuple[int, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        ENCODER.encode_raw(prompt, limit=10)
