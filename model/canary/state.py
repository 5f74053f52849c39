"""A canary's state, as it is kept on the object that carries its traffic, and how it may change.

Pure: every change takes a state and gives the next one, or refuses. State and weights stand on the
same object and are written together, so that one cannot be without the other, and whoever finds
the state can go on from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, assert_never

from pydantic import Field, ValidationError, computed_field

from model.canary.errors import Refused
from model.canary.frozen import Frozen, Instant
from model.canary.gates import Measured, Unknown
from model.canary.golden import Golden
from model.canary.plan import (
    Advance,
    Decision,
    Done,
    Observation,
    Plan,
    Progress,
    RollBack,
    next_step,
    proceed,
)

ANNOTATION: Final = "qwen3-vl.io/canary"
# In the time after which a holder is stale.
RENEWALS: Final = 3


class Phase(StrEnum):
    """Where a canary is. starting: it has no traffic yet; promoting: the stable one becomes it."""

    STARTING = "starting"
    PROGRESSING = "progressing"
    PROMOTING = "promoting"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled-back"
    ABORTED = "aborted"

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self in (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED)


class Changes(Frozen):
    """What a canary made from the stable InferenceService has of its own."""

    image: str | None = None
    storage_uri: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    replicas: int = Field(1, ge=1)


class Header(Frozen):
    """Requests with this header go to the canary, whatever its weight."""

    name: str = Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=256)
    value: str = Field(min_length=1, max_length=4096)


class Holder(Frozen):
    """The process that drives a canary; stale when it has not renewed for `ttl_seconds`."""

    identity: str
    renewed_at: Instant
    ttl_seconds: float = Field(gt=0)


class Condition(Frozen):
    """As Kubernetes' conditions are, of type Progressing; as a Deployment's."""

    type: Literal["Progressing"] = "Progressing"
    status: Literal["True", "False"]
    reason: str
    message: str
    lastTransitionTime: Instant


class State(Frozen):
    """Everything that is needed to go on with a canary.

    changes: how it differs from the stable one that it is made from; None: it was there before
    keep: leave the canary's InferenceService when it is over
    header_only: an A/B test: only requests with the header see the canary
    followers: other routes with the same weights, as "grpcroutes/NAME"
    phase_started_at, note, seen: of the last evaluation, for people
    """

    schema_version: Literal[1] = 1
    id: str
    stable: str
    canary: str
    changes: Changes | None = None
    keep: bool = False
    header: Header | None = None
    header_only: bool = False
    followers: tuple[str, ...] = ()
    golden: Golden | None = None
    prometheus_url: str
    ready_seconds: float = Field(1800.0, gt=0)
    plan: Plan = Plan()
    phase: Phase = Phase.STARTING
    phase_started_at: Instant
    started_at: Instant
    progress: Progress
    reason: str = ""
    note: str = ""
    seen: Measured | None = None
    holder: Holder | None = None

    @property
    def weight_percent(self) -> int:
        """The canary's share of the traffic: it follows from the state alone."""
        has_traffic = self.phase in (Phase.PROGRESSING, Phase.PROMOTING) and not self.header_only
        return self.plan.steps[self.progress.step] if has_traffic else 0

    @property
    def title(self) -> str:
        """What it is, for people."""
        if self.canary == self.stable:
            return f"the new revision of {self.stable}"
        return f"{self.canary} beside {self.stable}"

    @property
    def routes_header(self) -> bool:
        """Whether requests with the header go to the canary now."""
        return self.header is not None and self.phase in (Phase.PROGRESSING, Phase.PROMOTING)

    @property
    def removes_canary(self) -> bool:
        """Whether the canary's InferenceService is to go: only one that was made for this."""
        return self.phase.over and self.changes is not None and not self.keep

    @computed_field  # type: ignore[prop-decorator]
    @property
    def condition(self) -> Condition:
        """The state as a condition, for whoever reads those."""
        failed = self.phase in (Phase.ROLLED_BACK, Phase.ABORTED)
        return Condition(
            status="False" if failed else "True",
            reason="".join(word.capitalize() for word in self.phase.split("-")),
            message=self.reason or self.note,
            lastTransitionTime=self.phase_started_at,
        )

    def dump(self) -> str:
        """The annotation's text."""
        return self.model_dump_json()


def parse(text: str) -> State:
    """The state in an annotation; raises Refused for what is none, or a newer version's."""
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            value.pop("condition", None)
            version = value.get("schema_version")
            if isinstance(version, int) and version > 1:
                raise Refused(
                    f"the canary was started by a newer version of this tool (schema {version}; "
                    "this one knows 1)"
                )
        return State.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        raise _unreadable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    except ValueError as e:
        raise _unreadable(str(e)) from e


def _unreadable(why: str) -> Refused:
    return Refused(
        f"annotation {ANNOTATION} holds no state of a canary ({why}); remove it to start anew"
    )


def driver_of(state: State, now: float) -> Holder | None:
    """Who drives the canary; None where nobody does, or has not renewed for too long."""
    holder = state.holder
    stale = holder is None or now - holder.renewed_at >= holder.ttl_seconds
    return None if stale else holder


