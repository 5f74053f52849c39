"""One container of a pod: its process, kept running as the pod's restart policy says."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cluster.node.environment import (
    ConfigMissing,
    command_line,
    container_environment,
)
from tests.cluster.node.images import find_image
from tests.cluster.node.probes import Probe, Target
from tests.cluster.node.root import Identity, identity, write_script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.cluster.node.api import Json
    from tests.cluster.node.sandbox import Sandbox

# The kubelet's: none before the first restart, then doubled up to five minutes.
BACKOFF_SECONDS: Final = 10.0
MAX_BACKOFF_SECONDS: Final = 300.0
HEALTHY_SECONDS: Final = 600.0
RETRY_SECONDS: Final = 1.0
# After a preStop hook that took all of the grace period.
LEAST_TERM_SECONDS: Final = 2.0
ROOT_LOOK_SECONDS: Final = 0.01
# How soon a grace period that is cut short is noticed.
LOOK_SECONDS: Final = 0.2
# Of a process that was killed.
GONE_SECONDS: Final = 10.0


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Observed:
    """What a container's status says."""

    state: Json = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: Json = field(default_factory=dict)
    started: bool = False
    ready: bool = False
    num_restarts: int = 0

    @property
    def exit_code(self) -> int | None:
        """Of a container that has ended and is not about to be restarted."""
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])


