"""Routes to InferenceServices through Envoy Gateway's own Envoys."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.cluster.inference import described, inference_service
from tests.cluster.load import running_load
from tests.cluster.node.images import Image
from tests.cluster.senders import V2Requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.gateway import GatewayController
    from tests.cluster.components.kserve import KServe

TELLS_ITS_NAME = """
import os, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or each answer waits for an acknowledgement
    def do_GET(self):
        body = os.environ["NAME"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
NUM_REQUESTS = 400


def route(name: str, weights: dict[str, int], port: int) -> dict[str, Any]:
    """All requests to some Services by weight."""
    backends = [
        {"name": service, "port": port, "weight": weight} for service, weight in weights.items()
    ]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": backends}]},
    }


def named_server(name: str) -> list[dict[str, Any]]:
    """A pod that answers with its name, and its Service."""
    container = {
        "name": "main",
        "image": "example/named:1",
        "env": [{"name": "NAME", "value": name}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": spec,
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    ]


@pytest.fixture(scope="module")
def place(cluster: Cluster, gateway: GatewayController) -> Iterator[tuple[str, str]]:
    """A namespace with a Gateway, and that one's address; pods of all tests here start at once."""
    cluster.add_image("example/named:1", Image(("python3", "-c", TELLS_ITS_NAME)))
    with cluster.namespace("gateway") as namespace:
        cluster.apply(
            [
                *named_server("stable"),
                *named_server("canary"),
                *(inference_service(name) for name in ("one", "two")),
            ],
            namespace=namespace,
        )
        yield namespace, gateway.create(namespace)


def test_requests_are_shared_out_by_weight(
    cluster: Cluster, gateway: GatewayController, place: tuple[str, str]
) -> None:
    namespace, address = place
    for name in ("stable", "canary"):
        cluster.wait_for_condition(f"/api/v1/namespaces/{namespace}/pods/{name}", "Ready")
    for stable, canary in ((90, 10), (50, 50), (0, 100)):
        weights = {"stable": stable, "canary": canary}
        cluster.apply([route("shared", weights, 80)], namespace=namespace)
        gateway.wait_until_routed(namespace, "shared")
        gateway.wait_until_answered(f"http://{address}/")
        time.sleep(1)  # until the Envoy has been told
        with httpx.Client(trust_env=False) as client:
            answers = Counter(client.get(f"http://{address}/").text for _ in range(NUM_REQUESTS))
        assert abs(answers["canary"] / NUM_REQUESTS - canary / 100) < 0.1, answers
    cluster.kubectl("delete", "httproute", "shared", "--namespace", namespace)


def test_a_picture_is_described_through_the_gateway_while_weights_shift(
    cluster: Cluster,
    kserve: KServe,
    gateway: GatewayController,
    place: tuple[str, str],
    sample_image: bytes,
) -> None:
    namespace, address = place
    for name in ("one", "two"):
        kserve.wait_until_ready(namespace, name)
    weights = {"one-predictor": 100, "two-predictor": 0}
    cluster.apply([route("described", weights, 80)], namespace=namespace)
    gateway.wait_until_routed(namespace, "described")
    url = f"http://{address}"
    gateway.wait_until_answered(f"{url}/v2/health/ready")
    assert described(url, sample_image)
    with running_load([V2Requests(url, sample_image)], per_second=10) as load:
        for share in (95, 50, 0, 100):
            weights = {"one-predictor": share, "two-predictor": 100 - share}
            cluster.apply([route("described", weights, 80)], namespace=namespace)
            time.sleep(2)
    assert load.failures == [], load.summary()
    assert len(load.outcomes) >= 60
