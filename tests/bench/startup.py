"""How long the bundled server takes to listen and to be ready, and its memory."""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

from tests.bench.rounds import progress
from tests.bench.servers import free_port
from tests.bench.tables import Section

if TYPE_CHECKING:
    from tests.bench.rounds import Plan

TIMEOUT_SECONDS: Final = 120.0


def measure_startup(plan: Plan) -> Section:
    """Medians over starts of the real process, as a table of their own."""
    progress("starting the bundled server")
    starts = [_start_once() for _ in range(plan.rounds)]
    listening, ready, peak = map(statistics.median, zip(*starts, strict=True))
    rows = (
        f"| bundled server | median of {plan.rounds} |",
        "|---|---|",
        f"| process start to listening | {listening:.2f} s |",
        f"| process start to ready | {ready:.2f} s |",
        f"| peak resident memory | {peak:.0f} MiB |",
    )
    return Section(notes=("\n".join(rows),))


def _start_once() -> tuple[float, float, float]:
    """Seconds to listening, seconds to ready, peak MiB."""
    port = free_port()
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
