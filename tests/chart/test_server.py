"""The InferenceService and what stands beside it, as the cluster is given them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.serving.arguments import parse_settings
from model.serving.server import STRAGGLER_SECONDS
from model.settings import Settings, environment_names
from tests.chart.helm import (
    FULLNAME,
    NAMESPACE,
    HelmError,
    container,
    environment,
    kinds,
    named,
    of_kind,
    render,
)


def predictor(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec = named(objects, "InferenceService")["spec"]["predictor"]
    assert isinstance(spec, dict)
    return spec


def served(objects: list[dict[str, Any]]) -> Settings:
    """The settings that the server reads from the arguments and variables the chart gives it."""
    variables = {
        name: value if isinstance(value, str) else "redis://secret:6379/0"
        for name, value in environment(objects).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        settings, unused = parse_settings(container(objects)["args"], variables)
    assert not unused
    return settings


def test_nothing_set_installs_the_bundled_model_without_a_gpu() -> None:
    objects = render()
    assert kinds(objects) == [
        f"InferenceService/{FULLNAME}",
        f"NetworkPolicy/{FULLNAME}",
        f"Pod/{FULLNAME}-test",
        f"PodDisruptionBudget/{FULLNAME}",
        f"ServiceAccount/{FULLNAME}",
    ]
    assert served(objects).model == Settings().model
    assert "nvidia.com/gpu" not in json.dumps(objects)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        pytest.param("photos", "photos-qwen3-vl", id="the chart's name is added"),
        pytest.param("qwen3-vl-canary", "qwen3-vl-canary", id="unless the release has it"),
        pytest.param("a" * 53, "a" * 45, id="long names leave room for KServe's suffix"),
    ],
)
def test_the_release_names_the_inferenceservice(release: str, expected: str) -> None:
    [service] = of_kind(render(release=release), "InferenceService")
    assert service["metadata"]["name"] == expected
    assert len(f"{expected}-predictor") <= 63


def test_ports_are_named_so_that_kserve_routes_http_and_grpc() -> None:
    ports = container(render())["ports"]
    assert [(port["name"], port["containerPort"]) for port in ports] == [
        ("http1", 8080),
        ("h2c", 8081),
    ]
    assert (served(render()).server.http_port, served(render()).server.grpc_port) == (8080, 8081)


@pytest.mark.parametrize(
    ("model", "directory", "hub"),
    [
        pytest.param({}, None, None, id="bundled"),
        pytest.param(
            {"source": "storage", "storageUris": [{"uri": "s3://b/m"}]},
            "/mnt/models",
            None,
            id="s3",
        ),
        pytest.param(
            {"source": "hub", "hub": {"id": "Qwen/Qwen3-VL-4B-Instruct", "revision": "abc"}},
            None,
            ("Qwen/Qwen3-VL-4B-Instruct", "abc"),
            id="hub",
        ),
        pytest.param(
            {"source": "pvc", "pvc": {"claimName": "w", "subPath": "8b"}},
            "/mnt/models",
            None,
            id="pvc",
        ),
        pytest.param({"source": "path", "path": "/models/8b"}, "/models/8b", None, id="path"),
    ],
)
def test_the_server_is_told_where_the_weights_are(
    model: dict[str, Any], directory: str | None, hub: tuple[str, str] | None
) -> None:
    settings = served(render({"model": model})).model
    assert str(settings.dir) == str(directory)
    assert (settings.id, settings.revision) == (hub or (None, None))


def test_one_uri_goes_by_the_variable_that_caches_see_and_several_by_the_list() -> None:
    one = render({"model": {"source": "storage", "storageUris": [{"uri": "s3://b/m"}]}})
    assert environment(one)["STORAGE_URI"] == "s3://b/m"
    assert "storageUris" not in predictor(one)
    uris = [
        {"uri": "s3://b/m", "mountPath": "/mnt/models/base"},
        {"uri": "s3://b/n", "mountPath": "/mnt/models/more"},
    ]
    several = render({"model": {"source": "storage", "storageUris": uris}})
    assert "STORAGE_URI" not in environment(several)
    assert predictor(several)["storageUris"] == uris
    assert str(served(several).model.dir) == "/mnt/models/base"


def test_every_setting_of_the_server_can_be_set_with_its_type() -> None:
    values = {
        "settings": {
            "model": {"device": "cuda:0,cuda:1"},
            "engine": {"max_sequences": 128, "memory_ratio": 0.85, "prefix_cache": False},
            "image": {"max_source_pixels": 90_000_000, "url_domains": ["a.org", "*.b.org"]},
            "request": {"default_prompt": 'Say "hi", please.'},
            "jobs": {"keep_seconds": 3600},
            "server": {"cors_origins": ["https://app.example.com"]},
        },
        "model": {"aliases": ["vision", "gpt-4o"], "dtype": "float16"},
        "redis": {"existingSecret": "jobs"},
        "networkPolicy": {"enabled": False},
    }
    settings = served(render(values))
    for section, fields in values["settings"].items():
        for name, value in fields.items():
            read = getattr(getattr(settings, section), name)
            assert (list(read) if isinstance(read, tuple) else read) == value
    assert settings.model.names == ("qwen3-vl", "vision", "gpt-4o")
    assert settings.model.dtype == "float16"
    assert settings.jobs.redis_url is not None


def test_every_variable_is_a_setting_or_known_to_a_library() -> None:
    everything = {
        "model": {"source": "hub", "hub": {"id": "a/b", "token": {"value": "t"}}},
        "redis": {"url": "redis://r:6379"},
        "networkPolicy": {"enabled": False},
        "settings": {"engine": {"max_sequences": 1}},
    }
    names = set(environment(render(everything)))
    assert {name for name in names if name.startswith("QVL_")} <= environment_names()
    assert {name for name in names if not name.startswith("QVL_")} == {
        "HF_HOME",
        "HF_TOKEN",
        "HOME",
    }


def test_the_grace_period_outlasts_the_drain() -> None:
    shutdown = {"preStopSeconds": 3, "unreadySeconds": 7, "drainSeconds": 40}
    objects = render({"shutdown": shutdown})
    settings = served(objects).server
    assert (settings.unready_seconds, settings.drain_seconds) == (7, 40)
    assert container(objects)["lifecycle"]["preStop"] == {"sleep": {"seconds": 3}}
    # Stragglers are told, then gRPC and HTTP stop, one after the other.
    slowest = 3 + 7 + 40 + 3 * STRAGGLER_SECONDS
    assert predictor(objects)["terminationGracePeriodSeconds"] >= slowest + 3


def test_the_startup_probe_covers_its_time_and_asks_for_readiness() -> None:
    objects = render({"probes": {"startup": {"periodSeconds": 7, "timeoutSeconds": 100}}})
    startup = container(objects)["startupProbe"]
    assert startup["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert 100 <= startup["periodSeconds"] * startup["failureThreshold"] < 107
    assert container(objects)["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_a_gpu_is_asked_for_tolerated_and_selected() -> None:
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    spot = {"key": "spot", "operator": "Exists"}
    required = {"nodeSelectorTerms": [{"matchExpressions": [zone]}, {"matchExpressions": [spot]}]}
    objects = render(
        {
            "gpu": {"enabled": True, "count": 2, "products": ["NVIDIA-L4"]},
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
            },
            "tolerations": [{"key": "spot", "operator": "Exists"}],
        }
    )
    resources = container(objects)["resources"]
    assert resources["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "2"}
    assert resources["requests"] == {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": "2"}
    assert [one["key"] for one in predictor(objects)["tolerations"]] == ["spot", "nvidia.com/gpu"]
    terms = predictor(objects)["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    # Terms are alternatives: the product is asked for in each.
    product = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
    assert [term["matchExpressions"] for term in terms] == [[zone, product], [spot, product]]


def test_the_server_may_not_write_gain_rights_or_reach_the_cluster() -> None:
    objects = render()
    assert container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    pod = predictor(objects)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    # With a read-only root, what libraries write must have a place.
    mounts = {one["mountPath"] for one in container(objects)["volumeMounts"]}
    assert environment(objects)["HOME"] in mounts


@pytest.mark.parametrize(
    ("gpu", "read_only"),
    [
        ({"enabled": True}, True),
        ({"enabled": True, "writableRoot": True}, False),
        ({"enabled": False, "writableRoot": True}, True),
    ],
)
def test_only_the_gpu_switch_makes_the_root_writable(gpu: dict[str, bool], read_only: bool) -> None:
    context = container(render({"gpu": gpu}))["securityContext"]
    assert context["readOnlyRootFilesystem"] is read_only


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        pytest.param({}, None, id="the bundled model needs none"),
        pytest.param({"model": {"source": "hub", "hub": {"id": "a/b"}}}, [443], id="the hub"),
        pytest.param(
            {"settings": {"image": {"url_domains": ["*"]}}}, [443, 80], id="pictures by URL"
        ),
    ],
)
def test_the_internet_is_open_by_need_and_never_inwards(
    values: dict[str, Any], ports: list[int] | None
) -> None:
    egress = named(render(values), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in egress[0]["ports"]] == [53, 53]
    if ports is None:
        assert len(egress) == 1
        return
    assert [port["port"] for port in egress[1]["ports"]] == ports
    ipv4, ipv6 = (peer["ipBlock"] for peer in egress[1]["to"])
    assert {"169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(
        ipv4["except"]
    )
    assert {"fc00::/7", "fe80::/10"} <= set(ipv6["except"])


def test_the_network_policy_selects_the_pods_that_kserve_labels() -> None:
    objects = render()
    selected = named(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= predictor(objects)["labels"].items()


def test_a_new_version_of_the_chart_alone_restarts_no_pod() -> None:
    # KServe hands the InferenceService's labels and annotations on to its pods.
    service = named(render(), "InferenceService")
    shown = json.dumps([service["metadata"]["labels"], service["metadata"]["annotations"]])
    assert "helm.sh/chart" not in shown
    assert "app.kubernetes.io/version" not in shown


def test_knative_gets_what_it_takes_without_feature_flags() -> None:
    objects = render(
        {
            "deploymentMode": "Knative",
            "priorityClassName": "high",
            "knative": {"canaryTrafficPercent": 0, "maxReplicas": 9},
        }
    )
    pod = predictor(objects)
    refused = {
        "securityContext",
        "topologySpreadConstraints",
        "priorityClassName",
        "terminationGracePeriodSeconds",
    }
    assert not refused & pod.keys()
    assert (pod["canaryTrafficPercent"], pod["maxReplicas"]) == (0, 9)
    assert [port["name"] for port in container(objects)["ports"]] == ["http1"]
    assert container(objects)["securityContext"]["runAsNonRoot"] is True
    annotations = named(objects, "InferenceService")["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Knative"


def test_no_object_of_ours_carries_the_labels_that_kserve_deletes_by() -> None:
    for one in render({"autoscaling": {"mode": "hpa"}}):
        labels = one["metadata"].get("labels", {})
        assert not {"serving.kserve.io/inferenceservice", "component"} <= labels.keys()
        assert one["metadata"]["namespace"] == NAMESPACE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"source": "storage"}}, "name what to fetch in model.storageUris"),
        ({"model": {"source": "hub"}}, "name the model in model.hub.id"),
        ({"model": {"source": "pvc"}}, "name the claim in model.pvc.claimName"),
        ({"model": {"source": "path"}}, "name the folder in model.path"),
        ({"model": {"path": "/m"}}, "set model.source to path, or take the name out"),
        (
            {"model": {"source": "storage", "storageUris": [{"uri": "s3://a"}, {"uri": "s3://b"}]}},
            "each needs its own mountPath",
        ),
        (
            {"model": {"source": "storage", "storageUris": [{"uri": "ftp://b/m"}]}},
            "'ftp://b/m' does not match pattern '^(s3|gs|hf|",
        ),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels has app.kubernetes.io/name"),
        ({"podLabels": {"app": "x"}}, "podLabels has app, which the chart or KServe sets"),
        ({"commonLabels": {"app.kubernetes.io/instance": "x"}}, "commonLabels has app.kubernetes"),
        ({"commonLabels": {"helm.sh/chart": "x"}}, "commonLabels has helm.sh/chart"),
        (
            {
                "model": {
                    "source": "hub",
                    "hub": {"id": "a/b", "token": {"value": "t", "existingSecret": "s"}},
                }
            },
            "take one out",
        ),
        ({"redis": {"url": "redis://r"}}, "add it to networkPolicy.extraEgress"),
        ({"redis": {"url": "redis://r", "existingSecret": "s"}}, "take one out"),
        ({"rollout": {"maxSurge": 0}}, "no pod could ever be replaced"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "could ever be drained"),
        ({"extraEnv": [{"name": "QVL_ENGINE__X", "value": "1"}]}, "set it in settings"),
        (
            {"deploymentMode": "Knative", "autoscaling": {"mode": "hpa"}},
            "Knative, which scales by itself",
        ),
        ({"knative": {"canaryTrafficPercent": 5}}, "KServe ignores it"),
        ({"settings": {"engine": {"max_sequence": 5}}}, "'max_sequence' not allowed"),
        ({"settings": {"engine": {"max_sequences": 0}}}, "minimum"),
        ({"settings": {"server": {"http_port": 80}}}, "'http_port' not allowed"),
        ({"gpu": {"counts": 2}}, "'counts' not allowed"),
        ({"replicas": "two"}, "want integer"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_way_out(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(HelmError) as raised:
        render(values)
    assert message in " ".join(str(raised.value).split())
