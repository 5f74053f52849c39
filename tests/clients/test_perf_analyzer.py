"""perf_analyzer (written with 2.60): the model's configuration, statistics, streams."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.bench import perf_analyzer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving import RunningServer

pytestmark = pytest.mark.skipif(
    not perf_analyzer.is_installed(), reason=perf_analyzer.NOT_INSTALLED
)

NUM_REQUESTS = 20


@pytest.fixture
def work(sample_image: bytes, tmp_path: Path) -> tuple[str, ...]:
    """What every run asks."""
    questions = [(sample_image, "Describe this image."), (sample_image, "What color is it?")]
    inputs = perf_analyzer.write_inputs(tmp_path / "inputs.json", questions)
    return (
        *("-m", "qwen3-vl", "--input-data", str(inputs)),
        *("--concurrency-range", "2", "--request-count", str(NUM_REQUESTS)),
    )


def where(server: RunningServer, protocol: str) -> tuple[str, ...]:
    address = server.http_address if protocol == "http" else server.grpc_address
    return ("-i", protocol, "-u", address)


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        pytest.param("http", (), id="HTTP"),
        pytest.param("http", ("-a",), id="HTTP, asynchronous"),
        pytest.param("http", ("-x", "1"), id="HTTP, with a version"),
        pytest.param("grpc", (), id="gRPC"),
        pytest.param("grpc", ("-a",), id="gRPC, asynchronous"),
        pytest.param("grpc", ("--grpc-compression-algorithm", "gzip"), id="gRPC, compressed"),
        pytest.param("grpc", ("--streaming",), id="gRPC, streaming"),
    ],
)
def test_its_requests_are_answered_and_counted(
    server: RunningServer, work: tuple[str, ...], protocol: str, options: tuple[str, ...]
) -> None:
    report = perf_analyzer.run(*work, *where(server, protocol), *options)
    assert "Avg latency" in report
    counted = re.search(r"Server:\s+Inference count: (\d+)", report)
    assert counted, "the server's statistics are read"
    assert int(counted[1]) >= NUM_REQUESTS


def test_parameters_reach_the_model(server: RunningServer, work: tuple[str, ...]) -> None:
    one = ("--request-parameter", "max_tokens:1:int")
    short, long = (
        perf_analyzer.measure(*work, *where(server, "grpc"), *options) for options in (one, ())
    )
    assert short[0].p50 < long[0].p50


def test_a_stream_s_responses_come_one_after_the_other(
    server: RunningServer, work: tuple[str, ...], tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    perf_analyzer.run(
        *work, *where(server, "grpc"), "--streaming", "--profile-export-file", str(profile)
    )
    # It writes the pictures into its JSON as they are, so that no parser takes it.
    moments = re.findall(r'"response_timestamps":\[([\d,]*)\]', profile.read_text("latin-1"))
    assert len(moments) >= NUM_REQUESTS
    counts = [len(one.split(",")) for one in moments]
    assert min(counts) > 1
    assert max(counts) > 5


def test_refusals_are_told(server: RunningServer, work: tuple[str, ...]) -> None:
    bad = ("--request-parameter", "max_tokens:0:int")
    with pytest.raises(perf_analyzer.Failed, match="max_tokens is 0"):
        perf_analyzer.run(*work, *where(server, "grpc"), *bad)
    with pytest.raises(perf_analyzer.Failed, match="does not support batching"):
        perf_analyzer.run(*work, *where(server, "http"), "-b", "2")
