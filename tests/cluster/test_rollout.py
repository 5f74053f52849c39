"""Pods that are replaced, evicted or killed under load, as their clients see it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest

from tests.cluster.load import LONG_TOKENS, mixture, running_load
from tests.cluster.release import Release, pod_front
from tests.cluster.senders import GrpcStreams, StreamedChats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe

PER_SECOND = 20.0
# All kinds of requests have been sent, and the connections that are kept are there.
BEGUN_SECONDS = 1.0
STEADY_SECONDS = 3.0
# Of so many requests one is no more than the share that may fail.
LEAST_REQUESTS = 200
MOVED_SECONDS = 2.0
OTHERS_FAILED_RATIO = 0.005


@pytest.fixture(scope="module")
def release(cluster: Cluster, kserve: KServe) -> Iterator[Release]:
    """Two pods."""
    with cluster.namespace("rollout") as namespace:
        installed = Release(cluster, kserve, namespace)
        installed.install({"replicas": 2})
        yield installed


def test_a_rolling_update_loses_no_request(release: Release, sample_image: bytes) -> None:
    before = {pod["metadata"]["uid"] for pod in release.ready_pods()}
    assert len(before) == 2
    with running_load(mixture(release.front(), sample_image), per_second=PER_SECOND) as load:
        time.sleep(BEGUN_SECONDS)
        release.upgrade({"podAnnotations": {"changed": "yes"}})
        release.cluster.wait_for(
            lambda: not before & {pod["metadata"]["uid"] for pod in release.pods()},
            "both pods have drained and are gone",
            seconds=180,
        )
        time.sleep(STEADY_SECONDS)
    assert load.failures == [], load.summary()
    assert len(load.outcomes) >= PER_SECOND * (BEGUN_SECONDS + STEADY_SECONDS)


def test_a_drained_node_loses_no_request(
    cluster: Cluster, release: Release, sample_image: bytes
) -> None:
    node = release.ready_pods()[0]["spec"]["nodeName"]
    with running_load(mixture(release.front(), sample_image), per_second=PER_SECOND) as load:
        time.sleep(BEGUN_SECONDS)
        try:
            # Returns when the evicted pods are gone; the chart's budget lets one go at a time.
            cluster.kubectl(
                *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data"),
                *("--pod-selector", release.selector, "--timeout", "240s"),
            )
            cluster.wait_for(
                lambda: len(release.ready_pods()) == 2, "both pods run elsewhere", seconds=120
            )
            time.sleep(STEADY_SECONDS)
        finally:
            cluster.kubectl("uncordon", node)
    assert load.failures == [], load.summary()
    assert len(load.outcomes) >= PER_SECOND * (BEGUN_SECONDS + STEADY_SECONDS)
    assert all(pod["spec"]["nodeName"] != node for pod in release.pods())


def test_a_killed_pod_fails_what_it_answers_and_hardly_anything_else(
    cluster: Cluster, release: Release, sample_image: bytes
) -> None:
    before = {pod["metadata"]["uid"] for pod in release.pods()}
    assert restarts_of_ready(release) == [0, 0]
    victim = release.ready_pods()[0]
    front, begun = pod_front(victim), (threading.Event(), threading.Event())
    streams = (
        StreamedChats(front.url, sample_image, max_tokens=LONG_TOKENS, on_event=begun[0].set),
        GrpcStreams(
            front.grpc_address, sample_image, max_tokens=LONG_TOKENS, on_event=begun[1].set
        ),
    )
    # As clients usually are: a connection that is refused says that nothing was sent.
    senders = mixture(release.front(), sample_image, reconnects=True)
    with running_load(senders, per_second=PER_SECOND) as load, ThreadPoolExecutor(2) as threads:
        time.sleep(STEADY_SECONDS)
        streaming = [threads.submit(stream.send) for stream in streams]
        assert all(event.wait(60) for event in begun)
        asked = time.monotonic()
        cluster.crash(release.namespace, victim["metadata"]["name"])
        killed = time.monotonic()
        faults = [one.exception(30) for one in streaming]
        cluster.wait_for(lambda: restarts_of_ready(release) == [0, 1], "it is back")
        time.sleep(STEADY_SECONDS)
        cluster.wait_for(
            lambda: len(load.without_open(asked, killed).outcomes) >= LEAST_REQUESTS,
            "there are enough requests that were not open at the kill",
        )
    for stream in streams:
        stream.close()
    # It came back itself, and nobody had to take its place.
    assert {pod["metadata"]["uid"] for pod in release.pods()} == before
    assert isinstance(faults[0], httpx.RemoteProtocolError | httpx.ReadError), faults
    assert isinstance(faults[1], grpc.RpcError), faults
    # What was open at the kill may have been the killed pod's: it has failed with it or not.
    others = load.without_open(asked, killed)
    assert others.error_ratio <= OTHERS_FAILED_RATIO, load.summary()
    assert others.since(killed + MOVED_SECONDS).failures == [], load.summary()


def restarts_of_ready(release: Release) -> list[int]:
    """How often the servers of the ready pods have restarted, the least first."""
    servers = [pod["status"]["containerStatuses"][0] for pod in release.ready_pods()]
    return sorted(server["restartCount"] for server in servers)
