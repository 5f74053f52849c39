"""What Prometheus and the endpoint picker read, before and after work was done."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.errors import EngineFailure, NotReady, SlowReader
from model.serving.v2_grpc import ClientGone, code_of
from tests.server.grpc_client import OPTIONS, Stub, infer_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from tests.serving import RunningServer


def families(server: RunningServer) -> dict[str, Metric]:
    text = httpx.get(f"{server.http_url}/metrics").text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(family: Metric, suffix: str = "", **labels: str) -> float:
    """The one sample of a family with this suffix and these labels."""
    [sample] = [
        sample
        for sample in family.samples
        if sample.name == family.name + suffix and labels.items() <= sample.labels.items()
    ]
    return float(sample.value)


def test_one_answer_is_counted_everywhere(server: RunningServer, sample_image: bytes) -> None:
    before = families(server)
    answer = httpx.post(
        f"{server.http_url}/api/v1/describe", files={"image": sample_image}, timeout=60
    ).json()
    server.wait_until_idle()
    after = families(server)

    def grown(name: str, suffix: str = "_total", **labels: str) -> float:
        return value(after[name], suffix, **labels) - value(before[name], suffix, **labels)

    usage = answer["usage"]
    assert grown("qwen3vl_prompt_tokens") == usage["prompt_tokens"]
    assert grown("qwen3vl_completion_tokens") == usage["completion_tokens"]
    assert grown("qwen3vl_finished_sequences", finish_reason="stop") == 1
    assert grown("qwen3vl_time_to_first_token_seconds", "_count") == 1
    assert grown("qwen3vl_time_to_first_token_seconds", "_bucket", le="+Inf") == 1
    assert grown("qwen3vl_inter_token_latency_seconds", "_count") == usage["completion_tokens"] - 1
    assert grown("qwen3vl_request_seconds", "_count") == 1
    assert value(after["qwen3vl_model_load_seconds"]) > 0
    assert value(after["qwen3vl_phase"], phase="ready") == 1


def test_requests_are_counted_by_route_and_status(server: RunningServer) -> None:
    def counted(**labels: str) -> float:
        family = families(server)["qwen3vl_http_requests"]
        return sum(
            sample.value
            for sample in family.samples
            if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
        )

    describe = {"method": "POST", "route": "/api/v1/describe"}
    model = {"method": "POST", "route": "/v2/models/{model_name}/infer"}
    asked = (
        ("POST", "/api/v1/describe", {**describe, "status": "400"}),
        ("POST", "/v2/models/nobody/infer", {**model, "status": "404"}),
        ("GET", "/health", {"method": "GET", "route": "/health", "status": "200"}),
        # Whatever clients make up is one series.
        ("GET", "/a/path", {"method": "none", "route": "none", "status": "404"}),
        ("POST", "/another", {"method": "none", "route": "none", "status": "404"}),
    )
    for method, path, labels in asked:
        before = counted(**labels)
        httpx.request(method, f"{server.http_url}{path}", content=b"{}")
        assert counted(**labels) == before + 1, (method, path)


def test_a_route_is_named_as_the_document_names_it(server: RunningServer) -> None:
    paths = httpx.get(f"{server.http_url}/openapi.json").json()["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    for method, path in described:
        httpx.request(method, server.http_url + re.sub(r"\{\w+\}", "x", path), content=b"{}")
    samples = families(server)["qwen3vl_http_requests"].samples
    asked = {(s.labels["method"], s.labels["route"]) for s in samples if s.value}
    assert described <= asked


@pytest.fixture
def stub(server: RunningServer) -> Iterator[Stub]:
    with grpc.insecure_channel(server.grpc_address, options=OPTIONS) as channel:
        yield Stub(channel)


def grpc_counts(server: RunningServer) -> dict[tuple[str, str], float]:
    """(method, code) → requests."""
    return {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for sample in families(server)["qwen3vl_grpc_requests"].samples
        if sample.name.endswith("_total")
    }


def test_grpc_requests_are_counted_by_method_and_code(
    server: RunningServer, stub: Stub, sample_image: bytes
) -> None:
    # Failures are told before the first.
    assert {("ModelInfer", "INTERNAL"), ("ModelStreamInfer", "INTERNAL")} <= grpc_counts(
        server
    ).keys()
    long = {"max_tokens": {"int64_param": 3000}, "ignore_eos": {"bool_param": True}}
    asked = (
        (infer_request(sample_image), 60.0, "OK"),
        (infer_request(b"no picture"), 60.0, "INVALID_ARGUMENT"),
        (infer_request(sample_image, model_name="nobody"), 60.0, "NOT_FOUND"),
        # The deadline is the client's: to the server, one that left.
        (infer_request(sample_image, parameters=long), 0.7, "CANCELLED"),
    )
    for request, seconds, code in asked:
        before = grpc_counts(server).get(("ModelInfer", code), 0)
        try:
            stub.ModelInfer(request, timeout=seconds)
        except grpc.RpcError:
            assert code != "OK"
        server.wait_until_idle()
        assert grpc_counts(server)["ModelInfer", code] == before + 1, code


def test_each_request_of_a_grpc_stream_is_counted_for_itself(
    server: RunningServer, stub: Stub, sample_image: bytes
) -> None:
    before = grpc_counts(server)
    requests = [infer_request(sample_image), infer_request(b"no picture"), infer_request(b"nor me")]
    assert list(stub.ModelStreamInfer(iter(requests), timeout=60))
    after = grpc_counts(server)
    grown = {key: num - before.get(key, 0) for key, num in after.items()}
    assert {key: num for key, num in grown.items() if num} == {
        ("ModelStreamInfer", "OK"): 1,
        ("ModelStreamInfer", "INVALID_ARGUMENT"): 2,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(ValueError("a fault of ours"), grpc.StatusCode.INTERNAL, id="whatever else"),
        pytest.param(EngineFailure("it failed"), grpc.StatusCode.INTERNAL, id="the engine"),
        pytest.param(NotReady("loading"), grpc.StatusCode.UNAVAILABLE, id="not ready"),
        pytest.param(asyncio.CancelledError(), grpc.StatusCode.CANCELLED, id="cancelled"),
        pytest.param(SlowReader(1.0), grpc.StatusCode.CANCELLED, id="a client that does not read"),
        pytest.param(ClientGone(), grpc.StatusCode.CANCELLED, id="a client that left"),
    ],
)
def test_an_error_tells_its_code(error: BaseException, code: grpc.StatusCode) -> None:
    assert code_of(error) is code


def test_methods_that_clients_make_up_are_one_series(server: RunningServer) -> None:
    """Each series stays for ever; HTTP/2 takes any word for a method."""
    with httpx.Client(base_url=server.http_url, http1=False, http2=True) as client:
        for method in ("BREW", "STIR", "PURGE"):
            assert client.request(method, "/health").status_code == 405
    samples = families(server)["qwen3vl_http_requests"].samples
    methods = {s.labels["method"] for s in samples if s.labels["route"] == "/health"}
    assert methods <= {"GET", "none"}


def test_failures_are_told_before_the_first(server: RunningServer) -> None:
    samples = families(server)["qwen3vl_http_requests"].samples
    failed = {s.labels["route"] for s in samples if s.labels["status"] == "500"}
    assert {"/api/v1/describe", "/v1/chat/completions"} <= failed


@pytest.mark.parametrize(
    "name",
    [
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:cache_config_info",
    ],
)
def test_the_endpoint_picker_finds_one_series_of_each_name(
    server: RunningServer, name: str
) -> None:
    [sample] = families(server)[name].samples
    if name == "vllm:cache_config_info":
        assert int(sample.labels["block_size"]) > 0
        assert int(sample.labels["num_gpu_blocks"]) > 0
    else:
        assert sample.value >= 0


def test_every_family_says_what_it_is_and_none_has_a_label_per_request(
    server: RunningServer,
) -> None:
    for family in families(server).values():
        assert family.documentation, family.name
        if family.name.startswith(("qwen3vl_", "vllm:")):
            assert not any("request_id" in sample.labels for sample in family.samples)


def test_openmetrics_is_answered_to_who_asks_for_it(server: RunningServer) -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    response = httpx.get(f"{server.http_url}/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
