"""prometheus-adapter: upstream's manifests, serving custom metrics by the chart's own rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import yaml

from tests.cluster.components.prometheus import NAMESPACE, PORT, SERVICE
from tests.cluster.tools.cache import sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.cluster import Cluster
    from tests.cluster.node.api import Json

NAME: Final = "prometheus-adapter"
GROUP: Final = "custom.metrics.k8s.io"
VERSIONS: Final = ("v1beta1", "v1beta2")
READER: Final = "custom-metrics-server-resources"
# Upstream's are about metrics.k8s.io, of which the chart makes no use.
LEFT_OUT: Final = ("APIService", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget")
# Upstream's Deployment reads this file of this ConfigMap.
CONFIGURATION: Final = "adapter-config"
FILE: Final = "config.yaml"
RULES: Final = "rules:\n"
RELIST_SECONDS: Final = 2
START_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Adapter:
    """An installed prometheus-adapter; it runs once it has rules."""

    cluster: Cluster

    def read_rules(self, *config_maps: str) -> None:
        """Run with the rules of ConfigMaps of its namespace; return when it serves.

        Once: it reads them at its start alone.
        """
        self.cluster.apply([_configuration(self._joined(config_maps))])
        deployment = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}"
        self.cluster.api.patch(deployment, {"spec": {"replicas": 1}})
        self.cluster.wait_for_deployment(NAMESPACE, NAME, seconds=START_SECONDS)
        for version in VERSIONS:
            path = f"/apis/apiregistration.k8s.io/v1/apiservices/{version}.{GROUP}"
            self.cluster.wait_for_condition(path, "Available")

    def pod_metric(self, namespace: str, metric: str) -> dict[str, str]:
        """The metric of each of a namespace's pods, as an HPA reads it: pod → quantity."""
        path = f"/apis/{GROUP}/v1beta2/namespaces/{namespace}/pods/*/{metric}"
        found = self.cluster.api.find(path) or {"items": []}
        return {one["describedObject"]["name"]: one["value"] for one in found["items"]}

    def _joined(self, config_maps: Sequence[str]) -> str:
        """One configuration of several: the adapter reads one, and lists of rules can be joined."""
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
        texts = [self.cluster.api.get(f"{path}/{name}")["data"][FILE] for name in config_maps]
        assert all(text.startswith(RULES) for text in texts), texts
        return RULES + "".join(text.removeprefix(RULES) for text in texts)


def install_adapter(cluster: Cluster) -> Adapter:
    """Upstream's objects, without a pod yet, and the API that it is to serve."""
    objects = []
    for path in sorted((sources(NAME) / "manifests").glob("*.yaml")):
        objects += [one for one in yaml.safe_load_all(path.read_text()) if one]
    kept = [_adapted(one) for one in objects if one["kind"] not in LEFT_OUT]
    cluster.apply([*kept, _reader(), *map(_api_service, VERSIONS)])
    return Adapter(cluster)


def _configuration(rules: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIGURATION, "namespace": NAMESPACE},
        "data": {FILE: rules},
    }


def _adapted(one: Json) -> Json:
    if one["kind"] == "Deployment":
        one["spec"] |= {"replicas": 0, "strategy": {"type": "Recreate", "rollingUpdate": None}}
        (container,) = one["spec"]["template"]["spec"]["containers"]
        changed = {
            "--prometheus-url": f"http://{SERVICE}.{NAMESPACE}.svc:{PORT}/",
            "--metrics-relist-interval": f"{RELIST_SECONDS}s",
        }
        names = [argument.partition("=")[0] for argument in container["args"]]
        assert changed.keys() <= set(names), names
        container["args"] = [
            f"{name}={changed[name]}" if name in changed else argument
            for name, argument in zip(names, container["args"], strict=True)
        ]
        container["readinessProbe"] |= {"initialDelaySeconds": 0, "periodSeconds": 1}
    return one


def _reader() -> Json:
    """The role that upstream's binding gives to HPAs, and leaves to be made."""
    rule = {"apiGroups": [GROUP], "resources": ["*"], "verbs": ["*"]}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": READER},
        "rules": [rule],
    }


def _api_service(version: str) -> Json:
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            # It signs its own certificate, as upstream's manifests have it.
            "insecureSkipTLSVerify": True,
            "service": {"name": NAME, "namespace": NAMESPACE},
        },
    }
