"""What a canary does next: the table of decisions, and what holds whatever is observed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import ValidationError

from model.canary.gates import Gates, Measured, Unknown
from model.canary.plan import (
    Advance,
    Decision,
    Done,
    Observation,
    Plan,
    Progress,
    RollBack,
    Wait,
    decide,
    next_step,
    proceed,
)

PLAN = Plan(steps=(5, 25, 100), hold_seconds=60, min_requests=100, max_failing=2)
STABLE = Measured(num_requests=1900, error_ratio=0.001, ttft_p95_seconds=0.2, itl_p95_seconds=0.010)
CANARY = Measured(num_requests=100, error_ratio=0.0, ttft_p95_seconds=0.2, itl_p95_seconds=0.010)
HEALTHY = Observation(CANARY, STABLE)
STARTED = 1_000_000.0


def seen(canary: dict[str, Any] | None = None, **changes: Any) -> Observation:
    """The healthy observation, changed."""
    figures = Measured(**{**CANARY.model_dump(), **(canary or {})})
    return replace(HEALTHY, **{"canary": figures, **changes})


@pytest.mark.parametrize(
    ("observation", "seconds", "expected"),
    [
        pytest.param(HEALTHY, 60, Advance, id="healthy and held long enough advances"),
        pytest.param(HEALTHY, 59, Wait, id="one second short waits"),
        pytest.param(
            seen({"num_requests": 99, "error_ratio": 1.0}),
            600,
            Wait,
            id="too few requests prove nothing",
        ),
        pytest.param(
            replace(HEALTHY, canary=Unknown("Prometheus does not answer")),
            10**6,
            Wait,
            id="unknown figures wait, however long",
        ),
        pytest.param(
            seen(stable=Unknown("no data")), 600, Wait, id="nothing to compare with waits"
        ),
        pytest.param(
            seen(stable=STABLE.model_copy(update={"num_requests": 99})),
            600,
            Wait,
            id="too few requests of the stable one are nothing to compare with",
        ),
        pytest.param(seen({"itl_p95_seconds": None}), 600, Wait, id="one missing figure waits"),
        pytest.param(
            seen({"error_ratio": 0.011}), 600, Advance, id="an error ratio at its limit passes"
        ),
        pytest.param(seen({"error_ratio": 0.012}), 600, RollBack, id="more errors than stable"),
        pytest.param(
            seen({"error_ratio": 0.06}, stable=STABLE.model_copy(update={"error_ratio": 0.06})),
            600,
            RollBack,
            id="as many errors as stable are too many above the absolute limit",
        ),
        pytest.param(
            seen({"ttft_p95_seconds": 0.3}), 600, Advance, id="TTFT at 1.5 times stable's passes"
        ),
        pytest.param(seen({"ttft_p95_seconds": 0.31}), 600, RollBack, id="TTFT above that fails"),
        pytest.param(seen({"itl_p95_seconds": 0.016}), 600, RollBack, id="slow tokens fail"),
        pytest.param(seen({"itl_p95_seconds": 0.016}), 1, RollBack, id="before the hold is over"),
        pytest.param(
            seen({"itl_p95_seconds": 0.016, "ttft_p95_seconds": None}),
            600,
            RollBack,
            id="a failed gate outweighs an undecided one",
        ),
        pytest.param(seen(not_ready="0 of 1 pods are ready"), 1, RollBack, id="pods that are gone"),
        pytest.param(
            seen(wrong_answers="scene-1.jpg: expected a, got b"),
            1,
            RollBack,
            id="a wrong answer rolls back at once",
        ),
    ],
)
def test_decide(observation: Observation, seconds: float, expected: type[Decision]) -> None:
    """With one failing evaluation before, so that a second one rolls back."""
    progress = Progress(step=0, step_started_at=STARTED, num_failing=1)
    assert type(decide(PLAN, progress, observation, STARTED + seconds)) is expected


def test_an_advance_goes_one_step() -> None:
    progress = Progress(step=0, step_started_at=STARTED)
    decision = decide(PLAN, progress, HEALTHY, STARTED + 60)
    assert decision == Advance(1, 25, "healthy for 1 min 0 s, 100 requests")


def test_the_last_step_held_is_done() -> None:
    progress = Progress(step=2, step_started_at=STARTED)
    assert isinstance(decide(PLAN, progress, HEALTHY, STARTED + 59), Wait)
    assert isinstance(decide(PLAN, progress, HEALTHY, STARTED + 60), Done)


def test_without_traffic_for_stable_its_last_figures_count() -> None:
    progress = Progress(step=2, step_started_at=STARTED, baseline=STABLE)
    idle = Measured(num_requests=0)
    slow = seen({"ttft_p95_seconds": 0.31}, stable=idle)
    assert isinstance(decide(PLAN, progress, seen(stable=idle), STARTED + 60), Done)
    assert decide(PLAN, progress, slow, STARTED + 60) == Wait(
        "failing 1 of 2 times: TTFT p95 beside stable is 310.0 ms (stable's 200.0 ms allows "
        "300.0 ms)",
        1,
    )


def test_one_failing_evaluation_is_forgiven_by_a_good_one_after_it() -> None:
    progress = Progress(step=0, step_started_at=STARTED)
    failing = seen({"error_ratio": 0.5})
    now = STARTED + 10
    first = decide(PLAN, progress, failing, now)
    assert isinstance(first, Wait)
    assert first.num_failing == 1
    progress = proceed(PLAN, progress, first, STABLE, now)
    recovered = proceed(PLAN, progress, decide(PLAN, progress, HEALTHY, now), STABLE, now)
    assert recovered.num_failing == 0
    assert isinstance(decide(PLAN, progress, failing, now), RollBack)


def test_not_knowing_between_two_failing_evaluations_forgives_nothing() -> None:
    progress = Progress(step=0, step_started_at=STARTED, num_failing=1)
    blind = decide(PLAN, progress, replace(HEALTHY, canary=Unknown("away")), STARTED + 1)
    progress = proceed(PLAN, progress, blind, Unknown("away"), STARTED + 1)
    assert progress.num_failing == 1


def test_a_pause_holds_the_weight_but_not_a_rollback() -> None:
    paused = Progress(step=0, step_started_at=STARTED, paused=True, num_failing=1)
    assert decide(PLAN, paused, HEALTHY, STARTED + 600) == Wait("paused")
    assert isinstance(decide(PLAN, paused, seen({"error_ratio": 0.5}), STARTED), RollBack)


def test_a_deadline_ends_a_canary_that_cannot_be_judged() -> None:
    plan = PLAN.model_copy(update={"deadline_seconds": 900.0})
    progress = Progress(step=0, step_started_at=STARTED)
    few = seen({"num_requests": 7})
    assert isinstance(decide(plan, progress, few, STARTED + 900), Wait)
    assert decide(plan, progress, few, STARTED + 901) == RollBack(
        "15 min 1 s at one step: 7 of 100 requests at this step"
    )
    paused = progress.model_copy(update={"paused": True})
    assert isinstance(decide(plan, paused, few, STARTED + 901), Wait)


def test_a_gate_that_is_none_asks_nothing() -> None:
    gates = Gates(
        max_error_ratio=None, max_error_increase=None, max_ttft_growth=None, max_itl_growth=None
    )
    plan = PLAN.model_copy(update={"gates": gates})
    awful = Measured(num_requests=100, error_ratio=1.0, ttft_p95_seconds=60, itl_p95_seconds=60)
    progress = Progress(step=0, step_started_at=STARTED)
    observation = Observation(awful, Unknown("no data"))
    assert isinstance(decide(plan, progress, observation, STARTED + 60), Advance)


@pytest.mark.parametrize("steps", [(), (0, 5), (5, 5), (25, 5), (50, 101), (-1,)])
def test_steps_that_do_not_rise_from_1_to_100_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"percentages that rise, from 1 to at most 100"):
        Plan(steps=steps)


RATIOS = st.none() | st.floats(0, 1)
SECONDS = st.none() | st.floats(0, 100)
FIGURES = st.builds(Unknown, st.just("away")) | st.builds(
    Measured,
    num_requests=st.integers(0, 300),
    error_ratio=RATIOS,
    ttft_p95_seconds=SECONDS,
    itl_p95_seconds=SECONDS,
)
STEPS = st.lists(st.integers(1, 100), min_size=1, max_size=5, unique=True).map(
    lambda steps: tuple(sorted(steps))
)


class Canary(RuleBasedStateMachine):
    """A canary under any observations, pauses and manual steps, at any times."""

    def __init__(self) -> None:
        super().__init__()
        self.now = STARTED
        self.plan = PLAN
        self.progress = Progress(step=0, step_started_at=self.now)
        self.ended: Decision | None = None
        self.weights = [self.plan.steps[0]]

    @initialize(
        steps=STEPS, hold=st.floats(0, 100), few=st.integers(1, 200), failing=st.integers(1, 3)
    )
    def plan_it(self, steps: tuple[int, ...], hold: float, few: int, failing: int) -> None:
        self.plan = Plan(steps=steps, hold_seconds=hold, min_requests=few, max_failing=failing)
        self.weights = [steps[0]]

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.ended is None)
    @rule(paused=st.booleans())
    def pause_or_resume(self, paused: bool) -> None:
        self.progress = self.progress.model_copy(update={"paused": paused})

    @precondition(lambda self: self.ended is None)
    @rule()
    def advance_by_hand(self) -> None:
        self.act(next_step(self.plan, self.progress, "by hand"), Unknown("not asked"))

    @precondition(lambda self: self.ended is None)
    @rule(
        canary=FIGURES,
        stable=FIGURES,
        not_ready=st.none() | st.just("gone"),
        wrong=st.sampled_from(["", "", "", "wrong"]),
    )
    def observe(self, canary: Any, stable: Any, not_ready: str | None, wrong: str) -> None:
        observation = Observation(canary, stable, not_ready, wrong)
        decision = decide(self.plan, self.progress, observation, self.now)
        if isinstance(decision, Advance | Done):
            assert isinstance(canary, Measured), "nobody advances blindly"
            assert canary.num_requests >= self.plan.min_requests
            assert None not in (canary.ttft_p95_seconds, canary.itl_p95_seconds)
            assert canary.error_ratio is not None
            assert canary.error_ratio <= 0.05
            assert self.now - self.progress.step_started_at >= self.plan.hold_seconds
            assert not self.progress.paused
            assert not_ready is None
            assert not wrong
        if isinstance(decision, RollBack) and not wrong and not_ready is None:
            assert isinstance(canary, Measured)
            assert canary.num_requests >= self.plan.min_requests, "too few prove nothing"
        self.act(decision, stable)

    def act(self, decision: Decision, stable: Any) -> None:
        self.progress = proceed(self.plan, self.progress, decision, stable, self.now)
        match decision:
            case RollBack() | Done():
                self.ended = decision
            case Advance(step, weight):
                assert self.plan.steps[step] == weight
                self.weights.append(weight)

    @invariant()
    def weights_follow_the_plan_one_step_at_a_time(self) -> None:
        assert tuple(self.weights) == self.plan.steps[: len(self.weights)]
        assert self.progress.step == len(self.weights) - 1

    @invariant()
    def it_is_done_only_from_the_last_step(self) -> None:
        if isinstance(self.ended, Done):
            assert self.weights[-1] == self.plan.steps[-1]

    @invariant()
    def failing_evaluations_stay_below_the_limit(self) -> None:
        assert self.progress.num_failing < self.plan.max_failing or self.ended is not None


TestCanary = Canary.TestCase
