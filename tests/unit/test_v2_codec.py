"""The V2 HTTP codec: what clients send becomes `bytes`, what is wrong becomes a sentence."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve import InferOutput, InferRequest, InferResponse

from model.errors import InvalidRequest
from model.serving.v2_codec import HEADER_LENGTH, decode_request, encode_response
from model.serving.v2_tensors import Limits

LIMITS = Limits(max_batch=4, max_images=3)
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\xff\xd9"


def decode(body: bytes, header_length: str | None = None) -> InferRequest:
    return decode_request(body, header_length, model_name="m", limits=LIMITS)


def image(**changes: object) -> dict[str, Any]:
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["x"], **changes}
    return {key: value for key, value in given.items() if value is not ...}


def document(*inputs: object, **members: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def prefixed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary(
    raw: bytes, *, shape: list[int], size: object = None, extra: bytes = b""
) -> InferRequest:
    described = image(
        shape=shape, data=..., parameters={"binary_data_size": len(raw) if size is None else size}
    )
    head = document(described)
    return decode(head + raw + extra, str(len(head)))


def test_raw_jpeg_bytes_pass_the_binary_extension_unchanged() -> None:
    request = binary(prefixed(JPEG, b""), shape=[2])
    assert request.inputs[0].data == [JPEG, b""]
    assert request.inputs[0].shape == [2]


def test_two_binary_inputs_follow_each_other() -> None:
    pictures, prompts = prefixed(JPEG), prefixed("wie viele ●?".encode())
    head = document(
        image(data=..., parameters={"binary_data_size": len(pictures)}),
        image(name="prompt", data=..., parameters={"binary_data_size": len(prompts)}),
        id="7",
        parameters={"max_tokens": 5, "binary_data_output": True},
    )
    request = decode(head + pictures + prompts, str(len(head)))
    assert [tensor.data for tensor in request.inputs] == [[JPEG], ["wie viele ●?".encode()]]
    assert request.id == "7"
    assert request.parameters == {"max_tokens": 5, "binary_data_output": True}


def test_json_and_binary_inputs_mix() -> None:
    raw = prefixed(JPEG)
    head = document(
        image(name="prompt", data=["hm?"]),
        image(data=..., parameters={"binary_data_size": len(raw)}),
    )
    request = decode(head + raw, str(len(head)))
    assert [tensor.data for tensor in request.inputs] == [[b"hm?"], [JPEG]]


@pytest.mark.parametrize("where", ["tensor", "request"])
def test_base64_is_decoded_where_it_is_declared(where: str) -> None:
    text = base64.encodebytes(JPEG * 20).decode()  # with its line breaks
    declared = {"content_type": "base64"}
    request = decode(
        document(
            image(data=[text], parameters=declared if where == "tensor" else {}),
            image(name="prompt", data=["plain"]),
            parameters=declared if where == "request" else {},
        )
    )
    assert request.inputs[0].data == [JPEG * 20]
    assert request.inputs[1].data == [b"plain"], "a request-wide base64 is for the pictures"


def test_text_without_a_declaration_stays_text() -> None:
    assert decode(document(image(data=["https://ä"]))).inputs[0].data == ["https://ä".encode()]


@pytest.mark.parametrize(
    "data", [["a", "b", "c", "d"], [["a", "b"], ["c", "d"]]], ids=["flat", "nested"]
)
def test_pictures_of_several_to_a_prompt(data: list[Any]) -> None:
    request = decode(document(image(shape=[2, 2], data=data)))
    assert request.inputs[0].data == [b"a", b"b", b"c", b"d"]
    assert request.inputs[0].shape == [2, 2]


def test_null_members_count_as_absent() -> None:
    body = document(image(parameters=None), id=None, parameters=None, outputs=None)
    request = decode(body)
    assert (request.id, request.parameters, request.request_outputs) == (None, {}, None)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        pytest.param('["a", "b"]', ["a", "b"], id="a JSON array of strings is that list"),
        pytest.param("[1]", "[1]", id="another JSON text is a stop string itself"),
        pytest.param("[", "[", id="no JSON at all is a stop string"),
        pytest.param(["x"], ["x"], id="a list stays"),
    ],
)
def test_stop_strings(stop: object, expected: object) -> None:
    assert decode(document(image(), parameters={"stop": stop})).parameters["stop"] == expected


def test_what_unmodified_clients_add_is_let_through() -> None:
    parameters = {
        "sequence_id": 5,
        "sequence_start": True,
        "triton_enable_empty_final_response": True,
        "priority": 1,
        "timeout": 100,
        "binary_data_output": False,
        "headers": {"a": "b"},
    }
    assert decode(document(image(), parameters=parameters)).parameters == parameters


DEEP = b'{"inputs":' + b"[" * 100 + b"]" * 100 + b"}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(b"", "empty", id="an empty body"),
        pytest.param(b"{", "not valid JSON", id="half a JSON"),
        pytest.param(b"\xff\xfe{}", "not valid JSON", id="no UTF-8"),
        pytest.param(b'{"inputs": [NaN]}', "not valid JSON", id="NaN"),
        pytest.param(b"[]", "is a list", id="a list"),
        pytest.param(b"17", "is a number", id="a number"),
        pytest.param(DEEP, "64 levels", id="100 levels deep"),
        pytest.param(b"[" * 100_000, "not valid JSON", id="100,000 levels deep"),
        pytest.param(b"[" + b"1," * 1_100_000, "limit is 1048576", id="a million values"),
        pytest.param(b"{}", "input 'image' is missing", id="no inputs"),
        pytest.param(document(), "input 'image' is missing", id="an empty list of inputs"),
        pytest.param(document(image(), intputs=1), "'intputs'", id="a misspelt member"),
        pytest.param(document(image(), id=7), "id of the request is a number", id="a numeric id"),
        pytest.param(document(image(), parameters=[]), "must be an object", id="parameters a list"),
        pytest.param(
            b'{"inputs": {}}', "inputs of the request is an object", id="inputs an object"
        ),
        pytest.param(document(3), "an input is a number", id="an input that is a number"),
        pytest.param(document(image(name="img")), "'img'; known: image, prompt", id="unknown name"),
        pytest.param(document(image(name=...)), "unknown input null", id="no name"),
        pytest.param(document(image(name=["image"])), "a list of 1", id="a list for a name"),
        pytest.param(document(image(), image()), "given twice", id="a duplicate tensor"),
        pytest.param(document(image(name="prompt")), "'image' is missing", id="no image"),
        pytest.param(document(image(datatype="FP32")), "'FP32'; it must be 'BYTES'", id="a float"),
        pytest.param(document(image(datatype=...)), "datatype null", id="no datatype"),
        pytest.param(document(image(shape=[])), "shape []", id="a scalar"),
        pytest.param(document(image(shape=...)), "shape null", id="no shape"),
        pytest.param(document(image(shape=[0], data=[])), "shape [0]", id="nothing"),
        pytest.param(document(image(shape=[-1])), "shape [-1]", id="a negative shape"),
        pytest.param(document(image(shape=[True])), "shape [True]", id="a truth value"),
        pytest.param(document(image(shape=[1.0])), "shape [1.0]", id="a fraction"),
        pytest.param(document(image(shape=["1"])), "shape ['1']", id="a string"),
        pytest.param(document(image(shape=[1, 1, 1])), "[N] or [N, K]", id="three dimensions"),
        pytest.param(document(image(shape=[1] * 99)), "a list of 99", id="99 dimensions"),
        pytest.param(document(image(shape=[10**18])), "limit is 4", id="a huge batch"),
        pytest.param(document(image(shape=[1, 4])), "limit is 3", id="too many images a prompt"),
        pytest.param(document(image(shape=[2])), "1 elements; its shape [2]", id="too little data"),
        pytest.param(document(image(data=["a", "b"])), "2 elements", id="too much data"),
        pytest.param(document(image(data="x")), "is a string; it must be a list", id="no list"),
        pytest.param(document(image(data=[1])), "element 0 is a number", id="numbers as data"),
        pytest.param(document(image(data=[["a"]])), "nested otherwise", id="nested too deep"),
        pytest.param(
            document(image(shape=[2, 2], data=[["a"], ["b", "c", "d"]])),
            "nested otherwise",
            id="ragged rows",
        ),
        pytest.param(document(image(data=...)), "either data or", id="neither data nor binary"),
        pytest.param(
            document(image(parameters={"binary_data_size": 1})), "either data or", id="both of them"
        ),
        pytest.param(
            document(image(parameters={"content_type": "gzip"})), "known: base64, str", id="no type"
        ),
        pytest.param(
            document(image(data=["ab$d"], parameters={"content_type": "base64"})),
            "element 0 is not valid base64",
            id="not base64",
        ),
        pytest.param(
            document(image(data=["ä" * 4], parameters={"content_type": "base64"})),
            "not valid base64",
            id="base64 beyond ASCII",
        ),
        pytest.param(
            document(image(), image(name="prompt", shape=[3], data=["a"] * 3)),
            "calls for 1 or 1",
            id="more prompts than pictures",
        ),
        pytest.param(
            document(image(), image(name="prompt", shape=[1, 1])), "[N] or [1]", id="nested prompts"
        ),
        pytest.param(
            document(image(), parameters={"max_token": 5}),
            "unknown parameter 'max_token'; known: max_tokens",
            id="an unknown parameter",
        ),
        pytest.param(
            document(image(), parameters={"binary_data_output": 1}), "true or false", id="no flag"
        ),
        pytest.param(
            document(image(), outputs=[{"name": "texts"}]),
            "'texts'; known: text, finish_reason, prompt_tokens, completion_tokens",
            id="an unknown output",
        ),
        pytest.param(document(image(), outputs=[{}]), "has no name", id="a nameless output"),
        pytest.param(
            document(image(), outputs=["text"]), "is a string", id="an output as a string"
        ),
        pytest.param(
            document(image(), outputs=[{"name": "text", "parameters": {"classification": 3}}]),
            "'classification' of output 'text'",
            id="classification",
        ),
        pytest.param(
            document(image(), outputs=[{"name": "text", "parameters": {"binary_data": "yes"}}]),
            "true or false",
            id="a flag as a string",
        ),
        pytest.param(
            document(image(data=..., parameters={"binary_data_size": 9})),
            "no Inference-Header-Content-Length",
            id="binary data without the header",
        ),
    ],
)
def test_bad_bodies_are_told_what_is_wrong(body: bytes, text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(body)
    assert text in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("value", ["x", "-1", "", "1e3", "9" * 5000, "٣", "10000"])
def test_a_bad_header_length_is_named(value: str) -> None:
    with pytest.raises(InvalidRequest, match=HEADER_LENGTH):
        decode(document(image()), value)


@pytest.mark.parametrize(
    ("raw", "shape", "size", "extra", "text"),
    [
        pytest.param(b"\xff\xff\xff\xffabc", [1], None, b"", "claims 4294967295", id="a lie"),
        pytest.param(b"\x05\x00\x00\x00abc", [1], None, b"", "3 are left", id="two bytes short"),
        pytest.param(b"\x05\x00", [1], None, b"", "0 are left", id="half a prefix"),
        pytest.param(b"", [1], None, b"", "0 elements", id="nothing"),
        pytest.param(prefixed(b"a", b"b"), [1], None, b"", "after its last", id="one too many"),
        pytest.param(prefixed(b"a"), [2], None, b"", "1 elements", id="one too few"),
        pytest.param(bytes(4_000_000), [1], None, b"", "after its last", id="a million empty ones"),
        pytest.param(prefixed(b"a"), [1], 4, b"", "0 are left", id="size too small"),
        pytest.param(prefixed(b"a"), [1], 99, b"", "5 bytes are left", id="size too large"),
        pytest.param(prefixed(b"a"), [1], -1, b"", "at least 0", id="a negative size"),
        pytest.param(prefixed(b"a"), [1], True, b"", "integer", id="a truth value for a size"),
        pytest.param(prefixed(b"a"), [1], "5", b"", "integer", id="a string for a size"),
        pytest.param(prefixed(b"a"), [1], None, b"xyz", "3 bytes", id="bytes of no input"),
    ],
)
def test_bad_binary_data_is_told_what_is_wrong(
    raw: bytes, shape: list[int], size: object, extra: bytes, text: str
) -> None:
    with pytest.raises(InvalidRequest, match=text):
        binary(raw, shape=shape, size=size, extra=extra)


def test_a_prompt_that_is_no_utf8_is_refused() -> None:
    raw = prefixed(b"ok \xff")
    head = document(
        image(), image(name="prompt", data=..., parameters={"binary_data_size": len(raw)})
    )
    with pytest.raises(InvalidRequest, match=r"element 0 is not UTF-8 \(byte 3\)"):
        decode(head + raw, str(len(head)))


# Responses


def response(texts: list[str]) -> InferResponse:
    num = len(texts)
    return InferResponse(
        "ignored",
        "ignored",
        [
            InferOutput("text", [num], "BYTES", texts),
            InferOutput("finish_reason", [num], "BYTES", ["stop"] * num),
            InferOutput("prompt_tokens", [num], "INT32", [70] * num),
            InferOutput("completion_tokens", [num], "INT32", list(range(num))),
        ],
        model_version="1",
    )


def read(body: bytes, headers: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A response as a client reads it: its JSON, and every output's elements."""
    length = int(headers.get(HEADER_LENGTH, len(body)))
    head, rest = json.loads(body[:length]), body[length:]
    values: dict[str, Any] = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values[output["name"]] = output["data"]
            continue
        raw, rest = rest[:size], rest[size:]
        if output["datatype"] == "INT32":
            values[output["name"]] = list(struct.unpack(f"<{output['shape'][0]}i", raw))
            continue
        elements = []
        while raw:
            (num,) = struct.unpack("<I", raw[:4])
            elements.append(raw[4 : 4 + num].decode())
            raw = raw[4 + num :]
        values[output["name"]] = elements
    assert rest == b""
    return head, values


