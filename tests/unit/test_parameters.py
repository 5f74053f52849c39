"""Request parameters by name and type, the same in every protocol."""

from __future__ import annotations

from typing import Any

import pytest

from model.checkpoint import DefaultSampling
from model.errors import InvalidRequest
from model.request import SamplingParams
from model.serving.images import PixelBounds
from model.serving.parameters import (
    check_parameter_names,
    parse_pixel_bounds,
    parse_sampling,
    sampling_defaults,
)

DEFAULTS = sampling_defaults(DefaultSampling(temperature=0.7, top_p=0.8, top_k=20), 100)


def parse(**parameters: object) -> SamplingParams:
    return parse_sampling(parameters, DEFAULTS, max_stop=4)


def test_nothing_given_is_the_checkpoints_sampling() -> None:
    assert parse() == SamplingParams(max_tokens=100, temperature=0.7, top_p=0.8, top_k=20)


def test_everything_given_is_taken() -> None:
    sampling = parse(
        max_tokens=7,
        min_tokens=2,
        temperature=1,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.5,
        seed=9,
        stop=["a", "b"],
        ignore_eos=True,
    )
    assert sampling == SamplingParams(
        max_tokens=7,
        min_tokens=2,
        temperature=1.0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.5,
        seed=9,
        stop=("a", "b"),
        ignore_eos=True,
    )
    assert isinstance(sampling.temperature, float)


def test_null_is_not_given_and_other_names_are_not_looked_at() -> None:
    assert parse(max_tokens=None, stop=None, binary_data_output=True) == DEFAULTS


def test_one_stop_string_needs_no_list() -> None:
    assert parse(stop="end").stop == ("end",)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        pytest.param({"max_tokens": "5"}, "'5'; it must be an integer, not a string", id="string"),
        pytest.param({"max_tokens": True}, "true; it must be an integer", id="bool is no int"),
        pytest.param({"max_tokens": 5.0}, "5.0; it must be an integer", id="fraction"),
        pytest.param({"max_tokens": [5]}, "a list of 1; it must be an integer", id="list"),
        pytest.param({"max_tokens": 0}, "max_tokens is 0; it must be from 1", id="zero"),
        pytest.param({"max_tokens": -1}, "max_tokens is -1", id="negative"),
        pytest.param({"max_tokens": 10**9}, "max_tokens is 1000000000", id="10^9"),
        pytest.param({"min_tokens": 101}, "from 0 to 100", id="min above max"),
        pytest.param({"temperature": "hot"}, "'hot'; it must be a number", id="temperature text"),
        pytest.param({"temperature": False}, "false; it must be a number", id="bool is no float"),
        pytest.param({"temperature": float("nan")}, "temperature is nan", id="NaN"),
        pytest.param({"temperature": 10**400}, "too large", id="beyond a float"),
        pytest.param({"top_p": 0}, "top_p is 0.0; it must be above 0", id="top_p zero"),
        pytest.param({"seed": -1}, "seed is -1", id="negative seed"),
        pytest.param({"seed": 2**64 - 1}, "seed is 18446744073709551615", id="unsigned seed"),
        pytest.param({"ignore_eos": 1}, "1; it must be true or false", id="int is no bool"),
        pytest.param({"stop": 5}, "stop is 5", id="stop a number"),
        pytest.param({"stop": ["a", 5]}, "a list of 2; it must be a string or", id="mixed stops"),
        pytest.param({"stop": ["a"] * 5}, "5 strings; the limit is 4", id="five stops"),
        pytest.param({"stop": [""]}, "empty string", id="an empty stop"),
        pytest.param({"stop": "s" * 9999, "top_k": "t" * 9999}, "(9999 long)", id="a long value"),
    ],
)
def test_a_bad_value_is_named(parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(**parameters)
    assert text in str(raised.value)
    assert len(str(raised.value)) < 250


def test_unknown_names_are_refused_and_the_known_ones_told() -> None:
    check_parameter_names({"max_tokens": 1, "sequence_id": 3, "triton_x": 1, "timeout": 5})
    with pytest.raises(InvalidRequest, match="unknown parameter 'tempature'; known: max_tokens"):
        check_parameter_names({"tempature": 1})


def test_pixel_bounds() -> None:
    assert parse_pixel_bounds({}) == PixelBounds()
    assert parse_pixel_bounds({"min_pixels": 4, "max_pixels": 9}) == PixelBounds(4, 9)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        pytest.param({"min_pixels": 0}, "min_pixels is 0; it must be at least 1", id="zero"),
        pytest.param({"max_pixels": "4"}, "max_pixels is '4'", id="string"),
        pytest.param({"min_pixels": 9, "max_pixels": 4}, "max_pixels, which is 4", id="crossed"),
    ],
)
def test_bad_pixel_bounds_are_named(parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        parse_pixel_bounds(parameters)
