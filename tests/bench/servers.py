"""The servers that are measured, each a process of its own: how to start, wait for and end them.

`make vllm` installs the peer in an environment of its own, as its dependencies are not ours.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

from tests.bench.client import MODEL_NAME, ChatCompletions, Client, GenerateStream
from tests.bench.machine import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.client import ServerProtocol

ROOT: Final = Path(__file__).parents[2]
VLLM_PYTHON: Final = ROOT / ".venv-vllm/bin/python"
NO_VLLM: Final = "The rows against vLLM are left out: `make vllm` installs it."
# How each server is asked.
OUR_PROTOCOL: Final[ServerProtocol] = GenerateStream()
VLLM_PROTOCOL: Final[ServerProtocol] = ChatCompletions()
# The peer compiles its model when it starts; on a machine that has never done so, for minutes.
READY_SECONDS: Final = 900.0
STOP_SECONDS: Final = 40.0
LOG_TAIL_CHARACTERS: Final = 3000


class ServerFailed(Exception):
    """A server that ended or did not become ready; its text has the end of the server's log."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started. health: a path that answers 200 once it is ready."""

    name: str
    command: tuple[str, ...]
    port: int
    health: str
    protocol: ServerProtocol
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A ready server."""

    launch: Launch
    pid: int

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.launch.port}"

    def client(self) -> Client:
        """A client that speaks its protocol."""
        return Client(self.url, self.launch.protocol)

    def cpu_seconds(self) -> float:
        """Processor time used so far, children included."""
        return cpu_seconds(self.pid)


def our_server(model: Path, dtype: str, *options: str) -> Launch:
    """This repository's server, with its defaults where `options` say nothing."""
    port = free_port()
    command = (
        *(sys.executable, "-m", "model", "--model_dir", str(model), "--model_name", MODEL_NAME),
        *("--server.host", "127.0.0.1", "--http_port", str(port), "--grpc_port", "0"),
        *("--model.device", "cpu", "--dtype", dtype, *options),
    )
    return Launch("ours", command, port, "/v2/health/ready", OUR_PROTOCOL)


def vllm_server(model: Path, dtype: str) -> Launch:
    """vLLM's OpenAI server on the CPU, with its defaults where a benchmark needs nothing else."""
    port = free_port()
    command = (
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", dtype, "--max-model-len", "2048", "--disable-uvicorn-access-log"),
        *("--limit-mm-per-prompt", json.dumps({"image": 1, "video": 0})),
    )
    environment = {
        # It would bind a thread to each core but one, and two cores are all there are.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Launch("vllm-cpu", command, port, "/health", VLLM_PROTOCOL, environment)


def has_vllm() -> bool:
    """Whether `make vllm` has been run."""
    return VLLM_PYTHON.exists()


def vllm_versions() -> str:
    """The peer's own version and its torch's, for the line about the machine."""
    code = (
        "from importlib.metadata import version as v;"
        "print(f\"vllm-cpu {v('vllm-cpu')} with torch {v('torch')}\")"
    )
    command = [str(VLLM_PYTHON), "-c", code]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


@contextmanager
def running(launch: Launch) -> Iterator[RunningServer]:
    """Start a server, wait until it is ready, end it. Raises ServerFailed."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            launch.command,
            env=os.environ | launch.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            server = RunningServer(launch, process.pid)
            _wait_until_ready(process, server)
            yield server
        except (TimeoutError, ChildProcessError) as e:
            log.seek(0)
            tail = log.read()[-LOG_TAIL_CHARACTERS:]
            raise ServerFailed(f"{launch.name} {e}; the end of its log:\n{tail}") from e
        finally:
            _end(process)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_ready(process: subprocess.Popen[bytes], server: RunningServer) -> None:
    started = time.monotonic()
    while time.monotonic() - started < READY_SECONDS:
        if (status := process.poll()) is not None:
            raise ChildProcessError(f"ended with status {status} before it was ready")
        try:
            if httpx.get(server.url + server.launch.health).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"was not ready after {READY_SECONDS:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server, then SIGKILL to what is left of its session."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
