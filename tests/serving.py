"""A real server process for tests: the bundled model, over real sockets."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).parents[1]
SAMPLES: Final = ROOT / "model" / "demo" / "samples"
READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 60.0


@dataclass(frozen=True)
class RunningServer:
    """A server process and where it listens."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    log_file: Path

    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text()

    @property
    def http_address(self) -> str:
        """host:port, as tritonclient takes it."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def http_url(self) -> str:
        """The base of every HTTP route."""
        return f"http://{self.http_address}"

    @property
    def grpc_address(self) -> str:
        """host:port of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def metric(self, name: str) -> float:
        """A metric's value by its name without the prefix, summed over its labels."""
        return metric_of(self.http_url, name)

    def wait_until_running(self, num_sequences: int) -> None:
        """Wait until so many sequences are in the engine."""
        wait_for(lambda: self._num_sequences() == num_sequences, f"{num_sequences} sequences run")

    def wait_until_idle(self) -> None:
        """Wait until no sequence and no block is held: cancelling is prompt and leaks nothing."""
        wait_for(lambda: self._num_sequences() == 0, "no sequence runs", seconds=3.0)
        wait_for(lambda: self.metric("open_requests") == 0, "no request is open", seconds=3.0)
        assert self.metric("kv_cache_used_ratio") == 0

    def _num_sequences(self) -> float:
        return self.metric("running_sequences") + self.metric("queued_sequences")


def metric_of(url: str, name: str) -> float:
    """A metric of the server there by its name without the prefix, summed over its labels."""
    return sample(url, f"qwen3vl_{name}")


def sample(url: str, name: str) -> float:
    """A metric of the program there by its name, summed over its labels."""
    # Reading this machine's certificates, which nobody needs here, takes longer than the answer.
    answer = httpx.get(f"{url}/metrics", verify=False, trust_env=False)
    found = [
        line for line in answer.text.splitlines() if line.startswith((f"{name}{{", f"{name} "))
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float = 20.0) -> None:
    """Poll until the condition holds; fail with its name when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@contextmanager
def start_server(*arguments: str, wait_ready: bool = True) -> Iterator[RunningServer]:
    """A server process of its own; where it still runs at the end, SIGTERM must end it with 0."""
    http_port, grpc_port = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        log_file = Path(folder) / "server.log"
        ports = ("--http_port", str(http_port), "--grpc_port", str(grpc_port))
        with log_file.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "model", *ports, *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = RunningServer(process, http_port, grpc_port, log_file)
        try:
            route = "ready" if wait_ready else "live"
            _wait_for_route(server, f"/v2/health/{route}")
            yield server
        finally:
            _stop(server)


def _wait_for_route(server: RunningServer, route: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert server.process.poll() is None, f"the server exited:\n{server.log()}"
        with suppress(httpx.TransportError):
            if httpx.get(server.http_url + route).is_success:
                return
        time.sleep(0.05)
    raise AssertionError(f"no {route} after {READY_SECONDS} s:\n{server.log()}")


def _stop(server: RunningServer) -> None:
    if server.process.poll() is not None:
        return
    server.process.send_signal(signal.SIGTERM)
    try:
        status = server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
        raise
    assert status == 0, f"exit status {status}:\n{server.log()}"
    # A traceback is an error nobody foresaw, whatever the client was told.
    assert "Traceback" not in server.log(), server.log()


def free_ports(count: int) -> list[int]:
    """Ports that are free now; held together so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