class Container(threading.Thread):
    """Runs a container until it is stopped, or has ended for good."""

    def __init__(
        self,
        sandbox: Sandbox,
        spec: Json,
        restart_policy: str,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(daemon=True, name=f"{sandbox.name}/{spec['name']}")
        self.spec = spec
        self.observed = Observed()
        self.ended = threading.Event()
        self.log_file = sandbox.log_folder / f"{spec['name']}.log"
        self._sandbox = sandbox
        self._restart_policy = restart_policy
        self._on_change = on_change
        self._stopping = threading.Event()
        self._kill_at = 0.0  # time.monotonic(), once it is asked to end
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: Identity | None = None
        self._environment: dict[str, str] = {}
        self._probes: list[Probe] = []

    def run(self) -> None:
        """Start, wait, restart."""
        try:
            backoff = 0.0
            while not self._stopping.is_set():
                started = time.monotonic()
                if not self._run_once():
                    return
                if time.monotonic() - started > HEALTHY_SECONDS:
                    backoff = 0.0
                if backoff:
                    self._wait_in("CrashLoopBackOff", f"back-off {backoff:.0f}s", backoff)
                backoff = min(max(BACKOFF_SECONDS, backoff * 2), MAX_BACKOFF_SECONDS)
                self.observed.num_restarts += 1
        finally:
            self.ended.set()
            self._on_change()

    def stop(self, grace: float) -> None:
        """preStop, SIGTERM, wait, SIGKILL; return when it has ended."""
        self._stopping.set()
        self._end_process(grace)
        self.ended.wait()

    def hurry(self, grace: float) -> None:
        """Leave it no more than so many seconds from now, where it is stopping."""
        self._kill_at = min(self._kill_at, time.monotonic() + grace)

    def kill(self) -> None:
        """SIGKILL to its first process, as a crash: it restarts by its policy.

        Returns when it is gone. While the kernel takes its memory apart, a quarter of a second for
        a large one, its connections are still open, and look well to those who use them.
        """
        first = self._first_process()
        ending = None if first is None else _watched(first)
        # unshare before it: of a child that got this signal it would report status 1.
        if self._process is not None:
            self._process.kill()
        # The kernel does not tell a process that has changed its user of unshare's end.
        if first is not None:
            with suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        if ending is not None:
            select.select([ending], [], [], GONE_SECONDS)
            os.close(ending)

    def execute(self, command: Sequence[str], timeout: float) -> int:
        """Run a command inside; its exit status."""
        pid = self._first_process()
        if pid is None or self._identity is None:
            return 1
        inside = ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--uts", "--ipc"]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        line = [
            *inside,
            "--root",
            "--wd",
            *self._identity.command(),
            "env",
            "-i",
            *variables,
            *command,
        ]
        with self.log_file.open("ab") as log:
            done = subprocess.run(
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                timeout=timeout,
                check=False,
            )
        return done.returncode

    def _run_once(self) -> bool:
        """One life of the process; whether there is to be another."""
        process = self._start()
        if process is None:
            return False
        self._process = process
        # A stop that came while it started has found nothing to signal, and waits without end.
        if self._stopping.is_set():
            process.kill()
        # Until then a probe that runs a command would look at this machine's own files.
        while process.poll() is None and not self._has_own_root():
            time.sleep(ROOT_LOOK_SECONDS)
        self.observed.state = {"running": {"startedAt": now()}}
        self._on_change()
        self._begin_probes()
        status = process.wait()
        self._end_probes()
        code = 128 - status if status < 0 else status
        begun = self.observed.state.get("running", {}).get("startedAt", now())
        ended = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "startedAt": begun,
            "finishedAt": now(),
        }
        self.observed.state = {"terminated": ended}
        self.observed.ready = self.observed.started = False
        again = self._restart_policy == "Always" or (
            self._restart_policy == "OnFailure" and code != 0
        )
        if again and not self._stopping.is_set():
            self.observed.last_state = self.observed.state
            self._on_change()
            return True
        return False

    def _start(self) -> subprocess.Popen[bytes] | None:
        """The process, once all that it needs is there; None when stopped before."""
        while not self._stopping.is_set():
            try:
                return self._spawn()
            except ConfigMissing as error:
                self._wait_in("CreateContainerConfigError", str(error), RETRY_SECONDS)
        self.observed.state = {"terminated": _never_started()}
        return None

    def _spawn(self) -> subprocess.Popen[bytes]:
        sandbox, pod = self._sandbox, self._sandbox.pod
        image = find_image(sandbox.machine_folder, self.spec["image"])
        while image is None:
            self._wait_in("ErrImagePull", f"no image {self.spec['image']}", RETRY_SECONDS)
            if self._stopping.is_set():
                raise ConfigMissing("stopped")
            image = find_image(sandbox.machine_folder, self.spec["image"])
        self._identity = identity(pod, self.spec, image)
        address = str(sandbox.network.address)
        own = container_environment(sandbox.api, pod, self.spec, address)
        base = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOSTNAME": pod["metadata"]["name"]}
        self._environment = base | image.environment | own
        folder = self.spec.get("workingDir") or image.folder
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        line = command_line(self.spec, image.entrypoint, image.arguments, self._environment)
        command = [*self._identity.command(), "env", "-i", f"--chdir={folder}", *variables, *line]
        script = write_script(
            sandbox.new_container_folder(self.spec["name"]),
            image,
            self.spec,
            sandbox.volumes,
            sandbox.etc_files(),
            command,
        )
        with self.log_file.open("ab") as log:
            # A program may open /dev/stdout anew, as whatever user it runs.
            self.log_file.chmod(0o666)
            return subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{sandbox.network.name}", "unshare", "--mount"),
                    *("--propagation", "private", "--pid", "--fork", "--kill-child=KILL"),
                    *("--uts", "--ipc", "/bin/sh", str(script)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _begin_probes(self) -> None:
        hook = (self.spec.get("lifecycle") or {}).get("postStart")
        if hook:
            self._run_hook(hook, timeout=60.0)
        startup = self.spec.get("startupProbe")
        if startup is None:
            self._has_started()
            return

        def on_verdict(good: bool) -> None:
            if good:
                probe.stop()
                self._has_started()
            else:
                self._restart_unhealthy(startup)

        probe = self._probe(startup, on_verdict)

    def _has_started(self) -> None:
        self.observed.started = True
        readiness, liveness = (self.spec.get(f"{kind}Probe") for kind in ("readiness", "liveness"))
        if readiness is None:
            self.observed.ready = True
        else:
            self._probe(readiness, self._set_ready)
        if liveness is not None:
            self._probe(liveness, lambda good: None if good else self._restart_unhealthy(liveness))
        self._on_change()

    def _probe(self, spec: Json, on_verdict: Callable[[bool], None]) -> Probe:
        probe = Probe(spec, self._aim(), on_verdict)
        self._probes.append(probe)
        probe.start()
        return probe

    def _set_ready(self, good: bool) -> None:
        if self.observed.ready != good:
            self.observed.ready = good
            self._on_change()

    def _restart_unhealthy(self, probe: Json) -> None:
        pod_grace = self._sandbox.pod["spec"].get("terminationGracePeriodSeconds", 30)
        self._end_process(float(probe.get("terminationGracePeriodSeconds", pod_grace)))

    def _end_probes(self) -> None:
        for probe in self._probes:
            probe.stop()
        self._probes.clear()

    def _end_process(self, grace: float) -> None:
        self._kill_at = time.monotonic() + grace
        process = self._process
        if process is None or process.poll() is not None:
            return
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook:
            self._run_hook(hook, timeout=max(grace, 0.1))
            self._kill_at = max(self._kill_at, time.monotonic() + LEAST_TERM_SECONDS)
        self._signal(signal.SIGTERM)
        while (remaining := self._kill_at - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(remaining, LOOK_SECONDS))
                return
        self.kill()

    def _run_hook(self, hook: Json, timeout: float) -> None:
        if "sleep" in hook:
            process = self._process
            with suppress(subprocess.TimeoutExpired):
                if process is not None:
                    process.wait(min(float(hook["sleep"]["seconds"]), timeout))
        else:
            self._aim().succeeds(hook, timeout)

    def _aim(self) -> Target:
        ports = {
            port["name"]: int(port["containerPort"])
            for port in self.spec.get("ports") or ()
            if "name" in port
        }
        return Target(str(self._sandbox.network.address), ports, self.execute)

    def _first_process(self) -> int | None:
        """The container's process 1, by the number it has outside; None when there is none."""
        process = self._process
        if process is None or process.poll() is not None:
            return None
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        except OSError:
            return None
        return int(children.split()[0]) if children.strip() else None

    def _has_own_root(self) -> bool:
        """Whether the script has made the container's root, and gone there."""
        pid = self._first_process()
        try:
            return pid is not None and not os.path.samefile(f"/proc/{pid}/root", "/")
        except OSError:
            return False  # it has ended

    def _signal(self, number: signal.Signals) -> None:
        pid = self._first_process()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait_in(self, reason: str, message: str, seconds: float) -> None:
        waiting = {"waiting": {"reason": reason, "message": message}}
        if self.observed.state != waiting:
            self.observed.state = waiting
            self._on_change()
        self._stopping.wait(seconds)


def _watched(process: int) -> int | None:
    """A file that can be read once a process has ended; None where it has already."""
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:
        return None


def _never_started() -> Json:
    """The state of a container that was stopped before its process began."""
    return {"exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": now()}
