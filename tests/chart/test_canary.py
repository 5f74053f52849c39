"""While a canary is driven an upgrade leaves its weights alone; before and after, values decide."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from model.canary.routes import canary_name
from model.canary.state import ANNOTATION, Phase
from tests.chart.api_server import KINDS, api_server
from tests.chart.combinations import routing
from tests.chart.helm import CHART, FULLNAME, NAMESPACE, RELEASE, Object, named, of_kind, render

VALUES: Final = {"routing": routing("istio")}
OVER: Final = [phase for phase in Phase if phase.over]
RUNNING: Final = [phase for phase in Phase if not phase.over]
# As the tool leaves a rule: split by weight, and by header before that.
LIVE_RULES: Final = [
    {
        "name": "other",
        "matches": [
            {
                "path": {"type": "PathPrefix", "value": "/v1"},
                "headers": [{"type": "Exact", "name": "x-canary", "value": "1"}],
            }
        ],
        "backendRefs": [{"kind": "Service", "name": "photos-canary-predictor", "port": 80}],
    },
    {
        "name": "other",
        "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
        "backendRefs": [
            {"kind": "Service", "name": f"{FULLNAME}-predictor", "port": 80, "weight": 75},
            {"kind": "Service", "name": "photos-canary-predictor", "port": 80, "weight": 25},
        ],
    },
]


def state(phase: Phase | None) -> dict[str, str]:
    """The annotation of a canary in this phase; nothing where there never was one."""
    return {} if phase is None else {ANNOTATION: json.dumps({"phase": phase.value})}


def live(kind: str, spec: Object, phase: Phase | None) -> Object:
    [api] = [api for api, kinds in KINDS.items() if kind in dict(kinds)]
    owner = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": NAMESPACE}
    metadata = {
        "name": FULLNAME,
        "namespace": NAMESPACE,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": owner | state(phase),
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def upgraded(values: dict[str, Any], *objects: Object) -> list[Object]:
    """What an upgrade applies where the cluster holds these objects."""
    with api_server(list(objects)) as address:
        asked = ("--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address)
        return render(values, *asked)


@pytest.mark.parametrize("phase", RUNNING, ids=str)
def test_a_running_canary_keeps_its_rules_on_every_route(phase: Phase) -> None:
    grpc_rules = [{"name": "other", "backendRefs": LIVE_RULES[1]["backendRefs"]}]
    objects = upgraded(
        VALUES,
        live("HTTPRoute", {"rules": LIVE_RULES}, phase),
        # Its state is on the HTTPRoute; the other routes follow.
        live("GRPCRoute", {"rules": grpc_rules}, None),
    )
    assert named(objects, "HTTPRoute")["spec"]["rules"] == LIVE_RULES
    assert named(objects, "GRPCRoute")["spec"]["rules"] == grpc_rules


@pytest.mark.parametrize("phase", [*OVER, None], ids=str)
def test_without_one_the_values_decide(phase: Phase | None) -> None:
    objects = upgraded(VALUES, live("HTTPRoute", {"rules": LIVE_RULES}, phase))
    assert named(objects, "HTTPRoute") == named(render(VALUES), "HTTPRoute")


def test_the_state_is_never_the_chart_s_to_write() -> None:
    objects = upgraded(VALUES, live("HTTPRoute", {"rules": LIVE_RULES}, Phase.PROGRESSING))
    assert ANNOTATION not in json.dumps(objects)


@pytest.mark.parametrize(
    ("phase", "expected"), [(Phase.PROGRESSING, 25), (Phase.ROLLED_BACK, 10), (None, 10)], ids=str
)
def test_knative_s_percent_is_kept_likewise(phase: Phase | None, expected: int) -> None:
    values = {"deploymentMode": "Knative", "knative": {"canaryTrafficPercent": 10}}
    service = live("InferenceService", {"predictor": {"canaryTrafficPercent": 25}}, phase)
    predictor = named(upgraded(values, service), "InferenceService")["spec"]["predictor"]
    assert predictor["canaryTrafficPercent"] == expected


def test_a_canary_s_release_has_the_pools_that_the_tool_looks_for() -> None:
    values = {"routing": routing("istio", "pool")}
    host = "canary.vision.example.com"
    own = (
        *("--values", str(CHART / "values-canary.yaml"), "--set", "routing.enabled=true"),
        *("--set", f"routing.gateway.create=false,routing.gateway.name={FULLNAME}"),
        *("--set", f"routing.hostnames={{{host}}}"),
    )
    canary = render(values, *own, release="photos-canary")
    [service] = of_kind(canary, "InferenceService")
    made = {pool["metadata"]["name"] for pool in of_kind(canary, "InferencePool")}
    assert made == {
        canary_name(pool["metadata"]["name"], FULLNAME, service["metadata"]["name"])
        for pool in of_kind(render(values), "InferencePool")
    }
    assert len(made) == 3
    # Its routes hang on the stable release's Gateway, and take nothing from that one's hosts.
    assert not of_kind(canary, "Gateway")
    for route in of_kind(canary, "HTTPRoute"):
        assert route["spec"]["hostnames"] == [host]
        assert {parent["name"] for parent in route["spec"]["parentRefs"]} == {FULLNAME}
