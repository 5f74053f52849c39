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
    parse_max_queue_seconds,
    parse_pixel_bounds,
    parse_priority,
    parse_sampling,
    parse_structure,
    sampling_defaults,
)
from model.serving.structure import ANY_OBJECT, Choice, JsonSchema, Regex, Structure

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
        presence_penalty=-2,
        frequency_penalty=0.5,
        logit_bias={"3": 5, "0": -1.5},
        seed=9,
        stop=["a", "b"],
        stop_token_ids=[4, 5, 4],
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
        presence_penalty=-2.0,
        frequency_penalty=0.5,
        logit_bias=((3, 5.0), (0, -1.5)),
        seed=9,
        stop=("a", "b"),
        stop_token_ids=frozenset({4, 5}),
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
        pytest.param(
            {"seed": 1e19}, "1e+19; it must be an integer of at most 64 bits", id="70 bits"
        ),
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
        pytest.param({"presence_penalty": 2.5}, "presence_penalty is 2.5; it", id="presence"),
        pytest.param({"frequency_penalty": -3}, "is -3.0; it must be from -2.0 to 2.0", id="freq"),
        pytest.param({"logit_bias": [1]}, "a list of 1; it must be an object", id="bias a list"),
        pytest.param({"logit_bias": "{"}, "'{'; it must be an object", id="bias no JSON"),
        pytest.param({"logit_bias": {"a": 1}}, "has the key 'a'", id="bias of a word"),
        pytest.param({"logit_bias": {"-1": 1}}, "has the key '-1'", id="bias of a negative id"),
        pytest.param({"logit_bias": {"٣": 1}}, "has the key '٣'", id="bias of other digits"),
        pytest.param({"logit_bias": {"3": "1"}}, "logit_bias of '3' is '1'", id="bias a string"),
        pytest.param({"logit_bias": {"3": 101}}, "token id 3 is 101.0; it must", id="bias range"),
        pytest.param({"logit_bias": {"3": float("nan")}}, "token id 3 is nan", id="bias NaN"),
        pytest.param({"logit_bias": {"3": 1, "03": 1}}, "a token id twice", id="an id twice"),
        pytest.param(
            {"logit_bias": {str(i): 0 for i in range(1025)}},
            "1025 token ids; the limit is 1024",
            id="too many biases",
        ),
        pytest.param({"stop_token_ids": 5}, "5; it must be a list of integers", id="one stop id"),
        pytest.param({"stop_token_ids": "x"}, "'x'; it must be a list", id="stop ids a word"),
        pytest.param({"stop_token_ids": [1, "2"]}, "is '2'; it must be an integer", id="stop id"),
        pytest.param({"stop_token_ids": [-2]}, "token id -2; ids begin at 0", id="stop id below 0"),
        pytest.param(
            {"stop_token_ids": list(range(1025))}, "the limit is 1024", id="too many stop ids"
        ),
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


def test_what_protobuf_cannot_hold_comes_as_json_text() -> None:
    sampling = parse(logit_bias='{"3": 5}', stop_token_ids="[1, 2]")
    assert sampling.logit_bias == ((3, 5.0),)
    assert sampling.stop_token_ids == {1, 2}


@pytest.mark.parametrize(
    ("parameters", "structure"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"json_object": False, "regex": None}, None, id="none that counts"),
        pytest.param({"json_object": True}, ANY_OBJECT, id="any object"),
        pytest.param(
            {"json_schema": {"type": "object"}}, JsonSchema('{"type":"object"}'), id="schema"
        ),
        pytest.param({"json_schema": '{"a": 1}'}, JsonSchema('{"a": 1}'), id="schema as text"),
        pytest.param({"regex": "[0-9]"}, Regex("[0-9]"), id="regex"),
        pytest.param({"choice": ["a", "b"]}, Choice(("a", "b")), id="choice"),
        pytest.param({"choice": '["a"]'}, Choice(("a",)), id="choice as text"),
    ],
)
def test_structures(parameters: dict[str, Any], structure: Structure | None) -> None:
    assert parse_structure(parameters) == structure


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        pytest.param({"regex": "a", "json_object": True}, "json_object and regex are", id="two"),
        pytest.param({"regex": 5}, "regex is 5; it must be a string", id="regex a number"),
        pytest.param({"choice": "yes"}, "choice is 'yes'; it must be a list", id="choice a word"),
        pytest.param({"choice": ["a", 1]}, "choice is a list of 2", id="choice mixed"),
        pytest.param({"json_object": 1}, "1; it must be true or false", id="object a number"),
        pytest.param({"json_schema": "{"}, "json_schema is '{'; it must", id="broken schema"),
        pytest.param({"json_schema": True}, "true; it must be a JSON object", id="a true schema"),
        pytest.param({"json_schema": [1]}, "a list of 1; it must be a JSON", id="schema a list"),
    ],
)
def test_bad_structures_are_named(parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_structure(parameters)
    assert text in str(raised.value)


def test_priority_is_tritons_around_a_default_in_the_middle() -> None:
    levels = [parse_priority({"priority": level}) for level in range(1, 10)]
    assert levels == sorted(levels)
    assert levels[4] == parse_priority({"priority": 0}) == parse_priority({}) == 0


def test_timeout_is_microseconds_and_zero_is_none() -> None:
    assert parse_max_queue_seconds({"timeout": 2_500_000}) == 2.5
    assert parse_max_queue_seconds({"timeout": 0}) is None
    assert parse_max_queue_seconds({}) is None


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        pytest.param({"priority": 10}, "priority is 10; it must be from 1", id="too low"),
        pytest.param({"priority": -1}, "priority is -1; it", id="negative"),
        pytest.param({"priority": "1"}, "'1'; it must be an integer", id="string"),
        pytest.param({"timeout": -1}, "timeout is -1; it must be from 0 to", id="negative timeout"),
        pytest.param({"timeout": 1.5}, "timeout is 1.5; it must be an integer", id="fraction"),
        pytest.param({"timeout": True}, "true; it must be an integer", id="truth"),
        pytest.param({"timeout": 10**18}, "microseconds", id="centuries"),
    ],
)
def test_bad_priorities_and_timeouts_are_named(parameters: dict[str, Any], text: str) -> None:
    parse_it = parse_priority if "priority" in parameters else parse_max_queue_seconds
    with pytest.raises(InvalidRequest, match=text):
        parse_it(parameters)


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
