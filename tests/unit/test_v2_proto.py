"""The protobuf files: compiled as written, numbered as Triton's, apart from KServe's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kserve.protocol.grpc.grpc_predict_v2_pb2 as kserve_pb2
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve import InferRequest

import model.serving
from model.errors import InvalidRequest
from model.serving import v2_proto
from model.serving.lifecycle import Lifecycle, Phase
from model.serving.statistics import ModelStatistics
from model.serving.v2_grpc_codec import decode_message, encode_message, read_request
from model.serving.v2_model import (
    UNSUPPORTED,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
)
from model.serving.v2_proto import Message, from_dict, message_class, parse, service_methods
from model.serving.v2_tensors import Limits
from tests.unit.test_v2_generate import response

FOLDER = Path(model.serving.__file__).parent
LIMITS = Limits(max_batch=4, max_images=3)

# Prints {message: {field: [number, type, is repeated]}}, {enum: {name: number}} and the methods.
# In a process of its own: tritonclient's files and KServe's define the same symbols.
DUMP_TRITON = """
import json
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
found = {"messages": {}, "enums": {}, "methods": {}}
def walk(message, prefix):
    name = prefix + message.name
    found["messages"][name] = {f.name: [f.number, f.type, f.label == 3] for f in message.field}
    for nested in message.nested_type:
        walk(nested, name + ".")
for module in (service_pb2, model_config_pb2):
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        walk(message, file.package + ".")
    for enum in file.enum_type:
        found["enums"][enum.name] = {v.name: v.number for v in enum.value}
    for service in file.service:
        for m in service.method:
            types = [m.input_type, m.output_type]
            found["methods"][m.name] = [*types, m.client_streaming, m.server_streaming]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def triton() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", DUMP_TRITON], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ours() -> Message:
    compiled = (FOLDER / "v2_protocol.binpb").read_bytes()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    return file


def walk(message: Message, prefix: str) -> dict[str, dict[str, list[Any]]]:
    name = prefix + message.name
    found = {name: {f.name: [f.number, f.type, f.label == 3] for f in message.field}}
    for nested in message.nested_type:
        found |= walk(nested, f"{name}.")
    return found


def test_the_compiled_file_is_the_written_one(tmp_path: Path, ours: Message) -> None:
    out = tmp_path / "again.binpb"
    arguments = ["protoc", f"-I{FOLDER}", "--include_imports", f"--descriptor_set_out={out}"]
    assert protoc.main([*arguments, str(FOLDER / "v2_protocol.proto")]) == 0
    (again,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    assert again == ours, "run the protoc command at the head of v2_protocol.proto"


def test_every_field_has_tritons_number_and_type(triton: dict[str, Any], ours: Message) -> None:
    messages: dict[str, dict[str, list[Any]]] = {}
    for message in ours.message_type:
        messages |= walk(message, f"{ours.package}.")
    assert len(messages) > 40
    for name, fields in messages.items():
        for field, described in fields.items():
            assert described == triton["messages"][name][field], f"{name}.{field}"


def test_every_method_and_enum_is_tritons(triton: dict[str, Any], ours: Message) -> None:
    (service,) = ours.service
    methods = {
        m.name: [m.input_type, m.output_type, m.client_streaming, m.server_streaming]
        for m in service.method
    }
    assert methods == triton["methods"]
    for enum in ours.enum_type:
        assert {v.name: v.number for v in enum.value} == triton["enums"][enum.name]


def test_it_lives_beside_kserves_own_file() -> None:
    theirs = kserve_pb2.ModelInferRequest(model_name="a", id="b")
    mine = message_class("ModelInferRequest").FromString(theirs.SerializeToString())
    assert (mine.model_name, mine.id) == ("a", "b")
    assert not isinstance(mine, kserve_pb2.ModelInferRequest)


def test_what_is_not_served_is_explained() -> None:
    offered = {method.name for method in service_methods()}
    assert set(UNSUPPORTED) < offered
    assert all(text.startswith("unsupported") for text in UNSUPPORTED.values())


def test_the_shared_dicts_fit_the_messages() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    from_dict("ModelMetadataResponse", model_metadata("m"))
    config = from_dict("ModelConfigResponse", {"config": model_config("m")}).config
    assert config.input[1].optional
    assert config.output[2].data_type == 8
    stats = {"model_stats": [model_statistics("m", ModelStatistics(inference_count=3))]}
    assert from_dict("ModelStatisticsResponse", stats).model_stats[0].inference_count == 3
    index = {"models": repository_index(("m",), lifecycle, only_ready=True)}
    assert from_dict("RepositoryIndexResponse", index).models[0].state == "READY"


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_has_a_model_state(phase: Phase) -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(phase)
    assert len(repository_index(("a", "b"), lifecycle, only_ready=False)) == 2
    listed = repository_index(("a",), lifecycle, only_ready=True)
    assert len(listed) == (1 if phase is Phase.READY else 0)


# Messages to requests and back


def infer_request(**changes: object) -> Message:
    fields = {
        "model_name": "m",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
        "raw_input_contents": [b"\x01\x00\x00\x00x"],
    }
    return message_class("ModelInferRequest")(**{**fields, **changes})


CONTENTS = {"bytes_contents": [b"x"]}
INPUT = {"name": "image", "datatype": "BYTES", "shape": [1]}


def decode(message: Message) -> InferRequest:
    return decode_message(*read_request(message.SerializeToString()), LIMITS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="raw_input_contents"),
        pytest.param(
            {"inputs": [{**INPUT, "contents": CONTENTS}], "raw_input_contents": []},
            id="bytes_contents",
        ),
    ],
)
def test_both_forms_of_contents_are_read(changes: dict[str, Any]) -> None:
    assert decode(infer_request(**changes)).inputs[0].data == [b"x"]


