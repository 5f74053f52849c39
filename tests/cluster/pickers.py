"""The endpoint pickers of a release: which they are, how much they have picked, and their end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.serving import sample

if TYPE_CHECKING:
    from tests.cluster.node.api import Json
    from tests.cluster.release import Release

POOLS: Final = ("openai", "v2", "grpc")
METRICS_PORT: Final = 9090
PICKED: Final = "inference_objective_request_total"
READY_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Pickers:
    """Those of one release, in each of its pools."""

    release: Release

    def pods(self, pool: str) -> list[Json]:
        """Those of a pool."""
        return self.release.cluster.pods(self.release.namespace, self._selector(pool))

    def names(self) -> set[str]:
        """The names of the pods of all pools."""
        return {pod["metadata"]["name"] for pool in POOLS for pod in self.pods(pool)}

    def num_picked(self, pool: str) -> float:
        """Requests for which those of a pool that are ready have named a pod."""
        return sum(_num_picked(pod) for pod in self.ready(pool))

    def wait_until_ready(self) -> None:
        """Wait until all are."""
        for pool in POOLS:
            deployment = f"{self.release.service_name}-{pool}-picker"
            self.release.cluster.wait_for_deployment(
                self.release.namespace, deployment, seconds=READY_SECONDS
            )

    def crash(self, names: set[str]) -> None:
        """SIGKILL to some, at once. They come back at once too; after a second one, after ten s."""
        crash = partial(self.release.cluster.crash, self.release.namespace)
        with ThreadPoolExecutor() as threads:
            list(threads.map(crash, names))

    def ready(self, pool: str) -> list[Json]:
        """Those of a pool that are ready."""
        return self.release.cluster.ready_pods(self.release.namespace, self._selector(pool))

    def _selector(self, pool: str) -> str:
        name, instance = f"qwen3-vl-{pool}-picker", self.release.name
        return f"app.kubernetes.io/name={name},app.kubernetes.io/instance={instance}"


def _num_picked(pod: Json) -> float:
    return sample(f"http://{pod['status']['podIP']}:{METRICS_PORT}", PICKED)
