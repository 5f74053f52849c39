"""Calls in an answer: the same however the text is cut, and nothing that was said is lost."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.serving.tool_calls import CallArguments, CallStart, Content, ToolCallParser

Answer = tuple[str, list[tuple[str, str]]]


def parse(text: str, cuts: tuple[int, ...] = (), *, several: bool = True) -> Answer:
    """Content and calls of a text that comes in pieces, cut at the given places."""
    parser = ToolCallParser(several=several)
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [
        piece
        for start, end in itertools.pairwise(borders)
        for piece in parser.push(text[start:end])
    ]
    content, calls = "", []
    for piece in [*pieces, *parser.flush()]:
        match piece:
            case Content(more):
                content += more
            case CallStart(call, name):
                assert call == len(calls)
                calls.append([name, ""])
            case CallArguments(call, more):
                assert call == len(calls) - 1
                calls[call][1] += more
    assert parser.num_calls == len(calls)
    return content, [(name, arguments) for name, arguments in calls]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


TRICKY = '{"a": "</tool_call> \\" } \\\\", "b": [{}, [1, null]], "c": {"<tool_call>": "é\\n"}}'
ONE, TWO = call("one", TRICKY), call("two", "{}")
TEXTS = [
    pytest.param("Hello.", ("Hello.", []), id="text alone"),
    pytest.param(" white \n", (" white \n", []), id="white space is kept without calls"),
    pytest.param("", ("", []), id="nothing"),
    pytest.param(ONE, ("", [("one", TRICKY)]), id="a call with marks in its strings"),
    pytest.param(f"{ONE}\n{TWO}", ("", [("one", TRICKY), ("two", "{}")]), id="two calls"),
    pytest.param(f"See:\n{TWO}\n", ("See:", [("two", "{}")]), id="text, then a call"),
    pytest.param(f"a {TWO} b {TWO} c", ("abc", [("two", "{}")] * 2), id="text between calls"),
    pytest.param(f"{TWO}\n It is  noon. \n", ("It is  noon.", [("two", "{}")]), id="words after"),
    pytest.param(
        f"{TWO}<tool_call>no</tool_call> {TWO}",
        ("<tool_call>no</tool_call>", [("two", "{}")] * 2),
        id="no call after a call",
    ),
    pytest.param(
        f"{TWO}<tool_call>no</tool_call> at all",
        ("<tool_call>no</tool_call> at all", [("two", "{}")]),
        id="words after what is no call",
    ),
    pytest.param("a < b <tool", ("a < b <tool", []), id="half a mark"),
    pytest.param(
        '<tool_call>{"arguments": {"a":1}, "name": "f"}</tool_call>',
        ("", [("f", '{"a":1}')]),
        id="arguments first",
    ),
    pytest.param(
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", [("f", '{"a": 1}')]),
        id="arguments as a string",
    ),
    pytest.param('<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")]), id="no arguments"),
    pytest.param(
        '<tool_call>{"name": "f", "arguments": [1]}', ("", [("f", "[1]")]), id="never closed"
    ),
    pytest.param(
        '<tool_call>\n{"name": "f", "arguments": {"a": "b', ("", [("f", '{"a": "b')]), id="cut off"
    ),
    pytest.param(
        f'<tool_call>{{"name": "f", "arguments": {{"a": "x}}\n</tool_call>\n{TWO}',
        ("", [("f", '{"a": "x}\n'), ("two", "{}")]),
        id="a string that is never closed",
    ),
    pytest.param(
        f'<tool_call>{{"name": "f", "arguments": {{"a": [</tool_call>{TWO}',
        ("", [("f", '{"a": ['), ("two", "{}")]),
        id="brackets that are never closed",
    ),
    pytest.param(
        f"<tool_call>garbage</tool_call> and {TWO}",
        ("<tool_call>garbage</tool_call> and", [("two", "{}")]),
        id="no JSON is content",
    ),
    pytest.param(
        '<tool_call>{"name": 5}</tool_call>',
        ('<tool_call>{"name": 5}</tool_call>', []),
        id="no name is content",
    ),
    pytest.param("<tool_call>{", ("<tool_call>{", []), id="a beginning alone is content"),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_a_text_is_content_and_calls(text: str, expected: Answer) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_cut_after_every_character_it_is_the_same(text: str, expected: Answer) -> None:
    assert parse(text, tuple(range(len(text)))) == expected


def test_arguments_are_told_as_they_come() -> None:
    parser = ToolCallParser()
    assert parser.push('<tool_call>\n{"name": "f", "argum') == []
    assert parser.push('ents": {"a": ') == [CallStart(0, "f"), CallArguments(0, '{"a": ')]
    assert parser.push("1}") == [CallArguments(0, "1}")]
    assert parser.push("}\n</tool_call>") == []


def test_only_the_first_call_where_one_is_allowed() -> None:
    assert parse(f"Well. {ONE}\n{TWO} bye", several=False) == ("Well.", [("one", TRICKY)])
    assert parse("Just text.", several=False) == ("Just text.", [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(
    calls=st.lists(
        st.tuples(st.from_regex(r"[a-zA-Z0-9_.-]{1,9}", fullmatch=True), JSON), max_size=3
    ),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(0, 1 << 16), max_size=8),
)
def test_what_the_template_writes_is_read_back(
    calls: list[tuple[str, Any]], ascii_only: bool, cuts: list[int]
) -> None:
    written = [
        (name, json.dumps({"value": value}, ensure_ascii=ascii_only)) for name, value in calls
    ]
    text = "\n".join(call(name, arguments) for name, arguments in written)
    assert parse(text, tuple(cuts)) == ("", written)


@given(
    text=st.lists(
        st.sampled_from(
            [" a b ", "<tool_call>", "</tool_call>", '{"name": "f", "arguments": ', "{", "}"]
        )
        | st.sampled_from(['"', "\\", "\n", " ", "<", "[", "x", ONE, TWO]),
        max_size=12,
    ).map("".join),
    cuts=st.lists(st.integers(0, 1 << 16), max_size=6),
)
def test_no_text_breaks_the_parser_and_no_cut_changes_it(text: str, cuts: list[int]) -> None:
    assert parse(text, tuple(cuts)) == parse(text)
