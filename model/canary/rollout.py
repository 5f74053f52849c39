"""One canary, driven: read the state, do what its phase asks, write the state; until it is over.

A round begins with what the cluster says and ends with a write against the version it read, so a
run may die between any two of its requests and another one goes on. The policy is not here: see
`plan.decide`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from model.canary.cluster import retry
from model.canary.errors import CanaryError, ClusterError, Refused, Unreachable
from model.canary.golden import Unanswered, wrong_answers
from model.canary.plan import Advance, Done, Observation, Wait, baseline_of, decide
from model.canary.state import (
    Announcement,
    Phase,
    State,
    announce,
    begin,
    claim,
    decided,
    enter,
    release,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    import httpx

    from model.canary.golden import Case
    from model.canary.observe import Prometheus
    from model.canary.plan import Decision
    from model.canary.traffic import Traffic

# While pods start, nothing is measured: looking often costs little.
POLL_SECONDS: Final = 2.0
# A run that was killed is taken over after so long, as a leader of Kubernetes' own is, or after
# three of its evaluations.
MIN_TTL_SECONDS: Final = 15.0
# What stable did before the first step, for plans whose steps leave it nothing.
MIN_BASELINE_SECONDS: Final = 60.0


class Report(Protocol):
    """Who is told of what happens."""

    def announced(self, state: State, announcement: Announcement) -> None:
        """Something changed."""

    def waiting(self, state: State, text: str) -> None:
        """Nothing changed, and why."""

    def trouble(self, text: str) -> None:
        """Something could not be done; it is tried again or left out."""


class Interrupted(Exception):
    """The run was asked to stop; the canary is as it was, and driven by nobody."""


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden set, and a client that reaches the canary alone."""

    cases: Seq[Case]
    client: httpx.Client


