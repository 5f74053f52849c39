"""The model's tensor contract, checked: the one way from any V2 wire form to a kserve InferRequest.

HTTP, gRPC and the generate extension each read their own wire form into a `Tensor`; names, shapes,
counts, base64, parameters and requested outputs are judged here, so that all three refuse the same
things in the same words.
"""

from __future__ import annotations

import binascii
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
import pybase64
from kserve import InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput

from model.errors import InvalidRequest, Unsupported
from model.serving.contract import INPUTS, NO_SHARED_MEMORY, OUTPUTS
from model.serving.parameters import boolean, check_parameter_names, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kserve import InferOutput, InferResponse

    from model.settings import Settings

INPUT_NAMES: Final = tuple(spec.name for spec in INPUTS)
OUTPUT_NAMES: Final = tuple(spec.name for spec in OUTPUTS)
TENSOR_PARAMETERS: Final = ("binary_data_size", "content_type")
OUTPUT_PARAMETERS: Final = ("binary_data", "content_type")
CONTENT_TYPES: Final = ("base64", "str")
LENGTH_PREFIX_BYTES: Final = 4
# Below this a request is decoded where it is: handing it to a thread takes longer.
LARGE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes a request may have; see RequestSettings and ImageSettings."""

    max_batch: int
    max_images: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits in the settings."""
        return cls(settings.request.max_batch, settings.image.max_per_request)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """An input tensor without its elements, checked against the contract."""

    name: str
    shape: tuple[int, ...]
    parameters: Mapping[str, object]

    @property
    def num_elements(self) -> int:
        """Elements that the shape calls for."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input tensor; its elements flat, row by row, text where the wire form has text."""

    header: TensorHeader
    elements: Sequence[str | bytes]


def tensor_header(
    name: object, datatype: object, shape: object, parameters: Mapping[str, object], limits: Limits
) -> TensorHeader:
    """Check everything about an input but its elements; raises InvalidRequest, Unsupported."""
    if name not in INPUT_NAMES or not isinstance(name, str):
        raise InvalidRequest(f"unknown input {shown(name)}; known: {', '.join(INPUT_NAMES)}")
    if datatype != "BYTES":
        raise InvalidRequest(f"input {name!r} has datatype {shown(datatype)}; it must be 'BYTES'")
    _check_not_shared(parameters)
    for key in parameters:
        if key not in TENSOR_PARAMETERS:
            known = ", ".join(TENSOR_PARAMETERS)
            raise InvalidRequest(
                f"unknown parameter {shown(key)} of input {name!r}; known: {known}"
            )
    _check_content_type(parameters.get("content_type"), f"input {name!r}")
    header = TensorHeader(name, _check_shape(name, shape), parameters)
    match header.shape:
        case (num, *_) if num > limits.max_batch:
            raise InvalidRequest(
                f"input {name!r} has a batch of {num}; the limit is {limits.max_batch}"
            )
        case (_, num) if num > limits.max_images:
            raise InvalidRequest(
                f"input {name!r} has {num} images a prompt; the limit is {limits.max_images}"
            )
    return header


def _check_not_shared(parameters: Mapping[str, object]) -> None:
    if any(key.startswith("shared_memory") for key in parameters):
        raise Unsupported(NO_SHARED_MEMORY)


def _check_shape(name: str, shape: object) -> tuple[int, ...]:
    sizes = list(shape) if isinstance(shape, list | tuple) else []
    max_rank, allowed = (2, "[N] or [N, K]") if name == "image" else (1, "[N] or [1]")
    good = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not good or not 1 <= len(sizes) <= max_rank:
        text = str(sizes) if isinstance(shape, list | tuple) and len(sizes) <= 8 else shown(shape)
        raise InvalidRequest(
            f"input {name!r} has shape {text:.200}; it must be {allowed}, integers above 0"
        )
    return tuple(sizes)


def split_elements(raw: memoryview, header: TensorHeader) -> Tensor:
    """Elements out of the binary form: each behind its length, four bytes little-endian.

    Raises InvalidRequest when a length points past the end, or elements are too many or too few.
    """
    elements: list[bytes] = []
    position, end = 0, len(raw)
    while position < end:
        if len(elements) == header.num_elements:
            raise InvalidRequest(
                f"input {header.name!r} has {end - position} bytes after its last element; "
                f"its shape {list(header.shape)} calls for {header.num_elements} elements"
            )
        start = position + LENGTH_PREFIX_BYTES
        length = int.from_bytes(raw[position:start], "little")
        if start + length > end:
            raise InvalidRequest(
                f"input {header.name!r} element {len(elements)} claims {length} bytes; "
                f"{max(0, end - start)} are left"
            )
        elements.append(bytes(raw[start : start + length]))
        position = start + length
    return counted(elements, header)


def counted(elements: Sequence[str | bytes], header: TensorHeader) -> Tensor:
    """A tensor of as many elements as its shape calls for; raises InvalidRequest."""
    if len(elements) != header.num_elements:
        raise InvalidRequest(
            f"input {header.name!r} has {len(elements)} elements; "
            f"its shape {list(header.shape)} calls for {header.num_elements}"
        )
    return Tensor(header, elements)


