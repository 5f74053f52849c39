"""A canary in Knative mode: KServe's own controller turns the percent into a Knative Service's
traffic. Knative is not here: in its place the test says that revisions are made and ready.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from model.canary.cluster import connect
from model.canary.errors import Refused
from model.canary.gates import Measured
from model.canary.knative import KnativeTraffic
from model.canary.plan import Plan, Progress
from model.canary.rollout import Rollout
from model.canary.state import Changes, Phase, State
from tests.canary.states import make_state
from tests.canary.test_rollout import Story
from tests.cluster.inference import inference_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.canary.gates import Figures
    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe

NAME: Final = "kn"
SERVICE: Final = f"{NAME}-predictor"
OLD, NEW = f"{SERVICE}-00001", f"{SERVICE}-00002"
GOOD: Final = Measured(
    num_requests=500, error_ratio=0.0, ttft_p95_seconds=0.2, itl_p95_seconds=0.01
)
SECONDS: Final = 30.0


# What KServe reads of an installed Knative before it writes anything for it.
INSTALLED: Final = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "knative-serving"}},
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "config-autoscaler", "namespace": "knative-serving"},
        "data": {},
    },
]


class Figured:
    """In Prometheus' place; it keeps what it was asked about."""

    def __init__(self) -> None:
        self.canary: Figures = GOOD
        self.selectors: set[str] = set()

    def figures(self, selector: str, seconds: float) -> Figures:
        self.selectors.add(selector)
        return self.canary if NEW in selector else GOOD


class Knative:
    """The Knative Service that KServe writes, and its status."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    def traffic(self) -> dict[str, int]:
        """Percent by revision, as KServe asks for it; "" is the newest."""
        path = f"/apis/serving.knative.dev/v1/namespaces/{self._namespace}/services/{SERVICE}"
        found = self._cluster.api.find(path)
        targets = found["spec"].get("traffic", []) if found else []
        return {one.get("revisionName", ""): one["percent"] for one in targets}

    def wait_for_traffic(self, expected: dict[str, int]) -> None:
        """Wait until KServe asks for this."""
        try:
            self._cluster.wait_for(lambda: self.traffic() == expected, "", seconds=SECONDS)
        except AssertionError:
            assert self.traffic() == expected

    def report(self, newest: str, traffic: dict[str, int]) -> None:
        """Say that the newest revision is ready, and which have what of the traffic."""
        targets = [
            {"revisionName": name, "percent": percent, "latestRevision": name == newest}
            for name, percent in traffic.items()
        ]
        ready = [
            {"type": kind, "status": "True"}
            for kind in ("Ready", "RoutesReady", "ConfigurationsReady")
        ]
        status = {
            "latestCreatedRevisionName": newest,
            "latestReadyRevisionName": newest,
            "traffic": targets,
            "conditions": ready,
            "url": f"http://{SERVICE}.example.com",
            "address": {"url": f"http://{SERVICE}.{self._namespace}.svc"},
        }
        self._cluster.kubectl(
            *("patch", "services.serving.knative.dev", SERVICE, "-n", self._namespace),
            *("--subresource=status", "--type=merge", "-p", json.dumps({"status": status})),
        )


class Revisions:
    """One InferenceService in Knative mode, rolled out, and a canary of it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        service = inference_service(NAME)
        service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "Knative"
        del service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"]
        cluster.apply(INSTALLED)
        cluster.apply([service], namespace=namespace)
        self.cluster, self.namespace = cluster, namespace
        self.knative = Knative(cluster, namespace)
        self.knative.wait_for_traffic({"": 100})
        self.client = connect(str(cluster.kubeconfig), None, namespace)
        self.traffic = KnativeTraffic(self.client, NAME)
        self.figured = Figured()
        self.story = Story()

    def start(self) -> Rollout:
        """The canary claimed and its revision made."""
        self.knative.report(OLD, {OLD: 100})
        self.cluster.wait_for(lambda: self.status().get("latestRolledoutRevision"), "rolled out")
        now = time.time()
        state = make_state(
            stable=NAME,
            canary=NAME,
            changes=Changes(image="qwen3-vl-server:2"),
            plan=Plan(steps=(10, 100), hold_seconds=0, interval_seconds=0.2),
            phase=Phase.STARTING,
            started_at=now,
            phase_started_at=now,
            progress=Progress(step_started_at=now),
        )
        self.traffic.write(self.traffic.read(), state)
        rollout = Rollout(
            self.traffic,
            self.figured,  # type: ignore[arg-type]
            None,
            self.story,
            "run",
            time.time,
            settle_rounds=0,
        )
        rollout.round()
        assert self.story.waits == ["Knative has not made its revision yet"]
        self.knative.wait_for_traffic({"": 0, OLD: 100})
        self.report(NEW, {NEW: 0, OLD: 100})
        return rollout

    def report(self, newest: str, traffic: dict[str, int]) -> None:
        """As Knative does, and KServe has seen it."""
        self.knative.report(newest, traffic)
        expected = list(traffic.items())

        def seen() -> bool:
            targets = self.status().get("traffic", ())
            return [(one["revisionName"], one["percent"]) for one in targets] == expected

        self.cluster.wait_for(seen, "KServe has seen the traffic", seconds=SECONDS)

    def service(self) -> dict[str, Any]:
        path = (
            f"/apis/serving.kserve.io/v1beta1/namespaces/{self.namespace}/inferenceservices/{NAME}"
        )
        return dict(self.cluster.api.get(path))

    def status(self) -> dict[str, Any]:
        components = self.service().get("status", {}).get("components", {})
        return dict(components.get("predictor", {}))

    @property
    def state(self) -> State:
        state = self.traffic.read().state
        assert state is not None
        return state


