"""Request parameters, as every protocol takes them: names, types and what they become.

The numbers' ranges are SamplingParams' own; here is what a JSON value or protobuf scalar may be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from model.errors import InvalidRequest
from model.request import MAX_BIASED_TOKENS, MAX_STOP_TOKENS, SamplingParams
from model.serving.images import PixelBounds
from model.serving.structure import ANY_OBJECT, Choice, JsonSchema, Regex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.checkpoint import DefaultSampling
    from model.serving.structure import Structure

INTEGER_PARAMETERS: Final = ("max_tokens", "min_tokens", "top_k", "seed")
NUMBER_PARAMETERS: Final = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
SAMPLING_PARAMETERS: Final = (
    *INTEGER_PARAMETERS,
    *NUMBER_PARAMETERS,
    "stop",
    "stop_token_ids",
    "logit_bias",
    "ignore_eos",
)
STRUCTURE_PARAMETERS: Final = ("json_schema", "json_object", "regex", "choice")
PIXEL_PARAMETERS: Final = ("min_pixels", "max_pixels")
MODEL_PARAMETERS: Final = (*SAMPLING_PARAMETERS, *STRUCTURE_PARAMETERS, *PIXEL_PARAMETERS)

# Unmodified V2 clients send these of their own accord, so they are let through: `headers` and the
# prefixed ones (of sequences) mean nothing to this model.
PROTOCOL_PARAMETERS: Final = (
    "binary_data_output",
    "content_type",
    "headers",
    "priority",
    "timeout",
)
IGNORED_PREFIXES: Final = ("sequence_", "triton_")

# As Triton counts them: 1 goes first, 0 is the default, which is the middle one.
PRIORITY_LEVELS: Final = 9
DEFAULT_PRIORITY: Final = 5
MAX_TIMEOUT_SECONDS: Final = 24 * 3600
MAX_TIMEOUT_MICROSECONDS: Final = MAX_TIMEOUT_SECONDS * 1_000_000


def sampling_defaults(default: DefaultSampling, max_tokens: int) -> SamplingParams:
    """What a request without parameters gets: the checkpoint's sampling, the server's length."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=default.temperature,
        top_p=default.top_p,
        top_k=default.top_k,
        repetition_penalty=default.repetition_penalty,
    )


def check_parameter_names(parameters: Mapping[str, object]) -> None:
    """Raise InvalidRequest for a name that neither the model nor the V2 protocol knows."""
    for name in parameters:
        known = name in MODEL_PARAMETERS or name in PROTOCOL_PARAMETERS
        if not known and not name.startswith(IGNORED_PREFIXES):
            raise InvalidRequest(
                f"unknown parameter {shown(name)}; known: {', '.join(MODEL_PARAMETERS)}"
            )


def parse_sampling(
    parameters: Mapping[str, object], defaults: SamplingParams, *, max_stop: int
) -> SamplingParams:
    """SamplingParams from the values given by name, the defaults where none is given.

    max_stop: stop strings of one request
    Null counts as not given; other names are left to `check_parameter_names`.
    Raises InvalidRequest with the name, the value and what it must be.
    """
    given = {
        name: parameters[name] for name in SAMPLING_PARAMETERS if parameters.get(name) is not None
    }
    if not given:
        return defaults
    values: dict[str, object] = {}
    for name, value in given.items():
        if name in INTEGER_PARAMETERS:
            values[name] = integer(name, value)
        elif name in NUMBER_PARAMETERS:
            values[name] = _number(name, value)
        else:
            values[name] = _other(name, value, max_stop)
    return replace(defaults, **values)  # type: ignore[arg-type]


def parse_structure(parameters: Mapping[str, object]) -> Structure | None:
    """What the answer must look like, None where nothing is asked; at most one way to say it.

    A schema and a list may come as JSON text, since protobuf parameters hold neither.
    """
    given = [name for name in STRUCTURE_PARAMETERS if parameters.get(name) is not None]
    if parameters.get("json_object") is False:
        given.remove("json_object")
    if len(given) > 1:
        raise InvalidRequest(f"{' and '.join(given)} are given together; an answer has one form")
    if not given:
        return None
    value = parameters[given[0]]
    match given[0]:
        case "json_schema":
            return JsonSchema(_json_text("json_schema", value))
        case "regex":
            return Regex(_string("regex", value))
        case "choice":
            return Choice(_choice(value))
        case _:
            boolean("json_object", value)
            return ANY_OBJECT


def parse_priority(parameters: Mapping[str, object]) -> int:
    """V2's `priority`, 1 to 9, as the engine has it: lower goes first, 0 is the default."""
    value = parameters.get("priority")
    if value is None:
        return 0
    level = integer("priority", value)
    if not 0 <= level <= PRIORITY_LEVELS:
        raise InvalidRequest(
            f"priority is {level}; it must be from 1, which goes first, to {PRIORITY_LEVELS}, "
            f"or 0 for the default, {DEFAULT_PRIORITY}"
        )
    return (level or DEFAULT_PRIORITY) - DEFAULT_PRIORITY


