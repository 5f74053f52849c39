"""What an answer must look like, as clients wish it, to the grammar that the engine follows.

Knows llguidance's grammars, an extra of this package. Knows neither the protocols nor a tokenizer:
a grammar is of text, never of special tokens.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from typing import Final, assert_never

from model.errors import InvalidRequest, Unsupported
from model.request import GRAMMAR_LIMITS

# Compiling is linear in the size: this much takes about a quarter of a second, once.
MAX_SOURCE_BYTES: Final = 64 * 1024
MAX_CHOICES: Final = 1024
MAX_REASON: Final = 300
# At most one space between two marks, as outlines has it: free to, a model that has lost its way
# writes nothing but blanks. A schema's own "x-guidance" may say otherwise.
JSON_WHITESPACE: Final = " "


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that a schema describes; schema: a JSON object, as text."""

    schema: str


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that the pattern matches as a whole; Rust's syntax, without look-around."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lark:
    """Text of a context-free grammar in llguidance's dialect of Lark."""

    grammar: str


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Calls of functions as Qwen writes them, each between its marks, a line apart.

    functions: the name of each and the JSON schema of its arguments, as text
    marks: ids of the tokens <tool_call> and </tool_call>, None where they are plain text
    several: whether a call may follow a call
    with_text: whether any text may stand before, between and after calls, or alone; needs marks
    instead: JSON that may stand instead of calls
    """

    functions: tuple[tuple[str, str], ...]
    marks: tuple[int, int] | None = None
    several: bool = True
    with_text: bool = False
    instead: JsonSchema | None = None


Structure = JsonSchema | Regex | Choice | Lark | ToolCalls
ANY_OBJECT: Final = JsonSchema('{"type": "object"}')


def compile_structure(structure: Structure) -> str:
    """The grammar of a structure, for GenerateRequest.grammar. Takes up to a second: not for the
    event loop.

    Raises InvalidRequest with llguidance's reason, Unsupported without llguidance.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise Unsupported(
            "structured output is not installed on this server; it comes with llguidance: "
            "pip install 'qwen3-vl-server[structured]'"
        )
    from llguidance import LLMatcher

    match structure:
        case JsonSchema(schema):
            _check_size("json_schema", schema)
            return _validated("json_schema", _schema_grammar(schema))
        case Regex(pattern):
            _check_size("regex", pattern)
            return _validated("regex", LLMatcher.grammar_from_regex(pattern))
        case Choice(texts):
            return _validated("choice", LLMatcher.grammar_from_lark(_choice_grammar(texts)))
        case Lark(grammar):
            _check_size("grammar", grammar)
            return _validated("grammar", LLMatcher.grammar_from_lark(grammar))
        case ToolCalls():
            calls = _calls_grammar(structure)
            _check_size("tools", calls)
            grammar = LLMatcher.grammar_from_lark(calls)
            return _validated("tools", grammar, special_tokens=structure.marks is not None)
        case _:
            assert_never(structure)


def _schema_grammar(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(
            schema, defaults={"whitespace_pattern": JSON_WHITESPACE}
        )
    except ValueError as e:
        raise InvalidRequest(f"json_schema is no JSON object: {_short(str(e))}") from e


def _choice_grammar(texts: tuple[str, ...]) -> str:
    if not texts:
        raise InvalidRequest("choice is empty; it must hold at least one string")
    if len(texts) > MAX_CHOICES:
        raise InvalidRequest(f"choice has {len(texts)} strings; the limit is {MAX_CHOICES}")
    alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    _check_size("choice", alternatives)
    return f"start: {alternatives}"


def _calls_grammar(calls: ToolCalls) -> str:
    opening, closing = (
        (f"<[{mark}]>" for mark in calls.marks)
        if calls.marks
        else ('"<tool_call>"', '"</tool_call>"')
    )
    first, text = ("text", "text") if calls.with_text else ("", r'"\n"')
    more = f"({text} call)*" if calls.several else ""
    start = f"{first} (call {more} text)?" if calls.with_text else f"call {more}"
    rules = [
        f"start: {start}" + (" | instead" if calls.instead else ""),
        rf'call: {opening} "\n" ({" | ".join(_numbered(calls))}) "\n" {closing}',
    ]
    if calls.with_text:
        assert calls.marks is not None, "text and calls are told apart by the marks' tokens"
        # Any other token, not any text: a model that thinks does it between tokens of its own.
        rules.append("text: <[^{},{}]>*".format(*calls.marks))
    if calls.instead:
        rules.append(f"instead: {_json_rule(calls.instead.schema)}")
    for rule, (name, arguments) in _numbered(calls).items():
        beginning = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
        rules.append(f'{rule}: {beginning} {_json_rule(arguments)} "}}"')
    return "\n".join(rules)


def _numbered(calls: ToolCalls) -> dict[str, tuple[str, str]]:
    """The functions by the names of their rules: their own may be no names in Lark."""
    return {f"function_{i}": function for i, function in enumerate(calls.functions)}


def _json_rule(schema: str) -> str:
    """JSON of a schema, inside a grammar; a schema that is an object."""
    whitespace = {"x-guidance": {"whitespace_pattern": JSON_WHITESPACE}}
    return f"%json {json.dumps(whitespace | json.loads(schema))}"


def _check_size(name: str, text: str) -> None:
    if not text:
        raise InvalidRequest(f"{name} is empty")
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as e:
        raise InvalidRequest(f"{name} is not valid Unicode at character {e.start}") from e
    if num_bytes > MAX_SOURCE_BYTES:
        raise InvalidRequest(f"{name} has {num_bytes} bytes; the limit is {MAX_SOURCE_BYTES}")


def _validated(name: str, grammar: str, *, special_tokens: bool = False) -> str:
    """The grammar, if llguidance can follow it within its limits.

    special_tokens: whether it may name them
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**GRAMMAR_LIMITS._asdict())
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
    if is_error:
        raise InvalidRequest(f"{name} cannot be followed: {_short(messages[0])}")
    # Without a tokenizer it warns of special tokens: what users write stays text.
    special = [message for message in messages if "tokenizer" in message]
    if special and not special_tokens:
        raise InvalidRequest(f"{name} names special tokens, which only the model may: {special[0]}")
    return grammar


def _short(reason: str) -> str:
    """On one line, never long."""
    line = " ".join(reason.replace("<non-verbose/>", "").split())
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}…"
