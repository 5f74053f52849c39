"""A container's root: an overlay of this machine's own, with the image's and the pod's mounts.

What the process writes lies in memory and goes with it. The script that mounts all this and becomes
the process runs in namespaces of its own; it lies beside the container's log to be read.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cluster.node.environment import ConfigMissing
from tests.cluster.node.images import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.cluster.node.api import Json
    from tests.cluster.node.images import Image
    from tests.cluster.node.volumes import Volume

# Empty in every image; what this machine has there is nobody's business.
EMPTY_FOLDERS: Final = {"tmp": 0o1777, "run": 0o755, "mnt": 0o755, "var/tmp": 0o1777}
SHARED_MEMORY: Final = "64m"  # what container engines give


@dataclass(frozen=True)
class Identity:
    """As whom a container's process runs, and what it may not become."""

    user: int
    group: int
    groups: tuple[int, ...]
    privileges: tuple[str, ...]  # arguments of setpriv

    def command(self) -> list[str]:
        """What turns root into this."""
        listed = [f"--groups={','.join(map(str, self.groups))}"] if self.groups else []
        who = [f"--reuid={self.user}", f"--regid={self.group}", *(listed or ["--clear-groups"])]
        return ["setpriv", *who, *self.privileges]


def identity(pod: Json, container: Json, image: Image) -> Identity:
    """The identity that the security contexts ask for.

    Raises ConfigMissing where they ask for a user that is not root, and the image's is root.
    """
    pod_context = pod["spec"].get("securityContext") or {}
    context = pod_context | (container.get("securityContext") or {})
    user = int(context.get("runAsUser", image.user))
    if context.get("runAsNonRoot") and user == 0:
        raise ConfigMissing("container has runAsNonRoot and image will run as root")
    groups = [*(pod_context.get("supplementalGroups") or ())]
    groups += [pod_context["fsGroup"]] if "fsGroup" in pod_context else []
    privileges = []
    if context.get("allowPrivilegeEscalation") is False:
        privileges.append("--no-new-privs")
    capabilities = context.get("capabilities") or {}
    if "ALL" in (capabilities.get("drop") or ()):
        kept = [f"+{name.lower()}" for name in capabilities.get("add") or ()]
        sets = ",".join(["-all", *kept])
        privileges += [f"--inh-caps={sets}", f"--bounding-set={sets}"]
    return Identity(user, int(context.get("runAsGroup", 0)), tuple(groups), tuple(privileges))


def write_script(
    folder: Path,
    image: Image,
    container: Json,
    volumes: Mapping[str, Volume],
    etc: Mapping[str, str],
    command: Sequence[str],
) -> Path:
    """The script that becomes the container's process.

    folder: the container's own; the layers of its root are made there
    etc: files of /etc, by name
    command: identity, environment and the process's own command line
    """
    root, upper, work = (folder / name for name in ("root", "upper", "work"))
    for path in (root, upper, work, upper / "etc"):
        path.mkdir(parents=True, exist_ok=True)
    for name, mode in EMPTY_FOLDERS.items():
        path = upper / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        os.setxattr(path, "trusted.overlay.opaque", b"y")
    for name, content in etc.items():
        (upper / "etc" / name).write_text(content)
    lines = [
        "set -e",
        # As process 1 it would not hear it, and the pod would wait for all of its grace period.
        "trap 'exit 143' TERM",
        _mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "o", root),
        _mount("-t", "proc", "proc", root / "proc"),
        _mount("--rbind", "/dev", root / "dev"),
        _mount("-t", "tmpfs", "-o", f"size={SHARED_MEMORY},mode=1777", "shm", root / "dev/shm"),
    ]
    lines += [shlex.join(["chmod", "a+x", f"{root}{path}"]) for path in _closed_folders()]
    for path in _elsewhere():
        lines += _bind(str(path), root, str(path), read_only=True)
    for place, source in image.files.items():
        lines += _bind(source, root, place, read_only=True)
    # Outer folders first, so that a volume inside another one is not hidden by it.
    mounts = sorted(container.get("volumeMounts") or (), key=lambda one: str(one["mountPath"]))
    for mount in mounts:
        source = volumes[mount["name"]].path / mount.get("subPath", "")
        read_only = bool(mount.get("readOnly"))
        lines += _bind(str(source), root, mount["mountPath"], read_only=read_only)
    if (container.get("securityContext") or {}).get("readOnlyRootFilesystem"):
        lines.append(_mount("-o", "remount,ro", root))
    lines.append("exec " + shlex.join(["chroot", str(root), *command]))
    script = folder / "start.sh"
    script.write_text("\n".join(lines) + "\n")
    return script


def _bind(source: str, root: Path, place: str, *, read_only: bool) -> list[str]:
    target = f"{root}{_resolved(place)}"
    if Path(source).is_dir():
        made = shlex.join(["mkdir", "-p", target])
    else:
        parent = shlex.quote(str(Path(target).parent))
        made = f"mkdir -p {parent} && touch {shlex.quote(target)}"
    lines = [made, _mount("--bind", source, target)]
    return [*lines, _mount("-o", "remount,bind,ro", target)] if read_only else lines


def _resolved(place: str) -> str:
    """The place without symbolic links: /var/run leads to /run, and seen from outside to ours."""
    if place.lstrip("/").startswith(tuple(EMPTY_FOLDERS)):
        return place
    return os.path.realpath(place)


def _mount(*arguments: str | Path) -> str:
    return shlex.join(["mount", *map(str, arguments)])


def _needed() -> tuple[Path, ...]:
    """What the project's image holds: the checkout, its environment, that one's Python."""
    return (ROOT, (ROOT / ".venv").resolve(), Path(sys.base_prefix).resolve())


def _closed_folders() -> list[Path]:
    """Folders on the way there that only their owner may pass, such as a home."""
    ways = {parent for path in _needed() for parent in (path, *path.parents)}
    return [path for path in sorted(ways) if path.exists() and not path.stat().st_mode & 0o001]


def _elsewhere() -> list[Path]:
    """What of it lies on another file system, and so not in the overlay."""
    device = Path("/").stat().st_dev
    return [path for path in _needed() if path.exists() and path.stat().st_dev != device]
