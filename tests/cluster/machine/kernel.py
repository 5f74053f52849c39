"""What a machine needs of the kernel: tried for a moment, in namespaces that are gone at once.

A container or a small virtual machine may refuse some of it, to root too; said beforehand it is a
line, found out later it is a pod that never starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[3]
# setpriv: when we die, by whatever signal, it dies; unshare: when it dies, so does all inside.
NAMESPACES: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
)
TRY_SECONDS: Final = 30.0

_RULES: Final = """
add table ip probe
add map ip probe services { type ipv4_addr . inet_proto . inet_service : verdict; }
add chain ip probe nat { type nat hook output priority -100; }
add rule ip probe nat numgen random mod 2 vmap { 0 : accept, 1 : accept }
add rule ip probe nat ip daddr . meta l4proto . th dport vmap @services
add chain ip probe after { type nat hook postrouting priority 100; }
add rule ip probe after masquerade
"""
# What is needed → commands that need it. A later one finds what the ones before it have made.
NEEDED: Final = {
    "pairs of virtual links (veth)": "ip link add probe-a type veth peer name probe-b",
    "settings of a namespace's network (/proc/sys/net)": "echo 1 > /proc/sys/net/ipv4/ip_forward",
    "nftables with address translation": f"nft -f - <<'END'\n{_RULES}END",
    "named network namespaces": (
        "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip netns add probe"
    ),
    "process namespaces inside of others": (
        "nsenter --net=/run/netns/probe unshare --mount --propagation private --pid --fork"
        " --uts --ipc true"
    ),
    "tmpfs with trusted attributes": (
        "mount -t tmpfs tmpfs /mnt && cd /mnt && mkdir root upper work upper/tmp &&"
        f" {sys.executable} -c 'import os;"
        """ os.setxattr("upper/tmp", "trusted.overlay.opaque", b"y")'"""
    ),
    "an overlay over the root file system": (
        "mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work o /mnt/root"
    ),
    "proc and /dev inside of it": (
        "mount -t proc proc /mnt/root/proc && mount --rbind /dev /mnt/root/dev"
    ),
}


def refused() -> list[str]:
    """A line for each thing that the kernel does not let us do; empty when all is well."""
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.cluster.machine.kernel"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TRY_SECONDS,
        check=False,
    )
    if done.returncode:
        return [_line("namespaces of its own for network, mounts and processes", done.stderr)]
    return done.stdout.splitlines()


def main() -> None:
    """Inside of the namespaces: try all, and print what is refused."""
    environment = os.environ | {"LC_ALL": "C"}
    for what, commands in NEEDED.items():
        done = subprocess.run(
            ["sh", "-c", commands], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(_line(what, done.stderr), flush=True)


def _line(what: str, said: str) -> str:
    """The refusal in one line, with the last that was said of it."""
    *_, last = said.strip().splitlines() or ["no reason was given"]
    return f"the kernel, or the container around us, refuses {what}: {last}"


if __name__ == "__main__":
    main()
