"""The fields of OpenAI's requests: what they become, which are refused, which are left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.errors import InvalidRequest
from model.request import SamplingParams
from model.serving.images import PixelBounds
from model.serving.openai_completions import parse_prompts
from model.serving.openai_fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    CommonFields,
    StreamOptions,
    check_fields,
    ignored_header,
    parameters_of,
    parse_common,
    with_chat_logprobs,
    with_completion_logprobs,
)
from model.serving.structure import ANY_OBJECT, Choice, JsonSchema, Regex, Structure

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_JSON = JsonSchema('{"type":"object","properties":{"a":{"type":"integer"}}}')


def parse(**document: Any) -> CommonFields:
    return parse_common(document, SamplingParams(), ())


@pytest.mark.parametrize(
    ("document", "structure"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"response_format": {"type": "text"}}, None, id="text"),
        pytest.param({"response_format": {"type": "json_object"}}, ANY_OBJECT, id="json_object"),
        pytest.param(
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": False, "schema": SCHEMA},
                }
            },
            AS_JSON,
            id="json_schema",
        ),
        pytest.param({"json_schema": SCHEMA}, AS_JSON, id="our own name"),
        pytest.param({"guided_json": SCHEMA}, AS_JSON, id="guided_json"),
        pytest.param({"guided_json": AS_JSON.schema}, AS_JSON, id="guided_json as text"),
        pytest.param({"guided_regex": "a+"}, Regex("a+"), id="guided_regex"),
        pytest.param({"guided_choice": ["a", "b"]}, Choice(("a", "b")), id="guided_choice"),
        pytest.param({"structured_outputs": {"json": SCHEMA}}, AS_JSON, id="outputs, JSON"),
        pytest.param(
            {"structured_outputs": {"regex": "a", "json": None, "whitespace_pattern": " "}},
            Regex("a"),
            id="outputs, regex",
        ),
        pytest.param({"structured_outputs": {"choice": ["a"]}}, Choice(("a",)), id="choice"),
        pytest.param({"structured_outputs": {"json_object": True}}, ANY_OBJECT, id="object"),
        pytest.param({"json_object": False, "guided_json": None}, None, id="none of them"),
    ],
)
def test_a_structure_has_many_names(document: dict[str, Any], structure: Structure | None) -> None:
    assert parse(**document).structure == structure


@pytest.mark.parametrize(
    ("document", "bounds"),
    [
        pytest.param({}, PixelBounds(), id="none"),
        pytest.param({"min_pixels": 1, "max_pixels": 9}, PixelBounds(1, 9), id="plain"),
        pytest.param({"mm_processor_kwargs": {"max_pixels": 9}}, PixelBounds(None, 9), id="kwargs"),
        pytest.param(
            {"mm_processor_kwargs": {"size": {"shortest_edge": 2, "longest_edge": 9}}},
            PixelBounds(2, 9),
            id="size",
        ),
        pytest.param(
            {"max_pixels": 9, "mm_processor_kwargs": {"max_pixels": 9}},
            PixelBounds(None, 9),
            id="twice the same",
        ),
    ],
)
def test_bounds_have_several_places(document: dict[str, Any], bounds: PixelBounds) -> None:
    assert parse(**document).bounds == bounds


@pytest.mark.parametrize(
    ("document", "stream"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"stream": False, "stream_options": None}, None, id="false"),
        pytest.param({"stream": True}, StreamOptions(), id="true"),
        pytest.param(
            {
                "stream": True,
                "stream_options": {"include_usage": True, "include_obfuscation": True},
            },
            StreamOptions(usage=True),
            id="with usage",
        ),
        pytest.param(
            {
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
            StreamOptions(usage=True, continuous_usage=True),
            id="with every chunk",
        ),
    ],
)
def test_streams(document: dict[str, Any], stream: StreamOptions | None) -> None:
    assert parse(**document).stream == stream


def test_other_fields() -> None:
    fields = parse(n=3, priority=-99, cache_salt="é")
    assert (fields.n, fields.priority, fields.cache_salt) == (3, -4, "é".encode())
    assert parse(n=None, priority=None).n == 1


def test_parameters_are_taken_by_the_names_of_all_protocols() -> None:
    document = {"max_tokens": 5, "max_completion_tokens": 7, "top_k": -1, "seed": 1, "user": "x"}
    assert parameters_of(document) == {"max_tokens": 7, "top_k": 0, "seed": 1}
    assert parameters_of({"max_tokens": 5, "max_completion_tokens": None}) == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("document", "logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": None, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs_of_chats(document: dict[str, Any], logprobs: int | None) -> None:
    assert with_chat_logprobs(SamplingParams(), document).logprobs == logprobs


@pytest.mark.parametrize("logprobs", [None, 0, 5])
def test_logprobs_of_completions(logprobs: int | None) -> None:
    document = {"logprobs": logprobs}
    assert with_completion_logprobs(SamplingParams(), document).logprobs == logprobs


@pytest.mark.parametrize(
    ("document", "error"),
    [
        pytest.param({"n": "2"}, "n is '2'; it must be an integer", id="n"),
        pytest.param({"stream": 1}, "stream is 1; it must be true or false", id="stream"),
        pytest.param(
            {"stream_options": {"include_usage": True}},
            "stream_options is given without stream",
            id="options of no stream",
        ),
        pytest.param(
            {"stream": True, "stream_options": []}, "stream_options of the request", id="a list"
        ),
        pytest.param(
            {"stream": True, "stream_options": {"include_usage": "yes"}},
            "stream_options.include_usage is 'yes'",
            id="usage",
        ),
        pytest.param({"priority": 1.5}, "priority is 1.5; it must be an integer", id="priority"),
        pytest.param({"cache_salt": 5}, "cache_salt is a number", id="salt"),
        pytest.param({"response_format": "json"}, "response_format is a string", id="a string"),
        pytest.param({"response_format": {}}, "response_format is an object", id="no type"),
        pytest.param({"response_format": {"type": "xml"}}, "type is 'xml'; it must be", id="xml"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema must be",
            id="no schema",
        ),
        pytest.param(
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "guided_regex and response_format are given together",
            id="two structures",
        ),
        pytest.param(
            {"structured_outputs": {"grammar": "x"}},
            "structured_outputs.grammar is not supported",
            id="a grammar",
        ),
        pytest.param({"guided_choice": "a"}, "choice is 'a'; it must be a list", id="choice"),
        pytest.param(
            {"max_pixels": 9, "mm_processor_kwargs": {"size": {"longest_edge": 8}}},
            "max_pixels is given as 9 and as 8",
            id="two areas",
        ),
        pytest.param(
            {"mm_processor_kwargs": {"fps": 2}},
            "unknown member 'fps' of mm_processor_kwargs",
            id="other processor arguments",
        ),
        pytest.param({"max_pixels": True}, "max_pixels is true", id="an area of truth"),
    ],
)
def test_a_wrong_field_is_told(document: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(**document)
    assert error in str(raised.value)


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"logprobs": 1}, "logprobs is 1; it must be true or false"),
        ({"top_logprobs": 2}, "top_logprobs is 2; logprobs must be true with it"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21; it must be from 0 to 20"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs is true; it must be an integer"),
    ],
)
def test_wrong_logprobs_of_chats_are_told(document: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        with_chat_logprobs(SamplingParams(), document)


def test_wrong_logprobs_of_completions_are_told() -> None:
    with pytest.raises(InvalidRequest, match="logprobs is true; it must be an integer"):
        with_completion_logprobs(SamplingParams(), {"logprobs": True})


@pytest.mark.parametrize(
    "document",
    [
        {"audio": {"voice": "x"}},
        {"modalities": ["text", "audio"]},
        {"functions": [{"name": "f"}]},
        {"function_call": "auto"},
        {"web_search_options": {"a": 1}},
        {"chat_template": "{{ x }}"},
        {"chat_template_kwargs": {"add_vision_id": True}},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"include_stop_str_in_output": True},
        {"skip_special_tokens": False},
        {"bad_words": ["x"]},
        {"echo": True},
    ],
    ids=lambda document: next(iter(document)),
)
def test_what_would_change_the_answer_is_refused(document: dict[str, Any]) -> None:
    [name] = document
    with pytest.raises(InvalidRequest, match=f"^{name} is"):
        check_fields(document, CHAT_FIELDS, chat=True)


def test_a_refused_field_that_asks_for_nothing_is_let_through() -> None:
    document = {
        "audio": None,
        "modalities": ["text"],
        "functions": [],
        "function_call": "none",
        "echo": False,
        "skip_special_tokens": True,
        "add_generation_prompt": None,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert check_fields(document, CHAT_FIELDS, chat=True) == ()


def test_completions_echo_and_have_no_suffix() -> None:
    assert check_fields({"echo": True}, COMPLETION_FIELDS, chat=False) == ()
    with pytest.raises(InvalidRequest, match="suffix is not supported"):
        check_fields({"suffix": "x"}, COMPLETION_FIELDS, chat=False)


def test_other_fields_are_named() -> None:
    document = {"model": "m", "store": True, "user": "u", "reasoning_effort": "low", "x": 1}
    assert check_fields(document, CHAT_FIELDS, chat=True) == ("store", "reasoning_effort", "x")


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("a", "b"), id="names"),
        pytest.param(("a\r\nSet-Cookie: x", 'q"', "é🙂", "\x7f\x00"), id="odd characters"),
        pytest.param(("x" * 10_000,) * 10_000, id="many long ones"),
    ],
)
def test_the_header_is_printable_ascii_and_short(names: tuple[str, ...]) -> None:
    value = ignored_header(names)["X-Ignored-Fields"]
    assert value.isascii()
    assert value.isprintable()
    assert len(value) < 4096
    assert json.loads(value)[0][:60] == names[0][:60]


def test_no_header_without_ignored_fields() -> None:
    assert ignored_header(()) == {}


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_prompts(value: object, prompts: tuple[object, ...]) -> None:
    assert parse_prompts(value, max_prompts=2) == prompts


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "prompt is missing"),
        ([], "prompt is an empty list"),
        (5, "prompt is a number"),
        ({}, "prompt is an object"),
        (["a", "b", "c"], "prompt holds 3 prompts; the limit is 2"),
        ([1, "a"], r"prompt\[1\] is 'a'; it must be an integer"),
        ([1.5], r"prompt\[0\] is a number; it must be a string or a list of tokens"),
        ([[1, True]], r"prompt\[0\]\[1\] is true; it must be an integer"),
        ([True], r"prompt\[0\] is true; it must be an integer"),
    ],
)
def test_wrong_prompts_are_told(value: object, error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        parse_prompts(value, max_prompts=2)
