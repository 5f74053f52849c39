"""What a grammar of tool calls lets the model write, token by token, with the bundled tokenizer."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from model.demo import CHECKPOINT_DIR
from model.errors import InvalidRequest
from model.serving.structure import JsonSchema, ToolCalls, compile_structure

TOKENIZER = Tokenizer.from_file(str(CHECKPOINT_DIR / "tokenizer.json"))
MARKS = (TOKENIZER.token_to_id("<tool_call>"), TOKENIZER.token_to_id("</tool_call>"))
WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Bern", "Zürich"]}},
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = (("weather", json.dumps(WEATHER)), ("a.time-of_2", json.dumps(NOTHING)))
COLOR = JsonSchema(
    '{"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"], '
    '"additionalProperties": false}'
)


def call(name: str = "weather", **arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


@cache
def matcher_of(calls: ToolCalls) -> LLMatcher:
    text = (CHECKPOINT_DIR / "tokenizer.json").read_text()
    return LLMatcher(
        LLTokenizer(text, n_vocab=TOKENIZER.get_vocab_size()), compile_structure(calls)
    )


def allows(calls: ToolCalls, text: str, *, tags_as_text: bool = False) -> bool:
    """Whether the text can be written whole, and end there."""
    matcher = matcher_of(calls).deep_copy()
    if tags_as_text:
        document = json.loads(TOKENIZER.to_str()) | {"added_tokens": []}
        ids = Tokenizer.from_str(json.dumps(document)).encode(text).ids
    else:
        ids = TOKENIZER.encode(text).ids
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


GOOD, OTHER = call(city="Zürich", days=3), call("a.time-of_2")
REQUIRED = ToolCalls(FUNCTIONS, MARKS)


@pytest.mark.parametrize(
    ("calls", "text", "allowed"),
    [
        pytest.param(REQUIRED, GOOD, True, id="a call"),
        pytest.param(REQUIRED, OTHER, True, id="a call without arguments"),
        pytest.param(REQUIRED, f"{GOOD}\n{OTHER}\n{GOOD}", True, id="calls a line apart"),
        pytest.param(REQUIRED, GOOD + OTHER, False, id="calls side by side"),
        pytest.param(REQUIRED, "No.", False, id="text alone"),
        pytest.param(REQUIRED, f"No. {GOOD}", False, id="text first"),
        pytest.param(REQUIRED, call("unknown"), False, id="another function"),
        pytest.param(REQUIRED, call(city="Rome"), False, id="a value outside the schema"),
        pytest.param(REQUIRED, call(), False, id="a required argument missing"),
        pytest.param(REQUIRED, call("a.time-of_2", x=1), False, id="an argument too many"),
        pytest.param(REQUIRED, GOOD[:-14], False, id="a call that does not end"),
        pytest.param(ToolCalls(FUNCTIONS, MARKS, several=False), GOOD, True, id="the one call"),
        pytest.param(
            ToolCalls(FUNCTIONS, MARKS, several=False), f"{GOOD}\n{OTHER}", False, id="a second one"
        ),
    ],
)
def test_required_calls(calls: ToolCalls, text: str, allowed: bool) -> None:
    assert allows(calls, text) is allowed


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        pytest.param("Text <alone> { with marks", True, id="text alone"),
        pytest.param("", True, id="nothing"),
        pytest.param("<think>\nHm.\n</think>\n\nYes.", True, id="thinking, then text"),
        pytest.param(GOOD, True, id="a call alone"),
        pytest.param(f"Let me see.\n{GOOD}", True, id="text, then a call"),
        pytest.param(f"{call(city='Rome')}", False, id="a call outside the schema"),
        pytest.param(f"Hm. {call('unknown')}", False, id="another function"),
    ],
)
def test_calls_with_text(several: bool, text: str, allowed: bool) -> None:
    calls = ToolCalls(FUNCTIONS, MARKS, several=several, with_text=True)
    assert allows(calls, text) is allowed
    assert allows(calls, f"{GOOD}\n and {OTHER}") is several


def test_calls_or_json_instead() -> None:
    calls = ToolCalls(FUNCTIONS, MARKS, instead=COLOR)
    assert allows(calls, GOOD)
    assert allows(calls, '{"color": "red"}')
    assert not allows(calls, '{"color": 1}')
    assert not allows(calls, "red")


def test_marks_of_a_tokenizer_without_them_are_text() -> None:
    calls = ToolCalls(FUNCTIONS)
    assert allows(calls, f"{GOOD}\n{OTHER}", tags_as_text=True)
    assert not allows(calls, call("unknown"), tags_as_text=True)


def test_a_function_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="tools cannot be followed"):
        compile_structure(ToolCalls((("f", '{"type": "nothing"}'),), MARKS))
    with pytest.raises(InvalidRequest, match=r"tools has \d+ bytes; the limit is"):
        compile_structure(ToolCalls((("f", json.dumps({"description": "x" * 70_000})),), MARKS))
