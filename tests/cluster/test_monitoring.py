"""What Prometheus sees of the server, and what the chart's rules and dashboard make of it."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from tests.chart.helm import named, of_kind, render
from tests.cluster.components.prometheus import job_of_monitor
from tests.cluster.inference import described

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.dcgm import Gpus
    from tests.cluster.components.kserve import KServe
    from tests.cluster.components.prometheus import Prometheus
    from tests.cluster.node.api import Json

FULLNAME: Final = "photos-qwen3-vl"
SERVERS: Final = f"app=isvc.{FULLNAME}-predictor"
NUM_ASKED: Final = 3
WATCHED: Final[Json] = {
    "probes": {"startup": {"periodSeconds": 1}, "readiness": {"periodSeconds": 1}},
    "routing": {"enabled": True, "backend": "pool"},
    "picker": {"replicas": 1},
    "monitoring": {
        "monitor": "PodMonitor",
        "intervalSeconds": 1,
        "rules": {"enabled": True},
        "dashboard": {"enabled": True},
    },
}
# No Gateway is here; that pickers run does not depend on one.
GATEWAY_POLICIES: Final = "gateway.envoyproxy.io/"
SELECTOR: Final = re.compile(r"[\w:]+\{[^}]*\}")
LABEL_VALUES: Final = re.compile(r"label_values\((.+), (\w+)\)")
WINDOW: Final = "5m"


@dataclass(frozen=True)
class Watched:
    """A release of the chart, its monitors, rules and dashboard in use."""

    namespace: str
    monitors: list[Json]
    groups: list[Json]
    dashboard: Json


@pytest.fixture(scope="module")
def watched(
    cluster: Cluster, kserve: KServe, prometheus: Prometheus, gpus: Gpus, sample_image: bytes
) -> Iterator[Watched]:
    """The server with pickers, asked a few times; all tests here share it."""
    with cluster.namespace("watched") as namespace:
        cluster.apply(installed(WATCHED, namespace))
        kserve.wait_until_ready(namespace, FULLNAME, seconds=240)
        pods = cluster.ready_pods(namespace, SERVERS)
        gpus.share(50, pods, pods)
        listed = cluster.kubectl(
            *("get", "podmonitors,prometheusrules,configmaps", "--output", "json"),
            *("--namespace", namespace),
        )
        objects = json.loads(listed)["items"]
        release = Watched(
            namespace,
            of_kind(objects, "PodMonitor"),
            named(objects, "PrometheusRule", FULLNAME)["spec"]["groups"],
            json.loads(
                named(objects, "ConfigMap", f"{FULLNAME}-dashboard")["data"]["qwen3-vl.json"]
            ),
        )
        jobs = [job_of_monitor(monitor) for monitor in release.monitors]
        # A group is evaluated first after up to its interval.
        groups = [group | {"interval": "1s"} for group in release.groups]
        with prometheus.configured(jobs=jobs, groups=groups):
            prometheus.wait_for_series(f'qwen3vl_phase{{namespace="{namespace}"}}')
            for _ in range(NUM_ASKED):
                described(f"http://{pods[0]['status']['podIP']}:8080", sample_image)
            yield release


def installed(values: Json, namespace: str) -> list[Json]:
    """The objects that helm would install."""
    return [
        one
        for one in render(values, namespace=namespace)
        if not one["apiVersion"].startswith(GATEWAY_POLICIES)
        and "helm.sh/hook" not in one["metadata"].get("annotations", {})
    ]


def test_the_monitors_find_every_pod_of_the_server_and_of_the_pickers(
    cluster: Cluster, prometheus: Prometheus, watched: Watched
) -> None:
    jobs = "|".join(job_of_monitor(monitor)["job_name"] for monitor in watched.monitors)
    pods = {pod["metadata"]["name"] for pod in cluster.pods(watched.namespace)}

    def found() -> set[str]:
        return {one.labels["pod"] for one in prometheus.query(f'up{{job=~"{jobs}"}} == 1')}

    cluster.wait_for(lambda: found() == pods, f"{sorted(pods)} are scraped", seconds=120)
    assert len(watched.monitors) == 2
    assert len(pods) == 4  # one of the server, a picker a protocol
    own = f'job="{watched.namespace}/{FULLNAME}"'
    (sample,) = prometheus.query(f'qwen3vl_phase{{{own},phase="ready"}}')
    assert sample.labels["inferenceservice"] == FULLNAME
    assert sample.labels["namespace"] == watched.namespace


def test_every_rule_is_evaluated_and_every_alert_looks_at_something(
    prometheus: Prometheus, watched: Watched
) -> None:
    rules = [rule for group in prometheus.rule_groups() for rule in group["rules"]]
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules} == {
        (rule["name"], "ok", "") for rule in rules
    }
    written = [rule for group in watched.groups for rule in group["rules"]]
    assert len(rules) == len(written) > 30
    for rule in written:
        for selector in SELECTOR.findall(rule["expr"]):
            where = f"{rule.get('alert') or rule['record']}: {selector}"
            assert prometheus.wait_for_series(f"last_over_time({selector}[{WINDOW}])"), where
    (errors,) = prometheus.query("inferenceservice:qwen3vl_errors:ratio_rate5m")
    assert errors.value == 0
    # Nothing is wrong with it.
    firing = prometheus.query('ALERTS{alertstate="firing"}')
    assert [sample.labels["alertname"] for sample in firing] == []


def test_every_query_of_the_dashboard_draws_something(
    cluster: Cluster, prometheus: Prometheus, watched: Watched
) -> None:
    for where, query in queries_of(watched):

        def draws(query: str = query) -> bool:
            samples = prometheus.query(query)
            return any(math.isfinite(sample.value) for sample in samples)

        cluster.wait_for(draws, f"{where} draws {query}", seconds=30, every=0.5)


def test_prometheus_knows_each_ready_pod_by_its_inference_service(
    cluster: Cluster, prometheus: Prometheus, watched: Watched
) -> None:
    (pod,) = cluster.ready_pods(watched.namespace, SERVERS)
    name = pod["metadata"]["name"]
    own = f'job="servers",namespace="{watched.namespace}",inferenceservice="{FULLNAME}"'
    (up,) = prometheus.wait_for_series(f"up{{{own}}} == 1")
    assert up.labels["pod"] == name
    finished = f"qwen3vl_finished_sequences_total{{{own}}}"
    prometheus.wait_for_series(f"sum({finished}) == {NUM_ASKED}")
    recorded_at = time.time()
    with prometheus.away():
        pass
    # It has asked the pod anew: what it asked only before is not forgotten for five minutes.
    prometheus.wait_for_series(f"timestamp(up{{{own}}}) > {time.time():.3f}")
    # What it had recorded has outlived it.
    assert prometheus.value(f"sum({finished} @ {recorded_at:.3f})") == NUM_ASKED
    cluster.kubectl("delete", "pod", name, "--namespace", watched.namespace, "--wait=false")
    cluster.wait_for(lambda: not prometheus.query(f'up{{pod="{name}"}}'), "it is forgotten")


def queries_of(watched: Watched) -> Iterator[tuple[str, str]]:
    """(panel or variable, PromQL) of the dashboard, with Grafana's variables filled in."""
    panels = [panel for panel in watched.dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) > 15
    for panel in panels:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", WINDOW)
            query = query.replace("$namespace", watched.namespace)
            yield panel["title"], query.replace("$inferenceservice", FULLNAME)
    for variable in watched.dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = variable["query"]["query"].replace("$namespace", watched.namespace)
            found = LABEL_VALUES.fullmatch(asked)
            assert found, asked
            yield variable["name"], f"count by ({found[2]}) ({found[1]})"
