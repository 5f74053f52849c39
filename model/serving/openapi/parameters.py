"""Schemas of the request parameters that all protocols share, from the tables that judge them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from model.request import (
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_STOP_TOKENS,
    MOST_ABOVE_ZERO,
    RANGES,
)
from model.serving.openapi.parts import (
    BOOLEAN,
    OBJECT,
    STRING,
    array,
    either,
    nullable,
    ref,
)
from model.serving.parameters import (
    INTEGER_PARAMETERS,
    MAX_TIMEOUT_MICROSECONDS,
    MAX_TIMEOUT_SECONDS,
    MODEL_PARAMETERS,
    PIXEL_PARAMETERS,
    PRIORITY_LEVELS,
)

if TYPE_CHECKING:
    from model.serving.openapi.parts import Schema
    from model.settings import RequestSettings

MEANINGS: Final = {
    "max_tokens": "Tokens of the answer at most.",
    "min_tokens": "Tokens of the answer at least, before an end is allowed; at most max_tokens.",
    "top_k": "Only so many of the most probable tokens are considered; 0: all.",
    "seed": "The same seed gives the same answer.",
    "temperature": "0: always the most probable token.",
    "top_p": "Only the most probable tokens whose probabilities add up to this are considered.",
    "min_p": "Only tokens at least this probable, against the most probable one.",
    "repetition_penalty": "Above 1: against what prompt and answer already hold.",
    "presence_penalty": "Taken once from the logit of what the answer already holds.",
    "frequency_penalty": "The same, for each time that the answer holds it.",
    "stop": "Text that ends the answer, and is no part of it.",
    "stop_token_ids": "Tokens that end the answer; a list, or one as JSON text.",
    "logit_bias": 'Added to the logits of tokens: {"42": -100}, or that as JSON text.',
    "ignore_eos": "Go on past the model's own end, up to max_tokens.",
    "json_schema": "The answer is JSON of this schema; an object, or one as JSON text.",
    "json_object": "The answer is a JSON object.",
    "regex": "The answer matches this pattern as a whole.",
    "choice": "The answer is one of these texts; a list, or one as JSON text.",
    "min_pixels": "A smaller picture is enlarged to this many pixels.",
    "max_pixels": "A larger picture is shrunk to this many pixels.",
}
PRIORITY: Final[Schema] = nullable(
    {
        "type": "integer",
        "minimum": 0,
        "maximum": PRIORITY_LEVELS,
        "description": f"1 goes first, {PRIORITY_LEVELS} last; 0: the default.",
    }
)
TIMEOUT_SECONDS: Final[Schema] = nullable(
    {
        "type": "number",
        "minimum": 0,
        "maximum": MAX_TIMEOUT_SECONDS,
        "description": "How long the request may wait for its turn; 0: as the server has it.",
    }
)
TIMEOUT_MICROSECONDS: Final[Schema] = nullable(
    {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_TIMEOUT_MICROSECONDS,
        "description": "How long the request may wait for its turn, in microseconds; 0: as the "
        "server has it.",
    }
)


PARAMETERS: Final[dict[str, Schema]] = {name: ref(f"parameter.{name}") for name in MODEL_PARAMETERS}


def components(limits: RequestSettings) -> dict[str, Schema]:
    """What PARAMETERS refers to; null counts as not given."""
    return {
        f"parameter.{name}": nullable({**_schema(name, limits), "description": MEANINGS[name]})
        for name in MODEL_PARAMETERS
    }


def _schema(name: str, limits: RequestSettings) -> Schema:
    if name in RANGES:
        low, high = RANGES[name]
        kind = "integer" if name in INTEGER_PARAMETERS else "number"
        return {"type": kind, "minimum": low, "maximum": high}
    if name in MOST_ABOVE_ZERO:
        return {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_ABOVE_ZERO[name]}
    if name in PIXEL_PARAMETERS:
        return {"type": "integer", "minimum": 1}
    match name:
        case "stop":
            text = {"type": "string", "minLength": 1}
            return either(text, array(text, maxItems=limits.max_stop))
        case "stop_token_ids":
            ids = array({"type": "integer", "minimum": 0}, maxItems=MAX_STOP_TOKENS)
            return either(ids, STRING)
        case "logit_bias":
            bias = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
            by_token = {
                "type": "object",
                "patternProperties": {"^[0-9]{1,9}$": bias},
                "additionalProperties": False,
                "maxProperties": MAX_BIASED_TOKENS,
            }
            return either(by_token, STRING)
        case "json_schema":
            return either(OBJECT, STRING)
        case "choice":
            return either(array(STRING), STRING)
        case "regex":
            return STRING
        case "ignore_eos" | "json_object":
            return BOOLEAN
    raise LookupError(f"{name} has no schema")
