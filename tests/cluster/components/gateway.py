"""Envoy Gateway, from its own chart: Gateways and routes that real Envoys serve."""

from __future__ import annotations

import string
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import yaml

from tests.cluster.cluster import condition
from tests.cluster.components.crds import apply_crds, crds_of
from tests.cluster.node.api import STRATEGIC
from tests.cluster.tools.cache import program, sources
from tests.cluster.tools.pins import ENVOY_GATEWAY

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.node.api import Json

NAMESPACE: Final = "envoy-gateway-system"
CLASS: Final = "envoy"
CONTROLLER: Final = "gateway.envoyproxy.io/gatewayclass-controller"
# What upstream fills into its chart at a release.
TEMPLATE_VALUES: Final = {
    "GatewayImage": f"docker.io/envoyproxy/gateway:{ENVOY_GATEWAY}",
    "GatewayImagePullPolicy": "IfNotPresent",
}
VALUES: Final = {
    # The first pod comes with quicker probes.
    "deployment": {"replicas": 0},
    "config": {
        "envoyGateway": {
            # The endpoint picker is plugged in by these two.
            "extensionApis": {"enableBackend": True, "enableEnvoyPatchPolicy": True},
        }
    },
}
START_SECONDS: Final = 180.0
PROGRAMMED_SECONDS: Final = 120.0


@dataclass(frozen=True)
class GatewayController:
    """A running Envoy Gateway with a GatewayClass."""

    cluster: Cluster
    class_name: str = CLASS

    def create(self, namespace: str, name: str = "gateway") -> str:
        """A Gateway with an HTTP listener `http` on port 80 for routes of all namespaces.

        Returns its address, once an Envoy serves it: requests go to `http://<address>`.
        """
        self.cluster.apply([self._gateway(name)], namespace=namespace)
        return self.address(namespace, name)

    def address(self, namespace: str, name: str) -> str:
        """The address of a Gateway of this class, once it is Programmed."""
        path = f"{_GROUP}/namespaces/{namespace}/gateways/{name}"
        try:
            found = self.cluster.wait_for_condition(path, "Programmed", seconds=PROGRAMMED_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.describe(NAMESPACE)}") from None
        return str(found["status"]["addresses"][0]["value"])

    def wait_until_routed(self, namespace: str, name: str, kind: str = "httproutes") -> None:
        """Wait until a route is accepted and its backends are found by all its Gateways."""
        path = f"{_GROUP}/namespaces/{namespace}/{kind}/{name}"

        def is_routed() -> bool:
            found = self.cluster.api.find(path)
            parents = (found or {}).get("status", {}).get("parents") or ()
            return bool(parents) and all(_holds(parent, found) for parent in parents)

        try:
            self.cluster.wait_for(is_routed, f"{path} is accepted and resolved")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.api.find(path)}") from None

    def wait_until_patched(self, namespace: str, name: str) -> None:
        """Wait until the Envoys of an EnvoyPatchPolicy's Gateway have all its patches."""
        path = f"{_EXTENSIONS}/namespaces/{namespace}/envoypatchpolicies/{name}"

        def is_patched() -> bool:
            ancestors = self.cluster.api.get(path).get("status", {}).get("ancestors") or ()
            return bool(ancestors) and all(
                condition({"status": one}, "Programmed") for one in ancestors
            )

        try:
            self.cluster.wait_for(is_patched, f"{path} is programmed")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.api.find(path)}") from None

    def wait_until_answered(self, url: str) -> None:
        """Wait until a GET is answered with success: an Envoy is told a little after the status.

        Before the first route an Envoy does not even listen.
        """

        def is_answered() -> bool:
            try:
                return httpx.get(url, trust_env=False, timeout=5).is_success
            except httpx.TransportError:
                return False

        self.cluster.wait_for(is_answered, f"{url} is answered")

    def _gateway(self, name: str) -> Json:
        listener = {
            "name": "http",
            "port": 80,
            "protocol": "HTTP",
            "allowedRoutes": {"namespaces": {"from": "All"}},
        }
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": name},
            "spec": {"gatewayClassName": self.class_name, "listeners": [listener]},
        }


_GROUP: Final = "/apis/gateway.networking.k8s.io/v1"
_EXTENSIONS: Final = "/apis/gateway.envoyproxy.io/v1alpha1"


def install_gateway(cluster: Cluster) -> GatewayController:
    """Install CRDs, controller and GatewayClass; return when the class is accepted."""
    for name in ("envoy-gateway", "envoy"):
        program(name)
    apply_crds(cluster, crds_of("envoy-gateway"))
    chart = sources("envoy-gateway") / "chart"
    template = string.Template((chart / "values.tmpl.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        defaults, ours = Path(folder, "defaults.yaml"), Path(folder, "ours.yaml")
        defaults.write_text(template.safe_substitute(TEMPLATE_VALUES))
        ours.write_text(yaml.safe_dump(VALUES))
        cluster.helm(
            *("install", "envoy-gateway", str(chart), "--skip-crds"),
            *("--namespace", NAMESPACE, "--create-namespace"),
            *("--values", str(defaults), "--values", str(ours)),
            *("--timeout", f"{START_SECONDS:.0f}s"),
        )
    probe = {"initialDelaySeconds": 0, "periodSeconds": 1}
    pod = {"spec": {"containers": [{"name": "envoy-gateway", "readinessProbe": probe}]}}
    deployment = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/envoy-gateway"
    cluster.api.patch(deployment, {"spec": {"replicas": 1, "template": pod}}, STRATEGIC)
    cluster.wait_for_deployment(NAMESPACE, "envoy-gateway", seconds=START_SECONDS)
    cluster.apply([_proxy(), _gateway_class()])
    cluster.wait_for_condition(f"{_GROUP}/gatewayclasses/{CLASS}", "Accepted")
    return GatewayController(cluster)


def _holds(parent: Json, found: Json | None) -> bool:
    """Whether a Gateway has accepted the newest version of a route."""
    generation = (found or {})["metadata"]["generation"]
    good = {
        one["type"]
        for one in parent.get("conditions") or ()
        if one["status"] == "True" and one["observedGeneration"] >= generation
    }
    return {"Accepted", "ResolvedRefs"} <= good


def _proxy() -> Json:
    """How Envoys run: one small pod a Gateway, behind a ClusterIP (there is no load balancer)."""
    container = {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}
    # An Envoy does not answer the first probe yet, and by default is asked again after ten seconds.
    each_second = {"periodSeconds": 1}
    probes = [
        {"name": name, "startupProbe": each_second, "readinessProbe": each_second}
        for name in ("envoy", "shutdown-manager")
    ]
    pod = {"spec": {"template": {"spec": {"containers": probes}}}}
    kubernetes = {
        "envoyService": {"type": "ClusterIP"},
        "envoyDeployment": {
            "container": container,
            "patch": {"type": "StrategicMerge", "value": pod},
        },
    }
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyProxy",
        "metadata": {"name": CLASS, "namespace": NAMESPACE},
        "spec": {
            "concurrency": 1,
            # An Envoy whose Gateway is deleted: nobody asks it any more.
            "shutdown": {"drainTimeout": "5s", "minDrainDuration": "1s"},
            "provider": {"type": "Kubernetes", "kubernetes": kubernetes},
        },
    }


def _gateway_class() -> Json:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": CLASS},
        "spec": {
            "controllerName": CONTROLLER,
            "parametersRef": {
                "group": "gateway.envoyproxy.io",
                "kind": "EnvoyProxy",
                "name": CLASS,
                "namespace": NAMESPACE,
            },
        },
    }
