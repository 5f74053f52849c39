"""The V2 protocol's protobuf messages, in a descriptor pool of their own.

KServe's SDK registers an older `inference` package in the default pool of every process that
imports it, and two files may not define one symbol. So ours are loaded into a private pool from
the compiled form of `v2_protocol.proto`, beside the health and reflection services' files, which
makes the pool what reflection tells clients.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Final, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from model.errors import InvalidRequest
from model.serving.parameters import shown

# protobuf makes its classes when the program runs, so that no type says more than these names.
Message: TypeAlias = Any
MessageClass: TypeAlias = Any
Method: TypeAlias = Any
ParameterMap: TypeAlias = Any

SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
REFLECTION_SERVICE: Final = "grpc.reflection.v1alpha.ServerReflection"
DESCRIPTOR_FILE: Final = "v2_protocol.binpb"


def _load_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    compiled = resources.files(__package__).joinpath(DESCRIPTOR_FILE).read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool


POOL: Final = _load_pool()


class ReflectedPool:
    """The pool as reflection's clients ask it: they look for methods too, which Python's lacks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(POOL, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """The file of a message, an enum, a service or a method; raises KeyError."""
        try:
            return POOL.FindFileContainingSymbol(symbol)
        except KeyError:
            return POOL.FindMethodByName(symbol).containing_service.file


def message_class(name: str) -> MessageClass:
    """The class of a message of package `inference`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


def service_methods() -> list[Method]:
    """The descriptors of the inference service's methods."""
    return list(POOL.FindServiceByName(SERVICE).methods)


def input_class(method: Method) -> MessageClass:
    """The message class that a method reads."""
    return message_factory.GetMessageClass(method.input_type)


def from_dict(name: str, value: dict[str, Any]) -> Message:
    """A message from a dict in protobuf's JSON form."""
    return json_format.ParseDict(value, message_class(name)())


def parse(cls: MessageClass, data: bytes) -> Message:
    """A message from its bytes; raises InvalidRequest where they are none."""
    try:
        return cls.FromString(data)
    except DecodeError as e:
        raise InvalidRequest(f"the message is no {cls.DESCRIPTOR.full_name}") from e


def take_field(data: bytes, number: int) -> tuple[bytes, list[memoryview]] | None:
    """A message without its bytes field `number`, and that field's values as views of `data`.

    protobuf copies large values three times on their way out; here they stay where they are.
    None for what is no message, which protobuf explains better.
    """
    view, rest, values = memoryview(data), [], []
    position, kept = 0, 0
    while position < len(data):
        begin = position
        tag, position = _varint(data, position)
        match tag & 7:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(data, position)
                position += length
            case 5:
                position += 4
            case _:
                return None
        if not 0 < position <= len(data):
            return None
        if tag == (number << 3 | 2):
            rest.append(view[kept:begin])
            values.append(view[position - length : position])
            kept = position
    return b"".join((*rest, view[kept:])), values


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A base-128 number and where it ends; an end beyond the data where it has none."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return 0, len(data) + 1


def parameter_values(parameters: ParameterMap, where: str) -> dict[str, object]:
    """A map of InferParameter as plain values; raises InvalidRequest for one without a value."""
    values: dict[str, object] = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter {shown(key)} of {where} has no value")
        values[key] = getattr(parameter, choice)
    return values


def set_parameters(target: ParameterMap, values: dict[str, Any]) -> None:
    """Fill a map of InferParameter from plain values."""
    for key, value in values.items():
        match value:
            case bool():
                target[key].bool_param = value
            case int():
                target[key].int64_param = value
            case float():
                target[key].double_param = value
            case _:
                target[key].string_param = str(value)
