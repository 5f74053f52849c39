"""The inside of a machine: process 1 of its namespaces.

It says `namespaces` when they are there, waits for a line that says that the link to the host is
plugged in, starts the cluster and says `ready`; later `lost …` for a process that ended by itself.
It ends when its standard input does, and everything in the machine ends with it.
"""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.cluster.machine.addresses import FIRST_BYTE, Addresses
from tests.cluster.machine.control_plane import start_control_plane
from tests.cluster.machine.processes import Processes

UPLINK: Final = "uplink"
LOOK_SECONDS: Final = 0.5
SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    # Pods and tests open and close thousands of connections to the same few addresses.
    "net/ipv4/ip_local_port_range": "1024 65535",
    "net/ipv4/tcp_tw_reuse": "1",
}


def main() -> None:
    """Be the machine until standard input ends."""
    given = _parse()
    folder, addresses = Path(given.folder), Addresses(given.byte)
    _say("namespaces")
    sys.stdin.readline()
    _prepare_network(addresses, given.nodes)
    scratch = folder / "run"
    scratch.mkdir()
    # In memory, and seen from in here alone: gone with the machine.
    for path in (scratch, Path("/run/netns")):
        path.mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(path))
    processes = Processes(folder / "logs")
    nodes = [f"node-{index + 1}" for index in range(given.nodes)]
    start_control_plane(folder, scratch, addresses, processes, nodes)
    for index, name in enumerate(nodes):
        arguments = ["--folder", str(folder), "--byte", str(given.byte), "--index", str(index)]
        processes.start(name, [sys.executable, "-m", "tests.cluster.node", name, *arguments])
    _say("ready")
    _watch(processes)


def _watch(processes: Processes) -> None:
    """Report what ends, until the one who started the machine is gone or lets go of it."""
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_SECONDS)
        if readable and not sys.stdin.readline():
            return
        for lost in processes.take_ended():
            _say(f"lost {lost}")


def _prepare_network(addresses: Addresses, num_nodes: int) -> None:
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{addresses.machine_end}/30", "dev", UPLINK)
    _run("ip", "link", "set", UPLINK, "up")
    own = [addresses.machine, *(addresses.node(index) for index in range(num_nodes))]
    for address in own:
        _run("ip", "address", "add", f"{address}/32", "dev", "lo")
    # Whatever a pod asks for outside the cluster is refused here, at once.
    _run("ip", "route", "add", "unreachable", "default")
    for name, value in SYSCTLS.items():
        Path("/proc/sys", name).write_text(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.machine", description=__doc__)
    parser.add_argument("--folder", required=True, help="certificates and logs go there")
    parser.add_argument("--byte", type=int, default=FIRST_BYTE, help="second byte of addresses")
    parser.add_argument("--nodes", type=int, default=2, help="how many nodes")
    return parser.parse_args()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
