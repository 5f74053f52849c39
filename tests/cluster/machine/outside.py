"""The outside of a machine: start it, plug it into the host's network, end it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Final

from tests.cluster.machine.__main__ import UPLINK
from tests.cluster.machine.addresses import FIRST_BYTE, LAST_BYTE, Addresses
from tests.cluster.machine.control_plane import CONTROL_PLANE
from tests.cluster.machine.kernel import NAMESPACES, ROOT
from tests.cluster.tools.cache import program

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK: Final = Path("/run/lock/qwen3-vl-cluster.lock")
START_SECONDS: Final = 180.0


class MachineFailed(Exception):
    """The machine did not come up; where its logs are."""


class Machine:
    """A running machine."""

    def __init__(
        self, process: subprocess.Popen[str], addresses: Addresses, folder: Path, link: str
    ) -> None:
        self.addresses = addresses
        self.folder = folder
        self.lost: list[str] = []  # processes that ended by themselves
        self._process = process
        self._link = link
        self._lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "admin.kubeconfig"

    def wait_for_line(self, wanted: str) -> None:
        """Wait until the machine says so."""
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=0.2)
            except Empty:
                continue
            if line == wanted:
                return
        how = "is not up" if self._process.poll() is None else "ended"
        said = (self.folder / "machine.log").read_text().splitlines()[-5:]
        raise MachineFailed("\n".join([f"the machine {how}; logs are in {self.folder}", *said]))

    def plug_in(self) -> None:
        """Lead the machine's addresses to it."""
        route = ("ip", "route", "add", str(self.addresses.all), "via")
        peer = ("peer", "name", UPLINK, "netns", str(self._process.pid))
        _run("ip", "link", "add", self._link, "type", "veth", *peer)
        _run("ip", "address", "add", f"{self.addresses.host_end}/30", "dev", self._link)
        _run("ip", "link", "set", self._link, "up")
        _run(*route, str(self.addresses.machine_end))
        assert self._process.stdin is not None
        self._process.stdin.write("plugged in\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """End everything in it; return when it is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        # The kernel takes a dead namespace's links away a moment later.
        subprocess.run(["ip", "link", "delete", self._link], capture_output=True, check=False)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("lost "):
                self.lost.append(line.removeprefix("lost ").strip())
            else:
                self._lines.put(line.strip())


@contextmanager
def running_machine(folder: Path, num_nodes: int = 2) -> Iterator[Machine]:
    """A machine with a ready control plane and nodes that come up; its folder keeps the logs."""
    for name in CONTROL_PLANE:
        program(name)  # here, where there is a network to build it with
    with _next_address() as addresses:
        arguments = ["--folder", str(folder), "--nodes", str(num_nodes)]
        with (folder / "machine.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(*NAMESPACES, sys.executable, "-m", "tests.cluster.machine"),
                    *(*arguments, "--byte", str(addresses.byte)),
                ],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # A Ctrl-C is for whoever started us; the machine ends when we let go of it.
                start_new_session=True,
            )
        machine = Machine(process, addresses, folder, f"qvl{addresses.byte}")
        try:
            machine.wait_for_line("namespaces")
            machine.plug_in()
        except BaseException:
            machine.stop()
            raise
    try:
        machine.wait_for_line("ready")
        yield machine
    finally:
        machine.stop()


@contextmanager
def _next_address() -> Iterator[Addresses]:
    """Addresses to which the host has no route yet; others wait meanwhile."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=True)
        for byte in range(FIRST_BYTE, LAST_BYTE + 1):
            if f"10.{byte}." not in routes.stdout:
                yield Addresses(byte)
                return
    raise MachineFailed(f"the host has routes to all of 10.{FIRST_BYTE}/16 to 10.{LAST_BYTE}/16")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
