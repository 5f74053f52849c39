"""A canary driven from start to end, killed anywhere, and beside other runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.canary.cluster import INFERENCE_SERVICE
from model.canary.errors import Refused, Unreachable
from model.canary.gates import Measured, Unknown
from model.canary.golden import Case, Golden
from model.canary.plan import Plan
from model.canary.rollout import Golden as GoldenSet
from model.canary.rollout import Interrupted, Rollout
from model.canary.state import Header, Phase, State, abort, advance, parse, pause, promote
from model.canary.traffic import RouteTraffic, disown
from tests.canary.memory_api import Killed, MemoryApi
from tests.canary.states import NOW, make_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.canary.gates import Figures
    from model.canary.state import Announcement

GOOD = Measured(num_requests=500, error_ratio=0.0, ttft_p95_seconds=0.2, itl_p95_seconds=0.01)
PLAN = Plan(steps=(5, 25, 100), hold_seconds=20, interval_seconds=10)


class Story:
    """A report that is kept."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.waits: list[str] = []
        self.troubles: list[str] = []

    def announced(self, state: State, announcement: Announcement) -> None:
        self.events.append(f"{announcement.reason} {state.weight_percent}")

    def waiting(self, state: State, text: str) -> None:
        self.waits.append(text)

    def trouble(self, text: str) -> None:
        self.troubles.append(text)


class Figured:
    """In Prometheus' place: figures by whether they are the canary's."""

    def __init__(self) -> None:
        self.canary: Figures = GOOD
        self.stable: Figures = GOOD
        self.asked: Callable[[], None] = lambda: None

    def figures(self, selector: str, seconds: float) -> Figures:
        self.asked()
        return self.canary if 'inferenceservice="qwen3-vl-canary"' in selector else self.stable


class World:
    """A namespace with one model behind one route, and a clock."""

    def __init__(self, **changes: Any) -> None:
        self.api = MemoryApi()
        self.now = NOW
        self.figured = Figured()
        self.story = Story()
        self.golden: GoldenSet | None = None
        self.num_runs = 0
        container = {"name": "kserve-container", "image": "server:1"}
        self.cluster = self.api.cluster()
        self.cluster.create(
            INFERENCE_SERVICE,
            {
                "metadata": {"name": "qwen3-vl", "namespace": "models"},
                "spec": {"predictor": {"minReplicas": 3, "containers": [container]}},
            },
        )
        ref = {"kind": "Service", "name": "qwen3-vl-predictor", "port": 80, "weight": 1}
        self.api.put("httproutes", "qwen3-vl", spec={"rules": [{"backendRefs": [ref]}]})
        grpc = {**ref, "port": 8081}
        self.api.put("grpcroutes", "qwen3-vl", spec={"rules": [{"backendRefs": [grpc]}]})
        state = make_state(
            **{
                "plan": PLAN,
                "phase": Phase.STARTING,
                "followers": ("grpcroutes/qwen3-vl",),
                **changes,
            }
        )
        traffic = RouteTraffic(self.cluster, "qwen3-vl")
        traffic.write(traffic.read(), state)

    def rollout(self, settle_rounds: int = 0) -> Rollout:
        self.num_runs += 1
        return Rollout(
            RouteTraffic(self.cluster, "qwen3-vl"),
            self.figured,  # type: ignore[arg-type]
            self.golden,
            self.story,
            f"run-{self.num_runs}",
            lambda: self.now,
            settle_rounds,
        )

    def pass_time(self, seconds: float) -> bool:
        self.now += seconds
        return False

    def run(self) -> State:
        return self.rollout().run(self.pass_time)

    def change(self, change: Callable[[State], State]) -> None:
        """As a command does, beside the run."""
        traffic = RouteTraffic(self.cluster, "qwen3-vl")
        snapshot = traffic.read()
        assert snapshot.state is not None
        traffic.write(snapshot, change(snapshot.state))

    @property
    def state(self) -> State:
        annotations = self.api.get("httproutes", "qwen3-vl")["metadata"]["annotations"]
        return parse(annotations["qwen3-vl.io/canary"])

    def weights(self, plural: str = "httproutes") -> dict[str, int]:
        rules = self.api.get(plural, "qwen3-vl")["spec"]["rules"]
        return {ref["name"]: ref["weight"] for ref in rules[-1]["backendRefs"]}

    def image(self, name: str = "qwen3-vl") -> str:
        predictor = self.api.get("inferenceservices", name)["spec"]["predictor"]
        return str(predictor["containers"][0]["image"])

    def events(self) -> list[str]:
        return [one["reason"] for (kind, _), one in self.api.objects.items() if kind == "events"]


