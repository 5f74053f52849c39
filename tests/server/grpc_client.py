"""A plain gRPC client of the V2 service, with this project's own message classes.

For tests that share a process with KServe's SDK: tritonclient.grpc registers the same protobuf
symbols as the SDK, so that one process cannot import both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.serving.v2_proto import SERVICE, Message, message_class, service_methods

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

MODEL = "qwen3-vl"
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class Stub:
    """Every method of the service over one channel, with this project's own message classes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._methods = {method.name: method for method in service_methods()}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = self._methods[name]
        kind = self._channel.stream_stream if method.client_streaming else self._channel.unary_unary
        call: Callable[..., Any] = kind(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class(method.output_type.name).FromString,
        )
        return call

    def raw(self, name: str, data: bytes, **options: object) -> bytes:
        """Call a unary method with bytes of any kind."""
        answer = self._channel.unary_unary(f"/{SERVICE}/{name}")(data, timeout=60, **options)
        return bytes(answer)


def prefixed(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def infer_request(picture: bytes, num: int = 1, **changes: object) -> Message:
    fields = {
        "model_name": MODEL,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [num]}],
        "raw_input_contents": [prefixed(*[picture] * num)],
    }
    return message_class("ModelInferRequest")(**{**fields, **changes})


def text_of(response: Message) -> str:
    names = [output.name for output in response.outputs]
    return bytes(response.raw_output_contents[names.index("text")][4:]).decode()


def reason_of(response: Message) -> str:
    names = [output.name for output in response.outputs]
    return bytes(response.raw_output_contents[names.index("finish_reason")][4:]).decode()