class Rollout:
    """Drives the canary of one route, for as long as it may.

    identity: of this run, unique
    settle_rounds: for how many rounds a canary has to be ready before its first traffic: a gateway
    that hears of its share before it hears of its pods answers 503
    """

    def __init__(
        self,
        traffic: Traffic,
        prometheus: Prometheus,
        golden: Golden | None,
        report: Report,
        identity: str,
        clock: Callable[[], float],
        settle_rounds: int = 1,
    ) -> None:
        self._traffic = traffic
        self._prometheus = prometheus
        self._golden = golden
        self._report = report
        self._identity = identity
        self._clock = clock
        self._settle_rounds = settle_rounds
        self._ready_rounds = 0
        self._id: str | None = None

    def run(self, wait: Callable[[float], bool]) -> State:
        """Rounds until the canary is over; its last state.

        wait: passes so many seconds, and says whether to stop
        Raises Interrupted, Refused where another run has taken over, and ClusterError for what
        asking again would not mend.
        """
        seconds = POLL_SECONDS
        try:
            while True:
                try:
                    state = self.round()
                    seconds = self._pause_after(state)
                    if state.phase.over:
                        return state
                except Unreachable as e:
                    self._report.trouble(f"{e}; asking again")
                if wait(seconds):
                    raise Interrupted
        finally:
            self._let_go()

    def round(self) -> State:
        """One round; raises CanaryError."""
        state = self._update(lambda state: state)
        self._traffic.follow(state)
        match state.phase:
            case Phase.STARTING:
                return self._start(state)
            case Phase.PROGRESSING:
                return self._evaluate(state)
            case Phase.PROMOTING:
                return self._promote(state)
            case Phase.PROMOTED | Phase.ROLLED_BACK | Phase.ABORTED:
                return self._end(state)
            case unexpected:
                assert_never(unexpected)

    def _start(self, state: State) -> State:
        """Make the canary and wait for it; then its first share of the traffic."""
        self._traffic.prepare(state)
        now = self._clock()
        not_ready = self._traffic.why_not_ready(state)
        if not_ready is not None:
            self._ready_rounds = 0
            if now - state.started_at <= state.ready_seconds:
                return self._wait(state, not_ready)
            reason = f"not ready within {state.ready_seconds:.0f} s: {not_ready}"
            return self._enter(state, Phase.ROLLED_BACK, reason)
        if state.progress.paused:
            return self._wait(state, "paused")
        if self._ready_rounds < self._settle_rounds:
            self._ready_rounds += 1
            return self._wait(state, "ready, until gateways have heard of its pods")
        try:
            wrong = self._ask_golden(state)
        except Unanswered as e:
            return self._wait(state, f"the golden set cannot be asked: {e}")
        if wrong:
            return self._enter(state, Phase.ROLLED_BACK, wrong)
        stable, _ = self._traffic.selectors(state)
        seconds = max(MIN_BASELINE_SECONDS, state.plan.hold_seconds)
        figures = self._prometheus.figures(stable, seconds)
        baseline = baseline_of(state.plan, state.progress, figures)
        return self._change(state, lambda state: begin(state, baseline, self._clock()))

    def _evaluate(self, state: State) -> State:
        """Observe, decide, act."""
        now = self._clock()
        seconds = now - state.progress.step_started_at
        stable, canary = self._traffic.selectors(state)
        observation = Observation(
            canary=self._prometheus.figures(canary, seconds),
            stable=self._prometheus.figures(stable, seconds),
            not_ready=self._traffic.why_not_ready(state),
        )
        decision = decide(state.plan, state.progress, observation, now)
        if isinstance(decision, Advance | Done) and state.header_only:
            decision = Wait(f"{decision.reason}; an A/B test ends by hand: promote or abort")
        if isinstance(decision, Advance | Done):
            decision = self._check_golden(state, observation, decision, now)
        changed = self._change(state, lambda state: decided(state, decision, observation, now))
        if isinstance(decision, Wait):
            self._report.waiting(changed, decision.reason)
        return self._end(changed) if changed.phase.over else changed

    def _check_golden(
        self, state: State, observation: Observation, decision: Decision, now: float
    ) -> Decision:
        """The decision to go on, unless the canary answers wrongly."""
        try:
            wrong = self._ask_golden(state)
        except Unanswered as e:
            return Wait(f"the golden set cannot be asked: {e}")
        if not wrong:
            return decision
        return decide(state.plan, state.progress, replace(observation, wrong_answers=wrong), now)

    def _ask_golden(self, state: State) -> str:
        """What is wrong with the canary's answers; raises Unanswered."""
        if state.golden is None:
            return ""
        if self._golden is None:
            raise Unanswered("its file is not here")
        golden = self._golden
        return wrong_answers(golden.client, golden.cases, state.golden, lambda: self._renew(state))

    def _promote(self, state: State) -> State:
        """Make the stable one like the canary; when it serves, give it all traffic."""
        reason = self._traffic.why_not_promoted(state)
        if reason is not None:
            return self._wait(state, f"{state.stable}: {reason}")
        return self._enter(state, Phase.PROMOTED, state.reason)

    def _enter(self, state: State, phase: Phase, reason: str) -> State:
        changed = self._change(state, lambda state: enter(state, phase, reason, self._clock()))
        return self._end(changed) if changed.phase.over else changed

    def _end(self, state: State) -> State:
        """Clear up; the canary's traffic is gone already."""
        self._traffic.leave(state)
        return state

    def _wait(self, state: State, note: str) -> State:
        changed = self._change(state, lambda state: state.model_copy(update={"note": note}))
        self._report.waiting(changed, note)
        return changed

    def _change(self, seen: State, change: Callable[[State], State]) -> State:
        """Write a change of the state that was seen, and tell of it.

        Where somebody has paused, advanced or ended the canary meanwhile, theirs stands.
        """

        def checked(state: State) -> State:
            same = (state.phase, state.progress.step, state.progress.paused) == (
                seen.phase,
                seen.progress.step,
                seen.progress.paused,
            )
            return change(state) if same else state

        changed = self._update(checked)
        self._traffic.follow(changed)
        tell(self._traffic, self._report, seen, changed)
        return changed

    def _update(self, change: Callable[[State], State]) -> State:
        """Write a change of the state, as long as this run may; raises Refused."""

        def attempt() -> State:
            snapshot = self._traffic.read()
            state = snapshot.state
            if state is None:
                raise Refused(f"{self._traffic.name} has no canary")
            self._id = self._id or state.id
            if state.id != self._id:
                raise Refused(f"another canary of {self._traffic.name} was started meanwhile")
            if not state.phase.over:
                ttl_seconds = max(MIN_TTL_SECONDS, 3 * state.plan.interval_seconds)
                state = claim(state, self._identity, self._clock(), ttl_seconds)
            written = self._traffic.write(snapshot, change(state)).state
            assert written is not None
            return written

        return retry(attempt)

    def _renew(self, state: State) -> None:
        """Stay the holder during something that takes long."""
        with contextlib.suppress(Unreachable):
            self._update(lambda state: state)

    def _let_go(self) -> None:
        """Leave the canary to whoever comes next, if it can be said; else it becomes stale."""

        def attempt() -> None:
            snapshot = self._traffic.read()
            if snapshot.state is not None:
                self._traffic.write(snapshot, release(snapshot.state, self._identity))

        with contextlib.suppress(CanaryError):
            retry(attempt)

    def _pause_after(self, state: State) -> float:
        interval = state.plan.interval_seconds
        return interval if state.phase is Phase.PROGRESSING else min(POLL_SECONDS, interval)


def tell(traffic: Traffic, report: Report, before: State | None, after: State) -> None:
    """Announce a change here and, as an Event, in the cluster."""
    announcement = announce(before, after)
    if announcement is None:
        return
    report.announced(after, announcement)
    try:
        traffic.record(after, announcement.reason, announcement.text, bad=announcement.bad)
    except ClusterError as e:
        report.trouble(f"no Event recorded: {e}")
