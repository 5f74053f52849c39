"""Stand-ins for exporters of what is not here: their figures are the test's, their labels real.

A stand-in is a pod that serves a file, which the test writes with prometheus-client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.cluster import Cluster
    from tests.cluster.node.api import Json

NAMESPACE: Final = "exporters"
PORT: Final = 9400  # DCGM exporter's
UTILIZATION: Final = "DCGM_FI_DEV_GPU_UTIL"
# What a GPU shows all the time: name → help as the exporter has it, figure.
STEADY: Final = {
    "DCGM_FI_DEV_FB_USED": ("Framebuffer memory used (in MiB).", 18_000),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": ("Ratio of cycles the tensor (HMMA) pipe is active.", 0.3),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("Ratio of cycles the device memory interface is active.", 0.5),
}
GPU_LABELS: Final = (
    *("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname"),
    *("DCGM_FI_DRIVER_VERSION", "container", "namespace", "pod"),
)


class Exporter:
    """A pod whose `/metrics` a test writes."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self._cluster = cluster
        self._folder: Path = cluster.machine.folder / "exporters" / name

    def job(self) -> Json:
        """Prometheus' job for it, with the pod's own labels, as its operator would make it."""
        meta = "__meta_kubernetes"
        wanted = {
            "action": "keep",
            "source_labels": [f"{meta}_namespace", f"{meta}_pod_label_app"],
            "regex": f"{NAMESPACE};{self.name}",
        }
        own = [
            {"source_labels": [f"{meta}_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{meta}_pod_name"], "target_label": "pod"},
        ]
        # honor_labels is off, as in DCGM exporter's chart: its pod becomes exported_pod.
        return {"job_name": self.name, "relabel_configs": [wanted, *own]}

    def write(self, registry: CollectorRegistry) -> None:
        """From now on this is what it tells."""
        write_to_textfile(str(self._folder / "metrics"), registry)

    def start(self) -> None:
        """Return when it is ready; it tells nothing at first."""
        self._folder.mkdir(parents=True)
        self.write(CollectorRegistry())
        self._cluster.apply(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
                self._deployment(),
            ]
        )
        self._cluster.wait_for_deployment(NAMESPACE, self.name, seconds=120)

    def _deployment(self) -> Json:
        container = {
            "name": "exporter",
            "image": "busybox",
            "command": ["python3", "-m", "http.server", str(PORT), "--directory", "/figures"],
            "ports": [{"name": "metrics", "containerPort": PORT}],
            "volumeMounts": [{"name": "figures", "mountPath": "/figures", "readOnly": True}],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        }
        pod = {
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "figures", "hostPath": {"path": str(self._folder)}}],
        }
        labels = {"app": self.name}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }


class Gpus(Exporter):
    """DCGM exporter of a cluster in which each of the server's pods has one GPU."""

    def share(self, load_percent: float, ready: list[Json], pods: list[Json]) -> None:
        """Spread a load over the ready pods: 250 keeps two GPUs busy and half of a third one.

        pods: all that hold a GPU; those that are not ready do nothing with theirs
        """
        each = min(100.0, load_percent / max(len(ready), 1))
        busy = {pod["metadata"]["name"] for pod in ready}
        registry = CollectorRegistry()
        utilization = Gauge(UTILIZATION, "GPU utilization (in %).", GPU_LABELS, registry=registry)
        steady = [
            (Gauge(name, text, GPU_LABELS, registry=registry), figure)
            for name, (text, figure) in STEADY.items()
        ]
        for index, pod in enumerate(pods):
            labels = _gpu_labels(pod, index)
            utilization.labels(**labels).set(each if pod["metadata"]["name"] in busy else 0)
            for gauge, figure in steady:
                gauge.labels(**labels).set(figure)
        self.write(registry)


def _gpu_labels(pod: Json, index: int) -> dict[str, str]:
    return {
        "gpu": "0",
        "UUID": f"GPU-{pod['metadata']['uid']}",
        "pci_bus_id": f"00000000:{index:02X}:00.0",
        "device": "nvidia0",
        "modelName": "NVIDIA L4",
        "Hostname": pod["spec"].get("nodeName", ""),
        "DCGM_FI_DRIVER_VERSION": "580.95.05",
        "container": "kserve-container",
        "namespace": pod["metadata"]["namespace"],
        "pod": pod["metadata"]["name"],
    }
