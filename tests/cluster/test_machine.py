"""The cluster itself: nodes, pods, Services, and that nothing of it stays behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster


def pod(name: str, *command: str, **spec: Any) -> dict[str, Any]:
    """A pod with one container of this machine's own programs."""
    container = {"name": "main", "image": "busybox", "command": list(command)}
    container |= spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            # Most of these take no notice of a SIGTERM.
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }


def phase(cluster: Cluster, namespace: str, name: str) -> str:
    """The pod's phase."""
    return str(cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"]["phase"])


def test_both_nodes_are_ready(cluster: Cluster) -> None:
    for name in ("node-1", "node-2"):
        cluster.wait_for_condition(f"/api/v1/nodes/{name}", "Ready")


def test_a_pod_runs_to_its_end_and_its_log_is_kept(cluster: Cluster, namespace: str) -> None:
    cluster.apply([pod("hello", "echo", "hello there")], namespace=namespace)
    cluster.wait_for(lambda: phase(cluster, namespace, "hello") == "Succeeded", "it has ended")
    assert cluster.kubectl("logs", "hello", "--namespace", namespace) == "hello there\n"


def test_a_pod_sees_its_configuration_and_writes_nothing_outside(
    cluster: Cluster, namespace: str
) -> None:
    configuration = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "settings"},
        "data": {"colour": "green"},
    }
    command = (
        'set -e; echo "$COLOUR $(cat /etc/settings/colour) $POD $(id -u)"; touch /tmp/seen;'
        " ls /tmp; if touch /etc/outside; then exit 1; fi; cat /proc/1/comm"
    )
    mounted = pod(
        "configured",
        *("sh", "-c", command),
        container={
            "env": [
                {
                    "name": "COLOUR",
                    "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}},
                },
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
            "volumeMounts": [
                {"name": "settings", "mountPath": "/etc/settings"},
                {"name": "scratch", "mountPath": "/tmp"},
            ],
            "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 1234},
        },
        volumes=[
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "scratch", "emptyDir": {}},
        ],
    )
    cluster.apply([configuration, mounted], namespace=namespace)
    cluster.wait_for(
        lambda: phase(cluster, namespace, "configured") in ("Succeeded", "Failed"), "it has ended"
    )
    log = cluster.kubectl("logs", "configured", "--namespace", namespace)
    assert log.splitlines()[:2] == ["green green configured 1234", "seen"]
    assert log.splitlines()[-1] == "sh"


def test_a_service_leads_from_pod_to_pod_by_its_name(cluster: Cluster, namespace: str) -> None:
    server = pod(
        "web",
        *("python3", "-m", "http.server", "8000"),
        container={
            "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
            "workingDir": "/mnt",
        },
    )
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    fetch = (
        "import urllib.request as r; print(r.urlopen('http://web/', timeout=5).status);"
        f"print(r.urlopen('http://web.{namespace}.svc.cluster.local/', timeout=5).status)"
    )
    cluster.apply([server, service], namespace=namespace)
    cluster.wait_for_condition(f"/api/v1/namespaces/{namespace}/pods/web", "Ready")
    client = pod("client", "python3", "-c", fetch, restartPolicy="OnFailure")
    cluster.apply([client], namespace=namespace)
    cluster.wait_for(lambda: phase(cluster, namespace, "client") == "Succeeded", "it has fetched")
    assert cluster.kubectl("logs", "client", "--namespace", namespace).split() == ["200", "200"]


def test_pods_may_ask_the_api_server_what_their_account_may(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        [pod("asks", "/bin/kubectl", "get", "pods", container={"image": "kubectl"})],
        namespace=namespace,
    )
    cluster.wait_for(lambda: phase(cluster, namespace, "asks") == "Failed", "it was refused")
    log = cluster.kubectl("logs", "asks", "--namespace", namespace)
    assert f"system:serviceaccount:{namespace}:default" in log
    assert "forbidden" in log.lower()


def test_nodes_count_as_the_scheduler_s(cluster: Cluster) -> None:
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output", "json"))["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["node-1", "node-2"]
