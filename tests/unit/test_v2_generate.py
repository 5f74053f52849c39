"""The generate extension's bodies: plain fields to tensors, tensors to plain fields."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from kserve import InferOutput, InferRequest, InferResponse

from model.errors import InvalidRequest
from model.serving.v2_generate import DeltaEvents, decode_generate, encode_answer
from model.serving.v2_model import Delta
from model.serving.v2_tensors import Limits

PICTURE = b"\xff\xd8\xff not really"
TEXT = base64.b64encode(PICTURE).decode()


def decode(**fields: object) -> InferRequest:
    limits = Limits(max_batch=4, max_images=3)
    return decode_generate(json.dumps(fields).encode(), model_name="m", limits=limits)


@pytest.mark.parametrize(
    ("image", "shape", "data"),
    [
        pytest.param(TEXT, [1], [PICTURE], id="one picture"),
        pytest.param([TEXT, TEXT], [2], [PICTURE] * 2, id="a list is a batch"),
        pytest.param([[TEXT, TEXT]], [1, 2], [PICTURE] * 2, id="a list of lists: several a prompt"),
        pytest.param(f"data:image/png;base64,{TEXT}", [1], [PICTURE], id="a data: URL"),
        pytest.param("https://a/b", [1], [b"https://a/b"], id="a URL stays a URL"),
        pytest.param(["https://a/b", TEXT], [2], [b"https://a/b", PICTURE], id="both"),
    ],
)
def test_images_become_a_tensor(image: object, shape: list[int], data: list[bytes]) -> None:
    request = decode(image=image)
    assert request.inputs[0].shape == shape
    assert request.inputs[0].data == data


@pytest.mark.parametrize("field", ["prompt", "text_input"])
def test_the_prompt_has_two_names(field: str) -> None:
    assert decode(image=TEXT, **{field: "hä?"}).get_input_by_name("prompt").data == ["hä?".encode()]


def test_other_fields_are_parameters() -> None:
    request = decode(image=TEXT, id="5", max_tokens=3, parameters={"stop": '["a"]'})
    assert request.parameters == {"stop": ["a"], "max_tokens": 3}
    assert request.id == "5"


def test_a_declared_base64_is_not_decoded_twice() -> None:
    assert decode(image=TEXT, content_type="base64").inputs[0].data == [PICTURE]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({}, "'image' is missing", id="no image"),
        pytest.param({"image": "§"}, "not valid base64", id="no base64"),
        pytest.param({"image": 3}, "image holds a number", id="a number for an image"),
        pytest.param({"image": []}, "shape [0]", id="no images"),
        pytest.param({"image": [[]]}, "shape [1, 0]", id="a prompt without images"),
        pytest.param({"image": [[TEXT], [TEXT, TEXT]]}, "different length", id="ragged"),
        pytest.param({"image": [[TEXT], TEXT]}, "image holds a list", id="half nested"),
        pytest.param({"image": [TEXT] * 5}, "limit is 4", id="too large a batch"),
        pytest.param({"image": "data:text/plain,x"}, "must be base64", id="a data: URL of text"),
        pytest.param({"image": TEXT, "prompt": 4}, "prompt holds a number", id="numeric prompt"),
        pytest.param(
            {"image": TEXT, "prompt": "a", "text_input": "b"}, "one field", id="two prompts"
        ),
        pytest.param({"image": TEXT, "max_token": 4}, "'max_token'; known", id="unknown field"),
        pytest.param(
            {"image": TEXT, "top_k": 4, "parameters": {"top_k": 5}}, "given twice", id="twice"
        ),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(**fields)
    assert text in str(raised.value)


def response(texts: list[str], reasons: list[str]) -> InferResponse:
    num = len(texts)
    return InferResponse(
        None,
        "m",
        [
            InferOutput("text", [num], "BYTES", texts),
            InferOutput("finish_reason", [num], "BYTES", reasons),
            InferOutput("prompt_tokens", [num], "INT32", [70] * num),
            InferOutput("completion_tokens", [num], "INT32", [3] * num),
        ],
        model_version="1",
    )


def test_one_answer_has_single_values() -> None:
    assert encode_answer(response(["hi"], ["stop"]), decode(image=TEXT, id="9")) == {
        "model_name": "m",
        "model_version": "1",
        "id": "9",
        "text": "hi",
        "text_output": "hi",
        "finish_reason": "stop",
        "prompt_tokens": 70,
        "completion_tokens": 3,
    }


def test_a_batch_has_lists() -> None:
    answer = encode_answer(response(["a", "b"], ["stop"] * 2), decode(image=[TEXT, TEXT]))
    assert answer["text"] == ["a", "b"]
    assert answer["completion_tokens"] == [3, 3]


def test_only_the_last_delta_says_why_it_ended() -> None:
    events = DeltaEvents(decode(image=TEXT, id='"9"'))

    def read(event: bytes) -> dict[str, Any]:
        assert (event[:6], event[-2:]) == (b"data: ", b"\n\n")
        told: dict[str, Any] = json.loads(event[6:])
        return told

    head = {"model_name": "m", "model_version": "1", "id": '"9"'}
    text = {"text": 'a"\n\u00e9', "text_output": 'a"\n\u00e9'}
    assert read(events.event(Delta(text["text"], "", 7, 1))) == {**head, **text}
    counts = {"finish_reason": "length", "prompt_tokens": 7, "completion_tokens": 2}
    assert read(events.event(Delta(text["text"], "length", 7, 2))) == {**head, **text, **counts}
