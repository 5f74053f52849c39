"""Custom resource definitions as upstream's files have them.

As text: several megabytes of YAML, which Python would take half a minute to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.cluster.cluster import condition
from tests.cluster.tools.cache import sources

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

MARK: Final = "kind: CustomResourceDefinition"
CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ESTABLISH_SECONDS: Final = 60.0


def crds_of(source: str) -> str:
    """All CRDs of one of the pinned sources, and nothing else that lies beside them."""
    texts = [path.read_text() for path in sorted((sources(source) / "crds").glob("*.yaml"))]
    return "\n---\n".join(text for text in texts if MARK in text)


def apply_crds(cluster: Cluster, *crds: str) -> None:
    """Apply them; return when their objects can be applied."""
    cluster.apply("\n---\n".join(crds))

    def are_established() -> bool:
        return all(condition(one, "Established") for one in cluster.api.get(CRDS)["items"])

    # `kubectl wait` watches one after the other, and takes seconds where all is well.
    cluster.wait_for(are_established, "all CRDs are established", seconds=ESTABLISH_SECONDS)