def parse_max_queue_seconds(parameters: Mapping[str, object]) -> float | None:
    """V2's `timeout`, microseconds that a request may wait for its first step; 0 is none."""
    value = parameters.get("timeout")
    if value is None:
        return None
    microseconds = integer("timeout", value)
    if not 0 <= microseconds <= MAX_TIMEOUT_MICROSECONDS:
        raise InvalidRequest(
            f"timeout is {microseconds}; it must be from 0 to {MAX_TIMEOUT_MICROSECONDS} "
            "microseconds"
        )
    return microseconds / 1e6 or None


def parse_timeout_seconds(parameters: Mapping[str, object]) -> float | None:
    """The same in seconds, as `timeout_seconds`: for protocols whose names are our own."""
    value = parameters.get("timeout_seconds")
    if value is None:
        return None
    seconds = _number("timeout_seconds", value)
    if not 0 <= seconds <= MAX_TIMEOUT_SECONDS:  # also for NaN
        raise InvalidRequest(
            f"timeout_seconds is {seconds:g}; it must be from 0 to {MAX_TIMEOUT_SECONDS}"
        )
    return seconds or None


def parse_pixel_bounds(parameters: Mapping[str, object]) -> PixelBounds:
    """The area a request asks for; the decoder judges it against the server's limits."""
    low, high = (_pixels(name, parameters.get(name)) for name in PIXEL_PARAMETERS)
    if low is not None and high is not None and low > high:
        raise InvalidRequest(f"min_pixels is {low}; it must be at most max_pixels, which is {high}")
    return PixelBounds(low, high)


def boolean(name: str, value: object) -> bool:
    """The value of a true/false parameter; raises InvalidRequest."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be true or false")
    return value


def shown(value: object, max_length: int = 80) -> str:
    """A client's value for an error message: on one line, never long."""
    match value:
        case bool():
            return str(value).lower()
        case str() | bytes() if len(value) > max_length:
            return f"{value[:max_length]!r}… ({len(value)} long)"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case None:
            return "null"
        case _:
            return repr(value)


def integer(name: str, value: object) -> int:
    """The value of a whole-number parameter; raises InvalidRequest."""
    if isinstance(value, float) and abs(value) >= 1 << 63 and value.is_integer():
        # JSON's integers of more than 64 bits come as floats.
        raise InvalidRequest(f"{name} is {value}; it must be an integer of at most 64 bits")
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be an integer, {_hint(value)}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be a number, {_hint(value)}")
    try:
        return float(value)
    except OverflowError as e:
        raise InvalidRequest(f"{name} is an integer too large for a number") from e


def _hint(value: object) -> str:
    match value:
        case str():
            return "not a string"
        case bool():
            return "not a truth value"
        case float():
            return "not a fraction"
        case _:
            return "a single one"


def _pixels(name: str, value: object) -> int | None:
    if value is None:
        return None
    pixels = integer(name, value)
    if pixels < 1:
        raise InvalidRequest(f"{name} is {pixels}; it must be at least 1")
    return pixels


def _other(name: str, value: object, max_stop: int) -> object:
    match name:
        case "stop":
            return _stop(value, max_stop)
        case "stop_token_ids":
            return _stop_token_ids(value)
        case "logit_bias":
            return _logit_bias(value)
        case _:
            return boolean(name, value)


def _stop_token_ids(value: object) -> frozenset[int]:
    ids = _parsed(value)
    if not isinstance(ids, list | tuple):
        raise InvalidRequest(f"stop_token_ids is {shown(value)}; it must be a list of integers")
    if len(ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(f"stop_token_ids has {len(ids)} ids; the limit is {MAX_STOP_TOKENS}")
    return frozenset(integer("stop_token_ids holds a value that", token_id) for token_id in ids)


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    biases = _parsed(value)
    if not isinstance(biases, dict):
        raise InvalidRequest(
            f'logit_bias is {shown(value)}; it must be an object of token ids, as {{"42": -100}}'
        )
    if len(biases) > MAX_BIASED_TOKENS:
        raise InvalidRequest(
            f"logit_bias has {len(biases)} token ids; the limit is {MAX_BIASED_TOKENS}"
        )
    return tuple(
        (_token_id(key), _number(f"logit_bias of {shown(key)}", bias))
        for key, bias in biases.items()
    )


def _token_id(key: object) -> int:
    # isdecimal alone would take the digits of every script.
    if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10):
        raise InvalidRequest(f'logit_bias has the key {shown(key)}; keys are token ids, as "42"')
    return int(key)


def _choice(value: object) -> tuple[str, ...]:
    texts = _parsed(value)
    if not isinstance(texts, list | tuple) or any(not isinstance(text, str) for text in texts):
        raise InvalidRequest(f"choice is {shown(value)}; it must be a list of strings")
    return tuple(texts)


def _json_text(name: str, value: object) -> str:
    """A JSON object as text, which it may be already."""
    if not isinstance(_parsed(value), dict):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be a JSON object")
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _parsed(value: object) -> object:
    """A value that came as JSON text, else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be a string")
    return value


def _stop(value: object, max_stop: int) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or any(not isinstance(text, str) for text in texts):
        raise InvalidRequest(f"stop is {shown(value)}; it must be a string or a list of strings")
    if len(texts) > max_stop:
        raise InvalidRequest(f"stop has {len(texts)} strings; the limit is {max_stop}")
    return tuple(texts)
