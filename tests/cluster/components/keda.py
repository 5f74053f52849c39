"""KEDA: upstream's own kustomization of operator and metrics server."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

import yaml

from tests.cluster.machine.certificates import Authority
from tests.cluster.tools.cache import sources

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.node.api import Json

NAMESPACE: Final = "keda"
OPERATOR: Final = "keda-operator"
METRICS_SERVER: Final = "keda-metrics-apiserver"
SECRET: Final = "kedaorg-certs"
API: Final = "v1beta1.external.metrics.k8s.io"
ROTATION: Final = "--enable-cert-rotation=true"
START_SECONDS: Final = 180.0


def install_keda(cluster: Cluster) -> None:
    """Install it; return when it serves external metrics."""
    rendered = cluster.kubectl("kustomize", str(sources("keda") / "config" / "minimal"))
    objects = [one for one in yaml.load_all(rendered, yaml.CSafeLoader) if one]
    authority = Authority("keda")
    cluster.apply([_adapted(one, authority) for one in objects] + [_certificates(authority)])
    for name in (OPERATOR, METRICS_SERVER):
        cluster.wait_for_deployment(NAMESPACE, name, seconds=START_SECONDS)
    path = f"/apis/apiregistration.k8s.io/v1/apiservices/{API}"
    cluster.wait_for_condition(path, "Available", seconds=START_SECONDS)


def _adapted(one: Json, authority: Authority) -> Json:
    match one["kind"]:
        case "Deployment":
            for container in one["spec"]["template"]["spec"]["containers"]:
                container["readinessProbe"] |= {"initialDelaySeconds": 0, "periodSeconds": 1}
                # It would write certificates for pods that run already; here those never see them.
                container["args"] = [each for each in container["args"] if each != ROTATION]
        case "APIService":
            one["spec"]["caBundle"] = base64.b64encode(authority.certificate).decode()
    return one


def _certificates(authority: Authority) -> Json:
    """One pair for both: they speak to each other, and the API server to one of them."""
    hosts = [
        f"{name}.{NAMESPACE}.svc{domain}"
        for name in (OPERATOR, METRICS_SERVER)
        for domain in ("", ".cluster.local")
    ]
    pair = authority.issue("keda", hosts=hosts)
    files = {"ca.crt": authority.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "stringData": {name: content.decode() for name, content in files.items()},
    }
