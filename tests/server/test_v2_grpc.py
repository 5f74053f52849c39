"""The V2 protocol over gRPC, against the real server: raw messages, streams, cancellation."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from model.serving.v2_proto import SERVICE, message_class
from tests.server.grpc_client import (
    MODEL,
    OPTIONS,
    Stub,
    infer_request,
    prefixed,
    reason_of,
    text_of,
)
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model.serving.v2_proto import Message
    from tests.serving import RunningServer

LONG = {"max_tokens": {"int64_param": 3000}, "ignore_eos": {"bool_param": True}}


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address, options=OPTIONS) as open_channel:
        yield open_channel


@pytest.fixture
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


def test_bytes_contents_and_raw_contents_answer_alike(stub: Stub, sample_image: bytes) -> None:
    contents = {"bytes_contents": [sample_image]}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": contents}
    one = stub.ModelInfer(infer_request(sample_image), timeout=60)
    two = stub.ModelInfer(
        infer_request(b"", inputs=[tensor], raw_input_contents=[], model_version="1"), timeout=60
    )
    assert text_of(one) == text_of(two)
    assert one.model_version == "1"
    assert all(not output.HasField("contents") for output in two.outputs)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        pytest.param({"model_name": "x"}, "NOT_FOUND", "known: qwen3-vl", id="unknown model"),
        pytest.param({"model_version": "3"}, "NOT_FOUND", "version '3'", id="unknown version"),
        pytest.param(
            {"raw_input_contents": []}, "INVALID_ARGUMENT", "0 elements", id="no contents"
        ),
        pytest.param(
            {"raw_input_contents": [b"\xff\xff\xff\xff"]}, "INVALID_ARGUMENT", "claims", id="a lie"
        ),
        pytest.param(
            {"raw_input_contents": [prefixed(b"text")]}, "INVALID_ARGUMENT", "", id="no picture"
        ),
        pytest.param(
            {"parameters": {"max_tokens": {"int64_param": 0}}},
            "INVALID_ARGUMENT",
            "max_tokens is 0",
            id="no tokens",
        ),
        pytest.param(
            {"parameters": {"temperature": {"double_param": float("nan")}}},
            "INVALID_ARGUMENT",
            "temperature is nan",
            id="NaN",
        ),
        pytest.param(
            {"parameters": {"tempature": {"double_param": 1}}},
            "INVALID_ARGUMENT",
            "unknown parameter 'tempature'",
            id="unknown parameter",
        ),
        pytest.param(
            {"outputs": [{"name": "logits"}]}, "INVALID_ARGUMENT", "'logits'", id="unknown output"
        ),
    ],
)
def test_bad_requests(
    server: RunningServer,
    stub: Stub,
    sample_image: bytes,
    changes: dict[str, Any],
    code: str,
    text: str,
) -> None:
    status, details = refused(
        lambda: stub.ModelInfer(infer_request(sample_image, **changes), timeout=60)
    )
    assert status.name == code
    assert text in details
    server.wait_until_idle()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelConfig"])
def test_bytes_that_are_no_message(stub: Stub, method: str) -> None:
    code, details = refused(lambda: stub.raw(method, b"\xff\xff\xff"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"inference.{method}Request" in details


@pytest.mark.parametrize(
    "compression",
    [
        pytest.param(grpc.Compression.NoCompression, id="as it is"),
        pytest.param(grpc.Compression.Gzip, id="a gzip bomb"),
    ],
)
def test_a_message_over_the_limit(stub: Stub, compression: grpc.Compression) -> None:
    data = infer_request(bytes(70 << 20)).SerializeToString()
    code, _ = refused(lambda: stub.raw("ModelInfer", data, compression=compression))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_about_the_model_check_its_name(stub: Stub) -> None:
    for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        request = message_class(f"{method}Request")(name="nope")
        code, _ = refused(lambda m=method, r=request: getattr(stub, m)(r, timeout=60))
        assert code is grpc.StatusCode.NOT_FOUND
    everything = message_class("ModelStatisticsRequest")()
    assert stub.ModelStatistics(everything, timeout=60).model_stats[0].name == MODEL


# Streaming


def stream_of(
    stub: Stub, *requests: Message, until: threading.Event | None = None
) -> Iterator[Any]:
    def sending() -> Iterator[Any]:
        yield from requests
        if until is not None:
            until.wait(60)

    return stub.ModelStreamInfer(sending(), timeout=120)


def test_a_stream_comes_token_by_token(stub: Stub, sample_image: bytes) -> None:
    whole = text_of(stub.ModelInfer(infer_request(sample_image), timeout=60))
    responses, times = [], []
    for response in stream_of(stub, infer_request(sample_image, id="5")):
        assert response.error_message == ""
        responses.append(response.infer_response)
        times.append(time.monotonic())
    assert "".join(text_of(response) for response in responses) == whole
    assert [reason_of(response) for response in responses[:-1]] == [""] * (len(responses) - 1)
    assert reason_of(responses[-1]) == "stop"
    assert {response.id for response in responses} == {"5"}
    assert len(times) > 5
    assert times[-1] - times[0] > 0.01
    assert all("triton_final_response" not in response.parameters for response in responses)


def test_many_requests_share_a_stream_and_faults_do_not_end_it(
    stub: Stub, sample_image: bytes
) -> None:
    outputs = [{"name": "text"}, {"name": "finish_reason"}]
    good = [infer_request(sample_image, id=f"good {i}", outputs=outputs) for i in range(6)]
    bad = [
        infer_request(b"no picture", id="bad 0"),
        infer_request(sample_image, 2, id="bad 1"),
        infer_request(sample_image, id="bad 2", model_version="4"),
        infer_request(sample_image, id="bad 3", inputs=[]),
    ]
    mixed = [good[0], bad[0], good[1], good[2], bad[1], bad[2], good[3], bad[3], good[4], good[5]]
    texts: dict[str, str] = {}
    errors: dict[str, str] = {}
    for response in stream_of(stub, *mixed):
        answer = response.infer_response
        if response.error_message:
            errors[answer.id] = response.error_message
        else:
            texts[answer.id] = texts.get(answer.id, "") + text_of(answer)
            assert len(answer.outputs) == 2
    assert len(set(texts.values())) == 1
    assert sorted(texts) == [f"good {i}" for i in range(6)]
    assert sorted(errors) == [f"bad {i}" for i in range(4)]
    assert "one sequence" in errors["bad 1"]
    assert "version '4'" in errors["bad 2"]


def test_the_final_response_is_an_empty_one_where_it_is_asked_for(
    stub: Stub, sample_image: bytes
) -> None:
    asked = {"triton_enable_empty_final_response": {"bool_param": True}}
    requests = [
        infer_request(sample_image, id="a", parameters=asked),
        infer_request(b"no picture", id="b", parameters=asked),
    ]
    finals = []
    for response in stream_of(stub, *requests):
        answer = response.infer_response
        if answer.parameters["triton_final_response"].bool_param:
            finals.append((answer.id, bool(response.error_message)))
            assert not answer.outputs
        else:
            assert answer.outputs
    assert sorted(finals) == [("a", False), ("b", True)]


# Clients that go away


def test_a_cancelled_call_cancels_its_batch(
    server: RunningServer, stub: Stub, sample_image: bytes
) -> None:
    call = stub.ModelInfer.future(infer_request(sample_image, 3, parameters=LONG))
    server.wait_until_running(3)
    call.cancel()
    server.wait_until_idle()


def test_a_deadline_cancels_too(server: RunningServer, stub: Stub, sample_image: bytes) -> None:
    request = infer_request(sample_image, parameters=LONG)
    code, _ = refused(lambda: stub.ModelInfer(request, timeout=0.7))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait_until_idle()


def test_a_closed_stream_cancels_all_its_requests(
    server: RunningServer, stub: Stub, sample_image: bytes
) -> None:
    requests = [infer_request(sample_image, id=str(i), parameters=LONG) for i in range(4)]
    call = stream_of(stub, *requests)
    next(call)
    server.wait_until_running(4)
    call.cancel()
    server.wait_until_idle()


def test_a_client_that_vanishes_cancels(server: RunningServer, sample_image: bytes) -> None:
    channel = grpc.insecure_channel(server.grpc_address)
    call = Stub(channel).ModelInfer.future(infer_request(sample_image, parameters=LONG))
    server.wait_until_running(1)
    channel.close()
    assert call.code() is grpc.StatusCode.CANCELLED
    server.wait_until_idle()


# Health, reflection, the end


@pytest.mark.parametrize("service", ["", SERVICE, MODEL])
def test_health_checks(channel: grpc.Channel, service: str) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health.Check(request, timeout=10).status == serving
    watch = health.Watch(request)
    assert next(watch).status == serving
    watch.cancel()


def test_health_of_what_is_not_here(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="nope")
    assert refused(lambda: health.Check(request, timeout=10))[0] is grpc.StatusCode.NOT_FOUND
    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert next(health.Watch(request, timeout=10)).status == unknown


def test_reflection_lists_and_describes_every_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = database.get_services()
    assert set(services) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for service in services:
        file = database.FindFileContainingSymbol(service)
        assert service in {f"{file.package}.{one.name}" for one in file.service}


def test_a_stopping_server_tells_everyone_and_keeps_its_promises(sample_image: bytes) -> None:
    with start_server() as server, grpc.insecure_channel(server.grpc_address) as channel:
        stub, release = Stub(channel), threading.Event()
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            for _ in range(2)
        ]
        for watch in watches:
            next(watch)
        parameters = {**LONG, "max_tokens": {"int64_param": 60}}
        request = infer_request(sample_image, parameters=parameters)
        streaming = stream_of(stub, request, until=release)
        idle = stream_of(stub, until=release)
        unary = stub.ModelInfer.future(request)
        first = next(streaming)
        server.wait_until_running(2)
        server.process.terminate()
        with ThreadPoolExecutor() as threads:
            ended = threads.submit(refused, lambda: list(idle))
            statuses = [[one.status for one in watch] for watch in watches]
            texts = [text_of(first.infer_response)]
            code, details = refused(
                lambda: texts.extend(text_of(one.infer_response) for one in streaming)
            )
            assert statuses == [[health_pb2.HealthCheckResponse.NOT_SERVING]] * 2
            assert (code, "another replica" in details) == (grpc.StatusCode.UNAVAILABLE, True)
            assert ended.result(timeout=30)[0] is grpc.StatusCode.UNAVAILABLE
        assert "".join(texts) == text_of(unary.result(timeout=30)), "nothing was cut off"
        release.set()
        assert server.process.wait(20) == 0
