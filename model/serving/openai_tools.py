"""OpenAI's `tools` and `tool_choice`: what the template is told, and what the answer may be.

A call that must be made, and a function that is `strict`, are enforced by a grammar; otherwise the
model is free, and its answer is read as it comes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from model.errors import InvalidRequest
from model.serving.json_body import kind
from model.serving.parameters import boolean, shown
from model.serving.structure import JsonSchema, ToolCalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.serving.structure import Structure

MAX_TOOLS: Final = 128
MAX_SHOWN_TOOLS: Final = 8
FUNCTION_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MODES: Final = ("none", "auto", "required")
NO_PARAMETERS: Final = '{"type": "object", "properties": {}, "additionalProperties": false}'
ANY_PARAMETERS: Final = '{"type": "object"}'

# The tokens <tool_call> and </tool_call>, None where the tokenizer has none.
Marks = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What becomes of tools in one request.

    tools: what the chat template is told; none where none may be called
    structure: what the answer must look like, calls included
    several: whether one answer may hold several calls
    """

    tools: tuple[Mapping[str, Any], ...]
    structure: Structure | None
    several: bool = True


@dataclass(frozen=True, slots=True)
class _Choice:
    """tool_choice: a mode, and the names it is limited to; None: all. single: one call at most."""

    mode: str
    names: tuple[str, ...] | None = None
    single: bool = False


def parse_tools(document: dict[str, Any], answer: Structure | None, marks: Marks) -> ToolUse:
    """Tools, tool_choice and parallel_tool_calls of a request.

    answer: what an answer that is no call must look like
    Raises InvalidRequest, whose text begins with the member at fault.
    """
    tools = _functions(document.get("tools"))
    choice = _choice(document.get("tool_choice"))
    several = document.get("parallel_tool_calls")
    several = (several is None or boolean("parallel_tool_calls", several)) and not choice.single
    if choice.names is not None:
        tools = _limited(tools, choice.names)
    if choice.mode == "required" and not tools:
        raise InvalidRequest("tool_choice asks for a call; tools is missing or empty")
    if choice.mode == "none" or not tools:
        return ToolUse((), answer)
    if answer is not None and not isinstance(answer, JsonSchema):
        raise InvalidRequest(
            "tools are given together with another structure of the answer than JSON; "
            "an answer has one form"
        )
    structure = _structure(tools, choice.mode, answer, marks, several=several)
    return ToolUse(tuple(tools.values()), structure, several)


def _structure(
    tools: Mapping[str, Mapping[str, Any]],
    mode: str,
    answer: JsonSchema | None,
    marks: Marks,
    *,
    several: bool,
) -> ToolCalls | None:
    strict = {name for name, tool in tools.items() if tool["function"].get("strict") is True}
    if mode == "required":
        functions = tuple((name, _parameters(tool)) for name, tool in tools.items())
        return ToolCalls(functions, marks, several)
    functions = tuple(
        (name, _parameters(tool) if name in strict else ANY_PARAMETERS)
        for name, tool in tools.items()
    )
    if answer is not None:
        return ToolCalls(functions, marks, several, instead=answer)
    if strict and marks is not None:
        return ToolCalls(functions, marks, several, with_text=True)
    return None


def _parameters(tool: Mapping[str, Any]) -> str:
    """The JSON schema of a function's arguments; OpenAI's default is none at all."""
    parameters = tool["function"].get("parameters")
    return NO_PARAMETERS if parameters is None else json.dumps({"type": "object"} | parameters)


def _functions(value: object) -> dict[str, dict[str, Any]]:
    """Tools by their functions' names, in order."""
    if value is None:
        return {}
    if not isinstance(value, list):
        raise InvalidRequest(f"tools is {kind(value)}; it must be a list")
    if len(value) > MAX_TOOLS:
        raise InvalidRequest(f"tools has {len(value)} tools; the limit is {MAX_TOOLS}")
    tools: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(value):
        name = _function_name(tool, f"tools[{i}]")
        if name in tools:
            raise InvalidRequest(f"tools[{i}].function.name is {name!r}, as of a tool before it")
        tools[name] = tool
    return tools


def _function_name(tool: object, where: str) -> str:
    """The name of a tool's function, after a look at the rest of it."""
    match tool:
        case {"type": "function", "function": {"name": name, **function}}:
            pass
        case {"type": str(other)} if other != "function":
            raise InvalidRequest(f"{where}.type is {shown(other)}; it must be function")
        case _:
            raise InvalidRequest(
                f'{where} must be {{"type": "function", "function": {{"name": …}}}}'
            )
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.function.name is {shown(name)}; it must be 1 to 64 of A-Z a-z 0-9 _ . -"
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest(
            f"{where}.function.parameters is {kind(parameters)}; it must be a JSON schema"
        )
    if parameters and parameters.get("type", "object") != "object":
        raise InvalidRequest(
            f"{where}.function.parameters.type is {shown(parameters['type'])}; it must be object"
        )
    if function.get("strict") is not None:
        boolean(f"{where}.function.strict", function["strict"])
    return name


def _choice(value: object) -> _Choice:
    match value:
        case None:
            return _Choice("auto")
        case str() if value in MODES:
            return _Choice(value)
        case {"type": "function", "function": {"name": str(name)}}:
            return _Choice("required", (name,), single=True)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)},
        }:
            names = [
                _function_name(tool, f"tool_choice.tools[{i}]") for i, tool in enumerate(tools)
            ]
            return _Choice(mode, tuple(names))
        case _:
            raise InvalidRequest(
                f"tool_choice is {shown(value)}; it must be {', '.join(MODES)} or "
                '{"type": "function", "function": {"name": …}}'
            )


def _limited(
    tools: Mapping[str, dict[str, Any]], names: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    for name in names:
        if name not in tools:
            known = ", ".join(list(tools)[:MAX_SHOWN_TOOLS]) or "none"
            raise InvalidRequest(f"tool_choice names {shown(name)}; tools has {known}")
    return {name: tool for name, tool in tools.items() if name in names}