def test_parameters_keep_their_types() -> None:
    message = infer_request(
        parameters={
            "max_tokens": {"int64_param": 5},
            "seed": {"uint64_param": 6},
            "temperature": {"double_param": 0.5},
            "ignore_eos": {"bool_param": True},
            "stop": {"string_param": '["a"]'},
        }
    )
    assert decode(message).parameters == {
        "max_tokens": 5,
        "seed": 6,
        "temperature": 0.5,
        "ignore_eos": True,
        "stop": ["a"],
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param({"raw_input_contents": [b"", b""]}, "2 entries", id="too many raw contents"),
        pytest.param(
            {"inputs": [{**INPUT, "contents": CONTENTS}]}, "both contents", id="both forms"
        ),
        pytest.param(
            {
                "inputs": [INPUT, {**INPUT, "name": "prompt", "contents": CONTENTS}],
                "raw_input_contents": [b"\x01\x00\x00\x00x"],
            },
            "1 entries; the request has 2",
            id="one of each form",
        ),
        pytest.param(
            {"inputs": [{**INPUT, "contents": {"int_contents": [1]}}], "raw_input_contents": []},
            "int_contents; BYTES come in bytes_contents",
            id="numbers as contents",
        ),
        pytest.param({"raw_input_contents": []}, "0 elements", id="no contents"),
        pytest.param({"parameters": {"top_k": {}}}, "'top_k' of the request has no", id="no value"),
        pytest.param({"inputs": []}, "1 entries; the request has 0", id="contents without inputs"),
        pytest.param(
            {"inputs": [], "raw_input_contents": []}, "'image' is missing", id="no inputs"
        ),
        pytest.param({"outputs": [{"name": "logits"}]}, "unknown output", id="an unknown output"),
        pytest.param(
            {"raw_input_contents": [b"\xff\xff\xff\xffx"]}, "claims", id="a prefix that lies"
        ),
    ],
)
def test_bad_messages_are_told_what_is_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        decode(infer_request(**changes))


def test_answers_are_always_raw_and_as_selected() -> None:
    message = infer_request(id="7", outputs=[{"name": "completion_tokens"}, {"name": "text"}])
    encoded = encode_message(response(["ä"], ["stop"]), decode(message))
    assert [output.name for output in encoded.outputs] == ["completion_tokens", "text"]
    assert list(encoded.raw_output_contents) == [b"\x03\x00\x00\x00", b"\x02\x00\x00\x00\xc3\xa4"]
    assert (encoded.id, encoded.model_name, encoded.model_version) == ("7", "m", "1")


def test_bytes_that_are_no_message_are_the_clients_fault() -> None:
    with pytest.raises(InvalidRequest, match=r"no inference\.ModelInferRequest"):
        parse(message_class("ModelInferRequest"), b"\xff\xff\xff")


VALID = infer_request(
    id="1",
    parameters={"max_tokens": {"int64_param": 4}, "stop": {"string_param": "x"}},
    outputs=[{"name": "text", "parameters": {"binary_data": {"bool_param": True}}}],
).SerializeToString()


@settings(max_examples=300)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=3)), max_size=4
    )
)
def test_a_mutated_message_is_valid_or_invalid_but_never_another_error(
    edits: list[tuple[int, bytes]],
) -> None:
    data = bytearray(VALID)
    for position, new in edits:
        data[position : position + len(new)] = new
    try:
        request = decode_message(*read_request(bytes(data)), LIMITS)
    except InvalidRequest:
        return
    assert all(isinstance(item, bytes) for tensor in request.inputs for item in tensor.data)


@settings(max_examples=500)
@given(
    parts=st.lists(
        st.one_of(
            st.just(VALID),
            st.binary(max_size=6),
            # A raw content, a short field of another number, a group, a fixed number.
            st.sampled_from([b"\x3a\x03abc", b"\x3a\x00", b"\x1a\x01x", b"\x0b\x0c", b"\x0d1234"]),
            st.sampled_from([b"\x3a\x7fabc", b"\xba\x80\x00\x01z", b"\x38\x05", b"\x09\x01"]),
        ),
        max_size=5,
    )
)
def test_raw_contents_are_taken_out_of_a_message_as_protobuf_reads_them(parts: list[bytes]) -> None:
    data = b"".join(parts)
    try:
        whole = parse(message_class("ModelInferRequest"), data)
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            read_request(data)
        return
    message, raws = read_request(data)
    assert [bytes(raw) for raw in raws] == list(whole.raw_input_contents)
    message.ClearField("raw_input_contents")
    whole.ClearField("raw_input_contents")
    assert message == whole


def test_reflections_pool_knows_every_service() -> None:
    for name in (v2_proto.SERVICE, v2_proto.HEALTH_SERVICE, v2_proto.REFLECTION_SERVICE):
        assert v2_proto.POOL.FindServiceByName(name).full_name == name
