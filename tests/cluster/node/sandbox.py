"""What a pod's containers share: its network, its volumes, its names and its folders."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.cluster.node.volumes import make_volumes

if TYPE_CHECKING:
    from ipaddress import IPv4Address
    from pathlib import Path

    from tests.cluster.node.api import Api, Json
    from tests.cluster.node.network import PodNetwork
    from tests.cluster.node.volumes import Volume


@dataclass
class Sandbox:
    """A pod's surroundings, from before its first container to after its last."""

    api: Api
    pod: Json  # the newest that the API server has told
    machine_folder: Path  # added images are told there
    folder: Path  # in memory: roots and volumes
    log_folder: Path
    network: PodNetwork
    dns: IPv4Address
    volumes: dict[str, Volume] = field(default_factory=dict)
    _num_containers: int = 0

    @property
    def name(self) -> str:
        """namespace/name of the pod."""
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    def create(self) -> None:
        """Make what is there at once; volumes may have to wait."""
        self.folder.mkdir(parents=True)
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self.network.create()

    def fill_volumes(self) -> None:
        """Write the pod's volumes. Raises ConfigMissing while something for them is not there."""
        address = str(self.network.address)
        self.volumes = make_volumes(self.api, self.pod, self.folder / "volumes", address)

    def new_container_folder(self, container: str) -> Path:
        """A folder for one life of a container: a restart sees nothing of the last one's root."""
        self._num_containers += 1
        return self.folder / f"{container}-{self._num_containers}"

    def etc_files(self) -> dict[str, str]:
        """The files of /etc that are the pod's own."""
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        domains = [f"{metadata['namespace']}.svc.cluster.local", "svc.cluster.local"]
        hosts = ["127.0.0.1 localhost", f"{self.network.address} {metadata['name']}"]
        hosts += [
            f"{alias['ip']} {' '.join(alias['hostnames'])}"
            for alias in spec.get("hostAliases") or ()
        ]
        return {
            "hosts": "\n".join(hosts) + "\n",
            "hostname": f"{metadata['name']}\n",
            "resolv.conf": (
                f"nameserver {self.dns}\nsearch {' '.join(domains)} cluster.local\n"
                "options ndots:5\n"
            ),
        }

    def delete(self) -> None:
        """Take everything away but the logs. The roots' mounts have gone with their processes."""
        self.network.delete()
        shutil.rmtree(self.folder, ignore_errors=True)
