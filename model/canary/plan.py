"""What a canary does next, from its plan, its progress and what was observed. Pure.

It knows no cluster, no Prometheus and no clock: `now` is an argument, in seconds since the epoch as
the times in `Progress` are. Whoever acts on a decision takes the new progress from `proceed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from pydantic import Field, field_validator

from model.canary.frozen import Frozen, Instant
from model.canary.gates import Figures, Gates, Measured, Outcome, Unknown, judge


class Plan(Frozen):
    """The steps of a canary, and what it takes to go from one to the next.

    steps: percent of the traffic, rising
    hold_seconds: at least so long at each step
    min_requests: fewer of the canary's since the step began prove nothing, good or bad
    max_failing: so many failing evaluations in a row roll back; one may be a bad moment
    deadline_seconds: longer at one step rolls back; None waits for ever
    """

    steps: tuple[int, ...] = (5, 25, 50, 100)
    hold_seconds: float = Field(300.0, ge=0)
    interval_seconds: float = Field(30.0, gt=0)
    min_requests: int = Field(100, ge=1)
    max_failing: int = Field(2, ge=1)
    deadline_seconds: float | None = Field(None, gt=0)
    gates: Gates = Gates()

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        pairs = zip((0, *steps), steps, strict=False)
        if not steps or not all(low < high <= 100 for low, high in pairs):
            raise ValueError("must be percentages that rise, from 1 to at most 100")
        return steps


class Progress(Frozen):
    """How far a canary is.

    step: index into the plan's steps
    num_failing: evaluations in a row that a gate failed
    baseline: the stable one's last figures that counted, for steps that leave it no traffic
    """

    step: int = Field(0, ge=0)
    step_started_at: Instant
    paused: bool = False
    num_failing: int = Field(0, ge=0)
    baseline: Measured | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of both versions since the step began.

    not_ready: why the canary serves nothing; None where it does
    wrong_answers: what it answered wrongly of the golden set; empty where right or not asked
    """

    canary: Figures
    stable: Figures
    not_ready: str | None = None
    wrong_answers: str = ""


@dataclass(frozen=True, slots=True)
class Advance:
    """Go to the plan's next step."""

    step: int
    weight_percent: int
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Stay. num_failing: of evaluations in a row, this one included where a gate failed it."""

    reason: str
    num_failing: int = 0


@dataclass(frozen=True, slots=True)
class RollBack:
    """Give all traffic back to the stable one, and end."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last step was held: promote."""

    reason: str


Decision: TypeAlias = Advance | Wait | RollBack | Done


def decide(plan: Plan, progress: Progress, observation: Observation, now: float) -> Decision:
    """The next move of a canary that has traffic.

    A pause holds the weight but not a rollback. What is unknown waits, whatever else is good.
    """
    if observation.wrong_answers:
        # Temperature 0 and the same pictures: asking again would give the same.
        return RollBack(observation.wrong_answers)
    if observation.not_ready is not None:
        return _failing(plan, progress, f"the canary is not ready: {observation.not_ready}")
    match observation.canary:
        case Unknown(reason):
            decision: Decision = Wait(
                f"nothing known of the canary: {reason}", progress.num_failing
            )
        case Measured() as canary:
            decision = _weigh(plan, progress, canary, observation.stable, now)
        case unexpected:
            assert_never(unexpected)
    seconds = now - progress.step_started_at
    late = plan.deadline_seconds is not None and seconds > plan.deadline_seconds
    if late and isinstance(decision, Wait) and not progress.paused:
        return RollBack(f"{_duration(seconds)} at one step: {decision.reason}")
    return decision


def baseline_of(plan: Plan, progress: Progress, stable: Figures) -> Measured | None:
    """The figures to compare with: the stable one's of now where they are enough, else its last."""
    if isinstance(stable, Measured) and stable.num_requests >= plan.min_requests:
        return stable
    return progress.baseline


def proceed(
    plan: Plan, progress: Progress, decision: Decision, stable: Figures, now: float
) -> Progress:
    """The progress after a decision was acted on."""
    baseline = baseline_of(plan, progress, stable)
    match decision:
        case Advance(step):
            return Progress(step=step, step_started_at=now, baseline=baseline)
        case Wait(_, num_failing):
            return progress.model_copy(update={"num_failing": num_failing, "baseline": baseline})
        case RollBack() | Done():
            return progress
        case unexpected:
            assert_never(unexpected)


def next_step(plan: Plan, progress: Progress, reason: str) -> Advance | Done:
    """The step after this one; Done at the last."""
    step = progress.step + 1
    if step >= len(plan.steps):
        return Done(reason)
    return Advance(step, plan.steps[step], reason)


def _weigh(
    plan: Plan, progress: Progress, canary: Measured, stable: Figures, now: float
) -> Decision:
    if canary.num_requests < plan.min_requests:
        text = f"{canary.num_requests} of {plan.min_requests} requests at this step"
        return Wait(text, progress.num_failing)
    verdicts = judge(plan.gates, canary, baseline_of(plan, progress, stable))
    failed = [verdict.text for verdict in verdicts if verdict.outcome is Outcome.FAILED]
    if failed:
        return _failing(plan, progress, "; ".join(failed))
    undecided = [verdict.text for verdict in verdicts if verdict.outcome is Outcome.UNDECIDED]
    if undecided:
        return Wait("; ".join(undecided), progress.num_failing)
    if progress.paused:
        return Wait("paused")
    seconds = now - progress.step_started_at
    if seconds < plan.hold_seconds:
        return Wait(f"healthy; {_duration(plan.hold_seconds - seconds)} of the hold are left")
    return next_step(
        plan, progress, f"healthy for {_duration(seconds)}, {canary.num_requests} requests"
    )


def _failing(plan: Plan, progress: Progress, reason: str) -> RollBack | Wait:
    num_failing = progress.num_failing + 1
    if num_failing >= plan.max_failing:
        return RollBack(reason)
    return Wait(f"failing {num_failing} of {plan.max_failing} times: {reason}", num_failing)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
