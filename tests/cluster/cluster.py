"""The cluster as tests use it: kubectl, helm, namespaces, and waiting for what should come."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeVar

import yaml
from kubernetes import config as kubernetes_config

from tests.cluster.node.api import Api
from tests.cluster.node.images import Image, add_image
from tests.cluster.tools.cache import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kubernetes.client import ApiClient

    from tests.cluster.machine.outside import Machine
    from tests.cluster.node.api import Json

T = TypeVar("T")
WAIT_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.1


class CommandFailed(AssertionError):
    """kubectl or helm ended badly; with what it said."""

    def __init__(self, command: list[str], output: str) -> None:
        super().__init__(f"{' '.join(command)} failed:\n{output}")
        self.output = output


class Cluster:
    """A running cluster."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.kubeconfig: Path = machine.kubeconfig
        self.api = Api(machine.kubeconfig)

    @cached_property
    def client(self) -> ApiClient:
        """The kubernetes package's client, for code under test that takes one."""
        return kubernetes_config.new_client_from_config(str(self.kubeconfig))

    @property
    def log_folder(self) -> Path:
        """Logs of the control plane, and of pods as `<namespace>/<pod>/<container>.log`."""
        return self.machine.folder / "logs"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints. Raises CommandFailed."""
        return self._run([str(program("kubectl")), *arguments], stdin)

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        """What helm prints. Raises CommandFailed."""
        return self._run([str(program("helm")), *arguments], stdin)

    def apply(self, manifests: str | list[Json], *, namespace: str | None = None) -> None:
        """Apply YAML or objects, server-side, and take over what others own of them."""
        text = manifests if isinstance(manifests, str) else _written(manifests)
        where = ["--namespace", namespace] if namespace else []
        self.kubectl(
            *("apply", "--server-side", "--force-conflicts", *where, "-f", "-"), stdin=text
        )

    @contextmanager
    def namespace(self, prefix: str = "test", *, name: str = "") -> Iterator[str]:
        """A fresh namespace's name; it is deleted at the end, and its pods end a second later."""
        name = name or f"{prefix}-{uuid.uuid4().hex[:6]}"
        self.api.create("/api/v1/namespaces", _namespace(name))
        try:
            # Pods may not be made before their service account is there.
            account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
            self.wait_for(lambda: self.api.find(account), f"{name} has a service account")
            yield name
        finally:
            # Its controller looks at a deleted namespace only after five seconds. Its pods are
            # not replaced any more, so that they may go now; the rest goes when it goes. Nobody
            # asks them anything any more, and so nothing is lost by a drain that is cut short.
            self.api.delete(f"/api/v1/namespaces/{name}", {})
            self.api.delete(f"/api/v1/namespaces/{name}/pods", {"gracePeriodSeconds": 1})

    def pods(self, namespace: str, selector: str = "") -> list[Json]:
        """The pods that a label selector finds."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        found = self.api.get(path, labelSelector=selector)["items"]
        return list(found)

    def ready_pods(self, namespace: str, selector: str = "") -> list[Json]:
        """Those of them that are ready and not being deleted."""
        return [
            pod
            for pod in self.pods(namespace, selector)
            if condition(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")
        ]

    def service_address(self, namespace: str, name: str, port: int = 80) -> str:
        """A Service's ClusterIP, once it leads to a pod.

        A pod's readiness is told by its status a little before a Service's proxy hears of it.
        """
        path = f"/api/v1/namespaces/{namespace}/services/{name}"
        address = str(self.api.get(path)["spec"]["clusterIP"])
        self.wait_for(lambda: _is_open(address, port), f"{name} ({address}:{port}) leads to a pod")
        return address

    def wait_for(
        self,
        look: Callable[[], T],
        what: str,
        *,
        seconds: float = WAIT_SECONDS,
        every: float = LOOK_SECONDS,
    ) -> T:
        """The first true value that `look` gives; fail with `what` when none comes in time."""
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found:
                return found
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            time.sleep(every)

    def wait_for_condition(self, path: str, kind: str, *, seconds: float = WAIT_SECONDS) -> Json:
        """The object at an API path, once its condition of this type is True."""

        def look() -> Json | None:
            found = self.api.find(path)
            return found if found is not None and condition(found, kind) else None

        try:
            found = self.wait_for(look, f"{path} is {kind}", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.api.find(path)}") from None
        assert found is not None
        return found

    def wait_for_deployment(
        self, namespace: str, name: str, *, seconds: float = WAIT_SECONDS
    ) -> None:
        """Wait until a Deployment is at its newest, all of it available."""
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"

        def is_complete() -> bool:
            found = self.api.find(path)
            if found is None:
                return False
            wanted, status = found["spec"]["replicas"], found.get("status", {})
            return bool(
                status.get("observedGeneration", 0) >= found["metadata"]["generation"]
                and status.get("updatedReplicas", 0) == wanted
                and status.get("availableReplicas", 0) == wanted
                and status.get("replicas", 0) == wanted
            )

        try:
            self.wait_for(is_complete, f"{namespace}/{name} is rolled out", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe(namespace)}") from None

    def crash(self, namespace: str, name: str, container: str | None = None) -> None:
        """SIGKILL to a container's process (default: the pod's first container); it restarts."""
        pod = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["spec"]
        container = container or pod["containers"][0]["name"]
        node = f"/api/v1/nodes/{pod['nodeName']}/proxy"
        self.api.create(f"{node}/crash/{namespace}/{name}/{container}", {})

    def add_image(self, reference: str, image: Image) -> None:
        """Let pods use another image: what it runs is said by `image`."""
        add_image(self.machine.folder, reference, image)

    def describe(self, namespace: str) -> str:
        """The namespace's pods and the ends of their logs, for a failure's message."""
        lines = [self.kubectl("get", "pods", "--namespace", namespace, "--output", "wide")]
        for log in sorted((self.log_folder / namespace).glob("*/*.log")):
            tail = log.read_text(errors="replace").splitlines()[-15:]
            lines += [f"--- {log.parent.name}/{log.name}", *tail]
        return "\n".join(lines)

    def _run(self, command: list[str], stdin: str | None) -> str:
        done = subprocess.run(
            command,
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(command, done.stdout + done.stderr)
        return done.stdout


def condition(found: Json, kind: str) -> bool:
    """Whether an object's condition of this type is True."""
    conditions = found.get("status", {}).get("conditions") or ()
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)


def _is_open(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


def _written(objects: list[Json]) -> str:
    """As YAML; libyaml writes it in a sixth of the time."""
    return yaml.dump_all(objects, Dumper=yaml.CSafeDumper)


def _namespace(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
