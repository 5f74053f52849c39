"""A canary's InferenceService, the stable one's after it, and whether they serve."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from model.canary.errors import Refused
from model.canary.services import (
    change_predictor,
    make_canary,
    promote_predictor,
    revision_of,
    service_port,
    why_not_ready,
    why_not_rolled_out,
)
from model.canary.state import Changes

STABLE: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {
        "name": "qwen3-vl",
        "namespace": "models",
        "uid": "1",
        "resourceVersion": "7",
        "labels": {
            "app.kubernetes.io/managed-by": "Helm",
            "app.kubernetes.io/instance": "release",
            "networking.kserve.io/visibility": "cluster-local",
        },
        "annotations": {
            "serving.kserve.io/deploymentMode": "Standard",
            "meta.helm.sh/release-name": "release",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        },
    },
    "spec": {
        "predictor": {
            "minReplicas": 4,
            "maxReplicas": 9,
            "annotations": {"mine": "too"},
            "containers": [
                {"name": "sidecar", "image": "other:1"},
                {
                    "name": "kserve-container",
                    "image": "server:1",
                    "args": ["--model_name=qwen3-vl"],
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                },
            ],
        }
    },
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


def container(service: dict[str, Any]) -> dict[str, Any]:
    return dict(service["spec"]["predictor"]["containers"][1])


def test_a_canary_is_the_stable_one_with_its_changes() -> None:
    before = copy.deepcopy(STABLE)
    changes = Changes(image="server:2", env={"B": "3", "C": "4"}, replicas=2)
    canary = make_canary(STABLE, "next", changes, "abc")
    assert before == STABLE
    assert container(canary) == {
        **container(STABLE),
        "image": "server:2",
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "3"},
            {"name": "C", "value": "4"},
        ],
    }
    predictor = canary["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 9)
    assert predictor["annotations"] == {"mine": "too", "qwen3-vl.io/revision": "abc"}
    assert revision_of(canary) == "abc"
    assert "status" not in canary


def test_a_canary_is_not_taken_for_a_part_of_the_release() -> None:
    metadata = make_canary(STABLE, "next", Changes(image="x"), "abc")["metadata"]
    assert metadata == {
        "name": "next",
        "namespace": "models",
        "labels": {
            "networking.kserve.io/visibility": "cluster-local",
            "qwen3-vl.io/canary-of": "qwen3-vl",
        },
        "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
    }


def test_under_a_runtime_it_keeps_the_models_name() -> None:
    stable = {**STABLE, "spec": {"predictor": {"model": {"modelFormat": {"name": "qwen3-vl"}}}}}
    made = make_canary(stable, "next", Changes(storage_uri="hf://b"), "abc")
    model = made["spec"]["predictor"]["model"]
    assert model["args"] == ["--model_name=qwen3-vl"]
    assert model["storageUri"] == "hf://b"
    named = copy.deepcopy(stable)
    named["spec"]["predictor"]["model"]["args"] = ["--model_name=mine"]
    again = make_canary(named, "next", Changes(storage_uri="hf://b"), "abc")
    assert again["spec"]["predictor"]["model"]["args"] == ["--model_name=mine"]


def test_a_model_comes_from_where_the_stable_one_says_it() -> None:
    changes = Changes(storage_uri="hf://b")
    custom = change_predictor(STABLE["spec"]["predictor"], changes, "abc")
    assert {"name": "STORAGE_URI", "value": "hf://b"} in custom["containers"][1]["env"]
    one = {**STABLE["spec"]["predictor"], "storageUris": [{"uri": "hf://a", "mountPath": "/m"}]}
    assert change_predictor(one, changes, "abc")["storageUris"] == [
        {"uri": "hf://b", "mountPath": "/m"}
    ]
    two = {**one, "storageUris": [{"uri": "hf://a"}, {"uri": "hf://b"}]}
    with pytest.raises(Refused, match="2 storageUris"):
        change_predictor(two, changes, "abc")


def test_a_predictor_without_our_container_is_refused() -> None:
    with pytest.raises(Refused, match="neither a container named kserve-container nor a model"):
        change_predictor({"sklearn": {}}, Changes(image="x"), "abc")


def test_promoted_is_the_canarys_version_at_the_stable_ones_scale() -> None:
    stable = STABLE["spec"]["predictor"]
    canary = make_canary(STABLE, "next", Changes(image="server:2"), "abc")["spec"]["predictor"]
    promoted = promote_predictor(stable, canary, "abc")
    assert (promoted["minReplicas"], promoted["maxReplicas"]) == (4, 9)
    assert promoted["containers"][1]["image"] == "server:2"
    assert promoted["annotations"]["qwen3-vl.io/revision"] == "abc"
    unscaled = {key: value for key, value in stable.items() if "Replicas" not in key}
    assert "minReplicas" not in promote_predictor(unscaled, canary, "abc")


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ([{"type": "Ready", "status": "True"}], None),
        ([], "qwen3-vl is not Ready"),
        (
            [
                {"type": "PredictorReady", "status": "True"},
                {"type": "Ready", "status": "False", "reason": "Failed", "message": "no GPU"},
            ],
            "qwen3-vl is not Ready (Failed: no GPU)",
        ),
    ],
)
def test_why_not_ready(conditions: list[dict[str, str]], reason: str | None) -> None:
    assert why_not_ready({**STABLE, "status": {"conditions": conditions}}) == reason


def deployment(**changes: Any) -> dict[str, Any]:
    status = {
        "observedGeneration": 3,
        "replicas": 2,
        "updatedReplicas": 2,
        "availableReplicas": 2,
        **changes,
    }
    template = {"metadata": {"annotations": {"qwen3-vl.io/revision": "abc"}}}
    spec = {"replicas": 2, "template": template}
    return {"metadata": {"generation": 3}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("changes", "revision", "reason"),
    [
        pytest.param({}, "abc", None, id="rolled out"),
        pytest.param({}, "def", "KServe has not seen the new spec yet", id="still the old spec"),
        pytest.param({"observedGeneration": 2}, "abc", "has not been seen yet", id="not seen"),
        pytest.param({"updatedReplicas": 1}, "abc", "1 of 2 pods are new", id="an old pod serves"),
        pytest.param({"replicas": 3}, "abc", "1 old pods are left", id="an old pod is left"),
        pytest.param(
            {"availableReplicas": 1}, "abc", "1 of 2 pods are available", id="a new one starts"
        ),
    ],
)
def test_why_not_rolled_out(changes: dict[str, int], revision: str, reason: str | None) -> None:
    found = why_not_rolled_out(deployment(**changes), revision)
    assert found == reason if reason is None else reason in str(found)


def test_the_port_of_a_service_is_found_by_protocol() -> None:
    h2c = {"port": 8081, "appProtocol": "kubernetes.io/h2c"}
    service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}, h2c]}}
    assert service_port(service, grpc=False) == 80
    assert service_port(service, grpc=True) == 8081
    service["spec"] = {"ports": [{"port": 80}]}
    with pytest.raises(Refused, match="no port with appProtocol"):
        service_port(service, grpc=True)
