"""What Prometheus sees of the server, and what the chart's rules and dashboard make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cluster.inference import described, inference_service

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe
    from tests.cluster.components.prometheus import Prometheus


def test_prometheus_knows_each_ready_pod_by_its_inference_service(
    cluster: Cluster, kserve: KServe, prometheus: Prometheus, namespace: str, sample_image: bytes
) -> None:
    cluster.apply([inference_service("watched")], namespace=namespace)
    kserve.wait_until_ready(namespace, "watched")
    (pod,) = cluster.ready_pods(namespace, "app=isvc.watched-predictor")
    own = f'namespace="{namespace}",inferenceservice="watched"'
    (up,) = prometheus.wait_for_series(f"up{{{own}}} == 1")
    assert up.labels["pod"] == pod["metadata"]["name"]
    assert described(f"http://{pod['status']['podIP']}:8080", sample_image)
    finished = f"sum(qwen3vl_finished_sequences_total{{{own}}})"
    prometheus.wait_for_series(f"{finished} == 1")
    with prometheus.away():
        pass
    prometheus.wait_for_series(f"last_over_time(up{{{own}}}[3s]) == 1")
    # What it had recorded has outlived it.
    assert prometheus.query(f"count_over_time({finished}[10m:1s]) > 5")
    name = pod["metadata"]["name"]
    cluster.kubectl("delete", "pod", name, "--namespace", namespace, "--wait=false")
    cluster.wait_for(lambda: not prometheus.query(f'up{{pod="{name}"}}'), "it is forgotten")
