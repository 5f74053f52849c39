"""OpenAI's messages to turns, and what is said of those that are none."""

from __future__ import annotations

from typing import Any

import pytest

from model.errors import InvalidRequest
from model.serving.chat import ToolCall
from model.serving.images import PixelBounds
from model.serving.openai_messages import LOW_DETAIL_PIXELS, MAX_MESSAGES, parse_messages
from model.serving.prompt import EncodedImage, Turn

URL = "data:image/png;base64,AAAA"
PICTURE = EncodedImage(URL.encode())


def parse(
    *messages: Any, bounds: PixelBounds | None = None, max_pixels: int = 1 << 24
) -> tuple[Turn, ...]:
    return parse_messages(list(messages), bounds or PixelBounds(), max_pixels)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def image(url: Any = URL, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def call(arguments: Any, name: Any = "f") -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        pytest.param({"role": "user", "content": "Hi"}, Turn("user", ("Hi",)), id="a string"),
        pytest.param(
            {"role": "developer", "content": "x"}, Turn("system", ("x",)), id="developer is system"
        ),
        pytest.param(
            user(text("a"), image(), text("b"), {"type": "image_url", "image_url": URL}),
            Turn("user", ("a", PICTURE, "b", PICTURE)),
            id="parts in any order, a URL as a string",
        ),
        pytest.param(user("a", text("")), Turn("user", ("a", "")), id="bare and empty strings"),
        pytest.param(
            {"role": "tool", "tool_call_id": "1", "content": [image()]},
            Turn("tool", (PICTURE,)),
            id="a tool's picture",
        ),
        pytest.param(
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            Turn("assistant", ("No.",)),
            id="a refusal is text",
        ),
        pytest.param(
            {"role": "assistant", "content": None, "tool_calls": [call('{"a": [1]}')]},
            Turn("assistant", (), (ToolCall("f", {"a": [1]}),)),
            id="a call without text",
        ),
        pytest.param(
            {"role": "assistant", "tool_calls": [call({"a": 1}), call(""), call(None), call(" ")]},
            Turn("assistant", (), (ToolCall("f", {"a": 1}), *[ToolCall("f", {})] * 3)),
            id="arguments as an object, or none",
        ),
        pytest.param(
            {"role": "assistant", "content": "x", "audio": None, "name": "y", "refusal": None},
            Turn("assistant", ("x",)),
            id="what an answer brings along",
        ),
    ],
)
def test_a_message_is_a_turn(message: dict[str, Any], turn: Turn) -> None:
    assert parse(message) == (turn,)


@pytest.mark.parametrize("url", ["https://a.b/c.png", "HTTPS://a.b", "http://a.b/c", "DATA:,"])
def test_urls_go_on_as_they_are(url: str) -> None:
    assert parse(user(image(url))) == (Turn("user", (EncodedImage(url.encode()),)),)


