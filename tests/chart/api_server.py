"""As much of an API server as Helm's `lookup` asks: discovery, and objects by their names."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chart.helm import Object

# group/version → kind and plural: of what the chart looks up, and of what it makes beside.
KINDS: Final = {
    "v1": [("Pod", "pods"), ("ServiceAccount", "serviceaccounts")],
    "gateway.networking.k8s.io/v1": [
        ("Gateway", "gateways"),
        ("HTTPRoute", "httproutes"),
        ("GRPCRoute", "grpcroutes"),
    ],
    "networking.k8s.io/v1": [("NetworkPolicy", "networkpolicies")],
    "policy/v1": [("PodDisruptionBudget", "poddisruptionbudgets")],
    "serving.kserve.io/v1beta1": [("InferenceService", "inferenceservices")],
}


@contextmanager
def api_server(objects: list[Object]) -> Iterator[str]:
    """Its address, while it holds these objects."""
    answers = _discovery()
    for one in objects:
        plural = dict(KINDS[one["apiVersion"]])[one["kind"]]
        metadata = one["metadata"]
        path = f"/apis/{one['apiVersion']}/namespaces/{metadata['namespace']}/{plural}"
        answers[f"{path}/{metadata['name']}"] = one

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            missing |= {"reason": "NotFound", "code": 404}
            body = json.dumps(missing if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Nothing: the test tells what went wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _discovery() -> dict[str, Any]:
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "35", "gitVersion": "v1.35.1"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
    }
    groups = []
    for api, kinds in KINDS.items():
        group, _, version = api.rpartition("/")
        named = {"groupVersion": api, "version": version}
        if group:
            groups.append({"name": group, "versions": [named], "preferredVersion": named})
        answers[f"/{'apis' if group else 'api'}/{api}"] = {
            "kind": "APIResourceList",
            "groupVersion": api,
            "resources": [
                {"name": plural, "kind": kind, "namespaced": True, "verbs": ["get", "list"]}
                for kind, plural in kinds
            ],
        }
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return answers
