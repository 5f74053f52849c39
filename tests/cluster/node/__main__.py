"""`python -m tests.cluster.node NAME`: a node of a machine, as the machine starts it."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.cluster.machine.addresses import Addresses
from tests.cluster.node.agent import Agent
from tests.cluster.node.api import Api
from tests.cluster.node.dns import serve_dns


def main() -> None:
    """Be a node; the first of a machine also answers DNS."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.node", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--folder", type=Path, required=True, help="the machine's")
    parser.add_argument("--byte", type=int, required=True, help="second byte of addresses")
    parser.add_argument("--index", type=int, required=True, help="this node's, from 0")
    given = parser.parse_args()
    addresses = Addresses(given.byte)
    if given.index == 0:
        serve_dns(addresses.machine, Api(given.folder / "admin.kubeconfig"))
    Agent(given.name, given.index, given.folder, addresses).run()


if __name__ == "__main__":
    main()
