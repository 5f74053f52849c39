"""What is kept in the cluster of a canary: read back whole, and changed only as it may be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.canary.errors import Refused
from model.canary.gates import Gates, Measured, Unknown
from model.canary.golden import Golden
from model.canary.plan import Done, Observation, Plan, Progress, RollBack
from model.canary.state import (
    Changes,
    Header,
    Holder,
    Phase,
    State,
    abort,
    advance,
    announce,
    begin,
    claim,
    decided,
    enter,
    parse,
    pause,
    promote,
    release,
)
from tests.canary.states import NOW, make_state

if TYPE_CHECKING:
    from collections.abc import Callable

BLIND = Observation(Unknown(""), Unknown(""))
LIMITS = st.none() | st.floats(0, 1)


@given(
    gates=st.builds(Gates, max_error_ratio=LIMITS, max_error_increase=LIMITS),
    deadline=st.none() | st.floats(1, 1000),
    phase=st.sampled_from(Phase),
    holder=st.none()
    | st.builds(Holder, identity=st.text(), renewed_at=st.just(NOW), ttl_seconds=st.just(60.0)),
    header=st.none() | st.just(Header(name="x-canary", value="always")),
    golden=st.none() | st.just(Golden(path="/golden.jsonl", url="http://there")),
    seen=st.none() | st.just(Measured(num_requests=3, error_ratio=0.5)),
)
def test_a_state_is_read_back_as_it_was_written(
    gates: Gates, deadline: float | None, **fields: Any
) -> None:
    plan = Plan(gates=gates, deadline_seconds=deadline)
    state = make_state(plan=plan, **fields)
    assert parse(state.dump()) == state


def test_times_are_readable_where_they_are_kept() -> None:
    kept = json.loads(make_state().dump())
    assert kept["started_at"] == "1970-01-12T13:46:40.000+00:00"
    assert kept["progress"]["step_started_at"] == "1970-01-12T13:46:40.000+00:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "holds no state", id="empty"),
        pytest.param("[]", "holds no state", id="no object"),
        pytest.param('{"schema_version": 2}', r"newer version.*schema 2", id="a newer schema"),
        pytest.param("{}", r"holds no state of a canary \(id: Field required\)", id="no fields"),
    ],
)
def test_what_is_no_state_is_refused(text: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        parse(text)


def test_an_unknown_field_is_refused_rather_than_lost() -> None:
    kept = json.loads(make_state().dump())
    with pytest.raises(Refused, match=r"extra: Extra inputs are not permitted"):
        parse(json.dumps({**kept, "extra": 1}))


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        pytest.param({"phase": Phase.STARTING}, 0, id="none before it is ready"),
        pytest.param({}, 5, id="its step's"),
        pytest.param({"progress": Progress(step=2, step_started_at=NOW)}, 100, id="the last's"),
        pytest.param({"phase": Phase.PROMOTING}, 5, id="the same while stable becomes it"),
        pytest.param({"header_only": True}, 0, id="none but by header"),
        *(
            pytest.param({"phase": phase}, 0, id=f"none when {phase}")
            for phase in (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED)
        ),
    ],
)
def test_the_weight_follows_from_the_state(changes: dict[str, Any], weight: int) -> None:
    assert make_state(**changes).weight_percent == weight


@pytest.mark.parametrize(
    ("changes", "removes"),
    [
        ({}, False),
        ({"phase": Phase.ROLLED_BACK}, True),
        ({"phase": Phase.ROLLED_BACK, "keep": True}, False),
        ({"phase": Phase.PROMOTED, "changes": None}, False),
    ],
)
def test_only_a_canary_that_was_made_is_removed(changes: dict[str, Any], removes: bool) -> None:
    assert make_state(**changes).removes_canary is removes


def test_another_run_is_refused_until_the_first_is_stale() -> None:
    held = claim(make_state(), "first", NOW, 60)
    with pytest.raises(Refused, match=r"first drives this canary \(renewed 59 s ago"):
        claim(held, "second", NOW + 59, 60)
    assert claim(held, "second", NOW + 60, 60).holder == Holder(
        identity="second", renewed_at=NOW + 60, ttl_seconds=60
    )


def test_the_holder_renews_before_it_is_stale_and_not_at_every_look() -> None:
    held = claim(make_state(), "first", NOW, 60)
    assert claim(held, "first", NOW + 19, 60) is held
    assert claim(held, "first", NOW + 20, 60) != held


def test_letting_go_lets_the_next_one_in_at_once() -> None:
    held = claim(make_state(), "first", NOW, 60)
    assert claim(release(held, "first"), "second", NOW, 60).holder is not None
    assert release(held, "second") is held


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.over])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda state: advance(state, NOW), id="advance"),
        pytest.param(lambda state: pause(state, paused=True), id="pause"),
        pytest.param(lambda state: pause(state, paused=False), id="resume"),
        pytest.param(lambda state: abort(state, "no", NOW), id="abort"),
        pytest.param(lambda state: promote(state, NOW), id="promote"),
    ],
)
def test_what_is_over_stays_over(phase: Phase, change: Callable[[State], State]) -> None:
    with pytest.raises(Refused, match=str(phase)):
        change(make_state(phase=phase))


def test_steps_by_hand_end_at_the_last() -> None:
    state = advance(advance(make_state(), NOW + 1), NOW + 2)
    assert (state.weight_percent, state.progress.step_started_at) == (100, NOW + 2)
    with pytest.raises(Refused, match=r"last step \(100 %\)"):
        advance(state, NOW + 3)


def test_an_ab_test_has_no_steps() -> None:
    with pytest.raises(Refused, match="only requests with the header"):
        advance(make_state(header_only=True), NOW)


def test_no_traffic_before_it_is_ready_by_hand_either() -> None:
    for change in (advance, promote):
        with pytest.raises(Refused, match="the canary is starting"):
            change(make_state(phase=Phase.STARTING), NOW)


def test_what_is_promoted_already_is_not_aborted() -> None:
    with pytest.raises(Refused, match="has its spec already"):
        abort(make_state(phase=Phase.PROMOTING), "no", NOW)


def test_a_rollback_takes_the_weight_and_keeps_the_reason() -> None:
    state = decided(make_state(), RollBack("too slow"), BLIND, NOW + 9)
    assert (state.phase, state.weight_percent, state.reason) == (Phase.ROLLED_BACK, 0, "too slow")
    condition = json.loads(state.dump())["condition"]
    assert condition == {
        "type": "Progressing",
        "status": "False",
        "reason": "RolledBack",
        "message": "too slow",
        "lastTransitionTime": "1970-01-12T13:46:49.000+00:00",
    }


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (None, make_state(phase=Phase.STARTING), "CanaryStarted"),
        (
            make_state(phase=Phase.STARTING),
            begin(make_state(phase=Phase.STARTING), None, NOW),
            "CanaryProgressing",
        ),
        (make_state(), advance(make_state(), NOW), "CanaryAdvanced"),
        (make_state(), pause(make_state(), paused=True), "CanaryPaused"),
        (make_state(), decided(make_state(), Done("good"), BLIND, NOW), "CanaryPromoting"),
        (make_state(), enter(make_state(), Phase.PROMOTED, "good", NOW), "CanaryPromoted"),
        (make_state(), decided(make_state(), RollBack("bad"), BLIND, NOW), "CanaryRolledBack"),
        (make_state(), abort(make_state(), "bad", NOW), "CanaryAborted"),
        (make_state(), claim(make_state(), "me", NOW, 60), None),
    ],
)
def test_what_changes_for_others_is_announced(
    before: State | None, after: State, reason: str | None
) -> None:
    announcement = announce(before, after)
    assert (announcement and announcement.reason) == reason
    if announcement is not None:
        assert announcement.bad is (reason in ("CanaryRolledBack", "CanaryAborted"))


def test_a_rollback_by_reason_of_variables_keeps_them_out_of_what_is_told() -> None:
    state = make_state(changes=Changes(env={"KEY": "secret"}))
    announcement = announce(None, state)
    assert announcement is not None
    assert "secret" not in announcement.text
