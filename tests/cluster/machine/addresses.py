"""Which address belongs to what: all of a cluster's are in one 10.x.0.0/16."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

API_PORT: Final = 6443
FIRST_BYTE: Final = 200
LAST_BYTE: Final = 250


@dataclass(frozen=True)
class Addresses:
    """The addresses of the cluster in 10.<byte>.0.0/16."""

    byte: int

    @property
    def all(self) -> IPv4Network:
        """What the host routes to the machine."""
        return IPv4Network(f"10.{self.byte}.0.0/16")

    @property
    def machine(self) -> IPv4Address:
        """The machine's own: API server, DNS, the pods' gateway."""
        return self.all[1]

    @property
    def pods(self) -> IPv4Network:
        """Nodes and pods."""
        return IPv4Network(f"10.{self.byte}.0.0/18")

    @property
    def host_end(self) -> IPv4Address:
        """The host's end of the link to the machine."""
        return IPv4Address(f"10.{self.byte}.64.1")

    @property
    def machine_end(self) -> IPv4Address:
        """The machine's end of that link."""
        return IPv4Address(f"10.{self.byte}.64.2")

    @property
    def services(self) -> IPv4Network:
        """ClusterIPs."""
        return IPv4Network(f"10.{self.byte}.128.0/17")

    @property
    def api_service(self) -> IPv4Address:
        """The ClusterIP of `kubernetes.default`: always the first."""
        return self.services[1]

    def node(self, index: int) -> IPv4Address:
        """The InternalIP of a node, counted from 0."""
        return IPv4Address(f"10.{self.byte}.0.{index + 11}")

    def node_pods(self, index: int) -> IPv4Network:
        """From where a node gives its pods their addresses."""
        return IPv4Network(f"10.{self.byte}.{index + 1}.0/24")
