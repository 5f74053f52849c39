"""The V2 protocol's HTTP bodies: JSON with the binary tensor data extension behind it, both ways.

Pure: bytes and headers in, an InferRequest out; an InferResponse in, bytes and headers out.
Source: KServe's open-inference-protocol (rest), Triton's extension_binary_data.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from model.errors import InvalidRequest
from model.serving.contract import VERSION
from model.serving.json_body import (
    check_keys,
    get_list,
    get_object,
    get_string,
    kind,
    parse_object,
)
from model.serving.parameters import shown
from model.serving.v2_tensors import (
    Limits,
    Tensor,
    TensorHeader,
    build_request,
    counted,
    flat_elements,
    raw_elements,
    selected_outputs,
    split_elements,
    tensor_header,
)

if TYPE_CHECKING:
    from kserve import InferOutput, InferRequest, InferResponse

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"
REQUEST_MEMBERS: Final = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
INPUT_MEMBERS: Final = ("name", "shape", "datatype", "parameters", "data")
OUTPUT_MEMBERS: Final = ("name", "parameters")


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A response's body and the headers that describe it."""

    body: bytes
    headers: dict[str, str]


def decode_request(
    body: bytes | bytearray,
    header_length: str | None,
    *,
    model_name: str,
    model_version: str = "",
    limits: Limits,
) -> InferRequest:
    """An infer request's body as a kserve InferRequest whose inputs hold `bytes`.

    header_length: value of Inference-Header-Content-Length, None where there is none
    Raises InvalidRequest.
    """
    view = memoryview(body)
    json_length = _json_length(header_length, len(view))
    document = parse_object(view[:json_length] if json_length < len(view) else body)
    check_keys(document, REQUEST_MEMBERS, "the request")
    binary = _Binary(view[json_length:], header_length is not None)
    tensors = [
        _tensor(item, binary, limits) for item in get_list(document, "inputs", "the request")
    ]
    binary.check_used()
    return build_request(
        tensors,
        model_name=model_name,
        model_version=model_version,
        request_id=get_string(document, "id", "the request"),
        parameters=get_object(document, "parameters", "the request"),
        outputs=[_output(item) for item in get_list(document, "outputs", "the request")],
    )


def encode_response(response: InferResponse, request: InferRequest) -> EncodedResponse:
    """A response's body: the outputs that were asked for, as JSON or behind it as was asked.

    Members without a value are left out, as Triton does: its clients read null as a value.
    """
    binary_by_default = bool((request.parameters or {}).get("binary_data_output"))
    wanted = {item.name: item.binary_data for item in request.request_outputs or ()}
    outputs: list[dict[str, Any]] = []
    binaries: list[bytes] = []
    for output in selected_outputs(response, request):
        is_binary = wanted.get(output.name)
        if is_binary is None:
            is_binary = binary_by_default
        described = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = dict(output.parameters or {})
        if is_binary:
            binaries.append(raw_elements(output))
            described["parameters"] = {**parameters, "binary_data_size": len(binaries[-1])}
        else:
            described["data"] = _json_elements(output)
            if parameters:
                described["parameters"] = parameters
        outputs.append(described)
    document = {**response_head(response, request), "outputs": outputs}
    head = orjson.dumps(document)
    if not binaries:
        return EncodedResponse(head, {"Content-Type": JSON_TYPE})
    headers = {"Content-Type": BINARY_TYPE, HEADER_LENGTH: str(len(head))}
    return EncodedResponse(b"".join((head, *binaries)), headers)


def response_head(response: InferResponse, request: InferRequest) -> dict[str, Any]:
    """What a response says before its outputs: name as asked for, version, id, parameters."""
    parameters = dict(response.parameters or {})
    return {**request_head(request), **({"parameters": parameters} if parameters else {})}


def request_head(request: InferRequest) -> dict[str, Any]:
    """What every response to a request says first: name as asked for, version, id."""
    head = {"model_name": request.model_name, "model_version": VERSION}
    return {**head, "id": request.id} if request.id else head


def _json_elements(output: InferOutput) -> list[Any]:
    elements = flat_elements(output)
    if output.datatype != "BYTES":
        return elements
    return [element.decode(errors="replace") for element in elements]


def _json_length(header_length: str | None, body_length: int) -> int:
    if header_length is None:
        return body_length
    is_number = header_length.isascii() and header_length.isdigit() and len(header_length) < 19
    if not is_number or int(header_length) > body_length:
        raise InvalidRequest(
            f"{HEADER_LENGTH} is {shown(header_length)}; it must be the number of bytes of JSON, "
            f"at most the body's {body_length}"
        )
    return int(header_length)


class _Binary:
    """The bytes behind the JSON, taken by one input after the other."""

    def __init__(self, view: memoryview, announced: bool) -> None:
        self._view = view
        self._announced = announced
        self._position = 0

    def take(self, size: object, name: str) -> memoryview:
        """The next `size` bytes."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidRequest(
                f"binary_data_size of input {name!r} is {shown(size)}; "
                "it must be an integer of at least 0"
            )
        left = len(self._view) - self._position
        if size > left:
            why = "" if self._announced else f"; the request has no {HEADER_LENGTH} header"
            raise InvalidRequest(
                f"binary_data_size of input {name!r} is {size}; {left} bytes are left{why}"
            )
        start = self._position
        self._position += size
        return self._view[start : self._position]

    def check_used(self) -> None:
        """Raise InvalidRequest when bytes are left that no input claims."""
        left = len(self._view) - self._position
        if left:
            raise InvalidRequest(f"{left} bytes of binary data belong to no input")


def _tensor(item: object, binary: _Binary, limits: Limits) -> Tensor:
    if not isinstance(item, dict):
        raise InvalidRequest(f"an input is {kind(item)}; it must be an object")
    where = f"input {shown(item.get('name'))}"
    check_keys(item, INPUT_MEMBERS, where)
    parameters = get_object(item, "parameters", where)
    header = tensor_header(
        item.get("name"), item.get("datatype"), item.get("shape"), parameters, limits
    )
    size, data = parameters.get("binary_data_size"), item.get("data")
    if (size is None) == (data is None):
        raise InvalidRequest(f"{where} must have either data or parameters.binary_data_size")
    if size is not None:
        return split_elements(binary.take(size, header.name), header)
    return _json_tensor(data, header)


def _json_tensor(data: object, header: TensorHeader) -> Tensor:
    """A tensor from JSON: flat, or nested as its shape says."""
    if not isinstance(data, list):
        raise InvalidRequest(f"data of input {header.name!r} is {kind(data)}; it must be a list")
    rows = data
    if any(isinstance(row, list) for row in data):
        if len(header.shape) != 2 or any(
            not isinstance(row, list) or len(row) != header.shape[1] for row in data
        ):
            raise InvalidRequest(
                f"data of input {header.name!r} is nested otherwise than its shape "
                f"{list(header.shape)}"
            )
        rows = [element for row in data for element in row]
    for index, element in enumerate(rows):
        if not isinstance(element, str):
            raise InvalidRequest(
                f"input {header.name!r} element {index} is {kind(element)}; it must be a string"
            )
    return counted(rows, header)


def _output(item: object) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"a requested output is {kind(item)}; it must be an object")
    where = f"output {shown(item.get('name'))}"
    check_keys(item, OUTPUT_MEMBERS, where)
    name = get_string(item, "name", "a requested output")
    if name is None:
        raise InvalidRequest("a requested output has no name")
    return name, get_object(item, "parameters", where)
