"""A run that is interrupted, even by SIGKILL, leaves no process, mount, link or route."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.cluster.machine.outside import ROOT
from tests.cluster.tools.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Callable

# A machine with a running pod, which says so and then waits to be interrupted.
RUN: Final = """
import sys, time
from pathlib import Path
from tests.cluster.cluster import Cluster
from tests.cluster.machine.outside import running_machine
from tests.cluster.pods import pod
with running_machine(Path(sys.argv[1])) as machine:
    cluster = Cluster(machine)
    with cluster.namespace() as namespace:
        cluster.apply([pod("sleeps", "sleep", "86399")], namespace=namespace)
        path = f"/api/v1/namespaces/{namespace}/pods/sleeps"
        cluster.wait_for_condition(path, "Ready")
        print(machine.addresses.byte, flush=True)
        time.sleep(1000)
"""
GONE_SECONDS: Final = 20.0


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    assert missing(running=True) == []
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        byte = run.stdout.readline().strip()
        try:
            assert byte, (tmp_path / "machine.log").read_text()
            assert processes_of(tmp_path)
            assert f"10.{byte}.0.0/16" in host_network()
        finally:
            run.send_signal(number)
    wait_until(lambda: processes_of(tmp_path) == [], "its processes are gone")
    wait_until(lambda: f"10.{byte}." not in host_network(), "its link and route are gone")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not list((tmp_path / "run").iterdir())


def processes_of(folder: Path) -> list[str]:
    """The command lines of the processes that were started for a machine in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(folder) in line or line.startswith("sleep 86399 "):
            found.append(line)
    return found


def host_network() -> str:
    """The host's addresses and routes."""
    shown = [["ip", "-4", "address"], ["ip", "-4", "route"], ["ip", "netns"]]
    return "".join(
        subprocess.run(one, capture_output=True, text=True, check=True).stdout for one in shown
    )


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Poll; fail with `what`."""
    deadline = time.monotonic() + GONE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {GONE_SECONDS:.0f} s: {what}"
        time.sleep(0.1)
