"""The fields of OpenAI's requests, and vLLM's beside them: what they ask of the model.

Knows which fields there are. A field that cannot be honoured is refused where leaving it out would
change what the answer means; any other is left alone and named in a header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from model.errors import InvalidRequest
from model.request import MAX_LOGPROBS
from model.serving.json_body import check_keys, get_object, kind
from model.serving.parameters import (
    MODEL_PARAMETERS,
    STRUCTURE_PARAMETERS,
    boolean,
    integer,
    parse_pixel_bounds,
    parse_structure,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.request import SamplingParams
    from model.serving.images import PixelBounds
    from model.serving.structure import Structure

# What both routes read, beside the names that all protocols share.
COMMON_FIELDS: Final = (
    *MODEL_PARAMETERS,
    "model",
    "n",
    "stream",
    "stream_options",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "mm_processor_kwargs",
    "priority",
    "cache_salt",
    "logprobs",
    "prompt_logprobs",
)
CHAT_FIELDS: Final = (
    *COMMON_FIELDS,
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)
COMPLETION_FIELDS: Final = (*COMMON_FIELDS, "prompt", "echo", "best_of")
TOKEN_FIELDS: Final = (
    "model",
    "prompt",
    "messages",
    "tools",
    "tokens",
    "add_special_tokens",
    "add_generation_prompt",
    "return_token_strs",
)
# Of no effect on an answer, and nobody expects one.
SILENT_FIELDS: Final = ("user", "metadata", "safety_identifier", "prompt_cache_key", "request_id")

# Refused unless empty, null, false or the value beside them.
REFUSED_FIELDS: Final[Mapping[str, tuple[object, str]]] = {
    "audio": (None, "this model answers in text"),
    "modalities": (["text"], "this model answers in text"),
    "functions": (None, "tools replaced it"),
    "function_call": ("none", "tool_choice replaced it"),
    "web_search_options": (None, "this server searches nothing"),
    "chat_template": (None, "the model's own is used"),
    "chat_template_kwargs": ({"enable_thinking": False}, "the model's template takes none"),
    "documents": (None, "put them into a message"),
    "add_generation_prompt": (True, "an answer is a new message"),
    "continue_final_message": (None, "an answer is a new message"),
    "use_beam_search": (None, "this server samples"),
    "prompt_embeds": (None, "prompts are text or tokens"),
    "truncate_prompt_tokens": (None, "a prompt is read whole or refused"),
    "suffix": (None, "this model does not fill in the middle"),
    "include_stop_str_in_output": (None, "an answer ends before it"),
    "skip_special_tokens": (True, "special tokens are no text"),
    "bad_words": (None, "logit_bias can ban tokens"),
    "allowed_token_ids": (None, "structured outputs can limit an answer"),
    "guided_grammar": (None, "use a JSON schema, a regex or a choice"),
}
CHAT_ONLY_REFUSED: Final[Mapping[str, tuple[object, str]]] = {
    "echo": (None, "an answer does not repeat its messages"),
}
# vLLM's names to ours.
STRUCTURED_OUTPUTS: Final = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "json_object": "json_object",
}
GUIDED: Final = {f"guided_{name}": name for name in ("json", "regex", "choice")}
# vLLM takes any; the engine has as many classes as V2's priorities.
MAX_PRIORITY: Final = 4


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How an answer is streamed; usage: told at the end; continuous_usage: with every chunk."""

    usage: bool = False
    continuous_usage: bool = False


@dataclass(frozen=True, slots=True)
class CommonFields:
    """What a request asks, whichever of the two routes it came by.

    stream: None for a whole answer; structure: of the answer's text; ignored: names of fields
    """

    sampling: SamplingParams
    bounds: PixelBounds
    structure: Structure | None
    n: int
    stream: StreamOptions | None
    priority: int
    cache_salt: bytes
    ignored: tuple[str, ...]


