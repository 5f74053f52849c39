"""Canaries under real traffic: KServe makes the pods, Envoy Gateway splits the requests, Prometheus
counts what the servers say.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from model.canary.errors import EXIT_DONE, EXIT_REFUSED, EXIT_ROLLED_BACK
from model.canary.state import Phase
from tests.canary.prometheus import TARGETS, start_prometheus
from tests.canary.stage import CANARY, ROUTE, STABLE, Stage, deploy_stable, scraped_pods
from tests.cluster.load import running_load
from tests.cluster.senders import StreamedChats, V2Requests
from tests.serving import ROOT, SAMPLES, free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.gateway import GatewayController
    from tests.cluster.components.kserve import KServe
    from tests.cluster.load import Load

# Of these 5 % must come to MIN_REQUESTS before a step is judged.
PER_SECOND: Final = 16.0
HOLD_SECONDS: Final = 4.0
INTERVAL_SECONDS: Final = 1.0
# Of two cores that others share: a good server's p95 jumps by more than it should.
GROWTH: Final = "8"
MIN_REQUESTS: Final = 6
PLAN: Final = (
    *("--steps", "5,25,50,100", "--hold", f"{HOLD_SECONDS}s"),
    *("--interval", f"{INTERVAL_SECONDS}s"),
    *("--min-requests", str(MIN_REQUESTS), "--max-ttft-growth", GROWTH, "--max-itl-growth", GROWTH),
)
# Of the requests before, a share of 5 % that fails for two evaluations is less than one percent.
STEADY_SECONDS: Final = 30.0
SETTLED_SECONDS: Final = 2.0
NUM_BY_HEADER: Final = 10
PLUGIN: Final = "import sys\nfrom model.canary.__main__ import plugin\nsys.exit(plugin())\n"
IN_CLUSTER: Final = ROOT / "model" / "canary" / "in-cluster.yaml"


@pytest.fixture(scope="module")
def stage(
    cluster: Cluster,
    kserve: KServe,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    """One stable server for all tests here."""
    folder = tmp_path_factory.mktemp("canary")
    with cluster.namespace("canary") as namespace:
        # Its pod starts while the gateway's controller and an Envoy do.
        deploy_stable(cluster, namespace)
        gateway: GatewayController = request.getfixturevalue("gateway")
        address = gateway.create(namespace)
        kserve.wait_until_ready(namespace, STABLE, seconds=300)
        gateway.wait_until_routed(namespace, ROUTE)
        gateway.wait_until_answered(f"http://{address}/v2/health/ready")
        with (
            start_prometheus(folder, {}) as prometheus_url,
            scraped_pods(cluster, namespace, folder / TARGETS),
        ):
            yield Stage(cluster, namespace, f"http://{address}", prometheus_url, folder)


@pytest.fixture(scope="module")
def traffic(stage: Stage, sample_image: bytes) -> Iterator[Load]:
    """Requests through the gateway, under all tests here."""
    senders = (V2Requests(stage.url, sample_image), StreamedChats(stage.url, sample_image))
    with running_load(senders, per_second=PER_SECOND) as sent:
        yield sent


@pytest.fixture
def load(traffic: Load) -> Callable[[], Load]:
    """What has been sent since a while before the test."""
    began = time.monotonic() - STEADY_SECONDS
    return lambda: traffic.since(began)


@pytest.fixture
def steady_load(stage: Stage, load: Callable[[], Load]) -> Callable[[], Load]:
    """The same, once that while has passed; after other tests it has."""
    stage.cluster.wait_for(
        lambda: len(load().outcomes) >= PER_SECOND * STEADY_SECONDS * 0.9,
        "requests are steady",
        seconds=2 * STEADY_SECONDS,
        every=1.0,
    )
    return load


def test_a_canary_that_answers_wrongly_gets_no_traffic(
    stage: Stage, load: Callable[[], Load]
) -> None:
    golden = ("--golden", str(SAMPLES / "captions.jsonl"), "--golden-wrong", "2")
    status = stage.run("start", ROUTE, "--image", "example/qwen3-vl:wrong", *golden, *PLAN)
    assert status == EXIT_ROLLED_BACK, stage.log()
    assert stage.state.reason.startswith("golden set: 18 of 18 are wrong: scene-00000.jpg: ")
    assert "CanaryProgressing" not in stage.events()[-2:]
    assert_all_is_stable(stage)
    sent = load()
    assert sent.failures == [], sent.summary()


def test_without_prometheus_it_holds_and_obeys_until_it_is_aborted(
    stage: Stage, load: Callable[[], Load], sample_image: bytes
) -> None:
    [nobody] = free_ports(1)
    away = ("--prometheus-url", f"http://127.0.0.1:{nobody}")
    good = ("--set-env", "CHANGED=yes")
    run = stage.canary("start", ROUTE, *good, *PLAN, *away, "--header", "x-canary=always")
    stage.cluster.wait_for(
        lambda: "nothing known of the canary: Prometheus does not answer" in stage.log(),
        "an evaluation without Prometheus",
        seconds=300,
    )
    at_its_step = time.monotonic()

    before = stage.num_answered(CANARY)
    with closing(V2Requests(stage.url, sample_image, {"x-canary": "always"})) as by_header:
        for _ in range(NUM_BY_HEADER):
            by_header.send()
    assert stage.num_answered(CANARY) >= before + NUM_BY_HEADER

    for beside in (("start", ROUTE, *good, *away), ("watch", ROUTE)):
        assert stage.canary(*beside, log="beside").wait(60) == EXIT_REFUSED, stage.log("beside")
    held = at_its_step + HOLD_SECONDS + 2 * INTERVAL_SECONDS
    time.sleep(max(held - time.monotonic(), 0))
    assert run.poll() is None, stage.log()
    assert stage.state.weight_percent == 5
    assert stage.weights() == {f"{STABLE}-predictor": 95, f"{CANARY}-predictor": 5}

    for command in ("pause", "advance", "resume"):
        assert stage.canary(command, ROUTE, log=command).wait(60) == EXIT_DONE
    assert stage.weights("grpcroutes") == {f"{STABLE}-predictor": 75, f"{CANARY}-predictor": 25}
    assert stage.canary("status", log="status").wait(60) == EXIT_DONE
    assert "progressing, step 2 of 4" in stage.log("status")

    run.terminate()
    assert run.wait(60) == 128 + signal.SIGTERM
    assert "the canary stays as it is. Go on: python -m model.canary watch" in stage.log()
    assert stage.state.holder is None
    run = stage.canary("watch", ROUTE, *away)
    stage.cluster.wait_for(lambda: stage.state.holder is not None, "another run drives it")

    assert stage.canary("abort", ROUTE, log="abort").wait(60) == EXIT_DONE
    assert run.wait(60) == EXIT_ROLLED_BACK
    assert stage.state.phase is Phase.ABORTED
    assert_all_is_stable(stage)
    sent = load()
    assert sent.failures == [], sent.summary()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("errors", "error ratio is "), ("slow", "ITL p95 beside stable is ")],
)
def test_a_bad_canary_goes_back_within_two_evaluations(
    stage: Stage, steady_load: Callable[[], Load], fault: str, reason: str
) -> None:
    image = f"example/qwen3-vl:{fault}"
    status = stage.run("start", ROUTE, "--image", image, *PLAN, "--output", "json")
    state = stage.state
    assert status == EXIT_ROLLED_BACK, stage.log()
    assert state.phase is Phase.ROLLED_BACK
    assert reason in state.reason
    lines = [json.loads(line) for line in stage.log().splitlines() if line.startswith("{")]
    judged = [line for line in lines if (line["seen"] or {}).get("num_requests", 0) >= MIN_REQUESTS]
    assert [line["event"] for line in judged] == ["CanaryWaiting", "CanaryRolledBack"]
    assert max(line["weight_percent"] for line in lines) == 5
    assert_all_is_stable(stage)
    assert "CanaryRolledBack" in stage.events()
    time.sleep(SETTLED_SECONDS)
    sent = steady_load()
    assert sent.error_ratio < 0.01, sent.summary()


def test_the_job_drives_it_inside_the_cluster_with_the_rights_it_asks_for(stage: Stage) -> None:
    good = ("--set-env", "CHANGED=yes", "--detach", *PLAN)
    assert stage.run("start", ROUTE, *good) == EXIT_DONE, stage.log()
    manifests = IN_CLUSTER.read_text().replace("watch, qwen3-vl]", f"watch, {ROUTE}]")
    stage.cluster.apply(manifests, namespace=stage.namespace)
    # Prometheus is out of a pod's reach here.
    stage.cluster.wait_for(
        lambda: stage.state.note.startswith("nothing known of the canary: "),
        "the Job has brought it to its first step",
        seconds=300,
    )
    assert stage.weights("grpcroutes") == {f"{STABLE}-predictor": 95, f"{CANARY}-predictor": 5}
    assert stage.canary("abort", ROUTE).wait(60) == EXIT_DONE, stage.log()
    job = f"/apis/batch/v1/namespaces/{stage.namespace}/jobs/qwen3-vl-canary"
    stage.cluster.wait_for_condition(job, "Failed")
    assert_all_is_stable(stage)


def test_a_good_canary_goes_its_steps_and_promotes_though_its_run_is_killed(
    stage: Stage, load: Callable[[], Load]
) -> None:
    golden = ("--golden", str(SAMPLES / "captions.jsonl"), "--golden-wrong", "2")
    image = "example/qwen3-vl-server:2"
    run = stage.canary("start", ROUTE, "--image", image, *golden, *PLAN, log="killed")
    stage.cluster.wait_for(
        lambda: run.poll() is not None or "progressing   25 %" in stage.log("killed"),
        "the second step",
        seconds=300,
    )
    run.kill()
    assert run.wait(10) == -signal.SIGKILL, stage.log("killed")
    assert stage.run("watch", ROUTE) == EXIT_REFUSED
    assert stage.weights("grpcroutes")[f"{CANARY}-predictor"] == 25
    stage.cluster.wait_for(
        lambda: stage.run("watch", ROUTE) != EXIT_REFUSED,
        "another run goes on to the end",
        seconds=400,
        every=2.0,
    )
    assert stage.state.phase is Phase.PROMOTED, stage.log()
    story = stage.log("killed") + stage.log()
    assert all(f"progressing  {weight:>3} %" in story for weight in (5, 25, 50, 100)), story
    assert stage.image(STABLE) == image
    assert_all_is_stable(stage)
    sent = load()
    assert sent.failures == [], sent.summary()


def test_kubectl_finds_the_plugin(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What pip makes of the entry point.
    script = tmp_path / "kubectl-qwen3vl"
    script.write_text(f"#!{sys.executable}\n{PLUGIN}")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shown = stage.cluster.kubectl("qwen3vl", "canary", "status", ROUTE, "-n", stage.namespace)
    assert shown.startswith(f"{CANARY} beside {STABLE}: promoted")


def assert_all_is_stable(stage: Stage) -> None:
    """The routes are as they were and the applier's alone, and the canary is gone."""
    for plural in ("httproutes", "grpcroutes"):
        assert stage.weights(plural) == {f"{STABLE}-predictor": 1}
        managed = stage.route(plural)["metadata"]["managedFields"]
        assert {one["manager"] for one in managed if "f:spec" in one["fieldsV1"]} == {"kubectl"}
    listed = stage.cluster.kubectl("get", "isvc", "-n", stage.namespace, "-o", "name")
    assert CANARY not in listed
