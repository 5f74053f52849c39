"""Small pods of this machine's own programs, for what tests the cluster itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster


def pod(name: str, *command: str, container: dict[str, Any] | None = None, **spec: Any) -> Any:
    """A pod with one container `main`; `container` and `spec` add to what is said of each.

    It is not restarted, and gets a second to end: most programs take no notice of a SIGTERM when
    they are process 1.
    """
    main = {"name": "main", "image": "busybox", "command": list(command), **(container or {})}
    defaults = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {**defaults, "containers": [main], **spec},
    }


def shell(script: str) -> tuple[str, str, str]:
    """A command line that runs a script."""
    return ("sh", "-c", script)


def status(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """The pod's status."""
    found: dict[str, Any] = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"]
    return found


def main_status(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """The status of its container `main`; empty before there is one."""
    for container in status(cluster, namespace, name).get("containerStatuses") or ():
        if container["name"] == "main":
            return dict(container)
    return {}


def log_of(cluster: Cluster, namespace: str, name: str, container: str = "main") -> str:
    """What the container has written, in all its lives; kept when the pod is gone."""
    path = cluster.log_folder / namespace / name / f"{container}.log"
    return path.read_text() if path.exists() else ""


def run_to_end(cluster: Cluster, namespace: str, wanted: dict[str, Any]) -> str:
    """Apply a pod, wait until it has ended, and return its phase."""
    name = wanted["metadata"]["name"]
    cluster.apply([wanted], namespace=namespace)
    cluster.wait_for(
        lambda: status(cluster, namespace, name)["phase"] in ("Succeeded", "Failed"),
        f"{name} has ended",
    )
    return str(status(cluster, namespace, name)["phase"])
