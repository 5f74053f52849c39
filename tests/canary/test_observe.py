"""Figures from Prometheus: a real one beside a real server, and everything that is no figure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from model.canary.gates import Measured, Unknown
from model.canary.observe import QUERIES, NoAnswer, Prometheus, select_service
from model.serving.metrics import Requests
from tests.canary.prometheus import start_prometheus
from tests.serving import free_ports, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving import RunningServer

ANSWER = '{"status": "success", "data": {"resultType": "vector", "result": [%s]}}'
SAMPLE = '{"metric": {}, "value": [1000.1, "%s"]}'


def prometheus(status: int, text: str) -> Prometheus:
    answer = httpx.MockTransport(lambda request: httpx.Response(status, text=text))
    return Prometheus(httpx.Client(transport=answer, base_url="http://prometheus"))


@pytest.mark.parametrize(
    ("samples", "value"),
    [
        pytest.param(SAMPLE % "0.25", 0.25, id="a number"),
        pytest.param("", None, id="no series"),
        pytest.param(SAMPLE % "NaN", None, id="nothing observed"),
        pytest.param(SAMPLE % "+Inf", None, id="beyond the buckets"),
    ],
)
def test_a_query_gives_a_number_or_nothing(samples: str, value: float | None) -> None:
    assert prometheus(200, ANSWER % samples).query("up") == value


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (200, "<html>", "answers 200 without JSON"),
        (502, "", "answers 502 without JSON"),
        (200, "{}", "with no result"),
        (200, "[]", "with no result"),
        (200, '{"status": "success", "data": {"result": [{}]}}', "with no result"),
        (200, ANSWER % (SAMPLE % "what"), "with no result"),
        (200, ANSWER % f"{SAMPLE % 1}, {SAMPLE % 2}", "2 series where one was asked for"),
        (400, '{"status": "error", "error": "parse error"}', "refuses a query: parse error"),
    ],
)
def test_whatever_is_no_answer_makes_the_figures_unknown(
    status: int, text: str, message: str
) -> None:
    asked = prometheus(status, text)
    with pytest.raises(NoAnswer, match=message):
        asked.query("up")
    figures = asked.figures("a", 60)
    assert isinstance(figures, Unknown)
    assert message in figures.reason


def test_no_prometheus_there_makes_them_unknown() -> None:
    [port] = free_ports(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        figures = Prometheus(client).figures("a", 60)
    assert isinstance(figures, Unknown)
    assert figures.reason.startswith("Prometheus does not answer: ")


@pytest.mark.parametrize(
    ("values", "num_requests", "error_ratio"),
    [
        pytest.param({"requests": 40, "errors": 4, "answers": 40, "failed": 2}, 40, 0.1, id="both"),
        pytest.param({"requests": 0, "errors": 0, "answers": 8, "failed": 6}, 8, 0.75, id="http"),
        pytest.param({"requests": 10, "errors": 1}, 10, 0.1, id="a server that counts no answers"),
        pytest.param({"requests": 0, "errors": 0}, 0, None, id="nobody asked"),
    ],
)
def test_failures_are_seen_inside_the_engine_and_before_it(
    values: dict[str, float], num_requests: int, error_ratio: float | None
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        [query] = parse_qs(request.content.decode())["query"]
        name = {
            "finish_reason!": "requests",
            'finish_reason="': "errors",
            "INTERNAL": "failed",
            "POST": "answers",
        }
        kind = next((kind for part, kind in name.items() if part in query), "")
        samples = SAMPLE % values[kind] if kind in values else ""
        return httpx.Response(200, text=ANSWER % samples)

    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://prometheus")
    figures = Prometheus(client).figures("a", 60)
    assert isinstance(figures, Measured)
    assert figures.num_requests == num_requests
    assert figures.error_ratio == error_ratio


def test_every_query_names_metrics_that_the_server_has(server: RunningServer) -> None:
    text = httpx.get(f"{server.http_url}/metrics").text
    names = {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    for query in QUERIES.values():
        assert set(re.findall(r"qwen3vl_\w+", query)) <= names


def test_a_real_prometheus_has_the_figures_of_a_real_server(
    server: RunningServer, sample_image: bytes, tmp_path: Path
) -> None:
    labels = {"namespace": "models", "inferenceservice": "qwen3-vl"}
    with (
        start_prometheus(tmp_path, {server.http_address: labels}) as url,
        httpx.Client(base_url=f"{url}/") as client,
    ):
        asked = Prometheus(client)
        selector = select_service("models", "qwen3-vl")
        first = "qwen3vl_finished_sequences_total"
        wait_for(lambda: (asked.query(f"count({first}{{{selector}}})") or 0) > 0, "a scrape")
        for _ in range(6):
            httpx.post(
                f"{server.http_url}/api/v1/describe", files={"image": sample_image}, timeout=60
            ).raise_for_status()
        wait_for(lambda: num_requests(asked, selector) >= 5, "the requests are counted")
        figures = asked.figures(selector, 60)
        assert isinstance(figures, Measured)
        assert figures.error_ratio == 0
        assert figures.ttft_p95_seconds is not None
        assert 0 < figures.ttft_p95_seconds < 60
        assert figures.itl_p95_seconds is not None
        assert 0 < figures.itl_p95_seconds < figures.ttft_p95_seconds
        other = asked.figures(select_service("models", "qwen3-vl-canary"), 60)
        assert isinstance(other, Unknown)
        assert "has no requests of" in other.reason


def test_a_real_prometheus_sums_the_failures_of_both_protocols(tmp_path: Path) -> None:
    registry, requests = CollectorRegistry(), Requests()
    finished = Counter("qwen3vl_finished_sequences", "", ["finish_reason"], registry=registry)
    for one in (requests.http.counter, requests.grpc.counter):
        registry.register(one)
    http = requests.http.counter.labels("POST", "/api/v1/describe", 200)
    for reason in ("stop", "error"):
        finished.labels(reason)
    exporter, thread = start_http_server(0, "127.0.0.1", registry)
    labels = {"namespace": "models", "inferenceservice": "qwen3-vl"}
    try:
        with (
            start_prometheus(tmp_path, {f"127.0.0.1:{exporter.server_port}": labels}) as url,
            httpx.Client(base_url=f"{url}/") as client,
        ):
            asked, selector = Prometheus(client), select_service("models", "qwen3-vl")
            series = f"count_over_time(qwen3vl_grpc_requests_total{{{selector}}}[1m])"
            wait_for(lambda: (asked.query(f"min({series})") or 0) >= 2, "two scrapes")
            http.inc(4)
            for code, num in (("OK", 8), ("INTERNAL", 2), ("UNAVAILABLE", 1), ("CANCELLED", 1)):
                for _ in range(num):
                    requests.grpc.ended("ModelInfer" if num == 1 else "ModelStreamInfer", code)
            requests.grpc.ended("ServerReady", "INTERNAL")
            wait_for(lambda: num_requests(asked, selector) >= 15, "they are counted")
            figures = asked.figures(selector, 60)
            assert isinstance(figures, Measured)
            assert figures.error_ratio == pytest.approx(3 / 15, rel=0.02)
    finally:
        exporter.shutdown()
        exporter.server_close()
        thread.join()


def num_requests(asked: Prometheus, selector: str) -> int:
    figures = asked.figures(selector, 60)
    return figures.num_requests if isinstance(figures, Measured) else 0
