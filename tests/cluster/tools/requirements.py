"""What the machine itself must have, each with the way to get it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Final

from tests.cluster.machine.kernel import refused

# The newest `go` line among the pinned modules (KServe's).
GO: Final = (1, 25)
PROGRAMS: Final = {
    "ip": "apt-get install iproute2",
    "nft": "apt-get install nftables",
    "nsenter": "apt-get install util-linux",
    "setpriv": "apt-get install util-linux",
    "unshare": "apt-get install util-linux",
    "mount": "apt-get install mount",
    "prometheus": "apt-get install prometheus",
    "promtool": "apt-get install prometheus",
}


def missing(*, building: bool = False, running: bool = False) -> list[str]:
    """A line for each thing that is needed and is not there; empty when all is well."""
    lines = []
    if building:
        lines += _missing_go()
    if running:
        if os.geteuid() != 0:
            lines.append("root is needed, for network namespaces and mounts: use sudo or a CI job")
        lines += [
            f"{name} is not on PATH: {way}"
            for name, way in PROGRAMS.items()
            if shutil.which(name) is None
        ]
        # With all of them, and as root, it can be tried.
        lines += [] if lines else refused()
    return lines


def _missing_go() -> list[str]:
    wanted = ".".join(map(str, GO))
    way = f"install Go {wanted} or newer, https://go.dev/doc/install"
    if shutil.which("go") is None:
        return [f"go is not on PATH: {way}"]
    said = subprocess.run(["go", "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < GO:
        return [f"{said.strip() or 'go'} is too old: {way}"]
    return []
