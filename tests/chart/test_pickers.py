"""Pools and endpoint pickers: who chooses the pod, by what, and what happens without them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from tests.chart.combinations import routing
from tests.chart.helm import FULLNAME, NAMESPACE, named, of_kind, render
from tests.chart.routes import PICKED, PREDICTOR, backends, routed, rule_for

if TYPE_CHECKING:
    from tests.chart.helm import Object
    from tests.serving import RunningServer


def picker_config(objects: list[Object], pool: str) -> Object:
    text = named(objects, "ConfigMap", f"{FULLNAME}-{pool}-picker")["data"]["config.yaml"]
    config = yaml.safe_load(text)
    assert isinstance(config, dict)
    return config


def test_v2_is_picked_by_load_and_openai_by_load_and_beginning() -> None:
    objects = routed()
    scorers = {
        pool: {
            plugin["pluginRef"]: plugin.get("weight")
            for plugin in picker_config(objects, pool)["schedulingProfiles"][0]["plugins"]
        }
        for pool in ("openai", "v2", "grpc")
    }
    load = {
        "queue-scorer": 2,
        "kv-cache-utilization-scorer": 2,
        "running-requests-size-scorer": 1,
        "max-score-picker": None,
    }
    assert scorers["openai"] == {**load, "prefix-cache-scorer": 3}
    assert scorers["v2"] == scorers["grpc"] == load
    # A pod with a queue has all of these full: its pictures then go elsewhere too.
    assert (
        scorers["openai"]["prefix-cache-scorer"]
        <= load["queue-scorer"] + load["running-requests-size-scorer"]
    )
    # The default parser answers V2 bodies with 400.
    assert picker_config(objects, "v2")["parser"] == {"pluginRef": "passthrough-parser"}
    assert "parser" not in picker_config(objects, "openai")


def test_every_plugin_that_a_picker_uses_is_declared() -> None:
    for pool in ("openai", "v2", "grpc"):
        config = picker_config(routed(), pool)
        declared = {plugin["type"] for plugin in config["plugins"]}
        used = {plugin["pluginRef"] for plugin in config["schedulingProfiles"][0]["plugins"]}
        assert used | {config.get("parser", {}).get("pluginRef", "max-score-picker")} <= declared


def test_a_picker_reads_figures_that_the_server_exposes(server: RunningServer) -> None:
    exposed = httpx.get(f"{server.http_url}/metrics").text
    for pool in ("openai", "v2", "grpc"):
        plugins = picker_config(routed(), pool)["plugins"]
        [extractor] = [one for one in plugins if one["type"] == "core-metrics-extractor"]
        [engine] = extractor["parameters"]["engineConfigs"]
        assert engine["name"] == extractor["parameters"]["defaultEngine"]
        specs = {name: value for name, value in engine.items() if name.endswith("Spec")}
        assert len(specs) == 4
        for metric in specs.values():
            assert f"\n{metric}{{" in exposed, metric
        [container] = named(routed(), "Deployment", f"{FULLNAME}-{pool}-picker")["spec"][
            "template"
        ]["spec"]["containers"]
        # gRPC's port answers no scrape.
        asks_elsewhere = "--model-server-metrics-port=8080" in container["args"]
        assert asks_elsewhere is (pool == "grpc")


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_picker_picks_and_is_ready(replicas: int) -> None:
    objects = render({"routing": routing("istio", "pool"), "picker": {"replicas": replicas}})
    for pool in ("openai", "v2", "grpc"):
        spec = named(objects, "Deployment", f"{FULLNAME}-{pool}-picker")["spec"]
        [container] = spec["template"]["spec"]["containers"]
        assert spec["replicas"] == replicas
        assert f"--pool-name={FULLNAME}-{pool}" in container["args"]
        # Of several that elect a leader one alone is ready: `helm --wait` would not return.
        assert "--ha-enable-leader-election=false" in container["args"]
        assert container["readinessProbe"]["grpc"]["service"] == "inference-extension"
        # The next one is ready before the last one goes.
        assert "strategy" not in spec
    rules = named(objects, "Role", f"{FULLNAME}-picker")["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}
    # Namespaced rights only.
    assert not of_kind(objects, "ClusterRole")


def test_a_changed_configuration_restarts_the_picker() -> None:
    def checksum(weight: int) -> str:
        objects = render(
            {"routing": routing("istio", "pool"), "picker": {"weights": {"prefix": weight}}}
        )
        picker = named(objects, "Deployment", f"{FULLNAME}-openai-picker")
        return str(picker["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum(3) != checksum(5)
    assert checksum(3) == checksum(3)


def test_pools_select_the_pods_that_kserve_makes_by_their_own_ports() -> None:
    pools = of_kind(routed(), "InferencePool")
    assert {
        pool["metadata"]["name"].rpartition("-")[2]: (
            pool["spec"]["targetPorts"][0]["number"],
            pool["spec"]["appProtocol"],
        )
        for pool in pools
    } == {
        "openai": (8080, "http"),
        "v2": (8080, "http"),
        "grpc": (8081, "kubernetes.io/h2c"),
    }
    for pool in pools:
        assert pool["spec"]["selector"]["matchLabels"] == {"app": f"isvc.{PREDICTOR}"}
        assert pool["spec"]["endpointPickerRef"]["failureMode"] == "FailOpen"


def test_a_client_that_keeps_its_stream_open_meets_no_picker() -> None:
    # A picker waits for the end of the request, which a bidirectional stream's client never sends.
    for controller in ("istio", "envoy"):
        for route in of_kind(routed(controller), "GRPCRoute"):
            for rule in route["spec"]["rules"]:
                methods = {match["method"]["method"] for match in rule.get("matches", ())}
                assert methods <= {"ModelInfer"}


def test_envoy_goes_where_the_picker_said_and_to_any_pod_where_it_said_nothing() -> None:
    objects = routed("envoy")
    for path, pool in (("/v1/chat/completions", "openai"), ("/api/v1/describe", "v2")):
        picked = rule_for(objects, path, **{PICKED: "10.0.0.1:8080"})
        assert backends(picked) == [("Backend", f"{FULLNAME}-{pool}-picked")]
        assert backends(rule_for(objects, path)) == [("Service", PREDICTOR)]


def test_envoy_asks_each_picker_for_the_whole_route_of_its_pool() -> None:
    objects = routed("envoy")
    for pool, kind in (("openai", "HTTPRoute"), ("v2", "HTTPRoute"), ("grpc", "GRPCRoute")):
        spec = named(objects, "EnvoyExtensionPolicy", f"{FULLNAME}-{pool}")["spec"]
        assert [(ref["kind"], ref["name"]) for ref in spec["targetRefs"]] == [
            (kind, f"{FULLNAME}-{pool}")
        ]
        [processor] = spec["extProc"]
        assert processor["processingMode"] == {"request": {"body": "FullDuplexStreamed"}}
        # Envoy Gateway's own rule; the patch below says otherwise to Envoy.
        assert processor["failOpen"] is False
        # Else a dead picker fails bodies with 500, whatever failOpen says.
        check = processor["backendSettings"]["healthCheck"]
        assert check["active"]["type"] == "GRPC"
        assert check["panicThreshold"] == 0
        # Found out well within a second; back once it knows its pool.
        assert check["active"]["interval"] == "100ms"
        assert check["active"]["unhealthyThreshold"] == 1
        assert check["active"]["healthyThreshold"] == 3
        args = named(objects, "Deployment", f"{FULLNAME}-{pool}-picker")["spec"]["template"][
            "spec"
        ]["containers"][0]["args"]
        assert "--secure-serving=false" in args
        assert "--health-checking=true" in args


def patched(objects: list[Object], kind: str) -> list[Object]:
    spec = named(objects, "EnvoyPatchPolicy", f"{FULLNAME}-picked")["spec"]
    return [patch for patch in spec["jsonPatches"] if patch["type"].endswith(f".{kind}")]


@pytest.mark.parametrize("opens", [True, False])
def test_envoy_lets_requests_pass_while_a_picker_is_away_where_it_may(opens: bool) -> None:
    objects = render({"routing": routing("envoy", "pool"), "picker": {"failOpen": opens}})
    listeners = {
        re.search(r"-(\w+)/extproc/0", patch["operation"]["jsonPath"])[1]: patch["name"]
        for patch in patched(objects, "Listener")
    }
    gateway = f"{NAMESPACE}/{FULLNAME}"
    expected = {"openai": "http", "v2": "http", "grpc": "grpc"} if opens else {}
    assert listeners == {pool: f"{gateway}/{listener}" for pool, listener in expected.items()}


def test_envoy_s_patches_name_the_clusters_of_the_picked_rules_and_the_pickers() -> None:
    objects = routed("envoy")
    patches = patched(objects, "Cluster")
    expected = {
        f"{route['kind'].lower()}/{NAMESPACE}/{route['metadata']['name']}/rule/{index}"
        for route in of_kind(objects, "HTTPRoute") + of_kind(objects, "GRPCRoute")
        for index, rule in enumerate(route["spec"]["rules"])
        if rule["backendRefs"][0]["kind"] == "Backend"
    }
    assert len(expected) == 3
    # Where pickers are asked how they are.
    pickers = {
        f"envoyextensionpolicy/{NAMESPACE}/{policy['metadata']['name']}/extproc/0"
        for policy in of_kind(objects, "EnvoyExtensionPolicy")
    }
    assert len(pickers) == 3
    assert {patch["name"] for patch in patches} == expected | pickers
    for name in pickers:
        changes = {
            patch["operation"]["path"].rpartition("/")[2]: patch["operation"]["value"]
            for patch in patches
            if patch["name"] == name
        }
        # One that is not used is asked too, and what is heard of it counts at once.
        assert changes == {"no_traffic_interval": "0.1s", "update_merge_window": "0s"}


def test_no_client_of_envoy_s_can_say_where_its_request_goes() -> None:
    for backend in ("pool", "service"):
        policy = named(routed("envoy", backend), "ClientTrafficPolicy")
        assert policy["spec"]["headers"]["earlyRequestHeaders"]["remove"] == [PICKED]