@given(
    texts=st.lists(st.text(), min_size=1, max_size=4),
    is_binary=st.booleans(),
    wanted=st.none()
    | st.lists(st.sampled_from(["text", "prompt_tokens"]), min_size=1, unique=True),
    one_binary=st.none() | st.booleans(),
)
def test_responses_round_trip(
    texts: list[str], is_binary: bool, wanted: list[str] | None, one_binary: bool | None
) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    given_one = {} if one_binary is None else {"parameters": {"binary_data": one_binary}}
    outputs = None if wanted is None else [{"name": name, **given_one} for name in wanted]
    request = decode(
        document(image(), parameters={"binary_data_output": is_binary}, outputs=outputs)
    )
    encoded = encode_response(response(texts), request)
    head, values = read(encoded.body, encoded.headers)
    assert list(values) == (
        wanted or ["text", "finish_reason", "prompt_tokens", "completion_tokens"]
    )
    assert values.get("text", texts) == texts
    assert values.get("completion_tokens", list(range(len(texts)))) == list(range(len(texts)))
    expect_binary = is_binary if one_binary is None or wanted is None else one_binary
    assert (HEADER_LENGTH in encoded.headers) == expect_binary
    assert head["model_name"] == "m"
    assert head["model_version"] == "1"


def test_nothing_is_ever_null() -> None:
    encoded = encode_response(response(["a"]), decode(document(image())))
    assert b"null" not in encoded.body
    assert "id" not in json.loads(encoded.body)
    assert encoded.headers == {"Content-Type": "application/json"}


