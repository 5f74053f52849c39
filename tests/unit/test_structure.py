"""Structures to grammars: what is refused, with which words, and that nothing of it hangs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import time
from typing import Any

import pytest

from model.errors import InvalidRequest, Unsupported
from model.serving import structure
from model.serving.structure import (
    ANY_OBJECT,
    MAX_SOURCE_BYTES,
    Choice,
    JsonSchema,
    Lark,
    Regex,
    Structure,
    compile_structure,
)


def schema(**fields: Any) -> JsonSchema:
    return JsonSchema(json.dumps(fields))


def nested(depth: int) -> JsonSchema:
    return JsonSchema('{"items":' * depth + '{"type":"string"}' + "}" * depth)


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param(ANY_OBJECT, id="any object"),
        pytest.param(schema(type="object", properties={"a": {"type": "integer"}}), id="schema"),
        pytest.param(schema(enum=["red", "größer", "🙂"]), id="enum beyond ASCII"),
        pytest.param(Regex(r"[a-z]{3}-\d+(/\d+)?"), id="regex with a slash"),
        pytest.param(Regex("one\ntwo"), id="regex over two lines"),
        pytest.param(Choice(("yes", 'a "quoted" \\ word\n', "größer 🙂", "")), id="choice"),
        pytest.param(Choice(("<|im_end|>",)), id="a special token's name is text"),
        pytest.param(Lark('start: "a" b\nb: /[0-9]+/'), id="lark"),
    ],
)
def test_good_structures_become_grammars(wish: Structure) -> None:
    assert compile_structure(wish)


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        pytest.param(JsonSchema("{"), "json_schema is no JSON object", id="broken JSON"),
        pytest.param(JsonSchema("[1]"), "json_schema", id="a list"),
        pytest.param(schema(type="strin"), "cannot be followed: Invalid type: strin", id="type"),
        pytest.param(schema(type="object", **{"not": {}}), 'keys: ["not"]', id="unsupported key"),
        pytest.param(schema(**{"$ref": "http://10.0.0.1/x"}), "json_schema cannot", id="remote"),
        pytest.param(nested(2000), "recursion limit", id="a deep schema"),
        pytest.param(Regex("[a-z"), "regex cannot be followed", id="broken regex"),
        pytest.param(Regex(""), "regex is empty", id="empty regex"),
        pytest.param(Regex("(?=a)b"), "regex cannot be followed", id="look-ahead"),
        pytest.param(Regex("\ud800"), "regex is not valid Unicode at character 0", id="surrogate"),
        pytest.param(Choice(()), "choice is empty", id="no choice"),
        pytest.param(
            Choice(("a",) * 1025), "choice has 1025 strings; the limit is 1024", id="many"
        ),
        pytest.param(Lark("start: nowhere"), 'unknown name: "nowhere"', id="an unknown rule"),
        pytest.param(Lark("start: <|im_end|>"), "special tokens", id="a special token"),
        pytest.param(Lark('start: "a" <[3-5]>'), "special tokens", id="token ids"),
        pytest.param(
            Regex("a" * (MAX_SOURCE_BYTES + 1)), "has 65537 bytes; the limit is 65536", id="size"
        ),
    ],
)
def test_bad_structures_are_refused_with_a_reason(wish: Structure, text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        compile_structure(wish)
    assert text in str(raised.value)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param(Regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"), id="nested counts"),
        pytest.param(Regex("(x+x+)+y"), id="catastrophic elsewhere"),
        pytest.param(Regex("(a|b)*a(a|b){50000}"), id="exponential states"),
        pytest.param(Regex(r"\w{100000}"), id="long classes"),
        pytest.param(Regex("(" * 30000 + ")" * 30000), id="deep groups"),
        pytest.param(Regex("|".join(f"x{i}.*y" for i in range(5000))), id="many branches"),
        pytest.param(
            schema(properties={f"p{i}": {"pattern": "^[a-z]{1,99}$"} for i in range(1400)}),
            id="a large schema",
        ),
        pytest.param(nested(6000), id="deep nesting"),
        pytest.param(
            schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 9}}}),
            id="a schema of itself",
        ),
        pytest.param(
            schema(
                **{
                    "$ref": "#/$defs/d0",
                    "$defs": {
                        f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)
                    }
                    | {"d30": {"type": "object"}},
                }
            ),
            id="references that double",
        ),
    ],
)
def test_bombs_are_compiled_or_refused_in_time(wish: Structure) -> None:
    started = time.monotonic()
    with contextlib.suppress(InvalidRequest):
        compile_structure(wish)
    assert time.monotonic() - started < 10


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        structure.importlib.util,
        "find_spec",
        lambda name: None if name == "llguidance" else real(name),
    )
    with pytest.raises(Unsupported, match=r"not installed on this server.*\[structured\]"):
        compile_structure(ANY_OBJECT)