def claim(state: State, identity: str, now: float, ttl_seconds: float) -> State:
    """The state, driven by `identity` from now on; raises Refused while another one renews.

    The clocks may differ: two that both think they drive are told apart at the next write, which
    only one of them can do.
    """
    driver = driver_of(state, now)
    if driver is not None and driver.identity != identity:
        idle = max(0.0, now - driver.renewed_at)
        raise Refused(
            f"{driver.identity} drives this canary (renewed {idle:.0f} s ago, stale after "
            f"{driver.ttl_seconds:.0f} s); see it with: canary status"
        )
    # A renewal is a write, and every write wakes the gateway's controller.
    if driver is not None and now - driver.renewed_at < ttl_seconds / RENEWALS:
        return state
    renewed = Holder(identity=identity, renewed_at=now, ttl_seconds=ttl_seconds)
    return state.model_copy(update={"holder": renewed})


def release(state: State, identity: str) -> State:
    """The state, driven by nobody; as it is where another one has taken it."""
    if state.holder is None or state.holder.identity != identity:
        return state
    return state.model_copy(update={"holder": None})


def enter(state: State, phase: Phase, reason: str, now: float) -> State:
    """The state in another phase."""
    return state.model_copy(update={"phase": phase, "phase_started_at": now, "reason": reason})


def begin(state: State, baseline: Measured | None, now: float) -> State:
    """From ready to the first step."""
    progress = Progress(step_started_at=now, paused=state.progress.paused, baseline=baseline)
    first = enter(state, Phase.PROGRESSING, "the canary is ready", now)
    return first.model_copy(update={"progress": progress})


def decided(state: State, decision: Decision, observation: Observation, now: float) -> State:
    """The state after a decision."""
    seen = None if isinstance(observation.canary, Unknown) else observation.canary
    progress = proceed(state.plan, state.progress, decision, observation.stable, now)
    told = state.model_copy(update={"progress": progress, "note": decision.reason, "seen": seen})
    match decision:
        case RollBack(reason):
            return enter(told, Phase.ROLLED_BACK, reason, now)
        case Done(reason):
            return enter(told, Phase.PROMOTING, reason, now)
        case _:
            return told


def advance(state: State, now: float) -> State:
    """One step further by hand, without hold or gates."""
    _check_progressing(state, "advance")
    if state.header_only:
        raise Refused("only requests with the header see this canary; promote or abort it")
    decision = next_step(state.plan, state.progress, "advanced by hand")
    if not isinstance(decision, Advance):
        raise Refused(
            f"the canary is at its last step ({state.weight_percent} %); promote or abort it"
        )
    return decided(state, decision, Observation(Unknown(""), Unknown("")), now)


def pause(state: State, *, paused: bool) -> State:
    """Held at its weight, or going on."""
    if state.phase not in (Phase.STARTING, Phase.PROGRESSING):
        raise Refused(f"the canary is {state.phase}: there is nothing to pause or resume")
    progress = state.progress.model_copy(update={"paused": paused})
    return state.model_copy(update={"progress": progress})


def abort(state: State, reason: str, now: float) -> State:
    """Over, with all traffic at the stable one."""
    if state.phase.over:
        raise Refused(f"the canary is {state.phase} already")
    if state.phase is Phase.PROMOTING:
        raise Refused("the canary is being promoted: the stable one has its spec already")
    return enter(state, Phase.ABORTED, reason, now)


def promote(state: State, now: float) -> State:
    """Promoted by hand, at whatever step."""
    if state.phase is Phase.PROMOTING:
        return state
    _check_progressing(state, "promote")
    return enter(state, Phase.PROMOTING, "promoted by hand", now)


def _check_progressing(state: State, verb: str) -> None:
    if state.phase is not Phase.PROGRESSING:
        raise Refused(f"the canary is {state.phase}; only a progressing one can {verb}")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A change that others hear of. reason: of the Event, as `kubectl get events` lists it."""

    reason: str
    text: str
    bad: bool = False


def announce(before: State | None, after: State) -> Announcement | None:
    """What is to be told of a change; None where it is only an evaluation more."""
    names = after.title
    if before is None or before.id != after.id:
        return Announcement("CanaryStarted", f"{names}: waiting for it to be ready")
    if before.phase is not after.phase:
        match after.phase:
            case Phase.PROGRESSING:
                return Announcement("CanaryProgressing", f"{names}: {after.weight_percent} %")
            case Phase.PROMOTING:
                return Announcement("CanaryPromoting", f"{names}: {after.reason}")
            case Phase.PROMOTED:
                return Announcement(
                    "CanaryPromoted", f"{after.stable} has its spec and all traffic"
                )
            case Phase.ROLLED_BACK:
                return Announcement("CanaryRolledBack", f"{names}: {after.reason}", bad=True)
            case Phase.ABORTED:
                return Announcement("CanaryAborted", f"{names}: {after.reason}", bad=True)
            case Phase.STARTING:
                return None
            case unexpected:
                assert_never(unexpected)
    if before.progress.step != after.progress.step:
        return Announcement("CanaryAdvanced", f"{names}: {after.weight_percent} %, {after.note}")
    if before.progress.paused is not after.progress.paused:
        paused = after.progress.paused
        verb = "Paused" if paused else "Resumed"
        return Announcement(f"Canary{verb}", f"{names}: {verb.lower()} at {after.weight_percent} %")
    return None
