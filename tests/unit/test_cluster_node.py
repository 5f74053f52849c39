"""The node of the cluster tests: what it says of a pod."""

from __future__ import annotations

import pytest

from tests.cluster.node.container import Observed
from tests.cluster.node.status import pod_status

RUNNING = Observed(state={"running": {"startedAt": "2026-01-01T00:00:00Z"}})


def ended(status: int) -> Observed:
    """A container that has ended so."""
    return Observed(state={"terminated": {"exitCode": status}})


@pytest.mark.parametrize(
    ("policy", "containers", "phase"),
    [
        pytest.param("Always", [Observed()], "Pending", id="none has begun"),
        pytest.param("Always", [RUNNING], "Running", id="it runs"),
        pytest.param("Never", [ended(0)], "Succeeded", id="it has done its work"),
        pytest.param("Never", [ended(0), ended(3)], "Failed", id="one of two has failed"),
        pytest.param("Never", [ended(3), RUNNING], "Running", id="the other one goes on"),
        pytest.param("Always", [ended(137)], "Running", id="a crash, before it is restarted"),
        pytest.param("OnFailure", [ended(1)], "Running", id="a failure, before it is restarted"),
        pytest.param("OnFailure", [ended(0)], "Succeeded", id="a failure that was made good"),
    ],
)
def test_a_pod_s_phase_is_what_a_kubelet_would_say(
    policy: str, containers: list[Observed], phase: str
) -> None:
    names = [f"container-{index}" for index in range(len(containers))]
    spec = {"restartPolicy": policy, "containers": [{"name": one, "image": "x"} for one in names]}
    pod = {"metadata": {"name": "pod"}, "spec": spec, "status": {}}
    observed = dict(zip(names, containers, strict=True))
    told = pod_status(pod, "10.200.1.1", "10.200.0.11", {}, observed, "2026-01-01T00:00:00Z")
    assert told["phase"] == phase