def test_a_good_canary_goes_its_steps_and_becomes_the_stable_one() -> None:
    world = World()
    assert world.run().phase is Phase.PROMOTED
    assert world.story.events == [
        "CanaryProgressing 5",
        "CanaryAdvanced 25",
        "CanaryAdvanced 100",
        "CanaryPromoting 100",
        "CanaryPromoted 0",
    ]
    assert world.image() == "server:2"
    predictor = world.api.get("inferenceservices", "qwen3-vl")["spec"]["predictor"]
    assert predictor["minReplicas"] == 3
    assert ("inferenceservices", "qwen3-vl-canary") not in world.api.objects
    assert world.weights() == world.weights("grpcroutes") == {"qwen3-vl-predictor": 1}
    assert world.state.holder is None
    assert "CanaryPromoted" in world.events()


def test_a_bad_canary_loses_its_traffic_within_two_evaluations() -> None:
    world = World()
    world.figured.canary = GOOD.model_copy(update={"error_ratio": 0.5})
    state = world.run()
    assert state.phase is Phase.ROLLED_BACK
    assert state.reason.startswith("error ratio is 50.00 % (at most 5.00 %)")
    assert world.story.events == ["CanaryProgressing 5", "CanaryRolledBack 0"]
    assert world.now - NOW <= 2 * PLAN.interval_seconds
    assert world.image() == "server:1"
    assert world.weights() == world.weights("grpcroutes") == {"qwen3-vl-predictor": 1}
    [event] = [one for (_, _), one in world.api.objects.items() if one.get("type") == "Warning"][:1]
    assert event["reason"] == "CanaryRolledBack"
    assert state.reason in event["message"]


def test_a_canary_that_is_ready_gets_its_first_traffic_a_round_later() -> None:
    world = World()
    run = world.rollout(settle_rounds=1)
    run.round()
    assert (world.state.phase, world.state.weight_percent) == (Phase.STARTING, 0)
    assert world.state.note == "ready, until gateways have heard of its pods"
    run.round()
    assert (world.state.phase, world.state.weight_percent) == (Phase.PROGRESSING, 5)


def test_two_pools_share_the_requests_as_two_services_do() -> None:
    world = World(changes=None, canary="qwen3-vl-canary")
    behind_pools(world)
    world.rollout().round()
    assert world.weights() == {"qwen3-vl-openai": 95, "qwen3-vl-canary-openai": 5}
    [rule] = world.api.get("httproutes", "qwen3-vl")["spec"]["rules"]
    assert {ref["kind"] for ref in rule["backendRefs"]} == {"InferencePool"}


def test_a_gateway_that_refuses_the_weights_ends_it_within_two_evaluations() -> None:
    world = World(changes=None, canary="qwen3-vl-canary")
    behind_pools(world)
    run = world.rollout()
    run.round()
    refused = {"type": "Accepted", "status": "False", "reason": "UnsupportedValue"}
    parent = {"controllerName": "example.com/gateway", "conditions": [refused]}
    world.api.get("httproutes", "qwen3-vl")["status"] = {"parents": [parent]}
    run.round()
    run.round()
    assert world.state.phase is Phase.ROLLED_BACK
    assert "example.com/gateway does not serve route qwen3-vl" in world.state.reason
    assert world.weights()["qwen3-vl-canary-openai"] == 0


def behind_pools(world: World) -> None:
    """The stable one and a canary that is there already, each with a pool for the route."""
    for name in ("qwen3-vl", "qwen3-vl-canary"):
        world.api.put("inferencepools", f"{name}-openai")
    stable = world.api.get("inferenceservices", "qwen3-vl")
    metadata = {"name": "qwen3-vl-canary", "namespace": "models"}
    world.cluster.create(INFERENCE_SERVICE, {"metadata": metadata, "spec": stable["spec"]})
    ref = {"kind": "InferencePool", "name": "qwen3-vl-openai", "weight": 1}
    world.api.get("httproutes", "qwen3-vl")["spec"]["rules"] = [{"backendRefs": [ref]}]


