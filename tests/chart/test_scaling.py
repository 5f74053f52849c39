"""HPA, ScaledObject and the adapter's rules: one table of metrics, three ways to read it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.chart.helm import FULLNAME, NAMESPACE, HelmError, kinds, named, of_kind, render

ALL_TARGETS = {
    "queuedSequences": 4,
    "runningSequences": 32,
    "kvCacheUsedRatio": 0.85,
    "gpuUtilizationPercent": 90,
    "gpuMemoryUsedMib": 22000,
}
PREDICTOR = f"{FULLNAME}-predictor"
OWN = f'namespace="{NAMESPACE}",inferenceservice="{FULLNAME}"'


def scaled(mode: str, **more: Any) -> list[dict[str, Any]]:
    return render({"autoscaling": {"mode": mode, "targets": ALL_TARGETS, **more}})


def test_kserve_makes_no_autoscaler_and_replicas_have_one_owner() -> None:
    for mode, kept in (("none", "none"), ("hpa", "external"), ("keda", "external")):
        service = named(scaled(mode), "InferenceService")
        assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == kept
        assert ("minReplicas" in service["spec"]["predictor"]) is (mode == "none")


def test_the_hpa_has_every_metric_with_its_target() -> None:
    spec = named(scaled("hpa"), "HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == PREDICTOR
    assert {
        metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"]
        for metric in spec["metrics"]
    } == {
        "qwen3vl_queued_sequences": "4",
        "qwen3vl_running_sequences": "32",
        "qwen3vl_kv_cache_used_ratio": "850m",
        "DCGM_FI_DEV_GPU_UTIL": "90",
        "DCGM_FI_DEV_FB_USED": "22000",
    }


def test_it_grows_at_once_and_shrinks_slowly() -> None:
    behavior = named(scaled("hpa"), "HorizontalPodAutoscaler")["spec"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_the_adapter_knows_each_metric_of_the_hpa_by_the_labels_it_has() -> None:
    objects = scaled("hpa", dcgm={"podLabel": "pod", "namespaceLabel": "exported_namespace"})
    rules = yaml.safe_load(
        named(objects, "ConfigMap", f"{FULLNAME}-adapter-rules")["data"]["config.yaml"]
    )["rules"]
    metrics = named(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [rule["seriesQuery"].partition("{")[0] for rule in rules] == [
        metric["pods"]["metric"]["name"] for metric in metrics
    ]
    by_name = {rule["seriesQuery"].partition("{")[0]: rule for rule in rules}
    assert by_name["qwen3vl_queued_sequences"]["resources"]["overrides"] == {
        "namespace": {"resource": "namespace"},
        "pod": {"resource": "pod"},
    }
    assert by_name["DCGM_FI_DEV_GPU_UTIL"]["resources"]["overrides"] == {
        "exported_namespace": {"resource": "namespace"},
        "pod": {"resource": "pod"},
    }


def test_rules_of_releases_that_share_the_adapter_s_namespace_have_names_of_their_own() -> None:
    def where(namespace: str, adapter: str) -> tuple[str, str]:
        values = {"autoscaling": {"mode": "hpa", "adapter": {"namespace": adapter}}}
        [rules] = of_kind(render(values, namespace=namespace), "ConfigMap")
        return rules["metadata"]["namespace"], rules["metadata"]["name"]

    name = f"{FULLNAME}-adapter-rules"
    assert where("one", "monitoring") == ("monitoring", f"one.{name}")
    assert where("two", "monitoring") == ("monitoring", f"two.{name}")
    # Whoever named it before, where nobody else writes, still finds it.
    assert where("one", "one") == where("one", "") == ("one", name)


def test_null_leaves_a_metric_out() -> None:
    targets = dict.fromkeys(ALL_TARGETS) | {"queuedSequences": 2.5}
    objects = render({"autoscaling": {"mode": "hpa", "targets": targets}})
    [metric] = named(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["target"]["averageValue"] == "2500m"


def test_keda_asks_prometheus_for_the_same() -> None:
    spec = named(scaled("keda"), "ScaledObject")["spec"]
    assert spec["scaleTargetRef"]["name"] == PREDICTOR
    assert [
        (trigger["metadata"]["query"], trigger["metadata"]["threshold"])
        for trigger in spec["triggers"]
    ] == [
        (f"sum(qwen3vl_queued_sequences{{{OWN}}})", "4"),
        (f"sum(qwen3vl_running_sequences{{{OWN}}})", "32"),
        (f"sum(qwen3vl_kv_cache_used_ratio{{{OWN}}})", "0.85"),
        (gpu_query("DCGM_FI_DEV_GPU_UTIL"), "90"),
        (gpu_query("DCGM_FI_DEV_FB_USED"), "22000"),
    ]


def gpu_query(metric: str) -> str:
    labels = f'exported_namespace="{NAMESPACE}",exported_pod=~"{PREDICTOR}-.+"'
    return f"sum(avg by (exported_pod) ({metric}{{{labels}}}))"


def test_zero_replicas_wake_by_the_gateway_and_last_until_nothing_is_open() -> None:
    wake = 'sum(rate(envoy_http_downstream_rq_xx{envoy_response_code_class="5"}[1m]))'
    objects = scaled("keda", minReplicas=0, keda={"wakeQuery": wake, "cooldownSeconds": 60})
    spec = named(objects, "ScaledObject")["spec"]
    assert (spec["minReplicaCount"], spec["cooldownPeriod"]) == (0, 60)
    *_, wakes, keeps = (trigger["metadata"] for trigger in spec["triggers"])
    assert wakes["query"] == wake
    assert keeps["query"] == f"sum(qwen3vl_open_requests{{{OWN}}})"
    assert {one["activationThreshold"] for one in (wakes, keeps)} == {"0"}
    # A threshold that no traffic reaches: they decide between none and one, the others the rest.
    assert all(int(one["threshold"]) >= 1_000_000 for one in (wakes, keeps))


def test_only_the_mode_that_was_asked_for_is_there() -> None:
    own = {"HorizontalPodAutoscaler", "ScaledObject", "ConfigMap"}
    for mode, expected in (
        ("none", set()),
        ("hpa", {"HorizontalPodAutoscaler", "ConfigMap"}),
        ("keda", {"ScaledObject"}),
    ):
        assert {name.partition("/")[0] for name in kinds(scaled(mode))} & own == expected


@pytest.mark.parametrize(
    ("autoscaling", "message"),
    [
        (
            {"mode": "hpa", "minReplicas": 5, "maxReplicas": 3},
            "minReplicas is 5, but maxReplicas 3",
        ),
        ({"mode": "hpa", "minReplicas": 0}, "use autoscaling.mode keda"),
        ({"mode": "keda", "minReplicas": 0}, "set autoscaling.keda.wakeQuery"),
        (
            {"mode": "hpa", "targets": dict.fromkeys(ALL_TARGETS)},
            "autoscaling.targets are all null",
        ),
        ({"mode": "hpa", "targets": {"kvCacheUsedRatio": 80}}, "maximum"),
    ],
)
def test_what_cannot_scale_is_refused(autoscaling: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError) as raised:
        render({"autoscaling": autoscaling})
    assert message in " ".join(str(raised.value).split())
