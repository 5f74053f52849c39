"""Rules, dashboard, monitors: the figures they name exist, the alerts fire when they should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.chart.generate import CHART
from tests.chart.helm import FULLNAME, NAMESPACE, Object, named, of_kind, render

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.serving import RunningServer

OWN: Final = f'namespace="{NAMESPACE}",inferenceservice="{FULLNAME}"'
# The DCGM exporter's names, as its documentation has them.
DCGM: Final = frozenset(
    {
        "DCGM_FI_DEV_GPU_UTIL",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_THERMAL_VIOLATION",
        "DCGM_FI_DEV_POWER_VIOLATION",
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "DCGM_FI_PROF_DRAM_ACTIVE",
    }
)
WATCHED: Final[dict[str, Any]] = {
    "gpu": {"enabled": True},
    "monitoring": {
        "monitor": "PodMonitor",
        "rules": {"enabled": True, "canaryHours": 1},
        "dashboard": {"enabled": True},
    },
    "autoscaling": {
        "mode": "hpa",
        "targets": {"gpuUtilizationPercent": 90, "gpuMemoryUsedMib": 1, "runningSequences": 1},
    },
}


@pytest.fixture(scope="module")
def watched() -> list[Object]:
    return render(WATCHED)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        assert not os.environ.get("CI"), "promtool is not on PATH: apt-get install prometheus"
        pytest.skip("promtool is not on PATH: apt-get install prometheus")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def groups(objects: list[Object]) -> list[Object]:
    found = named(objects, "PrometheusRule")["spec"]["groups"]
    assert isinstance(found, list)
    return found


def rules(objects: list[Object]) -> Iterator[Object]:
    for group in groups(objects):
        yield from group["rules"]


def panels() -> Iterator[tuple[str, str]]:
    """(title, PromQL) of every query of the dashboard."""
    dashboard = json.loads((CHART / "dashboards" / "qwen3-vl.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def named_metrics(query: str) -> set[str]:
    """The series that a query selects; recorded ones (with colons) aside."""
    return set(re.findall(r"(?<![:\w])(?:qwen3vl_|DCGM_|process_)\w+", query))


def queries(objects: list[Object]) -> Iterator[tuple[str, str]]:
    """(where, PromQL or name) of everything in the chart that names a metric."""
    for rule in rules(objects):
        yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]
    yield from ((f"panel {title}", query) for title, query in panels())
    for metric in named(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]:
        yield "HPA", metric["pods"]["metric"]["name"]
    yield "adapter", named(objects, "ConfigMap", f"{FULLNAME}-adapter-rules")["data"]["config.yaml"]
    zero = {"mode": "keda", "minReplicas": 0, "keda": {"wakeQuery": "vector(1)"}}
    for trigger in of_kind(render({"autoscaling": zero}), "ScaledObject")[0]["spec"]["triggers"]:
        yield "KEDA", trigger["metadata"]["query"]


def test_every_metric_that_is_named_is_one_that_the_server_exposes(
    server: RunningServer, sample_image: bytes, watched: list[Object]
) -> None:
    httpx.post(f"{server.http_url}/api/v1/describe", files={"image": sample_image}, timeout=60)
    text = httpx.get(f"{server.http_url}/metrics").text
    exposed = {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    named_anywhere = set()
    for where, query in queries(watched):
        names = named_metrics(query)
        assert names or "inferenceservice:qwen3vl" in query or query == "vector(1)", where
        assert names <= exposed | DCGM, f"{where}: {names - exposed - DCGM} of nobody"
        named_anywhere |= names
    assert len(named_anywhere) > 25


def test_every_recorded_ratio_that_an_alert_asks_for_is_recorded(watched: list[Object]) -> None:
    recorded = {rule["record"] for rule in rules(watched) if "record" in rule}
    asked = {
        name
        for rule in rules(watched)
        if "alert" in rule
        for name in re.findall(r"inferenceservice:\w+:\w+", rule["expr"])
    }
    assert asked <= recorded


def test_the_buckets_of_the_objectives_are_the_server_s(server: RunningServer) -> None:
    text = httpx.get(f"{server.http_url}/metrics").text
    for first, between in ((0.01, 0.0025), (1.0, 1.28), (60.0, 2.56)):
        slo = {"firstTokenSeconds": first, "interTokenSeconds": between}
        objects = render({"monitoring": {"rules": {"enabled": True, "slo": slo}}})
        for rule in rules(objects):
            for metric, bound in re.findall(r'(\w+_bucket)\{[^}]*le="([^"]+)"', rule["expr"]):
                assert re.search(rf'^{metric}\{{.*le="{re.escape(bound)}".*\}}', text, re.MULTILINE)


def test_promtool_has_nothing_against_the_rules(watched: list[Object], tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups(watched)}))
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_alerts_fire_when_they_should_and_not_before(
    watched: list[Object], tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups(watched)}))
    cases = yaml.safe_load((CHART.parents[1] / "tests" / "chart" / "alerts.yaml").read_text())
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(cases))
    tested = promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_case() -> None:
    cases = (CHART.parents[1] / "tests" / "chart" / "alerts.yaml").read_text()
    alerts = {rule["alert"] for rule in rules(render(WATCHED)) if "alert" in rule}
    assert {name for name in alerts if f"alertname: {name}\n" not in cases} == set()


def test_promql_of_the_dashboard_parses(tmp_path: Path) -> None:
    # As rules, since promtool parses no bare query without a server.
    made = [
        {"record": f"panel:{index}:query", "expr": in_place(query)}
        for index, (_, query) in enumerate(panels())
        if not query.startswith("label_values")
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    checked = promtool("check", "rules", "--lint=none", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(made)} rules found" in checked.stdout


def in_place(query: str) -> str:
    """A panel's query with Grafana's variables filled in."""
    return (
        query.replace("$__rate_interval", "1m")
        .replace("$namespace", NAMESPACE)
        .replace("$inferenceservice", FULLNAME)
    )


def test_the_dashboard_is_one_that_grafana_can_share() -> None:
    dashboard = json.loads((CHART / "dashboards" / "qwen3-vl.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    kinds = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "namespace": "query", "inferenceservice": "query"}
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"], panel["title"]


def test_grafana_s_sidecar_finds_the_dashboard(watched: list[Object]) -> None:
    config = named(watched, "ConfigMap", f"{FULLNAME}-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["qwen3-vl.json"])["uid"] == "qwen3-vl"


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor"])
def test_series_get_the_label_that_everything_selects_by(kind: str) -> None:
    monitoring = {"monitor": kind, "labels": {"release": "prometheus"}}
    monitor = named(render({"monitoring": monitoring}), kind)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    [endpoint] = monitor["spec"].get("podMetricsEndpoints") or monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http1", "/metrics")
    [relabeling] = endpoint["relabelings"]
    assert relabeling["targetLabel"] == "inferenceservice"
    assert relabeling["sourceLabels"] == [
        "__meta_kubernetes_pod_label_serving_kserve_io_inferenceservice"
    ]


def test_pickers_are_scraped_too() -> None:
    values = {
        "monitoring": {"monitor": "PodMonitor"},
        "routing": {"enabled": True, "backend": "pool"},
    }
    selector = named(render(values), "PodMonitor", f"{FULLNAME}-pickers")["spec"]["selector"]
    assert selector["matchExpressions"][0]["values"] == [
        "qwen3-vl-openai-picker",
        "qwen3-vl-v2-picker",
        "qwen3-vl-grpc-picker",
    ]


def test_a_model_that_may_sleep_is_not_missed() -> None:
    zero = {"mode": "keda", "minReplicas": 0, "keda": {"wakeQuery": "up"}}
    for autoscaling, missed in (({}, True), (zero, False)):
        objects = render({"autoscaling": autoscaling, "monitoring": {"rules": {"enabled": True}}})
        [alert] = [rule for rule in rules(objects) if rule.get("alert") == "Qwen3VLNoReadyPod"]
        assert ("absent(" in alert["expr"]) is missed