@pytest.mark.parametrize(
    ("detail", "asked", "max_pixels", "bounds"),
    [
        pytest.param("low", None, 1 << 24, PixelBounds(None, LOW_DETAIL_PIXELS), id="low"),
        pytest.param("low", None, 5000, PixelBounds(None, 5000), id="low, of a small server"),
        pytest.param("low", 900, 1 << 24, PixelBounds(None, 900), id="low, asked for less"),
        pytest.param("low", 1 << 23, 1 << 24, PixelBounds(None, LOW_DETAIL_PIXELS), id="and more"),
        pytest.param("high", 900, 1 << 24, None, id="high leaves the request's bounds"),
        pytest.param("auto", None, 1 << 24, None, id="auto too"),
        pytest.param(None, None, 1 << 24, None, id="null too"),
    ],
)
def test_detail_bounds_a_picture_of_its_own(
    detail: str | None, asked: int | None, max_pixels: int, bounds: PixelBounds | None
) -> None:
    [turn] = parse(
        user(image(detail=detail)), bounds=PixelBounds(100, asked), max_pixels=max_pixels
    )
    assert turn.parts == (EncodedImage(URL.encode(), bounds),)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        pytest.param(None, "messages is missing", id="none"),
        pytest.param("Hi", "messages is a string; it must be a list", id="a string"),
        pytest.param([], "messages has 0 messages; it must have from 1", id="empty"),
        pytest.param([{}] * (MAX_MESSAGES + 1), "messages has 4097 messages", id="too many"),
        pytest.param(["Hi"], "messages[0] is a string; it must be an object", id="no object"),
        pytest.param([{}], "messages[0].role is null; it must be one of system", id="no role"),
        pytest.param([{"role": {}}], "messages[0].role is an object", id="a role of objects"),
        pytest.param([{"role": "function"}], "messages[0].role is 'function', which", id="old"),
        pytest.param([{"role": "user"}], "messages[0].content is missing", id="no content"),
        pytest.param([{"role": "user", "content": 5}], "messages[0].content is a number", id="5"),
        pytest.param([user()], "messages[0].content has 0 parts", id="no parts"),
        pytest.param([user(5)], "messages[0].content[0] is a number", id="a part of a number"),
        pytest.param([user({})], "content[0].type is missing", id="a part without a type"),
        pytest.param([user({"type": []})], "content[0].type is a list of 0", id="an odd type"),
        pytest.param([user({"type": "x"})], "content[0].type is 'x'", id="an unknown type"),
        pytest.param([user({"type": "text"})], "content[0].text is missing", id="no text"),
        pytest.param([user(text([1]))], "content[0].text is a list", id="a list as text"),
        *(
            pytest.param(
                [user({"type": name, name: {}})],
                f"messages[0].content[0].type is '{name}'; this model reads text and pictures",
                id=name,
            )
            for name in ("input_audio", "video_url", "file")
        ),
        pytest.param([user(image(None))], "content[0].image_url.url is missing", id="no URL"),
        pytest.param([user(image(7))], "image_url.url is a number", id="a URL of a number"),
        pytest.param(
            [user(image("file:///etc/passwd"))],
            "image_url.url is 'file:///etc/passwd'; it must be a data: URL",
            id="a file",
        ),
        pytest.param([user(image("iVBORw0KGgo="))], "must be a data: URL", id="bare base64"),
        pytest.param([user(image("x" * 99))], "x'… (99 long)", id="a long URL is cut"),
        pytest.param([user(image(detail="huge"))], "image_url.detail is 'huge'", id="detail"),
        pytest.param([user(image(detail=[]))], "image_url.detail is a list", id="detail, a list"),
        *(
            pytest.param(
                [{"role": role, "content": [text("a"), image()]}],
                f"messages[0].content[1] is a picture in a message of role '{role}'",
                id=f"a picture in a {role} message",
            )
            for role in ("system", "developer", "assistant")
        ),
        pytest.param(
            [{"role": "user", "content": "x", "tool_calls": [call("{}")]}],
            "messages[0].tool_calls is in a message of role 'user'",
            id="a user's call",
        ),
        pytest.param(
            [{"role": "assistant", "tool_calls": {}}], "tool_calls is an object", id="no list"
        ),
        pytest.param(
            [{"role": "assistant", "tool_calls": [5]}], "tool_calls[0] must be", id="no call"
        ),
        pytest.param(
            [{"role": "assistant", "tool_calls": [call("{}", name=5)]}],
            "tool_calls[0] must be",
            id="no name",
        ),
        *(
            pytest.param(
                [{"role": "assistant", "tool_calls": [call(arguments)]}],
                f"messages[0].tool_calls[0].function.arguments is {what}",
                id=f"arguments {arguments!r}",
            )
            for arguments, what in (
                ("{", "not valid JSON"),
                ("[1]", "a list"),
                (0, "a number"),
                (False, "a truth value"),
            )
        ),
        pytest.param(
            [{"role": "assistant", "tool_calls": [call('{"a":' * 70 + "1" + "}" * 70)]}],
            "nested more than 64 levels",
            id="deep arguments",
        ),
        pytest.param(
            [{"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
            "messages[0].function_call is not supported",
            id="an old call",
        ),
    ],
)
def test_a_wrong_message_is_told_where_and_what(messages: Any, error: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_messages(messages, PixelBounds(), 1 << 24)
    assert error in str(raised.value)
    assert len(str(raised.value)) < 300
