"""A release of the chart: installed by helm, made into pods by KServe, reached by its Service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import yaml

from tests.cluster.components.gateway import CLASS
from tests.cluster.inference import MODEL
from tests.cluster.load import Front
from tests.cluster.node.images import ROOT

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.components.gateway import GatewayController
    from tests.cluster.components.kserve import KServe
    from tests.cluster.node.api import Json

CHART: Final = ROOT / "charts" / "qwen3-vl"
READY_SECONDS: Final = 300.0
# The page runs in an environment of its own, which is not made for these tests. Probes ask more
# often than the chart's, so that tests wait less.
QUICK: Final[Json] = {
    "page": {"enabled": False},
    "probes": {"startup": {"periodSeconds": 1}, "readiness": {"periodSeconds": 1}},
}
# Through Envoy Gateway, to the pods that endpoint pickers choose.
PICKED: Final[Json] = {
    "routing": {"enabled": True, "backend": "pool", "gateway": {"className": CLASS}},
}


@dataclass(frozen=True)
class Release:
    """A release, and the InferenceService it makes."""

    cluster: Cluster
    kserve: KServe
    namespace: str
    name: str = "photos"

    @property
    def service_name(self) -> str:
        """The InferenceService's name."""
        return f"{self.name}-qwen3-vl"

    @property
    def deployment(self) -> str:
        """The name of the Deployment and of the Service that KServe makes."""
        return f"{self.service_name}-predictor"

    @property
    def selector(self) -> str:
        """The label of its pods."""
        return f"app=isvc.{self.deployment}"

    def install(self, values: Json, *options: str) -> None:
        """`helm install` with the CPU demo's values and these; return when all pods are ready."""
        demo = ("--values", str(CHART / "values-cpu-demo.yaml"))
        self._apply("install", merged(QUICK, values), *demo, *options)
        self._wait_until_complete()

    def upgrade(self, values: Json) -> None:
        """`helm upgrade`: the values of before, and these, which change the pods.

        Returns when they are rolled out.
        """
        before = self._generation()
        self._apply("upgrade", values, "--reset-then-reuse-values")
        self._wait_until_rolled_out(before)

    def rollback(self, revision: int) -> None:
        """`helm rollback` to a revision with other pods; return when it is rolled out."""
        before = self._generation()
        self.helm("rollback", self.name, str(revision))
        self._wait_until_rolled_out(before)

    def uninstall(self) -> None:
        """`helm uninstall`; what KServe made goes later."""
        self.helm("uninstall", self.name)

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        """What helm prints of its namespace. Raises CommandFailed."""
        return self.cluster.helm(*arguments, "--namespace", self.namespace, stdin=stdin)

    def pods(self) -> list[Json]:
        """Its pods, those that end included."""
        return self.cluster.pods(self.namespace, self.selector)

    def ready_pods(self) -> list[Json]:
        """Those that are ready and stay."""
        return self.cluster.ready_pods(self.namespace, self.selector)

    def front(self) -> Front:
        """Its Service's ClusterIP."""
        address = self.cluster.service_address(self.namespace, self.deployment)
        return Front(f"http://{address}", f"{address}:8081")

    def picked_front(self, gateway: GatewayController) -> Front:
        """Its Gateway, of a release with the values PICKED, once its routes are at work."""
        name = self.service_name
        address = gateway.address(self.namespace, name)
        for route in (name, f"{name}-openai", f"{name}-v2"):
            gateway.wait_until_routed(self.namespace, route)
        for route in (name, f"{name}-grpc"):
            gateway.wait_until_routed(self.namespace, route, "grpcroutes")
        gateway.wait_until_patched(self.namespace, f"{name}-picked")
        gateway.wait_until_answered(f"http://{address}/v2/health/ready")
        for path in (f"v2/models/{MODEL}/infer", "v1/chat/completions"):
            self.cluster.wait_for(
                lambda url=f"http://{address}/{path}": _is_led(url),  # type: ignore[misc]
                f"{path} is led to a pod",
            )
        return Front(f"http://{address}", f"{address}:8081")

    def _apply(self, command: str, values: Json, *options: str) -> None:
        self.helm(
            *(command, self.name, str(CHART), *options, "--values", "-"),
            stdin=yaml.safe_dump(values),
        )

    def _wait_until_rolled_out(self, before: int) -> None:
        """Wait until KServe has changed the Deployment, and that is done."""
        changed = f"KServe has changed {self.deployment}"
        self.cluster.wait_for(lambda: self._generation() > before, changed)
        self._wait_until_complete()

    def _wait_until_complete(self) -> None:
        self.kserve.wait_until_ready(self.namespace, self.service_name, seconds=READY_SECONDS)
        self.cluster.wait_for_deployment(self.namespace, self.deployment, seconds=READY_SECONDS)

    def _generation(self) -> int:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.deployment}"
        return int(self.cluster.api.get(path)["metadata"]["generation"])


def _is_led(url: str) -> bool:
    """Whether a server, or a picker, says what is wrong with a request, and not the gateway."""
    try:
        answer = httpx.post(url, json={"model": MODEL}, timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.BAD_REQUEST


def merged(values: Json, changes: Json) -> Json:
    """Values with changes, as helm merges them."""
    result: dict[str, Any] = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def pod_front(pod: Json) -> Front:
    """A pod, past the Service."""
    address = pod["status"]["podIP"]
    return Front(f"http://{address}:8080", f"{address}:8081")
