"""A canary over two InferencePools: the API server keeps the weights, and a gateway says whether it
takes them.

The chart's gateways that take pools as backends are not to be had here. In their place a thread
writes what such a one's controller would into the route's status.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from model.canary.cluster import connect, retry
from model.canary.commands import main
from model.canary.errors import EXIT_REFUSED
from model.canary.gates import Measured
from model.canary.plan import Plan, Progress
from model.canary.rollout import Rollout
from model.canary.state import Phase, State
from model.canary.traffic import RouteTraffic
from tests.canary.states import make_state
from tests.canary.test_rollout import Story
from tests.cluster.inference import inference_service
from tests.cluster.node.images import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.canary.cluster import Cluster as CanaryCluster
    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe

STABLE: Final = "vl"
CANARY: Final = "vl-canary"
ROUTE: Final = "vl"
# Nobody asks them for more than whether they are ready.
IMAGE: Final = "example/ready:1"
READY: Final = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""
CONTROLLER: Final = "example.com/gateway"
GOOD: Final = Measured(
    num_requests=500, error_ratio=0.0, ttft_p95_seconds=0.2, itl_p95_seconds=0.01
)
LOOK_SECONDS: Final = 0.1
ROUTES: Final = "/apis/gateway.networking.k8s.io/v1/namespaces/{}/httproutes"
REFUSED_POOLS: Final = ("ResolvedRefs", "InvalidKind", "InferencePool is no backend here")
REFUSED_WEIGHTS: Final = ("Accepted", "UnsupportedValue", "one InferencePool a rule")


class Controller(threading.Thread):
    """Says of the route's newest version what a gateway thinks of it, until it is stopped.

    takes_pools: as backends; takes_two: of them in one rule, with weights
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        super().__init__()
        self.takes_pools = self.takes_two = True
        self.stopped = threading.Event()
        self._cluster = cluster
        self._path = f"{ROUTES.format(namespace)}/{ROUTE}"

    def run(self) -> None:
        told: tuple[object, ...] = ()
        while not self.stopped.wait(LOOK_SECONDS):
            route = self._cluster.api.find(self._path)
            if route is None:
                continue
            thinks = (self._refusal(route), route["metadata"]["generation"])
            if thinks != told:
                status = {"parents": [self._parent(*thinks)]}
                self._cluster.api.patch(f"{self._path}/status", {"status": status})
                told = thinks

    def _refusal(self, route: dict[str, Any]) -> tuple[str, str, str] | None:
        for rule in route["spec"]["rules"]:
            kinds = [ref["kind"] for ref in rule["backendRefs"]]
            if "InferencePool" in kinds and not self.takes_pools:
                return REFUSED_POOLS
            if kinds.count("InferencePool") > 1 and not self.takes_two:
                return REFUSED_WEIGHTS
        return None

    def _parent(self, refusal: tuple[str, str, str] | None, generation: int) -> dict[str, Any]:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        conditions = [
            {
                "type": kind,
                "status": "False" if refusal and refusal[0] == kind else "True",
                "reason": refusal[1] if refusal and refusal[0] == kind else kind,
                "message": refusal[2] if refusal and refusal[0] == kind else "",
                "observedGeneration": generation,
                "lastTransitionTime": now,
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]
        parent = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gateway"}
        return {"parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions}


class Good:
    """In Prometheus' place: no request comes through a gateway that is not here."""

    def figures(self, selector: str, seconds: float) -> Measured:
        return GOOD


class Pools:
    """Two InferenceServices, each with a pool, and a route to the stable one's."""

    def __init__(self, cluster: Cluster, namespace: str, controller: Controller) -> None:
        self.cluster, self.namespace, self.controller = cluster, namespace, controller
        self.story = Story()

    def start(self, client: CanaryCluster) -> Rollout:
        """A canary that was claimed as `start` does."""
        now = time.time()
        state = make_state(
            stable=STABLE,
            canary=CANARY,
            changes=None,
            followers=(),
            plan=Plan(steps=(10, 100), hold_seconds=0, interval_seconds=0.2),
            phase=Phase.STARTING,
            started_at=now,
            phase_started_at=now,
            progress=Progress(step_started_at=now),
        )
        traffic = RouteTraffic(client, ROUTE)
        # The gateway writes beside us.
        retry(lambda: traffic.write(traffic.read(), state))
        good: Any = Good()
        return Rollout(traffic, good, None, self.story, "run", time.time, settle_rounds=0)

    def route(self) -> dict[str, Any]:
        return self.cluster.api.get(f"{ROUTES.format(self.namespace)}/{ROUTE}")

    def weights(self) -> dict[str, int]:
        """Of the pools in the route's one rule."""
        [rule] = self.route()["spec"]["rules"]
        assert {ref["kind"] for ref in rule["backendRefs"]} == {"InferencePool"}
        return {ref["name"]: ref["weight"] for ref in rule["backendRefs"]}

    def wait_until_told(self, status: str) -> None:
        """Wait until the gateway has said this of the newest version."""

        def is_told() -> bool:
            found = self.route()
            parents = found.get("status", {}).get("parents") or ()
            conditions = [one for parent in parents for one in parent["conditions"]]
            newest = found["metadata"]["generation"]
            told = {one["status"] for one in conditions if one["observedGeneration"] == newest}
            return status in told if status == "False" else told == {"True"}

        self.cluster.wait_for(is_told, f"the route's conditions are {status}")


def pool(name: str) -> dict[str, Any]:
    """The pool of an InferenceService's HTTP port."""
    picker = {"group": "", "kind": "Service", "name": f"{name}-picker", "port": {"number": 9002}}
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": f"{name}-openai"},
        "spec": {
            "selector": {"matchLabels": {"app": f"isvc.{name}-predictor"}},
            "targetPorts": [{"number": 8080}],
            "endpointPickerRef": picker,
        },
    }


def route() -> dict[str, Any]:
    ref = {"group": "inference.networking.k8s.io", "kind": "InferencePool"}
    ref |= {"name": f"{STABLE}-openai"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": ROUTE},
        "spec": {"parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": [ref]}]},
    }


