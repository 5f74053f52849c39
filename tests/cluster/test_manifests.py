"""The plain manifests, given to the real API server and KServe's controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import yaml

from model.demo import CHECKPOINT_DIR
from tests.cluster.inference import described, v2_request
from tests.manifests.kustomize import FOLDERS, MANIFESTS, kustomized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe

VISIBILITY: Final = "networking.kserve.io/visibility"
# Neither they nor their CRDs are here.
ABSENT: Final = ("cert-manager.io", "gateway.envoyproxy.io", "monitoring.coreos.com")


def movable(folder: str) -> list[dict[str, Any]]:
    """A folder's objects without their namespace, less what no CRD here describes."""
    objects = []
    for one in kustomized(folder):
        if one["apiVersion"].partition("/")[0] not in ABSENT:
            one["metadata"].pop("namespace", None)
            objects.append(one)
    return objects


@pytest.mark.usefixtures("kserve")
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_api_server_and_the_webhooks_take_them(
    cluster: Cluster, namespace: str, folder: str
) -> None:
    cluster.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict"),
        *("--namespace", namespace, "-f", "-"),
        stdin=yaml.safe_dump_all(movable(folder)),
    )


@pytest.fixture(scope="module")
def based(cluster: Cluster, kserve: KServe) -> Iterator[str]:
    """The base, applied; its pods start while other tests' do."""
    del kserve
    with cluster.namespace(name="qwen3-vl") as namespace:
        cluster.kubectl("apply", "-k", str(MANIFESTS / "base"))
        yield namespace


def test_a_service_gives_its_format_and_gets_the_runtime(
    cluster: Cluster, kserve: KServe, based: str, namespace: str, sample_image: bytes
) -> None:
    assert based != namespace
    cluster.apply(movable("serving-runtime/namespaced"), namespace=namespace)
    cluster.apply([_volume(namespace), _CLAIM], namespace=namespace)
    [service] = kustomized("serving-runtime/example")
    # No Gateway is here for KServe to route it by.
    service["metadata"] |= {"name": "photos", "labels": {VISIBILITY: "cluster-local"}}
    model = service["spec"]["predictor"]["model"]
    model |= {"storageUri": "pvc://weights", "resources": {"requests": {"cpu": "1"}}}
    cluster.apply([service], namespace=namespace)
    try:
        kserve.wait_until_ready(namespace, "photos")
        (pod,) = cluster.ready_pods(namespace, "app=isvc.photos-predictor")
        assert pod["spec"]["terminationGracePeriodSeconds"] == 75
        [container] = [
            one for one in pod["spec"]["containers"] if one["name"] == "kserve-container"
        ]
        variables = {one["name"]: one.get("value") for one in container["env"]}
        # The service's own are laid over the runtime's.
        assert variables["QVL_SERVER__UNREADY_SECONDS"] == "5"
        assert variables["QVL_SERVER__DRAIN_SECONDS"] == "60"
        answer = httpx.post(
            f"http://{pod['status']['podIP']}:8080/v2/models/photos/infer",
            json=v2_request(sample_image),
            timeout=60,
            trust_env=False,
        )
        assert answer.is_success, answer.text
    finally:
        cluster.kubectl("delete", "isvc", "photos", "--namespace", namespace)
        cluster.kubectl("delete", "pvc", "weights", "--namespace", namespace, "--wait=false")
        cluster.kubectl("delete", "pv", f"{namespace}-weights", "--wait=false")


def test_the_base_becomes_ready_and_describes_a_picture(
    cluster: Cluster, kserve: KServe, based: str, sample_image: bytes
) -> None:
    kserve.wait_until_ready(based, "qwen3-vl")
    address = cluster.service_address(based, "qwen3-vl-predictor")
    assert described(f"http://{address}", sample_image)


_CLAIM: Final = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "weights"},
    "spec": {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}},
    },
}


def _volume(namespace: str) -> dict[str, Any]:
    """The bundled checkpoint as a volume for that claim alone."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-weights"},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "capacity": {"storage": "1Gi"},
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": "weights"},
            "hostPath": {"path": str(CHECKPOINT_DIR)},
        },
    }
