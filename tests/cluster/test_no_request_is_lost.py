"""Rolling updates, drained nodes and scaling under load: no request fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.inference import inference_service
from tests.cluster.load import running_load
from tests.cluster.senders import GrpcRequests, StreamedChats, V2Requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe

NAME = "busy"
SELECTOR = f"app=isvc.{NAME}-predictor"
PER_SECOND = 20.0
STEADY_SECONDS = 3.0


@pytest.fixture(scope="module")
def service(cluster: Cluster, kserve: KServe) -> Iterator[tuple[str, str]]:
    """Two ready pods behind a Service: its namespace and its ClusterIP."""
    with cluster.namespace("load") as namespace:
        cluster.apply([inference_service(NAME, replicas=2)], namespace=namespace)
        kserve.wait_until_ready(namespace, NAME)
        cluster.wait_for_deployment(namespace, f"{NAME}-predictor", seconds=120)
        path = f"/api/v1/namespaces/{namespace}/services/{NAME}-predictor"
        yield namespace, cluster.api.get(path)["spec"]["clusterIP"]


def senders(address: str, picture: bytes) -> list[Any]:
    """All three protocols, through the Service."""
    url = f"http://{address}"
    return [
        V2Requests(url, picture),
        StreamedChats(url, picture),
        GrpcRequests(f"{address}:8081", picture),
    ]


def test_a_rolling_update_loses_nothing(
    cluster: Cluster, service: tuple[str, str], sample_image: bytes
) -> None:
    namespace, address = service
    before = {pod["metadata"]["name"] for pod in cluster.ready_pods(namespace, SELECTOR)}
    with running_load(senders(address, sample_image), per_second=PER_SECOND) as load:
        time.sleep(STEADY_SECONDS)
        changed = inference_service(NAME, replicas=2, environment={"CHANGED": "yes"})
        cluster.apply([changed], namespace=namespace)
        cluster.wait_for(
            lambda: not before & {one["metadata"]["name"] for one in cluster.pods(namespace)},
            "both pods have been replaced",
            seconds=300,
        )
        time.sleep(STEADY_SECONDS)
    print(load.summary())
    assert load.failures == [], load.summary()
    assert len(load.outcomes) > PER_SECOND * 2 * STEADY_SECONDS


def test_a_drained_node_loses_nothing(
    cluster: Cluster, service: tuple[str, str], sample_image: bytes
) -> None:
    namespace, address = service
    node = cluster.ready_pods(namespace, SELECTOR)[0]["spec"]["nodeName"]
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": NAME},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": f"isvc.{NAME}-predictor"}}},
    }
    cluster.apply([budget], namespace=namespace)
    try:
        with running_load(senders(address, sample_image), per_second=PER_SECOND) as load:
            time.sleep(STEADY_SECONDS)
            cluster.kubectl(
                *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data"),
                *("--pod-selector", SELECTOR, "--timeout", "180s"),
            )
            cluster.wait_for_deployment(namespace, f"{NAME}-predictor", seconds=120)
            time.sleep(STEADY_SECONDS)
    finally:
        cluster.kubectl("uncordon", node)
    print(load.summary())
    assert load.failures == [], load.summary()
    assert all(pod["spec"]["nodeName"] != node for pod in cluster.pods(namespace, SELECTOR))


def test_a_killed_pod_fails_its_own_requests_and_is_replaced(
    cluster: Cluster, service: tuple[str, str], sample_image: bytes
) -> None:
    namespace, address = service
    victim = cluster.ready_pods(namespace, SELECTOR)[0]
    with running_load(senders(address, sample_image), per_second=PER_SECOND) as load:
        time.sleep(STEADY_SECONDS)
        killed = time.monotonic()
        cluster.crash(namespace, victim["metadata"]["name"])
        cluster.wait_for(
            lambda: len(cluster.ready_pods(namespace, SELECTOR)) == 1, "it is not ready"
        )
        cluster.wait_for(
            lambda: len(cluster.ready_pods(namespace, SELECTOR)) == 2,
            "it has been restarted",
            seconds=120,
        )
        time.sleep(STEADY_SECONDS)
    print(load.summary())
    # What the dead pod was working on is lost, and what came before Services looked away.
    assert load.since(killed + 2).failures == [], load.since(killed + 2).summary()
    assert load.error_ratio <= 0.05, load.summary()