def build_request(
    tensors: Sequence[Tensor],
    *,
    model_name: str,
    model_version: str,
    request_id: str | None,
    parameters: Mapping[str, object],
    outputs: Iterable[tuple[str, Mapping[str, object]]] = (),
    from_grpc: bool = False,
) -> InferRequest:
    """A kserve InferRequest whose inputs hold `bytes`; raises InvalidRequest.

    outputs: (name, parameters) of those that are asked for; none asks for all
    """
    values = dict(parameters)
    check_parameter_names(values)
    _check_content_type(values.get("content_type"), "the request")
    if values.get("binary_data_output") is not None:
        boolean("binary_data_output", values["binary_data_output"])
    if isinstance(stop := values.get("stop"), str):
        values["stop"] = _stop_strings(stop)
    inputs = [_infer_input(tensor, values.get("content_type")) for tensor in tensors]
    _check_together([tensor.header for tensor in tensors])
    return InferRequest(
        model_name=model_name,
        model_version=model_version,
        request_id=request_id or None,
        infer_inputs=inputs,
        parameters=values,
        request_outputs=[_requested_output(name, given) for name, given in outputs] or None,
        from_grpc=from_grpc,
    )


def _check_together(headers: Sequence[TensorHeader]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for header in headers:
        if header.name in shapes:
            raise InvalidRequest(f"input {header.name!r} is given twice")
        shapes[header.name] = header.shape
    if "image" not in shapes:
        raise InvalidRequest("input 'image' is missing")
    num_prompts, num_rows = shapes.get("prompt", (1,))[0], shapes["image"][0]
    if num_prompts not in (1, num_rows):
        raise InvalidRequest(
            f"input 'prompt' has {num_prompts} elements; input 'image' with shape "
            f"{list(shapes['image'])} calls for 1 or {num_rows}"
        )


def _infer_input(tensor: Tensor, request_content_type: object) -> InferInput:
    """The tensor with its elements as the bytes they stand for."""
    header = tensor.header
    content_type = header.parameters.get("content_type")
    if content_type is None and header.name == "image":
        # A request-wide base64 is meant for the pictures: nobody encodes the question.
        content_type = request_content_type
    if content_type == "base64":
        data = [from_base64(text, header.name, i) for i, text in enumerate(tensor.elements)]
    else:
        data = [text.encode() if isinstance(text, str) else text for text in tensor.elements]
    if header.name == "prompt":
        _check_utf8(data)
    return InferInput(header.name, list(header.shape), "BYTES", data, dict(header.parameters))


def from_base64(text: str | bytes, name: str, index: int) -> bytes:
    """What base64 stands for; raises InvalidRequest with the tensor's name and the index."""
    with suppress(ValueError):
        # Twenty times as fast as the standard library, whose words for a fault are told below.
        return pybase64.b64decode(text, validate=True)
    # `base64 file.jpg` breaks its lines: white space alone is no fault.
    joined = "".join(text.split()) if isinstance(text, str) else b"".join(text.split())
    try:
        return binascii.a2b_base64(joined, strict_mode=True)
    except ValueError as e:
        raise InvalidRequest(f"input {name!r} element {index} is not valid base64: {e}") from e


def _check_utf8(elements: Sequence[bytes]) -> None:
    for index, element in enumerate(elements):
        try:
            element.decode()
        except UnicodeDecodeError as e:
            raise InvalidRequest(
                f"input 'prompt' element {index} is not UTF-8 (byte {e.start})"
            ) from e


def _check_content_type(content_type: object, where: str) -> None:
    if content_type is not None and content_type not in CONTENT_TYPES:
        raise InvalidRequest(
            f"content_type of {where} is {shown(content_type)}; known: {', '.join(CONTENT_TYPES)}"
        )


def _requested_output(name: object, parameters: Mapping[str, object]) -> RequestedOutput:
    if name not in OUTPUT_NAMES:
        raise InvalidRequest(f"unknown output {shown(name)}; known: {', '.join(OUTPUT_NAMES)}")
    _check_not_shared(parameters)
    for key in parameters:
        if key not in OUTPUT_PARAMETERS:
            known = ", ".join(OUTPUT_PARAMETERS)
            raise InvalidRequest(
                f"unknown parameter {shown(key)} of output {name!r}; known: {known}"
            )
    if "binary_data" in parameters:
        boolean(f"binary_data of output {name!r}", parameters["binary_data"])
    return RequestedOutput(name, dict(parameters))


def _stop_strings(text: str) -> str | list[str]:
    """Several stop strings written as a JSON array, since protobuf parameters have no lists."""
    try:
        strings = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    is_array = isinstance(strings, list) and all(isinstance(item, str) for item in strings)
    return strings if is_array else text


def num_sequences(request: InferRequest) -> int:
    """Sequences that a request makes: N of its images."""
    return int(request.get_input_by_name("image").shape[0])


def check_one_sequence(request: InferRequest) -> None:
    """Raise InvalidRequest unless the request can be streamed."""
    if num_sequences(request) != 1:
        shape = request.get_input_by_name("image").shape
        raise InvalidRequest(f"streaming takes one sequence; input 'image' has shape {shape}")


def selected_outputs(response: InferResponse, request: InferRequest) -> list[InferOutput]:
    """The outputs that were asked for, in that order; all of them when none was named."""
    if not request.request_outputs:
        return list(response.outputs)
    by_name = {output.name: output for output in response.outputs}
    return [by_name[wanted.name] for wanted in request.request_outputs if wanted.name in by_name]


def flat_elements(output: InferOutput) -> list[Any]:
    """An output's elements as a flat list; text as `bytes`."""
    data = output.data.ravel().tolist() if hasattr(output.data, "ravel") else list(output.data)
    if output.datatype == "BYTES":
        return [item.encode() if isinstance(item, str) else bytes(item) for item in data]
    return data


def raw_elements(output: InferOutput) -> bytes:
    """An output in the binary form; only the contract's datatypes occur."""
    return b"".join(map(raw_element, flat_elements(output)))


def raw_element(value: str | bytes | int) -> bytes:
    """One element in the binary form: BYTES behind its length, or INT32."""
    if isinstance(value, int):
        return value.to_bytes(4, "little", signed=True)
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(LENGTH_PREFIX_BYTES, "little") + data
