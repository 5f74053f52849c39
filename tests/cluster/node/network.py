"""A pod's network namespace: one address, a wire to the machine, and nothing else.

No bridge: each pod is routed to over its own wire, so that what kube-proxy rewrites on the way out
is rewritten on the way back too.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network

    from tests.cluster.machine.addresses import Addresses


class AddressPool:
    """The addresses of one node's pods; the one longest free is given next."""

    def __init__(self, network: IPv4Network) -> None:
        self._free = list(network.hosts())

    def take(self) -> IPv4Address:
        """An address that no pod has."""
        return self._free.pop(0)

    def give_back(self, address: IPv4Address) -> None:
        """The pod is gone."""
        self._free.append(address)


class PodNetwork:
    """A network namespace with an address."""

    def __init__(self, name: str, address: IPv4Address, addresses: Addresses) -> None:
        self.name = name
        self.address = address
        self._addresses = addresses

    def create(self) -> None:
        """Make the namespace and lead the address to it."""
        gateway = self._addresses.machine
        _ip("netns", "add", self.name)
        _batch(
            f"link add {self.name} type veth peer name eth0 netns {self.name}",
            f"link set {self.name} up",
            f"route add {self.address}/32 dev {self.name} src {gateway}",
        )
        _batch(
            "link set lo up",
            f"address add {self.address}/32 dev eth0",
            "link set eth0 up",
            f"route add {gateway} dev eth0 scope link",
            f"route add default via {gateway}",
            namespace=self.name,
        )

    def delete(self) -> None:
        """Take it away; its wire goes with it."""
        subprocess.run(["ip", "link", "delete", self.name], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _batch(*lines: str, namespace: str | None = None) -> None:
    where = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *where, "-batch", "-"], input="\n".join(lines), text=True, check=True)
