"""The cluster itself: its nodes, and how pods find each other and the API server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.cluster.machine.kernel import ROOT
from tests.cluster.pods import log_of, pod, run_to_end, status

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

WEB_SERVER = ("python3", "-m", "http.server", "8000")
LISTENS = {
    "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    "workingDir": "/mnt",
}


def service(name: str, **spec: Any) -> dict[str, Any]:
    """A Service of the pods with the label app: name, port 80 to their 8000."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8000}], **spec},
    }


def test_what_the_kernel_refuses_is_said_before_anything_is_started() -> None:
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    tried = subprocess.run(
        [*without, sys.executable, "-m", "tests.cluster.machine.kernel"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, *_ = tried.stdout.splitlines()
    assert "refuses pairs of virtual links (veth): " in first
    assert "not permitted" in first
    assert "refuses nftables with address translation: " in tried.stdout


def test_both_nodes_are_ready(cluster: Cluster) -> None:
    for name in ("node-1", "node-2"):
        cluster.wait_for_condition(f"/api/v1/nodes/{name}", "Ready")
    listed = json.loads(cluster.kubectl("get", "nodes", "--output", "json"))["items"]
    assert [node["metadata"]["name"] for node in listed] == ["node-1", "node-2"]


def test_a_service_leads_from_pod_to_pod_by_its_name(cluster: Cluster, namespace: str) -> None:
    cluster.apply([pod("web", *WEB_SERVER, container=LISTENS), service("web")], namespace=namespace)
    cluster.wait_for_condition(f"/api/v1/namespaces/{namespace}/pods/web", "Ready")
    fetch = (
        "import urllib.request as r; print(r.urlopen('http://web/', timeout=5).status);"
        f"print(r.urlopen('http://web.{namespace}.svc.cluster.local/', timeout=5).status)"
    )
    client = pod("client", "python3", "-c", fetch, restartPolicy="OnFailure")
    cluster.apply([client], namespace=namespace)
    cluster.wait_for(
        lambda: status(cluster, namespace, "client")["phase"] == "Succeeded", "it has fetched"
    )
    assert cluster.kubectl("logs", "client", "--namespace", namespace).split() == ["200", "200"]


def test_a_headless_service_s_name_stands_for_its_ready_pods(
    cluster: Cluster, namespace: str
) -> None:
    web = pod("web", *WEB_SERVER, container=LISTENS)
    cluster.apply([web, service("web", clusterIP="None")], namespace=namespace)
    found = cluster.wait_for_condition(f"/api/v1/namespaces/{namespace}/pods/web", "Ready")
    resolve = "import socket; print(socket.gethostbyname_ex('web')[2])"
    assert run_to_end(cluster, namespace, pod("asks", "python3", "-c", resolve)) == "Succeeded"
    assert log_of(cluster, namespace, "asks").strip() == str([found["status"]["podIP"]])


def test_pods_may_ask_the_api_server_what_their_account_may(
    cluster: Cluster, namespace: str
) -> None:
    asking = pod("asks", "/bin/kubectl", "get", "pods", container={"image": "kubectl"})
    assert run_to_end(cluster, namespace, asking) == "Failed"
    log = cluster.kubectl("logs", "asks", "--namespace", namespace)
    assert f"system:serviceaccount:{namespace}:default" in log
    assert "forbidden" in log.lower()