def test_the_request_id_comes_back() -> None:
    encoded = encode_response(response(["a"]), decode(document(image(), id="abc")))
    assert json.loads(encoded.body)["id"] == "abc"


@given(
    elements=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    prompt=st.text(max_size=20),
    as_base64=st.booleans(),
)
def test_requests_round_trip(elements: list[bytes], prompt: str, as_base64: bool) -> None:
    prompt = prompt.encode(errors="replace").decode()
    question = image(name="prompt", data=[prompt])
    if as_base64:
        data = [base64.b64encode(element).decode() for element in elements]
        parameters = {"content_type": "base64"}
        picture = image(shape=[len(data)], data=data, parameters=parameters)
        request = decode(document(picture, question))
    else:
        raw = prefixed(*elements)
        picture = image(shape=[len(elements)], data=..., parameters={"binary_data_size": len(raw)})
        head = document(picture, question)
        request = decode(head + raw, str(len(head)))
    assert request.inputs[0].data == elements
    assert request.inputs[1].data == [prompt.encode()]


VALID_HEAD = document(
    image(shape=[2], data=..., parameters={"binary_data_size": len(prefixed(JPEG, JPEG))}),
    image(name="prompt", data=["what?"]),
    id="1",
    parameters={"max_tokens": 8, "temperature": 0.5},
    outputs=[{"name": "text", "parameters": {"binary_data": True}}],
)
VALID = VALID_HEAD + prefixed(JPEG, JPEG)


@settings(max_examples=400)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, len(VALID) - 1),
            st.sampled_from("rid"),
            st.binary(min_size=1, max_size=4),
        ),
        max_size=4,
    ),
    shift=st.integers(-3, 3),
)
def test_a_mutated_request_is_valid_or_invalid_but_never_another_error(
    edits: list[tuple[int, str, bytes]], shift: int
) -> None:
    body = bytearray(VALID)
    for position, kind, new in edits:
        end = position + (0 if kind == "i" else len(new))
        body[position:end] = b"" if kind == "d" else new
    try:
        request = decode(bytes(body), str(len(VALID_HEAD) + shift))
    except InvalidRequest:
        return
    assert all(isinstance(item, bytes) for tensor in request.inputs for item in tensor.data)