@pytest.fixture(scope="module")
def pools(cluster: Cluster, kserve: KServe) -> Iterator[Pools]:
    """All tests here share it; each leaves the route as it was."""
    cluster.add_image(IMAGE, Image(("python3", "-c", READY)))
    with cluster.namespace("pools") as namespace:
        services = [inference_service(name, image=IMAGE) for name in (STABLE, CANARY)]
        objects = [*services, pool(STABLE), pool(CANARY), route()]
        cluster.apply(objects, namespace=namespace)
        for name in (STABLE, CANARY):
            kserve.wait_until_ready(namespace, name)
        controller = Controller(cluster, namespace)
        controller.start()
        yield Pools(cluster, namespace, controller)
        controller.stopped.set()
        controller.join()


@pytest.fixture
def client(pools: Pools) -> Iterator[CanaryCluster]:
    connected = connect(str(pools.cluster.kubeconfig), None, pools.namespace)
    yield connected
    connected.close()


def test_a_gateway_that_takes_no_pools_gets_no_canary(
    pools: Pools, capsys: pytest.CaptureFixture[str]
) -> None:
    pools.controller.takes_pools = False
    pools.wait_until_told("False")
    given = ("start", ROUTE, "--canary", CANARY, "--prometheus-url", "http://prometheus:9090")
    where = ("--kubeconfig", str(pools.cluster.kubeconfig), "--namespace", pools.namespace)
    before = pools.route()["metadata"]["generation"]
    status = main("canary", (*given, *where), {})
    said = "".join(capsys.readouterr())
    assert status == EXIT_REFUSED, said
    assert f"{CONTROLLER} does not serve route {ROUTE} as it is (InvalidKind: " in said
    assert pools.route()["metadata"]["generation"] == before
    pools.controller.takes_pools = True
    pools.wait_until_told("True")


def test_weights_that_the_gateway_refuses_go_back(pools: Pools, client: CanaryCluster) -> None:
    pools.controller.takes_two = False
    rollout = pools.start(client)
    rollout.round()
    assert pools.weights() == {f"{STABLE}-openai": 90, f"{CANARY}-openai": 10}
    pools.wait_until_told("False")
    rollout.round()
    state = rollout.round()
    assert state.phase is Phase.ROLLED_BACK
    assert f"{CONTROLLER} does not serve route {ROUTE} as it is (UnsupportedValue: " in state.reason
    assert pools.weights() == {f"{STABLE}-openai": 100, f"{CANARY}-openai": 0}
    pools.controller.takes_two = True
    pools.wait_until_told("True")


def test_where_it_takes_them_a_canary_goes_its_steps_and_is_promoted(
    pools: Pools, client: CanaryCluster
) -> None:
    pools.cluster.apply([route()], namespace=pools.namespace)
    rollout = pools.start(client)
    seen: list[dict[str, int]] = []

    def wait(seconds: float) -> bool:
        pools.wait_until_told("True")
        seen.append(pools.weights())
        time.sleep(seconds)
        return False

    state: State = rollout.run(wait)
    assert state.phase is Phase.PROMOTED, pools.story.waits
    shares = [{f"{STABLE}-openai": 100 - share, f"{CANARY}-openai": share} for share in (10, 100)]
    assert seen[:2] == shares, seen