def test_without_figures_it_holds_and_goes_on_when_they_come_back() -> None:
    world = World()
    world.figured.canary = Unknown("Prometheus does not answer")
    rollout = world.rollout()
    for _ in range(50):
        rollout.round()
        world.now += 100
    assert world.weights()["qwen3-vl-canary-predictor"] == 5
    assert set(world.story.waits) == {"nothing known of the canary: Prometheus does not answer"}
    world.figured.canary = GOOD
    assert rollout.run(world.pass_time).phase is Phase.PROMOTED


def test_no_traffic_before_it_is_ready_and_none_if_it_never_is() -> None:
    world = World(ready_seconds=30.0)
    world.api.ready = lambda service: service["metadata"]["name"] != "qwen3-vl-canary"
    state = world.run()
    assert state.reason == "not ready within 30 s: qwen3-vl-canary is not Ready"
    assert world.story.events == ["CanaryRolledBack 0"]
    assert world.weights() == {"qwen3-vl-predictor": 1}


def golden_set(answers: list[str]) -> GoldenSet:
    """One picture; a canary that answers these, one after the other, the last for ever."""
    left = iter(answers)
    last = [""]

    def answer(request: httpx.Request) -> httpx.Response:
        last[0] = next(left, last[0])
        if last[0].isdigit():
            return httpx.Response(int(last[0]))
        return httpx.Response(200, json={"description": last[0]})

    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://canary")
    return GoldenSet([Case("a.jpg", b"", None, "A red square.")], client)


def test_a_wrong_answer_ends_it_before_it_has_traffic() -> None:
    world = World(golden=Golden(path="golden.jsonl"))
    world.golden = golden_set(["A blue square."])
    state = world.run()
    assert "expected 'A red square.', got 'A blue square.'" in state.reason
    assert world.story.events == ["CanaryRolledBack 0"]


def test_a_wrong_answer_later_ends_it_before_it_has_more() -> None:
    world = World(golden=Golden(path="golden.jsonl"))
    world.golden = golden_set(["A red square.", "A blue square."])
    assert world.run().phase is Phase.ROLLED_BACK
    assert world.story.events == ["CanaryProgressing 5", "CanaryRolledBack 0"]


def test_a_golden_set_that_cannot_be_asked_holds() -> None:
    world = World(golden=Golden(path="golden.jsonl"))
    world.golden = golden_set(["A red square.", "503", "503", "503", "A red square."])
    assert world.run().phase is Phase.PROMOTED
    assert "the golden set cannot be asked: a.jpg: 503 Service Unavailable" in world.story.waits
    absent = World(golden=Golden(path="golden.jsonl"))
    absent.rollout().round()
    assert absent.state.phase is Phase.STARTING
    assert absent.story.waits == ["the golden set cannot be asked: its file is not here"]


def test_the_last_step_is_judged_by_what_stable_did_before() -> None:
    world = World()
    rollout = world.rollout()
    while world.state.weight_percent < 100:
        rollout.round()
        world.now += 10
    world.figured.stable = Unknown("no traffic")
    world.figured.canary = GOOD.model_copy(update={"ttft_p95_seconds": 0.31})
    state = rollout.run(world.pass_time)
    assert state.phase is Phase.ROLLED_BACK
    assert "TTFT p95 beside stable is 310.0 ms" in state.reason


def test_an_ab_test_sends_only_the_header_and_ends_by_hand() -> None:
    world = World(header=Header(name="x-ab", value="b"), header_only=True)
    rollout = world.rollout()
    for _ in range(9):
        rollout.round()
        world.now += 100
    by_header, rest = world.api.get("httproutes", "qwen3-vl")["spec"]["rules"]
    assert [ref["name"] for ref in by_header["backendRefs"]] == ["qwen3-vl-canary-predictor"]
    assert [ref["weight"] for ref in rest["backendRefs"]] == [100, 0]
    assert world.story.waits[-1].endswith("an A/B test ends by hand: promote or abort")
    world.change(lambda state: promote(state, world.now))
    assert rollout.run(world.pass_time).phase is Phase.PROMOTED
    assert len(world.api.get("httproutes", "qwen3-vl")["spec"]["rules"]) == 1


