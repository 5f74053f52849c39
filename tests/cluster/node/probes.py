"""Probes as the kubelet makes them: http, tcp, gRPC or exec, with their thresholds."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.cluster.node.api import Json

DEFAULT_PERIOD: Final = 10.0
DEFAULT_TIMEOUT: Final = 1.0
DEFAULT_FAILURES: Final = 3


class Target:
    """What a probe or hook is aimed at: an address, the container's named ports, its inside."""

    def __init__(
        self, address: str, ports: dict[str, int], run: Callable[[Sequence[str], float], int]
    ) -> None:
        self._address = address
        self._ports = ports
        self._run = run

    def port(self, given: int | str) -> int:
        """A port by number or by name."""
        return self._ports[given] if given in self._ports else int(given)

    def succeeds(self, action: Json, timeout: float) -> bool:
        """Try it once; whatever goes wrong is a failure."""
        try:
            return self._try(action, timeout)
        except (OSError, http.client.HTTPException, grpc.RpcError, subprocess.SubprocessError):
            return False

    def _try(self, action: Json, timeout: float) -> bool:
        if "httpGet" in action:
            return 200 <= self._http(action["httpGet"], timeout) < 400
        if "tcpSocket" in action:
            tcp = action["tcpSocket"]
            where = (tcp.get("host") or self._address, self.port(tcp["port"]))
            with socket.create_connection(where, timeout=timeout):
                return True
        if "grpc" in action:
            return self._grpc(action["grpc"], timeout)
        return self._run(action["exec"]["command"], timeout) == 0

    def _http(self, get: Json, timeout: float) -> int:
        host, port = get.get("host") or self._address, self.port(get["port"])
        connection: http.client.HTTPConnection
        if get.get("scheme", "HTTP").upper() == "HTTPS":
            # As the kubelet: a probe asks whether it answers, not who it is.
            unchecked = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=unchecked)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        headers = {"User-Agent": "kube-probe/1.35", "Connection": "close"}
        headers |= {one["name"]: one["value"] for one in get.get("httpHeaders") or ()}
        try:
            connection.request("GET", get.get("path") or "/", headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def _grpc(self, wanted: Json, timeout: float) -> bool:
        with grpc.insecure_channel(f"{self._address}:{wanted['port']}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=wanted.get("service") or "")
            answer = stub.Check(request, timeout=timeout)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Probe(threading.Thread):
    """One probe of a running container, until it is stopped.

    `on_verdict(True)` when it has succeeded often enough in a row, `on_verdict(False)` when it has
    failed so; only changes are told, and the first verdict.
    """

    def __init__(self, spec: Json, target: Target, on_verdict: Callable[[bool], None]) -> None:
        super().__init__(daemon=True)
        self._spec = spec
        self._aim = target
        self._on_verdict = on_verdict
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Try no more."""
        self._stopped.set()

    def run(self) -> None:
        """Try, count, tell."""
        spec = self._spec
        needed = {
            True: int(spec.get("successThreshold") or 1),
            False: int(spec.get("failureThreshold") or DEFAULT_FAILURES),
        }
        timeout = float(spec.get("timeoutSeconds") or DEFAULT_TIMEOUT)
        period = float(spec.get("periodSeconds") or DEFAULT_PERIOD)
        verdict: bool | None = None
        last, in_a_row = None, 0
        if self._stopped.wait(float(spec.get("initialDelaySeconds") or 0)):
            return
        while True:
            result = self._aim.succeeds(spec, timeout)
            in_a_row = in_a_row + 1 if result == last else 1
            last = result
            if self._stopped.is_set():
                return
            if in_a_row >= needed[result] and verdict is not result:
                verdict = result
                self._on_verdict(result)
            if self._stopped.wait(period):
                return
