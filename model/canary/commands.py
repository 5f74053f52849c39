"""The commands: each reads the state, changes it once or drives it, and says what came of it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Final

import httpx

from model.canary import arguments
from model.canary.cluster import GRPC_ROUTE, HTTP_ROUTE, INFERENCE_SERVICE, connect, retry
from model.canary.display import JsonLines, Lines, Picture, as_json, picture
from model.canary.errors import (
    EXIT_DONE,
    EXIT_ROLLED_BACK,
    CanaryError,
    Refused,
    UsageError,
)
from model.canary.golden import load_cases
from model.canary.knative import KnativeTraffic
from model.canary.observe import Prometheus
from model.canary.plan import Progress
from model.canary.rollout import Golden, Interrupted, Rollout, tell
from model.canary.routes import backends, owner_of
from model.canary.state import Phase, State, abort, advance, driver_of, pause, promote
from model.canary.traffic import RouteTraffic, snapshot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Sequence as Seq

    from model.canary.cluster import Cluster
    from model.canary.rollout import Report
    from model.canary.traffic import Traffic

STATUS_SECONDS: Final = 2.0
TRAFFIC: Final[dict[str, type[RouteTraffic | KnativeTraffic]]] = {
    "route": RouteTraffic,
    "service": KnativeTraffic,
}


def main(program: str, given_arguments: Seq[str], environ: Mapping[str, str]) -> int:
    """Run a command; its exit status, as `--help` explains it."""
    given = arguments.parse_arguments(program, given_arguments)
    report: Report = Lines()
    if given.output == "json":
        report = JsonLines()
    elif sys.stdout.isatty():
        report = Picture()
    try:
        with closing(connect(given.kubeconfig, given.context, given.namespace)) as cluster:
            return Command(cluster, given, report, environ, program).run()
    except CanaryError as e:
        report.trouble(str(e))
        return e.exit_status


class Command:
    """One command line against one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        given: argparse.Namespace,
        report: Report,
        environ: Mapping[str, str],
        program: str,
    ) -> None:
        self._cluster = cluster
        self._given = given
        self._report = report
        self._environ = environ
        self._program = program

    def run(self) -> int:
        """Do what the command says; raises CanaryError."""
        match self._given.command:
            case "status":
                return self._status()
            case "start":
                return self._start()
            case "watch":
                return self._drive()
            case "promote":
                return self._promote()
            case "advance":
                self._change(lambda state: advance(state, time.time()))
            case "pause" | "resume":
                paused = self._given.command == "pause"
                self._change(lambda state: pause(state, paused=paused))
            case "abort":
                self._abort()
        return EXIT_DONE

    @property
    def _traffic(self) -> Traffic:
        kind, name = self._given.target
        return TRAFFIC[kind](self._cluster, name)

    def _start(self) -> int:
        """Claim the route, then drive the canary, unless somebody else is to."""
        traffic = self._traffic
        # First: behind a route with a canary are two, and none of them is called stable.
        self._free(traffic.read().state)
        state = self._new_state()
        not_routed = traffic.why_not_routed(state)
        if not_routed is not None:
            raise Refused(not_routed)
        if state.golden is not None:
            load_cases(state.golden)
        dry_run = self._given.dry_run

        def attempt() -> State | None:
            snapshot = traffic.read()
            before = self._free(snapshot.state)
            traffic.prepare(state, dry_run=True)
            traffic.write(snapshot, state, dry_run=dry_run)
            return before

        before = retry(attempt)
        if dry_run:
            self._show_plan(state)
            return EXIT_DONE
        tell(traffic, self._report, before, state)
        if self._given.detach:
            return EXIT_DONE
        return self._drive()

    def _free(self, before: State | None) -> State | None:
        """The state of a canary that is over, or None; raises Refused for one that is not."""
        if before is None or before.phase.over:
            return before
        _, name = self._given.target
        raise Refused(
            f"{name} has a canary already: {before.canary}, {before.phase} at "
            f"{before.weight_percent} %; go on with `{self._program} watch {name}`, or end it "
            "with abort"
        )

    def _new_state(self) -> State:
        given = self._given
        stable, canary = self._services()
        now = time.time()
        changes = arguments.changes_of(given)
        return State(
            id=uuid.uuid4().hex[:12],
            stable=stable,
            canary=canary,
            changes=changes,
            keep=given.keep,
            header=given.header,
            header_only=given.header_only,
            followers=self._followers(given.target[1], stable, canary),
            golden=arguments.golden_of(given),
            prometheus_url=self._prometheus_url(None),
            ready_seconds=given.ready_timeout,
            plan=arguments.plan_of(given),
            phase=Phase.STARTING,
            phase_started_at=now,
            started_at=now,
            progress=Progress(step_started_at=now),
        )

    def _services(self) -> tuple[str, str]:
        """Stable and canary; raises UsageError."""
        kind, name = self._given.target
        if kind == "service":
            return name, name
        stable = self._given.stable or self._only_service(name)
        canary = self._given.canary or f"{stable}-canary"
        if stable == canary:
            raise UsageError(f"--stable and --canary are both {stable}")
        return stable, canary

    def _only_service(self, route: str) -> str:
        """The InferenceService behind a route; raises UsageError where there is not one."""
        names = [one["metadata"]["name"] for one in self._cluster.list_all(INFERENCE_SERVICE)]
        rules = self._cluster.get(HTTP_ROUTE, route)["spec"].get("rules", ())
        owners = {owner_of(ref, names) for ref in backends(rules)} - {None}
        if len(owners) != 1:
            found = ", ".join(sorted(map(str, owners))) or "none"
            raise UsageError(
                f"say which InferenceService is the stable one with --stable: behind {route} are "
                f"{found}"
            )
        return str(owners.pop())

    def _followers(self, route: str, stable: str, canary: str) -> tuple[str, ...]:
        """The other routes to the stable one, but for those that a controller owns."""
        if stable == canary:
            return ()
        return tuple(
            f"{kind.plural}/{found['metadata']['name']}"
            for kind in (HTTP_ROUTE, GRPC_ROUTE)
            for found in self._cluster.list_all(kind)
            if (kind, found["metadata"]["name"]) != (HTTP_ROUTE, route)
            and not found["metadata"].get("ownerReferences")
            and stable
            in {owner_of(ref, (stable, canary)) for ref in backends(found["spec"].get("rules", ()))}
        )

    def _drive(self) -> int:
        """Drive the canary to its end, or until a signal."""
        traffic = self._traffic
        state = self._state(traffic)
        rollout = Rollout(
            traffic,
            Prometheus(self._prometheus_client(self._prometheus_url(state))),
            self._golden(traffic, state),
            self._report,
            identity(),
            time.time,
        )
        stop = threading.Event()
        received = _stop_on_signals(stop)
        try:
            state = rollout.run(stop.wait)
        except Interrupted:
            self._report.trouble(
                f"stopped; the canary stays as it is. Go on: {self._program} watch "
                f"{traffic.name} -n {self._cluster.namespace}"
            )
            return 128 + received[0]
        return EXIT_DONE if state.phase is Phase.PROMOTED else EXIT_ROLLED_BACK

    def _golden(self, traffic: Traffic, state: State) -> Golden | None:
        if state.golden is None:
            return None
        path = self._given.golden or state.golden.path
        golden = state.golden.model_copy(update={"path": path})
        try:
            cases = load_cases(golden)
        except UsageError as e:
            # Whoever goes on elsewhere may lack the file: then nothing advances, but all is held.
            self._report.trouble(f"{e}; give it with --golden FILE")
            return None
        url = self._given.golden_url or state.golden.url
        client = httpx.Client(base_url=url) if url else traffic.canary_client(state)
        return Golden(cases, client)

    def _prometheus_url(self, state: State | None) -> str:
        url = self._given.prometheus_url
        variable = self._environ.get(arguments.PROMETHEUS_VARIABLE)
        if url is None and variable:
            try:
                url = arguments.prometheus_url(variable)
            except argparse.ArgumentTypeError as e:
                raise UsageError(f"${arguments.PROMETHEUS_VARIABLE}: {e}") from e
        if url is None and state is not None:
            url = state.prometheus_url
        if url is None:
            raise UsageError(
                f"say where Prometheus is: --prometheus-url or ${arguments.PROMETHEUS_VARIABLE}"
            )
        return str(url)

    def _prometheus_client(self, url: str) -> httpx.Client:
        if not url.startswith("service://"):
            return httpx.Client(base_url=f"{url}/")
        namespace, _, service = url.removeprefix("service://").partition("/")
        name, _, port = service.partition(":")
        return self._cluster.service_client(name, port, namespace)

    def _change(self, change: Callable[[State], State]) -> State:
        """Change the state once, whoever drives the canary; it goes on from there."""
        traffic = self._traffic

        def attempt() -> tuple[State, State]:
            snapshot = traffic.read()
            if snapshot.state is None:
                raise Refused(f"{traffic.name} has no canary")
            changed = change(snapshot.state)
            traffic.write(snapshot, changed)
            return snapshot.state, changed

        before, after = retry(attempt)
        traffic.follow(after)
        tell(traffic, self._report, before, after)
        return after

    def _promote(self) -> int:
        """Promote, or leave that to the run that drives the canary already."""
        state = self._change(lambda state: promote(state, time.time()))
        driver = driver_of(state, time.time())
        if driver is None:
            return self._drive()
        self._report.waiting(state, f"{driver.identity} goes on with it")
        return EXIT_DONE

    def _abort(self) -> None:
        state = self._change(lambda state: abort(state, self._given.reason, time.time()))
        self._traffic.leave(state)

    def _state(self, traffic: Traffic) -> State:
        state = traffic.read().state
        if state is None:
            raise Refused(f"{traffic.name} has no canary")
        return state

    def _status(self) -> int:
        """Show one canary, or all of the namespace."""
        while True:
            states = self._states()
            self._show(states)
            if not self._given.watch or all(state.phase.over for state in states.values()):
                return EXIT_DONE
            time.sleep(STATUS_SECONDS)

    def _states(self) -> dict[str, State]:
        if self._given.target is not None:
            traffic = self._traffic
            return {f"{traffic.kind.plural}/{traffic.name}": self._state(traffic)}
        states = {}
        for kind in (HTTP_ROUTE, INFERENCE_SERVICE):
            for body in self._cluster.list_all(kind):
                name = body["metadata"]["name"]
                try:
                    state = snapshot_of(body).state
                except Refused as e:
                    self._report.trouble(f"{kind.name} {name}: {e}")
                    continue
                if state is not None:
                    states[f"{kind.plural}/{name}"] = state
        return states

    def _show(self, states: Mapping[str, State]) -> None:
        for name, state in states.items():
            if self._given.output == "json":
                print(json.dumps({"name": name, **as_json(state)}, ensure_ascii=False), flush=True)
                continue
            driver = driver_of(state, time.time())
            driven = f"driven by {driver.identity}" if driver else "driven by nobody"
            lines = picture(state, colored=sys.stdout.isatty())
            print("\n".join([*lines, *([] if state.phase.over else [f"  {driven}"])]), flush=True)
        if not states and self._given.output != "json":
            print(f"no canary in namespace {self._cluster.namespace}")

    def _show_plan(self, state: State) -> None:
        """What a start would do."""
        if self._given.output == "json":
            print(json.dumps(as_json(state), ensure_ascii=False))
            return
        made = "made from it with its changes" if state.changes else "there already"
        steps = " → ".join(f"{percent} %" for percent in state.plan.steps)
        print(f"would start {state.canary} ({made}) beside {state.stable}: {steps},")
        print(
            f"each held for {state.plan.hold_seconds:.0f} s and {state.plan.min_requests} requests"
        )
        for follower in state.followers:
            print(f"with the same weights on {follower}")


def identity() -> str:
    """Of this run, unique, and telling people where it is."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:6]}"


def _stop_on_signals(stop: threading.Event) -> list[int]:
    """Set `stop` on SIGINT or SIGTERM; the list receives which. A second one ends at once."""
    received: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        received.append(number)
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return received
