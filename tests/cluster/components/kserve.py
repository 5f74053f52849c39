"""KServe: its own charts less cert-manager's objects, whose work is done here."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import yaml

from tests.cluster.cluster import condition
from tests.cluster.components.crds import apply_crds, crds_of
from tests.cluster.machine.certificates import Authority
from tests.cluster.tools.cache import sources

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.machine.certificates import KeyPair
    from tests.cluster.node.api import Json

NAMESPACE: Final = "kserve"
CONTROLLER: Final = "kserve-controller-manager"
WEBHOOK_HOST: Final = f"kserve-webhook-server-service.{NAMESPACE}.svc"
WEBHOOK_SECRET: Final = "kserve-webhook-server-cert"
CERT_MANAGER: Final = "cert-manager.io/"
WEBHOOKS: Final = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
# By what is there at its start the controller decides what it watches.
CRDS: Final = ("gateway-api", "inference-extension", "knative", "keda")
INGRESS: Final = {
    "enableGatewayApi": True,
    "disableIstioVirtualHost": True,
    "kserveIngressGateway": "kserve/kserve-ingress-gateway",
}
START_SECONDS: Final = 120.0


@dataclass(frozen=True)
class KServe:
    """A running KServe."""

    cluster: Cluster

    def wait_until_ready(self, namespace: str, name: str, *, seconds: float = 120.0) -> Json:
        """The InferenceService, once it is Ready; a failure shows its pods' logs."""
        try:
            return self.cluster.wait_for_condition(
                inference_service(namespace, name), "Ready", seconds=seconds
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.cluster.describe(namespace)}") from None

    def is_ready(self, namespace: str, name: str) -> bool:
        """Whether the InferenceService is there and Ready."""
        found = self.cluster.api.find(inference_service(namespace, name))
        return found is not None and condition(found, "Ready")


def inference_service(namespace: str, name: str) -> str:
    """The API path of an InferenceService."""
    group = "/apis/serving.kserve.io/v1beta1"
    return f"{group}/namespaces/{namespace}/inferenceservices/{name}"


def install_kserve(cluster: Cluster) -> KServe:
    """Install CRDs, controller and webhooks; return when an InferenceService can be applied."""
    crds = cluster.helm("template", "kserve-crd", str(sources("kserve") / "crds"))
    apply_crds(cluster, crds, *(crds_of(source) for source in CRDS))
    rendered = cluster.helm(
        "template", "kserve", str(sources("kserve") / "resources"), "-n", NAMESPACE
    )
    objects = [one for one in yaml.load_all(rendered, yaml.CSafeLoader) if one]
    authority = Authority("kserve-webhooks")
    pair = authority.issue("kserve-webhooks", hosts=[WEBHOOK_HOST])
    kept = [one for one in objects if not one["apiVersion"].startswith(CERT_MANAGER)]
    ordinary = [_adapted(one) for one in kept if one["kind"] not in (*WEBHOOKS, _STORAGE)]
    webhooks = [_trusting(one, authority) for one in kept if one["kind"] in WEBHOOKS]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.apply([namespace, _secret(pair), *ordinary])
    cluster.wait_for_deployment(NAMESPACE, CONTROLLER, seconds=START_SECONDS)
    # Only now: before, nobody would answer them.
    cluster.apply(webhooks)
    cluster.apply([one for one in kept if one["kind"] == _STORAGE])
    return KServe(cluster)


_STORAGE: Final = "ClusterStorageContainer"


def _adapted(one: Json) -> Json:
    """An object of the chart as this cluster needs it."""
    match one["kind"], one["metadata"]["name"]:
        case "ConfigMap", "inferenceservice-config":
            ingress = json.loads(one["data"]["ingress"]) | INGRESS
            one["data"]["ingress"] = json.dumps(ingress)
            one["data"]["deploy"] = json.dumps({"defaultDeploymentMode": "Standard"})
        case "Deployment", _:
            pod = one["spec"]["template"]["spec"]
            # The other container guards the controller's metrics alone.
            pod["containers"] = [each for each in pod["containers"] if each["name"] == "manager"]
            for container in pod["containers"]:
                container["readinessProbe"] |= {"initialDelaySeconds": 0, "periodSeconds": 1}
    return one


def _trusting(one: Json, authority: Authority) -> Json:
    """A webhook configuration with the bundle that cert-manager would inject."""
    for webhook in one["webhooks"]:
        bundle = base64.b64encode(authority.certificate).decode()
        webhook["clientConfig"]["caBundle"] = bundle
    return one


def _secret(pair: KeyPair) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": WEBHOOK_SECRET, "namespace": NAMESPACE},
        "stringData": {"tls.crt": pair.certificate.decode(), "tls.key": pair.key.decode()},
    }
