"""Tools and tool_choice: what the template is told, and when a grammar holds the model to them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.errors import InvalidRequest
from model.serving.openai_tools import ANY_PARAMETERS, NO_PARAMETERS, ToolUse, parse_tools
from model.serving.structure import ANY_OBJECT, JsonSchema, Regex, Structure, ToolCalls

MARKS = (7, 8)
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
SCHEMA = json.dumps(PARAMETERS)


def tool(name: Any = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **more}}


F, G, STRICT = tool(), tool("g", parameters=None), tool("s", strict=True)
ONE = {"type": "function", "function": {"name": "f"}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def parse(answer: Structure | None = None, **document: Any) -> ToolUse:
    return parse_tools(document, answer, MARKS)


@pytest.mark.parametrize(
    ("document", "use"),
    [
        pytest.param({}, ToolUse((), None), id="no tools"),
        pytest.param({"tools": [], "tool_choice": "auto"}, ToolUse((), None), id="an empty list"),
        pytest.param({"tools": [F, G]}, ToolUse((F, G), None), id="auto leaves the model free"),
        pytest.param({"tools": [F], "tool_choice": "none"}, ToolUse((), None), id="none"),
        pytest.param(
            {"tools": [F], "parallel_tool_calls": False}, ToolUse((F,), None, False), id="one call"
        ),
        pytest.param(
            {"tools": [F, G], "tool_choice": "required"},
            ToolUse((F, G), ToolCalls((("f", SCHEMA), ("g", NO_PARAMETERS)), MARKS)),
            id="required",
        ),
        pytest.param(
            {"tools": [F, G], "tool_choice": ONE},
            ToolUse((F,), ToolCalls((("f", SCHEMA),), MARKS, several=False), several=False),
            id="a function by its name",
        ),
        pytest.param(
            {"tools": [F, G], "tool_choice": allowed("auto", "g")},
            ToolUse((G,), None),
            id="some of them",
        ),
        pytest.param(
            {"tools": [F, G], "tool_choice": allowed("required", "f")},
            ToolUse((F,), ToolCalls((("f", SCHEMA),), MARKS)),
            id="one of some",
        ),
        pytest.param(
            {"tools": [F, STRICT]},
            ToolUse(
                (F, STRICT),
                ToolCalls((("f", ANY_PARAMETERS), ("s", SCHEMA)), MARKS, with_text=True),
            ),
            id="a strict function is held to its schema",
        ),
    ],
)
def test_tools(document: dict[str, Any], use: ToolUse) -> None:
    assert parse(**document) == use


def test_an_answer_is_calls_or_the_json_that_was_asked_for() -> None:
    use = parse(ANY_OBJECT, tools=[F])
    assert use.structure == ToolCalls((("f", ANY_PARAMETERS),), MARKS, instead=ANY_OBJECT)
    assert parse(ANY_OBJECT, tools=[F], tool_choice="none") == ToolUse((), ANY_OBJECT)
    required = parse(ANY_OBJECT, tools=[F], tool_choice="required").structure
    assert required == ToolCalls((("f", SCHEMA),), MARKS)


def test_a_strict_function_is_free_where_the_tokenizer_has_no_marks() -> None:
    assert parse_tools({"tools": [STRICT]}, None, None).structure is None
    structure = parse_tools({"tools": [F], "tool_choice": "required"}, None, None).structure
    assert structure == ToolCalls((("f", SCHEMA),), None)


@pytest.mark.parametrize(
    ("document", "error"),
    [
        pytest.param({"tools": {}}, "tools is an object; it must be a list", id="an object"),
        pytest.param({"tools": [F] * 129}, "tools has 129 tools; the limit is 128", id="many"),
        pytest.param({"tools": [F, F]}, "tools[1].function.name is 'f', as of", id="twice"),
        pytest.param({"tools": [5]}, "tools[0] must be", id="a number"),
        pytest.param({"tools": [{"type": "function"}]}, "tools[0] must be", id="no function"),
        pytest.param({"tools": [{"type": "custom"}]}, "tools[0].type is 'custom'", id="custom"),
        pytest.param({"tools": [tool("a b")]}, "name is 'a b'; it must be 1 to 64", id="a space"),
        pytest.param({"tools": [tool("x" * 65)]}, "must be 1 to 64", id="a long name"),
        pytest.param({"tools": [tool(5)]}, "name is 5", id="a name of a number"),
        pytest.param({"tools": [tool(parameters=[])]}, "parameters is a list", id="a list"),
        pytest.param(
            {"tools": [tool(parameters={"type": "string"})]},
            "tools[0].function.parameters.type is 'string'; it must be object",
            id="parameters that are no object",
        ),
        pytest.param({"tools": [tool(strict=1)]}, "tools[0].function.strict is 1", id="strict"),
        pytest.param({"tool_choice": "any"}, "tool_choice is 'any'; it must be none", id="mode"),
        pytest.param({"tool_choice": {"type": "x"}}, "tool_choice is an object", id="type"),
        pytest.param(
            {"tool_choice": "required"}, "tool_choice asks for a call; tools is", id="no tools"
        ),
        pytest.param({"tool_choice": ONE}, "tool_choice names 'f'; tools has none", id="none"),
        pytest.param(
            {"tools": [G], "tool_choice": ONE}, "tool_choice names 'f'; tools has g", id="other"
        ),
        pytest.param(
            {"tools": [F], "parallel_tool_calls": "no"}, "parallel_tool_calls is 'no'", id="no"
        ),
    ],
)
def test_wrong_tools_are_told(document: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(**document)
    assert error in str(raised.value)


def test_calls_and_another_structure_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="tools are given together with another structure"):
        parse(Regex("a"), tools=[F])
    assert parse(JsonSchema("{}"), tools=[F]).tools == (F,)
