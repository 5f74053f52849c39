"""Commands that change the state once: what they write, and what they refuse."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from model.canary.arguments import parse_arguments
from model.canary.commands import Command
from model.canary.display import Lines
from model.canary.errors import EXIT_DONE, Refused, UsageError
from model.canary.state import Holder, Phase
from tests.canary.test_rollout import World

URL = {"QWEN3VL_PROMETHEUS_URL": "http://prometheus:9090"}
START = ("start", "qwen3-vl", "--image", "server:3", "--detach")


def run(world: World, *arguments: str, environ: dict[str, str] | None = None) -> int:
    given = parse_arguments("canary", arguments)
    return Command(
        world.cluster, given, Lines(), URL if environ is None else environ, "canary"
    ).run()


def ended() -> World:
    """A world whose last canary is over."""
    return World(phase=Phase.ROLLED_BACK)


def progressing() -> World:
    """A world whose canary has its first step; its run is long gone."""
    world = World()
    world.rollout().round()
    return world


def test_a_start_finds_what_is_stable_and_every_route_to_it() -> None:
    world = ended()
    page = {"kind": "Service", "name": "qwen3-vl-ui", "port": 80}
    world.api.put("httproutes", "qwen3-vl-ui", spec={"rules": [{"backendRefs": [page]}]})
    assert run(world, *START) == EXIT_DONE
    state = world.state
    assert (state.phase, state.stable, state.canary) == (
        Phase.STARTING,
        "qwen3-vl",
        "qwen3-vl-canary",
    )
    assert state.followers == ("grpcroutes/qwen3-vl",)
    assert state.prometheus_url == URL["QWEN3VL_PROMETHEUS_URL"]
    assert world.weights() == {"qwen3-vl-predictor": 1}
    assert world.events() == ["CanaryStarted"]


def test_a_dry_run_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    world = ended()
    before = copy.deepcopy(world.api.objects)
    assert run(world, *START, "--dry-run") == EXIT_DONE
    assert world.api.objects == before
    assert "would start qwen3-vl-canary" in capsys.readouterr().out


def test_a_second_start_is_refused_by_what_is_there() -> None:
    with pytest.raises(Refused, match="has a canary already: qwen3-vl-canary, progressing at 5 %"):
        run(progressing(), *START)


def test_a_start_without_prometheus_is_refused() -> None:
    with pytest.raises(UsageError, match="say where Prometheus is"):
        run(ended(), *START, environ={})


def test_a_canary_that_is_not_there_is_refused_before_the_route_is_claimed() -> None:
    world = ended()
    with pytest.raises(Refused, match="InferenceService other is not there"):
        run(world, "start", "qwen3-vl", "--canary", "other")
    assert world.state.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize(
    ("plural", "ref", "conditions", "message"),
    [
        pytest.param(
            "httproutes",
            {"kind": "InferencePool", "name": "qwen3-vl-openai"},
            [{"type": "ResolvedRefs", "status": "False", "reason": "InvalidKind"}],
            r"example.com/gateway does not serve route qwen3-vl as it is \(InvalidKind\)",
            id="a gateway that takes no InferencePool",
        ),
        pytest.param(
            "grpcroutes",
            {"kind": "Backend", "name": "qwen3-vl-grpc-picked"},
            [],
            "route qwen3-vl leads to Backend qwen3-vl-grpc-picked",
            id="a route that follows, to what a picker has chosen",
        ),
    ],
)
def test_a_route_that_takes_no_weights_is_refused_before_it_is_claimed(
    plural: str, ref: dict[str, Any], conditions: list[dict[str, Any]], message: str
) -> None:
    world = ended()
    route = world.api.get(plural, "qwen3-vl")
    route["spec"]["rules"].append({"backendRefs": [ref]})
    parent = {"controllerName": "example.com/gateway", "conditions": conditions}
    route["status"] = {"parents": [parent]}
    with pytest.raises(Refused, match=message):
        run(world, *START)
    assert world.state.phase is Phase.ROLLED_BACK


def test_a_promotion_is_left_to_the_run_that_drives(capsys: pytest.CaptureFixture[str]) -> None:
    holder = Holder(identity="elsewhere", renewed_at=time.time(), ttl_seconds=60)
    world = progressing()
    world.change(lambda state: state.model_copy(update={"holder": holder}))
    assert run(world, "promote", "qwen3-vl") == EXIT_DONE
    assert world.state.phase is Phase.PROMOTING
    assert "elsewhere goes on with it" in capsys.readouterr().out


def test_an_abort_takes_the_traffic_and_what_was_made() -> None:
    world = progressing()
    assert world.weights("grpcroutes")["qwen3-vl-canary-predictor"] == 5
    assert run(world, "abort", "qwen3-vl", "--reason", "no more") == EXIT_DONE
    assert world.weights() == world.weights("grpcroutes") == {"qwen3-vl-predictor": 1}
    assert ("inferenceservices", "qwen3-vl-canary") not in world.api.objects
    assert world.state.reason == "no more"


def test_a_status_shows_all_of_the_namespace(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(progressing(), "status") == EXIT_DONE
    shown = capsys.readouterr().out
    assert "qwen3-vl-canary beside qwen3-vl: progressing, step 1 of 3" in shown
    assert "driven by nobody" in shown
