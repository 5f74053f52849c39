"""An API server's storage in memory: objects, versions, conflicts.

Of KServe's controller: InferenceServices become Ready and have a Deployment and a Service.

For what needs thousands of runs; the commands meet the real ones in tests/cluster.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import httpx

from model.canary.cluster import Cluster
from model.canary.services import service_name

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = "models"
Object = dict[str, Any]


class Killed(BaseException):
    """The process ended there and then."""


class MemoryApi:
    """Objects by plural and name.

    before, after: called around every write that is applied, with its method and path
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.version = 0
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.after: Callable[[str, str], None] = lambda method, path: None
        self.ready: Callable[[Object], bool] = lambda service: True

    def cluster(self) -> Cluster:
        transport = httpx.MockTransport(self.handle)
        return Cluster(
            lambda path: httpx.Client(transport=transport, base_url=f"http://api/{path}"),
            NAMESPACE,
        )

    def put(self, plural: str, name: str, **fields: Any) -> None:
        metadata = {"name": name, "namespace": NAMESPACE, **fields.pop("metadata", {})}
        self._store(plural, {"metadata": metadata, **fields})

    def get(self, plural: str, name: str) -> Object:
        return self.objects[plural, name]

    def handle(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.strip("/").split("/")
        place = parts.index("namespaces")
        assert parts[place + 1] == NAMESPACE
        plural, name = parts[place + 2], "/".join(parts[place + 3 :])
        body = json.loads(request.content) if request.content else {}
        match request.method:
            case "GET" if not name:
                items = [one for (kind, _), one in self.objects.items() if kind == plural]
                return httpx.Response(200, json={"items": items})
            case "GET":
                found = self.objects.get((plural, name))
                return httpx.Response(200, json=found) if found else failure(404, name)
        return self._write(request, plural, name, body)

    def _write(
        self, request: httpx.Request, plural: str, name: str, body: Object
    ) -> httpx.Response:
        dry_run = request.url.params.get("dryRun") == "All"
        refusal = self._refusal(request.method, plural, name, body)
        if refusal is not None:
            return refusal
        if dry_run:
            return httpx.Response(200, json=body)
        self.before(request.method, f"{plural}/{name}")
        answer = self._apply(request.method, plural, name, body)
        self.after(request.method, f"{plural}/{name}")
        return answer

    def _refusal(self, method: str, plural: str, name: str, body: Object) -> httpx.Response | None:
        found = self.objects.get((plural, name or body.get("metadata", {}).get("name", "")))
        if method == "POST":
            return failure(409, "there already") if found else None
        if found is None:
            return failure(404, name)
        stale = method == "PUT" and (
            body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]
        )
        return failure(409, "it was written since") if stale else None

    def _apply(self, method: str, plural: str, name: str, body: Object) -> httpx.Response:
        if method == "DELETE":
            del self.objects[plural, name]
            return httpx.Response(200, json={})
        if plural == "inferenceservices":
            self._be_kserve(body)
        return httpx.Response(200, json=self._store(plural, body))

    def _store(self, plural: str, body: Object) -> Object:
        self.version += 1
        stored = copy.deepcopy(body)
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.objects[plural, stored["metadata"]["name"]] = stored
        return copy.deepcopy(stored)

    def _be_kserve(self, service: Object) -> None:
        name, predictor = service["metadata"]["name"], service["spec"]["predictor"]
        ready = self.ready(service)
        service["status"] = {"conditions": [{"type": "Ready", "status": str(ready)}]}
        annotations = dict(predictor.get("annotations") or {})
        self.put(
            "deployments",
            service_name(name),
            metadata={"generation": 1},
            spec={"replicas": 1, "template": {"metadata": {"annotations": annotations}}},
            status={
                "observedGeneration": 1,
                "replicas": 1,
                "updatedReplicas": int(ready),
                "availableReplicas": int(ready),
            },
        )
        ports = [{"port": 80}, {"port": 8081, "appProtocol": "kubernetes.io/h2c"}]
        self.put("services", service_name(name), spec={"ports": ports})


def failure(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"kind": "Status", "message": message})
