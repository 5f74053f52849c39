"""What OpenAI's routes answer, as OpenAPI has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from model.serving.openai_answer import Tally
from model.serving.openapi.parts import (
    COUNT,
    OBJECT,
    STRING,
    answer,
    array,
    either,
    nullable,
    obj,
    one_of,
    ref,
)

if TYPE_CHECKING:
    from model.serving.openapi.parts import Schema

ERROR: Final = "OpenAIError"
NUMBER: Final[Schema] = {"type": "number"}
TOKENS: Final[Schema] = array(COUNT)


def _like(value: object) -> Schema:
    """The schema of an answer's part, from one such part: nothing is left out of it."""
    if isinstance(value, dict):
        return answer({name: _like(one) for name, one in value.items()})
    return COUNT


def _completion(kind: str, choices: Schema, more: dict[str, Schema] | None = None) -> Schema:
    """A whole answer; more: what it has only where it is asked for."""
    whole = {**_head(kind), "choices": array(choices), "usage": ref("OpenAIUsage")}
    return answer({**whole, **(more or {})}, optional=tuple(more or ()))


def _chunk(kind: str, choices: dict[str, Schema]) -> Schema:
    """A piece of an answer that is streamed, or what went wrong with it."""
    return either(
        answer(
            {
                **_head(kind),
                "choices": array(answer({"index": COUNT, **choices})),
                "usage": nullable(ref("OpenAIUsage")),
            },
            optional=("usage",),
        ),
        ref(ERROR),
    )


def _head(kind: str) -> dict[str, Schema]:
    return {"id": STRING, "object": {"const": kind}, "created": COUNT, "model": STRING}


CALLED: Final = {"name": STRING, "arguments": STRING}
CALL: Final = {"id": STRING, "type": {"const": "function"}, "function": answer(CALLED)}
CALL_PIECE: Final = answer(
    {"index": COUNT, **CALL, "function": answer(CALLED, optional=("name",))},
    optional=("id", "type"),
)
MESSAGE: Final = {
    "role": {"const": "assistant"},
    "content": nullable(STRING),
    "refusal": {"type": "null"},
}
LOGPROB: Final[dict[str, Schema]] = {"token": STRING, "logprob": NUMBER, "bytes": array(COUNT)}
CHAT_LOGPROBS: Final = answer(
    {
        "content": array(answer({**LOGPROB, "top_logprobs": array(answer(LOGPROB))})),
        "refusal": {"type": "null"},
    }
)
# Of a prompt's first token nothing is known.
TEXT_LOGPROBS: Final = answer(
    {
        "text_offset": TOKENS,
        "token_logprobs": array(nullable(NUMBER)),
        "tokens": array(STRING),
        "top_logprobs": array(nullable(OBJECT)),
    }
)
PROMPT_LOGPROBS: Final[dict[str, Schema]] = {"prompt_logprobs": array(nullable(OBJECT))}
CHAT_REASON: Final = one_of(("stop", "length", "tool_calls"))
TEXT_REASON: Final = one_of(("stop", "length"))
TEXT: Final[dict[str, Schema]] = {"text": STRING, "logprobs": nullable(TEXT_LOGPROBS)}

COMPONENTS: Final[dict[str, Schema]] = {
    ERROR: answer(
        {
            "error": answer(
                {
                    "message": STRING,
                    "type": STRING,
                    "param": nullable(STRING),
                    "code": nullable(STRING),
                }
            )
        }
    ),
    "OpenAIUsage": _like(Tally().usage()),
    "Model": answer(
        {
            "id": STRING,
            "object": {"const": "model"},
            "created": COUNT,
            "owned_by": STRING,
            "root": STRING,
            "parent": nullable(STRING),
            "max_model_len": nullable(COUNT),
        }
    ),
    "Models": answer({"object": {"const": "list"}, "data": array(ref("Model"))}),
    "ChatCompletion": _completion(
        "chat.completion",
        answer(
            {
                "index": COUNT,
                "message": answer(
                    {**MESSAGE, "tool_calls": array(answer(CALL))}, optional=("tool_calls",)
                ),
                "logprobs": nullable(CHAT_LOGPROBS),
                "finish_reason": CHAT_REASON,
            }
        ),
        PROMPT_LOGPROBS,
    ),
    "ChatCompletionChunk": _chunk(
        "chat.completion.chunk",
        {
            "delta": obj({**MESSAGE, "tool_calls": array(CALL_PIECE)}),
            "logprobs": nullable(CHAT_LOGPROBS),
            "finish_reason": nullable(CHAT_REASON),
        },
    ),
    "Completion": _completion(
        "text_completion",
        answer(
            {"index": COUNT, **TEXT, "finish_reason": TEXT_REASON, **PROMPT_LOGPROBS},
            optional=tuple(PROMPT_LOGPROBS),
        ),
    ),
    "CompletionChunk": _chunk("text_completion", {**TEXT, "finish_reason": nullable(TEXT_REASON)}),
    "Tokens": answer(
        {
            "count": COUNT,
            "max_model_len": COUNT,
            "tokens": TOKENS,
            "token_strs": nullable(array(STRING)),
        }
    ),
}
