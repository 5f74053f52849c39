"""Random protobuf messages to every gRPC method: any values in any field, and edited bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from hypothesis import strategies as st

from model.serving.v2_proto import message_class, service_methods
from tests.mutations import EDITS, edited, fuzz
from tests.reliability.conftest import check_unharmed
from tests.reliability.pictures import GIF
from tests.reliability.protocols import ADDRESS, Ask, write_grpc
from tests.server.grpc_client import MODEL, prefixed

if TYPE_CHECKING:
    from tests.reliability.protocols import Clients
    from tests.serving import RunningServer

# Statuses that are the client's doing; the last one is Triton's calls that are not offered.
OWN_FAULTS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
GOOD: Final = (
    write_grpc(Ask((GIF,), "What?", {"max_tokens": 2, "stop": "a"})).SerializeToString(),
    write_grpc(Ask((GIF, GIF), None, {"max_tokens": 1, "seed": 2**64 - 1})).SerializeToString(),
)
UNARY: Final = [one.name for one in service_methods() if not one.client_streaming]

PARAMETERS: Final = st.dictionaries(
    st.sampled_from(["max_tokens", "stop", "seed", "content_type", "binary_data_size", "x"]),
    st.sampled_from(
        [
            {},  # a parameter without a value
            {"bool_param": True},
            {"int64_param": 2},
            {"int64_param": -(2**63)},
            {"uint64_param": 2**64 - 1},
            {"double_param": float("nan")},
            {"string_param": "base64"},
            {"string_param": "[1"},
        ]
    ),
    max_size=2,
)
TENSORS: Final = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "image", "prompt", "x", ""]),
        "datatype": st.sampled_from(["BYTES", "BYTES", "BYTES", "FP32", ""]),
        "shape": st.sampled_from([[1], [1], [1], [2], [1, 2], [0], [-1], [1 << 62], []]),
        "parameters": st.just({}) | PARAMETERS,
        "contents": st.sampled_from(
            [
                {},
                {},
                {"bytes_contents": [GIF]},
                {"bytes_contents": [b"\xff"] * 2},
                {"int_contents": [1]},
            ]
        ),
    }
)
RAWS: Final = st.sampled_from([prefixed(GIF), prefixed(GIF, GIF), b"", b"\xff" * 4]) | st.builds(
    edited, st.just(prefixed(GIF)), EDITS
)
FIELDS: Final = st.fixed_dictionaries(
    {
        "model_name": st.sampled_from([MODEL, MODEL, MODEL, MODEL, "x"]),
        "id": st.sampled_from(["", "\x00", "7"]),
        "inputs": st.lists(TENSORS, min_size=1, max_size=3),
        "raw_input_contents": st.lists(RAWS, max_size=3),
        "parameters": PARAMETERS,
        "outputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["text", "text", "x"]), "parameters": PARAMETERS}
            ),
            max_size=2,
        ),
    }
)


def _serialized(fields: dict[str, Any]) -> bytes:
    # Few tokens wherever nothing else is asked: the answer is not the point.
    parameters = {"max_tokens": {"int64_param": 2}, **fields["parameters"]}
    message = message_class("ModelInferRequest")(**{**fields, "parameters": parameters})
    return bytes(message.SerializeToString())


MESSAGES: Final = (
    st.builds(_serialized, FIELDS)
    | st.builds(edited, st.sampled_from(GOOD), EDITS)
    | st.binary(max_size=40)
)
CALLS: Final = st.tuples(
    st.just("ModelInfer") | st.sampled_from([*UNARY, "ModelStreamInfer"]), MESSAGES
)


def test_messages(clients: Clients, server: RunningServer) -> None:
    def check(call: tuple[str, bytes]) -> None:
        method, data = call
        if method == "ModelStreamInfer":
            answers = clients.stub.ModelStreamInfer(iter([_Raw(data)]), timeout=60)
            texts = [answer.error_message for answer in answers]
        else:
            texts = [_refusal(clients, method, data)]
        for text in texts:
            assert not ADDRESS.search(text), text
            assert "internal error" not in text

    assert fuzz(check, CALLS) >= 100
    check_unharmed(server)


def _refusal(clients: Clients, method: str, data: bytes) -> str:
    """What a unary call's refusal says, nothing where it is answered."""
    try:
        clients.stub.raw(method, data)
    except grpc.RpcError as e:
        refusal = e
    else:
        return ""
    assert refusal.code() in OWN_FAULTS, refusal
    return str(refusal.details())


class _Raw:
    """Bytes that are sent as a message is."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data
