"""buildah and podman with storage of their own, so that nothing of the user's is touched.

All of it lies in one folder, `containers` in the tools' cache: layers (a second build makes only
what changed), pip's downloads and the base image. Removing the folder forgets everything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from tests.cluster.tools.cache import cache_folder
from tests.image.pip_settings import CA_IN_BUILD, pip_settings
from tests.image.torch_mounts import is_whole
from tests.serving import ROOT, free_ports, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BASE_IMAGE: Final = "docker.io/library/debian:bookworm-slim"
BASE_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEBIAN_SUITE: Final = "bookworm"
PROGRAMS: Final = ("buildah", "podman", "runc", "debootstrap")
# A layer lies on the disk four times while buildah makes it.
SPARE_BYTES: Final = 4 * 10**9
SPARE_BYTES_WHOLE: Final = 26 * 10**9
START_SECONDS: Final = 300.0
# The server drains for 30 s at most; what takes longer is killed, and then its status is not 0.
STOP_SECONDS: Final = 40
# The chroot has no namespace of its own for these, and gives no more than the session has.
BUILD_LIMITS: Final = ("--ulimit", "nofile=20000:20000")
RUN_LIMITS: Final = ("--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000")


class EngineError(Exception):
    """A program that failed, with what it said."""


class DiskFull(Exception):
    """Too little room for a build."""


def missing() -> list[str]:
    """A line for each thing that is needed and is not there, with the way to get it."""
    lines = [
        f"{name} is not on PATH: apt-get install --no-install-recommends {name}"
        for name in PROGRAMS
        if shutil.which(name) is None
    ]
    if os.geteuid() != 0:
        lines.append("root is needed, for debootstrap and chroot: use sudo or a CI job")
    return lines


def storage_folder() -> Path:
    """Where layers are kept; whole ones apart, since buildah would take both for the same."""
    return cache_folder() / ("containers-whole" if is_whole() else "containers")


@dataclass(frozen=True)
class Container:
    """A running image on the host's network, and how to reach it."""

    engine: Engine
    name: str
    http_port: int
    grpc_port: int

    @property
    def http_url(self) -> str:
        """The base of its HTTP routes."""
        return f"http://127.0.0.1:{self.http_port}"

    def answers(self, route: str) -> bool:
        """Whether the route gives a success."""
        try:
            return httpx.get(self.http_url + route).is_success
        except httpx.TransportError:
            return False

    def wait_until(self, route: str) -> None:
        """Wait for a success; fail with the log when the container ends or takes too long."""

        def done() -> bool:
            assert self.state()["Running"], f"the container ended:\n{self.log()}"
            return self.answers(route)

        try:
            wait_for(done, f"{route} answers", seconds=START_SECONDS)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log()}") from e

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return self.engine.podman("exec", self.name, *command, check=False)

    def python(self, script: str) -> str:
        """What a script of the image's own Python prints."""
        done = self.run("python", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def is_healthy(self) -> bool:
        """What the image's HEALTHCHECK says now."""
        return self.engine.podman("healthcheck", "run", self.name, check=False).returncode == 0

    def stop(self) -> int:
        """SIGTERM, and SIGKILL after the drain's time; the exit status."""
        self.engine.podman("stop", "--time", str(STOP_SECONDS), self.name)
        return int(self.state()["ExitCode"])

    def start(self) -> None:
        """Start it again after a stop."""
        self.engine.podman("start", self.name)

    def state(self) -> dict[str, Any]:
        """Whether it runs, and how it ended."""
        return dict(self.engine.inspect(self.name)["State"])

    def log(self) -> str:
        """What it has written so far."""
        done = self.engine.podman("logs", self.name)
        return done.stdout + done.stderr


class Engine:
    """buildah and podman over one storage folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._storage = (
            *("--root", str(folder / "storage"), "--runroot", str(folder / "run")),
            *("--storage-driver", "overlay"),
        )

    def make_base(self) -> None:
        """The Dockerfile's base, from Debian's own packages and under its name."""
        known = self.podman("image", "exists", BASE_IMAGE, check=False).returncode == 0
        if known:
            return
        with tempfile.TemporaryDirectory(dir=self._folder / "tmp") as scratch:
            root, archive = Path(scratch) / "root", Path(scratch) / "base.tar"
            self._call("debootstrap", "--variant=minbase", DEBIAN_SUITE, str(root))
            left_out = ("./var/cache/apt", "./var/lib/apt/lists", "./dev/*")
            excluding = (f"--exclude={pattern}" for pattern in left_out)
            self._call("tar", "-C", str(root), "-cf", str(archive), *excluding, ".")
            environment = ("--change", f"ENV PATH={BASE_PATH}", "--change", 'CMD ["bash"]')
            self.podman("import", *environment, str(archive), BASE_IMAGE)

    def build(
        self,
        target: str,
        arguments: Mapping[str, str],
        *,
        volumes: tuple[str, ...] = (),
        context: Path = ROOT,
    ) -> str:
        """Build a target of the Dockerfile; the image's id."""
        self._refuse_a_full_disk()
        with tempfile.TemporaryDirectory() as scratch:
            secret, authorities = Path(scratch) / "pip.conf", Path(scratch) / "ca.crt"
            written = pip_settings()
            secret.write_text(written.text)
            authorities.write_bytes(written.authorities)
            self._call(
                *("buildah", *self._storage, "build", "--layers", "--pull-never"),
                *("--isolation", "chroot", "--format", "docker", *BUILD_LIMITS),
                *(f"--secret=id=pip,src={secret}", f"--volume={authorities}:{CA_IN_BUILD}:ro"),
                *volumes,
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                *("--target", target, "--iidfile", f"{scratch}/id", str(context)),
            )
            return (Path(scratch) / "id").read_text().strip()

    @contextmanager
    def run(
        self, image: str, *flags: str, ports: tuple[str, ...], options: tuple[str, ...] = ()
    ) -> Iterator[Container]:
        """A container as a careful cluster runs it: root read-only, no capability, none to gain.

        ports: variables that the image reads its ports from, HTTP's first
        """
        numbers = free_ports(2)
        variables = (f"--env={name}={number}" for name, number in zip(ports, numbers, strict=False))
        started = self.podman(
            *("run", "--detach", "--network", "host", "--read-only", "--tmpfs", "/tmp"),
            *("--cap-drop", "all", "--security-opt", "no-new-privileges", *RUN_LIMITS),
            *variables,
            *options,
            image,
            *flags,
        )
        container = Container(self, started.stdout.strip(), *numbers)
        try:
            yield container
        finally:
            self.podman("rm", "--force", "--time", "0", container.name)

    def inspect(self, name: str) -> dict[str, Any]:
        """Everything podman knows of an image or a container."""
        return dict(json.loads(self.podman("inspect", name).stdout)[0])

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman over this storage."""
        command = ("podman", *self._storage, "--runtime", "runc", "--cgroup-manager", "cgroupfs")
        return self._call(*command, *arguments, check=check)

    def _refuse_a_full_disk(self) -> None:
        free = shutil.disk_usage(self._folder).free
        needed = SPARE_BYTES_WHOLE if is_whole() else SPARE_BYTES
        if free < needed:
            raise DiskFull(
                f"{free / 1e9:.1f} GB are free where {self._folder} is; building takes up to "
                f"{needed / 1e9:.0f} GB: make room, or name another disk by QWEN3VL_TOOLS_DIR"
            )

    def _call(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program, its scratch files in our folder; on failure what it said is the error."""
        environment = {**os.environ, "TMPDIR": str(self._folder / "tmp")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr)[-4000:]
            raise EngineError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
        return done
