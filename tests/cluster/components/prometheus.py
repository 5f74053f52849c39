"""Prometheus in the cluster: it scrapes every ready pod of the server each second.

Debian's build knows no Kubernetes, so a container beside it tells it by files what discovery and
prometheus-operator would (`prometheus_files`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import httpx
import yaml

from tests.cluster.components.prometheus_files import CONFIGURATION, TARGETS
from tests.cluster.node.images import server_image
from tests.cluster.tools.cache import sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.cluster.cluster import Cluster
    from tests.cluster.node.api import Json

NAMESPACE: Final = "monitoring"
NAME: Final = "prometheus"
# The operator's name for it, and so the chart's default.
SERVICE: Final = "prometheus-operated"
PORT: Final = 9090
FILES_IMAGE: Final = "prometheus-files:test"
FILES_FOLDER: Final = "/etc/prometheus"
DATA_FOLDER: Final = "/prometheus"
USER: Final = 65534
SCRAPE_SECONDS: Final = 1
START_SECONDS: Final = 120.0
TIMEOUT_SECONDS: Final = 30.0

# prometheus-operator's kinds that the chart makes. Nobody acts on them: `job_of_monitor` and
# `configured` do it for a test.
CRDS: Final = ("podmonitors", "servicemonitors", "prometheusrules")

_POD: Final = "__meta_kubernetes_pod"
_SERVER_LABEL: Final = "serving_kserve_io_inferenceservice"
_OWN_LABELS: Final = [
    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
    {"source_labels": [f"{_POD}_name"], "target_label": "pod"},
]


@dataclass(frozen=True)
class Sample:
    """One series of an answer, now."""

    labels: dict[str, str]
    value: float


@dataclass
class Prometheus:
    """A running Prometheus."""

    cluster: Cluster
    _jobs: list[Json] = field(default_factory=list)
    _groups: list[Json] = field(default_factory=list)

    @cached_property
    def url(self) -> str:
        """Its address for tests and pods alike, as long as the cluster lives."""
        path = f"/api/v1/namespaces/{NAMESPACE}/services/{SERVICE}"
        return f"http://{self.cluster.api.get(path)['spec']['clusterIP']}:{PORT}"

    def query(self, promql: str) -> list[Sample]:
        """What an instant query gives now: a series each."""
        result = self._asked("query", query=promql)["result"]
        return [Sample(one["metric"], float(one["value"][1])) for one in result]

    def value(self, promql: str) -> float | None:
        """The one number that a query gives; None where it gives no series."""
        samples = self.query(promql)
        assert len(samples) <= 1, f"{promql} gives {len(samples)} series"
        return samples[0].value if samples else None

    def rule_groups(self) -> list[Json]:
        """The groups of rules it has, with each rule's health and last error."""
        return list(self._asked("rules")["groups"])

    def wait_for_series(self, promql: str, *, seconds: float = 60.0) -> list[Sample]:
        """The samples of a query, once it gives some."""
        return self.cluster.wait_for(
            lambda: self.query(promql), f"a series of {promql}", seconds=seconds, every=0.5
        )

    @contextmanager
    def configured(
        self, *, jobs: Sequence[Json] = (), groups: Sequence[Json] = ()
    ) -> Iterator[None]:
        """For a while it also has these scrape jobs and groups of rules."""
        self._jobs = [*self._jobs, *jobs]
        self._groups = [*self._groups, *groups]
        try:
            self._configure()
            yield
        finally:
            self._jobs = [job for job in self._jobs if job not in jobs]
            self._groups = [group for group in self._groups if group not in groups]
            self._configure()

    def stop(self) -> None:
        """Let nobody reach it; what it has recorded stays."""
        self._scale(0)
        self.cluster.wait_for(lambda: not self.cluster.pods(NAMESPACE, f"app={NAME}"), "it is gone")
        self.cluster.wait_for(lambda: not self._is_there(), "nobody answers", every=0.2)

    def start(self) -> None:
        """Start it again; return when it answers."""
        self._scale(1)
        self.cluster.wait_for_deployment(NAMESPACE, NAME, seconds=START_SECONDS)
        # kube-proxy leads to the pod a moment after it is ready.
        self.cluster.wait_for(self._is_there, "Prometheus answers", every=0.2)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Stopped for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def install(self) -> None:
        """Make it; return when it answers."""
        server = server_image()
        module = "tests.cluster.components.prometheus_files"
        image = replace(server, entrypoint=(server.entrypoint[0], "-m", module))
        self.cluster.add_image(FILES_IMAGE, image)
        # Outside of the pod, which goes with `stop`.
        data = self.cluster.machine.folder / NAME
        data.mkdir()
        data.chmod(0o777)
        kubeconfig = self.cluster.kubeconfig.read_text()
        self._apply_crds()
        self.cluster.apply(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
                self._configuration(),
                _object("Secret", NAME, stringData={"kubeconfig": kubeconfig}),
                _service(),
                _deployment(str(data)),
            ]
        )
        self.start()

    def _apply_crds(self) -> None:
        names = [f"{name}.monitoring.coreos.com" for name in CRDS]
        for name in CRDS:
            path = sources("prometheus-operator") / "crds" / f"monitoring.coreos.com_{name}.yaml"
            self.cluster.kubectl("apply", "--server-side", "-f", str(path))
        self.cluster.kubectl(
            *("wait", "--for=condition=Established", "--timeout=60s"),
            *(f"crd/{name}" for name in names),
        )

    def _configure(self) -> None:
        """Return when it has taken over jobs and groups, and has evaluated each group."""
        self.cluster.apply([self._configuration()])
        jobs = {"servers", *(job["job_name"] for job in self._jobs)}
        groups = {group["name"] for group in self._groups}
        self.cluster.wait_for(
            lambda: self._loaded_jobs() == jobs and self._evaluated_groups() == groups,
            f"Prometheus has jobs {jobs} and rules {groups}",
            every=0.5,
        )

    def _configuration(self) -> Json:
        configuration = {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": "1s"},
            "rule_files": [f"{FILES_FOLDER}/rules.yml"],
            "scrape_configs": [
                job | {"file_sd_configs": [{"files": [f"{FILES_FOLDER}/{TARGETS}"]}]}
                for job in (_server_job(), *self._jobs)
            ],
        }
        data = {
            CONFIGURATION: yaml.safe_dump(configuration, sort_keys=False),
            "rules.yml": yaml.safe_dump({"groups": self._groups}, sort_keys=False),
        }
        return _object("ConfigMap", NAME, data=data)

    def _loaded_jobs(self) -> set[str]:
        loaded = yaml.safe_load(self._asked("status/config")["yaml"])
        return {job["job_name"] for job in loaded["scrape_configs"]}

    def _evaluated_groups(self) -> set[str]:
        return {
            group["name"]
            for group in self.rule_groups()
            if not group["lastEvaluation"].startswith("0001-")
        }

    def _scale(self, replicas: int) -> None:
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}/scale"
        self.cluster.api.patch(path, {"spec": {"replicas": replicas}})

    def _is_there(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _asked(self, what: str, **parameters: str) -> Json:
        answer = httpx.get(
            f"{self.url}/api/v1/{what}", params=parameters, timeout=TIMEOUT_SECONDS, trust_env=False
        )
        body = answer.json()
        assert body["status"] == "success", f"{parameters or what}: {body.get('error')}"
        result: Json = body["data"]
        return result


def job_of_monitor(monitor: Json) -> Json:
    """The scrape job that prometheus-operator makes of a PodMonitor with one endpoint."""
    metadata, spec = monitor["metadata"], monitor["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    keeps = [
        *(_keep(f"label_{_name(key)}", value) for key, value in _wanted_labels(spec["selector"])),
        _keep("container_port_name", endpoint["port"]),
        {
            "action": "keep",
            "source_labels": ["__meta_kubernetes_namespace"],
            "regex": metadata["namespace"],
        },
    ]
    own = [_snake_case(one) for one in endpoint.get("relabelings") or ()]
    return {
        "job_name": f"{metadata['namespace']}/{metadata['name']}",
        "metrics_path": endpoint.get("path", "/metrics"),
        "honor_labels": endpoint.get("honorLabels", False),
        "relabel_configs": [*keeps, *_OWN_LABELS, *own],
    }


def _wanted_labels(selector: Json) -> Iterator[tuple[str, str]]:
    """Label and pattern of its value."""
    yield from (selector.get("matchLabels") or {}).items()
    for one in selector.get("matchExpressions") or ():
        assert one["operator"] == "In", one
        yield one["key"], "|".join(one["values"])


def _server_job() -> Json:
    inference_service = {
        "source_labels": [f"{_POD}_label_{_SERVER_LABEL}"],
        "target_label": "inferenceservice",
    }
    keeps = [
        _keep(f"labelpresent_{_SERVER_LABEL}", "true"),
        _keep("container_port_name", "http1"),
        _keep("ready", "true"),
    ]
    return {"job_name": "servers", "relabel_configs": [*keeps, *_OWN_LABELS, inference_service]}


def _keep(what: str, pattern: str) -> Json:
    return {"action": "keep", "source_labels": [f"{_POD}_{what}"], "regex": pattern}


def _name(label: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def _snake_case(relabeling: Json) -> Json:
    """The object's spelling as the configuration file's."""
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return {names.get(key, key): value for key, value in relabeling.items()}


def _object(kind: str, name: str, **rest: object) -> Json:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest}


def _service() -> Json:
    ports = [{"name": "web", "port": PORT}]
    return _object("Service", SERVICE, spec={"selector": {"app": NAME}, "ports": ports})


def _deployment(data: str) -> Json:
    """Prometheus, and the container that writes its files; that one starts first."""
    files = {"name": "files", "mountPath": FILES_FOLDER}
    writer = {
        "name": "files",
        "image": FILES_IMAGE,
        "restartPolicy": "Always",
        "args": ["/etc/cluster/kubeconfig", NAMESPACE, NAME, FILES_FOLDER],
        "volumeMounts": [files, {"name": "kubeconfig", "mountPath": "/etc/cluster"}],
        "startupProbe": {
            "exec": {"command": ["test", "-e", f"{FILES_FOLDER}/{CONFIGURATION}"]},
            "periodSeconds": 1,
            "failureThreshold": int(START_SECONDS),
        },
    }
    prometheus = {
        "name": NAME,
        "image": "prom/prometheus:v2.42.0",
        "args": [
            f"--config.file={FILES_FOLDER}/{CONFIGURATION}",
            f"--storage.tsdb.path={DATA_FOLDER}",
            f"--web.listen-address=:{PORT}",
            "--web.enable-lifecycle",
            # Pods that come and go: by default it looks for them each five seconds.
            "--scrape.discovery-reload-interval=500ms",
        ],
        "ports": [{"name": "web", "containerPort": PORT}],
        "volumeMounts": [files, {"name": "data", "mountPath": DATA_FOLDER}],
        "readinessProbe": {
            "httpGet": {"path": "/-/ready", "port": PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        },
    }
    pod = {
        "securityContext": {"runAsUser": USER},
        "terminationGracePeriodSeconds": 10,
        "initContainers": [writer],
        "containers": [prometheus],
        "volumes": [
            {"name": "files", "emptyDir": {}},
            {"name": "data", "hostPath": {"path": data}},
            {"name": "kubeconfig", "secret": {"secretName": NAME}},
        ],
    }
    labels = {"app": NAME}
    spec = {
        "replicas": 0,
        # Two would write the same series.
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return _object("Deployment", NAME, spec=spec) | {"apiVersion": "apps/v1"}


def install_prometheus(cluster: Cluster) -> Prometheus:
    """A Prometheus in namespace `monitoring`, which answers."""
    prometheus = Prometheus(cluster)
    prometheus.install()
    return prometheus
