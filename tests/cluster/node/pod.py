"""One pod's life on a node: set up, init containers, containers, deletion."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import httpx

from tests.cluster.node.api import STRATEGIC, ApiError
from tests.cluster.node.container import Container, now
from tests.cluster.node.environment import ConfigMissing
from tests.cluster.node.status import is_sidecar, pod_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.node.api import Json
    from tests.cluster.node.sandbox import Sandbox

DEFAULT_GRACE: Final = 30.0
LOOK_SECONDS: Final = 1.0


class Pod(threading.Thread):
    """Runs a pod from its binding to this node until its object is gone."""

    def __init__(self, sandbox: Sandbox, host: str, on_gone: Callable[[], None]) -> None:
        super().__init__(daemon=True, name=sandbox.name)
        self.sandbox = sandbox
        self.containers: dict[str, Container] = {}
        self._host = host
        self._on_gone = on_gone
        self._inits: dict[str, Container] = {}
        self._changed = threading.Event()
        self._deleted = threading.Event()
        self._grace = DEFAULT_GRACE
        self._start_time = now()
        self._published: Json | None = None
        self.update(sandbox.pod)

    def update(self, pod: Json) -> None:
        """The object has changed; it may be marked for deletion."""
        self.sandbox.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._end_within(
                float(pod["metadata"].get("deletionGracePeriodSeconds", DEFAULT_GRACE))
            )
        self._changed.set()

    def forget(self) -> None:
        """The object is gone: end at once."""
        self._end_within(0.0)
        self._changed.set()

    def log_of(self, container: str) -> Container | None:
        """The container of this name, init containers included."""
        return self.containers.get(container) or self._inits.get(container)

    def run(self) -> None:
        """Live."""
        try:
            self.sandbox.create()
            if self._fill_volumes() and self._run_inits():
                self._run_containers()
            self._until_deleted()
            self._stop_all(self._grace)
            self._publish()
            self._delete_object()
        finally:
            self.sandbox.delete()
            self._on_gone()

    def _end_within(self, grace: float) -> None:
        """It is deleted; whoever deletes it again may leave it less time, but no more."""
        self._grace = grace
        for one in [*self.containers.values(), *self._inits.values()]:
            one.hurry(grace)
        self._deleted.set()

    def _fill_volumes(self) -> bool:
        """Whether the volumes are there; False when the pod was deleted while they were not."""
        while not self._deleted.is_set():
            try:
                self.sandbox.fill_volumes()
                return True
            except (ConfigMissing, ApiError, httpx.TransportError) as error:
                print(f"{self.name}: {error}", file=sys.stderr, flush=True)
                self._publish()
                self._deleted.wait(LOOK_SECONDS)
        return False

    def _run_inits(self) -> bool:
        """Whether all have done their work, one after the other."""
        policy = self.sandbox.pod["spec"].get("restartPolicy", "Always")
        for spec in self.sandbox.pod["spec"].get("initContainers") or ():
            sidecar = is_sidecar(spec)
            own_policy = "Always" if sidecar else "Never" if policy == "Never" else "OnFailure"
            container = Container(self.sandbox, spec, own_policy, self._changed.set)
            self._inits[spec["name"]] = container
            container.start()
            while not (container.observed.started if sidecar else container.ended.is_set()):
                if self._deleted.is_set():
                    return False
                self._wait_and_publish()
            if not sidecar and container.observed.exit_code != 0:
                return False
        return True

    def _run_containers(self) -> None:
        policy = self.sandbox.pod["spec"].get("restartPolicy", "Always")
        for spec in self.sandbox.pod["spec"]["containers"]:
            container = Container(self.sandbox, spec, policy, self._changed.set)
            self.containers[spec["name"]] = container
            container.start()

    def _until_deleted(self) -> None:
        """Publish what changes; once all have ended for good, sidecars end too."""
        while not self._deleted.is_set():
            self._wait_and_publish()
            if self.containers and all(one.ended.is_set() for one in self.containers.values()):
                for sidecar in self._inits.values():
                    sidecar.stop(DEFAULT_GRACE)

    def _stop_all(self, grace: float) -> None:
        """The containers together, then the sidecars, the last begun first."""
        deadline = time.monotonic() + grace
        stopping = [
            threading.Thread(target=one.stop, args=(grace,)) for one in self.containers.values()
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        for init in reversed(self._inits.values()):
            init.stop(max(deadline - time.monotonic(), 0.0))

    def _wait_and_publish(self) -> None:
        if self._changed.wait(LOOK_SECONDS):
            self._changed.clear()
        self._publish()

    def _publish(self) -> None:
        pod, network = self.sandbox.pod, self.sandbox.network
        status = pod_status(
            pod,
            str(network.address),
            self._host,
            {name: one.observed for name, one in self._inits.items()},
            {name: one.observed for name, one in self.containers.items()},
            self._start_time,
        )
        if status == self._published:
            return
        try:
            self.sandbox.pod = self.sandbox.api.patch(
                f"{self._path()}/status",
                {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status},
                STRATEGIC,
            )
            self._published = status
        except (ApiError, httpx.TransportError) as error:
            print(f"{self.name}: status not written: {error}", file=sys.stderr, flush=True)

    def _delete_object(self) -> None:
        """Say that nothing runs any more: the object goes, if it is still this pod's."""
        options = {
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.sandbox.pod["metadata"]["uid"]},
        }
        while True:
            try:
                self.sandbox.api.delete(self._path(), options)
                return
            except ApiError as error:
                if error.status in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
                    return
                print(f"{self.name}: not deleted: {error}", file=sys.stderr, flush=True)
            except httpx.TransportError as error:
                print(f"{self.name}: not deleted: {error}", file=sys.stderr, flush=True)
            time.sleep(LOOK_SECONDS)

    def _path(self) -> str:
        metadata = self.sandbox.pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
