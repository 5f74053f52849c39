"""The generate extension's bodies: plain JSON fields in and out, an object an answer or a delta.

Fields named after tensors become tensors, all others parameters (Triton's extension_generate.md).
`prompt` is also `text_input` and `text` also `text_output`, the names of the field's text models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from model.errors import InvalidRequest
from model.serving.images import is_url
from model.serving.json_body import get_object, get_string, kind, parse_object
from model.serving.parameters import shown
from model.serving.v2_codec import request_head, response_head
from model.serving.v2_tensors import (
    OUTPUT_NAMES,
    Limits,
    Tensor,
    build_request,
    counted,
    flat_elements,
    from_base64,
    tensor_header,
)

if TYPE_CHECKING:
    from kserve import InferRequest, InferResponse

    from model.serving.v2_model import Delta

PROMPT_FIELDS: Final = ("prompt", "text_input")
FIELDS: Final = ("id", "image", *PROMPT_FIELDS, "parameters")


def decode_generate(
    body: bytes | bytearray, *, model_name: str, model_version: str = "", limits: Limits
) -> InferRequest:
    """A generate body as an InferRequest.

    `image`: base64 (a data: URL too) or an http(s) URL; a list is a batch, a list of lists several
    pictures a prompt. `prompt`: a string, or a list of one or of as many as the batch.
    Raises InvalidRequest.
    """
    document = parse_object(body)
    given = [field for field in PROMPT_FIELDS if document.get(field) is not None]
    if len(given) > 1:
        raise InvalidRequest("prompt and text_input are one field; give one of them")
    tensors = []
    if document.get("image") is not None:
        tensors.append(_images(document["image"], limits))
    if given:
        tensors.append(_prompts(document[given[0]], limits))
    return build_request(
        tensors,
        model_name=model_name,
        model_version=model_version,
        request_id=get_string(document, "id", "the request"),
        parameters=_parameters(document),
    )


def encode_answer(response: InferResponse, request: InferRequest) -> dict[str, Any]:
    """A whole answer: each output under its name, a single value or one for each of the batch."""
    values = _values(response)
    return {**response_head(response, request), **_with_text_output(values)}


class DeltaEvents:
    """The pieces of a streamed answer as server-sent events; what is the same in each is encoded
    once.
    """

    def __init__(self, request: InferRequest) -> None:
        self._before = b"data: " + orjson.dumps(request_head(request))[:-1]

    def event(self, delta: Delta) -> bytes:
        """The text that a piece adds; the last also says why it ended."""
        text = orjson.dumps(delta.text)
        end = b"}\n\n"
        if delta.finish_reason:
            end = b',"finish_reason":"%b","prompt_tokens":%d,"completion_tokens":%d}\n\n' % (
                delta.finish_reason.encode(),
                delta.prompt_tokens,
                delta.completion_tokens,
            )
        return b"".join((self._before, b',"text":', text, b',"text_output":', text, end))


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    parameters = get_object(document, "parameters", "the request")
    fields = {key: value for key, value in document.items() if key not in FIELDS}
    for key in fields:
        if key in parameters:
            raise InvalidRequest(f"{shown(key)} is given twice: as a field and in parameters")
    return {**parameters, **fields}


def _images(value: object, limits: Limits) -> Tensor:
    rows: list[Any] = value if isinstance(value, list) else [value]
    elements: list[Any] = rows
    shape = [len(rows)]
    if rows and all(isinstance(row, list) for row in rows):
        width = len(rows[0])
        if any(len(row) != width for row in rows):
            raise InvalidRequest("image has rows of different length")
        shape, elements = [len(rows), width], [element for row in rows for element in row]
    # "str": the elements are made what they are here, whatever content_type the request names.
    header = tensor_header("image", "BYTES", shape, {"content_type": "str"}, limits)
    return counted([_image(element, i) for i, element in enumerate(elements)], header)


def _image(value: object, index: int) -> bytes:
    """A picture's bytes, or a URL's; base64 may come in a data: URL."""
    text = _text("image", value)
    if is_url(text):
        return text.encode()
    if text.startswith("data:"):
        head, separator, text = text.partition(",")
        if not separator or not head.endswith(";base64"):
            raise InvalidRequest(f"image is {shown(head, 40)}; a data: URL must be base64")
    return from_base64(text, "image", index)


def _prompts(value: object, limits: Limits) -> Tensor:
    texts = value if isinstance(value, list) else [value]
    header = tensor_header("prompt", "BYTES", [len(texts)], {}, limits)
    return counted([_text("prompt", text) for text in texts], header)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} holds {kind(value)}; it must be a string")
    return value


def _values(response: InferResponse) -> dict[str, Any]:
    """Outputs by name, as JSON values."""
    values: dict[str, Any] = {}
    for output in response.outputs:
        if output.name not in OUTPUT_NAMES:
            continue
        elements = flat_elements(output)
        if output.datatype == "BYTES":
            elements = [element.decode(errors="replace") for element in elements]
        values[output.name] = elements[0] if len(elements) == 1 else elements
    return values


def _with_text_output(values: dict[str, Any]) -> dict[str, Any]:
    text = {"text": values["text"], "text_output": values["text"]}
    return {**text, **{key: value for key, value in values.items() if key != "text"}}
