"""The V2 protocol's protobuf messages to kserve's requests and from its responses. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.errors import InvalidRequest
from model.serving.contract import OUTPUTS, VERSION
from model.serving.v2_proto import (
    message_class,
    parameter_values,
    parse,
    set_parameters,
    take_field,
)
from model.serving.v2_tensors import (
    Limits,
    Tensor,
    build_request,
    counted,
    raw_element,
    raw_elements,
    selected_outputs,
    split_elements,
    tensor_header,
)

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from kserve import InferRequest, InferResponse

    from model.serving.v2_model import Delta
    from model.serving.v2_proto import Message

FINAL_WANTED = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
OUTPUT_DATATYPES = {spec.name: spec.datatype for spec in OUTPUTS}


def read_request(data: bytes) -> tuple[Message, Seq[memoryview]]:
    """A ModelInferRequest's bytes as a message, and its raw contents beside it.

    Raises InvalidRequest.
    """
    cls = message_class("ModelInferRequest")
    taken = take_field(data, cls.DESCRIPTOR.fields_by_name["raw_input_contents"].number)
    if taken is None:
        message = parse(cls, data)
        return message, [memoryview(raw) for raw in message.raw_input_contents]
    rest, raws = taken
    return parse(cls, rest), raws


def decode_message(message: Message, raws: Seq[memoryview], limits: Limits) -> InferRequest:
    """A ModelInferRequest as a kserve InferRequest with `bytes` inside; raises InvalidRequest.

    raws: its raw_input_contents
    """
    if raws and len(raws) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raws)} entries; "
            f"the request has {len(message.inputs)} inputs"
        )
    tensors = [
        _tensor(item, raws[index] if raws else None, limits)
        for index, item in enumerate(message.inputs)
    ]
    return build_request(
        tensors,
        model_name=message.model_name,
        model_version=message.model_version,
        request_id=message.id,
        parameters=parameter_values(message.parameters, "the request"),
        outputs=[
            (output.name, parameter_values(output.parameters, f"output {output.name!r}"))
            for output in message.outputs
        ],
        from_grpc=True,
    )


def encode_message(response: InferResponse, request: InferRequest) -> Message:
    """A ModelInferResponse with the outputs that were asked for, always as raw_output_contents.

    tritonclient reads BYTES from `contents` in a way that NumPy 2 refuses.
    """
    message = empty_message(request)
    set_parameters(message.parameters, response.parameters or {})
    for output in selected_outputs(response, request):
        described = message.outputs.add(name=output.name, datatype=output.datatype)
        described.shape.extend(output.shape)
        set_parameters(described.parameters, output.parameters or {})
        message.raw_output_contents.append(raw_elements(output))
    return message


class DeltaMessages:
    """The messages of one streamed answer: all but the values is written once.

    wants_final: every message says that it is not the last; an empty one will
    """

    def __init__(self, request: InferRequest, wants_final: bool) -> None:
        self._message = message_class("ModelStreamInferResponse")()
        self._response = self._message.infer_response
        self._response.CopyFrom(empty_message(request))
        wanted = [item.name for item in request.request_outputs or ()] or OUTPUT_DATATYPES
        self._names = tuple(wanted)
        for name in self._names:
            self._response.outputs.add(name=name, datatype=OUTPUT_DATATYPES[name], shape=[1])
        if wants_final:
            self._response.parameters[FINAL].bool_param = False

    def message(self, delta: Delta) -> Message:
        """The message of one piece; the next call writes it anew."""
        self._response.ClearField("raw_output_contents")
        for name in self._names:
            self._response.raw_output_contents.append(raw_element(getattr(delta, name)))
        return self._message


def empty_message(request: InferRequest) -> Message:
    """A ModelInferResponse that says only what it answers."""
    return message_class("ModelInferResponse")(
        model_name=request.model_name, model_version=VERSION, id=request.id or ""
    )


def wants_final_response(message: Message) -> bool:
    """Whether a streamed request's end is to be told by an empty response of its own."""
    # Asked first: reading a protobuf map at a missing key would add it.
    return FINAL_WANTED in message.parameters and message.parameters[FINAL_WANTED].bool_param


def _tensor(item: Message, raw: memoryview | None, limits: Limits) -> Tensor:
    where = f"input {item.name!r}"
    parameters = parameter_values(item.parameters, where)
    header = tensor_header(item.name, item.datatype, list(item.shape), parameters, limits)
    given = [field.name for field, _ in item.contents.ListFields()]
    if raw is not None:
        if given:
            raise InvalidRequest(f"{where} has both contents and raw_input_contents")
        return split_elements(raw, header)
    others = [name for name in given if name != "bytes_contents"]
    if others:
        raise InvalidRequest(f"{where} has {others[0]}; BYTES come in bytes_contents")
    return counted(list(item.contents.bytes_contents), header)
