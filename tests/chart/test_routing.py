"""Gateway, routes, pools and pickers: where each request goes, and who chooses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.chart.combinations import KEYS, TOKENS, routing
from tests.chart.helm import FULLNAME, NAMESPACE, HelmError, kinds, named, of_kind, render

if TYPE_CHECKING:
    from tests.chart.helm import Object
    from tests.serving import RunningServer

PICKED = "x-gateway-destination-endpoint"
PREDICTOR = f"{FULLNAME}-predictor"


def routed(controller: str = "istio", backend: str = "pool", **more: Any) -> list[Object]:
    return render({"routing": routing(controller, backend, **more)})


def rule_for(objects: list[Object], path: str, **headers: str) -> Object:
    """The rule that takes a path: an exact match before a prefix, a longer prefix before a shorter,
    more headers before fewer, as the Gateway API says.
    """
    found = []
    for route in of_kind(objects, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for match in rule.get("matches", ()):
                kind, value = match["path"]["type"], match["path"]["value"]
                wanted = [header["name"] for header in match.get("headers", ())]
                exact = kind == "Exact" and path == value
                below = kind == "PathPrefix" and f"{path}/".startswith(f"{value}/")
                if (exact or below) and set(wanted) <= headers.keys():
                    found.append(((exact, len(value), len(wanted)), rule))
    assert found, f"no rule takes {path}"
    return max(found, key=lambda one: one[0])[1]


def backends(rule: Object) -> list[tuple[str, str]]:
    return [(ref["kind"], ref["name"]) for ref in rule["backendRefs"]]


@pytest.mark.parametrize(
    ("path", "pool"),
    [
        ("/v1/chat/completions", "openai"),
        ("/openai/v1/completions", "openai"),
        ("/v2/models/qwen3-vl/infer", "v2"),
        ("/v2/models/vision/generate_stream", "v2"),
        ("/api/v1/describe", "v2"),
        ("/v2/models/qwen3-vl", None),
        ("/v2/health/ready", None),
        ("/v1/models", None),
        ("/tokenize", None),
        ("/api/v1/jobs/abc/results", None),
        ("/metrics", "nowhere"),
    ],
)
def test_what_generates_goes_to_its_pool_and_the_rest_to_the_service(
    path: str, pool: str | None
) -> None:
    objects = render({"routing": routing("istio", "pool"), "model": {"aliases": ["vision"]}})
    if pool == "nowhere":
        with pytest.raises(AssertionError, match="no rule takes"):
            rule_for(objects, path)
        return
    rule = rule_for(objects, path)
    expected = ("InferencePool", f"{FULLNAME}-{pool}") if pool else ("Service", PREDICTOR)
    assert backends(rule) == [expected]
    assert rule["timeouts"]["request"] == ("0s" if pool else "30s")


def test_every_route_of_the_server_is_routed_but_metrics(server: RunningServer) -> None:
    objects = routed()
    paths = httpx.get(f"{server.http_url}/openapi.json").json()["paths"]
    for path in {*paths, "/docs", "/api/docs", "/openapi.json"} - {"/metrics", "/ui"}:
        rule_for(objects, path.replace("{model_name}", "qwen3-vl"))
    with pytest.raises(AssertionError, match="no rule takes"):
        rule_for(objects, "/metrics")


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
    load = {"queue-scorer": 2, "kv-cache-utilization-scorer": 2, "max-score-picker": None}
    assert scorers["openai"] == {**load, "prefix-cache-scorer": 3}
    assert scorers["v2"] == scorers["grpc"] == {**load, "running-requests-size-scorer": 1}
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


@pytest.mark.parametrize(
    ("replicas", "elects", "probe"), [(1, "false", "inference-extension"), (2, "true", "readiness")]
)
def test_several_pickers_elect_a_leader_and_only_it_is_ready(
    replicas: int, elects: str, probe: str
) -> None:
    objects = render({"routing": routing("istio", "pool"), "picker": {"replicas": replicas}})
    for pool in ("openai", "v2", "grpc"):
        spec = named(objects, "Deployment", f"{FULLNAME}-{pool}-picker")["spec"]
        [container] = spec["template"]["spec"]["containers"]
        assert f"--ha-enable-leader-election={elects}" in container["args"]
        assert f"--pool-name={FULLNAME}-{pool}" in container["args"]
        assert container["readinessProbe"]["grpc"]["service"] == probe
        assert spec["strategy"] == {"type": "Recreate"}
    rules = named(objects, "Role", f"{FULLNAME}-picker")["rules"]
    granted = [rule["resourceNames"] for rule in rules if rule["resources"] == ["leases"]]
    # The chart makes the Leases, so that they go with it.
    leases = [lease["metadata"]["name"] for lease in of_kind(objects, "Lease")]
    assert granted == ([leases] if replicas > 1 else [])
    assert len(leases) == (3 if replicas > 1 else 0)
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
        assert processor["backendSettings"]["healthCheck"]["active"]["type"] == "GRPC"
        assert processor["backendSettings"]["healthCheck"]["panicThreshold"] == 0
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


def test_envoy_s_patches_name_the_clusters_of_the_picked_rules() -> None:
    objects = routed("envoy")
    patches = patched(objects, "Cluster")
    expected = {
        f"{route['kind'].lower()}/{NAMESPACE}/{route['metadata']['name']}/rule/{index}"
        for route in of_kind(objects, "HTTPRoute") + of_kind(objects, "GRPCRoute")
        for index, rule in enumerate(route["spec"]["rules"])
        if rule["backendRefs"][0]["kind"] == "Backend"
    }
    assert {patch["name"] for patch in patches} == expected
    assert len(expected) == 3


def test_no_client_of_envoy_s_can_say_where_its_request_goes() -> None:
    for backend in ("pool", "service"):
        policy = named(routed("envoy", backend), "ClientTrafficPolicy")
        assert policy["spec"]["headers"]["earlyRequestHeaders"]["remove"] == [PICKED]


@pytest.mark.parametrize("controller", ["envoy", "istio", "nginx", "gke"])
def test_nothing_on_the_way_is_smaller_or_more_hasty_than_the_server(controller: str) -> None:
    objects = render(
        {
            "routing": routing(controller, "pool"),
            "settings": {"request": {"max_body_bytes": 300 << 20}},
        }
    )
    generation = rule_for(objects, "/api/v1/describe")
    match controller:
        case "envoy":
            assert generation["timeouts"]["request"] == "0s"
            policies = of_kind(objects, "BackendTrafficPolicy")
            grpc = [one for one in policies if one["metadata"]["name"].endswith("grpc")]
            # A GRPCRoute has no timeouts of its own.
            assert [one["spec"]["timeout"]["http"]["requestTimeout"] for one in grpc] == ["0s"] * 2
        case "istio":
            assert generation["timeouts"]["request"] == "0s"
        case "nginx":
            assert "timeouts" not in generation
            policies = of_kind(objects, "ClientSettingsPolicy")
            assert {policy["spec"]["body"]["maxSize"] for policy in policies} == {"300m"}
            targets = [policy["spec"]["targetRef"]["kind"] for policy in policies]
            assert targets == ["HTTPRoute", "GRPCRoute"]
            proxy = named(objects, "ProxySettingsPolicy")["spec"]
            assert proxy["buffering"] == {"disable": True}
            assert proxy["timeout"] == {"read": "1440m", "send": "1440m"}
        case "gke":
            policies = of_kind(objects, "GCPBackendPolicy")
            assert {one["spec"]["default"]["timeoutSec"] for one in policies} == {86400}
            assert {one["spec"]["targetRef"]["kind"] for one in policies} == {
                "Service",
                "InferencePool",
            }


def test_http_and_grpc_hang_on_listeners_of_their_own() -> None:
    objects = routed("envoy")
    listeners = named(objects, "Gateway")["spec"]["listeners"]
    assert {one["name"]: one["port"] for one in listeners} == {"http": 80, "grpc": 8081}
    for kind, listener in (("HTTPRoute", "http"), ("GRPCRoute", "grpc")):
        for route in of_kind(objects, kind):
            assert [ref["sectionName"] for ref in route["spec"]["parentRefs"]] == [listener]


def test_tls_ends_at_the_gateway_and_plain_http_is_redirected() -> None:
    objects = routed(
        "envoy",
        hostnames=["vision.example.com"],
        gateway={"ports": {"http": 443, "grpc": 8443}},
        tls={"secretName": "vision-tls", "issuer": "letsencrypt"},
    )
    gateway = named(objects, "Gateway")
    assert gateway["metadata"]["annotations"] == {"cert-manager.io/issuer": "letsencrypt"}
    assert {one["name"]: one["protocol"] for one in gateway["spec"]["listeners"]} == {
        "http": "HTTPS",
        "grpc": "HTTPS",
        "redirect": "HTTP",
    }
    redirect = named(objects, "HTTPRoute", f"{FULLNAME}-redirect")["spec"]
    assert redirect["parentRefs"][0]["sectionName"] == "redirect"
    assert redirect["rules"][0]["filters"][0]["requestRedirect"]["scheme"] == "https"


def test_a_canary_has_its_weight_in_every_rule_that_leads_to_the_model() -> None:
    objects = routed(canary={"name": "photos-canary", "weightPercent": 5})
    for kind in ("HTTPRoute", "GRPCRoute"):
        for rule in named(objects, kind)["spec"]["rules"]:
            stable, canary = rule["backendRefs"]
            assert (stable["weight"], canary["weight"]) == (95, 5)
            # What follows the InferenceService's name is the same: kubectl qwen3vl relies on it.
            assert canary["name"] == stable["name"].replace(FULLNAME, "photos-canary")
            assert canary["kind"] == stable["kind"]


def test_a_canary_of_weight_zero_is_there_with_nothing() -> None:
    [rule, *_] = named(routed(canary={"name": "photos-canary"}), "HTTPRoute")["spec"]["rules"]
    assert [ref["weight"] for ref in rule["backendRefs"]] == [100, 0]


def test_the_page_has_a_route_that_no_canary_rewrites() -> None:
    objects = render({"routing": routing("istio"), "page": {"enabled": True}})
    assert backends(rule_for(objects, "/ui/assets/x.js")) == [("Service", f"{FULLNAME}-page")]
    for rule in named(objects, "HTTPRoute")["spec"]["rules"]:
        assert all(ref["name"] == PREDICTOR for ref in rule["backendRefs"])
    [container] = named(objects, "Deployment", f"{FULLNAME}-page")["spec"]["template"]["spec"][
        "containers"
    ]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables["QWEN3VL_UI_API"] == f"http://{PREDICTOR}.{NAMESPACE}.svc.cluster.local"
    assert "resources" in container
    assert "nvidia.com/gpu" not in str(container["resources"])


def test_the_page_s_variables_are_its_settings() -> None:
    from model.ui.settings import PageSettings

    values = {"page": {"enabled": True, "publicApi": "https://vision.example.com"}}
    [container] = named(render(values), "Deployment", f"{FULLNAME}-page")["spec"]["template"][
        "spec"
    ]["containers"]
    known = {f"QWEN3VL_UI_{name.upper()}" for name in PageSettings.model_fields}
    own = {one["name"] for one in container["env"]} - {"HOME"}
    assert own <= known


@pytest.mark.parametrize("backend", ["service", "pool"])
def test_keys_and_tokens_are_checked_on_every_way_to_the_model(backend: str) -> None:
    objects = render({"routing": routing("envoy", backend), "auth": {**KEYS, **TOKENS}})
    policy = named(objects, "SecurityPolicy")["spec"]
    guarded = {(ref["kind"], ref["name"]) for ref in policy["targetRefs"]}
    ways = {
        (route["kind"], route["metadata"]["name"])
        for route in of_kind(objects, "HTTPRoute") + of_kind(objects, "GRPCRoute")
    }
    assert guarded == ways
    assert policy["apiKeyAuth"]["credentialRefs"][0]["name"] == f"{FULLNAME}-api-keys"
    assert policy["apiKeyAuth"]["sanitize"] is True
    [provider] = policy["jwt"]["providers"]
    assert provider["audiences"] == ["vision"]
    assert named(objects, "Secret", f"{FULLNAME}-api-keys")["stringData"].keys() == {"alice"}


def test_istio_lets_nobody_pass_without_a_token() -> None:
    objects = render({"routing": routing("istio"), "auth": TOKENS})
    [rule] = named(objects, "AuthorizationPolicy")["spec"]["rules"]
    assert rule["from"][0]["source"]["requestPrincipals"] == ["https://login.example.com/*"]


def test_without_routing_there_is_nothing_to_route() -> None:
    routes = {"Gateway", "HTTPRoute", "GRPCRoute", "InferencePool"}
    assert not {name.partition("/")[0] for name in kinds(render())} & routes


SHARED = {"create": False, "name": "shared"}
SECURE = {"secretName": "s"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"routing": routing("envoy"), "exposeByKserve": True}, "two sets of routes"),
        ({"routing": routing("envoy", gateway={"create": False})}, "routing.gateway.name"),
        ({"routing": routing("envoy", gateway={"namespace": "infra"})}, "take one out"),
        (
            {"routing": routing("envoy", "pool", gateway={**SHARED, "namespace": "infra"})},
            "EnvoyPatchPolicy must be in the Gateway's namespace, infra",
        ),
        ({"routing": routing("envoy", gateway=SHARED, tls=SECURE)}, "set TLS at that Gateway"),
        ({"routing": routing("envoy", tls={"issuer": "x"})}, "name the Secret"),
        ({"routing": routing("envoy", tls=SECURE)}, "set it to 443"),
        (
            {"routing": routing("envoy", gateway={"ports": {"http": 80, "grpc": 80}})},
            "are both 80",
        ),
        (
            {
                "routing": routing(
                    "envoy", gateway={**SHARED, "listeners": {"http": "web", "grpc": "web"}}
                )
            },
            "are both web",
        ),
        ({"routing": routing("envoy", "pool", canary={"name": "x"})}, "cannot be weighted"),
        ({"routing": routing("istio", canary={"name": FULLNAME})}, "this release's own"),
        ({"routing": routing("istio", canary={"weightPercent": 5})}, "name the InferenceService"),
        ({"routing": routing("istio"), "auth": KEYS}, "istio checks no keys"),
        ({"routing": routing("nginx"), "auth": TOKENS}, "nginx checks no tokens"),
        ({"auth": KEYS}, "nobody would check it"),
        ({"auth": {"apiKeys": {"keys": {"bob": "short"}}}}, "minLength"),
        ({"deploymentMode": "Knative", "routing": routing("envoy")}, "routes by itself"),
        ({"routing": routing("traefik")}, "must be one of"),
    ],
)
def test_routes_that_contradict_themselves_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(HelmError) as raised:
        render(values)
    assert message in " ".join(str(raised.value).split())