@pytest.fixture
def revisions(cluster: Cluster, kserve: KServe, namespace: str) -> Iterator[Revisions]:
    """A namespace's only InferenceService."""
    made = Revisions(cluster, namespace)
    yield made
    made.client.close()


def test_a_revision_goes_its_steps_as_kserve_asks_knative_for_them(revisions: Revisions) -> None:
    rollout = revisions.start()
    rollout.round()
    revisions.knative.wait_for_traffic({"": 10, OLD: 90})
    rollout.round()
    # At 100 % there is no other target, and KServe calls the new one rolled out.
    revisions.knative.wait_for_traffic({"": 100})
    revisions.report(NEW, {NEW: 100})
    assert revisions.status()["latestRolledoutRevision"] == NEW
    rollout.round()
    rollout.round()
    assert revisions.state.phase is Phase.PROMOTED, revisions.story.waits
    predictor = revisions.service()["spec"]["predictor"]
    assert "canaryTrafficPercent" not in predictor
    assert predictor["containers"][0]["image"] == "qwen3-vl-server:2"
    assert revisions.figured.selectors == {
        f'namespace="{revisions.namespace}",pod=~"{one}-deployment-.+"' for one in (OLD, NEW)
    }


def test_a_bad_revision_is_left_without_traffic_and_the_next_one_is_made_from_the_good_one(
    revisions: Revisions,
) -> None:
    rollout = revisions.start()
    rollout.round()
    revisions.figured.canary = GOOD.model_copy(update={"error_ratio": 1.0})
    rollout.round()
    rollout.round()
    assert revisions.state.phase is Phase.ROLLED_BACK
    revisions.knative.wait_for_traffic({"": 0, OLD: 100})
    changes = Changes(env={"A": "1"})
    again = revisions.state.model_copy(
        update={"id": "again", "phase": Phase.STARTING, "changes": changes}
    )
    revisions.traffic.write(revisions.traffic.read(), again)
    container = revisions.service()["spec"]["predictor"]["containers"][0]
    assert container["image"] == "qwen3-vl-server:test"
    assert {"name": "A", "value": "1"} in container["env"]


def test_a_service_that_was_never_rolled_out_has_no_canary(revisions: Revisions) -> None:
    with pytest.raises(Refused, match="no revision that is rolled out"):
        revisions.traffic.write(revisions.traffic.read(), make_state(phase=Phase.STARTING))