def check_fields(
    document: dict[str, Any], known: tuple[str, ...], *, chat: bool
) -> tuple[str, ...]:
    """The names of fields that have no effect; raises InvalidRequest for those that must."""
    refused = {**REFUSED_FIELDS, **CHAT_ONLY_REFUSED} if chat else REFUSED_FIELDS
    ignored = []
    for name, value in document.items():
        if name in refused:
            allowed, reason = refused[name]
            # An empty list, and 0 of what is counted, ask for nothing.
            if value and value != allowed:
                raise InvalidRequest(f"{name} is not supported: {reason}")
            if not value and allowed is True and value is not None:
                raise InvalidRequest(f"{name} is {shown(value)}; it must be true: {reason}")
        elif name not in known and name not in SILENT_FIELDS:
            ignored.append(name)
    return tuple(ignored)


def parameters_of(document: dict[str, Any]) -> dict[str, object]:
    """The parameters that all protocols share, by their names."""
    parameters: dict[str, object] = {
        name: document[name] for name in MODEL_PARAMETERS if name in document
    }
    if (most := document.get("max_completion_tokens")) is not None:
        parameters["max_tokens"] = most
    if parameters.get("top_k") == -1:  # vLLM's way to say all
        parameters["top_k"] = 0
    return parameters


def parse_common(
    document: dict[str, Any], sampling: SamplingParams, ignored: tuple[str, ...]
) -> CommonFields:
    """The fields that both routes read; raises InvalidRequest.

    sampling: of the request's `parameters_of`
    """
    return CommonFields(
        sampling=with_prompt_logprobs(sampling, document),
        bounds=parse_bounds(document),
        structure=_structure(document),
        n=integer("n", document["n"]) if document.get("n") is not None else 1,
        stream=_stream(document),
        priority=_priority(document.get("priority")),
        cache_salt=_cache_salt(document.get("cache_salt")),
        ignored=ignored,
    )


def with_chat_logprobs(sampling: SamplingParams, document: dict[str, Any]) -> SamplingParams:
    """Chat's logprobs and top_logprobs."""
    wanted, top = document.get("logprobs"), document.get("top_logprobs")
    told = wanted is not None and boolean("logprobs", wanted)
    if top is None:
        return replace(sampling, logprobs=0) if told else sampling
    num_top = _num_logprobs("top_logprobs", top)
    if not told:
        if num_top == 0:
            return sampling
        raise InvalidRequest(f"top_logprobs is {num_top}; logprobs must be true with it")
    return replace(sampling, logprobs=num_top)


def with_completion_logprobs(sampling: SamplingParams, document: dict[str, Any]) -> SamplingParams:
    """Completions' logprobs, a number."""
    wanted = document.get("logprobs")
    if wanted is None:
        return sampling
    return replace(sampling, logprobs=_num_logprobs("logprobs", wanted))


def with_prompt_logprobs(sampling: SamplingParams, document: dict[str, Any]) -> SamplingParams:
    """vLLM's prompt_logprobs, a number."""
    wanted = document.get("prompt_logprobs")
    if wanted is None:
        return sampling
    if document.get("stream"):
        raise InvalidRequest("prompt_logprobs is given with stream; only whole answers tell them")
    return replace(sampling, prompt_logprobs=_num_logprobs("prompt_logprobs", wanted))


