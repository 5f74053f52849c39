"""An InferenceService of the server under KServe's own controller."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cluster.cluster import CommandFailed
from tests.cluster.inference import described, inference_service

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe


def test_an_inference_service_becomes_ready_and_describes_a_picture(
    cluster: Cluster, kserve: KServe, namespace: str, sample_image: bytes
) -> None:
    cluster.apply([inference_service("plain")], namespace=namespace)
    kserve.wait_until_ready(namespace, "plain")
    (pod,) = cluster.ready_pods(namespace, "app=isvc.plain-predictor")
    assert described(f"http://{pod['status']['podIP']}:8080", sample_image)
    address = cluster.service_address(namespace, "plain-predictor")
    assert described(f"http://{address}", sample_image)


def test_kserve_s_webhook_refuses_what_it_must(
    cluster: Cluster, kserve: KServe, namespace: str
) -> None:
    broken = inference_service("Not-A-Name")
    with pytest.raises(CommandFailed, match=r"Not-A-Name"):
        cluster.apply([broken], namespace=namespace)
    two = inference_service("two")
    two["spec"]["predictor"] |= {"minReplicas": 3, "maxReplicas": 1}
    with pytest.raises(CommandFailed, match=r"admission webhook .*replicas|MaxReplicas"):
        cluster.apply([two], namespace=namespace)
    listed = cluster.kubectl("get", "isvc", "--namespace", namespace, "--output", "json")
    assert json.loads(listed)["items"] == []