def test_what_others_command_counts_in_the_next_round() -> None:
    world = World()
    rollout = world.rollout()
    rollout.round()
    world.change(lambda state: pause(state, paused=True))
    for _ in range(9):
        world.now += 100
        rollout.round()
    assert world.story.waits[-1] == "paused"
    world.change(lambda state: advance(state, world.now))
    rollout.round()
    assert world.weights("grpcroutes")["qwen3-vl-canary-predictor"] == 25
    world.change(lambda state: abort(state, "changed my mind", world.now))
    state = rollout.run(world.pass_time)
    assert (state.phase, state.reason) == (Phase.ABORTED, "changed my mind")
    assert world.weights("grpcroutes") == {"qwen3-vl-predictor": 1}


def test_a_command_between_looking_and_writing_is_not_undone() -> None:
    world = World()
    rollout = world.rollout()
    rollout.round()
    world.now += 100
    world.figured.asked = lambda: world.change(lambda state: pause(state, paused=True))
    rollout.round()
    assert world.state.progress.paused
    assert world.state.weight_percent == 5


def test_a_second_run_is_refused_and_takes_over_when_the_first_is_gone() -> None:
    world = World()
    first, second = world.rollout(), world.rollout()
    first.round()
    with pytest.raises(Refused, match="run-1 drives this canary"):
        second.round()
    world.now += 31
    second.round()
    with pytest.raises(Refused, match="run-2 drives this canary"):
        first.round()


def test_stopped_it_leaves_the_canary_as_it_is_and_to_anybody() -> None:
    world = World()
    with pytest.raises(Interrupted):
        world.rollout().run(lambda seconds: True)
    assert world.state.holder is None
    assert world.weights()["qwen3-vl-canary-predictor"] == 5
    assert world.run().phase is Phase.PROMOTED


def test_an_api_server_that_is_away_for_a_while_is_asked_again() -> None:
    world = World()
    away = itertools.chain([Unreachable("no route to host")] * 3, itertools.repeat(None))

    def sometimes(method: str, path: str) -> None:
        trouble = next(away)
        if trouble is not None:
            raise trouble

    world.api.before = sometimes
    assert world.run().phase is Phase.PROMOTED
    assert world.story.troubles[0] == "no route to host; asking again"


def run_killed(world: World, moment: str, num_writes: int) -> bool:
    """Whether a run was killed around its n-th write; else it has gone through."""
    left = [num_writes]

    def count(method: str, path: str) -> None:
        left[0] -= 1
        # Nothing more comes from a process that is gone.
        if left[0] <= 0:
            raise Killed

    setattr(world.api, moment, count)
    try:
        world.run()
    except Killed:
        return True
    finally:
        setattr(world.api, moment, lambda method, path: None)
    return False


@pytest.mark.parametrize("bad", [False, True], ids=["a good one", "a bad one"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_any_write_it_is_ended_alike_by_another_run(moment: str, bad: bool) -> None:
    for num_writes in itertools.count(1):
        world = World()
        if bad:
            world.figured.canary = GOOD.model_copy(update={"itl_p95_seconds": 1.0})
        if not run_killed(world, moment, num_writes):
            break
        world.now += 31
        state = world.run()
        assert state.phase is (Phase.ROLLED_BACK if bad else Phase.PROMOTED)
        assert world.image() == ("server:1" if bad else "server:2")
        assert ("inferenceservices", "qwen3-vl-canary") not in world.api.objects
        assert world.weights() == world.weights("grpcroutes") == {"qwen3-vl-predictor": 1}
    assert num_writes > 8


def test_routes_are_given_back_to_their_owner() -> None:
    body = {"metadata": {"managedFields": [{"manager": "helm"}, {"manager": "kubectl-qwen3vl"}]}}
    assert disown(body) == {"metadata": {"managedFields": [{"manager": "helm"}]}}
    assert disown({"metadata": {}}) == {"metadata": {}}
