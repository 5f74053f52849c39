"""A namespace with a stable server behind a gateway, a Prometheus that scrapes every server in it,
and the command line as people run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import httpx

from model.canary.state import ANNOTATION, State, parse
from tests.cluster.inference import inference_service
from tests.cluster.node.images import server_image
from tests.serving import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.cluster import Cluster

STABLE: Final = "vl"
ROUTE: Final = "vl"
CANARY: Final = "vl-canary"
FAULTS: Final = ("errors", "slow", "wrong")
SERVICE_LABEL: Final = "serving.kserve.io/inferenceservice"
FINISHED: Final = "qwen3vl_finished_sequences_total{"
LOOK_SECONDS: Final = 0.5
GATEWAY_GROUP: Final = "gateway.networking.k8s.io/v1"


@dataclass(frozen=True)
class Stage:
    """Where canaries are rolled out. url: of the gateway; folder: logs of the tool go there."""

    cluster: Cluster
    namespace: str
    url: str
    prometheus_url: str
    folder: Path

    def canary(self, *arguments: str, log: str = "tool") -> subprocess.Popen[str]:
        """The tool, started; its output goes to a file."""
        environment = {
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "QWEN3VL_PROMETHEUS_URL": self.prometheus_url,
        }
        with (self.folder / f"{log}.log").open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "model.canary", *arguments, "-n", self.namespace],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def log(self, name: str = "tool") -> str:
        """What the tool has written."""
        return (self.folder / f"{name}.log").read_text()

    def run(self, *arguments: str, seconds: float = 400.0) -> int:
        """The tool's exit status."""
        return self.canary(*arguments).wait(seconds)

    def route(self, plural: str = "httproutes") -> dict[str, Any]:
        """The route of now."""
        path = f"/apis/{GATEWAY_GROUP}/namespaces/{self.namespace}/{plural}/{ROUTE}"
        return dict(self.cluster.api.get(path))

    @property
    def state(self) -> State:
        """The canary's state of now."""
        return parse(self.route()["metadata"]["annotations"][ANNOTATION])

    def weights(self, plural: str = "httproutes") -> dict[str, int]:
        """Backends of the route's last rule, and their weights."""
        refs = self.route(plural)["spec"]["rules"][-1]["backendRefs"]
        return {ref["name"]: ref["weight"] for ref in refs}

    def events(self) -> list[str]:
        """Reasons of all Events about the route."""
        found = self.cluster.kubectl("get", "events", "-n", self.namespace, "-o", "json")
        return [
            one["reason"]
            for one in json.loads(found)["items"]
            if one["involvedObject"]["kind"] == "HTTPRoute"
        ]

    def num_answered(self, name: str) -> float:
        """Sequences that the pods of an InferenceService have finished."""
        total = 0.0
        for pod in self.cluster.ready_pods(self.namespace, f"{SERVICE_LABEL}={name}"):
            url = f"http://{pod['status']['podIP']}:8080/metrics"
            lines = httpx.get(url, trust_env=False).text.splitlines()
            finished = [line for line in lines if line.startswith(FINISHED)]
            total += sum(float(line.rsplit(" ", 1)[1]) for line in finished)
        return total

    def image(self, name: str) -> str:
        """Of an InferenceService's Deployment."""
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{name}-predictor"
        containers = self.cluster.api.get(path)["spec"]["template"]["spec"]["containers"]
        return str(containers[0]["image"])


def deploy_stable(cluster: Cluster, namespace: str) -> None:
    """The stable InferenceService, and routes to it of both kinds."""
    for fault in FAULTS:
        image = server_image()
        entrypoint = (image.entrypoint[0], "-m", "tests.canary.faulty_server", fault)
        cluster.add_image(f"example/qwen3-vl:{fault}", replace(image, entrypoint=entrypoint))
    routes = [route(kind, port) for kind, port in (("HTTPRoute", 80), ("GRPCRoute", 8081))]
    cluster.apply([inference_service(STABLE), *routes], namespace=namespace)


def route(kind: str, port: int) -> dict[str, Any]:
    """A route of everything to the stable server."""
    backend = {"name": f"{STABLE}-predictor", "port": port}
    return {
        "apiVersion": GATEWAY_GROUP,
        "kind": kind,
        "metadata": {"name": ROUTE},
        "spec": {"parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": [backend]}]},
    }


@contextmanager
def scraped_pods(cluster: Cluster, namespace: str, targets: Path) -> Iterator[None]:
    """Keep a file of Prometheus' targets: every server's pod, labelled as our scrapes are."""
    stopped = threading.Event()

    def look() -> None:
        while not stopped.wait(LOOK_SECONDS):
            entries = [entry for pod in cluster.pods(namespace) for entry in _targets(pod)]
            partial = targets.with_suffix(".partial")
            partial.write_text(json.dumps(entries))
            partial.replace(targets)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _targets(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    metadata, address = pod["metadata"], pod.get("status", {}).get("podIP")
    service = metadata.get("labels", {}).get(SERVICE_LABEL)
    if address and service:
        labels = {
            "namespace": metadata["namespace"],
            "pod": metadata["name"],
            "inferenceservice": service,
        }
        yield {"targets": [f"{address}:8080"], "labels": labels}
