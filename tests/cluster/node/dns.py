"""The cluster's DNS: a Service by its name, or the ready pods of a headless one."""

from __future__ import annotations

import socketserver
import struct
import threading
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from tests.cluster.node.api import Api, Json

DOMAIN: Final = ".svc.cluster.local"
TYPE_A: Final = 1
NAME_UNKNOWN: Final = 3
# Short: pods of a headless Service come and go.
TTL_SECONDS: Final = 1


class Names:
    """What every name of a Service stands for, kept up to date."""

    def __init__(self, api: Api) -> None:
        self._services: dict[str, Json] = {}
        self._slices: dict[str, Json] = {}
        for path, kept in (
            ("/api/v1/services", self._services),
            ("/apis/discovery.k8s.io/v1/endpointslices", self._slices),
        ):
            threading.Thread(target=self._keep, args=(api, path, kept), daemon=True).start()

    def addresses(self, name: str) -> list[str] | None:
        """The addresses of a name, or None for one that does not exist."""
        if not name.endswith(DOMAIN):
            return None
        parts = name.removesuffix(DOMAIN).split(".")
        wanted = tuple(parts[-2:])
        for service in list(self._services.values()):
            metadata, spec = service["metadata"], service["spec"]
            if (metadata["name"], metadata["namespace"]) == wanted:
                if spec.get("clusterIP") not in (None, "", "None"):
                    return [spec["clusterIP"]]
                return self._ready(*wanted)
        return None

    def _ready(self, service: str, namespace: str) -> list[str]:
        return [
            address
            for one in list(self._slices.values())
            if one["metadata"]["namespace"] == namespace
            and one["metadata"].get("labels", {}).get("kubernetes.io/service-name") == service
            for endpoint in one.get("endpoints") or ()
            if endpoint.get("conditions", {}).get("ready", True)
            for address in endpoint["addresses"]
        ]

    def _keep(self, api: Api, path: str, kept: dict[str, Json]) -> None:
        def on_change(kind: str, one: Json) -> None:
            if kind == "DELETED":
                kept.pop(one["metadata"]["uid"], None)
            else:
                kept[one["metadata"]["uid"]] = one

        api.follow(path, on_change)


class _Server(socketserver.ThreadingUDPServer):
    daemon_threads = True

    def __init__(self, address: str, names: Names) -> None:
        self.names = names
        super().__init__((address, 53), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        """Answer one question."""
        query, connection = self.request
        reply = answer(query, cast("_Server", self.server).names)
        if reply is not None:
            connection.sendto(reply, self.client_address)


def answer(query: bytes, names: Names) -> bytes | None:
    """The reply to a DNS query (RFC 1035); None for what is no query."""
    if len(query) < 17:
        return None
    labels, position = [], 12
    while query[position]:
        length = query[position]
        labels.append(query[position + 1 : position + 1 + length].decode("ascii", "replace"))
        position += length + 1
    end = position + 5
    (kind,) = struct.unpack("!H", query[position + 1 : position + 3])
    found = names.addresses(".".join(labels).lower())
    # A name that exists has no records but A: an empty answer, or resolvers give up on the name.
    records = found if found is not None and kind == TYPE_A else []
    flags = 0x8580 | (NAME_UNKNOWN if found is None else 0)
    header = query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
    body = b"".join(
        struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, TTL_SECONDS, 4)
        + bytes(int(part) for part in record.split("."))
        for record in records
    )
    return header + query[12:end] + body


def serve_dns(address: IPv4Address, api: Api) -> None:
    """Answer at the address, in a thread."""
    server = _Server(str(address), Names(api))
    threading.Thread(target=server.serve_forever, daemon=True).start()
