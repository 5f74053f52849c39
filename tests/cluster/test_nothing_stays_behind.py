"""A run that is interrupted, even by SIGKILL, leaves no process, mount, link or route."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.cluster.machine.kernel import ROOT
from tests.cluster.tools.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A machine with a running pod, which says so and then waits to be interrupted.
RUN: Final = """
import sys, time
from pathlib import Path
from tests.cluster.cluster import Cluster
from tests.cluster.machine.outside import running_machine
from tests.cluster.pods import pod
with running_machine(Path(sys.argv[1]), num_nodes=1) as machine:
    cluster = Cluster(machine)
    with cluster.namespace() as namespace:
        # Its command line tells whose it is.
        sleeps = pod("sleeps", "sh", "-c", "sleep 1000; exit", sys.argv[1])
        cluster.apply([sleeps], namespace=namespace)
        path = f"/api/v1/namespaces/{namespace}/pods/sleeps"
        cluster.wait_for_condition(path, "Ready")
        print(machine.addresses.byte, flush=True)
        time.sleep(1000)
"""
GONE_SECONDS: Final = 20.0
# Ctrl-C, a polite end, and none that could be noticed.
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@dataclass(frozen=True)
class Run:
    """A machine with a pod, started by a process of its own."""

    process: subprocess.Popen[str]
    folder: Path
    byte: str  # the second of its addresses


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[signal.Signals, Run]]:
    """A run for each signal; they start side by side, so as to take hardly longer than one."""
    assert missing(running=True) == []
    folders = {number: tmp_path_factory.mktemp(number.name) for number in SIGNALS}
    processes = {
        number: subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for number, folder in folders.items()
    }
    try:
        yield {
            number: Run(process, folders[number], _first_line(process))
            for number, process in processes.items()
        }
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_run_leaves_nothing(
    number: signal.Signals, runs: dict[signal.Signals, Run]
) -> None:
    run = runs[number]
    assert run.byte, (run.folder / "machine.log").read_text()
    assert processes_of(run.folder)
    assert f"10.{run.byte}.0.0/16" in host_network()
    run.process.send_signal(number)
    wait_until(lambda: processes_of(run.folder) == [], "its processes are gone")
    wait_until(lambda: f"10.{run.byte}." not in host_network(), "its link and route are gone")
    assert str(run.folder) not in Path("/proc/self/mountinfo").read_text()
    assert not list((run.folder / "run").iterdir())


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def processes_of(folder: Path) -> list[str]:
    """The command lines of the processes that were started for a machine in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(folder) in line:
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
