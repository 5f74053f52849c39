"""The OpenAI protocol, as OpenAPI has it.

Members that this server does not look at are left out; it takes any, and names them in
X-Ignored-Fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from model.request import MAX_LOGPROBS
from model.serving.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS, GUIDED, STRUCTURED_OUTPUTS
from model.serving.openai_messages import DETAILS, MAX_MESSAGES, MAX_PARTS, ROLES
from model.serving.openai_tools import FUNCTION_NAME, MAX_TOOLS, MODES
from model.serving.openapi.openai_answers import COMPONENTS as ANSWERS
from model.serving.openapi.openai_answers import ERROR, TOKENS
from model.serving.openapi.parameters import PARAMETERS
from model.serving.openapi.parts import (
    BOOLEAN,
    COUNT,
    JSON,
    OBJECT,
    STRING,
    WORK_ERRORS,
    answer,
    array,
    body,
    either,
    errors,
    event,
    in_path,
    nullable,
    obj,
    one_of,
    ref,
    response,
    sample_url,
)
from model.serving.prompt import MAX_ANSWERS
from model.serving.sse import EVENT_STREAM

if TYPE_CHECKING:
    from model.serving.openapi.parts import Schema
    from model.settings import Settings

INTEGER: Final[Schema] = {"type": "integer"}


def _open(properties: dict[str, Schema], *required: str) -> Schema:
    """An object that may have other members."""
    return obj(properties, required=required, closed=False)


def _up_to(most: int) -> Schema:
    return nullable({"type": "integer", "minimum": 0, "maximum": most})


TEXT_PART: Final = _open({"type": {"const": "text"}, "text": STRING}, "type", "text")
PICTURE_PART: Final = _open(
    {
        "type": {"const": "image_url"},
        "image_url": either(
            STRING,
            _open({"url": STRING, "detail": nullable(one_of(DETAILS))}, "url"),
            description="A data: URL with base64, or an http(s) URL where fetching is allowed.",
        ),
    },
    "type",
    "image_url",
)
FUNCTION: Final = _open(
    {
        "name": {"type": "string", "pattern": f"^{FUNCTION_NAME.pattern}$"},
        "parameters": nullable({**OBJECT, "description": "JSON schema of the arguments."}),
        "strict": nullable(BOOLEAN),
    },
    "name",
)
TOOL: Final = _open({"type": {"const": "function"}, "function": FUNCTION}, "type", "function")
CALL: Final = _open(
    {"function": _open({"name": STRING, "arguments": either(STRING, OBJECT)}, "name")}, "function"
)
MESSAGE: Final = _open(
    {
        "role": one_of(ROLES),
        "content": either(
            STRING,
            array(either(STRING, TEXT_PART, PICTURE_PART), maxItems=MAX_PARTS),
            {"type": "null"},
        ),
        "tool_calls": nullable(array(CALL)),
    },
    "role",
)
COMMON: Final[dict[str, Schema]] = {
    **PARAMETERS,
    # -1 is vLLM's way to say all.
    "top_k": either({"const": -1}, PARAMETERS["top_k"]),
    "model": nullable({**STRING, "description": "Default: the one that is served."}),
    "n": nullable({"type": "integer", "minimum": 1, "maximum": MAX_ANSWERS}),
    "stream": nullable(BOOLEAN),
    "stream_options": nullable(
        _open(
            {
                "include_usage": nullable(BOOLEAN),
                "continuous_usage_stats": nullable(BOOLEAN),
            }
        )
    ),
    "response_format": nullable(
        either(
            _open({"type": one_of(("text", "json_object"))}, "type"),
            _open(
                {
                    "type": {"const": "json_schema"},
                    "json_schema": _open({"schema": OBJECT}, "schema"),
                },
                "type",
            ),
        )
    ),
    "structured_outputs": nullable(
        _open({name: PARAMETERS[ours] for name, ours in STRUCTURED_OUTPUTS.items()})
    ),
    **{name: PARAMETERS[STRUCTURED_OUTPUTS[kind]] for name, kind in GUIDED.items()},
    "mm_processor_kwargs": nullable(
        obj(
            {
                "min_pixels": PARAMETERS["min_pixels"],
                "max_pixels": PARAMETERS["max_pixels"],
                "size": nullable(
                    obj(
                        {
                            "shortest_edge": PARAMETERS["min_pixels"],
                            "longest_edge": PARAMETERS["max_pixels"],
                        }
                    )
                ),
            }
        )
    ),
    "prompt_logprobs": _up_to(MAX_LOGPROBS),
    "priority": nullable({**INTEGER, "description": "Lower goes first; 0 is the default."}),
    "cache_salt": nullable(
        {**STRING, "description": "Cached work is shared only with requests of the same."}
    ),
}

COMPONENTS: Final[dict[str, Schema]] = {**ANSWERS, "Message": MESSAGE, "Tool": TOOL}


def operations(settings: Settings) -> dict[tuple[str, str], dict[str, Any]]:
    """What each route takes and answers, by method and path."""
    return {
        ("get", "/v1/models"): {
            "responses": {
                "200": response("The served names.", {JSON: ref("Models")}),
                **errors(500, form=ERROR),
            }
        },
        ("get", "/v1/models/{model_name}"): {
            "parameters": [in_path("model_name", one_of(settings.model.names))],
            "responses": {
                "200": response("A served name.", {JSON: ref("Model")}),
                **errors(404, 500, form=ERROR),
            },
        },
        ("post", "/v1/chat/completions"): {
            **body({JSON: _chat()}, _CHATS),
            "responses": _answered("ChatCompletion"),
        },
        ("post", "/v1/completions"): {
            **body({JSON: _completion(settings)}, _COMPLETIONS),
            "responses": _answered("Completion"),
        },
        ("post", "/tokenize"): {
            **body({JSON: _tokenize()}, _TOKENIZED),
            "responses": {
                "200": response("The tokens.", {JSON: ref("Tokens")}),
                **errors(404, *WORK_ERRORS),
            },
        },
        ("post", "/detokenize"): {
            **body(
                {JSON: _open({"model": nullable(STRING), "tokens": TOKENS}, "tokens")},
                {"three tokens": {"tokens": [40, 41, 42]}},
            ),
            "responses": {
                "200": response("Their text.", {JSON: answer({"prompt": STRING})}),
                **errors(404, *WORK_ERRORS),
            },
        },
    }


def _answered(name: str) -> dict[str, Any]:
    ignored = {
        "X-Ignored-Fields": {
            "description": "Members of the request that had no effect, as a JSON list.",
            "schema": STRING,
        }
    }
    return {
        "200": response(
            "As a whole; with `stream`, events: chunks, then `[DONE]`.",
            {JSON: ref(name), EVENT_STREAM: event(ref(f"{name}Chunk"), last="[DONE]")},
            ignored,
        ),
        **errors(404, *WORK_ERRORS, form=ERROR),
    }


def _chat() -> Schema:
    named = _open({"name": FUNCTION["properties"]["name"]}, "name")
    chosen = _open({"type": {"const": "function"}, "function": named}, "type", "function")
    allowed = _open(
        {"mode": one_of(("auto", "required")), "tools": array(ref("Tool"))}, "mode", "tools"
    )
    limited = _open(
        {"type": {"const": "allowed_tools"}, "allowed_tools": allowed}, "type", "allowed_tools"
    )
    properties = {
        **COMMON,
        "messages": array(ref("Message"), minItems=1, maxItems=MAX_MESSAGES),
        "max_completion_tokens": COMMON["max_tokens"],
        "logprobs": nullable(BOOLEAN),
        "top_logprobs": _up_to(MAX_LOGPROBS),
        "tools": nullable(array(ref("Tool"), maxItems=MAX_TOOLS)),
        "tool_choice": nullable(either(one_of(MODES), chosen, limited)),
        "parallel_tool_calls": nullable(BOOLEAN),
    }
    assert properties.keys() == set(CHAT_FIELDS)
    return _open(properties, "messages")


def _completion(settings: Settings) -> Schema:
    text_or_tokens = either(STRING, array(COUNT))
    properties = {
        **COMMON,
        "prompt": either(
            STRING,
            array(COUNT, minItems=1),
            array(text_or_tokens, minItems=1, maxItems=settings.request.max_batch),
        ),
        "max_tokens": either(
            {"const": 0, "description": "With echo: the prompt alone."}, COMMON["max_tokens"]
        ),
        "logprobs": _up_to(MAX_LOGPROBS),
        "echo": nullable({**BOOLEAN, "description": "Begin with the prompt, and its logprobs."}),
        "best_of": nullable({"type": "integer", "minimum": 1, "maximum": MAX_ANSWERS}),
    }
    assert properties.keys() == set(COMPLETION_FIELDS)
    return _open(properties, "prompt")


def _tokenize() -> Schema:
    common: dict[str, Schema] = {
        "model": nullable(STRING),
        "return_token_strs": nullable(BOOLEAN),
    }
    return either(
        _open({**common, "prompt": STRING, "add_special_tokens": nullable(BOOLEAN)}, "prompt"),
        _open(
            {
                **common,
                "messages": array(ref("Message"), minItems=1, maxItems=MAX_MESSAGES),
                "tools": nullable(array(ref("Tool"), maxItems=MAX_TOOLS)),
                "add_generation_prompt": nullable(BOOLEAN),
            },
            "messages",
        ),
    )


_PICTURE: Final = {"type": "image_url", "image_url": {"url": sample_url()}}
_QUESTION: Final = {"type": "text", "text": "What color is the circle?"}
_CHATS: Final = {
    "a question about a picture": {
        "messages": [{"role": "user", "content": [_PICTURE, _QUESTION]}],
        "max_tokens": 20,
    },
    "text alone, with logprobs": {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What do you see?"},
        ],
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
    },
    "a stream": {
        "messages": [{"role": "user", "content": [_PICTURE, _QUESTION]}],
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
}
_COMPLETIONS: Final = {
    "a text": {"prompt": "A small red", "max_tokens": 5},
    "two, with logprobs": {"prompt": ["A small", "A large"], "max_tokens": 3, "logprobs": 1},
    "a prompt's logprobs": {"prompt": "A red", "max_tokens": 0, "echo": True, "logprobs": 1},
}
_TOKENIZED: Final = {
    "a text": {"prompt": "A small red circle", "return_token_strs": True},
    "messages": {"messages": [{"role": "user", "content": [_PICTURE, _QUESTION]}]},
}
