"""The chart's autoscalers under the real ones: GPU and queue figures make pods, and take them back.

Only the GPUs' figures are made up; Prometheus, adapter, KEDA, HPA controller and server are real.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge

from tests.chart.helm import CHART
from tests.cluster.components.prometheus import NAMESPACE as MONITORING
from tests.cluster.inference import MODEL, v2_request
from tests.cluster.machine.control_plane import HPA_SYNC_SECONDS
from tests.cluster.release import merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.adapter import Adapter
    from tests.cluster.components.dcgm import Exporter, Gpus
    from tests.cluster.components.kserve import KServe
    from tests.cluster.components.prometheus import Prometheus
    from tests.cluster.node.api import Json

FULLNAME: Final = "photos-qwen3-vl"
PREDICTOR: Final = f"{FULLNAME}-predictor"
SELECTOR: Final = f"app=isvc.{PREDICTOR}"
MAX_REPLICAS: Final = 3
SCALE_SECONDS: Final = 300.0
LOOK_SECONDS: Final = 0.5
# As many decisions of the HPA's controller as show that it has settled.
STAY_SECONDS: Final = 10 * HPA_SYNC_SECONDS
# Up at once, as the chart's own values; down after seconds, not minutes.
QUICK: Final[Json] = {
    "probes": {"startup": {"periodSeconds": 1}, "readiness": {"periodSeconds": 1}},
    "shutdown": {"unreadySeconds": 1, "drainSeconds": 10},
    "autoscaling": {
        "minReplicas": 1,
        "maxReplicas": MAX_REPLICAS,
        "targets": {"queuedSequences": None, "kvCacheUsedRatio": None},
        "behavior": {
            "scaleDown": {
                "stabilizationWindowSeconds": 5,
                "policies": [{"type": "Percent", "value": 100, "periodSeconds": 1}],
            }
        },
        "adapter": {"namespace": MONITORING},
        "keda": {"pollingSeconds": 1, "cooldownSeconds": 5},
    },
}
# Low, so that one busy GPU asks for both others at once, which then start side by side.
GPU_TARGET_PERCENT: Final = 30
NUM_CLIENTS: Final = 12
QUEUE_TARGET: Final = 2
REJECTED: Final = 'envoy_http_downstream_rq_xx{envoy_response_code_class="5"}'
# So that few clients make a queue.
ONE_AT_A_TIME: Final = {"engine": {"max_sequences": 1}}
# Of each release, by what scales it.
VALUES: Final[dict[str, Json]] = {
    "gpu": {
        "autoscaling": {
            "mode": "hpa",
            "targets": {"gpuUtilizationPercent": GPU_TARGET_PERCENT},
        },
    },
    "queue": {
        "settings": ONE_AT_A_TIME,
        "autoscaling": {"mode": "hpa", "targets": {"queuedSequences": QUEUE_TARGET}},
    },
    "keda": {
        "settings": ONE_AT_A_TIME,
        "autoscaling": {
            "mode": "keda",
            "minReplicas": 0,
            "targets": {"queuedSequences": QUEUE_TARGET},
            "keda": {"wakeQuery": REJECTED},
        },
    },
}


class Scaled:
    """A release that something scales, and the numbers of replicas it was told to have."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.namespace = namespace
        self.wanted: list[int] = []  # without repetitions
        self._cluster = cluster

    def install(self, values: Json) -> None:
        """`helm install`; return at once."""
        self._cluster.helm(
            *("install", "photos", str(CHART), "--namespace", self.namespace, "--values", "-"),
            stdin=yaml.safe_dump(merged(QUICK, values)),
        )

    @property
    def rules(self) -> str:
        """The ConfigMap with its rules, in the adapter's namespace."""
        return f"{self.namespace}.{FULLNAME}-adapter-rules"

    @property
    def url(self) -> str:
        """The Service's."""
        path = f"/api/v1/namespaces/{self.namespace}/services/{PREDICTOR}"
        return f"http://{self._cluster.api.get(path)['spec']['clusterIP']}"

    def ready(self) -> list[Json]:
        """Its ready pods."""
        return self._cluster.ready_pods(self.namespace, SELECTOR)

    def pods(self) -> list[Json]:
        """All pods that it is to keep."""
        pods = self._cluster.pods(self.namespace, SELECTOR)
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]

    def wait_for(self, num_ready: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until so many pods are wanted and ready; note what is wanted on the way."""

        def look() -> bool:
            meanwhile()
            wanted = self._note()
            return wanted == len(self.ready()) == num_ready

        try:
            self._cluster.wait_for(
                look, f"{num_ready} pods are ready", seconds=SCALE_SECONDS, every=LOOK_SECONDS
            )
        except AssertionError as error:
            kinds = ("hpa,scaledobject,deployment", "--namespace", self.namespace)
            described = self._cluster.kubectl("describe", *kinds)
            raise AssertionError(f"{error}; wanted were {self.wanted}\n{described}") from None

    def stay(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Note for a while what is wanted."""
        ended = threading.Event()
        threading.Timer(seconds, ended.set).start()
        while not ended.wait(LOOK_SECONDS):
            meanwhile()
            self._note()

    def has_gone_up_and_down_once(self) -> bool:
        """Whether replicas never fell before they were most, and never rose after."""
        top = self.wanted.index(max(self.wanted))
        rises = all(one < next_one for one, next_one in pairwise(self.wanted[: top + 1]))
        falls = all(one > next_one for one, next_one in pairwise(self.wanted[top:]))
        return rises and falls

    def _note(self) -> int | None:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{PREDICTOR}"
        deployment = self._cluster.api.find(path)
        if deployment is None:
            return None
        wanted = int(deployment["spec"]["replicas"])
        if self.wanted[-1:] != [wanted]:
            self.wanted.append(wanted)
        return wanted


@pytest.fixture(scope="module")
def releases(
    cluster: Cluster, kserve: KServe, prometheus: Prometheus
) -> Iterator[dict[str, Scaled]]:
    """A release for each test, by what scales it: all are installed at once, and start together."""
    assert kserve.cluster is prometheus.cluster is cluster
    with ExitStack() as stack:
        made = {}
        for name, values in VALUES.items():
            made[name] = Scaled(cluster, stack.enter_context(cluster.namespace(name)))
            made[name].install(values)
        yield made
        for one in made.values():
            # Not all of it lies in the namespace, and goes with it.
            cluster.helm("uninstall", "photos", "--namespace", one.namespace)


@pytest.fixture(scope="module")
def scaled(
    releases: dict[str, Scaled],
    adapter: Adapter,
    keda: None,
    gpus: Gpus,
    gateway_figures: Exporter,
    sample_image: bytes,
) -> Iterator[dict[str, Future[Scaled]]]:
    """Each release, once it has been scaled up and down: side by side, as they mostly wait."""
    gpu, queue, woken = (releases[name] for name in ("gpu", "queue", "keda"))
    adapter.read_rules(gpu.rules, queue.rules)
    # A flood takes both cores: one after the other.
    turn = threading.Lock()
    with ThreadPoolExecutor() as threads:
        yield {
            "gpu": threads.submit(scale_by_gpus, gpu, gpus),
            "queue": threads.submit(scale_by_queue, queue, turn, sample_image),
            "keda": threads.submit(scale_by_keda, woken, gateway_figures, turn, sample_image),
        }


def test_busy_gpus_make_three_pods_of_one_and_idle_ones_one_of_three(
    scaled: dict[str, Future[Scaled]],
) -> None:
    release = scaled["gpu"].result()
    assert release.has_gone_up_and_down_once(), release.wanted


def scale_by_gpus(scaled: Scaled, gpus: Gpus) -> Scaled:
    """Wait for three pods of one, and for one of three; each stays for a while."""

    def busy() -> None:
        # As much as keeps three pods at their target.
        gpus.share(3 * GPU_TARGET_PERCENT, scaled.ready(), scaled.pods())

    def idle() -> None:
        gpus.share(5, scaled.ready(), scaled.pods())

    idle()
    scaled.wait_for(1, idle)
    scaled.wait_for(3, busy)
    scaled.stay(STAY_SECONDS, busy)
    scaled.wait_for(1, idle)
    scaled.stay(STAY_SECONDS, idle)
    return scaled


def test_a_queue_alone_does_it_too(scaled: dict[str, Future[Scaled]]) -> None:
    release = scaled["queue"].result()
    assert release.has_gone_up_and_down_once(), release.wanted


def scale_by_queue(scaled: Scaled, turn: threading.Lock, picture: bytes) -> Scaled:
    """Wait for three pods of one, which stay for a while, and for one of three."""
    scaled.wait_for(1)
    with turn, flood(scaled.url, picture):
        scaled.wait_for(3)
        scaled.stay(STAY_SECONDS)
    scaled.wait_for(1)
    return scaled


def test_keda_wakes_a_pod_adds_two_and_takes_all_away(scaled: dict[str, Future[Scaled]]) -> None:
    release = scaled["keda"].result()
    assert release.has_gone_up_and_down_once(), release.wanted


def scale_by_keda(
    scaled: Scaled, gateway_figures: Exporter, turn: threading.Lock, picture: bytes
) -> Scaled:
    """Wait for a pod of none, for three of one, and for none of three."""
    refused(gateway_figures, 0)
    scaled.wait_for(0)
    scaled.wanted.clear()
    with turn:
        # The gateway has nobody to send a request to.
        refused(gateway_figures, 1)
        scaled.wait_for(1)
        refused(gateway_figures, 0)
        with flood(scaled.url, picture):
            scaled.wait_for(3)
    scaled.wait_for(0)
    return scaled


@contextmanager
def flood(url: str, picture: bytes) -> Iterator[None]:
    """More clients than are answered at once, each asking again when it is answered."""
    stopped = threading.Event()
    body = v2_request(picture, max_tokens=32)
    # A connection each, so that new pods get their share.
    limits = httpx.Limits(max_keepalive_connections=0)
    client = httpx.Client(base_url=url, timeout=60, trust_env=False, limits=limits)

    def ask() -> None:
        while not stopped.is_set():
            try:
                client.post(f"/v2/models/{MODEL}/infer", json=body)
            except httpx.HTTPError:
                stopped.wait(1)

    clients = [threading.Thread(target=ask) for _ in range(NUM_CLIENTS)]
    for one in clients:
        one.start()
    try:
        yield
    finally:
        stopped.set()
        for one in clients:
            one.join()
        client.close()


def refused(exporter: Exporter, num_requests: int) -> None:
    """What a gateway tells of requests that found no pod."""
    registry = CollectorRegistry()
    name, label = "envoy_http_downstream_rq_xx", "envoy_response_code_class"
    Gauge(name, "Responses", [label], registry=registry).labels("5").set(num_requests)
    exporter.write(registry)
