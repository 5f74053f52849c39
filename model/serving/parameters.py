"""Request parameters, as every protocol takes them: names, types and what they become.

The numbers' ranges are SamplingParams' own; here is what a JSON value or protobuf scalar may be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from model.errors import InvalidRequest
from model.request import SamplingParams
from model.serving.images import PixelBounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.checkpoint import DefaultSampling

INTEGER_PARAMETERS: Final = ("max_tokens", "min_tokens", "top_k", "seed")
NUMBER_PARAMETERS: Final = ("temperature", "top_p", "min_p", "repetition_penalty")
SAMPLING_PARAMETERS: Final = (*INTEGER_PARAMETERS, *NUMBER_PARAMETERS, "stop", "ignore_eos")
PIXEL_PARAMETERS: Final = ("min_pixels", "max_pixels")
MODEL_PARAMETERS: Final = (*SAMPLING_PARAMETERS, *PIXEL_PARAMETERS)

# Unmodified V2 clients send these of their own accord, so they are let through: the first two are
# acted on, the rest (sequences, priorities, queue timeouts) mean nothing to this model.
PROTOCOL_PARAMETERS: Final = (
    "binary_data_output",
    "content_type",
    "headers",
    "priority",
    "timeout",
)
IGNORED_PREFIXES: Final = ("sequence_", "triton_")


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
            values[name] = _integer(name, value)
        elif name in NUMBER_PARAMETERS:
            values[name] = _number(name, value)
        elif name == "stop":
            values[name] = _stop(value, max_stop)
        else:
            values[name] = boolean(name, value)
    return replace(defaults, **values)  # type: ignore[arg-type]


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


def _integer(name: str, value: object) -> int:
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
    pixels = _integer(name, value)
    if pixels < 1:
        raise InvalidRequest(f"{name} is {pixels}; it must be at least 1")
    return pixels


def _stop(value: object, max_stop: int) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or any(not isinstance(text, str) for text in texts):
        raise InvalidRequest(f"stop is {shown(value)}; it must be a string or a list of strings")
    if len(texts) > max_stop:
        raise InvalidRequest(f"stop has {len(texts)} strings; the limit is {max_stop}")
    return tuple(texts)
