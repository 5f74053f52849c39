"""A pod's status, from what its containers are doing: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.cluster.node.container import now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.cluster.node.api import Json
    from tests.cluster.node.container import Observed

WAITING_FOR_INIT: Final = {"waiting": {"reason": "PodInitializing"}}


def pod_status(
    pod: Json,
    address: str,
    host: str,
    inits: Mapping[str, Observed],
    mains: Mapping[str, Observed],
    start_time: str,
) -> Json:
    """The status to be written.

    inits, mains: what is known of the containers that have been begun, by name
    """
    spec = pod["spec"]
    initialized = _initialized(spec, inits)
    containers_ready = initialized and all(
        one["name"] in mains and mains[one["name"]].ready for one in spec["containers"]
    )
    phase = _phase(spec, inits, mains)
    gates = [gate["conditionType"] for gate in spec.get("readinessGates") or ()]
    told = {one["type"]: one["status"] for one in pod["status"].get("conditions") or ()}
    gates_open = all(told.get(gate) == "True" for gate in gates)
    # Once all have ended the pod is not ready, and says why.
    reason = "PodCompleted" if phase == "Succeeded" else "ContainersNotReady"
    conditions = {
        "PodReadyToStartContainers": (True, ""),
        "Initialized": (initialized, "ContainersNotInitialized"),
        "ContainersReady": (containers_ready, reason),
        "Ready": (containers_ready and gates_open, reason),
    }
    return {
        "phase": phase,
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": start_time,
        "conditions": [
            _condition(pod, kind, good, why) for kind, (good, why) in conditions.items()
        ],
        "initContainerStatuses": _statuses(spec.get("initContainers") or (), inits),
        "containerStatuses": _statuses(spec["containers"], mains),
    }


def _phase(spec: Json, inits: Mapping[str, Observed], mains: Mapping[str, Observed]) -> str:
    codes = [
        mains[one["name"]].exit_code if one["name"] in mains else None for one in spec["containers"]
    ]
    if all(code is not None for code in codes):
        policy = spec.get("restartPolicy", "Always")
        if policy != "Always" and not any(codes):
            return "Succeeded"
        # Between two lives it runs: of a failed one a ReplicaSet would make another.
        return "Failed" if policy == "Never" else "Running"
    failed_init = any(
        one["name"] in inits
        and inits[one["name"]].exit_code
        and spec.get("restartPolicy") == "Never"
        and not is_sidecar(one)
        for one in spec.get("initContainers") or ()
    )
    if failed_init:
        return "Failed"
    begun = any(
        "running" in one.state or one.last_state or one.exit_code is not None
        for one in mains.values()
    )
    return "Running" if begun else "Pending"


def is_sidecar(container: Json) -> bool:
    """An init container that goes on beside the others."""
    return container.get("restartPolicy") == "Always"


def _initialized(spec: Json, inits: Mapping[str, Observed]) -> bool:
    return all(
        one["name"] in inits
        and (inits[one["name"]].started if is_sidecar(one) else inits[one["name"]].exit_code == 0)
        for one in spec.get("initContainers") or ()
    )


def _statuses(containers: Iterable[Json], known: Mapping[str, Observed]) -> list[Json]:
    return [_container_status(one, known.get(one["name"])) for one in containers]


def _container_status(container: Json, observed: Observed | None) -> Json:
    status = {
        "name": container["name"],
        "image": container["image"],
        "imageID": container["image"],
        "restartCount": 0,
        "ready": False,
        "started": False,
        "state": WAITING_FOR_INIT,
        "lastState": {},
    }
    if observed is not None:
        status |= {
            "restartCount": observed.num_restarts,
            # A completed init container is ready, as the kubelet has it.
            "ready": observed.ready or observed.exit_code == 0,
            "started": observed.started,
            "state": observed.state,
            "lastState": observed.last_state,
        }
    return status


def _condition(pod: Json, kind: str, good: bool, why: str) -> Json:
    wanted = "True" if good else "False"
    condition: Json = {"type": kind, "status": wanted, "reason": "" if good else why}
    for old in pod["status"].get("conditions") or ():
        if old["type"] == kind and old["status"] == wanted:
            return condition | {"lastTransitionTime": old.get("lastTransitionTime")}
    return condition | {"lastTransitionTime": now()}
