"""Gateway and routes: where each request goes, and who may send it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.chart.combinations import KEYS, TOKENS, routing
from tests.chart.helm import FULLNAME, NAMESPACE, HelmError, kinds, named, of_kind, render
from tests.chart.routes import PREDICTOR, backends, routed, rule_for

if TYPE_CHECKING:
    from tests.serving import RunningServer


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
