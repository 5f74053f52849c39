"""Every combination of values renders, and every object of it is what its kind's schema says."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.chart.combinations import COMBINATIONS, Values, files
from tests.chart.helm import NAMESPACE, Object, named, render
from tests.chart.schemas import errors_of

ALL = {**COMBINATIONS, **files()}
everywhere = pytest.mark.parametrize("values", ALL.values(), ids=list(ALL))


def test_there_are_thirty_and_no_two_are_the_same() -> None:
    assert len(ALL) >= 30
    assert len({repr(values) for values in ALL.values()}) == len(ALL)


@everywhere
def test_every_object_is_valid(values: Values) -> None:
    objects = render(values)
    assert [error for one in objects for error in errors_of(one)] == []


@everywhere
def test_every_object_is_named_labelled_and_in_its_namespace(values: Values) -> None:
    objects = render(values)
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    for one in objects:
        metadata = one["metadata"]
        if metadata["name"].endswith("-extra"):
            continue
        # A Service's name is a DNS label; all are held to it, but what lies in a namespace that
        # releases share: there the release's own comes before a dot.
        name = metadata["name"].removeprefix(f"{NAMESPACE}.")
        assert name == metadata["name"] or metadata["namespace"] != NAMESPACE
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)
        assert metadata["labels"]["app.kubernetes.io/instance"] == "photos"
        assert metadata["namespace"] in {NAMESPACE, "default", "monitoring"}


@everywhere
def test_selectors_hold_name_and_instance_only_and_select_their_own_pods(values: Values) -> None:
    objects = render(values)
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    templates = [one["spec"]["template"]["metadata"]["labels"] for one in deployments]
    for deployment in deployments:
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert selector.keys() == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
        assert [selector.items() <= labels.items() for labels in templates].count(True) == 1
    for service in (one for one in objects if one["kind"] == "Service"):
        selected = [service["spec"]["selector"].items() <= labels.items() for labels in templates]
        assert selected.count(True) == 1


@everywhere
def test_every_reference_between_objects_leads_somewhere(values: Values) -> None:
    objects = render(values)
    here = {(one["kind"], one["metadata"]["name"]) for one in objects}
    fullname = next(one for one in objects if one["kind"] == "InferenceService")["metadata"]["name"]
    # KServe makes this one.
    here.add(("Service", f"{fullname}-predictor"))
    canary = (values.get("routing") or {}).get("canary", {}).get("name") or "-"
    for one in objects:
        for reference in references(one.get("spec")):
            kind, name = reference.get("kind", "Service"), reference["name"]
            if name.startswith(canary) or name == "shared":
                continue
            if kind in {"Service", "InferencePool", "Backend", "HTTPRoute", "GRPCRoute", "Gateway"}:
                assert (kind, name) in here, f"{one['kind']} leads to {kind} {name}"


def references(value: Any) -> list[Object]:
    """Every backendRef, targetRef, parentRef and picker of a spec."""
    if isinstance(value, list):
        return [found for one in value for found in references(one)]
    if not isinstance(value, dict):
        return []
    found = []
    for key, inner in value.items():
        if key in {"backendRefs", "targetRefs", "parentRefs"}:
            found += inner
        elif key in {"targetRef", "endpointPickerRef"}:
            found.append(inner)
        found += references(inner)
    return found


@everywhere
def test_no_pod_of_ours_is_more_than_it_must_be(values: Values) -> None:
    objects = render(values)
    pods = [one["spec"]["template"]["spec"] for one in objects if one["kind"] == "Deployment"]
    pods += [one["spec"] for one in objects if one["kind"] == "Pod"]
    for pod in pods:
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_the_schemas_refuse_what_they_do_not_know() -> None:
    objects = render(COMBINATIONS["routes of Envoy to pools"] | {"autoscaling": {"mode": "hpa"}})
    for kind, spoil in (
        ("InferenceService", lambda spec: spec["predictor"].update(replica=1)),
        ("HorizontalPodAutoscaler", lambda spec: spec.update(minReplica=1)),
        ("HTTPRoute", lambda spec: spec["rules"][0].update(timeout="1s")),
        ("PodDisruptionBudget", lambda spec: spec.update(selector=[])),
    ):
        one = copy.deepcopy(named(objects, kind))
        assert errors_of(one) == []
        spoil(one["spec"])
        assert errors_of(one) != [], kind
