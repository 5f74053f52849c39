"""How long the bundled server takes to listen and to be ready, and its memory."""

from __future__ import annotations

import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

TIMEOUT_SECONDS = 120.0


def measure_startup(rounds: int = 3) -> None:
    """Print medians over `rounds` starts of the real process."""
    listening, ready, peaks = zip(*(_start_once() for _ in range(rounds)), strict=True)
    print("\n| bundled server | median |\n|---|---|")
    print(f"| process start to listening | {statistics.median(listening):.2f} s |")
    print(f"| process start to ready | {statistics.median(ready):.2f} s |")
    print(f"| peak resident memory | {statistics.median(peaks):.0f} MiB |")


def _start_once() -> tuple[float, float, float]:
    """Seconds to listening, seconds to ready, peak MiB."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "model", "--http_port", str(port), "--grpc_port", "0"],
        stderr=subprocess.DEVNULL,
    )
    try:
        listening = _wait(f"http://127.0.0.1:{port}/v2/health/live", started)
        ready = _wait(f"http://127.0.0.1:{port}/v2/health/ready", started)
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    return listening, ready, int(peak[1]) / 1024


def _wait(url: str, started: float) -> float:
    while time.perf_counter() - started < TIMEOUT_SECONDS:
        try:
            if httpx.get(url).status_code == httpx.codes.OK:
                return time.perf_counter() - started
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{url} did not answer within {TIMEOUT_SECONDS:.0f} s")