def parse_bounds(document: dict[str, Any]) -> PixelBounds:
    """min_pixels and max_pixels, plain or as the processor's arguments."""
    given = get_object(document, "mm_processor_kwargs", "the request")
    known = ("min_pixels", "max_pixels", "size")
    check_keys(given, known, "mm_processor_kwargs")
    size = get_object(given, "size", "mm_processor_kwargs")
    # Qwen's processors count pixels of the area under these names.
    check_keys(size, ("shortest_edge", "longest_edge"), "mm_processor_kwargs.size")
    values: dict[str, object] = {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        places = (document.get(name), given.get(name), size.get(edge))
        said = [value for value in places if value is not None]
        if any(value != said[0] for value in said):
            raise InvalidRequest(f"{name} is given as {' and as '.join(map(shown, said))}")
        values[name] = said[0] if said else None
    return parse_pixel_bounds(values)


def _structure(document: dict[str, Any]) -> Structure | None:
    """The one structure that the request asks for, whichever way."""
    wishes: dict[str, Structure] = {}
    for name in STRUCTURE_PARAMETERS:
        _wish(wishes, name, {name: document.get(name)})
    for field, name in GUIDED.items():
        _wish(wishes, field, {STRUCTURED_OUTPUTS[name]: document.get(field)})
    outputs = get_object(document, "structured_outputs", "the request")
    given = {name: value for name, value in outputs.items() if value is not None}
    for name, value in given.items():
        if name in STRUCTURED_OUTPUTS:
            _wish(wishes, f"structured_outputs.{name}", {STRUCTURED_OUTPUTS[name]: value})
        elif name in ("grammar", "structural_tag"):
            raise InvalidRequest(
                f"structured_outputs.{name} is not supported: use one of "
                f"{', '.join(STRUCTURED_OUTPUTS)}"
            )
    _wish(wishes, "response_format", _response_format(document.get("response_format")))
    if len(wishes) > 1:
        raise InvalidRequest(f"{' and '.join(wishes)} are given together; an answer has one form")
    return next(iter(wishes.values()), None)


def _wish(wishes: dict[str, Structure], field: str, parameters: Mapping[str, object]) -> None:
    structure = parse_structure(parameters)
    if structure is not None:
        wishes[field] = structure


def _response_format(value: object) -> dict[str, object]:
    """response_format under the names that all protocols share."""
    match value:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_object"}:
            return {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"json_schema": schema}
        case {"type": "json_schema"}:
            raise InvalidRequest('response_format.json_schema must be {"name": …, "schema": {…}}')
        case {"type": name}:
            raise InvalidRequest(
                f"response_format.type is {shown(name)}; "
                "it must be text, json_object or json_schema"
            )
        case _:
            raise InvalidRequest(
                f"response_format is {kind(value)}; it must be an object with a type"
            )


def _stream(document: dict[str, Any]) -> StreamOptions | None:
    wanted = document.get("stream")
    streams = wanted is not None and boolean("stream", wanted)
    options = get_object(document, "stream_options", "the request")
    if not streams:
        if options:
            raise InvalidRequest("stream_options is given without stream; stream must be true")
        return None
    flags = {
        name: boolean(f"stream_options.{name}", options[name])
        for name in ("include_usage", "continuous_usage_stats")
        if options.get(name) is not None
    }
    usage = flags.get("include_usage", False)
    return StreamOptions(usage, usage and flags.get("continuous_usage_stats", False))


def _num_logprobs(name: str, value: object) -> int:
    number = integer(name, value)
    if not 0 <= number <= MAX_LOGPROBS:
        raise InvalidRequest(f"{name} is {number}; it must be from 0 to {MAX_LOGPROBS}")
    return number


def _priority(value: object) -> int:
    if value is None:
        return 0
    return max(-MAX_PRIORITY, min(MAX_PRIORITY, integer("priority", value)))


def _cache_salt(value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str):
        raise InvalidRequest(f"cache_salt is {kind(value)}; it must be a string")
    return value.encode()


def ignored_header(ignored: tuple[str, ...]) -> dict[str, str]:
    """X-Ignored-Fields, a JSON list; of many or long names the beginning."""
    if not ignored:
        return {}
    names = [name if len(name) <= 64 else f"{name[:64]}…" for name in ignored[:32]]
    # A client's own names: the one control character that JSON leaves as it is has no place here.
    return {"X-Ignored-Fields": json.dumps(names).replace("\x7f", "\\u007f")}
