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
# The lease of a leader that was killed runs out first.
LEADER_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Pickers:
    """Those of one release, in each of its pools."""

    release: Release

    def pods(self, pool: str) -> list[Json]:
        """Those of a pool, the leader and those that wait."""
        return self.release.cluster.pods(self.release.namespace, self._selector(pool))

    def names(self) -> set[str]:
        """The names of the pods of all pools."""
        return {pod["metadata"]["name"] for pool in POOLS for pod in self.pods(pool)}

    def num_picked(self, pool: str) -> float:
        """Requests for which the leader of a pool has named a pod; 0 while there is none."""
        return sum(_num_picked(pod) for pod in self._leaders(pool))

    def wait_until_ready(self) -> None:
        """Wait until each pool has its leader."""
        for pool in POOLS:
            self.release.cluster.wait_for(
                lambda pool=pool: self._leaders(pool),  # type: ignore[misc]
                f"a picker of pool {pool} is ready",
                seconds=LEADER_SECONDS,
            )

    def crash(self) -> None:
        """SIGKILL to all of them, at once."""
        crash = partial(self.release.cluster.crash, self.release.namespace)
        with ThreadPoolExecutor() as threads:
            list(threads.map(crash, self.names()))

    def _leaders(self, pool: str) -> list[Json]:
        return self.release.cluster.ready_pods(self.release.namespace, self._selector(pool))

    def _selector(self, pool: str) -> str:
        name, instance = f"qwen3-vl-{pool}-picker", self.release.name
        return f"app.kubernetes.io/name={name},app.kubernetes.io/instance={instance}"


def _num_picked(pod: Json) -> float:
    return sample(f"http://{pod['status']['podIP']}:{METRICS_PORT}", PICKED)
