"""A node's agent: registers the node, keeps its lease, runs the pods bound to it."""

from __future__ import annotations

import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import httpx

from tests.cluster.node.api import Api, ApiError, Json
from tests.cluster.node.endpoint import PORT, serve_endpoint
from tests.cluster.node.network import AddressPool, PodNetwork
from tests.cluster.node.pod import Pod
from tests.cluster.node.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.machine.addresses import Addresses
    from tests.cluster.node.container import Container

LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
LEASE_SECONDS: Final = 40
RENEW_SECONDS: Final = 10.0
# Far more than there is: what tests ask of the scheduler is not what the processes use.
CAPACITY: Final = {"cpu": "64", "memory": "256Gi", "pods": "110", "ephemeral-storage": "100Gi"}
ENDED: Final = ("Succeeded", "Failed")


class Agent:
    """One node."""

    def __init__(self, name: str, index: int, folder: Path, addresses: Addresses) -> None:
        self._name = name
        self._folder = folder
        self._addresses = addresses
        self._host = str(addresses.node(index))
        self._api = Api(folder / "admin.kubeconfig")
        self._pool = AddressPool(addresses.node_pods(index))
        self._pods: dict[str, Pod] = {}

    def run(self) -> None:
        """Be the node; never return."""
        self._register()
        serve_endpoint(self._host, self._folder, self._find_container)
        threading.Thread(target=self._keep_lease, daemon=True).start()
        self._api.follow(
            "/api/v1/pods", self._on_change, fieldSelector=f"spec.nodeName={self._name}"
        )

    def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self._name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        node: Json = {"metadata": {"name": self._name, "labels": labels}, "spec": {}}
        self._api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node"} | node)
        self._api.patch(
            f"/api/v1/nodes/{self._name}/status",
            {
                "status": {
                    "capacity": CAPACITY,
                    "allocatable": CAPACITY,
                    "addresses": [
                        {"type": "InternalIP", "address": self._host},
                        {"type": "Hostname", "address": self._name},
                    ],
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT}},
                    "nodeInfo": {
                        "kubeletVersion": "v1.35.1",
                        "operatingSystem": "linux",
                        "architecture": "amd64",
                        "containerRuntimeVersion": "processes://1",
                    },
                    "conditions": [_ready_condition()],
                }
            },
        )

    def _keep_lease(self) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": {"holderIdentity": self._name, "leaseDurationSeconds": LEASE_SECONDS},
        }
        created = False
        while True:
            try:
                if not created:
                    self._api.create(LEASES, lease)
                    created = True
                moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                self._api.patch(f"{LEASES}/{self._name}", {"spec": {"renewTime": moment}})
            except (ApiError, httpx.TransportError) as error:
                print(f"lease not renewed: {error}", file=sys.stderr, flush=True)
            time.sleep(RENEW_SECONDS if created else 1.0)

    def _on_change(self, kind: str, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        known = self._pods.get(uid)
        if known is not None:
            if kind == "DELETED":
                known.forget()
            else:
                known.update(pod)
        elif kind != "DELETED" and pod["status"].get("phase") not in ENDED:
            self._begin(pod)

    def _begin(self, pod: Json) -> None:
        metadata = pod["metadata"]
        uid, address = metadata["uid"], self._pool.take()
        sandbox = Sandbox(
            api=self._api,
            pod=pod,
            machine_folder=self._folder,
            folder=self._folder / "run" / uid,
            log_folder=self._folder / "logs" / metadata["namespace"] / metadata["name"],
            # An interface's name has 15 characters at most.
            network=PodNetwork(f"p{uid.replace('-', '')[:14]}", address, self._addresses),
            dns=self._addresses.machine,
        )

        def on_gone() -> None:
            self._pods.pop(uid, None)
            self._pool.give_back(address)

        self._pods[uid] = Pod(sandbox, self._host, on_gone)
        self._pods[uid].start()

    def _find_container(self, namespace: str, pod: str, container: str) -> Container | None:
        for one in list(self._pods.values()):
            if one.sandbox.name == f"{namespace}/{pod}":
                return one.log_of(container)
        return None


def _ready_condition() -> Json:
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "pods run as processes",
        "lastHeartbeatTime": moment,
        "lastTransitionTime": moment,
    }
